"""Runs on Celery workers: two machines, a real Redis, Dagster's storage in PostgreSQL, and deploy/celery/dagster.yaml."""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from migration_pipeline.defs.celery_launcher import WORKER_TAG
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_load import load
from migration_pipeline_tests.machines import Machine, machines
from migration_pipeline_tests.operating import Operation, eventually, operation
from migration_pipeline_tests.oracle import actual, checksum, expected
from migration_pipeline_tests.servers import Redis, redis

TOP = Path(__file__).parents[2]
FILES = 16
LOADED = FILES - 1  # one file of a sample is empty, and is not asked for
TABLES = ("customers", "orders", "order_lines", "shop_events")
POLL_SECONDS = 3
"""Between two looks of the run monitoring; 30 as it is shipped."""

CHANGES = {
    "poll_interval_seconds: 30": f"poll_interval_seconds: {POLL_SECONDS}",
    "cancel_timeout_seconds: 120": "cancel_timeout_seconds: 20",
    "max_concurrent_runs: 64": "max_concurrent_runs: 10",
}

LOCKED = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)


class Fleet:
    """An operation with two machines of workers."""

    def __init__(
        self, operator: Operation, workers: list[Machine], broker: Redis, plan: Plan, checksums: list[str]
    ) -> None:
        self.operator = operator
        self.workers = workers
        self.broker = broker
        self.plan = plan
        self._checksums = checksums

    def start(self, worker: Machine) -> None:
        worker.start(self.operator.environment)

    def launch(self, files: int = LOADED) -> str:
        full = [planned.partition for planned in self.plan.files if planned.file.items][:files]
        return self.operator.launch(self.plan, tables=TABLES, partitions=full)

    def running(self, backfill: str) -> list[dict[str, Any]]:
        """Give the runs that a worker has."""
        return [run for run in self.operator.runs(backfill) if run["status"] == "STARTED"]

    def held(self, files: int) -> None:
        """Wait until so many files wait in the middle of their load."""
        eventually(lambda: len(self.operator.held()) == files, f"{files} files are held")

    def statuses(self, backfill: str) -> list[str]:
        return [run["status"] for run in self.operator.runs(backfill)]

    def ends(self, backfill: str, status: str = "COMPLETED_SUCCESS") -> None:
        eventually(lambda: self.operator.backfill_status(backfill) == status, f"the backfill is {status}")

    def machine_of(self, run: dict[str, Any]) -> Machine:
        return next(each for each in self.workers if run["tags"][WORKER_TAG].startswith(each.name))

    def assert_loaded(self, files: int) -> None:
        """The tables are those of a load of the first files in one process, and each file has one receipt."""
        with contextlib.closing(psycopg2.connect(self.operator.database_url)) as connection:
            assert checksum(connection) == self._checksums[files]
        receipts = "SELECT count(*), count(DISTINCT file) FROM migration.loaded_file"
        assert query(self.operator.database_url, receipts) == [(files, files)]


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("celery")
    export = write_sample(folder, items=16_000, files=FILES, seed=31)
    databases = {}
    for name in ("celery_dagster", "celery_target", "celery_faultless"):
        execute(postgres.url, f"CREATE DATABASE {name}")
        databases[name] = postgres.url.replace("/postgres?", f"/{name}?")
    execute(databases["celery_faultless"], ddl(load_profile("shop").all_tables))
    found, checksums = read_export(str(export), Storage()), [""]
    with contextlib.closing(psycopg2.connect(databases["celery_faultless"])) as connection:
        connection.autocommit = True
        for file in (each for each in found.files if each.items):
            load(databases["celery_faultless"], found, file)
            checksums.append(checksum(connection))
        assert actual(connection) == expected(export)[0]

    settings = (TOP / "deploy" / "celery" / "dagster.yaml").read_text()
    for shipped, here in CHANGES.items():
        assert shipped in settings
        settings = settings.replace(shipped, here)
    with machines(folder, 2) as (workers, address), redis(folder / "redis", address) as broker:
        for home in (folder, *(worker.folder for worker in workers)):
            (home / "dagster").mkdir()
            (home / "dagster" / "dagster.yaml").write_text(settings)
        with operation(
            folder,
            "celery-exports",
            address,
            DAGSTER_HOME=str(folder / "dagster"),
            DAGSTER_PG_URL=databases["celery_dagster"].replace("postgresql:", "postgresql+psycopg2:"),
            DAGSTER_LOGS_BUCKET="celery-exports",
            CELERY_BROKER_URL=broker.url,
            MIGRATION_PLANS="s3://celery-exports/plans",
            MIGRATION_DATABASE_URL=databases["celery_target"],
        ) as (operator, bucket):
            plan = operator.plan("shop", bucket.upload(export), "shop")
            assert [planned.file.name for planned in plan.files] == [file.name for file in found.files]
            shutil.rmtree(export)
            yield Fleet(operator, workers, broker, plan, checksums)


@pytest.fixture
def fleet(shared: Fleet) -> Fleet:
    """Both workers up, and nothing loaded."""
    for worker in shared.workers:
        worker.kill()
        shared.start(worker)
    execute(
        shared.operator.database_url,
        "TRUNCATE customers, orders, order_lines, landing.shop_events, migration.loaded_file",
    )
    return shared


def test_two_workers_load_what_one_would_and_the_rest_waits_in_the_queue(fleet: Fleet) -> None:
    operator = fleet.operator
    operator.hold("customers")
    backfill = fleet.launch()
    fleet.held(2)
    # Ten might run, and two have a place: the others are in Dagster's queue, where they can wait, and be canceled.
    time.sleep(2 * POLL_SECONDS)
    assert sorted(set(fleet.statuses(backfill))) == ["QUEUED", "STARTED"]
    assert fleet.statuses(backfill).count("STARTED") == 2
    # A daemon that comes back goes on with them.
    before = {run["id"] for run in fleet.running(backfill)}
    with operator.without("daemon"):
        pass
    time.sleep(4 * POLL_SECONDS)
    assert {run["id"] for run in fleet.running(backfill)} == before
    operator.release()
    fleet.ends(backfill)
    runs = operator.runs(backfill)
    assert [run["status"] for run in runs] == ["SUCCESS"] * LOADED
    assert {fleet.machine_of(run).name for run in runs} == {"worker-0", "worker-1"}
    fleet.assert_loaded(LOADED)


def test_a_machine_that_is_gone_in_mid_file(fleet: Fleet) -> None:
    operator = fleet.operator
    operator.hold("customers")
    backfill = fleet.launch(5)
    fleet.held(2)
    lost = fleet.running(backfill)[0]
    fleet.machine_of(lost).kill()
    other = fleet.running(backfill)[1]
    eventually(lambda: "FAILURE" in fleet.statuses(backfill), "the run is called failed")
    operator.release()
    eventually(lambda: set(fleet.statuses(backfill)) == {"FAILURE", "SUCCESS"}, "all else is loaded")
    runs = {run["id"]: run for run in operator.runs(backfill)}
    assert [run for run in runs.values() if run["status"] == "FAILURE"] == [runs[lost["id"]]]
    (again,) = (run for run in runs.values() if run["tags"].get("dagster/parent_run_id") == lost["id"])
    assert fleet.machine_of(again) is fleet.machine_of(other)
    assert len(runs) == 6
    fleet.assert_loaded(5)


def test_a_worker_that_falls_silent_and_still_loads_does_no_harm(fleet: Fleet) -> None:
    """The file is loaded twice at once: nobody can tell such a worker from one that is gone."""
    operator = fleet.operator
    operator.hold("customers")
    backfill = fleet.launch(1)
    fleet.held(1)
    (silent,) = fleet.running(backfill)
    fleet.machine_of(silent).worker().send_signal(signal.SIGSTOP)
    eventually(lambda: "FAILURE" in fleet.statuses(backfill), "the run is called failed")
    # The other worker is at the same file, and waits for what the first one has written.
    eventually(lambda: query(operator.database_url, LOCKED) == [(1,)], "another worker loads the file, too")
    (again,) = fleet.running(backfill)
    assert fleet.machine_of(again) is not fleet.machine_of(silent)
    operator.release()
    eventually(lambda: fleet.statuses(backfill) == ["SUCCESS"] * 2, "both end: the first one was not dead")
    fleet.assert_loaded(1)


def test_a_broker_that_forgets_everything_costs_no_file(fleet: Fleet) -> None:
    operator = fleet.operator
    operator.hold("customers")
    backfill = fleet.launch(4)
    fleet.held(2)
    fleet.broker.kill()
    operator.release()
    eventually(lambda: fleet.statuses(backfill).count("SUCCESS") == 2, "files that are loading go on")
    time.sleep(2 * POLL_SECONDS)
    fleet.broker.start()
    fleet.ends(backfill)
    fleet.assert_loaded(4)


def test_what_is_terminated_stays_canceled(fleet: Fleet) -> None:
    operator = fleet.operator
    operator.hold("customers")
    backfill = fleet.launch(4)
    fleet.held(2)
    runs = operator.runs(backfill)
    chosen = [next(run["id"] for run in runs if run["status"] == status) for status in ("STARTED", "QUEUED")]
    for run in chosen:
        operator.terminate(run)
    operator.release()

    def canceled() -> bool:
        return {run["id"] for run in operator.runs(backfill) if run["status"] == "CANCELED"} == set(chosen)

    eventually(canceled, "both are canceled")
    eventually(
        lambda: sorted(fleet.statuses(backfill)) == ["CANCELED"] * 2 + ["SUCCESS"] * 2, "others are loaded"
    )
    time.sleep(3 * POLL_SECONDS)
    assert len(operator.runs(backfill)) == 4, "nothing is started again"
    assert canceled()


def test_stop_stops(fleet: Fleet) -> None:
    operator = fleet.operator
    operator.hold("customers")
    backfill = fleet.launch()
    fleet.held(2)
    operator.command("stop", "shop")
    eventually(lambda: set(fleet.statuses(backfill)) == {"CANCELED"}, "all are canceled")
    operator.release()
    time.sleep(3 * POLL_SECONDS)
    assert set(fleet.statuses(backfill)) == {"CANCELED"}
    assert query(operator.database_url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]
