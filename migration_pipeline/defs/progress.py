"""Says how far a running file is: in the run's log, and as observations of the export.

The engine decides when, so that what a file adds to the event log is bounded: nothing for a file of a few seconds,
forty-five of each for one of an hour (`migration_pipeline.engine.load.PROGRESS_GROWTH`). Observations are the
export's, not the tables': what is known is how much of a file is read, and it is one event however many tables.
"""

from collections.abc import Callable

import dagster as dg

from migration_pipeline.engine.file_report import Progress
from migration_pipeline.migration.plan import PlannedFile
from migration_pipeline.migration.units import readable_time


def progress_of(
    context: dg.AssetExecutionContext, planned: PlannedFile, export: dg.AssetKey
) -> Callable[[Progress], None]:
    """Make the hook that tells Dagster of a file's progress."""

    def tell(progress: Progress) -> None:
        context.log.info(f"{planned.file.name}: {sentence(progress)}")
        context.log_event(
            dg.AssetObservation(
                export,
                description=f"{planned.file.name}: {sentence(progress)}",
                metadata={
                    "file": planned.file.name,
                    "percent": round(100 * progress.share, 1),
                    "items_read": progress.items,
                    "items_per_second": round(progress.items_per_second),
                    "seconds_left": round(progress.eta_seconds or 0),
                },
            )
        )

    return tell


def sentence(progress: Progress) -> str:
    """Write progress as a log line has it: ``45%, 1,234 of 2,742 items, 61,700 items/s, 24 s left``."""
    left = "" if progress.eta_seconds is None else f", {readable_time(progress.eta_seconds)} left"
    return (
        f"{progress.share:.0%}, {progress.items:,} of {progress.total_items:,} items, "
        f"{progress.items_per_second:,.0f} items/s{left}"
    )
