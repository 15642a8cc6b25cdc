r"""Encodes rows for COPY, in C.

PostgreSQL's CSV reader can be told to read what a JSON encoder writes: ``QUOTE '"'``, ``ESCAPE '\'`` and
``NULL 'null'`` make a JSON array, less its brackets, a valid CSV line. So a list of rows is one
call of msgspec's encoder. What JSON and this CSV spell differently is fixed afterwards, and only where it
occurs: JSON's escapes of control characters (``\n``), which CSV wants as the characters themselves.

Types whose JSON form PostgreSQL would not read as the column's type (bytea, arrays, jsonb) are turned to
text by a generated function first; rows without such columns skip that step.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from migration_pipeline import accelerator
from migration_pipeline.engine.batch import Written
from migration_pipeline.engine.transform import Outcome
from migration_pipeline.errors import BadRow
from migration_pipeline.generated import generated
from migration_pipeline.profile.profile import NulPolicy
from migration_pipeline.profile.row import Column, Row, Table
from migration_pipeline.targets import accelerated_rows
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.fits import Fit
from migration_pipeline.targets.spellings import Spell, spellings_of, utc, whole_minutes

COPY_OPTIONS = r"""FORMAT csv, QUOTE '"', ESCAPE '\', NULL 'null'"""

_json = msgspec.json.Encoder(decimal_format="string")

# -- batches ---------------------------------------------------------------------------------------


class EncodedRows(NamedTuple):
    """Some rows of one table, encoded, in the order in which they came."""

    rows: int
    keys: Sequence[Any]
    """Of each row; none of a landing table's."""
    versions: list[Any]
    """Of each row, where the table has versions."""
    lines: Sequence[Any]
    """Bytes, one a row; those of a landing table are in one piece, bytes or a buffer, unless they are to be apart."""
    nul: int
    """Texts from which U+0000 was taken out."""
    rounded: dict[str, int]
    """Values that a column changes, as the Row allows, by table and column."""


class CopyInput(NamedTuple):
    """Rows of one table as COPY input."""

    data: bytes
    rows: int


class RowEncoder:
    """Encodes the rows of one table, compiled once from its `Row` class, and how its columns take their values."""

    def __init__(
        self, table: Table, nul: NulPolicy = "quarantine", fits: Sequence[Fit] = (), *, apart: bool = False
    ) -> None:
        self.table = table
        self._apart = apart or not table.landing
        self._fits = {fit.column.name: fit for fit in fits}
        self._checks = [(fit, attrgetter(fit.column.field)) for fit in fits if fit.changes is not None]
        fields = {column.name: column.field for column in table.columns}
        self._key = attrgetter(*(fields[name] for name in table.key)) if not table.landing else None
        self._version = attrgetter(fields[table.version]) if table.version else None
        self._nul = {"strip": "", "escape": r"\u0000"}.get(nul)
        self._spell = spellings_of(table, self._fits)
        self._prepare = _compile_prepare(table, self._spell)
        self._times = [attrgetter(c.field) for c in table.columns if c.python_type is datetime]
        self._zones: set[tzinfo | None] = set()
        """Time zones that the JSON encoder spells."""
        self._extension = accelerator.extension(accelerator.ROWS)
        self._in_c: dict[type[Row], Any] = {}
        """The encoder in C of the table's class; None where there is none."""
        self.given_back = 0
        """Rows that Python encoded, though there is an extension."""

    def encode(self, rows: Sequence[Row]) -> EncodedRows:
        """Encode some of a batch's rows, best while they are in the CPU's cache still: they are not needed any more.

        Raises `BadRow` if a column would change a value, and the Row does not allow it.
        """
        try:
            encoded = self._encode_in_c(rows)
        except Exception:  # Python tells what it is
            self.given_back += len(rows)
            encoded = None
        return self._encode_in_python(rows) if encoded is None else encoded

    def _encode_in_c(self, rows: Sequence[Row]) -> EncodedRows | None:
        """Encode rows in C. Raises any exception, and returns None, for what is to be done in Python."""
        if not rows:
            return None
        row_class = rows[0].__class__
        if row_class not in self._in_c:
            self._in_c[row_class] = accelerated_rows.compile_rows(
                self._extension,
                row_class,
                self.table,
                self._fits,
                self._spell,
                self._line_of,
                apart=self._apart,
            )
        if (encoder := self._in_c[row_class]) is None:
            return None
        keys, lines, given_back = encoder.encode(rows)
        if self._nul is not None and _may_hold_nul([bytes(lines)]):
            return None
        self.given_back += given_back
        return EncodedRows(
            len(rows),
            keys,
            list(map(self._version, rows)) if self._version else [],
            lines if self._apart else [lines],  # as the buffer that it is: it need not become bytes first
            0,
            self._rounded(rows) if self._checks else {},
        )

    def _line_of(self, row: Row) -> bytes:
        """Encode a row that C does not know. Raises any exception where all rows are to be looked at."""
        times = (time_of(row) for time_of in self._times)
        if not all(whole_minutes(when.tzinfo) for when in times if when is not None):
            raise ValueError("from here on all times are spelled in UTC")
        (line,) = self._lines([row])
        return line

    def _encode_in_python(self, rows: Sequence[Row]) -> EncodedRows:
        self._look_at_zones(rows)
        lines, counted = self._lines(rows), [0]
        if self._nul is not None and _may_hold_nul(lines):
            rows = self.without_nul(rows, counted)
            lines = self._lines(rows)
        keys = list(map(self._key, rows)) if self._key else []
        set(keys)  # raises for what cannot be a key, while it can be told which row it is
        return EncodedRows(
            len(rows),
            keys,
            list(map(self._version, rows)) if self._version else [],
            lines,
            counted[0],
            self._rounded(rows) if self._checks else {},
        )

    @property
    def replaces_nul(self) -> bool:
        """Whether the profile's policy puts something in place of U+0000."""
        return self._nul is not None

    def without_nul(self, rows: Sequence[Row], counted: list[int] | None = None) -> Sequence[Row]:
        """Rows as they are written, by the profile's policy for U+0000."""
        if self._nul is None:
            return rows
        return [_without_nul(row, self._nul, counted or [0]) for row in rows]

    def values_of(self, names: Sequence[str]) -> Callable[[Row], tuple[Any, ...]]:
        """Make the function that gives a row's values of some columns as they are encoded, times in UTC."""
        columns = [column for column in self.table.columns if column.name in names]
        part = dataclasses.replace(self.table, columns=tuple(columns))
        return _compile_prepare(part, spellings_of(part, self._fits, utc)) or _plain(columns)

    def _look_at_zones(self, rows: Sequence[Row]) -> None:
        """Spell all times in UTC from the first on whose offset the JSON encoder would round."""
        for time_of in self._times:
            zones = {when.tzinfo for when in map(time_of, rows) if when is not None} - self._zones
            if zones and not all(map(whole_minutes, zones)):
                self._spell, self._times = spellings_of(self.table, self._fits, utc), []
                self._prepare = _compile_prepare(self.table, self._spell)
                self._in_c.clear()
                return
            self._zones |= zones

    def _rounded(self, rows: Sequence[Row]) -> dict[str, int]:
        """Count the values that a column changes."""
        rounded = {}
        for fit, value_of in self._checks:
            changes: Callable[[Any], bool] = fit.changes  # type: ignore[assignment]  # as the list has it
            count = sum(value is not None and changes(value) for value in map(value_of, rows))
            if count and not fit.fitted:
                raise BadRow(fit.reason, self.table.qualified)
            if count:
                rounded[f"{self.table.qualified}.{fit.column.name}"] = count
        return rounded

    def join(self, pieces: Sequence[EncodedRows]) -> CopyInput:
        """Make COPY input of a batch's rows, sorted by key, each key once.

        Of rows with one key the one with the greatest version stays, and of those the one whose encoding is
        the greatest, whatever order they came in.
        """
        rows = sum(piece.rows for piece in pieces)
        if self._key is not None:
            data = accelerated_rows.join(
                self._extension,
                [piece.keys for piece in pieces],
                [piece.lines for piece in pieces],
                twins=self.table.merges,
            )
            if data is not None:
                return CopyInput(data, rows)
        lines = [line for piece in pieces for line in piece.lines]
        if self._key is not None:
            keys = [key for piece in pieces for key in piece.keys]
            # Sorted, B-tree inserts touch neighbouring pages, and loaders side by side lock in one order.
            try:
                order = sorted(range(len(keys)), key=keys.__getitem__)
            # A None, values of several types, a NaN: what they are worth the database says.
            except (TypeError, ArithmeticError):
                order = sorted(range(len(keys)), key=lines.__getitem__)
            # Rows that merge do so in the database.
            if not self.table.merges and len(set(keys)) != len(keys):
                versions = [version for piece in pieces for version in piece.versions]
                order = _distinct(order, keys, versions or [None] * len(keys), lines)
            lines = [lines[n] for n in order]
            rows = len(order)
        return CopyInput(b"\n".join([*lines, b""]), rows)

    def _lines(self, rows: Sequence[Row]) -> list[bytes]:
        if not rows:
            return []
        encoded = _json.encode_lines(rows if self._prepare is None else list(map(self._prepare, rows)))[1:-2]
        # Each row is in brackets. One character is taken out in a tenth of the time of three, and mostly no value has any.
        bare = encoded.replace(b"]", b"").replace(b"[", b"")
        if len(encoded) - len(bare) != 2 * (len(rows) - 1):
            # A newline inside a value is still \n here, so these brackets are the rows' own.
            bare = encoded.replace(b"]\n[", b"\n")
        if not self._apart:
            return [bare if _ESCAPE.search(bare) is None else b"\n".join(map(_unescape, bare.split(b"\n")))]
        lines = bare.split(b"\n")
        return lines if _ESCAPE.search(bare) is None else list(map(_unescape, lines))


def _distinct(
    order: Sequence[int], keys: Sequence[Any], versions: Sequence[Any], lines: Sequence[bytes]
) -> list[int]:
    """Keep of each key the row that ranks highest."""

    def rank(n: int) -> Any:
        version = versions[n]
        return (version is not None, 0 if version is None else version, lines[n] + b"\n")

    greatest: dict[Any, int] = {}
    for n in order:
        rival = greatest.setdefault(keys[n], n)
        if rival != n and rank(n) > rank(rival):
            greatest[keys[n]] = n
    return list(greatest.values())


_NUL = (b"\0", b"u0000")
"""How U+0000 stands in encoded rows: in a text, and in a document, which is JSON still."""


def _may_hold_nul(lines: Sequence[bytes]) -> bool:
    return any(each in line for line in lines for each in _NUL)


def _without_nul(value: Any, instead: str, counted: list[int]) -> Any:
    """Copy a row, or a value in it, with `instead` in place of each U+0000, and count the texts that had one."""
    if isinstance(value, str):
        if "\0" not in value:
            return value
        counted[0] += 1
        return value.replace("\0", instead)
    if isinstance(value, dict):
        return {
            _without_nul(name, instead, counted): _without_nul(member, instead, counted)
            for name, member in value.items()
        }
    if isinstance(value, (list, tuple, set, frozenset)):
        return type(value)(_without_nul(element, instead, counted) for element in value)
    if isinstance(value, Row):
        names = [field.name for field in msgspec.structs.fields(value)]
        return type(value)(*(_without_nul(getattr(value, name), instead, counted) for name in names))
    return value


def _compile_prepare(
    table: Table, spellings: dict[str, Spell | None]
) -> Callable[[Row], tuple[Any, ...]] | None:
    """Generate the function that makes a row's tuple for the JSON encoder; None when the row will do itself."""
    if not any(spellings.values()):
        return None
    values = []
    namespace: dict[str, Any] = {}
    for number, column in enumerate(table.columns):
        if spellings[column.field] is None:
            values.append(f"r.{column.field}")
        else:
            namespace[f"spell{number}"] = spellings[column.field]
            values.append(f"(None if (v := r.{column.field}) is None else spell{number}(v))")
    source = f"def prepare(r):\n    return ({', '.join(values)},)\n"
    return generated("prepare", source, f"encoder of {table.qualified}", namespace)  # type: ignore[no-any-return]


def _plain(columns: Sequence[Column]) -> Callable[[Row], tuple[Any, ...]]:
    values: Any = attrgetter(*(column.field for column in columns))
    return values if len(columns) > 1 else lambda row: (values(row),)


def csv_lines(values: Sequence[tuple[Any, ...]]) -> list[bytes]:
    """Encode tuples of values that JSON spells as PostgreSQL reads them: a line each, without newlines between."""
    if not values:
        return []
    lines = _json.encode_lines(values)[1:-2].split(b"]\n[")
    return list(map(_unescape, lines))


_ESCAPE = re.compile(rb"\\(?:u00([0-9a-f]{2})|([bfnrt]))")
_CONTROL = {b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t"}
_BACKSLASH = b"\xff"
"""Stands for an escaped backslash for a while: a byte that UTF-8 does not have."""


def _unescape(row: bytes) -> bytes:
    r"""Put control characters in place of JSON's escapes of them; ``\"`` and ``\\`` mean the same in our CSV."""
    if _ESCAPE.search(row) is None:
        return row
    # Escaped backslashes go first, as what follows one is no escape: \\n is a backslash and an n, as
    # documents with line breaks have it, which are JSON inside of JSON.
    plain = row.replace(b"\\\\", _BACKSLASH)
    if _ESCAPE.search(plain) is None:
        return row
    return _ESCAPE.sub(_character, plain).replace(_BACKSLASH, b"\\\\")


def _character(escape: re.Match[bytes]) -> bytes:
    return bytes([int(escape[1], 16)]) if escape[1] else _CONTROL[escape[2]]


class Encoded(NamedTuple):
    """A batch's rows as COPY input, by table."""

    parts: list[tuple[type[Row], bytes]]
    account: Written
    """As if nothing were in the tables yet."""

    @property
    def size(self) -> int:
        """Bytes of COPY input."""
        return sum(len(data) for _, data in self.parts)


Piece = dict[type[Row], EncodedRows]
"""Some rows of a batch, by table."""


class BatchEncoder:
    """Encodes the rows of batches, of several tables."""

    def __init__(
        self, targets: Mapping[type[Row], TargetTable], nul: NulPolicy, *, apart: bool = False
    ) -> None:
        self._of = {
            row_class: RowEncoder(target.table, nul, target.fits, apart=apart)
            for row_class, target in targets.items()
        }

    def of(self, row_class: type[Row]) -> RowEncoder:
        """The encoder of one table's rows."""
        return self._of[row_class]

    def encode(self, outcome: Outcome) -> Piece:
        """Encode some of a batch's rows. Raises any exception for one that cannot be."""
        return self.encode_rows(outcome.rows)

    def encode_rows(self, rows: Mapping[type[Row], Sequence[Row]]) -> Piece:
        """Encode rows by table. Raises any exception for one that cannot be."""
        return {row_class: self._of[row_class].encode(some) for row_class, some in rows.items() if some}

    def join(self, pieces: Sequence[Piece]) -> Encoded:
        """Make a batch's COPY input of its pieces, each table's sorted by key. What is joined is taken out of them: it need not be there twice."""
        encoded = Encoded([], Written())
        for row_class, coder in self._of.items():
            if some := [piece.pop(row_class) for piece in pieces if row_class in piece]:
                joined, name = coder.join(some), coder.table.qualified
                encoded.parts.append((row_class, joined.data))
                encoded.account.rows[name] = joined.rows
                if left_out := sum(each.rows for each in some) - joined.rows:
                    encoded.account.collisions[name] = left_out
                for each in some:
                    encoded.account.nul += each.nul
                    encoded.account.rounded.update(each.rounded)
        return encoded
