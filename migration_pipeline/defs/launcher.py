"""Starts runs as Dagster does by default, and notices runs that have died, as after a reboot or the end of a code server.

Dagster's own `DefaultRunLauncher` cannot tell a dead run from a long one, so a run that was cut off stays
STARTED for ever and keeps its place in the queue. With the check below, the daemon's run monitoring fails it,
and run retries start it again: see `run_monitoring` and `run_retries` in dagster.yaml.
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import ConfigurableClassData, deserialize_value

from migration_pipeline.defs.misses import Misses


class CheckedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, with a check of the run's health: its code server has it, or it writes to its log."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._misses = Misses()

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Asked by the daemon before it checks."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check whether a run is alive; the daemon fails it if the status is not RUNNING."""
        return self._misses.judge(self._instance, run, self._missing(run))

    def _missing(self, run: DagsterRun) -> str:
        """Say why the run seems gone; "" when its code server has it, or cannot tell."""
        client = self._get_grpc_client_for_termination(run.run_id)  # type: ignore[no-untyped-call]
        if client is None:  # the run is over, or another launcher started it
            return ""
        try:
            answer = deserialize_value(client.get_current_runs(), GetCurrentRunsResult)
        except DagsterUserCodeUnreachableError as error:
            code = getattr(error.__cause__, "code", None)  # the cause is gRPC's own error
            if code and code().name in ("DEADLINE_EXCEEDED", "UNIMPLEMENTED"):
                # It is there and busy, or it is a `dagster code-server`, which does not know its runs.
                return ""
            return "its code server does not answer"
        return "" if run.run_id in answer.current_runs else "its code server does not have it"
