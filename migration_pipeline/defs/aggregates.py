"""The assets downstream of a migration's files: its aggregates, and the finishing of all its tables.

They have no partitions. In a backfill of the whole group Dagster makes them after all files, in this order.
"""

from contextlib import closing
from typing import Any

import dagster as dg
import msgspec

from migration_pipeline.defs.config import aggregate_config, finishing_config
from migration_pipeline.defs.failures import failing
from migration_pipeline.defs.hosting import OURS, Hosting
from migration_pipeline.defs.metadata import export_spec, plain, table_spec
from migration_pipeline.engine.pace import Pause
from migration_pipeline.migration.names import FINISHING
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.aggregate import Aggregate
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.aggregation import (
    AggregateIdentity,
    AggregateRun,
    LandedFile,
)
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.records import AggregateReport
from migration_pipeline.targets.throttle import FilePace, Throttle
from migration_pipeline.units import counted

KEPT = (
    "drop_landing: the landed rows are kept, because the plan has windows, and after another one the aggregates are made of "
    "them again; once the last window is loaded, finish with last_window: true as well"
)


def downstream_assets(plan: Plan, profile: Profile, hosting: Hosting = OURS) -> list[dg.AssetsDefinition]:
    """Build ``[profile, table]`` for each aggregate, and ``[profile, "finishing"]`` downstream of all tables."""
    return [
        *(_aggregate_asset(plan, profile, aggregate, hosting) for aggregate in profile.aggregates),
        _finishing_asset(plan, profile, hosting),
    ]


def _aggregate_asset(
    plan: Plan, profile: Profile, aggregate: Aggregate, hosting: Hosting
) -> dg.AssetsDefinition:
    table = aggregate.table
    sources = ", ".join(source.qualified for source in aggregate.sources)
    spec = table_spec(plan, profile, table, export_spec(plan, profile)).replace_attributes(
        deps=[dg.AssetKey([plan.profile, source.name]) for source in aggregate.sources],
        description=plain(
            f"{table.comment}\n\nMade from the rows of all files in {sources}, one row for each "
            f"{', '.join(aggregate.by)}, by the SELECT in {aggregate.path.name}.".lstrip()
        ),
    )
    spec = spec.merge_attributes(metadata={"sql": dg.MetadataValue.md(f"```sql\n{aggregate.sql};\n```")})
    windows = {export.id for export in plan.windows}
    files = [
        LandedFile(each.export_id, each.file.name, each.file.md5, each.export_id in windows)
        for each in plan.files
    ]

    AggregateConfig: Any = aggregate_config(plan)  # noqa: N806  # a class

    @dg.multi_asset(
        name=f"{profile.name}_{table.name}",
        specs=[spec],
        required_resource_keys=hosting.keys,
        pool=hosting.pool,
        description=f"Makes {table.qualified} from all landed files of the profile {profile.name}.",
    )
    def make(context: dg.AssetExecutionContext, config: AggregateConfig) -> dg.MaterializeResult[Any]:
        url = hosting.url(context)
        identity = AggregateIdentity(profile.name, profile.version, context.run.run_id)
        pauses = _Pauses(context, table.qualified)
        with (
            failing(),
            closing(Throttle(url, profile.name, config.throttle, config.database)) as throttle,
        ):
            throttle.open()
            report = AggregateRun(
                url, aggregate, files, identity, config.aggregate, config.database, context.log.info,
                FilePace(throttle, pauses.tell),
            ).run()  # fmt: skip
        context.log.info(
            f"{table.qualified}: done, {counted(report.rows, 'row')} in {report.seconds:,.2f} s: {report.new:,} new, "
            f"{report.changed:,} changed, {report.unchanged:,} unchanged, {report.deleted:,} deleted"
        )
        return dg.MaterializeResult(metadata=aggregate_metadata(report))

    return make


class _Pauses:
    """Tells a run's log of pauses."""

    def __init__(self, context: dg.AssetExecutionContext, name: str) -> None:
        self._context = context
        self._name = name

    def tell(self, pause: Pause) -> None:
        """Say why the work waits, or that it goes on."""
        text = f"throttled: {pause.why}" if pause.why else "goes on"
        self._context.log.info(f"{self._name}: {text}, after {pause.seconds:,.1f} s of waiting in all")


def aggregate_metadata(report: AggregateReport) -> dict[str, Any]:
    """The metadata of an aggregate's materialization."""
    return {
        "dagster/row_count": report.rows,
        **msgspec.to_builtins(report),
        "unchanged": report.unchanged,
        "seconds": round(report.seconds, 2),
    }


def _finishing_asset(plan: Plan, profile: Profile, hosting: Hosting) -> dg.AssetsDefinition:
    tables = [table.name for table in profile.all_tables]
    FinishingConfig: Any = finishing_config(plan)  # noqa: N806  # a class

    @dg.asset(
        key=[plan.profile, FINISHING],
        deps=[dg.AssetKey([plan.profile, name]) for name in tables],
        group_name=plan.profile,
        kinds={"postgres"},
        code_version=profile.version,
        required_resource_keys=hosting.keys,
        pool=hosting.pool,
        description="Runs after all files are loaded: makes the profile's indexes and constraints, sets sequences past the "
        "loaded keys, gathers statistics. Safe to repeat.",
    )
    def finishing(context: dg.AssetExecutionContext, config: FinishingConfig) -> dg.MaterializeResult[Any]:
        url = hosting.url(context)
        drop = config.drop_landing and (config.last_window or not plan.windows)
        if config.drop_landing and not drop:
            context.log.warning(KEPT)
        pauses = _Pauses(context, FINISHING)
        with (
            failing(),
            closing(Throttle(url, profile.name, config.throttle, config.database)) as throttle,
        ):
            throttle.open()
            pace = FilePace(throttle, pauses.tell)
            report = finish(url, profile, drop, config.database, context.log.info, pace)
        for warning in report.warnings:
            context.log.warning(warning)
        return dg.MaterializeResult(metadata=msgspec.to_builtins(report))

    return finishing
