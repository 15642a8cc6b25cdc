"""A replica is promoted in the middle of a load: what it has not got of the former writer is told, and loaded again."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, quote, urlsplit

import psycopg2
import pytest

from migration_pipeline import Item, Row
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.aggregate_part import PartMaker
from migration_pipeline.targets.aggregation import (
    AggregateIdentity,
    AggregateRun,
    AggregateSettings,
    LandedFile,
)
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.postgres import PostgresTarget
from migration_pipeline.targets.session import LostCommitsError, Session
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import write_export
from migration_pipeline_tests.operating import eventually
from migration_pipeline_tests.replica import Replica
from migration_pipeline_tests.servers import pooled

log = logging.getLogger("test")
LOST = "the database no longer has what was committed here"


class ThingItem(Item):
    k: str
    v: int


class Thing(Row, table="things", key="k"):
    k: str
    v: int


profile = Profile("things")


@profile.route()
def thing(item: ThingItem) -> Thing:
    """A row an item; nothing lands."""
    return Thing(item.k, item.v)


ITEMS = 1_200
BATCH = 100


class Pair:
    """A writer and its replica, which may take its place."""

    def __init__(self, folder: Path) -> None:
        self.writer = EmbeddedPostgres(folder / "writer", {"fsync": "off"})
        self.replica = Replica(folder / "replica", self.writer)

    @property
    def url(self) -> str:
        """Leads to whichever of the two takes writes."""
        at = [parse_qs(urlsplit(each.url).query) for each in (self.writer, self.replica)]
        hosts, ports = (",".join(each[name][0] for each in at) for name in ("host", "port"))
        return f"postgresql://postgres@/postgres?host={quote(hosts, safe='/,')}&port={ports}"

    def catch_up(self) -> None:
        """Wait until the replica has all that the writer has."""
        ((written,),) = query(self.writer.url, "SELECT pg_current_wal_flush_lsn()")
        reached = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
        eventually(lambda: query(self.replica.url, reached) == [(True,)], "the replica has all")

    def cut_off(self) -> None:
        """From now on the replica gets nothing more."""
        self.catch_up()
        execute(self.replica.url, "ALTER SYSTEM SET primary_conninfo = ''")
        execute(self.replica.url, "SELECT pg_reload_conf()")
        receivers = "SELECT count(*) FROM pg_stat_wal_receiver"
        eventually(lambda: query(self.replica.url, receivers) == [(0,)], "the replica is cut off")

    def fail_over(self) -> None:
        """End the writer as if its machine had failed, and promote the replica."""
        self.writer.stop("immediate")
        assert query(self.replica.url, "SELECT pg_promote()") == [(True,)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with contextlib.ExitStack() as ends:
        made = Pair(tmp_path)
        for server in (made.writer, made.replica):
            ends.callback(server.remove)
            server.start()
        yield made


@pytest.fixture
def plan(pair: Pair, tmp_path: Path) -> Plan:
    """Two files, and the tables for them."""
    create_tables(pair.writer.url, profile.all_tables)
    items: list[dict[str, Any]] = [{"k": {"S": str(n)}, "v": {"N": str(n)}} for n in range(ITEMS)]
    folder = write_export(tmp_path / "export", [items[: ITEMS // 2], items[ITEMS // 2 :]])
    return make_plan(profile, "things", [read_export(str(folder), Storage())])


@contextlib.contextmanager
def striking(strikes: dict[int, Callable[[], None]]) -> Iterator[None]:
    """Do something once so many batches are committed; 0 is the last one of the first file."""
    number, write = 0, PostgresTarget.write

    def struck(target: PostgresTarget, batch: Batch, close: Any = None) -> Written:
        nonlocal number
        written = write(target, batch, close)
        number += 1
        strikes.pop(number if close is None else 0, lambda: None)()
        return written

    with mock.patch.object(PostgresTarget, "write", struck):
        yield


def load(plan: Plan, url: str, retried: list[str]) -> list[str]:
    """Load all files in one run, as Dagster's does; gives the errors of those that failed."""
    errors, settings = [], LoadSettings(batch_items=BATCH)
    with Loader(plan, profile, url, "run", settings, DatabaseSettings(retry_seconds=30), None) as loader:
        for file in plan.files:
            try:
                loader.load(file, log, lambda _: None, retried.append)
            except DatabaseError as error:
                errors.append(str(error))
    return errors


def loaded(url: str) -> set[str]:
    return {file for (file,) in query(url, "SELECT file FROM migration.loaded_file WHERE items = loaded")}


def whole(url: str) -> bool:
    return query(url, "SELECT count(*), count(DISTINCT v), min(v), max(v) FROM things WHERE k = v::text") == [
        (ITEMS, ITEMS, 0, ITEMS - 1)
    ]


def test_a_load_goes_on_where_the_replica_has_all(pair: Pair, plan: Plan) -> None:
    retried: list[str] = []

    def fail_over() -> None:
        pair.catch_up()
        pair.fail_over()

    with striking({3: fail_over}):
        assert load(plan, pair.url, retried) == []
    assert retried
    assert whole(pair.replica.url)
    assert loaded(pair.replica.url) == {each.file.name for each in plan.files}


def test_batches_that_the_replica_never_had_fail_their_file(pair: Pair, plan: Plan) -> None:
    """It had a receipt of all its items, and a hole of three batches."""
    retried: list[str] = []
    with striking({2: pair.cut_off, 5: pair.fail_over}):
        (error,) = load(plan, pair.url, retried)
    assert error.startswith(LOST)
    assert retried
    first, second = plan.files
    assert loaded(pair.replica.url) == {second.file.name}
    assert load(plan, pair.url, retried) == []
    assert whole(pair.replica.url)
    assert loaded(pair.replica.url) == {first.file.name, second.file.name}


def test_a_file_whose_receipt_is_lost_is_told_by_the_next_one(pair: Pair, plan: Plan) -> None:
    """Dagster has taken note of the first by then: that the database lost it, the second one says, which lost nothing of its own."""
    retried: list[str] = []
    with striking({3: pair.cut_off, 0: pair.fail_over}):
        (error,) = load(plan, pair.url, retried)
    assert error.startswith(LOST)
    assert error.endswith(f"what this run had loaded before: {plan.files[0].file.name}")
    assert loaded(pair.replica.url) == set()
    assert load(plan, pair.url, retried) == []
    assert whole(pair.replica.url)


def test_a_file_that_was_loaded_again_is_as_it_was_before_and_named(pair: Pair, plan: Plan) -> None:
    """Its older receipt is back as well, so that nothing else would tell."""
    retried: list[str] = []
    assert load(plan, pair.url, retried) == []
    execute(pair.writer.url, "UPDATE things SET v = -1")
    with striking({1: pair.cut_off, 0: pair.fail_over}):
        (error,) = load(plan, pair.url, retried)
    assert error.endswith(f"what this run had loaded before: {plan.files[0].file.name}")
    assert loaded(pair.replica.url) == {each.file.name for each in plan.files}
    assert load(plan, pair.url, retried) == []
    assert whole(pair.replica.url)


def test_commits_whose_answers_are_lost_count(database_url: str) -> None:
    """So one of them that is gone later is missed, too."""
    create_tables(database_url, [])
    tries = 0

    def lost(cursor: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            cursor.connection.commit()
            raise psycopg2.OperationalError("the answer was lost")

    with Session(database_url, DatabaseSettings(retry_seconds=30), chain=True) as session:
        session.persistently(lambda _: None)
        session.persistently(lost)
        assert tries == 2
        assert session.committed == 3
        execute(database_url, "UPDATE migration.session SET transactions = 2")
        with pytest.raises(LostCommitsError, match="lacks 1 transaction,"):
            session.persistently(lambda _: None)


def test_the_former_writer_lacks_what_its_successor_has(pair: Pair, plan: Plan) -> None:
    """Both took writes: nobody kept the former one from coming back."""
    retried: list[str] = []

    def fail_over() -> None:
        pair.catch_up()
        pair.fail_over()

    def come_back() -> None:
        pair.replica.stop()
        pair.writer.start()

    with striking({2: fail_over, 4: come_back}):
        (error,) = load(plan, pair.url, retried)
    assert error.startswith(LOST)
    assert load(plan, pair.url, retried) == []
    assert whole(pair.writer.url)


class Switch:
    """Leads to the writer, and later to its replica, by a name that stays."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self._pair, self._name = pair, folder / "switch"
        self._turn(pair.writer)

    def _turn(self, server: EmbeddedPostgres) -> None:
        at = parse_qs(urlsplit(server.url).query)["host"][0]
        self._name.unlink(missing_ok=True)
        self._name.symlink_to(at)
        self.url = server.url.replace(quote(at), quote(str(self._name)))

    def fail_over(self) -> None:
        self._pair.fail_over()
        self._turn(self._pair.replica)


def test_behind_a_pooler_that_nobody_sees_fail(pair: Pair, plan: Plan) -> None:
    """PgBouncer takes another server for the next transaction, and its client's connection stays."""
    with contextlib.ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory(dir="/tmp")))
        folder.chmod(0o755)
        switch = Switch(pair, folder)
        pool = ends.enter_context(pooled(switch, folder / "pool", "transaction"))  # type: ignore[arg-type]
        retried: list[str] = []
        with striking({2: pair.cut_off, 5: switch.fail_over}):
            (error,) = load(plan, pool, retried)
        assert error.startswith(LOST)
        assert not retried
        assert load(plan, pool, retried) == []
        assert whole(pair.replica.url)


shop = load_profile("shop")


def aggregate(plan: Plan, url: str, told: list[str]) -> None:
    files = [LandedFile(each.export_id, each.file.name, each.file.md5) for each in plan.files]
    settings = AggregateSettings(part_rows=100, sessions=1)
    identity, patience = AggregateIdentity("shop", "1", "run"), DatabaseSettings(retry_seconds=30)
    AggregateRun(url, shop.aggregates[0], files, identity, settings, patience, told.append).run()


@pytest.fixture
def landed(pair: Pair, shop_export: Path) -> Plan:
    create_tables(pair.writer.url, shop.all_tables)
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    with Loader(plan, shop, pair.url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        for file in plan.files:
            loader.load(file, log, lambda _: None, log.warning)
    return plan


@pytest.mark.parametrize("after", ["between two parts", "before the receipt"])
def test_parts_of_an_aggregate_that_the_replica_never_had(pair: Pair, landed: Plan, after: str) -> None:
    """Any of its sessions may have made them, and another one writes the receipt."""
    made, make, close, run_it = 0, PartMaker.make, AggregateRun._close, AggregateRun._run

    def making(maker: PartMaker, cursor: Any, *rest: Any) -> Any:
        nonlocal made
        made += 1
        if made == 3:
            if after == "before the receipt":  # only the other session's transactions are lost
                eventually(lambda: runs[0]._all_sessions[0].committed == 6, "the groups are counted")
            pair.cut_off()
        if made == 6 and after == "between two parts":
            pair.fail_over()
        return make(maker, cursor, *rest)

    runs: list[AggregateRun] = []

    def running(run: AggregateRun) -> Any:
        runs.append(run)
        return run_it(run)

    def closing(run: AggregateRun, *rest: Any) -> None:
        if after == "before the receipt" and pair.writer.running:
            pair.fail_over()
        close(run, *rest)

    told: list[str] = []
    with (
        mock.patch.object(PartMaker, "make", making),
        mock.patch.object(AggregateRun, "_close", closing),
        mock.patch.object(AggregateRun, "_run", running),
        pytest.raises(DatabaseError, match=LOST),
    ):
        aggregate(landed, pair.url, told)
    rows = "SELECT count(*) FROM customer_activity"
    receipts = "SELECT rows FROM migration.aggregate"
    assert query(pair.replica.url, receipts) == []
    aggregate(landed, pair.url, told)
    assert query(pair.replica.url, receipts) == query(pair.replica.url, rows)


def test_steps_of_finishing_that_the_replica_never_had(pair: Pair, landed: Plan) -> None:
    told: list[str] = []

    def say(what: str) -> None:
        told.append(what)
        if what.startswith("sequences of"):
            pair.cut_off()
        if what.startswith("statistics of"):
            pair.fail_over()

    with pytest.raises(DatabaseError, match=LOST):
        finish(pair.url, shop, drop_landing=False, say=say)
    finish(pair.url, shop, drop_landing=False)
