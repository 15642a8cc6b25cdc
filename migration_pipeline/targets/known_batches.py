"""Knows a batch again that was loaded before, so that a rerun neither sends nor compares rows which nobody has touched since.

A row that is inserted or updated bears the id of the transaction that did it (``xmin``). The note of a batch is written
by the transaction that copies its rows, and bears the same id. So if as many rows with that id are there as were copied,
they are these rows, all of them, as they were copied; and if the same bytes would be copied again, nothing is left to do.
Anything else, whatever the reason, is compared row by row. docs/decisions/0010-batches-known-again.md has the proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from psycopg2.sql import SQL, Literal

from migration_pipeline.targets.catalog import TargetTable

BLOCKS_BEFORE = 256
"""A table grows by up to 64 blocks at once, for all who wait to write: a batch may fill some that were there before it began."""

FIRST_VERSION = 140000
"""PostgreSQL 14 is the first to read a range of blocks without the rest of the table."""

IDENTITY = """
WITH named AS MATERIALIZED (
    SELECT name, to_regclass(name) AS id FROM unnest(%(names)s::text[]) AS name
)
SELECT name, c.oid::bigint,
       md5(string_agg(format('%%s %%I %%s', attnum, attname, format_type(atttypid, atttypmod)), ',' ORDER BY attnum)),
       pg_relation_size(c.oid) / current_setting('block_size')::bigint
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

COUNT = (
    "SELECT count(*) FROM {table} WHERE xmin = {transaction} AND ctid >= {first}::tid AND ctid < {last}::tid"
)


class Note(NamedTuple):
    """What is kept of a batch."""

    rows: int
    first_block: int
    last_block: int
    """The first one that the table did not have."""
    transaction: int
    """The id that its rows bear."""


class KnownBatches:
    """The batches of one file that are known. Its methods run in the caller's transactions."""

    def __init__(self, file: Mapping[str, str]) -> None:
        self._file = {name: file[name] for name in ("profile", "export_id", "file")}
        self._notes: dict[tuple[str, str], Note] = {}
        self._tables: dict[str, tuple[int, str]] = {}
        """Oid and digest of the columns, by qualified name."""
        self._blocks: dict[str, int] = {}

    def read(self, cursor: Any, targets: Mapping[Any, TargetTable]) -> None:
        """Read what is known, before the first batch."""
        self._notes, self._tables, self._blocks = {}, {}, {}
        if cursor.connection.server_version < FIRST_VERSION:
            return
        straight = {
            target.identifier.as_string(cursor): target
            for target in targets.values()
            if target.straight and not target.table.landing
        }
        parts = [(name, fit.column.name) for name, target in straight.items() for fit in target.fits]
        cursor.execute(
            IDENTITY,
            {"names": list(straight), "tables": [t for t, _ in parts], "columns": [c for _, c in parts]},
        )
        for identifier, oid, columns, blocks in cursor.fetchall():
            name = straight[identifier].table.qualified
            self._blocks[name] = blocks
            self._tables[name] = oid, columns
        if self._tables:
            cursor.execute(NOTES, self._file)
            self._notes = {(table, digest): Note(*rest) for table, digest, *rest in cursor.fetchall()}

    def holds(self, cursor: Any, target: TargetTable, data: bytes, rows: int) -> bool:
        """Whether the table holds the very rows of this COPY input."""
        name = target.table.qualified
        if name not in self._tables or not self._notes:
            return False
        note = self._notes.get((name, self._digest(name, data)))
        if note is None or note.rows != rows:
            return False
        cursor.execute(
            SQL(COUNT).format(
                table=target.identifier,
                transaction=Literal(str(note.transaction)),
                first=Literal(f"({note.first_block},0)"),
                last=Literal(f"({note.last_block},0)"),
            )
        )
        return bool(cursor.fetchone()[0] == rows)

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
