"""Replays the quarantined items of files, after the profile or a table was fixed; for the command line and the Dagster job."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import msgspec

from migration_pipeline.engine.batch import AnyTransform, Batch
from migration_pipeline.engine.load import BATCH_BYTES, LoadSettings, reason_of
from migration_pipeline.migration.load import Transforms, place_of
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.receipts import files_to_replay
from migration_pipeline.units import counted


class ReplayReport(msgspec.Struct, kw_only=True):
    """What became of quarantined items. Counts are of items."""

    items: int = 0
    """Items that were in quarantine."""
    loaded: int = 0
    """Items that became rows now."""
    skipped: int = 0
    """Items that the profile skips now."""
    superseded: int = 0
    """Items of which a newer state is loaded: they left the quarantine, and nothing was written of them."""
    quarantined: int = 0
    """Items that are still bad."""
    quarantined_by_reason: dict[str, int] = {}

    def add(self, other: ReplayReport) -> None:
        """Sum up."""
        for name in ("items", "loaded", "skipped", "superseded", "quarantined"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        reasons = Counter(self.quarantined_by_reason) + Counter(other.quarantined_by_reason)
        self.quarantined_by_reason = dict(reasons)


def replay_plan(
    plan: Plan,
    profile: Profile,
    url: str,
    run_id: str,
    say: Callable[[str], None],
    settings: LoadSettings = LoadSettings(),  # noqa: B008  # frozen
    database: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
    options: Options | None = None,
) -> ReplayReport:
    """Run the quarantined items of a plan's loaded files through the profile again. Raises `MigrationError`.

    Those that load, that the profile skips now, or that a window has touched since, leave the quarantine, and their file's
    receipt counts them anew, in one transaction. `say` is called with a line for each file.
    """
    transforms = Transforms(plan, profile, options)
    total, waiting = ReplayReport(), files_to_replay(url, profile.name)
    for planned in plan.files:
        name = planned.file.name
        if (planned.export_id, name) not in waiting:
            continue
        identity = FileIdentity(
            profile.name,
            profile.version,
            planned.export_id,
            name,
            run_id,
            doubt=plan.export_of(planned).doubt,
        )
        target = PostgresTarget(
            url,
            profile.tables,
            identity,
            database,
            profile.nul,
            on_retry=lambda what, name=name: say(f"{name}: {what}"),  # type: ignore[misc]  # bound as it is now
            place=place_of(plan, planned),
        )
        with target:
            report = replay(transforms.of(planned), target, settings)
        total.add(report)
        over = f"{report.superseded:,} superseded, " if report.superseded else ""
        say(
            f"{name}: {counted(report.items, 'item')} replayed: {report.loaded:,} loaded, {report.skipped:,} skipped, "
            f"{over}{report.quarantined:,} still in quarantine"
        )
    return total


def replay(transform: AnyTransform, target: PostgresTarget, settings: LoadSettings) -> ReplayReport:
    """Replay a file's quarantined items. Raises `MigrationError`; each batch that was written stays so.

    Any number of items may still be bad: they are in the quarantine already.
    """
    total = ReplayReport()
    numbers: list[int] = []
    lines: list[bytes] = []
    for number, line in target.quarantined():
        if lines and (len(lines) >= settings.batch_items or sum(map(len, lines)) + len(line) > BATCH_BYTES):
            total.add(_replay(transform, target, lines, numbers))
            numbers, lines = [], []
        numbers.append(number)
        lines.append(line)
    if lines:
        total.add(_replay(transform, target, lines, numbers))
    return total


def _replay(
    transform: AnyTransform, target: PostgresTarget, lines: list[bytes], numbers: list[int]
) -> ReplayReport:
    batch = Batch.of(transform, target.encoder, lines, numbers)
    batch.room = len(lines)
    written = target.replay(batch, numbers)
    over = {one.number for one in written.forgiven}
    bad = [one for one in [*batch.bad, *written.refused] if one.number not in over]
    return ReplayReport(
        items=len(lines),
        loaded=batch.counts.loaded - written.superseded - len(written.refused),
        skipped=sum(batch.counts.skipped.values()),
        superseded=written.superseded + len(written.forgiven),
        quarantined=len(bad),
        quarantined_by_reason=dict(Counter(map(reason_of, bad))),
    )
