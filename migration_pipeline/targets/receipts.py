"""Reads the bookkeeping: what the database itself says was loaded. The SQL for it is all here.

Each statement runs in psql, too, with names in quotes in place of ``%(…)s``; `pasteable` puts them there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from migration_pipeline.profile.row import Table
from migration_pipeline.targets.catalog import qualified
from migration_pipeline.targets.connection import DatabaseSettings, transaction
from migration_pipeline.targets.states import TableState

RECEIPTS = """
SELECT export_id, file, profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined, rows,
       collisions, changed, changed_rows, rounded, nul, retries, seconds, run_id, loaded_at
  FROM migration.loaded_file
 WHERE profile = %(profile)s
 ORDER BY export_id, file
"""

AGGREGATES = """
SELECT table_name, profile_version, sql_md5, files, files_md5, groups, rows, new, changed, unchanged, deleted, parts, retries,
       seconds, run_id, made_at
  FROM migration.aggregate
 WHERE profile = %(profile)s
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
 WHERE profile = %(profile)s AND table_name = %(table)s AND export_id = ANY(%(exports)s)
 ORDER BY export_id, file, key
 LIMIT 100
"""

ROWS = "SELECT count(*) FROM {table}"

TOTALS = """
SELECT count(*) AS files,
       coalesce(sum(items), 0) AS items,
       coalesce(sum(loaded), 0) AS loaded,
       coalesce(sum(quarantined), 0) AS quarantined,
       coalesce(sum(retries), 0) AS retries,
       coalesce(sum(bytes), 0) AS bytes,
       coalesce(sum(seconds), 0) AS seconds,
       coalesce(extract(epoch FROM max(loaded_at)), 0) AS last_loaded_at,
       coalesce(sum(s.skipped), 0) AS skipped,
       coalesce(sum((SELECT sum(value::bigint) FROM jsonb_each_text(unrouted))), 0) AS unrouted
  FROM migration.loaded_file,
       LATERAL (SELECT coalesce(sum(value::bigint), 0) AS skipped FROM jsonb_each_text(skipped)) s
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
"""

SKIPPED = """
SELECT reason.key, sum(reason.value::bigint)
  FROM migration.loaded_file, jsonb_each_text(skipped) reason
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
 GROUP BY 1
 ORDER BY 2 DESC, 1
"""

WRITTEN = """
SELECT counted.key, sum(counted.value::bigint)
  FROM migration.loaded_file, jsonb_each_text(rows) counted
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
 GROUP BY 1
 ORDER BY 1
"""

IN_QUARANTINE = """
SELECT count(*)
  FROM migration.quarantine
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
"""

FILES = """
SELECT export_id, file, md5, items, items = loaded + s.skipped + quarantined AS conserved, loaded_at
  FROM migration.loaded_file,
       LATERAL (SELECT coalesce(sum(value::bigint), 0) AS skipped FROM jsonb_each_text(skipped)) s
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
"""

QUARANTINED_BY_REASON = """
SELECT coalesce(table_name, ''), coalesce(sqlstate, ''), reason, count(*), count(DISTINCT (export_id, file))
  FROM migration.quarantine
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
 GROUP BY 1, 2, 3
 ORDER BY 4 DESC, 1, 2, 3
"""

LANDED = """
SELECT export_id, file, id, rows
  FROM migration.slice
 WHERE profile = %(profile)s AND landed_at IS NOT NULL
"""

PARTS = """
SELECT relname
  FROM pg_inherits
  JOIN pg_class ON oid = inhrelid
 WHERE inhparent = to_regclass(%(table)s)
"""

THERE = "SELECT to_regclass(%(table)s) IS NOT NULL"

FILLED = "SELECT EXISTS (SELECT FROM {table})"

OTHER_WRITERS = """
SELECT profile, name
  FROM migration.loaded_file, unnest(%(names)s) AS name
 WHERE profile <> %(profile)s AND (rows ->> name)::bigint > 0
 UNION
SELECT profile, table_name
  FROM migration.aggregate
 WHERE profile <> %(profile)s AND table_name = ANY(%(names)s)
 ORDER BY 1, 2
"""

SERVER = "SELECT current_setting('server_version'), current_database(), current_user"


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
    """Rows of all tables that were there with other values."""
    changed_rows: dict[str, int] = {}
    """The same by the table's qualified name; none of a load before they were kept."""
    rounded: dict[str, int] = {}
    """Values that a column changed, as the Row allows, by table and column."""
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


def md5_of_files(files: Iterable[tuple[str, str]]) -> str:
    """One MD5, in hex, for a set of files: export and name of each."""
    text = "\n".join(sorted("\t".join(file) for file in files))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class AggregateReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``migration.aggregate``; counts are of rows, but for `files`, `groups`, `parts` and `retries`."""

    table_name: str
    """Qualified."""
    profile_version: str
    sql_md5: str
    files: int
    files_md5: str
    """`md5_of_files` of them."""
    groups: int
    rows: int
    new: int
    changed: int
    unchanged: int
    deleted: int
    parts: int
    retries: int
    seconds: float
    run_id: str
    made_at: datetime


def read_aggregates(url: str, profile: str) -> dict[str, AggregateReceipt]:
    """Read the receipts of a profile's aggregates, by the table's qualified name. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        return _aggregates(cursor, profile)


def _aggregates(cursor: Any, profile: str) -> dict[str, AggregateReceipt]:
    names = tuple(field.name for field in msgspec.structs.fields(AggregateReceipt))
    cursor.execute(AGGREGATES, {"profile": profile})
    return {row[0]: AggregateReceipt(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()}


def count_quarantined(url: str, profile: str) -> dict[FileKey, int]:
    """Count the items in the quarantine by file. Raises `DatabaseError`."""
    rows = _fetch(url, QUARANTINED, {"profile": profile})
    return {(export_id, file): count for export_id, file, count in rows}


class LoadedFile(msgspec.Struct, frozen=True):
    """What there is of a file's receipt to judge it by."""

    export_id: str
    file: str
    md5: str
    """base64(MD5) of the compressed bytes that were read."""
    items: int
    conserved: bool
    """Whether every item read is loaded, skipped or quarantined (promise P1)."""
    loaded_at: datetime


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """The receipts of a profile, summed up by the database; counts are of items, but for `files` and `rows`."""

    files: int
    items: int
    loaded: int
    quarantined: int
    """Items that went to the quarantine when their files were loaded, less those that a replay took out."""
    retries: int
    bytes: int
    seconds: float
    """Seconds that the loads of the files took, one after another."""
    last_loaded_at: float
    """When the newest receipt was written, in seconds of the epoch; 0 without one."""
    skipped: int
    unrouted: int
    skipped_by_reason: dict[str, int]
    rows: dict[str, int]
    """Rows by the table's qualified name."""
    in_quarantine: int
    """Items that are in the quarantine now, those of files that failed included."""
    by_file: dict[FileKey, LoadedFile]
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
        cursor.execute(TOTALS, of)
        names = [column.name for column in cursor.description]
        totals = dict(zip(names, map(_number, cursor.fetchone()), strict=True))
        for name, statement in (("skipped_by_reason", SKIPPED), ("rows", WRITTEN)):
            cursor.execute(statement, of)
            totals[name] = {key: int(count) for key, count in cursor.fetchall()}
        cursor.execute(IN_QUARANTINE, of)
        (totals["in_quarantine"],) = cursor.fetchone()
        cursor.execute(FILES, of)
        totals["by_file"] = {row[:2]: LoadedFile(*row) for row in cursor.fetchall()}
        totals["aggregates"] = _aggregates(cursor, profile) if aggregates else {}
    return msgspec.convert(totals, Totals, strict=False)


class Bad(msgspec.Struct, frozen=True):
    """Items of the quarantine that are bad alike."""

    table: str
    """The table that refused them; "" when they did not come that far."""
    sqlstate: str
    reason: str
    items: int
    files: int


def quarantined_by_reason(url: str, profile: str, exports: Sequence[str]) -> list[Bad]:
    """Count the items in the quarantine by reason, the commonest first. Raises `DatabaseError`."""
    parameters = {"profile": profile, "exports": list(exports)}
    return [Bad(*row) for row in _fetch(url, QUARANTINED_BY_REASON, parameters)]


def read_landed(url: str, profile: str, tables: Iterable[Table]) -> dict[FileKey, set[str]]:
    """Give for each landed file of a profile those of some landing tables that its slice is in. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        parts: dict[str, set[str]] = {}
        for table in tables:
            cursor.execute(PARTS, {"table": qualified(table)})
            parts[table.qualified] = {f"{table.schema}.{name}" for (name,) in cursor.fetchall()}
        cursor.execute(LANDED, {"profile": profile})
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
    return [(other, name) for other, name in _fetch(url, OTHER_WRITERS, {"profile": profile, "names": names})]


def server(url: str) -> tuple[str, str, str]:
    """Give the server's version, and the names of the database and the role. Raises `DatabaseError`."""
    ((version, database, role),) = _fetch(url, SERVER, None)
    return version, database, role


def _number(value: Any) -> float:
    """Decimal, as PostgreSQL sums bigint, to int; extract gives it for seconds, too."""
    return int(value) if value == int(value) else float(value)


def count_rows(url: str, table: Table) -> int:
    """Count a table's rows, by reading it. Raises `DatabaseError`."""
    ((count,),) = _fetch(url, rows_statement(table), None)
    return int(count)


def rows_statement(table: Table) -> str:
    """The SQL that counts a table's rows."""
    return ROWS.format(table=qualified(table))


def pasteable(statement: str, parameters: Mapping[str, str | Sequence[str]]) -> str:
    """Write a statement as it can be pasted into psql."""

    def literal(match: re.Match[str]) -> str:
        value = parameters[match[1]]
        # A list as PostgreSQL writes an array; names of exports and files hold neither quote nor backslash.
        text = value if isinstance(value, str) else "{" + ",".join(f'"{one}"' for one in value) + "}"
        return "'" + text.replace("'", "''") + "'"

    return re.sub(r"%\((\w+)\)s", literal, statement).strip() + ";"


def _fetch(url: str, statement: str, parameters: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    with transaction(url) as cursor:
        cursor.execute(statement, parameters)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


# -- verifications ------------------------------------------------------------------------------------

FORGET_VERIFICATION = """
DELETE FROM migration.verification WHERE profile = %(profile)s AND table_name = %(table_name)s;
DELETE FROM migration.difference WHERE profile = %(profile)s AND table_name = %(table_name)s
"""

KEEP_VERIFICATION = """
INSERT INTO migration.verification
       (profile, table_name, files, compared, same, missing, different, newer, extra, columns, run_id, began_at,
        profile_version, files_md5, state)
VALUES (%(profile)s, %(table_name)s, %(files)s, %(compared)s, %(same)s, %(missing)s, %(different)s, %(newer)s,
        %(extra)s, %(columns)s, %(run_id)s, %(began_at)s, %(profile_version)s, %(files_md5)s, %(state)s)
"""

KEEP_DIFFERENCE = """
INSERT INTO migration.difference (profile, table_name, export_id, file, kind, columns, key)
VALUES (%(profile)s, %(table_name)s, %(export_id)s, %(file)s, %(kind)s, %(columns)s, %(key)s)
"""

DIFFERENCES = """
SELECT table_name, kind, columns, key, file
  FROM migration.difference
 WHERE profile = %(profile)s
 ORDER BY table_name, kind, key
"""

VERIFICATIONS = """
SELECT table_name, files, compared, same, missing, different, newer, extra, columns, run_id, verified_at, began_at,
       profile_version, files_md5, state
  FROM migration.verification
 WHERE profile = %(profile)s
 ORDER BY table_name
"""


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``migration.verification``: a table, compared with the export. Counts are of rows."""

    profile: str
    table_name: str
    files: int
    """Files that were read."""
    compared: int
    same: int
    missing: int
    different: int
    newer: int
    extra: int
    columns: dict[str, int]
    """Rows that differ, by column."""
    run_id: str
    verified_at: datetime | None = None
    began_at: datetime | None = None
    """None of one that was kept before this was."""
    profile_version: str = ""
    files_md5: str = ""
    """`md5_of_files` of those that were read."""
    state: TableState | None = None
    """What the table was when it began: what is changed while it reads counts as changed since."""
    examples: list[tuple[str, str, str, tuple[str, ...], str]] = []
    """For ``migration.difference``: export, file, kind, columns, and the key as JSON."""


def keep_verification(url: str, verifications: Iterable[Verification]) -> None:
    """Keep the results of a verification in place of those before. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        for each in verifications:
            values = msgspec.structs.asdict(each)
            cursor.execute(FORGET_VERIFICATION, values)
            documents = {name: msgspec.json.encode(values[name]).decode() for name in ("columns", "state")}
            cursor.execute(KEEP_VERIFICATION, values | documents)
            for export_id, file, kind, names, key in each.examples:
                place = {"export_id": export_id, "file": file, "kind": kind}
                cursor.execute(KEEP_DIFFERENCE, values | place | {"columns": list(names), "key": key})


def read_verifications(url: str, profile: str) -> list[Verification]:
    """Read the last verification of each table. Raises `DatabaseError`."""
    names = (
        "table_name", "files", "compared", "same", "missing", "different", "newer", "extra", "columns",
        "run_id", "verified_at", "began_at", "profile_version", "files_md5", "state",
    )  # fmt: skip
    rows = _fetch(url, VERIFICATIONS, {"profile": profile})
    return [
        msgspec.convert({"profile": profile, **dict(zip(names, row, strict=True))}, Verification)
        for row in rows
    ]


def read_differences(url: str, profile: str) -> list[tuple[str, str, list[str], Any, str]]:
    """Read the kept examples: table, kind, columns, key (values of items), file. Raises `DatabaseError`."""
    return [tuple(row) for row in _fetch(url, DIFFERENCES, {"profile": profile})]
