"""The check of a run's health, against a real gRPC server that answers as a code server may."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from dagster import (
    DagsterEvent,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DagsterRunStatus,
    EventLogEntry,
)
from dagster._core.launcher import WorkerStatus
from dagster._core.test_utils import create_run_for_test
from dagster._grpc import client
from dagster._grpc.__generated__ import dagster_api_pb2
from dagster._grpc.__generated__.dagster_api_pb2_grpc import (
    DagsterApiServicer,
    add_DagsterApiServicer_to_server,
)
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import serialize_value

from migration_pipeline.defs import launcher as launching
from migration_pipeline.defs.launcher import CheckedRunLauncher
from migration_pipeline.defs.metadata import FILE_TAG


class CodeServer(DagsterApiServicer):
    """Says that it has `runs`, after some seconds."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.seconds = 0.0

    def GetCurrentRuns(self, _request: Any, _context: Any) -> Any:
        time.sleep(self.seconds)
        result = GetCurrentRunsResult(current_runs=self.runs, serializable_error_info=None)
        return dagster_api_pb2.GetCurrentRunsReply(serialized_current_runs=serialize_value(result))


Serve = Callable[[Any], Any]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "code-server.sock")


@pytest.fixture
def serve(address: str) -> Iterator[Serve]:
    servers = []

    def start(servicer: Any) -> Any:
        server = grpc.server(ThreadPoolExecutor(2))
        add_DagsterApiServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        server.add_insecure_port(f"unix:{address}")
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop(None)


@pytest.fixture
def instance() -> Iterator[DagsterInstance]:
    with DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def launcher(instance: DagsterInstance) -> CheckedRunLauncher:
    made = CheckedRunLauncher()
    made.register_instance(instance)
    return made


@pytest.fixture
def run(instance: DagsterInstance, address: str) -> DagsterRun:
    where = json.dumps({"host": "localhost", "socket": address})
    tags = {".dagster/grpc_info": where}
    made: DagsterRun = create_run_for_test(instance, status=DagsterRunStatus.STARTED, tags=tags)
    return made


@pytest.fixture
def run_of_files(instance: DagsterInstance, run: DagsterRun) -> DagsterRun:
    instance.add_run_tags(run.run_id, {FILE_TAG: "0001_a"})
    made = instance.get_run_by_id(run.run_id)
    assert made
    return made


def write(instance: DagsterInstance, run: DagsterRun, minutes_ago: float, *, start: bool = False) -> None:
    """Write a line into a run's log, or that the run has started, as its worker did some time ago."""
    written = time.time() - 60 * minutes_ago
    event = DagsterEvent(DagsterEventType.RUN_START.value, run.job_name) if start else None
    entry = EventLogEntry(None, "INFO", "45%", run.run_id, written, None, run.job_name, event)  # type: ignore[no-untyped-call]
    instance.store_event(entry)


def statuses(launcher: CheckedRunLauncher, run: DagsterRun, checks: int) -> list[WorkerStatus]:
    return [launcher.check_run_worker_health(run).status for _ in range(checks)]


def test_a_run_that_its_code_server_has_lives(
    launcher: CheckedRunLauncher, run: DagsterRun, serve: Serve
) -> None:
    server = CodeServer()
    server.runs = [run.run_id]
    serve(server)
    assert launcher.supports_check_run_worker_health
    assert statuses(launcher, run, 3) == [WorkerStatus.RUNNING] * 3


def test_a_run_that_its_code_server_does_not_have_is_dead_at_the_second_look(
    launcher: CheckedRunLauncher, run: DagsterRun, serve: Serve
) -> None:
    serve(CodeServer())
    assert statuses(launcher, run, 2) == [WorkerStatus.RUNNING, WorkerStatus.NOT_FOUND]


def test_a_code_server_that_is_gone_is_a_miss_as_well(launcher: CheckedRunLauncher, run: DagsterRun) -> None:
    assert statuses(launcher, run, 2) == [WorkerStatus.RUNNING, WorkerStatus.NOT_FOUND]


def test_misses_count_in_a_row_only(launcher: CheckedRunLauncher, run: DagsterRun, serve: Serve) -> None:
    server = CodeServer()
    serve(server)
    for _ in range(3):
        assert statuses(launcher, run, 1) == [WorkerStatus.RUNNING]
        server.runs = [run.run_id]
        assert statuses(launcher, run, 1) == [WorkerStatus.RUNNING]
        server.runs = []


def test_a_run_that_writes_to_its_log_lives_whatever_its_code_server_says(
    launcher: CheckedRunLauncher, run: DagsterRun, instance: DagsterInstance
) -> None:
    for _ in range(4):
        instance.report_engine_event("half of the file is loaded", run)
        assert statuses(launcher, run, 1) == [WorkerStatus.RUNNING]
    assert statuses(launcher, run, 1) == [WorkerStatus.NOT_FOUND]


def test_a_code_server_that_is_busy_is_no_miss(
    launcher: CheckedRunLauncher, run: DagsterRun, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    query: Any = client.DagsterGrpcClient._query
    monkeypatch.setattr(
        client.DagsterGrpcClient, "_query", lambda *args, **options: query(*args, timeout=0.2, **options)
    )
    server = CodeServer()
    server.seconds = 1.0
    serve(server)
    assert statuses(launcher, run, 3) == [WorkerStatus.RUNNING] * 3


def test_a_code_server_that_cannot_tell_fails_no_run(
    launcher: CheckedRunLauncher, run: DagsterRun, serve: Serve
) -> None:
    serve(DagsterApiServicer())  # as `dagster code-server start` answers this question
    assert statuses(launcher, run, 3) == [WorkerStatus.RUNNING] * 3


def test_a_run_of_another_launcher_is_left_alone(
    launcher: CheckedRunLauncher, instance: DagsterInstance
) -> None:
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    assert statuses(launcher, run, 3) == [WorkerStatus.RUNNING] * 3


@pytest.mark.parametrize(
    ("started", "silent", "alive"),
    [
        (60, 31, False),
        (58, 29, True),  # a statement and its tries may take long
        (90, 40, True),  # its gaps have grown
        (600, 301, False),
        (600, 299, True),
        (31, 31, False),  # it has written nothing but that it started
    ],
)
def test_a_run_of_files_that_its_code_server_goes_on_listing_is_dead_once_its_log_is_silent_for_long(
    launcher: CheckedRunLauncher,
    run_of_files: DagsterRun,
    instance: DagsterInstance,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    started: float,
    silent: float,
    alive: bool,
) -> None:
    monkeypatch.setattr(launching, "WATCHED_SECONDS", 0.0)
    server = CodeServer()
    server.runs = [run_of_files.run_id]
    serve(server)
    write(instance, run_of_files, started, start=True)
    write(instance, run_of_files, silent)
    if alive:
        assert statuses(launcher, run_of_files, 3) == [WorkerStatus.RUNNING] * 3
        return
    assert statuses(launcher, run_of_files, 1) == [WorkerStatus.RUNNING]
    result = launcher.check_run_worker_health(run_of_files)
    assert result.status is WorkerStatus.NOT_FOUND
    assert f"lists it, but it has written nothing for {silent} minutes" in str(result.msg)


def test_a_run_of_files_that_goes_on_after_a_sleep_of_its_machine_lives(
    launcher: CheckedRunLauncher,
    run_of_files: DagsterRun,
    instance: DagsterInstance,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = CodeServer()
    server.runs = [run_of_files.run_id]
    serve(server)
    write(instance, run_of_files, 500, start=True)
    assert statuses(launcher, run_of_files, 4) == [WorkerStatus.RUNNING] * 4
    monkeypatch.setattr(launching, "WATCHED_SECONDS", 0.0)
    write(instance, run_of_files, 0)
    assert statuses(launcher, run_of_files, 4) == [WorkerStatus.RUNNING] * 4


def test_each_silence_of_a_run_of_files_is_watched_anew(
    launcher: CheckedRunLauncher,
    run_of_files: DagsterRun,
    instance: DagsterInstance,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launching, "WATCHED_SECONDS", 0.5)
    server = CodeServer()
    server.runs = [run_of_files.run_id]
    serve(server)
    write(instance, run_of_files, 500, start=True)
    assert statuses(launcher, run_of_files, 1) == [WorkerStatus.RUNNING]
    time.sleep(0.6)
    write(instance, run_of_files, 0)
    assert statuses(launcher, run_of_files, 1) == [WorkerStatus.RUNNING]
    write(instance, run_of_files, 400)  # the newest one, and old: a sleep
    assert statuses(launcher, run_of_files, 3) == [WorkerStatus.RUNNING] * 3
    time.sleep(0.6)
    assert statuses(launcher, run_of_files, 2) == [WorkerStatus.RUNNING, WorkerStatus.NOT_FOUND]


def test_a_run_without_files_may_be_silent_for_hours(
    launcher: CheckedRunLauncher,
    run: DagsterRun,
    instance: DagsterInstance,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(launching, "WATCHED_SECONDS", 0.0)
    server = CodeServer()
    server.runs = [run.run_id]
    serve(server)
    write(instance, run, 600, start=True)
    assert statuses(launcher, run, 3) == [WorkerStatus.RUNNING] * 3
