"""Encodes the changes of a window for the database: rows as a full export's are, and what is to be known of items and keys."""

from __future__ import annotations

import hashlib
import itertools
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
from migration_pipeline.targets.ledger import Place

NO_DOCUMENT = "{}"

_encode = msgspec.json.Encoder().encode


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
    items: dict[type[Row], list[str]]
    """Of landing tables: the item of each row."""
    landed_before: dict[type[Row], list[bytes]]
    """Of landing tables: the rows of states before, each after its line number."""


class EncodedChanges(NamedTuple):
    """A batch's changes as COPY input."""

    parts: list[tuple[type[Row], bytes]]
    account: Written
    records: list[tuple[int, str, int]]
    data: bytes
    """The records."""
    moves: dict[type[Row], tuple[bytes, bytes]]
    """Keys of rows that are given up, and those that are taken; where a row keeps its key, there is none."""
    landed_before: dict[type[Row], bytes]
    """Of landing tables: the rows of states before, each after its line number. Those in `parts` are before their items."""

    @property
    def size(self) -> int:
        """Bytes of COPY input."""
        others = [
            *itertools.chain(*self.moves.values()),
            *self.landed_before.values(),
            *(data for _, data in self.parts),
        ]
        return len(self.data) + sum(map(len, others))


NO_CHANGES = EncodedChanges([], Written(), [], b"", {}, {})
"""For items that are known to the ledger alone."""


class _Keys:
    """Encodes the keys of a table's rows."""

    def __init__(self, target: TargetTable, coder: RowEncoder) -> None:
        self._coder = coder
        fields = [column.field for column in target.table.columns if column.name in target.table.key]
        names = [column.name for column in target.table.columns if column.name in target.table.key]
        self.key_of = attrgetter(*fields)
        self.values_of = coder.values_of(names)
        """Gives the values of the key's columns, in the order of the table's columns, as JSON has them."""
        self._checks = [
            (fit.changes, attrgetter(fit.column.field))
            for fit in target.key_fits
            if fit.changes and not fit.fitted
        ]

        self._as_it_is = not self._checks and not coder.replaces_nul

    def kept(self, row: Row, careful: bool) -> Row | None:
        """A row as it is written, by the profile's policy for U+0000; with `careful` None where the table cannot hold its key.

        What a column would change was never written.
        """
        if self._as_it_is:
            return row
        (kept,) = self._coder.without_nul([row])
        if careful and any(
            (value := of(kept)) is not None and changes(value) for changes, of in self._checks
        ):
            return None
        return kept


_Noted = dict[type[Row], list[tuple[int, Any, tuple[Any, ...]]]]
"""Keys by table: the line number, the key, and the values of its columns."""


class ChangesEncoder:
    """Encodes the changes of batches; in place of a `BatchEncoder`.

    Records of items that had no row and have none are left out: in a chain of windows that follow each other the ledger
    says nothing else of them. With `changed` some files were loaded by another version of the profile, which may have made rows.
    """

    def __init__(
        self,
        targets: Mapping[type[Row], TargetTable],
        nul: NulPolicy,
        file: str,
        place: Place,
        *,
        changed: bool = False,
    ) -> None:
        self._base_time = place.base_time
        self._all = place.broken or changed
        self._rows = BatchEncoder(targets, nul, apart=True)
        self._keys = {
            row_class: _Keys(target, self._rows.of(row_class))
            for row_class, target in targets.items()
            if not target.table.landing
        }
        self._landing = {row_class for row_class, target in targets.items() if target.table.landing}
        self._names = {row_class: target.table.qualified for row_class, target in targets.items()}
        digest = hashlib.blake2b(file.encode(), digest_size=7).digest()
        self._place = int.from_bytes(digest, "big")

    def encode(self, outcome: Outcome) -> ChangePiece:
        """Encode some records. Raises any exception for rows that cannot be encoded."""
        assert isinstance(outcome, ChangeOutcome)  # noqa: S101  # the transform of a window makes no other
        rows: dict[type[Row], list[Row]] = {row_class: [] for row_class in self._names}
        piece, values = ChangePiece({}, [], [], {}, {}, {each: [] for each in self._landing}, {}), []
        given_up: _Noted = {}
        taken: _Noted = {}
        before: dict[type[Row], list[tuple[int, Row]]] = {}
        for record in outcome.records:
            if record.idle and not self._all:
                continue
            piece.records.append((record.number, record.item, record.written))
            owned = self._moves(record, given_up, taken)
            values.append(
                (record.number, record.item, record.written, self._place + record.number, record.idle, owned)
            )
            for row in record.new:
                rows[row.__class__].append(row)
                if row.__class__ in self._landing:
                    piece.items[row.__class__].append(record.item)
            # The full export has what was written before it was taken.
            for row in record.new if record.written < self._base_time else record.old:
                if row.__class__ in self._landing:
                    before.setdefault(row.__class__, []).append((record.number, row))
        for row_class, numbered in before.items():
            piece.landed_before[row_class] = self._lines_before(row_class, numbered)
        piece.given_up.update(_moved(given_up))
        piece.taken.update(_moved(taken))
        piece.rows.update(self._rows.encode_rows(rows))
        piece.lines.extend(csv_lines(values))
        return piece

    def _lines_before(self, row_class: type[Row], numbered: Sequence[tuple[int, Row]]) -> list[bytes]:
        """Encode rows of states before, each after its line number; those that cannot be encoded never were."""
        coder = self._rows.of(row_class)
        try:
            lines = coder.encode([row for _, row in numbered]).lines
        except Exception:
            if len(numbered) == 1:
                return []
            return [line for each in numbered for line in self._lines_before(row_class, [each])]
        return [b"%d,%b" % (number, line) for (number, _), line in zip(numbered, lines, strict=True)]

    def join(self, pieces: Sequence[ChangePiece]) -> EncodedChanges:
        """Make a batch's COPY input of its pieces."""
        rows = self._rows.join(
            [{each: some for each, some in piece.rows.items() if each in self._keys} for piece in pieces]
        )
        records = [record for piece in pieces for record in piece.records]
        data = b"\n".join([line for piece in pieces for line in piece.lines] + [b""])
        moves = {each: lines for each in self._keys if any(lines := _moves_of(each, pieces))}
        encoded = EncodedChanges(rows.parts, rows.account, records, data, moves, {})
        for row_class in self._landing:
            self._join_landing(row_class, pieces, encoded)
        return encoded

    def _join_landing(
        self, row_class: type[Row], pieces: Sequence[ChangePiece], encoded: EncodedChanges
    ) -> None:
        landed = [
            b'%b,"%b"' % (line, item.encode())
            for piece in pieces
            if row_class in piece.rows
            for line, item in zip(piece.rows[row_class].lines, piece.items[row_class], strict=True)
        ]  # fmt: skip
        if landed:
            encoded.parts.append((row_class, b"\n".join([*landed, b""])))
            encoded.account.rows[self._names[row_class]] = len(landed)
        if before := [line for piece in pieces for line in piece.landed_before.get(row_class, ())]:
            encoded.landed_before[row_class] = b"\n".join([*before, b""])

    def _moves(self, record: Record, given_up: _Noted, taken: _Noted) -> str:
        """Note the keys that a record's item gives up and takes; returns those of the rows that it has then, as JSON."""
        if not (record.old or record.new):
            return NO_DOCUMENT
        old, new = self._by_key(record.old, careful=True), self._by_key(record.new)
        for noted, ours, others in ((given_up, old, new), (taken, new, old)):
            for each, values in ours.items():
                if each not in others:
                    row_class, key = each
                    noted.setdefault(row_class, []).append((record.number, key, values))
        owned: dict[str, list[Any]] = {}
        for (row_class, _), values in new.items():
            owned.setdefault(self._names[row_class], []).append(values)
        document = _encode(owned).decode()
        # Such a row is refused anyway, and its document would be, too.
        return NO_DOCUMENT if "\\u0000" in document else document

    def _by_key(
        self, rows: Sequence[Row], careful: bool = False
    ) -> dict[tuple[type[Row], Any], tuple[Any, ...]]:
        """The keys of rows, and their values. With `careful`, those that no table can have are passed over."""
        found = {}
        for row in rows:
            row_class = row.__class__
            keys = self._keys.get(row_class)
            if keys is None:
                continue
            try:
                if (kept := keys.kept(row, careful)) is not None:
                    found[row_class, keys.key_of(kept)] = keys.values_of(kept)
            except Exception:
                if not careful:
                    raise
        return found


def _moved(noted: _Noted) -> dict[type[Row], list[Move]]:
    """Keys with their lines: all of a table at once. Raises any exception for one that cannot be encoded."""
    return {
        row_class: [
            Move(number, key, line)
            for (number, key, _), line in zip(moves, csv_lines([values for *_, values in moves]), strict=True)
        ]
        for row_class, moves in noted.items()
    }


def _moves_of(row_class: type[Row], pieces: Sequence[ChangePiece]) -> tuple[bytes, bytes]:
    """The keys of a table's rows that some items give up, and others take, as COPY input."""
    taken = {move.key: move for piece in pieces for move in piece.taken.get(row_class, ())}
    gone = {move.key: move for piece in pieces for move in piece.given_up.get(row_class, ())}
    there = {key for piece in pieces if row_class in piece.rows for key in piece.rows[row_class].keys}
    false = [b"%d,false,%b" % (move.number, move.line) for key, move in gone.items() if key not in there]
    # One that another item of this batch gives up is noted, too: a third item, of another batch, may give it up as well.
    true = [b"%d,true,%b" % (move.number, move.line) for move in taken.values()]
    return b"\n".join([*false, b""]), b"\n".join([*true, b""])
