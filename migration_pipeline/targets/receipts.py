"""Reads the bookkeeping: what was loaded, made and compared, as the database itself says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from migration_pipeline.profile.row import Table
from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.bookkeeping import parameters
from migration_pipeline.targets.catalog import qualified
from migration_pipeline.targets.connection import DatabaseSettings, Record, read_as, transaction
from migration_pipeline.targets.records import (
    AggregateReceipt,
    FileKey,
    KeptDifference,
    Receipt,
    Verification,
)

ROWS = "SELECT count(*) FROM {table}"

PARTS = """
SELECT relname
  FROM pg_inherits
  JOIN pg_class ON oid = inhrelid
 WHERE inhparent = to_regclass(%(table)s)
"""

THERE = "SELECT to_regclass(%(table)s) IS NOT NULL"

FILLED = "SELECT EXISTS (SELECT FROM {table})"

SERVER = "SELECT current_setting('server_version'), current_database(), current_user"


def read_receipts(url: str, profile: str) -> dict[FileKey, Receipt]:
    """Read all receipts of a profile. Raises `DatabaseError`."""
    return {
        (each.export_id, each.file): each for each in _records(url, Receipt, bookkeeping.RECEIPTS, profile)
    }


def read_aggregates(url: str, profile: str) -> dict[str, AggregateReceipt]:
    """Read the receipts of a profile's aggregates, by the table's qualified name. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        return _aggregates(cursor, profile)


def _aggregates(cursor: Any, profile: str) -> dict[str, AggregateReceipt]:
    return {
        each.table_name: each
        for each in read_as(AggregateReceipt, cursor, bookkeeping.AGGREGATES, {"profile": profile})
    }


def count_quarantined(url: str, profile: str) -> dict[FileKey, int]:
    """Count the items in the quarantine by file. Raises `DatabaseError`."""
    rows = _fetch(url, bookkeeping.QUARANTINED_BY_FILE, {"profile": profile})
    return {(export_id, file): count for export_id, file, count in rows}


def files_to_replay(url: str, profile: str) -> set[FileKey]:
    """Name the loaded files that have items in the quarantine. Raises `DatabaseError`."""
    return {(export, file) for export, file in _fetch(url, bookkeeping.FILES_TO_REPLAY, {"profile": profile})}


class ReceiptSummary(msgspec.Struct, frozen=True):
    """The part of a file's receipt that verdicts need."""

    export_id: str
    file: str
    md5: str
    """base64(MD5) of the compressed bytes that were read."""
    items: int
    conserved: bool
    """Whether every item read is loaded, superseded, skipped or quarantined (promise P1)."""
    loaded_at: datetime


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The receipts of a profile, summed up by the database; counts are of items, but for `files` and `rows`."""

    files: int
    items: int
    loaded: int
    superseded: int
    """Items of which a newer state was there already."""
    quarantined: int
    """Items that went to the quarantine when their files were loaded, less those that a replay took out."""
    retries: int
    bytes: int
    seconds: float
    """Seconds that the loads of the files took, one after another."""
    throttled_seconds: float
    """Of these, seconds that they waited for the throttle."""
    last_loaded_at: float
    """When the newest receipt was written, in seconds of the epoch; 0 without one."""
    skipped: int
    unrouted: int
    skipped_by_reason: dict[str, int]
    rows: dict[str, int]
    """Rows by the table's qualified name."""
    deleted_rows: dict[str, int]
    """Rows that windows took away, by the table's qualified name."""
    in_quarantine: int
    """Items that are in the quarantine now, those of files that failed included."""
    by_file: dict[FileKey, ReceiptSummary]
    aggregates: dict[str, AggregateReceipt]
    """By the table's qualified name; empty where they were not asked for."""


def read_totals(
    url: str, profile: str, exports: Sequence[str], timeout_seconds: float, *, aggregates: bool = False
) -> Totals:
    """Sum up the receipts of some exports, each statement within `timeout_seconds`. Raises `DatabaseError`.

    Those of a profile's `aggregates` are read only if it has some: their table asks for a privilege more.
    """
    of = {"profile": profile, "exports": list(exports)}
    patience = DatabaseSettings(
        lock_timeout_seconds=timeout_seconds, statement_timeout_seconds=timeout_seconds
    )
    with transaction(url, patience) as cursor:
        cursor.execute(bookkeeping.TOTALS, of)
        names = [column.name for column in cursor.description]
        totals = dict(zip(names, cursor.fetchone(), strict=True))
        for name, statement in (
            ("skipped_by_reason", bookkeeping.SKIPPED),
            ("rows", bookkeeping.WRITTEN),
            ("deleted_rows", bookkeeping.DELETED),
        ):
            cursor.execute(statement, of)
            totals[name] = {key: int(count) for key, count in cursor.fetchall()}
        cursor.execute(bookkeeping.IN_QUARANTINE, of)
        (totals["in_quarantine"],) = cursor.fetchone()
        cursor.execute(bookkeeping.FILES, of)
        totals["by_file"] = {row[:2]: ReceiptSummary(*row) for row in cursor.fetchall()}
        totals["aggregates"] = _aggregates(cursor, profile) if aggregates else {}
    return Totals(**totals)


class QuarantineReason(msgspec.Struct, frozen=True):
    """Items of the quarantine with the same reason."""

    table: str
    """The table that refused them; "" when they did not come that far."""
    sqlstate: str
    reason: str
    items: int
    files: int
    example: str = ""
    """File and line of one of them: ``….json.gz:193``."""


def quarantined_by_reason(url: str, profile: str, exports: Sequence[str]) -> list[QuarantineReason]:
    """Count the items in the quarantine by reason, the commonest first. Raises `DatabaseError`."""
    parameters = {"profile": profile, "exports": list(exports)}
    return [QuarantineReason(*row) for row in _fetch(url, bookkeeping.QUARANTINED_BY_REASON, parameters)]


def read_landed(url: str, profile: str, tables: Iterable[Table]) -> dict[FileKey, set[str]]:
    """Return, for each landed file of a profile, which of these landing tables its slice is in. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        parts: dict[str, set[str]] = {}
        for table in tables:
            cursor.execute(PARTS, {"table": qualified(table)})
            parts[table.qualified] = {f"{table.schema}.{name}" for (name,) in cursor.fetchall()}
        cursor.execute(bookkeeping.LANDED, {"profile": profile})
        return {
            (export_id, file): {  # without rows a slice has no part
                name for name in parts.keys() & rows if not rows[name] or f"{name}_{number}" in parts[name]
            }
            for export_id, file, number, rows in cursor.fetchall()
        }


def empty_tables(url: str, tables: Iterable[Table]) -> set[str]:
    """Name those of some tables that have no row, or are not there. Raises `DatabaseError`."""
    empty = set()
    with transaction(url) as cursor:
        for table in tables:
            cursor.execute(THERE, {"table": qualified(table)})
            if cursor.fetchone() == (True,):
                cursor.execute(FILLED.format(table=qualified(table)))
                if cursor.fetchone() == (True,):
                    continue
            empty.add(table.qualified)
    return empty


def other_writers(url: str, profile: str, tables: Iterable[Table]) -> list[tuple[str, str]]:
    """Name the other profiles that have loaded rows into some tables, and which: profile, table. Raises `DatabaseError`."""
    names = [name for table in tables for name in table.spellings]
    return [
        (other, name)
        for other, name in _fetch(url, bookkeeping.OTHER_WRITERS, {"profile": profile, "names": names})
    ]


def server(url: str) -> tuple[str, str, str]:
    """Return the server's version, and the names of the database and the role. Raises `DatabaseError`."""
    ((version, database, role),) = _fetch(url, SERVER, None)
    return version, database, role


def count_rows(url: str, table: Table) -> int:
    """Count a table's rows, by reading it. Raises `DatabaseError`."""
    ((count,),) = _fetch(url, rows_statement(table), None)
    return int(count)


def rows_statement(table: Table) -> str:
    """The SQL that counts a table's rows."""
    return ROWS.format(table=qualified(table))


def _records(url: str, kind: type[Record], statement: str, profile: str) -> list[Record]:
    with transaction(url) as cursor:
        return read_as(kind, cursor, statement, {"profile": profile})


def _fetch(url: str, statement: str, parameters: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    with transaction(url) as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


# -- verifications ------------------------------------------------------------------------------------


def keep_verification(
    url: str, verifications: Iterable[Verification], differences: Sequence[KeptDifference]
) -> None:
    """Keep the results of a verification in place of those before, with examples. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        for each in verifications:
            cursor.execute(bookkeeping.KEEP_VERIFICATION, parameters(each))
            cursor.execute(bookkeeping.FORGET_DIFFERENCES, parameters(each))
            for difference in differences:
                if difference.table_name == each.table_name:
                    cursor.execute(bookkeeping.KEEP_DIFFERENCE, parameters(difference, profile=each.profile))


def read_verifications(url: str, profile: str) -> list[Verification]:
    """Read the last verification of each table. Raises `DatabaseError`."""
    return _records(url, Verification, bookkeeping.VERIFICATIONS, profile)


def read_differences(url: str, profile: str) -> list[tuple[str, str, list[str], Any, str]]:
    """Read the kept examples: table, kind, columns, key (values of items), file. Raises `DatabaseError`."""
    return [tuple(row) for row in _fetch(url, bookkeeping.DIFFERENCES, {"profile": profile})]
