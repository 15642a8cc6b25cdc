"""How far a plan has come: to which moment its exports reach, and to which of these are loaded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.migration.plan import Plan, PlannedExport, PlannedFile
from migration_pipeline.sources.window_times import whole_second
from migration_pipeline.units import counted


def base_of(plan: Plan) -> PlannedExport:
    """The full export that the windows of a plan follow. Raises `UsageError` if there is not just one."""
    bases = [export for export in plan.exports if export.window is None]
    if len(bases) != 1:
        raise UsageError(
            f"the plan of {plan.profile} has {counted(len(bases), 'full export')}, and windows follow just one; plan again with one"
        )
    return bases[0]


def time_of(export: PlannedExport) -> datetime:
    """The moment that an export reaches, in UTC: a window's end, a full export's time. Raises `UsageError` if it names none."""
    if export.window is not None:
        return export.window.end
    try:
        time = msgspec.convert(export.export_time, datetime)
    except msgspec.ValidationError:
        raise UsageError(
            f"{export.uri}: its manifest-summary.json has no exportTime, so that nothing can follow it; export the table again"
        ) from None
    return time.astimezone(timezone.utc) if time.tzinfo else time.replace(tzinfo=timezone.utc)


def planned_until(plan: Plan) -> datetime:
    """Where the next window of a plan begins: at the greatest end of its windows, else in the second of its base's time."""
    ends = [window.window.end for window in plan.windows if window.window]
    return max(ends) if ends else whole_second(time_of(base_of(plan)))


def loaded_until(plan: Plan, loaded: Callable[[PlannedFile], bool]) -> datetime | None:
    """The moment up to which everything is loaded: the end of the last window whose files are, and all files before it.

    None while the base is not loaded.
    """
    missing = {file.export_id for file in plan.files if not loaded(file)}
    reached = None
    for export in plan.exports:
        if export.id in missing:
            return reached
        time = time_of(export)
        reached = max(reached, time) if reached else time
    return reached
