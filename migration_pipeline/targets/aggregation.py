"""Makes the rows of an aggregate from landing tables: set-based, range by range of the key.

Each range is one transaction. If the table has no rows of a range yet, the result of the profile's SELECT is inserted
directly; else it fills a temporary table, and its rows that are new or different are upserted. So a run that ends early
leaves complete rows, and the next one finds them unchanged. The receipt is written last, if there are as many rows as
groups and no slice was replaced meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from psycopg2.sql import SQL, Composable, Identifier

from migration_pipeline.engine.pace import Pace, Unpaced
from migration_pipeline.engine.threads import together
from migration_pipeline.errors import MigrationError
from migration_pipeline.profile.aggregate import Aggregate
from migration_pipeline.profile.row import Table
from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.aggregate_part import Bounds, PartMaker, PartReport
from migration_pipeline.targets.catalog import SchemaError, TargetTable, identifier, read_target
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import check_bookkeeping
from migration_pipeline.targets.expressions import name_list
from migration_pipeline.targets.landing import part_of
from migration_pipeline.targets.records import AggregateReport, md5_of_files
from migration_pipeline.targets.session import Session
from migration_pipeline.targets.shape import FirstTrigger, Shape
from migration_pipeline.units import counted, some_of, some_that

FILES_SHOWN = 20
"""Files not landed that an error names at most; their number is always complete."""


MAX_STATISTICS_TARGET = 10_000
"""PostgreSQL's own limit."""

FEW_ROWS = 50_000
"""Landed rows up to which one transaction is as quick as several."""

POOL_SECONDS = 10.0
"""How long to wait for the connections that would be used at once."""

DROPPED_AT_ONCE = 100
"""Slices that one transaction drops: each takes some of the server's locks."""


class AggregateSettings(msgspec.Struct, frozen=True):
    """Settings that an operator may tune. Only `delete_rows` changes the result."""

    part_rows: Annotated[
        int,
        Meta(
            gt=0,
            description="Landed rows that one transaction aggregates, about. The key is split into ranges accordingly; each "
            "transaction reads all landed rows to find its own.",
        ),
    ] = 1_500_000
    sessions: Annotated[
        int,
        Meta(
            gt=0,
            description="Transactions at once, each on its own connection; one more counts the groups.",
        ),
    ] = 2
    work_mem_mb: Annotated[
        int,
        Meta(
            gt=0,
            description="work_mem of these connections, in megabytes of the database server's memory.",
        ),
    ] = 64
    parallel_workers: Annotated[
        int,
        Meta(
            ge=0,
            description="max_parallel_workers_per_gather of these connections. PostgreSQL uses them where rows are compared "
            "with those of the table; it never makes an INSERT of new ones parallel.",
        ),
    ] = 2
    delete_rows: Annotated[
        bool, Meta(description="Delete rows of the table that no landed row makes any more.")
    ] = False


class LandedFile(msgspec.Struct, frozen=True):
    """A file that an aggregate is made of, and its MD5 in the plan."""

    export_id: str
    file: str
    md5: str
    window: bool = False
    """Whether it is of a window."""


class AggregateIdentity(msgspec.Struct, frozen=True):
    """What the receipt is filed under, and who made it."""

    profile: str
    profile_version: str
    run_id: str


class AggregateRun:
    """Makes an aggregate once. `files` are all that have to be landed, and all that may be."""

    def __init__(
        self,
        url: str,
        aggregate: Aggregate,
        files: Sequence[LandedFile],
        identity: AggregateIdentity,
        settings: AggregateSettings = AggregateSettings(),  # noqa: B008  # frozen
        database: DatabaseSettings = DatabaseSettings(statement_timeout_seconds=3600),  # noqa: B008
        say: Callable[[str], None] = lambda _: None,
        pace: Pace = Unpaced(),  # noqa: B008  # has no state
    ) -> None:
        self._aggregate = aggregate
        self._files = files
        if any(file.window for file in files):  # a group may be gone with its last item
            settings = msgspec.structs.replace(settings, delete_rows=True)
        self._identity = identity
        self._settings = settings
        self._say = say
        self._pace = pace
        self._name = aggregate.table.qualified
        self._all_sessions = [
            Session(url, database, on_retry=lambda what: say(f"{self._name}: {what}"), chain=True)
            for _ in range(settings.sessions + 1)
        ]
        self._sessions = self._all_sessions[:]
        self._making: tuple[TargetTable, Shape, PartMaker]
        """Once the table was read."""
        self._groups = 0

    def run(self) -> AggregateReport:
        """Make the rows, and write the receipt. Raises `MigrationError`; rows that were made until then stay.

        It does so when a file is not landed, and names it; and when groups and rows are not as many.
        """
        try:
            with contextlib.ExitStack() as stack:
                for session in self._all_sessions:
                    stack.enter_context(session)
                return self._run()
        except SchemaError:
            raise
        except MigrationError as error:
            raise error.reworded(f"aggregate {self._name}: {error}") from None

    def _run(self) -> AggregateReport:
        began = time.monotonic()
        first = self._sessions[0]
        first.interruptibly(self._check_tables)
        self._use_those_that_connect()
        while first.interruptibly(self._drop_others):
            pass
        slices = first.interruptibly(self._landed)
        rows = sum(counts[source.qualified] for _, counts in slices for source in self._aggregate.sources)
        wanted = self._wanted_parts(rows)
        first.interruptibly(lambda cursor: self._analyze(cursor, wanted))
        parts = first.interruptibly(lambda cursor: self._making[-1].split(cursor, wanted))
        self._say(
            f"{self._name}: {counted(rows, 'landed row')} of {counted(len(slices), 'file')}, in {counted(len(parts), 'part')}"
        )
        made = self._make_all(parts)
        report = AggregateReport(
            files=len(self._files),
            groups=self._groups,
            rows=sum(each.rows for each in made),
            new=sum(each.new for each in made),
            changed=sum(each.changed for each in made),
            deleted=sum(each.deleted for each in made),
            rounded=dict(sum((Counter(each.rounded) for each in made), Counter())),
            parts=len(parts),
            retries=sum(session.retries for session in self._sessions),
            seconds=time.monotonic() - began,
        )
        first.interruptibly(lambda cursor: self._close(cursor, slices, report))
        return report

    # -- before ----------------------------------------------------------------------------------

    def _check_tables(self, cursor: Any) -> None:
        """Compare tables and bookkeeping with the catalog."""
        check_bookkeeping(cursor)
        for source in self._aggregate.sources:
            read_target(source, cursor)
        shape = Shape(cursor, [self._aggregate.table])
        self._make_as(read_target(self._aggregate.table, cursor), shape)

    def _make_as(self, target: TargetTable, shape: Shape) -> None:
        """Make parts so from now on. Both at once, as several sessions make them."""
        maker = PartMaker(self._aggregate, target, delete_rows=self._settings.delete_rows)
        self._making = target, shape, maker

    def _use_those_that_connect(self) -> None:
        """Drop the sessions that get no connection: a pool may have fewer connections than we want.

        Waiting for one while holding another that somebody else waits for could be a deadlock.
        """
        ready, reasons = {id(self._all_sessions[0])}, list[str]()

        def connect(session: Session) -> None:
            try:
                session.persistently(lambda _: None)
                ready.add(id(session))
            except DatabaseError as error:
                reasons.append(str(error))

        others = self._all_sessions[1:]
        threads = [threading.Thread(target=connect, args=(each,), daemon=True) for each in others]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + POOL_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._sessions = [session for session in self._all_sessions if id(session) in ready]
        for session in others:
            if session not in self._sessions:
                session.cancel()
                session.close(failed=True)
        if len(self._sessions) < len(self._all_sessions):
            why = next(iter(reasons), "there are no more to be had")
            self._say(f"{self._name}: goes on with {counted(len(self._sessions), 'connection')}: {why}")

    def _drop_others(self, cursor: Any) -> bool:
        """Drop landed rows of files that are not in the plan, some at a time; returns whether there were any."""
        ours = {(file.export_id, file.file) for file in self._files}
        cursor.execute(bookkeeping.LANDED_FILES, (self._identity.profile,))
        others = [row for row in cursor.fetchall() if (row[0], row[1]) not in ours][:DROPPED_AT_ONCE]
        for _, file, _, number, counts in others:
            cursor.execute(bookkeeping.FORGET_SLICE, (number,))
            for landing in counts:  # those of other aggregates, too: nothing knows of them any more
                cursor.execute(SQL("DROP TABLE IF EXISTS {}").format(part_of(landing, number)))
            self._say(f"{self._name}: dropped what was landed of {file}, which the plan no longer has")
        return bool(others)

    def _landed(self, cursor: Any) -> list[tuple[int, dict[str, int]]]:
        """Return the slices of the plan's files: ids, and rows by landing table. Raises `MigrationError` if one is missing."""
        wanted = {(file.export_id, file.file): file.md5 for file in self._files}
        names = {source.qualified for source in self._aggregate.sources}
        slices, there = [], set()
        cursor.execute(bookkeeping.LANDED_FILES, (self._identity.profile,))
        for export_id, file, md5, number, counts in cursor.fetchall():
            if md5 == wanted.get((export_id, file)) and names <= counts.keys():
                slices.append((number, counts))
                there.add((export_id, file))
        missing = [file.file for file in self._files if (file.export_id, file.file) not in there]
        if missing:
            more = f" and {len(missing) - FILES_SHOWN:,} more" if len(missing) > FILES_SHOWN else ""
            raise MigrationError(
                f"{some_that(len(missing), len(self._files), 'file', 'is', 'are')} not landed in "
                f"{', '.join(sorted(names))}: {', '.join(missing[:FILES_SHOWN])}{more}; load them, then run it again"
            )
        return slices

    def _wanted_parts(self, rows: int) -> int:
        """In how many ranges to make so many landed rows: one for each session at least, so that all are busy to the end."""
        wanted = -(-rows // self._settings.part_rows)
        sessions = self._settings.sessions
        return -(-wanted // sessions) * sessions if wanted > 1 or rows > FEW_ROWS else 1

    def _analyze(self, cursor: Any, parts: int) -> None:
        """Gather statistics of the landing tables, for the planner and to split the key into ranges.

        Nothing else gathers statistics of a landing table as a whole.
        """
        # The sample has 300 rows a range. A few ranges a part tell them apart, and 100, the default, take longer.
        ranges = min(max(25, 4 * parts), MAX_STATISTICS_TARGET)
        cursor.execute("SELECT set_config('default_statistics_target', %s, true)", (str(ranges),))
        # Since version 18 ANALYZE looks at each slice, too, unless told not to.
        only = SQL("ONLY " if cursor.connection.server_version >= 180000 else "")
        for source in self._aggregate.sources:
            columns = SQL(", ").join(map(Identifier, self._aggregate.by))
            cursor.execute(SQL("ANALYZE {}{} ({})").format(only, identifier(source), columns))

    def _count_groups(self, cursor: Any) -> None:
        """Count the distinct keys in the landing tables, whatever the profile's SELECT makes of them."""
        self._tune(cursor)
        # The parts keep the other cores busy. On one, sorting takes half the time of a hash table so large.
        cursor.execute("SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL enable_hashagg = off")
        by = self._aggregate.by
        keys = SQL(" UNION ALL ").join(
            SQL("SELECT {} FROM {}").format(
                SQL(", ").join(_sortable(source, name) for name in by), identifier(source)
            )
            for source in self._aggregate.sources
        )
        cursor.execute(
            SQL("SELECT count(*) FROM (SELECT FROM ({}) k GROUP BY {}) g").format(keys, name_list(by))
        )
        (self._groups,) = cursor.fetchone()

    def _tune(self, cursor: Any) -> None:
        """Set, for this transaction alone, what a large SELECT needs and a small upsert would suffer from."""
        for name, value in (
            ("work_mem", f"{self._settings.work_mem_mb}MB"),
            ("max_parallel_workers_per_gather", str(self._settings.parallel_workers)),
            ("enable_hashjoin", "on"),
            ("enable_mergejoin", "on"),
        ):
            cursor.execute("SELECT set_config(%s, %s, true)", (name, value))

    # -- the parts -------------------------------------------------------------------------------

    def _make_all(self, parts: Sequence[Bounds]) -> list[PartReport]:
        """Make all parts and count the groups, some at once, each session in a thread of its own."""
        made, told = list[PartReport](), 0

        def count(session: Session) -> None:
            session.persistently(self._count_groups)

        def make(bounds: Bounds, session: Session) -> None:
            def work(cursor: Any) -> PartReport:
                _, shape, maker = self._making
                self._tune(cursor)
                report = maker.make(cursor, bounds, session.token)
                shape.check(cursor)
                return report

            self._pace.wait(0, lambda: None)
            try:
                report = session.persistently(work)
            except FirstTrigger as found:
                target, shape, _ = self._making
                self._make_as(
                    msgspec.structs.replace(target, triggers=True), shape.with_triggers(found.tables)
                )
                report = session.persistently(work)
            made.append(report)

        def run(session: Session, tasks: Iterable[Callable[[Session], None]]) -> None:
            for task in tasks:
                task(session)

        def tell() -> None:
            nonlocal told
            if len(made) > told and len(parts) > 1:
                told = len(made)
                rows = sum(each.rows for each in made)
                self._say(f"{self._name}: {some_of(told, len(parts), 'part')}, {counted(rows, 'row')}")

        # An iterator, which threads may share. To count beside the parts, not before them, keeps all cores busy.
        left = iter([partial(make, bounds) for bounds in parts])
        tasks: list[Iterable[Callable[[Session], None]]]
        tasks = [[count], *[left] * len(parts)] if len(self._sessions) > 1 else [chain([count], left)]
        works = [partial(run, *each) for each in zip(self._sessions, tasks, strict=False)]
        together(works, self._cancel, "aggregate", tell)
        return made

    def _cancel(self) -> None:
        self._pace.cancel()
        for session in self._sessions:
            session.cancel()

    # -- after -----------------------------------------------------------------------------------

    def _close(self, cursor: Any, slices: Sequence[Any], report: AggregateReport) -> None:
        """Write the receipt, if everything adds up."""
        for session in self._sessions[1:]:  # this transaction is of the first
            session.expect_commits(cursor)
        # Receipts have the clock's time, of when they are written and not of when their transaction began: so later ones are
        # later.
        cursor.execute(bookkeeping.HOLD_SLICES)
        cursor.execute(bookkeeping.LANDED_FILES, (self._identity.profile,))
        if [(number, counts) for _, _, _, number, counts in cursor.fetchall()] != list(slices):
            raise MigrationError("files were loaded again while the aggregate was being made; run it again")
        if report.groups != report.rows:
            raise MigrationError(
                f"{counted(report.groups, 'group')} of landed rows became {counted(report.rows, 'row')}: its SQL "
                f"({self._aggregate.path.name}) must make one row for each group; leave items out in the "
                "route instead"
            )
        receipt = bookkeeping.parameters(
            self._identity,
            report,
            unchanged=report.unchanged,
            table_name=self._name,
            sql_md5=self._aggregate.sql_md5,
            files_md5=md5_of_files((file.export_id, file.file) for file in self._files),
        )
        cursor.execute(bookkeeping.KEEP_AGGREGATE, receipt)


def _sortable(table: Table, name: str) -> Composable:
    """A column, texts in the order of their bytes: any order tells them apart, and this one is quick."""
    pg_type = next(column.pg_type for column in table.columns if column.name == name)
    return SQL('{0} COLLATE "C" AS {0}' if pg_type == "text" else "{0}").format(Identifier(name))
