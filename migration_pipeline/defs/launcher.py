"""Starts runs as Dagster does by default, and notices runs that have died, as after a reboot or the end of a code server.

Dagster's own `DefaultRunLauncher` cannot tell a dead run from a long one, so a run that was cut off stays
STARTED for ever and keeps its place in the queue. With the check below, the daemon's run monitoring fails it,
and run retries start it again: see `run_monitoring` and `run_retries` in dagster.yaml.
"""

from __future__ import annotations

import time

from dagster import DagsterEventType, DagsterRun
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import ConfigurableClassData, deserialize_value

from migration_pipeline.defs.metadata import FILE_TAG
from migration_pipeline.defs.misses import Misses

SILENCE_SECONDS = 30 * 60.0
"""Seconds of silence in a run's log after which no load is alive: with its default settings a statement is given up after five minutes,
and a file in S3 that does not answer after two."""

SILENCE_SHARE = 0.5
"""Share of the time since the run's start that the silence must last, too. A load tells its progress after gaps that grow by a tenth
(`migration_pipeline.engine.load.PROGRESS_GROWTH`), so each is about a tenth of that time."""

WATCHED_SECONDS = 5 * 60.0
"""Seconds that such a silence goes on under our own eyes. When a machine wakes up, all logs have been silent for as long as it slept,
and what is alive needs a moment to write."""


class CheckedRunLauncher(DefaultRunLauncher):
    """Dagster's default launcher, with a check of the run's health: its code server has it, or it writes to its log."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._misses = Misses()
        self._silent_since: dict[str, float] = {}
        """When each run that is listed and silent was first seen so."""

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
        return self._silent(run) if run.run_id in answer.current_runs else "its code server does not have it"

    def _silent(self, run: DagsterRun) -> str:
        """Say for how long a run that loads files has been silent, if that is too long for a live one; "" otherwise.

        A code server whose storage is away while a run ends goes on listing all its runs for ever (read from
        `dagster._grpc.server` at 1.13.27, and seen: ``findings/dagster-code-server-keeps-dead-runs.sh``). A run without
        files may be silent for hours, within one statement. Times are those that the worker wrote into its events:
        Dagster's PostgreSQL storage writes its own in the session's time zone.
        """
        if FILE_TAG not in run.tags:
            return ""
        silence = self._seconds_since(run)
        if silence < max(
            SILENCE_SECONDS, SILENCE_SHARE * self._seconds_since(run, DagsterEventType.RUN_START)
        ):
            self._silent_since.pop(run.run_id, None)
            return ""
        now = time.monotonic()
        if now - self._silent_since.setdefault(run.run_id, now) < WATCHED_SECONDS:
            return ""
        return f"its code server lists it, but it has written nothing for {silence / 60:.0f} minutes"

    def _seconds_since(self, run: DagsterRun, kind: DagsterEventType | None = None) -> float:
        """Age of the newest entry in the run's log, or of the newest event of a kind; 0 when there is none."""
        log = self._instance.get_records_for_run(run.run_id, of_type=kind, limit=1, ascending=False)
        return time.time() - log.records[0].event_log_entry.timestamp if log.records else 0.0
