"""Progress of the files that runs are loading now, from the observations in the runs' event logs."""

from __future__ import annotations

import time

import msgspec

from migration_pipeline.engine.file_report import Progress
from migration_pipeline.migration.names import FileProgress
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.runs import EXECUTING, LogLine, Run, log_lines, runs


class RunningFile(msgspec.Struct, kw_only=True):
    """A file that a run is loading now."""

    planned: PlannedFile
    run_id: str
    started: float
    """When its load began, in seconds of the epoch."""
    items: int = 0
    """Items read so far."""
    items_per_second: float = 0.0
    retries: int = 0
    """Transactions that ran again so far."""
    heard: float = 0.0
    """When its run last wrote into its log, in seconds of the epoch. A worker that is gone writes nothing."""

    @property
    def progress(self) -> Progress:
        """How far it is."""
        seconds = self.items / self.items_per_second if self.items_per_second else 0.0
        return Progress(self.items, self.planned.file.items, 0, seconds)


class Follow:
    """Follows the executing runs of a plan. Each event of a log is read once, however often it is asked."""

    def __init__(self, client: DagsterClient, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._logs: dict[str, _RunLog] = {}

    def running(self) -> list[RunningFile]:
        """Return the files that runs are loading now, in load order."""
        files = self._plan.by_partition()
        self._logs = {
            run.id: self._logs.get(run.id)
            or _RunLog(run, {files[partition].file.name: files[partition] for partition in run.partitions})
            for run in runs(self._client, self._plan, EXECUTING)
            if run.partitions
        }
        for log in self._logs.values():
            log.read(self._client)
        found = [log.current for log in self._logs.values() if log.current]
        return sorted(found, key=lambda file: file.planned.partition)


class _RunLog:
    """What is known of one executing run from its log."""

    def __init__(self, run: Run, files: dict[str, PlannedFile]) -> None:
        self._run = run
        self._files = files
        self._cursor: str | None = None
        self.current: RunningFile | None = None
        if len(files) == 1:  # it loads that one, even if it has not said so yet
            (planned,) = files.values()
            self._begin(planned, run.started or time.time())

    def _begin(self, planned: PlannedFile, when: float) -> None:
        self.current = RunningFile(planned=planned, run_id=self._run.id, started=when, heard=when)

    def read(self, client: DagsterClient) -> None:
        """Read what is new."""
        lines, self._cursor = log_lines(client, self._run.id, self._cursor)
        for line in lines:
            self._take(line)

    def _take(self, line: LogLine) -> None:
        told = _told(line)
        planned = self._files.get(told.file) if told else None
        if planned and (self.current is None or self.current.planned is not planned):
            self._begin(planned, line.time)
        if self.current is None:
            return
        self.current.heard = max(self.current.heard, line.time)
        if told and planned:
            self.current.items = told.items_read
            self.current.items_per_second = float(told.items_per_second)
            self.current.retries = told.retries


def _told(line: LogLine) -> FileProgress | None:
    """Read a file's progress from an event; None for any other event."""
    try:
        return msgspec.convert(line.metadata, FileProgress) if line.metadata else None
    except msgspec.ValidationError:
        return None
