"""Reports the progress of a file's load: in the run's log for people, as observations of the export for programs.

The engine decides when progress is reported, so that what a file adds to the event log is bounded: nothing for a file of a few
seconds, forty-five of each for one of an hour (`migration_pipeline.engine.load.PROGRESS_GROWTH`). A transaction that runs
again is reported at once. Observations are of the export, not of the tables, because progress is how much of a file is
read, and so it is one event for any number of tables.
"""

import time

import dagster as dg
import msgspec

from migration_pipeline.engine.file_report import Progress
from migration_pipeline.engine.load import PROGRESS_GROWTH, PROGRESS_SECONDS
from migration_pipeline.engine.pace import Pause
from migration_pipeline.migration.names import EXPORT, FileProgress
from migration_pipeline.migration.plan import PlannedFile
from migration_pipeline.units import counted, readable_size, readable_time, some_of


class Telling:
    """Reports the load of one file to Dagster. Its methods are hooks of the load; `retry` and `pause` may be called from another thread."""

    def __init__(
        self, context: dg.AssetExecutionContext, planned: PlannedFile, profile: str, unit: str
    ) -> None:
        """`unit` is what a line of the file is: "item", of a window "record"."""
        self._context = context
        self._file = planned.file
        self._unit = unit
        self._export = dg.AssetKey([profile, EXPORT])
        self._progress = Progress(0, planned.file.items, 0, 0.0)
        self._retries = 0
        self._pause = Pause("", 0.0)
        self._gap = PROGRESS_SECONDS
        self._due = 0.0

    def begin(self, *, observed: bool) -> None:
        """Report that the load begins; as an event, too, if `observed`."""
        file = self._file
        text = f"start, {counted(file.items, self._unit)}, {readable_size(file.size)}, from {file.uri}"
        self._context.log.info(f"{file.name}: {text}")
        if observed:
            self._observe(text)

    def wait(self, text: str) -> None:
        """Report that the load has not begun, and for what it waits: at once, and then after growing gaps."""
        if (now := time.monotonic()) < self._due:
            return
        self._due, self._gap = now + self._gap, self._gap * PROGRESS_GROWTH
        self._context.log.warning(f"{self._file.name}: {text}")
        self._observe(text)

    def progress(self, progress: Progress) -> None:
        """Report how far the load is."""
        self._progress = progress
        self._context.log.info(f"{self._file.name}: {sentence(progress, self._unit)}")
        self._observe(sentence(progress, self._unit))

    def retry(self, fault: str) -> None:
        """Report a transaction that runs again, and why."""
        self._retries += 1
        self._context.log.warning(f"{self._file.name}: {fault}")
        self._observe(fault)

    def pause(self, pause: Pause) -> None:
        """Report that the load waits for the throttle, and why, or that it goes on."""
        self._pause = pause
        waited = f"after {pause.seconds:,.1f} s of waiting in all"
        text = f"throttled: {pause.why}, {waited}" if pause.why else f"goes on, {waited}"
        self._context.log.info(f"{self._file.name}: {text}")
        self._observe(text)

    def _observe(self, text: str) -> None:
        progress = self._progress
        told = FileProgress(
            file=self._file.name,
            percent=round(100 * progress.share, 1),
            items_read=progress.items,
            items=progress.total_items,
            items_per_second=round(progress.items_per_second),
            seconds_left=round(progress.eta_seconds or 0),
            quarantined=progress.quarantined,
            retries=self._retries,
            throttled=self._pause.why,
            throttled_seconds=round(self._pause.seconds, 1),
        )
        self._context.log_event(
            dg.AssetObservation(
                self._export, description=f"{self._file.name}: {text}", metadata=msgspec.structs.asdict(told)
            )
        )


def sentence(progress: Progress, unit: str = "item") -> str:
    """Format progress as in a log line: ``45%, 1,234 of 2,742 items, 61,700 items/s, 24 s left, 3 quarantined``."""
    left = "" if progress.eta_seconds is None else f", {readable_time(progress.eta_seconds)} left"
    return (
        f"{progress.share:.0%}, {some_of(progress.items, progress.total_items, unit)}, "
        f"{progress.items_per_second:,.0f} {unit}s/s{left}, {progress.quarantined:,} quarantined"
    )
