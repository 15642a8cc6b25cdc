"""Reads the bookkeeping: what the database itself says was loaded. The SQL for it is all here.

Each statement runs in psql, too, with names in quotes in place of ``%(…)s``; `pasteable` puts them there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
import psycopg2

from migration_pipeline.row import Table
from migration_pipeline.targets.connection import DatabaseError, connect, explain
from migration_pipeline.targets.ddl import qualified

RECEIPTS = """
SELECT export_id, file, profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined, rows,
       collisions, changed, nul, retries, seconds, run_id, loaded_at
  FROM migration.loaded_file
 WHERE profile = %(profile)s
 ORDER BY export_id, file
"""

QUARANTINED = """
SELECT export_id, file, count(*)
  FROM migration.quarantine
 WHERE profile = %(profile)s
 GROUP BY export_id, file
 ORDER BY export_id, file
"""

QUARANTINED_ITEMS = """
SELECT export_id, file, line, table_name, sqlstate, reason
  FROM migration.quarantine
 WHERE profile = %(profile)s
 ORDER BY export_id, file, line
 LIMIT 100
"""

COLLISIONS = """
SELECT export_id, file, key
  FROM migration.collision
 WHERE profile = %(profile)s AND table_name = %(table)s
 ORDER BY export_id, file, key
 LIMIT 100
"""

ROWS = "SELECT count(*) FROM {table}"


FileKey = tuple[str, str]
"""Export id and file name."""


class Receipt(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``migration.loaded_file``; counts are of items, but for `rows`."""

    export_id: str
    file: str
    profile_version: str
    md5: str
    """base64(MD5) of the compressed bytes that were read."""
    bytes: int
    items: int
    loaded: int
    skipped: dict[str, int]
    unrouted: dict[str, int]
    quarantined: int
    rows: dict[str, int]
    """Rows by the table's qualified name; a table that got none may be left out."""
    collisions: dict[str, int]
    """Rows left out within a batch, by the table's qualified name."""
    changed: int
    nul: int
    retries: int
    seconds: float
    run_id: str
    loaded_at: datetime

    @property
    def conserved(self) -> bool:
        """Whether every item read is loaded, skipped or quarantined (promise P1)."""
        return self.items == self.loaded + sum(self.skipped.values()) + self.quarantined


def read_receipts(url: str, profile: str) -> dict[FileKey, Receipt]:
    """Read all receipts of a profile. Raises `DatabaseError`."""
    names = tuple(field.name for field in msgspec.structs.fields(Receipt))
    receipts = (
        Receipt(**dict(zip(names, row, strict=True))) for row in _fetch(url, RECEIPTS, {"profile": profile})
    )
    return {(receipt.export_id, receipt.file): receipt for receipt in receipts}


def count_quarantined(url: str, profile: str) -> dict[FileKey, int]:
    """Count the items in the quarantine by file. Raises `DatabaseError`."""
    rows = _fetch(url, QUARANTINED, {"profile": profile})
    return {(export_id, file): count for export_id, file, count in rows}


def count_rows(url: str, table: Table) -> int:
    """Count a table's rows, by reading it. Raises `DatabaseError`."""
    ((count,),) = _fetch(url, rows_statement(table), None)
    return int(count)


def rows_statement(table: Table) -> str:
    """The SQL that counts a table's rows."""
    return ROWS.format(table=qualified(table))


def pasteable(statement: str, parameters: Mapping[str, str]) -> str:
    """Write a statement as it can be pasted into psql."""

    def literal(match: re.Match[str]) -> str:
        return "'" + parameters[match[1]].replace("'", "''") + "'"

    return re.sub(r"%\((\w+)\)s", literal, statement).strip() + ";"


def _fetch(url: str, statement: str, parameters: Mapping[str, str] | None) -> list[tuple[Any, ...]]:
    connection = connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows
    except psycopg2.Error as error:
        raise DatabaseError(explain(error)) from None  # its own text may hold more than names
    finally:
        connection.close()
