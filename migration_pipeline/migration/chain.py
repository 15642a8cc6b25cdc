"""The chain of a plan's windows: where it has holes, and how windows are added to it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

import msgspec

from migration_pipeline.migration.plan import Plan, PlannedExport, _planned
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.export import Export


class Hole(msgspec.Struct, frozen=True):
    """A time that no window covers."""

    start: datetime
    end: datetime
    after: str
    """Id of the export that reaches furthest before it."""
    before: str
    """Id of the window that begins at its end."""

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start


def holes(plan: Plan) -> list[Hole]:
    """The holes of a plan's chain, the earliest first."""
    bases = [export for export in plan.exports if export.window is None]
    if not plan.windows or not bases:
        return []
    base = max(bases, key=lambda export: export.export_time)
    end, after = msgspec.convert(base.export_time, datetime).astimezone(timezone.utc), base.id
    found = []
    for export in plan.windows:
        window = export.window
        assert window is not None  # noqa: S101  # by `Plan.windows`
        if window.start > end:
            found.append(Hole(end, window.start, after, export.id))
        if window.end > end:
            end, after = window.end, export.id
    return found


def add_windows(plan: Plan, profile: Profile, exports: Sequence[Export], allow_gap: bool = False) -> Plan:
    """Add windows to a plan; files that are there keep their partitions."""
    known = {export.id for export in plan.exports}
    new = sorted(
        (e for e in exports if e.window and e.id not in known), key=lambda e: (e.window.start, e.window.end) if e.window else ()
    )  # fmt: skip
    planned = [PlannedExport(e.id, e.uri, e.table_arn, e.export_time, e.table_id, e.window) for e in new]
    files = [file for export in new for file in _planned(export)]
    return msgspec.structs.replace(
        plan, exports=(*plan.exports, *planned), files=(*plan.files, *files), allow_gap=plan.allow_gap or allow_gap
    )  # fmt: skip
