"""A dry run of a file in Dagster: what a load would do, as observations of the tables."""

from typing import Any

import dagster as dg

from migration_pipeline.defs.progress import Telling
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration import verification
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.verdicts import left_of
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.units import counted


def observe_dry_run(
    context: dg.AssetExecutionContext,
    telling: Telling,
    plan: Plan,
    profile: Profile,
    planned: PlannedFile,
    url: str,
    settings: LoadSettings,
    database: DatabaseSettings,
    options: Options | None,
) -> None:
    """Dry-run a file: record what a load would do as observations of the tables, and materialize nothing."""
    compared = verification.dry_run(
        plan,
        profile,
        url,
        [planned],
        settings,
        database,
        options=options,
        say=context.log.warning,
        on_progress=lambda _, progress: telling.progress(progress),
    )
    (file,) = compared.files
    report = file.report
    over = f"{report.superseded:,} be superseded, " if report.superseded else ""
    context.log.info(
        f"{planned.file.name}: dry run: {counted(report.items, 'item')}, {report.loaded:,} would load, "
        f"{sum(report.skipped.values()):,} be skipped, {over}{report.quarantined:,} be quarantined; nothing was written"
    )
    for line in left_of(profile, [report]).lines():
        context.log.warning(f"{planned.file.name}: dry run: {line}")
    for table in profile.tables.values():
        total = file.tables[table.qualified]
        metadata: dict[str, Any] = {
            "dry_run": True,
            "rows_new": total.count("missing"),
            "rows_changed": total.count("different"),
            "rows_unchanged": total.same + total.count("newer"),
            **({"rows_deleted": report.deleted_rows.get(table.qualified, 0)} if plan.windows else {}),
            "items": report.items,
            **({"items_superseded": report.superseded} if plan.windows else {}),
            "items_quarantined": report.quarantined,
            "items_unrouted": sum(report.unrouted.values()),
            "quarantined_by_reason": report.quarantined_by_reason,
            "skipped_by_reason": report.skipped,
        }
        context.log_event(
            dg.AssetObservation(
                [plan.profile, table.name],
                partition=planned.partition,
                metadata=metadata,
                description="what a load of this file would do; nothing was written",
            )
        )
