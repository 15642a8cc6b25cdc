"""Dagster's code server with one question more that it answers: which runs it has.

The local stack runs `dagster code-server start` because its code can be loaded again without an end of its
runs: each reload starts a server of its own behind it, and the one before ends with its last run. But it
does not pass on the question for its runs (GetCurrentRuns), by which `migration_pipeline.defs.launcher` tells a live run
from a dead one. `dagster api grpc`, for deployments, answers it.
"""

from __future__ import annotations

import contextlib
from typing import Any

from dagster._cli.code_server import code_server_cli
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._grpc import proxy_server
from dagster._grpc.__generated__ import dagster_api_pb2
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value, serialize_value


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


def main() -> None:
    """Run `dagster code-server` with the arguments of this process."""
    proxy_server.DagsterProxyApiServicer = _CodeServer  # type: ignore[misc]  # the command takes it from there
    code_server_cli()
