"""The throttle, on a real streaming replica: loads wait for it, and end as if they had not."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import psycopg2
import pytest
from click.testing import CliRunner
from dagster._core.events import AssetObservationData

from migration_pipeline.cli import main
from migration_pipeline.cli.terminal import how_far
from migration_pipeline.defs.config import load_config
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.engine.pace import Pause
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.names import FileProgress
from migration_pipeline.migration.plan import Plan, make_plan, throttle_of
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.operations.running import RunningFile
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets import throttle as throttling
from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, LandedFile
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.records import Steering
from migration_pipeline.targets.steering import look, read_steerings, steer
from migration_pipeline.targets.throttle import FilePace, Throttle, ThrottleSettings
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.oracle import checksum

SHOP = load_profile("shop")
OFF = ThrottleSettings()
SECONDS = 30.0
numbers = count(1)


@pytest.fixture
def url(primary: EmbeddedPostgres) -> str:
    """A database with the shop's tables on the primary."""
    name = f"throttled_{next(numbers)}"
    execute(primary.url, f"CREATE DATABASE {name}")
    made = primary.url.replace("/postgres?", f"/{name}?")
    execute(made, ddl(SHOP.all_tables))
    return made


@pytest.fixture
def plan(shop_export: Path) -> Plan:
    return make_plan(SHOP, "shop", [read_export(str(shop_export), Storage())])


class Load(threading.Thread):
    """Loads a plan's files in a thread of its own."""

    def __init__(self, plan: Plan, url: str, settings: ThrottleSettings = OFF, batch: int = 100) -> None:
        super().__init__(daemon=True)
        self.plan = plan
        self.url = url
        self.settings = settings
        self.batch = batch
        self.pauses: list[tuple[float, Pause]] = []
        self.reports: list[FileReport] = []
        self.error: MigrationError | None = None

    def run(self) -> None:
        log = logging.getLogger("throttled")
        log.setLevel(logging.CRITICAL)
        with (
            closing(Throttle(self.url, "shop", self.settings)) as throttle,
            Loader(
                self.plan,
                SHOP,
                self.url,
                "test",
                LoadSettings(batch_items=self.batch),
                DatabaseSettings(),
                None,
                throttle,
            ) as loader,
        ):
            try:
                for planned in self.plan.files:
                    self.reports.append(
                        loader.load(planned, log, lambda _: None, lambda _: None, self._paused)
                    )
            except MigrationError as error:
                self.error = error

    def _paused(self, pause: Pause) -> None:
        self.pauses.append((time.monotonic(), pause))

    def reasons(self) -> list[str]:
        return [pause.why for _, pause in self.pauses]

    def end(self) -> list[FileReport]:
        self.join(SECONDS)
        assert not self.is_alive(), self.reasons()
        if self.error:
            raise self.error
        return self.reports


def until(true: Callable[[], object], what: str, seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def items_written(url: str) -> int:
    """Rows that are committed, of all tables and slices."""
    ((rows,),) = query(
        url,
        "SELECT (SELECT count(*) FROM customers) + (SELECT count(*) FROM orders) + (SELECT count(*) FROM order_lines)",
    )
    return int(rows)


def state(url: str) -> str:
    """A checksum of all tables."""
    with closing(psycopg2.connect(url)) as connection:
        return checksum(connection)


@pytest.fixture(scope="module")
def unthrottled(primary: EmbeddedPostgres, shop_export: Path) -> str:
    """What the tables hold after a load that nothing slows down."""
    execute(primary.url, "CREATE DATABASE unthrottled")
    url = primary.url.replace("/postgres?", "/unthrottled?")
    execute(url, ddl(SHOP.all_tables))
    load = Load(make_plan(SHOP, "shop", [read_export(str(shop_export), Storage())]), url)
    load.start()
    load.end()
    assert not load.pauses
    return state(url)


@contextmanager
def busy(url: str, number: int) -> Iterator[None]:
    """So many backends that wait, as an application's would."""
    held = [psycopg2.connect(url) for _ in range(number)]
    threads = [threading.Thread(target=_sleep, args=(each,), daemon=True) for each in held]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for each, thread in zip(held, threads, strict=True):
            each.cancel()
            thread.join()
            each.close()


def _sleep(connection: Any) -> None:
    with pytest.raises(psycopg2.errors.QueryCanceled):
        connection.cursor().execute("SELECT pg_sleep(60)")


def set_by(**values: Any) -> Callable[[Steering], Steering]:
    return lambda _: Steering(changed_by="ada@desk", **values)


def test_loading_pauses_while_replay_is_paused_and_ends_the_same(
    url: str, plan: Plan, replica: EmbeddedPostgres, unthrottled: str
) -> None:
    limit = ThrottleSettings(max_lag_seconds=0.8)
    load = Load(plan, url, limit, batch=20)
    execute(replica.url, "SELECT pg_wal_replay_pause()")
    try:
        execute(url, "CREATE TABLE noise AS SELECT generate_series(1, 10)")
        until(lambda: (look(url, "shop", limit).lag_seconds or 0) > 0.8, "lag does not rise")
        load.start()
        until(lambda: load.pauses, "it does not pause")
        assert "a replica is" in load.reasons()[0]
        before = items_written(url)
        time.sleep(1.5)
        assert items_written(url) == before
        assert load.is_alive()
    finally:
        execute(replica.url, "SELECT pg_wal_replay_resume()")
    reports = load.end()
    assert sum(report.throttled.get("replica lag", 0) for report in reports) > 1
    assert state(url) == unthrottled
    kept = query(url, "SELECT sum((throttled ->> 'replica lag')::float8) FROM migration.loaded_file")
    assert kept[0][0] > 1


def test_a_slow_replay_slows_the_load_and_no_more(
    url: str, plan: Plan, replica: EmbeddedPostgres, unthrottled: str
) -> None:
    execute(replica.url, "ALTER SYSTEM SET recovery_min_apply_delay = '1500ms'")
    execute(replica.url, "SELECT pg_reload_conf()")
    try:
        load = Load(plan, url, ThrottleSettings(max_lag_seconds=0.7), batch=1000)
        execute(url, "CREATE TABLE noise AS SELECT generate_series(1, 10)")
        until(lambda: look(url, "shop", load.settings).kind, "lag does not rise")
        load.start()
        reports = load.end()
    finally:
        execute(replica.url, "ALTER SYSTEM RESET recovery_min_apply_delay")
        execute(replica.url, "SELECT pg_reload_conf()")
    assert sum(report.throttled.get("replica lag", 0) for report in reports) > 0
    assert "" in load.reasons()  # it went on
    assert state(url) == unthrottled


def test_an_idle_replica_has_no_lag(url: str, replica: EmbeddedPostgres) -> None:
    settings = ThrottleSettings(max_lag_seconds=0.001)
    until(lambda: look(url, "shop", settings).lag_seconds == 0, "the idle replica lags")
    assert look(url, "shop", settings).kind == ""


def test_a_critical_lag_fails_the_file_and_a_rerun_completes_it(
    url: str, plan: Plan, replica: EmbeddedPostgres, unthrottled: str
) -> None:
    limits = ThrottleSettings(max_lag_seconds=0.2, critical_lag_seconds=1)
    execute(replica.url, "SELECT pg_wal_replay_pause()")
    try:
        execute(url, "CREATE TABLE noise AS SELECT generate_series(1, 10)")
        until(lambda: look(url, "shop", limits).kind, "lag does not rise")
        load = Load(plan, url, limits, batch=100)
        load.start()
        with pytest.raises(MigrationError, match=r"overloaded.*critical_lag_seconds = 1.*run it again"):
            load.end()
    finally:
        execute(replica.url, "SELECT pg_wal_replay_resume()")
    until(lambda: not look(url, "shop", limits).kind, "lag does not fall")
    again = Load(plan, url)
    again.start()
    again.end()
    assert state(url) == unthrottled


def test_active_backends_pause_the_load_and_ours_do_not_count(url: str, plan: Plan) -> None:
    settings = ThrottleSettings(max_active=1)
    with busy(url, 2):
        until(lambda: look(url, "shop", settings).active == 2, "they are not seen")
        load = Load(plan, url, settings)
        load.start()
        until(lambda: load.pauses, "it does not pause")
        assert load.reasons() == ["2 active backends, more than 1"]
        time.sleep(1.2)
        assert items_written(url) == 0
    load.end()
    assert load.reasons()[-1] == ""


def test_too_many_active_backends_fail_the_file(url: str, plan: Plan) -> None:
    with busy(url, 2):
        until(lambda: look(url, "shop", ThrottleSettings(max_active=1)).active == 2, "they are not seen")
        load = Load(plan, url, ThrottleSettings(critical_active=1))
        load.start()
        with pytest.raises(MigrationError, match="2 active backends, more than critical_active = 1"):
            load.end()
    assert query(url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]


def test_a_query_of_the_user_pauses_the_load(url: str, plan: Plan) -> None:
    execute(url, "CREATE TABLE hold (reason text); INSERT INTO hold VALUES ('secret')")
    load = Load(plan, url, ThrottleSettings(throttle_query="SELECT count(*) FROM hold"))
    load.start()
    until(lambda: load.pauses, "it does not pause")
    time.sleep(1.2)
    assert items_written(url) == 0
    execute(url, "TRUNCATE hold")
    assert sum(report.throttled.get("query", 0) for report in load.end()) > 1
    assert load.reasons() == ["throttle_query does not return 0", ""]


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("SELECT 'secret'", "must return one number"),
        ("SELECT", "must return one number"),
        ("SELECT 1, 2", "must return one number"),
        ("SELECT generate_series(0, 1)", "must return one number"),
        ("SELECT NULL::int", "must return one number"),
        ("DELETE FROM orders RETURNING 0", "25006"),
        ("SELECT no_such()", "42883"),
    ],
)
def test_a_query_that_cannot_be_used_is_told_before_any_work(
    url: str, plan: Plan, statement: str, fault: str
) -> None:
    settings = ThrottleSettings(throttle_query=statement)
    throttle = Throttle(url, "shop", settings, DatabaseSettings(retry_seconds=0))
    with closing(throttle), pytest.raises(MigrationError, match=fault) as caught:
        throttle.open()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("limit", [ThrottleSettings(max_lag_seconds=5), ThrottleSettings(max_active=20)])
def test_without_pg_monitor_nothing_is_begun(url: str, plan: Plan, limit: ThrottleSettings) -> None:
    role = f"loader_{next(numbers)}"
    execute(
        url,
        f"CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public, landing, migration TO {role}",
    )
    execute(url, f"GRANT USAGE, CREATE ON SCHEMA public, landing, migration TO {role}")
    load = Load(plan, url.replace("postgres@", f"{role}@"), limit)
    load.start()
    with pytest.raises(MigrationError, match=f"cannot be read: .*GRANT pg_monitor TO {role}"):
        load.end()
    assert items_written(url) == 0
    with pytest.raises(MigrationError, match="GRANT pg_monitor"):
        steer(load.url, "shop", ThrottleSettings(), set_by(max_active=5))
    assert read_steerings(url, "shop") == []
    execute(url, f"GRANT pg_monitor TO {role}")
    assert look(load.url, "shop", limit).kind == ""


def test_on_aurora_its_own_function_tells_the_lag(url: str) -> None:
    execute(url, "SET allow_system_table_mods = on; CREATE FUNCTION pg_catalog.aurora_replica_status() RETURNS TABLE "
            "(session_id text, replica_lag_in_msec float8, last_update_timestamp timestamptz) LANGUAGE sql AS $$ VALUES "
            "('MASTER_SESSION_ID', 9e9, now()), ('a', 20.0, now()), ('b', 2500.0, now()), "
            "('gone', 8e9, now() - interval '301 s') $$")  # fmt: skip
    reading = look(url, "shop", ThrottleSettings(max_lag_seconds=2))
    assert reading.lag_seconds == 2.5
    assert reading.why == "a replica is 2.5 s behind, more than 2 s"
    assert look(url, "shop", ThrottleSettings(max_lag_seconds=2.6)).kind == ""


def test_an_operator_pauses_and_resumes_a_running_load_within_two_seconds(
    url: str, plan: Plan, unthrottled: str
) -> None:
    steer(url, "shop", ThrottleSettings(), set_by(items_per_second=600))
    load = Load(plan, url, batch=10)
    load.start()
    until(lambda: items_written(url), "it does not begin")
    asked = time.monotonic()
    steer(url, "shop", ThrottleSettings(), set_by(paused=True, items_per_second=600))
    until(
        lambda: any(why.startswith("paused by ada@desk at ") for why in load.reasons()), "it does not pause"
    )
    assert load.pauses[-1][0] - asked < 2
    before = items_written(url)
    time.sleep(1.2)
    assert items_written(url) == before
    asked = time.monotonic()
    steer(url, "shop", ThrottleSettings(), set_by())
    until(lambda: items_written(url) > before, "it does not go on")
    assert time.monotonic() - asked < 2
    reports = load.end()
    assert sum(report.throttled.get("paused", 0) for report in reports) > 1
    assert state(url) == unthrottled
    assert [each.paused for each in read_steerings(url, "shop")] == [False, True, False]


def test_files_share_one_rate(url: str, plan: Plan) -> None:
    steer(url, "shop", ThrottleSettings(), set_by(items_per_second=1500))
    loads = [Load(plan, url, batch=50) for _ in range(2)]  # of the same files: harmless, and twice the items
    began = time.monotonic()
    for load in loads:
        load.start()
    written = sum(report.loaded for load in loads for report in load.end())
    seconds = time.monotonic() - began
    assert written / seconds < 1500 * 1.1
    assert all(sum(report.throttled.get("rate", 0) for report in load.reports) > 1 for load in loads)
    assert len(loads[0].pauses) < 10, "a line for every batch"


def test_with_a_rate_a_batch_has_the_items_of_some_seconds_at_most(
    url: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = """
    SELECT max(rows) FROM (SELECT count(*) AS rows
      FROM (SELECT xmin FROM customers UNION ALL SELECT xmin FROM orders UNION ALL SELECT xmin FROM order_lines) r
     GROUP BY xmin) b"""
    monkeypatch.setattr(throttling, "SECONDS_OF_A_BATCH", 0.02)
    for rate, least, most in ((None, 31, 200), (1500, 1, 30)):
        steer(url, "shop", ThrottleSettings(), set_by(items_per_second=rate))
        load = Load(plan, url, batch=200)
        load.start()
        load.end()
        assert least <= query(url, largest)[0][0] <= most
        execute(url, "TRUNCATE customers, orders, order_lines, migration.loaded_file")


def test_a_load_that_waits_is_not_taken_for_dead(
    url: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttling, "STAY_ALIVE_SECONDS", 0.1)
    steer(url, "shop", ThrottleSettings(), set_by(items_per_second=600))
    load = Load(plan, url, batch=10)
    load.start()
    alive = "SELECT max(alive_until) FROM migration.slice WHERE landed_at IS NULL"
    until(lambda: query(url, alive)[0][0], "no slice")
    steer(url, "shop", ThrottleSettings(), set_by(paused=True))
    until(lambda: any(why.startswith("paused") for why in load.reasons()), "it does not pause")
    before = query(url, alive)
    until(lambda: query(url, alive) > before, "it says nothing")
    steer(url, "shop", ThrottleSettings(), set_by())
    load.end()


def test_a_load_that_waits_can_be_stopped(url: str) -> None:
    steer(url, "shop", ThrottleSettings(), set_by(paused=True))
    with closing(Throttle(url, "shop")) as throttle:
        throttle.open()
        pace = FilePace(throttle)
        threading.Timer(0.3, pace.cancel).start()
        began = time.monotonic()
        with pytest.raises(MigrationError, match="stopped"):
            pace.wait(1, lambda: None)
        assert time.monotonic() - began < 2


def test_aggregates_and_finishing_wait_as_well(url: str, plan: Plan) -> None:
    load = Load(plan, url)
    load.start()
    load.end()
    files = [LandedFile(each.export_id, each.file.name, each.file.md5) for each in plan.files]
    steer(url, "shop", ThrottleSettings(), set_by(paused=True))
    with closing(Throttle(url, "shop")) as throttle:
        throttle.open()
        pace, told = FilePace(throttle), list[str]()
        run = AggregateRun(url, SHOP.aggregates[0], files, AggregateIdentity("shop", "1", "test"), pace=pace)
        works = [
            threading.Thread(target=run.run, daemon=True),
            threading.Thread(target=finish, args=(url, SHOP, False), kwargs={"pace": FilePace(throttle), "say": told.append}, daemon=True),
        ]  # fmt: skip
        for work in works:
            work.start()
        time.sleep(1.5)
        assert query(url, "SELECT count(*) FROM customer_activity") == [(0,)]
        assert told == []
        steer(url, "shop", ThrottleSettings(), set_by())
        for work in works:
            work.join(SECONDS)
        assert query(url, "SELECT count(*) > 0 FROM customer_activity") == [(True,)]
        assert told
        assert pace.throttled["paused"] > 1


def test_a_target_that_does_not_answer_pauses_a_load_with_limits(
    url: str, primary: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttling, "BLIND_SECONDS", 0.5)
    execute(url, "CREATE TABLE hold (n int)")
    settings = ThrottleSettings(throttle_query="SELECT count(*) FROM hold")
    with closing(Throttle(url, "shop", settings, DatabaseSettings(retry_seconds=4))) as throttle:
        throttle.open()
        execute(url, "DROP TABLE hold")
        until(lambda: throttle.reading.kind == "unknown", "it goes on blindly")
        until(lambda: throttle.reading.critical, "it never fails")
        assert "42P01" in throttle.reading.critical
        execute(url, "CREATE TABLE hold (n int)")
        until(lambda: not (throttle.reading.kind or throttle.reading.critical), "it stays blind")


def test_the_command_shows_and_changes(
    url: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_PLANS", str(tmp_path))
    monkeypatch.setenv("MIGRATION_DATABASE_URL", url)
    write_plan(plan, tmp_path)

    def call(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["throttle", "shop", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    assert "now: nothing is in the way\nreplica lag: no limit\n" in call()
    assert "replica lag: at most 5 s" in call("--max-lag", "5s")
    shown = call("--pause", "--max-active", "20", "--rate", "20000")
    assert "now: paused by " in shown
    assert "replica lag: at most 5 s; the slowest replica is" in shown
    assert "active backends: at most 20; 0 are active" in shown
    assert "items a second: at most 20,000" in shown
    assert call() == shown or "now: paused by " in call()
    assert "now: nothing is in the way" in call("--resume")
    assert "replica lag: at most 0.25 s" in call("--max-lag", "250ms")
    assert "active backends: no limit" in call("--max-active", "off", "--rate", "default")
    last = read_steerings(url, "shop")[-1]
    assert (last.max_active, last.items_per_second, last.max_lag_seconds) == (0, None, 0.25)
    assert "@" in last.changed_by
    call("--pause", "--resume", code=2)
    call("--max-lag", "soon", code=2)
    call("--rate", "1.5", code=2)
    assert len(read_steerings(url, "shop")) == 5


def test_a_plan_has_defaults_that_the_run_config_shows(shop_export: Path) -> None:
    exports = [read_export(str(shop_export), Storage())]
    made = make_plan(SHOP, "shop", exports, throttle={"max_lag_seconds": "5", "max_active": "20"})
    assert throttle_of(made) == ThrottleSettings(max_lag_seconds=5, max_active=20)
    config = load_config(made, SHOP)()
    assert config.throttle == throttle_of(made)
    assert config.load == LoadSettings()
    for wrong in ({"max_lag": "5"}, {"max_active": "-1"}, {"max_lag_seconds": "soon"}):
        with pytest.raises(UsageError, match="the throttle"):
            make_plan(SHOP, "shop", exports, throttle=wrong)


def test_a_run_tells_what_it_waits_for(url: str, plan: Plan) -> None:
    planned = max(plan.files, key=lambda each: each.file.items)
    own = "SELECT (now() < backend_start + interval '2 s')::int FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    config = {"throttle_query": own, "items_per_second": 100_000}
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            migration_assets(plan, SHOP),
            instance=instance,
            partition_key=planned.partition,
            resources={"database": Database(url=url)},
            run_config={"ops": {"shop_load": {"config": config}}},
        )
    assert result.success
    told = [
        msgspec.convert({name: value.value for name, value in data.asset_observation.metadata.items()}, FileProgress)
        for data in (each.event_specific_data for each in result.all_events)
        if isinstance(data, AssetObservationData)
    ]  # fmt: skip
    assert [each.throttled for each in told] == ["throttle_query does not return 0", ""]
    assert told[1].throttled_seconds > 1
    (made,) = result.asset_materializations_for_node("shop_load")[:1]
    assert made.metadata["throttled_seconds"].value == pytest.approx(told[1].throttled_seconds, abs=0.2)
    running = RunningFile(planned=planned, run_id="r", started=0, throttled=told[0].throttled)
    assert how_far(running) == "started, throttled: throttle_query does not return 0"
