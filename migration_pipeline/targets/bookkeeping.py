"""The bookkeeping: the schema ``migration``, in which the database itself says what was loaded. All SQL for it is here.

Each statement runs in psql, too, with names in quotes in place of ``%(…)s``; `pasteable` puts them there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

BOOKKEEPING = files("migration_pipeline.targets").joinpath("bookkeeping.sql").read_text()
"""Schema ``migration`` and its tables; safe to run again."""


BOOKKEEPING_COLUMNS = """
SELECT count(*)
  FROM pg_attribute
 WHERE attrelid = to_regclass('migration.loaded_file') AND attname = 'rounded'
    OR attrelid = to_regclass('migration.quarantine') AND attname = 'raw'
    OR attrelid = to_regclass('migration.collision') AND attname = 'key'
    OR attrelid = to_regclass('migration.verification') AND attname = 'state'
    OR attrelid = to_regclass('migration.difference') AND attname = 'id'
    OR attrelid = to_regclass('migration.slice') AND attname = 'alive_until'
    OR attrelid = to_regclass('migration.aggregate') AND attname = 'rounded'
"""
"""The newest column of each of our tables."""


LACKING = """
SELECT string_agg(relname, ', ' ORDER BY relname), current_user
  FROM pg_class
 WHERE relnamespace = 'migration'::regnamespace AND relkind = 'r'
   AND NOT (has_table_privilege(oid, 'SELECT') AND has_table_privilege(oid, 'INSERT')
            AND has_table_privilege(oid, 'UPDATE') AND has_table_privilege(oid, 'DELETE'))
"""


# -- files ---------------------------------------------------------------------------------------------

KEEP_RECEIPT = """
INSERT INTO migration.loaded_file
       (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined,
        rows, collisions, changed, changed_rows, rounded, nul, retries, seconds, run_id, export_time, loaded_at)
VALUES (%(profile)s, %(export_id)s, %(file)s, %(profile_version)s, %(md5)s, %(bytes)s, %(items)s, %(loaded)s,
        %(skipped)s, %(unrouted)s, %(quarantined)s,
        %(rows)s, %(collisions)s, %(changed)s, %(changed_rows)s, %(rounded)s, %(nul)s, %(retries)s, %(seconds)s, %(run_id)s,
        %(export_time)s, clock_timestamp())
ON CONFLICT (profile, export_id, file) DO UPDATE
   SET profile_version = EXCLUDED.profile_version, md5 = EXCLUDED.md5, bytes = EXCLUDED.bytes,
       items = EXCLUDED.items, loaded = EXCLUDED.loaded, skipped = EXCLUDED.skipped,
       unrouted = EXCLUDED.unrouted, quarantined = EXCLUDED.quarantined, rows = EXCLUDED.rows,
       collisions = EXCLUDED.collisions, changed = EXCLUDED.changed, changed_rows = EXCLUDED.changed_rows,
       rounded = EXCLUDED.rounded, nul = EXCLUDED.nul,
       retries = EXCLUDED.retries, seconds = EXCLUDED.seconds, run_id = EXCLUDED.run_id,
       loaded_at = EXCLUDED.loaded_at, export_time = coalesce(EXCLUDED.export_time, loaded_file.export_time)
"""


RECEIPT_OF = """
SELECT profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined, rows, collisions, changed_rows, rounded,
       nul, retries, seconds
  FROM migration.loaded_file
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s)
   FOR UPDATE
"""


OTHER_VERSIONS = """
SELECT count(*) FILTER (WHERE (export_id, file) = (%(export_id)s, %(file)s)),
       count(*) FILTER (WHERE profile_version <> %(profile_version)s)
  FROM migration.loaded_file
 WHERE profile = %(profile)s
"""
"""Whether the file has a receipt, and how many files of the profile were loaded by another version of it."""


RECEIPTS = """
SELECT export_id, file, profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined, rows,
       collisions, changed, changed_rows, rounded, nul, retries, seconds, run_id, loaded_at
  FROM migration.loaded_file
 WHERE profile = %(profile)s
 ORDER BY export_id, file
"""


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
       count(*) FILTER (WHERE items <> loaded + s.skipped + quarantined) AS unconserved,
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


MD5S = """
SELECT export_id, file, md5
  FROM migration.loaded_file
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

KEEP_BAD = """
INSERT INTO migration.quarantine
       (profile, export_id, file, line, raw, table_name, sqlstate, reason, profile_version, run_id)
VALUES (%(profile)s, %(export_id)s, %(file)s, %(line)s, %(raw)s, %(table)s, %(sqlstate)s, %(reason)s,
        %(profile_version)s, %(run_id)s)
ON CONFLICT (profile, export_id, file, line) DO UPDATE
   SET raw = EXCLUDED.raw, table_name = EXCLUDED.table_name, sqlstate = EXCLUDED.sqlstate,
       reason = EXCLUDED.reason, profile_version = EXCLUDED.profile_version, run_id = EXCLUDED.run_id,
       quarantined_at = now()
"""


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
SELECT coalesce(table_name, ''), coalesce(sqlstate, ''), reason, count(*), count(DISTINCT (export_id, file))
  FROM migration.quarantine
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s)
 GROUP BY 1, 2, 3
 ORDER BY 4 DESC, 1, 2, 3
"""


QUARANTINED_FILES = """
SELECT export_id, file, count(*)
  FROM migration.quarantine
  JOIN migration.loaded_file USING (profile, export_id, file)
 WHERE profile = %s
 GROUP BY export_id, file
"""
"""Items of files that are not loaded (any more) wait for these to be loaded, which tries them again, too."""


# -- collisions ----------------------------------------------------------------------------------------

COLLISIONS = """
SELECT export_id, file, key
  FROM migration.collision
 WHERE profile = %(profile)s AND table_name = %(table)s AND export_id = ANY(%(exports)s)
 ORDER BY export_id, file, key
 LIMIT 100
"""


# -- slices --------------------------------------------------------------------------------------------

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
"""Those of which nobody has heard for longer than a live load is silent. One that is in a transaction is locked."""


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


# -- aggregates ----------------------------------------------------------------------------------------

KEEP_AGGREGATE = """
INSERT INTO migration.aggregate
       (profile, table_name, profile_version, sql_md5, files, files_md5, groups, rows, new, changed, unchanged,
        deleted, rounded, parts, retries, seconds, run_id, made_at)
VALUES (%(profile)s, %(table_name)s, %(profile_version)s, %(sql_md5)s, %(files)s, %(files_md5)s, %(groups)s,
        %(rows)s, %(new)s, %(changed)s, %(unchanged)s, %(deleted)s, %(rounded)s, %(parts)s, %(retries)s, %(seconds)s, %(run_id)s,
        clock_timestamp())
ON CONFLICT (profile, table_name) DO UPDATE
   SET profile_version = EXCLUDED.profile_version, sql_md5 = EXCLUDED.sql_md5, files = EXCLUDED.files,
       files_md5 = EXCLUDED.files_md5, groups = EXCLUDED.groups, rows = EXCLUDED.rows, new = EXCLUDED.new, changed = EXCLUDED.changed,
       unchanged = EXCLUDED.unchanged, deleted = EXCLUDED.deleted, rounded = EXCLUDED.rounded, parts = EXCLUDED.parts,
       retries = EXCLUDED.retries, seconds = EXCLUDED.seconds, run_id = EXCLUDED.run_id, made_at = EXCLUDED.made_at
"""


AGGREGATES = """
SELECT table_name, profile_version, sql_md5, files, files_md5, groups, rows, new, changed, unchanged, deleted, parts, retries,
       seconds, run_id, made_at
  FROM migration.aggregate
 WHERE profile = %(profile)s
"""


# -- verifications -------------------------------------------------------------------------------------

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


VERIFICATIONS = """
SELECT table_name, files, compared, same, missing, different, newer, extra, columns, run_id, verified_at, began_at,
       profile_version, files_md5, state
  FROM migration.verification
 WHERE profile = %(profile)s
 ORDER BY table_name
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


def pasteable(statement: str, parameters: Mapping[str, str | Sequence[str]]) -> str:
    """Write a statement as it can be pasted into psql."""

    def literal(match: re.Match[str]) -> str:
        value = parameters[match[1]]
        # A list as PostgreSQL writes an array; names of exports and files hold neither quote nor backslash.
        text = value if isinstance(value, str) else "{" + ",".join(f'"{one}"' for one in value) + "}"
        return "'" + text.replace("'", "''") + "'"

    return re.sub(r"%\((\w+)\)s", literal, statement).strip() + ";"
