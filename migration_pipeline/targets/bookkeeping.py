"""The bookkeeping: the schema ``migration``, in which the database itself says what was loaded. All SQL for it is here.

A table whose rows are structs (`migration_pipeline.targets.records`) has a column for each field: a new one is a line there and
one in ``bookkeeping.sql``. Each statement runs in psql, too, with names in quotes in place of ``%(…)s``; `pasteable` puts them
there.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec

from migration_pipeline.targets.records import (
    AggregateReceipt,
    KeptDifference,
    Receipt,
    Steering,
    Verification,
)

BOOKKEEPING = files("migration_pipeline.targets").joinpath("bookkeeping.sql").read_text()
"""Schema ``migration`` and its tables; safe to run again."""


def _columns(key: str, row: type[msgspec.Struct]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*key.split(", "), *row.__struct_fields__]))


COLUMNS: dict[str, tuple[str, ...]] = {
    "loaded_file": _columns("profile, export_id, file", Receipt),
    "quarantine": (
        "profile", "export_id", "file", "line", "raw", "table_name", "sqlstate", "reason", "profile_version", "run_id",
        "quarantined_at", "item",
    ),
    "collision": ("profile", "export_id", "file", "table_name", "key", "seen_at"),
    "slice": ("id", "profile", "export_id", "file", "batches", "rows", "run_id", "landed_at", "alive_until"),
    "aggregate": _columns("profile, table_name", AggregateReceipt),
    "verification": _columns("profile, table_name", Verification),
    "difference": _columns("id, profile, table_name", KeptDifference),
    "item": ("item", "profile", "written", "window_id", "place", "owned", "id"),
    "taken": ("id", "profile", "item", "table_name", "slice_id", "content", "back_by"),
    "claim": ("profile", "window_id", "table_name", "key", "taken", "taker"),
    "throttle": _columns("id, profile", Steering),
    "batch": (
        "profile", "export_id", "file", "table_name", "digest", "rows", "first_block", "last_block", "transaction",
    ),
    "pace": ("profile", "paid_until"),
    "session": ("token", "transactions", "last_at"),
}  # fmt: skip
"""The columns of each table. A database that lacks one of them has the bookkeeping of an older version."""


def _keep(table: str, key: str = "", *, now: str = "", once: str = "") -> str:
    """SQL that inserts a row or replaces that of the same key; column `now` gets the time, `once` keeps its value if the new one is NULL."""
    names = [name for name in COLUMNS[table] if name != "id"]
    values = ["clock_timestamp()" if name == now else f"%({name})s" for name in names]
    insert = f"INSERT INTO migration.{table} ({', '.join(names)}) VALUES ({', '.join(values)})"
    changes = [
        f"{name} = coalesce(EXCLUDED.{name}, {table}.{name})" if name == once else f"{name} = EXCLUDED.{name}"
        for name in names
        if name not in key.split(", ")
    ]
    return f"{insert} ON CONFLICT ({key}) DO UPDATE SET {', '.join(changes)}" if key else insert


def _read(table: str, rest: str) -> str:
    """SQL that reads whole rows."""
    names = textwrap.fill(", ".join(COLUMNS[table]), 100, subsequent_indent="       ", break_on_hyphens=False)
    return f"SELECT {names}\n  FROM migration.{table}\n{rest}"


def parameters(*parts: msgspec.Struct, **more: Any) -> dict[str, Any]:
    """Return the values of a statement, by name: the fields of structs, documents as JSON."""
    values = {name: value for part in parts for name, value in msgspec.structs.asdict(part).items()} | more
    return {
        name: msgspec.json.encode(value).decode() if isinstance(value, (dict, msgspec.Struct)) else value
        for name, value in values.items()
    }


LACKING_COLUMNS = """
SELECT count(*)
  FROM unnest(%(tables)s, %(columns)s) AS wanted (name, part)
  LEFT JOIN pg_class c ON relnamespace = to_regnamespace('migration') AND relname = name
 WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = part AND NOT attisdropped)
"""

LACKING_PRIVILEGES = """
SELECT string_agg(relname, ', ' ORDER BY relname), current_user
  FROM pg_class
 WHERE relnamespace = 'migration'::regnamespace AND relname = ANY(%(tables)s)
   AND NOT (has_schema_privilege(relnamespace, 'USAGE')
            AND has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
            AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
"""


# -- files ---------------------------------------------------------------------------------------------

KEEP_RECEIPT = _keep("loaded_file", "profile, export_id, file", now="loaded_at", once="export_time")

RECEIPT_OF = _read(
    "loaded_file", " WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s)\n   FOR UPDATE"
)

RECEIPTS = _read("loaded_file", " WHERE profile = %(profile)s\n ORDER BY export_id, file")

OTHER_VERSIONS = """
SELECT count(*) FILTER (WHERE (export_id, file) = (%(export_id)s, %(file)s)),
       count(*) FILTER (WHERE profile_version <> %(profile_version)s),
       EXISTS (SELECT FROM migration.item WHERE profile = %(profile)s)
  FROM migration.loaded_file
 WHERE profile = %(profile)s
"""
"""Whether the file has a receipt, how many files of the profile were loaded by another version of it, and whether windows were."""

TOTALS = """
SELECT count(*) AS files,
       coalesce(sum(items), 0)::bigint AS items,
       coalesce(sum(loaded), 0)::bigint AS loaded,
       coalesce(sum(superseded), 0)::bigint AS superseded,
       coalesce(sum(quarantined), 0)::bigint AS quarantined,
       coalesce(sum(retries), 0)::bigint AS retries,
       coalesce(sum(bytes), 0)::bigint AS bytes,
       coalesce(sum(seconds), 0) AS seconds,
       coalesce(sum((SELECT sum(value::float8) FROM jsonb_each_text(throttled))), 0) AS throttled_seconds,
       coalesce(extract(epoch FROM max(loaded_at)), 0)::float8 AS last_loaded_at,
       coalesce(sum(s.skipped), 0)::bigint AS skipped,
       coalesce(sum((SELECT sum(value::bigint) FROM jsonb_each_text(unrouted))), 0)::bigint AS unrouted
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

DELETED = """
SELECT counted.key, sum(counted.value::bigint)
  FROM migration.loaded_file, jsonb_each_text(deleted_rows) counted
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
 GROUP BY 1
 ORDER BY 1
"""


FILES = """
SELECT export_id, file, md5, items, items = loaded + superseded + s.skipped + quarantined AS conserved, loaded_at
  FROM migration.loaded_file,
       LATERAL (SELECT coalesce(sum(value::bigint), 0) AS skipped FROM jsonb_each_text(skipped)) s
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
"""

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


# -- the quarantine ------------------------------------------------------------------------------------

KEEP_BAD = _keep("quarantine", "profile, export_id, file, line", now="quarantined_at")

QUARANTINED_LINES = """
SELECT line, raw
  FROM migration.quarantine
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s)
 ORDER BY line
"""

CLEAR_OTHERS = """
DELETE FROM migration.quarantine
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND line <> ALL (%(lines)s::bigint[])
"""
"""Once a file is loaded, its quarantine holds just the lines that were bad this time."""

CLEAR = """
DELETE FROM migration.quarantine
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND line = ANY (%(lines)s::bigint[])
"""

QUARANTINED_BY_FILE = """
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

IN_QUARANTINE = """
SELECT count(*)
  FROM migration.quarantine
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
"""

QUARANTINED_BY_REASON = """
SELECT coalesce(table_name, ''), coalesce(sqlstate, ''), reason, count(*), count(DISTINCT (export_id, file)),
       (array_agg(file || ':' || line ORDER BY export_id, file, line))[1]
  FROM migration.quarantine
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
 GROUP BY 1, 2, 3
 ORDER BY 4 DESC, 1, 2, 3
"""

FILES_TO_REPLAY = """
SELECT DISTINCT export_id, file
  FROM migration.quarantine
  JOIN migration.loaded_file USING (profile, export_id, file)
 WHERE profile = %(profile)s
"""
"""Items of files that are not loaded (any more) wait for these to be loaded, which tries them again, too."""


# -- collisions ----------------------------------------------------------------------------------------

KEEP_COLLISIONS = """
    INSERT INTO migration.collision (profile, export_id, file, table_name, key)
    SELECT {this_file}, {table}, key
      FROM changed
     WHERE {examples} > (SELECT count(*) FROM migration.collision WHERE (profile, export_id, file) = ({this_file}))
     LIMIT {examples}
        ON CONFLICT DO NOTHING
"""
"""Examples of the rows that an UPDATE changed: a part of its statement."""

COLLISIONS = """
SELECT export_id, file, key
  FROM migration.collision
 WHERE profile = %(profile)s AND table_name = %(table)s AND export_id = ANY(%(exports)s)
 ORDER BY export_id, file, key
 LIMIT 100
"""


# -- slices --------------------------------------------------------------------------------------------

HOLD_SLICES = "LOCK TABLE migration.slice IN SHARE MODE"
"""Whoever lands or replays a file is waited for, and waits from then on."""

NEW_SLICE = """
INSERT INTO migration.slice (profile, export_id, file, run_id, alive_until)
VALUES (%(profile)s, %(export_id)s, %(file)s, %(run_id)s, clock_timestamp() + %(alive)s * interval '1 second')
RETURNING id
"""

LEFTOVERS = """
DELETE FROM migration.slice
 WHERE id IN (SELECT id
                FROM migration.slice
               WHERE profile = %(profile)s AND landed_at IS NULL AND alive_until < clock_timestamp()
                 FOR UPDATE SKIP LOCKED)
RETURNING id
"""
"""Slices of dead loads: silent for longer than a live load is. One that is in a transaction is locked."""

STILL_ALIVE = (
    "UPDATE migration.slice SET alive_until = clock_timestamp() + %s * interval '1 second' WHERE id = %s"
)

NEXT_BATCH = """
UPDATE migration.slice
   SET batches = batches + 1, alive_until = clock_timestamp() + %s * interval '1 second'
 WHERE id = %s AND batches = %s
"""

GIVEN_UP = "UPDATE migration.slice SET alive_until = '-infinity' WHERE id = %s AND landed_at IS NULL"

BATCHES = "SELECT batches FROM migration.slice WHERE id = %s"

REPLACED = """
DELETE FROM migration.slice
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND landed_at IS NOT NULL AND id <> %(id)s
RETURNING id
"""

LAND = "UPDATE migration.slice SET rows = %s, landed_at = now() WHERE id = %s"

MORE = "UPDATE migration.slice SET rows = %s WHERE id = %s"

LANDED_SLICE = """
SELECT id, rows
  FROM migration.slice
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND landed_at IS NOT NULL
"""

LANDED_FILES = """
SELECT s.export_id, s.file, f.md5, s.id, s.rows
  FROM migration.slice s
  JOIN migration.loaded_file f USING (profile, export_id, file)
 WHERE s.profile = %s AND s.landed_at IS NOT NULL
 ORDER BY s.id
"""

FORGET_SLICE = "DELETE FROM migration.slice WHERE id = %s"

LANDED = """
SELECT export_id, file, id, rows
  FROM migration.slice
 WHERE profile = %(profile)s AND landed_at IS NOT NULL
"""

FORGET_SLICES = """
DELETE FROM migration.slice
 WHERE id IN (SELECT id FROM migration.slice WHERE profile = %s AND landed_at IS NOT NULL LIMIT 100)
RETURNING id
"""
"""Some at a time: each table that is dropped takes up to three of the server's locks until the transaction ends."""

PLACE_AND_RECEIPT = """
SELECT (SELECT id FROM migration.slice
         WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND landed_at IS NOT NULL),
       EXISTS (SELECT FROM migration.loaded_file
                WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s))
"""

ANY_LANDED = """
SELECT EXISTS (SELECT FROM migration.slice WHERE profile = %(profile)s AND landed_at IS NOT NULL),
       EXISTS (SELECT FROM migration.loaded_file WHERE profile = %(profile)s)
"""


# -- aggregates ----------------------------------------------------------------------------------------

KEEP_AGGREGATE = _keep("aggregate", "profile, table_name", now="made_at")

AGGREGATES = _read("aggregate", " WHERE profile = %(profile)s")

# -- verifications -------------------------------------------------------------------------------------

KEEP_VERIFICATION = _keep("verification", "profile, table_name", now="verified_at")

VERIFICATIONS = _read("verification", " WHERE profile = %(profile)s\n ORDER BY table_name")

FORGET_DIFFERENCES = (
    "DELETE FROM migration.difference WHERE profile = %(profile)s AND table_name = %(table_name)s"
)

KEEP_DIFFERENCE = _keep("difference")

DIFFERENCES = """
SELECT table_name, kind, columns, key, file
  FROM migration.difference
 WHERE profile = %(profile)s
 ORDER BY table_name, kind, key
"""

# -- the throttle ---------------------------------------------------------------------------------------

HOLD_STEERING = "LOCK TABLE migration.throttle IN SHARE ROW EXCLUSIVE MODE"
KEEP_STEERING = _keep("throttle", now="changed_at")
STEERINGS = _read("throttle", " WHERE profile = %(profile)s\n ORDER BY id")
STEERING = _read("throttle", " WHERE profile = %(profile)s\n ORDER BY id DESC\n LIMIT 1")
RESERVE = """
INSERT INTO migration.pace AS p VALUES (%(profile)s, clock_timestamp() + %(seconds)s * interval '1 second')
    ON CONFLICT (profile)
    DO UPDATE SET paid_until = greatest(p.paid_until, clock_timestamp()) + %(seconds)s * interval '1 second'
RETURNING extract(epoch FROM paid_until - clock_timestamp())::float8 - %(seconds)s
"""
"""Returns the seconds until the turn of whoever asks, behind all who have asked before."""

PACE_ANEW = "UPDATE migration.pace SET paid_until = clock_timestamp() WHERE profile = %(profile)s"


def pasteable(statement: str, parameters: Mapping[str, str | Sequence[str]]) -> str:
    """Write a statement as it can be pasted into psql."""

    def literal(match: re.Match[str]) -> str:
        value = parameters[match[1]]
        # A list as PostgreSQL writes an array; names of exports and files hold neither quote nor backslash.
        text = value if isinstance(value, str) else "{" + ",".join(f'"{one}"' for one in value) + "}"
        return "'" + text.replace("'", "''") + "'"

    return re.sub(r"%\((\w+)\)s", literal, statement).strip() + ";"


# -- sessions ----------------------------------------------------------------------------------------

NEW_SESSION = """
WITH old AS (
    DELETE FROM migration.session
     WHERE token IN (
        SELECT token FROM migration.session WHERE last_at < now() - interval '1 year' FOR UPDATE SKIP LOCKED
     )
)
INSERT INTO migration.session AS s VALUES (%s, 1, now())
    ON CONFLICT (token) DO UPDATE SET transactions = s.transactions + 1
RETURNING transactions
"""
"""Its first transaction; one before it may be there, if its answer was lost. Sessions of long ago leave."""

SESSION_GOES_ON = """
UPDATE migration.session SET transactions = transactions + 1, last_at = now()
 WHERE token = %s AND transactions >= %s
RETURNING transactions
"""
"""Its next transaction. More may be there than are known of, if answers were lost; fewer may not."""

SESSION_THERE = "SELECT transactions FROM migration.session WHERE token = %s"
