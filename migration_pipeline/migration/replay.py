"""Replays what a plan's files have in quarantine: for the command line and the Dagster job alike."""

from __future__ import annotations

from collections.abc import Callable

from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.engine.replay import ReplayReport, replay
from migration_pipeline.engine.transform import Transform
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.targets.bookkeeping import QUARANTINED_FILES
from migration_pipeline.targets.connection import DatabaseSettings, transaction
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget


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

    Those that load, or that the profile skips now, leave the quarantine, and their file's receipt counts
    them anew, in one transaction. `say` is told of each file.
    """
    transform, total = (
        Transform(profile, dynamodb_json, options or profile.options(plan.options)),
        ReplayReport(),
    )
    waiting = _waiting(url, profile)
    for planned in plan.files:
        if (planned.export_id, planned.file.name) not in waiting:
            continue
        name = planned.file.name
        identity = FileIdentity(profile.name, profile.version, planned.export_id, name, run_id)
        target = PostgresTarget(
            url,
            profile.tables,
            identity,
            database,
            profile.nul,
            on_retry=lambda what, name=name: say(f"{name}: {what}"),  # type: ignore[misc]  # bound as it is now
        )
        with target:
            report = replay(transform, target, settings)
        total.add(report)
        say(
            f"{name}: {report.items:,} items replayed: {report.loaded:,} loaded, {report.skipped:,} skipped, "
            f"{report.quarantined:,} still in quarantine"
        )
    return total


def _waiting(url: str, profile: Profile) -> dict[tuple[str, str], int]:
    with transaction(url) as cursor:
        cursor.execute(QUARANTINED_FILES, (profile.name,))
        return {(export_id, file): count for export_id, file, count in cursor.fetchall()}
