"""Compares rows with what the tables hold, and writes none: what a verification and a dry run rest on.

Each batch goes into temporary tables and is joined to its tables there, set-based. The transaction is read-only by
then, so PostgreSQL itself sees to it that nothing but temporary tables is written.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import psycopg2
from psycopg2 import sql

from migration_pipeline.aggregate import Aggregate
from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.report import FileReport
from migration_pipeline.engine.transform import Bad
from migration_pipeline.profile import NulPolicy
from migration_pipeline.row import Row, Table
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.ddl import qualified
from migration_pipeline.targets.landing import identifier, part_of
from migration_pipeline.targets.postgres import Encoded, FileIdentity, PostgresTarget, merged

EXAMPLES = 20
"""Examples of differences that are kept a file and table, and of rows too many a table."""

IN_QUARANTINE = "it is in the quarantine"


class Difference(msgspec.Struct, frozen=True):
    """Rows of one table that differ in one way."""

    kind: str
    """``missing``: the table has no row of the key. ``different``: it has another one. ``newer``: it has one
    of a greater version, as the profile wants it. ``extra``: no item makes the row."""
    columns: tuple[str, ...] = ()
    """The columns that differ."""


class Comparison(msgspec.Struct):
    """What was found of one table."""

    compared: int = 0
    """Rows that items made."""
    found: Counter[Difference] = msgspec.field(default_factory=Counter)
    """Rows by difference; all others are the same."""
    examples: list[tuple[Difference, str]] = []
    """Some of them, with their keys as JSON: values of items, which no log may tell."""

    def count(self, kind: str) -> int:
        """Rows of a kind of difference."""
        return sum(rows for difference, rows in self.found.items() if difference.kind == kind)

    @property
    def same(self) -> int:
        """Rows that the table holds just so."""
        return self.compared - sum(self.count(kind) for kind in ("missing", "different", "newer"))

    @property
    def columns(self) -> dict[str, int]:
        """Rows that differ, by column; a row counts for each of its columns."""
        counts = Counter[str]()
        for difference, rows in self.found.items():
            if difference.kind == "different":
                counts.update(dict.fromkeys(difference.columns, rows))
        return dict(counts.most_common())

    def add(self, other: Comparison) -> None:
        """Sum up."""
        self.compared += other.compared
        self.found.update(other.found)
        self.examples += other.examples


class ComparingTarget(PostgresTarget):
    """A target that compares rows instead of writing them; one for all files of a plan.

    With `constraints` the temporary tables have those of the tables (NOT NULL, CHECK and unique ones), and what
    they refuse is a bad item, as in a load. Without, lines that are in the file's quarantine are left out, and
    `unaccounted` counts bad items that are not there. With `keys` the keys of all rows are kept, in a temporary
    table each, so that `rows_of_no_item` can tell which rows of a table no item makes.

    A file's rows of a landing table are compared with its slice, as a whole, with its last batch. Raises what
    `PostgresTarget` raises.
    """

    def __init__(
        self,
        url: str,
        tables: Mapping[type[Row], Table],
        file: FileIdentity,
        settings: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
        nul: NulPolicy = "quarantine",
        on_retry: Callable[[str], None] = lambda _: None,
        *,
        constraints: bool = False,
        keys: bool = False,
    ) -> None:
        super().__init__(url, tables, file, settings, nul, on_retry)
        self._slice = None  # no file gets a new one
        self._constraints = constraints
        self._keys = keys
        self._keeps_rows = keys or any(table.landing for table in self._tables.values())
        self._numbers = {table.qualified: number for number, table in enumerate(self._tables.values())}
        self._prepared = False
        self._in_quarantine: set[int] = set()
        self._batch: dict[str, Comparison] = {}
        self.comparisons: dict[str, Comparison] = {}
        """By the table's qualified name: of the file that was turned to last."""
        self.unaccounted = 0
        """Its items that are neither in the tables nor in the quarantine."""
        self.not_landed = False
        """Whether slices of a loaded file were dropped, as finishing does, so that there was nothing to compare."""

    def turn_to(self, file: FileIdentity) -> None:
        """Begin with another file."""
        self._file = file
        self.comparisons = {table.qualified: Comparison() for table in self._tables.values()}
        self.unaccounted = 0
        self._in_quarantine = set() if self._constraints else {line for line, _ in self.quarantined()}

    def write(self, batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        """Compare a batch. No receipt is written; `close` settles the account all the same."""
        kept = self._without_quarantined(batch)

        def work(cursor: Any) -> Written:
            self._batch = {name: Comparison() for name in self.comparisons}
            self._read_only(cursor)
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            written = Written()
            self._load(cursor, kept, batch.room, written)
            if close is not None:
                for table in self._tables.values():
                    if table.landing:
                        self._compare_slice(cursor, table)
            return written

        self._rows_are_new = False
        written = self._session.persistently(work)
        if not self._constraints:
            bad = [*kept.bad, *written.refused]
            self.unaccounted += sum(one.number not in self._in_quarantine for one in bad)
        for name, found in self._batch.items():
            self.comparisons[name].add(found)
            del self.comparisons[name].examples[EXAMPLES:]
        for left_out in self._left_out(batch):
            written.refuse(left_out)
        if close is not None:
            close(written)
        return written

    def rows_of_no_item(self, table: Table) -> Comparison:
        """Find the rows of a table that no item made, once all files were compared. Needs `keys`."""

        def work(cursor: Any) -> Comparison:
            self._read_only(cursor)
            _for_large_joins(cursor)
            return _extra(cursor, table, self._temporary("seen", table))

        return self._session.persistently(work)

    def aggregate(self, aggregate: Aggregate) -> Comparison:
        """Make the rows of an aggregate of what is landed, and compare them with its table."""
        table = aggregate.table
        names = [column.name for column in table.columns]

        def work(cursor: Any) -> Comparison:
            cursor.execute("DROP TABLE IF EXISTS pg_temp.aggregated")
            cursor.execute(
                sql.SQL("CREATE TEMP TABLE aggregated (LIKE {}) ON COMMIT DROP").format(identifier(table))
            )
            cursor.execute("SET TRANSACTION READ ONLY")
            _for_large_joins(cursor)
            made = sql.Identifier("pg_temp", "aggregated")
            cursor.execute(
                sql.SQL("INSERT INTO {} ({}) SELECT {} FROM (\n{}\n) q").format(
                    made, _list(names), _list(names), sql.SQL(aggregate.sql)
                )
            )
            rows = cursor.rowcount
            cursor.execute(_compare(table, made))
            found = _comparison(rows, cursor.fetchall())
            found.add(_extra(cursor, table, made))
            return found

        return self._session.persistently(work)

    # -- quarantined lines ---------------------------------------------------------------------------

    def _without_quarantined(self, batch: Batch) -> Batch:
        if self._in_quarantine.isdisjoint(batch.numbers):
            return batch
        pairs = zip(batch.lines, batch.numbers, strict=True)
        wanted = [(line, number) for line, number in pairs if number not in self._in_quarantine]
        kept = batch.anew([line for line, _ in wanted], [number for _, number in wanted])
        kept.bad = batch.bad
        return kept

    def _left_out(self, batch: Batch) -> Iterable[Bad]:
        for number, line in zip(batch.numbers, batch.lines, strict=True):
            if number in self._in_quarantine:
                yield Bad(number, line, IN_QUARANTINE)

    # -- temporary tables ----------------------------------------------------------------------------

    def _connected(self, cursor: Any) -> None:
        super()._connected(cursor)
        if self._prepared and self._keeps_rows:
            raise DatabaseError("the connection was lost, and the rows that were seen with it: start again")
        self._prepared = False

    def _read_only(self, cursor: Any) -> None:
        """Make a session's temporary tables, and let the transaction write nothing else from here on."""
        if not self._prepared:
            for table in self._tables.values():
                self._make_tables(cursor, table)
            # Committed by themselves: a transaction that fails later must not take the tables with it.
            cursor.execute("COMMIT")
            cursor.execute("BEGIN")
            self._prepared = True
        cursor.execute("SET TRANSACTION READ ONLY")

    def _make_tables(self, cursor: Any, table: Table) -> None:
        name = self._temporary("compared", table).strings[-1]
        parts = {"new": sql.Identifier(name), "target": identifier(table)}
        like = "INCLUDING CONSTRAINTS INCLUDING INDEXES" if self._constraints else ""
        if self._constraints and (table.merges or table.landing):
            like = "INCLUDING CONSTRAINTS"  # rows of one key come together here
        cursor.execute(
            sql.SQL("CREATE TEMP TABLE {new} (LIKE {target} {like}) {lasting}").format(
                like=sql.SQL(like),
                lasting=sql.SQL("" if table.landing else "ON COMMIT DELETE ROWS"),
                **parts,
            )
        )
        # Columns that the profile does not write have their defaults, which must not be drawn from here.
        cursor.execute(OTHER_COLUMNS, (qualified(table), [column.name for column in table.columns]))
        for (column,) in cursor.fetchall():
            drop = sql.SQL("ALTER TABLE {new} DROP COLUMN {column} CASCADE")
            cursor.execute(drop.format(column=sql.Identifier(column), **parts))
        if self._keys and not table.landing:
            cursor.execute(
                sql.SQL("CREATE TEMP TABLE {seen} AS SELECT {key} FROM {target} WITH NO DATA").format(
                    seen=sql.Identifier(self._temporary("seen", table).strings[-1]),
                    key=_list(table.key),
                    **parts,
                )
            )

    def _temporary(self, kind: str, table: Table) -> sql.Identifier:
        return sql.Identifier("pg_temp", f"{kind}_{self._numbers[table.qualified]}")

    def _table_of(self, error: psycopg2.Error) -> str | None:
        name = error.diag.table_name or ""
        number = name.removeprefix("compared_")
        return list(self._numbers)[int(number)] if name != number else None

    def _copy(self, cursor: Any, encoded: Encoded) -> int:
        """Stage rows and compare them; gives the number of those that replace others."""
        changed = 0
        for row_class, data in encoded.parts:
            table = self._tables[row_class]
            staging = self._temporary("compared", table)
            if not table.landing:
                cursor.execute(sql.SQL("DELETE FROM {}").format(staging))
            copy = sql.SQL("COPY {} ({}) FROM STDIN WITH ({})").format(
                staging, _list(column.name for column in table.columns), sql.SQL(COPY_OPTIONS)
            )
            cursor.copy_expert(copy, io.BytesIO(data), len(data))
            if table.landing:
                self._batch[table.qualified].compared += encoded.rows[table.qualified]
                continue
            if self._keys:
                keep = sql.SQL("INSERT INTO {} SELECT {} FROM {}")
                cursor.execute(keep.format(self._temporary("seen", table), _list(table.key), staging))
            cursor.execute(_compare(table, staging))
            found = _comparison(encoded.rows[table.qualified], cursor.fetchall())
            self._batch[table.qualified].add(found)
            changed += found.count("different")
        return changed

    def _compare_slice(self, cursor: Any, table: Table) -> None:
        """Compare a file's rows of a landing table with its slice: as often as they occur, in whatever order."""
        staging, found = self._temporary("compared", table), self._batch[table.qualified]
        names = _list(column.name for column in table.columns)
        cursor.execute(PLACE_AND_RECEIPT, msgspec.to_builtins(self._file))
        number, loaded = cursor.fetchone()
        if number is None and loaded:
            self.not_landed = True
            found.compared = -self.comparisons[table.qualified].compared  # none was compared, after all
        else:
            theirs = sql.SQL("SELECT {} FROM {} WHERE false").format(names, staging)
            if number is not None and self._exists(cursor, part_of(table.qualified, number)):
                theirs = sql.SQL("SELECT {} FROM {}").format(names, part_of(table.qualified, number))
            cursor.execute(sql.SQL(COMPARE_SLICES).format(names=names, staging=staging, theirs=theirs))
            missing, extra = cursor.fetchone()
            found.found += Counter({Difference("missing"): missing, Difference("extra"): extra})
        cursor.execute(sql.SQL("DELETE FROM {}").format(staging))

    @staticmethod
    def _exists(cursor: Any, name: sql.Identifier) -> bool:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (name.as_string(cursor),))
        return bool(cursor.fetchone()[0])


def _comparison(rows: int, groups: Sequence[tuple[Any, ...]]) -> Comparison:
    made = Comparison(compared=rows)
    for kind, columns, count, keys in groups:
        difference = Difference(kind, tuple(columns))
        made.found[difference] += count
        made.examples += [(difference, key) for key in keys]
    return made


OTHER_COLUMNS = """
SELECT attname
  FROM pg_attribute
 WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped AND attname <> ALL (%s)
"""

COMPARE = """
SELECT kind, columns, count(*), (array_agg(key::text ORDER BY key::text))[1:{examples}]
  FROM (SELECT {key} AS key,
               CASE WHEN t.{first_key} IS NULL THEN 'missing' WHEN {newer} THEN 'newer' ELSE 'different' END AS kind,
               CASE WHEN t.{first_key} IS NULL THEN ARRAY[]::text[]
                    ELSE array_remove(ARRAY[{differing}]::text[], NULL) END AS columns
          FROM {staging} s
          LEFT JOIN {target} t ON {same_key}
         WHERE t.{first_key} IS NULL OR ({theirs}) IS DISTINCT FROM ({ours})) AS compared
 GROUP BY kind, columns
"""

EXTRA = """
WITH extra AS (
    SELECT {key} AS key
      FROM {target} t
     WHERE NOT EXISTS (SELECT FROM {seen} s WHERE {same_key})
)
SELECT count(*), (SELECT array_agg(key::text) FROM (SELECT key FROM extra LIMIT {examples}) AS shown) FROM extra
"""


PLACE_AND_RECEIPT = """
SELECT (SELECT id FROM migration.slice
         WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND landed_at IS NOT NULL),
       EXISTS (SELECT FROM migration.loaded_file
                WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s))
"""

COMPARE_SLICES = """
WITH ours AS (SELECT {names} FROM {staging}), theirs AS ({theirs})
SELECT (SELECT count(*) FROM (TABLE ours EXCEPT ALL TABLE theirs) AS missing),
       (SELECT count(*) FROM (TABLE theirs EXCEPT ALL TABLE ours) AS extra)
"""


def _for_large_joins(cursor: Any) -> None:
    """Set, for this transaction alone, what a join of whole tables needs and one of a batch would suffer from."""
    cursor.execute(
        "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL work_mem = '256MB'; "
        "SET LOCAL statement_timeout = 0"
    )


def _extra(cursor: Any, table: Table, seen: sql.Identifier) -> Comparison:
    """Find the rows of a table whose keys are not among those seen."""
    cursor.execute(
        sql.SQL(EXTRA).format(
            target=identifier(table),
            seen=seen,
            same_key=_same_key(table),
            key=_key_document(table, "t"),
            examples=sql.Literal(EXAMPLES),
        )
    )
    count, examples = cursor.fetchone()
    difference = Difference("extra")
    return Comparison(
        found=Counter({difference: count}) if count else Counter(),
        examples=[(difference, key) for key in examples or ()],
    )


def _compare(table: Table, staging: sql.Identifier) -> sql.Composed:
    names = [column.name for column in table.columns]
    others = [name for name in names if name not in table.key]
    # A column that merges is as it should be if the row is in it already.
    ours = [merged(table, name, "t", "s") for name in others]
    differing = sql.SQL(", ").join(
        sql.SQL("CASE WHEN t.{} IS DISTINCT FROM {} THEN {} END").format(
            sql.Identifier(name), value, sql.Literal(name)
        )
        for name, value in zip(others, ours, strict=True)
    )
    newer = sql.SQL("t.{0} IS NOT NULL AND (s.{0} >= t.{0}) IS NOT TRUE").format(
        sql.Identifier(table.version or "-")
    )
    return sql.SQL(COMPARE).format(
        examples=sql.Literal(EXAMPLES),
        key=_key_document(table, "s"),
        first_key=sql.Identifier(table.key[0]),
        newer=newer if table.version else sql.SQL("false"),
        differing=differing,
        staging=staging,
        target=identifier(table),
        same_key=_same_key(table),
        theirs=_row([sql.Identifier("t", name) for name in others]),
        ours=_row(ours),
    )


def _same_key(table: Table) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in table.key)


def _key_document(table: Table, alias: str) -> sql.Composed:
    return sql.SQL("jsonb_build_object({})").format(
        sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(alias, name)) for name in table.key
        )
    )


def _row(columns: Sequence[sql.Composable]) -> sql.Composable:
    """A row of columns; of a table that is all key, one that never differs."""
    return sql.SQL("ROW({})").format(sql.SQL(", ").join(columns)) if columns else sql.SQL("1")


def _list(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
