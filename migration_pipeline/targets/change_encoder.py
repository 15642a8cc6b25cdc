"""Encodes the changes of a window for the database: rows as a full export's are, and what is to be known of items and keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from migration_pipeline.engine.batch import Written
from migration_pipeline.engine.changes import ChangeOutcome, Record
from migration_pipeline.engine.transform import Outcome
from migration_pipeline.profile.profile import NulPolicy
from migration_pipeline.profile.row import Row
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.copy_csv import BatchEncoder, Piece, RowEncoder, csv_lines

NO_DOCUMENT = "{}"


class Move(NamedTuple):
    """The key of a row that an item gives up or takes."""

    number: int
    key: Any
    line: bytes
    """The key's columns as COPY input."""


class ChangePiece(NamedTuple):
    """Some records of a batch, encoded."""

    rows: Piece
    records: list[tuple[int, str, int]]
    """Line number, item and time of each."""
    lines: list[bytes]
    """Each record as COPY input."""
    given_up: dict[type[Row], list[Move]]
    taken: dict[type[Row], list[Move]]


class EncodedChanges(NamedTuple):
    """A batch's changes as COPY input."""

    parts: list[tuple[type[Row], bytes]]
    account: Written
    records: list[tuple[int, str, int]]
    data: bytes
    """The records."""
    moves: dict[type[Row], bytes]
    """Keys of rows that are given up or taken; where a row keeps its key, there is none."""

    @property
    def size(self) -> int:
        """Bytes of COPY input."""
        return len(self.data) + sum(map(len, self.moves.values())) + sum(len(data) for _, data in self.parts)


NO_CHANGES = EncodedChanges([], Written(), [], b"", {})
"""For items that are known to the ledger alone."""


class _Keys:
    """Encodes the keys of a table's rows."""

    def __init__(self, target: TargetTable, coder: RowEncoder) -> None:
        self._coder = coder
        fields = [column.field for column in target.table.columns if column.name in target.table.key]
        names = [column.name for column in target.table.columns if column.name in target.table.key]
        self.key_of = attrgetter(*fields)
        self._values = coder.values_of(names)

    def keep_nul_policy(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Rows as they are written, by the profile's policy for U+0000."""
        return self._coder.without_nul(rows)

    def values(self, row: Row) -> tuple[Any, ...]:
        """The values of the key's columns, in the order of the table's columns, as JSON has them."""
        return self._values(row)


class ChangesEncoder:
    """Encodes the changes of batches; in place of a `BatchEncoder`."""

    def __init__(self, targets: Mapping[type[Row], TargetTable], nul: NulPolicy, file: str) -> None:
        self._rows = BatchEncoder(targets, nul)
        self._keys = {
            row_class: _Keys(target, self._rows.of(row_class))
            for row_class, target in targets.items()
            if not target.table.landing
        }
        self._names = {row_class: target.table.qualified for row_class, target in targets.items()}
        digest = hashlib.blake2b(file.encode(), digest_size=7).digest()
        self._place = int.from_bytes(digest, "big")

    def encode(self, outcome: Outcome) -> ChangePiece:
        """Encode some records. Raises any exception for rows that cannot be encoded."""
        assert isinstance(outcome, ChangeOutcome)  # noqa: S101  # the transform of a window makes no other
        piece = ChangePiece(self._rows.encode(outcome), [], [], {}, {})
        values = []
        for record in outcome.records:
            piece.records.append((record.number, record.item, record.written))
            owned = self._moves(record, piece)
            values.append(
                (record.number, record.item, record.written, self._place + record.number, record.idle, owned)
            )
        piece.lines.extend(csv_lines(values))
        return piece

    def join(self, pieces: Sequence[ChangePiece]) -> EncodedChanges:
        """Make a batch's COPY input of its pieces."""
        rows = self._rows.join([piece.rows for piece in pieces])
        records = [record for piece in pieces for record in piece.records]
        data = b"\n".join([line for piece in pieces for line in piece.lines] + [b""])
        moves = {}
        for row_class in self._keys:
            taken = {move.key: move for piece in pieces for move in piece.taken.get(row_class, ())}
            gone = {move.key: move for piece in pieces for move in piece.given_up.get(row_class, ())}
            there = {
                key
                for piece in pieces
                if row_class in piece.rows
                for key in piece.rows[row_class].keys
            }  # fmt: skip
            lines = [b"%d,false,%b" % (m.number, m.line) for key, m in gone.items() if key not in there]
            lines += [b"%d,true,%b" % (m.number, m.line) for key, m in taken.items() if key not in gone]
            if lines:
                moves[row_class] = b"\n".join([*lines, b""])
        return EncodedChanges(rows.parts, rows.account, records, data, moves)

    def _moves(self, record: Record, piece: ChangePiece) -> str:
        """Note the keys that a record's item gives up and takes; returns those of the rows that it has then, as JSON."""
        if not (record.old or record.new):
            return NO_DOCUMENT
        old, new = self._by_key(record.old, careful=True), self._by_key(record.new)
        for move, ours, others in ((piece.given_up, old, new), (piece.taken, new, old)):
            for each, values in ours.items():
                if each not in others:
                    row_class, key = each
                    (line,) = csv_lines([values])
                    move.setdefault(row_class, []).append(Move(record.number, key, line))
        owned: dict[str, list[Any]] = {}
        for (row_class, _), values in new.items():
            owned.setdefault(self._names[row_class], []).append(values)
        document = msgspec.json.encode(owned).decode()
        # Such a row is refused anyway, and its document would be, too.
        return NO_DOCUMENT if "\\u0000" in document else document

    def _by_key(
        self, rows: Sequence[Row], careful: bool = False
    ) -> dict[tuple[type[Row], Any], tuple[Any, ...]]:
        """The keys of rows, and their values. With `careful`, rows whose keys cannot be encoded are passed over: they never were."""
        found = {}
        for row in rows:
            keys = self._keys.get(row.__class__)
            if keys is None:
                continue
            try:
                (kept,) = keys.keep_nul_policy([row])
                found[row.__class__, keys.key_of(kept)] = keys.values(kept)
                hash(keys.key_of(kept))
            except Exception:
                if not careful:
                    raise
        return found
