"""The SQL of the ledger: items that windows have touched, keys that their rows moved to, landed rows that were taken away.

Statements with ``{…}`` are composed by `psycopg2.sql`; {records}, {moves}, {wanted} and {lines} are temporary tables.
"""

from __future__ import annotations

NOT_LOADED = """
SELECT wanted.file
  FROM unnest(%(exports)s, %(files)s, %(md5s)s) WITH ORDINALITY AS wanted (export_id, file, md5, n)
 WHERE NOT EXISTS (SELECT
                     FROM migration.loaded_file f
                    WHERE f.profile = %(profile)s AND (f.export_id, f.file, f.md5) = (wanted.export_id, wanted.file, wanted.md5))
 ORDER BY n
"""

STAGE_RECORDS = """
CREATE TEMP TABLE IF NOT EXISTS {bare} (
    number bigint UNIQUE, item uuid PRIMARY KEY, written bigint, place bigint, idle boolean, owned jsonb,
    entered boolean NOT NULL DEFAULT false, was_written bigint, was_window bigint, was_place bigint, was_owned jsonb, rank text
) ON COMMIT DROP
"""
"""What `was_…` says is of the ledger before; all NULL for an item that was not in it."""

COPY_RECORDS = "COPY {records} (number, item, written, place, idle, owned) FROM STDIN WITH ({options})"

LOCK_ITEMS = """
WITH there AS (
    SELECT i.item, i.written, i.window_id, i.place, i.owned
      FROM {records} r
      JOIN migration.item i ON i.item = r.item
     WHERE NOT r.entered AND r.was_written IS NULL
     ORDER BY i.item
       FOR UPDATE OF i
)
UPDATE {records} r
   SET was_written = there.written, was_window = there.window_id, was_place = there.place, was_owned = there.owned
  FROM there
 WHERE r.item = there.item
"""

ENTER_ITEMS = """
WITH entered AS (
    INSERT INTO migration.item (profile, item, written, window_id, place, owned)
    SELECT {profile}, item, written, {window}, place, owned
      FROM {records}
     WHERE was_written IS NULL AND NOT entered AND NOT idle
     ORDER BY item
        ON CONFLICT DO NOTHING
    RETURNING item
)
UPDATE {records} r SET entered = true FROM entered WHERE r.item = entered.item
"""

ITEMS_LEFT = "SELECT count(*) FROM {records} WHERE was_written IS NULL AND NOT entered AND NOT idle"
"""Items that another transaction entered after they were looked for."""

RANK_RECORDS = """
WITH ranked AS (
    UPDATE {records}
       SET rank = CASE WHEN was_window = {window} AND was_place <> place THEN 'twin'
                       WHEN was_written > written THEN 'older'
                       WHEN was_written = written AND was_window = ANY ({later}::bigint[]) THEN 'older'
                       WHEN was_written = written THEN 'same'
                       ELSE 'newer' END
     WHERE was_written IS NOT NULL
    RETURNING rank
)
SELECT count(*) FILTER (WHERE rank = 'twin'), count(*) FILTER (WHERE rank = 'older'),
       count(*) FILTER (WHERE rank = 'same'), count(*)
  FROM ranked
"""
"""Of one record in two windows that overlap, the later window's counts: `ENTER_GONE` and the verification rely on that."""

TWIN = "SELECT min(number) FROM {records} WHERE rank = 'twin'"

DROP_OLDER = "DELETE FROM {records} WHERE rank = 'older' RETURNING number"

RENEW_ITEMS = """
UPDATE migration.item i
   SET written = r.written, window_id = {window}, place = r.place, owned = r.owned
  FROM {records} r
 WHERE i.item = r.item AND (rank = 'newer' OR (rank = 'same' AND (r.was_owned <> r.owned OR r.was_window <> {window})))
"""

ENTER_GONE = """
INSERT INTO {records} (number, item, written, place, idle, owned, was_written, was_window, was_place, was_owned, rank)
SELECT -row_number() OVER (), item, {end} - 1, 0, false, '{{}}', written, window_id, place, owned, 'newer'
  FROM migration.item
 WHERE profile = {profile} AND written >= {start} AND written < {end} AND window_id = ANY ({earlier})
"""
"""A record of an earlier window that an item of this one has is of this one by now."""

DISOWN = """
UPDATE migration.item i
   SET owned = '{{}}'
  FROM {records} r
 WHERE i.item = r.item AND r.number = ANY ({numbers})
"""

CLAIM_KEYS = """
INSERT INTO migration.claim AS c (profile, window_id, table_name, key, taken, taker)
SELECT {profile}, {window}, {table}, {key}, bool_or(migration_taken), (array_agg(r.item) FILTER (WHERE migration_taken))[1]
  FROM {moves} k
  JOIN {records} r ON r.number = k.migration_number
 GROUP BY 4
 ORDER BY 4
    ON CONFLICT (profile, window_id, table_name, key) DO UPDATE
   SET taken = c.taken OR EXCLUDED.taken, taker = coalesce(EXCLUDED.taker, c.taker)
"""
"""Waits for others who give up or take the same key, so that each sees what the one before has done."""

LOADED_OF = "SELECT count(*) FROM migration.loaded_file WHERE profile = %s AND export_id = ANY(%s)"

DROP_TAKEN = """
DELETE FROM {staging} s
 WHERE (SELECT bool_or(c.taken)
          FROM migration.claim c
         WHERE c.profile = {profile} AND c.window_id = ANY ({windows}) AND c.table_name = {table} AND c.key = {key})
"""

NOT_GIVEN_UP = """
DELETE FROM {moves} k
 USING {records} r
 WHERE k.migration_number = r.number AND NOT k.migration_taken AND r.rank = 'same'
"""
"""What a record's item had before the window was taken away when the record was applied first."""

OWNED_BEFORE = """
INSERT INTO {moves} (migration_number, migration_taken, {columns})
SELECT r.number, false, {values}
  FROM {records} r, jsonb_array_elements(r.was_owned -> {table}) AS before (had)
 WHERE r.rank IS NOT NULL AND r.was_owned -> {table} IS DISTINCT FROM r.owned -> {table}
   AND NOT EXISTS (SELECT FROM jsonb_array_elements(r.owned -> {table}) AS now (has) WHERE has = had)
   AND r.number BETWEEN {first} AND {last}
"""

OWNED_NOW = """
INSERT INTO {moves} (migration_number, migration_taken, {columns})
SELECT r.number, true, {values}
  FROM {records} r, jsonb_array_elements(r.owned -> {table}) AS now (had)
 WHERE r.rank IS NOT NULL AND r.was_owned -> {table} IS DISTINCT FROM r.owned -> {table}
   AND NOT EXISTS (SELECT FROM jsonb_array_elements(r.was_owned -> {table}) AS before (has) WHERE has = had)
   AND r.number BETWEEN {first} AND {last}
"""
"""What an item takes of another one after a change of the profile, by which each of the two always had its key."""

LANDED_BEFORE = """
DELETE FROM {part} p
 USING {records} r
 WHERE p.migration_item = r.item AND r.rank IS NOT NULL AND r.number BETWEEN {first} AND {last}
"""

FIRST_TOUCHED = """
WITH known AS (DELETE FROM {wanted} w USING {records} r WHERE w.migration_number = r.number AND NOT r.entered)
UPDATE {wanted} w SET migration_item = r.item FROM {records} r WHERE w.migration_number = r.number AND r.entered
"""
"""What the others' items had was taken away when they were touched first."""

BACK_BY = """
UPDATE migration.taken t
   SET back_by = {slice}
  FROM {lines} l
 WHERE t.item = l.item
"""
"""Once that slice is in its place, it is without the items of these lines."""

END_QUARANTINE = """
DELETE FROM migration.quarantine q
 USING {records} r
 WHERE q.item = r.item AND (q.export_id, q.file, q.line) <> ({export}, {file}, r.number)
"""
"""What was wrong with an earlier state of an item is over."""

QUARANTINED_ITEMS_UNKNOWN = """
SELECT export_id, file, line, raw
  FROM migration.quarantine
 WHERE profile = %(profile)s AND export_id = ANY(%(exports)s) AND item IS NULL
"""

NAME_QUARANTINED = """
UPDATE migration.quarantine
   SET item = %(item)s
 WHERE (profile, export_id, file, line) = (%(profile)s, %(export_id)s, %(file)s, %(line)s)
"""

NOT_LANDED = """
SELECT wanted.file
  FROM unnest(%(exports)s, %(files)s) WITH ORDINALITY AS wanted (export_id, file, n)
 WHERE NOT EXISTS (SELECT
                     FROM migration.slice s
                    WHERE s.profile = %(profile)s AND (s.export_id, s.file) = (wanted.export_id, wanted.file) AND landed_at IS NOT NULL)
 ORDER BY n
"""

FORGET_TAKEN = "DELETE FROM migration.taken WHERE profile = %s AND table_name = %s"

HOLD_ITEMS = "LOCK TABLE migration.item IN SHARE MODE"
"""Whoever writes to the ledger is waited for, and waits from then on; full exports do not wait for each other."""

HOLD_FILE = "SELECT pg_advisory_xact_lock_shared(hashtextextended(%s, 0))"
END_FILE = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))"
"""No load of a file ends, and lets windows in, while another one's transaction holds the file."""

FILE_LOADED = """
SELECT EXISTS (SELECT
                 FROM migration.loaded_file
                WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s))
"""

VERSION = "SELECT max(id) FROM migration.item"
"""Whoever holds the ledger sees by it whether items were entered since."""

ITEMS_OF = """
SELECT (SELECT count(*) FROM (SELECT FROM migration.item WHERE profile = {profile} LIMIT {most}) i),
       (SELECT max(id) FROM migration.item)
"""

OTHER_WINDOWS = "SELECT EXISTS (SELECT FROM migration.item WHERE profile = {profile} AND window_id <> ALL ({windows}::bigint[]))"

COPY_ITEMS = (
    "COPY (SELECT replace(item::text, '-', '') FROM migration.item WHERE profile = {profile}) TO STDOUT"
)

STAGE_LINES = "CREATE TEMP TABLE IF NOT EXISTS {bare} (number bigint, item uuid) ON COMMIT DROP"

COPY_LINES = "COPY {lines} (number, item) FROM STDIN WITH ({options})"

TOUCHED_LINES = """
SELECT number FROM {lines} l JOIN migration.item i ON i.item = l.item
"""
