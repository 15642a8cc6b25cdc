"""Compares rows with what the tables hold, and writes none: the basis of a verification.

Each batch goes into temporary tables and is joined to its tables there, set-based. The transaction is read-only by
then, so PostgreSQL itself sees to it that nothing but temporary tables is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec
from psycopg2.sql import SQL, Composable, Identifier
from typing_extensions import Self

from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.transform import Bad
from migration_pipeline.profile.aggregate import Aggregate
from migration_pipeline.profile.profile import NulPolicy
from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets.bookkeeping import ANY_LANDED, PLACE_AND_RECEIPT
from migration_pipeline.targets.catalog import TargetTable, read_target
from migration_pipeline.targets.connection import DatabaseSettings, copy_in
from migration_pipeline.targets.copy_csv import BatchEncoder, Encoded
from migration_pipeline.targets.ddl import check_bookkeeping, read_targets
from migration_pipeline.targets.expressions import exactly, name_list, names_of
from migration_pipeline.targets.halving import Writer, write_batch
from migration_pipeline.targets.landing import part_of
from migration_pipeline.targets.newest import Newest
from migration_pipeline.targets.postgres import FileIdentity, quarantined_lines
from migration_pipeline.targets.session import Session
from migration_pipeline.targets.sql import (
    EXAMPLES,
    Statements,
    compare,
    compare_slices,
    extra,
    stage,
    statements,
)
from migration_pipeline.targets.upsert import stage_rows

LEFT_OUT = "it is in the quarantine"


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


class ComparingTarget:
    """Compares rows with what the tables hold, and writes none; one for all files of a plan. Use as a context manager.

    The export's values stand in temporary tables whose types hold them exactly, and the tables' values are compared with these:
    what a column's type made of a value is found. Lines that are in the file's quarantine are left out, and
    `unaccounted` counts bad items that are not there. With `keys` the keys of all rows are kept, so that `rows_of_no_item` can
    tell which rows of a table no item makes.

    A file's rows of a landing table are compared with its slice, as a whole, with its last batch. With `newest`, for a plan with
    windows, lines of which a newer record is there are left out, and landing tables are compared as wholes by `landed`: of
    two equal rows a window takes away just one, from either slice. Raises what `PostgresTarget` raises.
    """

    def __init__(
        self,
        url: str,
        tables: Mapping[type[Row], Table],
        settings: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
        nul: NulPolicy = "quarantine",
        on_retry: Callable[[str], None] = lambda _: None,
        *,
        keys: bool = False,
        newest: Newest | None = None,
    ) -> None:
        self._tables = dict(tables)
        self._nul = nul
        self._keys = keys
        self._newest = newest
        # What outlasts a batch is in temporary tables, and these end with their transaction.
        self._held = keys or newest is not None or any(table.landing for table in self._tables.values())
        self._session = Session(url, settings, on_retry, hold=self._held)
        self.encoder = BatchEncoder({}, nul)
        """Of the tables, once they were read."""
        self._targets: dict[type[Row], TargetTable] = {}
        self._sql: dict[type[Row], Statements] = {}
        self._seen: dict[type[Row], Identifier] = {}
        """Temporary tables of the keys of all rows."""
        self._prepared = False
        self._file = FileIdentity("", "", "", "", "")
        self._in_quarantine: set[int] = set()
        self.comparisons: dict[str, Comparison] = {}
        """By the table's qualified name: of the file that was turned to last."""
        self.unaccounted = 0
        """Its items that are neither in the tables nor in the quarantine."""
        self.not_landed = False
        """Whether slices of a loaded file were dropped, as finishing does, so that there was nothing to compare."""

    def __enter__(self) -> Self:
        self._session.open()
        try:
            self._session.interruptibly(self._check)
        except BaseException:
            self._session.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._session.close(failed=error is not None)

    @property
    def retries(self) -> int:
        """Transactions that ran again so far."""
        return self._session.retries

    def stay_alive(self) -> None:
        """Nobody waits for it."""

    def cancel(self) -> None:
        """Make a `write` in another thread fail soon."""
        self._session.cancel()

    def _check(self, cursor: Any) -> None:
        check_bookkeeping(cursor)
        self._targets = read_targets(cursor, self._tables)
        self.encoder = BatchEncoder(self._targets, self._nul)
        for number, (row_class, target) in enumerate(self._targets.items()):
            self._sql[row_class] = statements(target, self._temporary(f"{number}"))
            if self._keys and not target.table.landing:
                self._seen[row_class] = self._temporary(f"seen_{number}")

    def _temporary(self, name: str) -> Identifier:
        return Identifier("pg_temp", f"migration_{self._session.token}_{name}")

    def prepare(self, work: Callable[[Any], None]) -> None:
        """Do some work in the transaction before it is read-only: `newest` is filled so."""
        self._session.interruptibly(work)

    def turn_to(self, file: FileIdentity, number: int | None = None, lines: int = 0) -> None:
        """Begin with another file, of so many lines; `number` is that of a window's file, as its records have it."""
        self._file = file
        if newest := self._newest:
            self._session.persistently(lambda cursor: newest.turn_to(cursor, number, lines))
        self.comparisons = {table.qualified: Comparison() for table in self._tables.values()}
        self.unaccounted = 0
        self._in_quarantine = {
            line for line, _ in self._session.persistently(lambda cursor: quarantined_lines(cursor, file))
        }

    # -- a batch -------------------------------------------------------------------------------------

    def write(self, batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        """Compare a batch. No receipt is written; `close` settles the account all the same."""

        def work(cursor: Any) -> tuple[list[Batch], Written, dict[str, Comparison]]:
            self._read_only(cursor)
            parts, written = self._newest.sift(cursor, batch) if self._newest else ([batch], Written())
            comparer = _Comparer(self._targets, self._sql, self._seen)
            for part in map(self._without_quarantined, parts):
                write_batch(cursor, part, comparer, written, self._session.expect_answer, batch.room)
            if close is not None and self._newest is None:
                for row_class, target in self._targets.items():
                    if target.table.landing:
                        self._compare_slice(cursor, target, self._sql[row_class].staging, comparer.found)
            return parts, written, comparer.found

        parts, written, found = self._session.persistently(work)
        self._prepared = True
        bad = [*(one for part in parts for one in part.bad), *written.refused]
        self.unaccounted += sum(one.number not in self._in_quarantine for one in bad)
        for name, comparison in found.items():
            self.comparisons[name].add(comparison)
            del self.comparisons[name].examples[EXAMPLES:]
        # A record of a window whose new state is bad is in its lines, too.
        counted = {one.number for one in bad}
        for part in parts:
            for number, line in zip(part.numbers, part.lines, strict=True):
                if number in self._in_quarantine and number not in counted:
                    written.refuse(Bad(number, line, LEFT_OUT))
        if self._newest:
            self._newest.done(batch)
        if close is not None:
            close(written)
        return written

    def _read_only(self, cursor: Any) -> None:
        """Make the transaction's temporary tables, and let it write nothing else from here on."""
        if not (self._prepared and self._held):
            for row_class, target in self._targets.items():
                cursor.execute(self._sql[row_class].stage)
                if row_class in self._seen:
                    cursor.execute(stage(target.key_fits, self._seen[row_class]))
        cursor.execute("SET TRANSACTION READ ONLY")

    def _compare_slice(
        self, cursor: Any, target: TargetTable, staging: Identifier, comparisons: dict[str, Comparison]
    ) -> None:
        """Compare a file's rows of a landing table with its slice: as often as they occur, in whatever order."""
        name = target.table.qualified
        found = comparisons.setdefault(name, Comparison())
        cursor.execute(PLACE_AND_RECEIPT, msgspec.structs.asdict(self._file))
        number, loaded = cursor.fetchone()
        if number is None and loaded:
            self.not_landed = True
            found.compared = -self.comparisons[name].compared  # none was compared, after all
        else:
            theirs = SQL("{} WHERE false").format(target.identifier)
            if number is not None and _exists(cursor, part_of(name, number)):
                theirs = SQL("{}").format(part_of(name, number))
            found.add(_multisets(cursor, target, staging, theirs))
        cursor.execute(SQL("DELETE FROM {}").format(staging))

    # -- whole tables --------------------------------------------------------------------------------

    def landed(self, table: Table, compared: int) -> Comparison:
        """Compare the rows of all files for a landing table with the table, once all were read. Needs `newest`.

        `compared` counts them.
        """
        row_class = next(row_class for row_class, each in self._tables.items() if each == table)

        def work(cursor: Any) -> Comparison:
            self._read_only(cursor)
            cursor.execute(ANY_LANDED, msgspec.structs.asdict(self._file))
            landed, loaded = cursor.fetchone()
            if loaded and not landed:
                self.not_landed = True
                return Comparison(compared=-compared)  # none was compared, after all
            _for_large_joins(cursor)
            target = self._targets[row_class]
            return _multisets(cursor, target, self._sql[row_class].staging, target.identifier)

        return self._session.persistently(work)

    def rows_of_no_item(self, table: Table) -> Comparison:
        """Find the rows of a table that no item made, once all files were compared. Needs `keys`."""
        row_class = next(row_class for row_class, each in self._tables.items() if each == table)

        def work(cursor: Any) -> Comparison:
            self._read_only(cursor)
            _for_large_joins(cursor)
            return _extra(cursor, self._targets[row_class], self._seen[row_class])

        return self._session.persistently(work)

    def aggregate(self, aggregate: Aggregate) -> Comparison:
        """Make the rows of an aggregate of what is landed, and compare them with its table."""
        made = self._temporary("aggregate")

        def work(cursor: Any) -> Comparison:
            target = read_target(aggregate.table, cursor)
            cursor.execute(stage(target.fits, made, exact=True))
            cursor.execute("SET TRANSACTION READ ONLY")
            cursor.execute(SQL("DELETE FROM {}").format(made))
            _for_large_joins(cursor)
            cursor.execute(
                SQL("INSERT INTO {} ({}) SELECT {} FROM (\n{}\n) q").format(
                    made, name_list(names_of(target.fits)), exactly(target.fits, "q"), SQL(aggregate.sql)
                )
            )
            rows = cursor.rowcount
            cursor.execute(compare(target, made))
            found = _comparison(rows, cursor.fetchall())
            found.add(_extra(cursor, target, made))
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


class _Comparer(Writer):
    """Stages encoded rows and compares them with the tables."""

    def __init__(
        self,
        targets: Mapping[type[Row], TargetTable],
        sql_of: Mapping[type[Row], Statements],
        seen: Mapping[type[Row], Identifier],
    ) -> None:
        super().__init__(targets, sql_of)
        self._seen = seen
        self.found: dict[str, Comparison] = {}

    def write(self, cursor: Any, encoded: Encoded) -> Written:
        """Stage rows and compare them."""
        written, found = encoded.account.copy(), dict[str, Comparison]()
        for row_class, data in encoded.parts:
            target, texts = self.targets[row_class], self.sql_of[row_class]
            name = self.table = target.table.qualified
            if target.table.landing:
                copy_in(cursor, texts.copy_to_staging, data)
                found[name] = Comparison(compared=written.rows[name])
                continue
            stage_rows(cursor, target, texts, data, written)
            if row_class in self._seen:
                keys = name_list(target.table.key)
                cursor.execute(
                    SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(
                        self._seen[row_class], keys, keys, texts.staging
                    )
                )
            cursor.execute(compare(target, texts.staging))
            found[name] = _comparison(written.rows[name], cursor.fetchall())
        for name, comparison in found.items():  # of all tables, as the rows of one alone may be refused
            self.found.setdefault(name, Comparison()).add(comparison)
        return written


def _multisets(cursor: Any, target: TargetTable, staging: Identifier, theirs: Composable) -> Comparison:
    """Compare staged rows with landed ones, as often as they occur."""
    cursor.execute(compare_slices(target, staging, theirs))
    missing, extra = cursor.fetchone()
    counts = Counter({Difference("missing"): missing, Difference("extra"): extra})
    return Comparison(found=+counts)


def _exists(cursor: Any, name: Identifier) -> bool:
    cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (name.as_string(cursor),))
    return bool(cursor.fetchone()[0])


def _comparison(rows: int, groups: Sequence[tuple[Any, ...]]) -> Comparison:
    made = Comparison(compared=rows)
    for kind, columns, count, keys in groups:
        difference = Difference(kind, tuple(columns))
        made.found[difference] += count
        made.examples += [(difference, key) for key in keys]
    return made


def _extra(cursor: Any, target: TargetTable, seen: Identifier) -> Comparison:
    """Find the rows of a table whose keys are not among those seen."""
    cursor.execute(extra(target, seen))
    count, examples = cursor.fetchone()
    difference = Difference("extra")
    return Comparison(
        found=Counter({difference: count}) if count else Counter(),
        examples=[(difference, key) for key in examples or ()],
    )


def _for_large_joins(cursor: Any) -> None:
    """Set, for this transaction alone, what a join of whole tables needs and one of a batch would suffer from."""
    cursor.execute(
        "SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on; SET LOCAL work_mem = '256MB'; "
        "SET LOCAL statement_timeout = 0"
    )
