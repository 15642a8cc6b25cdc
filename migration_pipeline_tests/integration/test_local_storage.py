"""The local stack's storage: a write is not cut off, Dagster's own storage reads it, and a killed process leaves a whole log."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dagster import AssetKey, AssetMaterialization, DagsterEvent, DagsterInstance, EventLogEntry
from dagster._core.events import StepMaterializationData
from dagster._core.storage.event_log import SqliteEventLogStorage

from migration_pipeline.defs.storage import LocalEventLog, signals_put_off


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


def materialization(partition: str, run: str = "run") -> EventLogEntry:
    event = DagsterEvent(
        event_type_value="ASSET_MATERIALIZATION",
        job_name="job",
        step_key="step",
        event_specific_data=StepMaterializationData(AssetMaterialization("a", partition=partition), []),
    )
    return EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None, level=20, user_message="", run_id=run, timestamp=1.0, step_key="step", job_name="job",
        dagster_event=event,
    )  # fmt: skip


WRITES = """
import sys
from migration_pipeline.defs.storage import LocalEventLog
from migration_pipeline_tests.integration.test_local_storage import materialization
number = 0
while True:
    storage = LocalEventLog(sys.argv[1])
    for _ in range(20):
        storage.store_event(materialization(f"p{number}", f"run-{number // 3}"))
        number += 1
        print(number, flush=True)
"""
"""Runs of three events each, until it is killed."""


def test_what_was_stored_outlasts_a_kill_in_the_middle_of_anything(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        for _ in range(100):
            last = process.stdout.readline()
        time.sleep(0.01)
        process.kill()
        stored = int(([last, *process.stdout.read().split()])[-1])
    for storage in (SqliteEventLogStorage(str(tmp_path)), LocalEventLog(str(tmp_path))):
        with DagsterInstance.ephemeral() as instance:
            storage.register_instance(instance)
            found = storage.get_materialized_partitions(AssetKey("a"))
            assert found >= {f"p{number}" for number in range(stored)}
            for run in range(stored // 3):
                assert len(storage.get_logs_for_run(f"run-{run}")) == 3
