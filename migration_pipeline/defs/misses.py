"""When a run's worker counts as lost: the one rule of all launchers.

Dagster's run monitoring fails a run at the first answer that is not RUNNING or SUCCESS, UNKNOWN included, and run retries
then start it again. So one answer that got lost would load a file twice at once. Here a worker is lost only after
`MISSES` checks in a row that found none, while the run's log was silent.
"""

from __future__ import annotations

import msgspec
from dagster import DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus

MISSES = 2
"""Checks in a row, `run_monitoring.poll_interval_seconds` apart, that must find a run dead before it counts as
dead: one check alone may come while a code server restarts."""


class _Miss(msgspec.Struct, frozen=True):
    """Checks in a row that found a run dead, and the last event that it had written then."""

    count: int
    last_event: int


class Misses:
    """Counts, for each run, the checks in a row that found no worker.

    A run counts as alive while its worker is found or it writes to its log. If neither can be known, it counts as alive:
    failing a run too late costs time, but failing it too early would load its files twice at once.
    """

    def __init__(self) -> None:
        self._misses: dict[str, _Miss] = {}

    def judge(
        self,
        instance: DagsterInstance,
        run: DagsterRun,
        reason: str,
        lost: WorkerStatus = WorkerStatus.NOT_FOUND,
    ) -> CheckRunHealthResult:
        """Judge a check: `reason` says why the worker seems gone, and is "" when it was found or nobody can tell.

        The status is RUNNING, or `lost` once the rule says so.
        """
        if not reason:
            self._misses.pop(run.run_id, None)
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        last_event = _last_event(instance, run.run_id)
        before = self._misses.get(run.run_id)
        count = before.count + 1 if before and before.last_event == last_event else 1
        if count < MISSES:
            self._misses[run.run_id] = _Miss(count, last_event)
            return CheckRunHealthResult(WorkerStatus.RUNNING, reason)
        self._misses.pop(run.run_id, None)
        return CheckRunHealthResult(lost, f"{reason}, and its log is silent")


def _last_event(instance: DagsterInstance, run_id: str) -> int:
    """Storage id of the newest entry in the run's log, 0 when there is none."""
    log = instance.get_records_for_run(run_id, limit=1, ascending=False)
    return log.records[0].storage_id if log.records else 0
