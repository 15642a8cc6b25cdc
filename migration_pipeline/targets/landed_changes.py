"""Changes of landed rows: those of a window's items lie in one part of a landing table, with their item.

Nothing tells which row of a full export is whose. When a window touches an item first, one row equal to each of those that it
had is taken out of some file's slice, and noted with that slice (``migration.taken``). A file's slice that is replaced has the
rows of all of its items which no window has touched. So what was taken out of it for another file's item is taken elsewhere
then, and what was taken elsewhere for one of its own items is put back there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from psycopg2.sql import SQL, Composed, Identifier, Literal

from migration_pipeline.profile.row import Row
from migration_pipeline.targets import ledger_sql
from migration_pipeline.targets.catalog import TargetTable, quote
from migration_pipeline.targets.connection import copy_in
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.expressions import name_list, names_of, written
from migration_pipeline.targets.fits import Fit
from migration_pipeline.targets.landing import WINDOWS, part_of
from migration_pipeline.targets.ledger import Ledger

HASHED = (
    "text", "character varying", "smallint", "integer", "bigint", "numeric", "double precision", "boolean", "uuid", "date",
    "timestamp with time zone", "timestamp without time zone", "bytea",
)  # fmt: skip
"""Types of columns by which an index finds a row."""


class LandedChanges:
    """Changes the rows of one landing table. Its methods run in the caller's transactions."""

    def __init__(self, target: TargetTable, profile: str, token: str, number: int) -> None:
        self._target = target
        self._part = Identifier(target.schema, f"{target.table.name}_{WINDOWS}")
        self._name = ".".join(map(quote, self._part.strings))
        wanted = Identifier("pg_temp", f"migration_{token}_landed_{number}")
        fits = target.fits
        hashed = [fit for fit in fits if fit.actual.type in HASHED]
        self._parts = {
            "parent": target.identifier,
            "part": self._part,
            "part_name": Literal(self._name),
            "parent_name": Literal(".".join(map(quote, target.identifier.strings))),
            "profile": Literal(profile),
            "table": Literal(target.table.qualified),
            "wanted": wanted,
            "bare": Identifier(wanted.strings[-1]),
            "by_item": Identifier(f"{self._part.strings[-1]}_item"),
            "by_row": Identifier(f"{self._part.strings[-1]}_row"),
            "found": Identifier("pg_temp", f"migration_{token}_found_{number}"),
            "bare_found": Identifier(f"migration_{token}_found_{number}"),
            "columns": name_list(names_of(fits)),
            "definitions": SQL(", ").join(
                SQL("{} {}").format(Identifier(fit.column.name), SQL(fit.exact or fit.staged)) for fit in fits
            ),
            "contents": SQL(", ").join(
                SQL("(content).{}").format(Identifier(fit.column.name)) for fit in fits
            ),
            "ours": SQL(", ").join(_as_column(fit) for fit in fits),
            "theirs": name_list(names_of(fits), "t"),
            "our_hash": _hash([_as_column(fit) for fit in hashed]),
            "their_hash": _hash([Identifier("t", fit.column.name) for fit in hashed]),
            "index": _hash([Identifier(fit.column.name) for fit in hashed]),
            "options": SQL(COPY_OPTIONS),
        }

    def sql(self, text: str, **more: Any) -> Composed:
        """Compose a statement about the table."""
        return SQL(text).format(**self._parts, **more)

    # -- before a window's file ----------------------------------------------------------------------

    def slices_to_index(self, cursor: Any) -> list[Identifier]:
        """Make the part for windows, unless it is there; returns the slices whose rows no index finds yet."""
        self._alone(cursor)
        cursor.execute(self.sql(MAKE_PART))
        cursor.execute(
            self.sql("SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = {part_name}::regclass)")
        )
        if cursor.fetchone() == (False,):
            cursor.execute(self.sql("ALTER TABLE {part} INHERIT {parent}"))
        cursor.execute(self.sql(WITHOUT_INDEX))
        return [Identifier(schema, name) for schema, name in cursor.fetchall()]

    def index(self, cursor: Any, part: Identifier) -> None:
        """Make the index that finds a slice's rows."""
        cursor.execute(self.sql("CREATE INDEX ON {slice} ({index})", slice=part))
        cursor.execute(
            self.sql("ANALYZE {slice}", slice=part)
        )  # else a scan seems to be cheaper than the index

    def _alone(self, cursor: Any) -> None:
        """Wait for others who move rows of full exports, and keep them waiting until the transaction ends."""
        cursor.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
            (f"migration {self._target.table.qualified}",),
        )

    # -- a batch -------------------------------------------------------------------------------------

    def take_away(self, cursor: Any, ledger: Ledger, before: bytes, first: int, last: int) -> int:
        """Take away the rows that the records' items had; returns how many.

        Raises `psycopg2.Error` for a row before that the table cannot have.
        """
        gone = 0
        if ledger.known:
            cursor.execute(
                ledger.sql(
                    ledger_sql.LANDED_BEFORE, part=self._part, first=Literal(first), last=Literal(last)
                )
            )
            gone += cursor.rowcount
        if before:
            self._stage(cursor)
            copy_in(
                cursor,
                self.sql("COPY {wanted} (migration_number, {columns}) FROM STDIN WITH ({options})"),
                before,
            )
            cursor.execute(ledger.sql(ledger_sql.FIRST_TOUCHED, wanted=self._parts["wanted"]))
            gone += self._take(cursor)
        return gone

    def put(self, cursor: Any, rows: bytes) -> int:
        """Put rows among those of windows; returns how many."""
        if not rows:
            return 0
        statement = self.sql("COPY {part} ({columns}, migration_item) FROM STDIN WITH ({options})")
        return copy_in(cursor, statement, rows)

    def _stage(self, cursor: Any) -> None:
        cursor.execute(
            self.sql(
                "CREATE TEMP TABLE IF NOT EXISTS {bare} (migration_number bigint, migration_item uuid, {definitions}) ON COMMIT DROP"
            )
        )
        cursor.execute(self.sql("DELETE FROM {wanted}"))

    def _take(self, cursor: Any) -> int:
        """Take one row equal to each wanted one out of the slices of full exports; returns how many there were."""
        # Whoever takes one of several equal rows must see what others took.
        self._alone(cursor)
        cursor.execute(self.sql(MAKE_FOUND))
        cursor.execute(self.sql("DELETE FROM {found}"))
        cursor.execute(self.sql(BY_INDEX))
        (by_index,) = cursor.fetchone()
        cursor.execute(f"SET LOCAL enable_seqscan = {'off' if by_index else 'on'}")
        cursor.execute(f"SET LOCAL enable_hashjoin = {'off' if by_index else 'on'}")
        cursor.execute(self.sql(FIND))
        cursor.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = on")
        cursor.execute(self.sql(TAKE))
        taken = int(cursor.rowcount)
        cursor.execute("SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = off")
        return taken

    # -- a slice that is replaced --------------------------------------------------------------------

    def replace(self, cursor: Any, slice_id: int, replaced: Collection[int]) -> None:
        """Keep the account of rows that were taken, when a file's slice takes the place of its former ones."""
        self._alone(cursor)
        cursor.execute(self.sql(GIVE_BACK, slice=Literal(slice_id)))
        for (number,) in cursor.fetchall():
            if number not in replaced:
                there = part_of(self._target.table.qualified, number)
                cursor.execute("SELECT to_regclass(%s)", (there.as_string(cursor),))
                if cursor.fetchone() != (None,):
                    cursor.execute(
                        self.sql(PUT_BACK, there=there, number=Literal(number), slice=Literal(slice_id))
                    )
        cursor.execute(self.sql(FORGET_BACK, slice=Literal(slice_id)))
        if replaced:
            self._stage(cursor)
            cursor.execute(self.sql(TAKEN_OF, replaced=Literal(list(replaced))))
            if cursor.rowcount:
                self._take(cursor)


def landed_changes(
    targets: Mapping[type[Row], TargetTable], profile: str, token: str
) -> dict[type[Row], LandedChanges]:
    """Make the changes of all landing tables among some."""
    return {
        row_class: LandedChanges(target, profile, token, number)
        for number, (row_class, target) in enumerate(targets.items())
        if target.table.landing
    }


def _as_column(fit: Fit) -> Composed:
    return SQL("({})::{}").format(written(fit, "w"), SQL(fit.actual.type))


def _hash(values: Iterable[Any]) -> Composed:
    """A number by which rows are found; the same for all where there is no column to make it of."""
    return SQL("hash_record_extended(ROW({}), 0)").format(SQL(", ").join([*values, SQL("0")]))


MAKE_PART = """
CREATE TABLE IF NOT EXISTS {part} (LIKE {parent} INCLUDING ALL EXCLUDING INDEXES, migration_item uuid NOT NULL);
CREATE INDEX IF NOT EXISTS {by_item} ON {part} (migration_item);
CREATE INDEX IF NOT EXISTS {by_row} ON {part} ({index})
"""
# No row of it is looked for by the second one. But without it each search in all parts would read the whole of this one.

WITHOUT_INDEX = """
SELECT n.nspname, c.relname
  FROM pg_inherits h
  JOIN pg_class c ON c.oid = h.inhrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE h.inhparent = {parent_name}::regclass AND c.oid <> {part_name}::regclass AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid)
"""

MAKE_FOUND = (
    'CREATE TEMP TABLE IF NOT EXISTS {bare_found} (place oid, id tid, image text COLLATE "C") ON COMMIT DROP'
)

BY_INDEX = """
SELECT (SELECT count(*) FROM {wanted}) * count(*) < coalesce(sum(greatest(reltuples, 0)), 0)
  FROM pg_inherits
  JOIN pg_class ON oid = inhrelid
 WHERE inhparent = {parent_name}::regclass
"""
"""Whether it takes fewer steps to look each row up in each slice than to read all of them."""

FIND = """
INSERT INTO {found} (place, id, image)
SELECT DISTINCT t.tableoid, t.ctid, ROW({theirs})::text COLLATE "C"
  FROM (SELECT DISTINCT {our_hash} AS hash FROM {wanted} w) h
  JOIN {parent} t ON {their_hash} = h.hash
 WHERE t.tableoid::bigint <> {part_name}::regclass::bigint
"""
# The condition is written so that the planner does not expect it to hold for a few rows only.

TAKE = """
WITH ours AS (
    SELECT item, image, row_number() OVER (PARTITION BY image) AS nth
      FROM (SELECT w.migration_item AS item, ROW({ours})::text COLLATE "C" AS image FROM {wanted} w) r
), theirs AS (
    SELECT place, id, image, row_number() OVER (PARTITION BY image ORDER BY place, id) AS nth FROM {found}
), chosen AS MATERIALIZED (
    SELECT place, id, item FROM ours JOIN theirs USING (image, nth)
), gone AS (
    DELETE FROM {parent} t USING chosen c WHERE t.tableoid = c.place AND t.ctid = c.id
    RETURNING c.item, t.tableoid AS place, t::text AS content
)
INSERT INTO migration.taken (profile, item, table_name, slice_id, content)
SELECT {profile}, gone.item, {table}, substring(c.relname FROM '[0-9]+$')::bigint, gone.content
  FROM gone
  JOIN pg_class c ON c.oid = gone.place
"""

GIVE_BACK = "SELECT DISTINCT slice_id FROM migration.taken WHERE profile = {profile} AND table_name = {table} AND back_by = {slice}"

PUT_BACK = """
INSERT INTO {there} SELECT (t.content::{parent}).*
  FROM migration.taken t
 WHERE profile = {profile} AND table_name = {table} AND back_by = {slice} AND slice_id = {number}
"""

FORGET_BACK = (
    "DELETE FROM migration.taken WHERE profile = {profile} AND table_name = {table} AND back_by = {slice}"
)

TAKEN_OF = """
WITH again AS (
    DELETE FROM migration.taken
     WHERE profile = {profile} AND table_name = {table} AND slice_id = ANY ({replaced})
    RETURNING item, content::{parent} AS content
)
INSERT INTO {wanted} (migration_number, migration_item, {columns}) SELECT 0, item, {contents} FROM again
"""
