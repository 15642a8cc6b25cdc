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
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
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

from migration_pipeline.defs.launcher import CheckedRunLauncher


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
