"""Progress of the files that runs are loading now, from the observations in the runs' event logs."""

from __future__ import annotations

import time
from collections.abc import Sequence

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
    throttled: str = ""
    """What its load waits for; "" while it writes."""
    throttled_seconds: float = 0.0
    """Seconds that it has waited so far."""
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
            run.id: self._logs.get(run.id) or _RunLog(run, [files[partition] for partition in run.partitions])
            for run in runs(self._client, self._plan, EXECUTING)
            if run.partitions
        }
        for log in self._logs.values():
            log.read(self._client)
        return sorted((log.current for log in self._logs.values()), key=lambda file: file.planned.partition)


class _RunLog:
    """What is known of one executing run from its log. It loads its files one after another, in the plan's order."""

    def __init__(self, run: Run, files: Sequence[PlannedFile]) -> None:
        self._run = run
        self._files = files
        self._by_name = {planned.file.name: place for place, planned in enumerate(files)}
        self._by_partition = {planned.partition: place for place, planned in enumerate(files)}
        self._cursor: str | None = None
        self._begin(0, run.started or time.time())

    def _begin(self, place: int, when: float) -> None:
        self._place = place
        self.current = RunningFile(planned=self._files[place], run_id=self._run.id, started=when, heard=when)

    def read(self, client: DagsterClient) -> None:
        """Read what is new."""
        lines, self._cursor = log_lines(client, self._run.id, self._cursor)
        for line in lines:
            self._take(line)

    def _take(self, line: LogLine) -> None:
        told = _told(line)
        place = self._place_of(line, told)
        if self._place < place < len(self._files):
            self._begin(place, line.time)
        self.current.heard = max(self.current.heard, line.time)
        if told and place == self._place:
            self.current.items = told.items_read
            self.current.items_per_second = float(told.items_per_second)
            self.current.retries = told.retries
            self.current.throttled = told.throttled
            self.current.throttled_seconds = told.throttled_seconds

    def _place_of(self, line: LogLine, told: FileProgress | None) -> int:
        """Give the place of the file that is loading by an event; -1 where it does not tell.

        What is recorded of a partition ends its file. At the end of a run Dagster records all of them once more.
        """
        if line.partition in self._by_partition:
            return self._by_partition[line.partition] + 1
        return self._by_name.get(told.file, -1) if told else -1


def _told(line: LogLine) -> FileProgress | None:
    """Read a file's progress from an event; None for any other event."""
    try:
        return msgspec.convert(line.metadata, FileProgress) if line.metadata else None
    except msgspec.ValidationError:
        return None
