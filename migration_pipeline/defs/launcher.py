"""Starts runs as Dagster does by default, and notices runs that have died, as after a reboot or the end of a code server.

Dagster's own `DefaultRunLauncher` cannot tell a dead run from a long one, so a run that was cut off stays
STARTED for ever and keeps its place in the queue. With the check below, the daemon's run monitoring fails it,
and run retries start it again: see `run_monitoring` and `run_retries` in dagster.yaml.
"""

from __future__ import annotations

import msgspec
from dagster import DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import ConfigurableClassData, deserialize_value

MISSES = 2
"""Checks in a row, `run_monitoring.poll_interval_seconds` apart, that must find a run dead before it counts as
dead: one check alone may come while a code server restarts."""


class _Miss(msgspec.Struct, frozen=True):
    """Checks in a row that found a run dead, and the last event that it had written then."""

    count: int
    last_event: int


class CheckedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, with a check of the run's health.

    A run counts as alive while its code server has it or it writes to its log; see `MISSES`. If neither can be
    known, it counts as alive: failing a run too late costs time, but failing it too early would load its files
    twice at once.
    """

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._misses: dict[str, _Miss] = {}

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Asked by the daemon before it checks."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check whether a run is alive; the daemon fails it if the status is not RUNNING."""
        reason = self._missing(run)
        if not reason:
            self._misses.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        last_event = self._last_event(run.run_id)
        before = self._misses.get(run.run_id)
        count = before.count + 1 if before and before.last_event == last_event else 1
        if count < MISSES:
            self._misses[run.run_id] = _Miss(count, last_event)
            return CheckRunHealthResult(WorkerStatus.RUNNING, reason)
        self._misses.pop(run.run_id, None)
        return CheckRunHealthResult(WorkerStatus.NOT_FOUND, f"{reason}, and its log is silent")

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

    def _last_event(self, run_id: str) -> int:
        """Storage id of the newest entry in the run's log, 0 when there is none."""
        log = self._instance.get_records_for_run(run_id, limit=1, ascending=False)
        return log.records[0].storage_id if log.records else 0
