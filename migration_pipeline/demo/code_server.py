"""Dagster's code server for the local stack: it says which runs it has, and its runs are forks of a process that has imported all.

The local stack runs `dagster code-server start` because its code can be loaded again without an end of its
runs: each reload starts a server of its own behind it, and the one before ends with its last run. But it
does not pass on the question for its runs (GetCurrentRuns), by which `migration_pipeline.defs.launcher` tells a live run
from a dead one. `dagster api grpc`, for deployments, answers it.

The server behind it starts a process for each run, which imports Dagster and this package for a second: longer than many a file
takes. So here, on Linux, a process of the server's own does that once, and runs are forks of it. Definitions and profiles are not
imported ahead: a run reads those of its own time.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.forkserver
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagster._cli import main as dagster_cli
from dagster._cli.code_server import code_server_cli
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._grpc import proxy_server, server
from dagster._grpc.__generated__ import dagster_api_pb2
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value, serialize_value

from migration_pipeline import settings
from migration_pipeline.sources.storage import is_s3

AHEAD = [
    "dagster._grpc.impl",
    "dagster._core.definitions.repository_definition.repository_data_builder",
    "dagster._core.execution.plan.active",
    "dagster._core.executor.in_process",
    "dagster._core.instance.factory",
    "dagster._core.storage.noop_compute_log_manager",
    "dagster._core.storage.root",
    "migration_pipeline.defs.coordinator",
    "migration_pipeline.defs.launcher",
    "migration_pipeline.defs.notify",
    "migration_pipeline.defs.storage",
    "migration_pipeline.defs.unloadable",
    "migration_pipeline.defs.whole",
]
"""What a fork has imported. A module that another Dagster does not have is left to the run."""

AHEAD_OF_S3 = ["smart_open.s3"]
"""The same, where a plan's files are in S3. It takes a quarter of a second, and 17 MB of each run."""

BEHIND = [sys.executable, "-m", "migration_pipeline.demo.code_server"]
"""The program of the server behind: `dagster`, with forks."""


class _CodeServer(proxy_server.DagsterProxyApiServicer):
    def GetCurrentRuns(self, _request: Any, _context: Any) -> Any:  # noqa: N802  # gRPC's name
        """List the runs of all servers behind this one that are still there."""
        runs: list[str] = []
        for client in set(self._run_clients.values()):
            with contextlib.suppress(
                DagsterUserCodeUnreachableError
            ):  # ended after a reload, and had no more runs
                answer = deserialize_value(client.get_current_runs(), GetCurrentRunsResult)
                runs.extend(answer.current_runs)
        result = GetCurrentRunsResult(current_runs=runs, serializable_error_info=None)
        return dagster_api_pb2.GetCurrentRunsReply(serialized_current_runs=serialize_value(result))


class _Server(server.DagsterApiServer):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(AHEAD + (AHEAD_OF_S3 if _needs_s3() else []))
        self._mp_ctx = context
        multiprocessing.forkserver.ensure_running()  # it imports before the first run asks for a fork


def _needs_s3() -> bool:
    """Whether plans, or files of one, are in S3. A plan that is made later has a server of its own."""
    place = settings.plans_dir()
    return is_s3(place) or any('"s3://' in plan.read_text() for plan in Path(place).glob("*.json"))


def _entry_point(_executable: str) -> Sequence[str]:
    return BEHIND


def main() -> None:
    """Run `dagster code-server` with the arguments of this process."""
    proxy_server.DagsterProxyApiServicer = _CodeServer  # type: ignore[misc]  # the command takes it from there
    if sys.platform == "linux":  # elsewhere forks of what has imported so much are not safe
        server.get_python_environment_entry_point = _entry_point  # type: ignore[attr-defined,assignment]
    code_server_cli()


def _serve() -> None:
    """Run `dagster` with the arguments of this process."""
    server.DagsterApiServer = _Server  # type: ignore[misc]  # the command takes it from there
    dagster_cli()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    _serve()
