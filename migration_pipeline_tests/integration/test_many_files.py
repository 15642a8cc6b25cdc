"""A backfill of many files: what it is still to load is launched and not loaded twice, options are taken, a stop stops."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterEvent, DagsterInstance, EventLogEntry
from dagster._core.events import StepMaterializationData
from dagster._core.storage.event_log import SqliteEventLogStorage

from migration_pipeline.defs.storage import LocalEventLog, signals_put_off
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan, plan_path, read_plan
from migration_pipeline_tests.operating import Operation, eventually, operation

FILES = 40


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    with operation(tmp_path_factory.mktemp("many"), "many-files") as (operator, _bucket):
        yield operator


@pytest.fixture(scope="module")
def plan(operator: Operation, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    export = write_sample(tmp_path_factory.mktemp("export"), items=FILES * 20, files=FILES, seed=3)
    return operator.plan("shop", str(export), "shop")


def by_state(operator: Operation, plan: Plan) -> dict[str, int]:
    states = operator.states(plan)
    return {state: states.count(state) for state in set(states)}


def test_a_second_backfill_leaves_out_what_the_first_is_still_to_load(
    operator: Operation, plan: Plan
) -> None:
    operator.hold("customers")
    operator.command("backfill", "shop")
    # The daemon has yet to make most of the runs, or all.
    assert "missing" not in by_state(operator, plan)
    again = operator.command("backfill", "shop")
    assert "nothing to launch" in again
    eventually(lambda: len(operator.runs()) == FILES, "a run for each file, and no more")
    assert "missing" not in by_state(operator, plan)


def test_stop_leaves_no_run_and_no_backfill(operator: Operation, plan: Plan) -> None:
    eventually(lambda: operator.held(), "a file waits")
    operator.command("stop", "shop")
    operator.release()
    assert {run["status"] for run in operator.runs()} <= {"CANCELED", "SUCCESS"}
    assert by_state(operator, plan).keys() <= {"stopped", "materialized"}


def test_another_number_of_files_per_run_is_taken_though_the_files_are_the_same(
    operator: Operation, plan: Plan
) -> None:
    before = len(operator.runs())
    path = plan_path(operator.home / "plans", "shop")
    # As `plan` writes it where it cannot reach this Dagster: the command that comes next sees that it is another plan.
    document = json.loads(path.read_bytes()) | {"files_per_run": FILES}
    path.write_text(json.dumps(document))
    operator.command("backfill", "shop", "--wait")
    made = [
        run for run in operator.runs()[: len(operator.runs()) - before] if "dagster/backfill" in run["tags"]
    ]
    assert len(made) == 2  # the files, and what follows them
    assert by_state(operator, read_plan(path)) == {"materialized": FILES}


def test_what_is_written_is_written_before_a_signal_raises(tmp_path: Path) -> None:
    def interrupt(_sign: int, _frame: object) -> None:
        raise RuntimeError("terminated")

    before = signal.signal(signal.SIGTERM, interrupt)
    database = sqlite3.connect(tmp_path / "some.db")
    database.execute("CREATE TABLE written (n int)")

    def write() -> None:
        with signals_put_off(), database:
            os.kill(os.getpid(), signal.SIGTERM)
            database.execute("INSERT INTO written VALUES (1)")

    try:
        with pytest.raises(RuntimeError, match="terminated"):
            write()
        assert signal.getsignal(signal.SIGTERM) is interrupt
    finally:
        signal.signal(signal.SIGTERM, before)
    assert database.execute("SELECT n FROM written").fetchall() == [(1,)]


def test_dagsters_own_storage_reads_what_the_local_one_wrote_and_goes_on(tmp_path: Path) -> None:
    events = [materialization(f"p{number}") for number in range(3)]
    folder = str(tmp_path)
    LocalEventLog(folder).store_event_batch(events)
    SqliteEventLogStorage(folder).store_event(materialization("p3"))
    LocalEventLog(folder).store_event(materialization("p4"))
    for storage in (SqliteEventLogStorage(folder), LocalEventLog(folder)):
        with DagsterInstance.ephemeral() as instance:
            storage.register_instance(instance)
            assert storage.get_materialized_partitions(AssetKey("a")) == {f"p{n}" for n in range(5)}
            assert len(storage.get_logs_for_run("run")) == 5


def materialization(partition: str) -> EventLogEntry:
    event = DagsterEvent(
        event_type_value="ASSET_MATERIALIZATION",
        job_name="job",
        step_key="step",
        event_specific_data=StepMaterializationData(AssetMaterialization("a", partition=partition), []),
    )
    return EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None, level=20, user_message="", run_id="run", timestamp=1.0, step_key="step", job_name="job",
        dagster_event=event,
    )  # fmt: skip
