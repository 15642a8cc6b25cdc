"""Knows a batch again that was loaded before, so that a rerun neither sends nor compares rows which nobody has touched since.

A row that is inserted or updated bears the id of the transaction that did it (``xmin``). The note of a batch is written
by the transaction that copies its rows, and bears the same id. So if as many rows with that id are there as were copied,
they are these rows, all of them, as they were copied; and if the same bytes would be copied again, nothing is left to do.
Are there fewer, then of each that is there the same holds: only the others are left to write. docs/decisions/0010-batches-known-again.md
has the proof.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec
from psycopg2.sql import SQL, Composable, Identifier, Literal

from migration_pipeline import accelerator
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.connection import BEGUN
from migration_pipeline.targets.fits import TIMES

BLOCKS_BEFORE = 256
"""A table grows by up to 64 blocks at once, for all who wait to write: a batch may fill some that were there before it began."""

FIRST_VERSION = 140000
"""PostgreSQL 14 is the first to read a range of blocks without the rest of the table."""

IDENTITY = """
WITH named AS MATERIALIZED (
    SELECT name, to_regclass(name) AS id FROM unnest(%(names)s::text[]) AS name
)
SELECT name, c.oid::bigint,
       md5(string_agg(format('%%s %%I %%s', attnum, attname, format_type(atttypid, atttypmod)), ',' ORDER BY attnum))
  FROM unnest(%(tables)s::text[], %(columns)s::text[]) AS w (name, part)
  JOIN named USING (name)
  JOIN pg_class c ON c.oid = id
  JOIN pg_am m ON m.oid = c.relam
  JOIN pg_attribute a ON a.attrelid = c.oid AND attname = part
  JOIN pg_type t ON t.oid = atttypid
 WHERE c.relkind = 'r' AND m.amname = 'heap'
 GROUP BY name, c.oid
HAVING bool_and(t.typtype = 'b' AND t.typnamespace = 'pg_catalog'::regnamespace AND t.typname NOT LIKE '%%reg%%')
"""
"""A table in which the same bytes always mean the same value: an enum's label, or a name behind an oid, may be changed."""

NOTES = """
SELECT table_name, digest, rows, first_block, last_block, xmin::text::bigint
  FROM migration.batch
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s)
   AND pg_snapshot_xmax(pg_current_snapshot())::text::bigint - transaction BETWEEN 0 AND 1 << 30
   AND (xmin::text::bigint - transaction) & 4294967295 < 1 << 20
"""
"""Ids of 32 bits come round again, and a dump that is restored has others: a note counts while its id can be no other's."""

KEEP = """
INSERT INTO migration.batch AS b (profile, export_id, file, table_name, digest, rows, first_block, last_block, transaction)
SELECT {file}, {table}, {digest}, {rows}, {first}, pg_relation_size({oid}) / current_setting('block_size')::bigint,
       pg_current_xact_id()::text::bigint
    ON CONFLICT (profile, export_id, file, table_name, digest) DO UPDATE
   SET (rows, first_block, last_block, transaction)
     = (EXCLUDED.rows, EXCLUDED.first_block, EXCLUDED.last_block, EXCLUDED.transaction)
RETURNING last_block
"""

SIZE = "SELECT coalesce(pg_relation_size({oid}) / current_setting('block_size')::bigint, 0)"

FOUND = (
    "SELECT {found} FROM {table} WHERE xmin = {transaction} AND ({where}) "
    f"AND current_setting('{BEGUN}', true) = 'yes'"
)
"""Of the server that the transaction was begun on: a replica may have rows that were touched since. No row is found there."""

BLOCKS = "ctid >= {first}::tid AND ctid < {last}::tid"

SELDOM = 128
"""So many of the blocks that a note begins with seldom have rows of its batch: two sessions that write leave 64 each."""

FEW = 2
"""Where fewer than one of so many rows are there, all are compared: to tell them apart would be in vain."""

ELSEWHERE = 50
"""Rows that are asked for by their keys: PostgreSQL puts a few of a batch wherever there is room. More have been touched."""

ROW = re.compile(rb'[^"\n]*(?:"[^"\\]*(?:\\.[^"\\]*)*"[^"\n]*)*\n', re.DOTALL)
VALUE = rb'(?:"[^"\\]*(?:\\.[^"\\]*)*"|[^",\n]*)'
"""As `copy_csv` writes them."""


class Note(NamedTuple):
    """What is kept of a batch."""

    rows: int
    first_block: int
    last_block: int
    """The first one that the table did not have."""
    transaction: int
    """The id that its rows bear."""


def _identities(cursor: Any, targets: Iterable[TargetTable]) -> dict[str, tuple[int, str]]:
    """Read what notes say of tables that batches can be known of, by qualified name: oid, and a digest of the columns."""
    if cursor.connection.server_version < FIRST_VERSION:
        return {}
    straight = {
        target.identifier.as_string(cursor): target
        for target in targets
        if target.straight and not target.table.landing
    }
    parts = [(name, fit.column.name) for name, target in straight.items() for fit in target.fits]
    cursor.execute(
        IDENTITY,
        {"names": list(straight), "tables": [t for t, _ in parts], "columns": [c for _, c in parts]},
    )
    return {straight[name].table.qualified: (oid, columns) for name, oid, columns in cursor.fetchall()}


class KnownBatches:
    """The batches that are known, of one file after another. Its methods run in the caller's transactions."""

    def __init__(self, cursor: Any, targets: Iterable[TargetTable]) -> None:
        self._tables = _identities(cursor, targets)
        self._file: Mapping[str, str] = {}
        self._notes: dict[tuple[str, str], Note] = {}
        self._blocks: dict[str, int] = {}
        """How many each table had after the last batch of the file, or before the first one."""
        self._scattered: set[str] = set()
        """Tables whose last known batch had rows in other blocks."""

    def read(self, cursor: Any, file: Mapping[str, str]) -> None:
        """Read what is known of a file, before its first batch."""
        self._file = {name: file[name] for name in ("profile", "export_id", "file")}
        self._notes, self._blocks = {}, {}
        if self._tables:
            cursor.execute(NOTES, self._file)
            self._notes = {(table, digest): Note(*rest) for table, digest, *rest in cursor.fetchall()}

    def left(self, cursor: Any, target: TargetTable, data: bytes, rows: int) -> bytes:
        """Return the part of COPY input of so many rows that the table does not hold for certain: all of it where nothing is known."""
        name = target.table.qualified
        if name not in self._tables or not self._notes:
            return data
        note = self._notes.get((name, self._digest(name, data)))
        if note is None or note.rows != rows:
            return data
        # PostgreSQL spells times in another way than COPY input does.
        spelled = not any(fit.actual.element in TIMES for fit in target.key_fits)
        if name not in self._scattered or not spelled:
            found = self._count(cursor, target, note)
            if found == rows:
                return b""
            if found * FEW < rows or not spelled:
                return data
        keys = SQL(", ").join(SQL("{}::text").format(Identifier(fit.column.name)) for fit in target.key_fits)
        there = self._found(cursor, target, note, keys, _within(note.first_block, note.last_block))
        if len(there) == rows:
            self._scattered.discard(name)
            return b""
        if len(there) * FEW < rows:
            return data
        self._scattered.add(name)
        left = without_rows(target, data, rows, set(there))
        others = first_keys(target, left, ELSEWHERE + 1) if rows - len(there) <= ELSEWHERE else []
        if 0 < len(others) <= ELSEWHERE:
            by_key = SQL(" OR ").join(_is(target, key) for key in others)
            left = without_rows(
                target, left, len(others), set(self._found(cursor, target, note, keys, by_key))
            )
        return left

    def _count(self, cursor: Any, target: TargetTable, note: Note) -> int:
        """Count the rows of a batch that are in its blocks: in the last ones first, as mostly all of them are there."""
        near = note.first_block + SELDOM if note.first_block else 0
        found = 0
        for first, last in ((near, note.last_block), (note.first_block, near)):
            if found < note.rows and first < last:
                ((more,),) = self._found(cursor, target, note, SQL("count(*)"), _within(first, last))
                found += more
        return found

    def _found(
        self, cursor: Any, target: TargetTable, note: Note, what: Composable, where: Composable
    ) -> list[Any]:
        """Ask for something of the rows that were copied and not touched."""
        cursor.execute(
            SQL(FOUND).format(
                found=what,
                table=target.identifier,
                transaction=Literal(str(note.transaction)),
                where=where,
            )
        )
        found: list[Any] = cursor.fetchall()
        return found

    def before_copy(self, cursor: Any, target: TargetTable) -> None:
        """Look, before the first batch is copied, how large the table is."""
        name = target.table.qualified
        if name in self._tables and name not in self._blocks:
            cursor.execute(SQL(SIZE).format(oid=Literal(self._tables[name][0])))
            (self._blocks[name],) = cursor.fetchone()

    def keep(self, cursor: Any, target: TargetTable, data: bytes, rows: int) -> None:
        """Note a batch that was copied just now, in the same transaction, or part of one."""
        name = target.table.qualified
        if name in self._tables:
            cursor.execute(
                SQL(KEEP).format(
                    file=SQL(", ").join(map(Literal, self._file.values())),
                    table=Literal(name),
                    digest=Literal(self._digest(name, data)),
                    rows=Literal(rows),
                    first=Literal(max(self._blocks[name] - BLOCKS_BEFORE, 0)),
                    oid=Literal(self._tables[name][0]),
                )
            )
            (self._blocks[name],) = cursor.fetchone()

    def _digest(self, name: str, data: bytes) -> str:
        digest = hashlib.sha256(msgspec.json.encode(self._tables[name]))
        digest.update(data)
        return digest.hexdigest()


def _within(first: int, last: int) -> Composable:
    """A condition that a row lies in blocks from `first` up to `last`, and not in that one."""
    return SQL(BLOCKS).format(first=Literal(f"({first},0)"), last=Literal(f"({last},0)"))


def _is(target: TargetTable, key: Sequence[str]) -> Composable:
    """A condition that a row has a key."""
    parts = zip(target.key_fits, key, strict=True)
    return SQL("({})").format(
        SQL(" AND ").join(
            SQL("{} = {}").format(Identifier(fit.column.name), Literal(text)) for fit, text in parts
        )
    )


def without_rows(target: TargetTable, data: bytes, rows: int, keys: set[tuple[str, ...]]) -> bytes:
    """Take the rows of some keys, as texts, out of COPY input of so many. One whose key is spelled in another way stays."""
    parts = _parts(target)
    if in_c := accelerator.extension(accelerator.ROWS):
        left: bytes = in_c.without(data, parts, keys)
        return left
    key_of = _reader(parts)
    # To look for newlines inside of values takes its time, and mostly there are none.
    lines = (
        data.splitlines(keepends=True)
        if data.count(b"\n") == rows and b"\r" not in data
        else ROW.findall(data)
    )
    if sum(map(len, lines)) != len(data):
        return data
    return b"".join([line for line in lines if key_of(line) not in keys])


def first_keys(target: TargetTable, data: bytes, most: int) -> list[tuple[str, ...]]:
    """Give the keys of the first rows of COPY input, as texts; those that can be read."""
    lines = (found[0] for found in islice(ROW.finditer(data), most))
    return [key for key in map(_reader(_parts(target)), lines) if key is not None]


def _parts(target: TargetTable) -> tuple[bool, ...]:
    """Tell of each column, up to the last one of the key, whether it is part of the key."""
    names = [fit.column.name for fit in target.fits]
    last = max(names.index(fit.column.name) for fit in target.key_fits)
    return tuple(name in target.table.key for name in names[: last + 1])


def _reader(parts: Sequence[bool]) -> Callable[[bytes], tuple[str, ...] | None]:
    """Make the function that reads the key of a line; None where it cannot."""
    values = [b"(%b)" % VALUE if part else VALUE for part in parts]
    match = re.compile(b",".join(values) + rb"[,\n]", re.DOTALL).match

    def key_of(line: bytes) -> tuple[str, ...] | None:
        found = match(line)
        return None if found is None else tuple(map(_text, found.groups()))

    return key_of


def _text(value: bytes) -> str:
    """The text that a value of COPY input stands for."""
    if not value.startswith(b'"'):
        return value.decode()
    inside = value[1:-1]
    return (re.sub(rb"\\(.)", rb"\1", inside, flags=re.DOTALL) if b"\\" in inside else inside).decode()
