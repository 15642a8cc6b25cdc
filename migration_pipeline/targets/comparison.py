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

from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.report import FileReport
from migration_pipeline.engine.transform import Bad
from migration_pipeline.profile import NulPolicy
from migration_pipeline.row import Row, Table
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.ddl import qualified
from migration_pipeline.targets.postgres import Encoded, FileIdentity, PostgresTarget

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

    Raises what `PostgresTarget` raises.
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
        self._constraints = constraints
        self._keys = keys
        self._session: Any = None
        self._in_quarantine: set[int] = set()
        self._batch: dict[str, Comparison] = {}
        self.comparisons: dict[str, Comparison] = {}
        """By the table's qualified name: of the file that was turned to last."""
        self.unaccounted = 0
        """Its items that are neither in the tables nor in the quarantine."""

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
            self._make_tables(cursor)
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            written = Written()
            self._load(cursor, kept, batch.room, written)
            return written

        self._rows_are_new = False  # they are staged, and joined
        written = self._persistently(work)
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
        number = list(self._tables.values()).index(table)
        statement = sql.SQL(EXTRA).format(
            target=_name(table),
            seen=sql.Identifier("pg_temp", f"seen_{number}"),
            same_key=_same_key(table),
            key=_key_document(table, "t"),
            examples=sql.Literal(EXAMPLES),
        )

        def work(cursor: Any) -> Comparison:
            if self._connection is not self._session:
                raise DatabaseError(
                    "the connection was lost, and the keys that were seen with it: verify again"
                )
            cursor.execute("SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on")
            cursor.execute("SET LOCAL statement_timeout = 0; SET TRANSACTION READ ONLY")
            cursor.execute(statement)
            count, examples = cursor.fetchone()
            difference = Difference("extra")
            return Comparison(
                found=Counter({difference: count}),
                examples=[(difference, key) for key in examples or ()],
            )

        return self._persistently(work)

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

    def _make_tables(self, cursor: Any) -> None:
        """Make the temporary tables of a session; its first transaction is not read-only yet."""
        if self._connection is self._session:
            return
        if self._keys and self._session is not None:
            raise DatabaseError("the connection was lost, and the keys that were seen with it: verify again")
        for number, table in enumerate(self._tables.values()):
            staging = sql.Identifier(f"compared_{number}")
            like = "INCLUDING CONSTRAINTS INCLUDING INDEXES" if self._constraints else ""
            cursor.execute(
                sql.SQL("CREATE TEMP TABLE {staging} (LIKE {target} {like}) ON COMMIT DELETE ROWS").format(
                    staging=staging, target=_name(table), like=sql.SQL(like)
                )
            )
            # Columns that the profile does not write have their defaults, which must not be drawn from here.
            for column in self._other_columns(cursor, table):
                drop = sql.SQL("ALTER TABLE {staging} DROP COLUMN {column} CASCADE")
                cursor.execute(drop.format(staging=staging, column=sql.Identifier(column)))
            if self._keys:
                cursor.execute(
                    sql.SQL("CREATE TEMP TABLE {seen} AS SELECT {key} FROM {target} WITH NO DATA").format(
                        seen=sql.Identifier(f"seen_{number}"), key=_list(table.key), target=_name(table)
                    )
                )
        # Committed by itself: a transaction that fails later must not take the tables with it.
        cursor.execute("COMMIT")
        cursor.execute("BEGIN")
        self._session = self._connection

    def _other_columns(self, cursor: Any, table: Table) -> list[str]:
        cursor.execute(OTHER_COLUMNS, (qualified(table), [column.name for column in table.columns]))
        return [name for (name,) in cursor.fetchall()]

    def _table_of(self, error: psycopg2.Error) -> str | None:
        tables = list(self._tables.values())
        name = error.diag.table_name or ""
        return tables[int(name.removeprefix("compared_"))].qualified if name.startswith("compared_") else None

    def _upsert(self, cursor: Any, encoded: Encoded) -> int:
        """Stage rows and compare them; gives the number of those that replace others."""
        changed = 0
        for row_class, data in encoded.parts:
            table = self._tables[row_class]
            number = list(self._tables).index(row_class)
            staging = sql.Identifier("pg_temp", f"compared_{number}")
            cursor.execute(sql.SQL("DELETE FROM {}").format(staging))
            copy = sql.SQL("COPY {} ({}) FROM STDIN WITH ({})").format(
                staging, _list(column.name for column in table.columns), sql.SQL(COPY_OPTIONS)
            )
            cursor.copy_expert(copy, io.BytesIO(data), len(data))
            if self._keys:
                keep = sql.SQL("INSERT INTO {} SELECT {} FROM {}")
                cursor.execute(
                    keep.format(sql.Identifier("pg_temp", f"seen_{number}"), _list(table.key), staging)
                )
            cursor.execute(_compare(table, staging))
            found = _comparison(encoded.rows[table.qualified], cursor.fetchall())
            self._batch[table.qualified].add(found)
            changed += found.count("different")
        return changed


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


def _compare(table: Table, staging: sql.Identifier) -> sql.Composed:
    names = [column.name for column in table.columns]
    others = [name for name in names if name not in table.key]
    differing = sql.SQL(", ").join(
        sql.SQL("CASE WHEN t.{0} IS DISTINCT FROM s.{0} THEN {1} END").format(
            sql.Identifier(name), sql.Literal(name)
        )
        for name in others
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
        target=_name(table),
        same_key=_same_key(table),
        theirs=_row(others, "t"),
        ours=_row(others, "s"),
    )


def _name(table: Table) -> sql.Identifier:
    return sql.Identifier(*(part for part in (table.schema, table.name) if part))


def _same_key(table: Table) -> sql.Composed:
    return sql.SQL(" AND ").join(sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in table.key)


def _key_document(table: Table, alias: str) -> sql.Composed:
    return sql.SQL("jsonb_build_object({})").format(
        sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(alias, name)) for name in table.key
        )
    )


def _row(names: Sequence[str], alias: str) -> sql.Composed:
    """A row of columns; of a table that is all key, one that never differs."""
    columns = [sql.Identifier(alias, name) for name in names]
    return sql.SQL("ROW({})").format(sql.SQL(", ").join(columns)) if columns else sql.Composed([sql.SQL("1")])


def _list(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
