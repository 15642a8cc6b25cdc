"""The assets of one migration: the export, and a table each for what its profile writes.

One multi-asset loads all tables of a file at once; a file is a static partition, and its materialization
is the file's checkpoint. There is no RetryPolicy: with the in_process executor it would swallow the UI's
Terminate (dagster#15026).
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

import dagster as dg
import msgspec
from pydantic import Field

from migration_pipeline.defs.dry_run import observe_dry_run
from migration_pipeline.defs.metadata import (
    AHEAD_OF_FILES,
    PROFILE_TAG,
    export_spec,
    file_metadata,
    file_tables,
    table_spec,
)
from migration_pipeline.defs.options import options_of, with_options
from migration_pipeline.defs.progress import Telling
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform, rules_that_cannot_hold
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.receipts import other_writers

FAILURES_SHOWN = 20
"""Failed files of one run that its failure lists; all of them are in its log."""


class Database(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic only in its private base
    """The PostgreSQL database that rows go to."""

    url: str = Field(description="A libpq connection URL; PG* variables fill in what it leaves out.")


class LoadConfig(dg.Config):
    """Run config of a load. Nothing here changes the result of one that is no dry run."""

    dry_run: bool = Field(
        default=False,
        description="Only tell what a load would do: new, changed and unchanged rows, bad items. Nothing is "
        "written or materialized.",
    )
    batch_items: int = Field(
        default=LoadSettings().batch_items,
        gt=0,
        description="Items a transaction. Larger batches commit less often; smaller ones need less memory.",
    )
    max_bad_items: int = Field(
        default=LoadSettings().max_bad_items,
        ge=0,
        description="Items of one file that may go to the quarantine before the file fails.",
    )
    max_bad_share: float = Field(
        default=LoadSettings().max_bad_share,
        ge=0,
        le=1,
        description="The same as a share of the file's items; the first ten do not count.",
    )
    retry_seconds: float = Field(
        default=DatabaseSettings().retry_seconds,
        ge=0,
        description="How long a transaction is tried again after transient faults of the database. "
        "An Aurora failover takes up to three minutes.",
    )
    lock_timeout_seconds: float = Field(
        default=DatabaseSettings().lock_timeout_seconds,
        gt=0,
        description="How long a statement waits for a lock before its transaction is tried again.",
    )
    statement_timeout_seconds: float = Field(
        default=DatabaseSettings().statement_timeout_seconds,
        gt=0,
        description="How long a statement may take. A batch takes less than a second where nothing is wrong.",
    )

    @property
    def load(self) -> LoadSettings:
        """What of it the engine wants to know."""
        return msgspec.convert(self.model_dump(), LoadSettings)

    @property
    def database(self) -> DatabaseSettings:
        """What of it the connection wants to know."""
        return msgspec.convert(self.model_dump(), DatabaseSettings)


def migration_assets(plan: Plan, profile: Profile) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Build a plan's assets: ``[profile, dynamodb_export]`` and, downstream of it, ``[profile, table]`` each."""
    export = export_spec(plan, profile)
    return [export, _tables_asset(plan, profile, export)]


def _tables_asset(plan: Plan, profile: Profile, export: dg.AssetSpec) -> dg.AssetsDefinition:
    tables = profile.tables
    files = plan.by_partition()
    export_times = {export.id: _time(export.export_time) for export in plan.exports}
    Config: Any = with_options(LoadConfig, plan, profile)  # noqa: N806  # a class

    @dg.multi_asset(
        name=f"{profile.name}_load",
        specs=[table_spec(plan, profile, table, export) for table in tables.values()],
        partitions_def=dg.StaticPartitionsDefinition(list(files)),
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=plan.files_per_run),
        description=f"Loads export files into the tables of the profile {profile.name}.",
    )
    def load(
        context: dg.AssetExecutionContext, config: Config, database: Database
    ) -> Iterator[dg.MaterializeResult[Any]]:
        options = options_of(config, profile)
        transform = Transform(profile, dynamodb_json, options)
        failures: dict[str, MigrationError] = {}
        with suppress(DatabaseError):  # the load tells it, or outlasts it
            for other, name in other_writers(database.url, profile.name, tables.values()):
                context.log.warning(
                    f"{name}: the profile {other} has loaded rows into it, too; each overwrites the other's"
                )
        for partition in context.partition_keys:
            planned = files[partition]
            try:
                if config.dry_run:
                    observe_dry_run(
                        context, plan, profile, planned, database.url, config.load, config.database, options
                    )
                    continue
                report = _load_file(context, planned, profile, transform, config, database, export_times)
            except MigrationError as error:
                failures[partition] = error
                context.log.error(f"{planned.file.name}: failed: {error}")
                continue
            shown = file_tables(planned, report)
            for table in tables.values():
                key = [plan.profile, table.name]
                metadata = {**shown, **file_metadata(planned, report, table)}
                if len(context.partition_keys) == 1:
                    yield dg.MaterializeResult(asset_key=key, metadata=metadata)
                else:
                    # Recorded at once, so that a run that dies keeps the files it has finished.
                    context.log_event(dg.AssetMaterialization(key, partition=partition, metadata=metadata))
                    # At the end of a run Dagster records all its files once more: with this metadata, or none.
                    context.add_asset_metadata(metadata, asset_key=key, partition_key=partition)
        if failures:
            raise _failure(failures)

    return load


def _time(text: str) -> str | None:
    """Give an export's time as it stands, if it is one; a manifest made by hand may have any text."""
    try:
        datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return text


def replay_job(plan: Plan, profile: Profile) -> dg.JobDefinition:
    """Build ``<profile>_replay``: quarantined items once more, after the profile or a table was mended."""
    Config: Any = with_options(LoadConfig, plan, profile)  # noqa: N806  # a class

    @dg.op(name=f"{profile.name}_replay_quarantine")
    def run_again(context: dg.OpExecutionContext, config: Config, database: Database) -> None:
        report = replay_plan(
            plan,
            profile,
            database.url,
            context.run_id,
            context.log.info,
            config.load,
            config.database,
            options_of(config, profile),
        )
        context.add_output_metadata(
            {
                "items": report.items,
                "loaded": report.loaded,
                "skipped": report.skipped,
                "quarantined": report.quarantined,
                "quarantined_by_reason": report.quarantined_by_reason,
            }
        )

    @dg.job(
        name=f"{profile.name}_replay",
        description="Runs the quarantined items of loaded files through the profile again. Those that load, or "
        "that the profile skips now, leave the quarantine. Loading a file again does the same.",
        tags={PROFILE_TAG: profile.name, **AHEAD_OF_FILES},
    )
    def job() -> None:
        run_again()

    return job


def _failure(failures: Mapping[str, MigrationError]) -> dg.Failure:
    """Make the one failure of a run; its first line is what the command line and the UI show."""
    first = next(iter(failures.values()))
    others = f" (and {len(failures) - 1:,} more files failed in this run)" if len(failures) > 1 else ""
    return dg.Failure(
        description=f"{first}{others}",
        metadata={partition: str(error) for partition, error in list(failures.items())[:FAILURES_SHOWN]},
        allow_retries=False,
    )


def _load_file(
    context: dg.AssetExecutionContext,
    planned: PlannedFile,
    profile: Profile,
    transform: Transform,
    config: LoadConfig,
    database: Database,
    export_times: Mapping[str, str | None],
) -> FileReport:
    """Load one file, saying in the run's log how it goes."""
    file, log = planned.file, context.log
    telling = Telling(context, planned, profile.name)
    telling.begin()
    identity = FileIdentity(
        profile.name,
        profile.version,
        planned.export_id,
        file.name,
        context.run.run_id,
        export_times[planned.export_id],
    )
    target = PostgresTarget(
        database.url,
        profile.tables,
        identity,
        config.database,
        profile.nul,
        on_retry=telling.retry,
    )
    with target:
        report = FileLoad(
            file.name,
            file.items,
            FileStream(file, Storage()),
            transform,
            target,
            config.load,
            on_progress=telling.progress,
        ).run()
    log.info(
        f"{file.name}: done, {report.items:,} items in {report.seconds:.1f} s "
        f"({report.items_per_second:,.0f} items/s), {sum(report.rows.values()):,} rows, "
        f"{sum(report.skipped.values()):,} skipped, {report.quarantined:,} quarantined"
    )
    for reason, count in report.quarantined_by_reason.items():
        log.warning(f"{file.name}: quarantined {count:,}: {reason}")
    for warning in rules_that_cannot_hold(profile, report.unrouted):
        log.warning(f"{file.name}: {warning}")
    if report.items and not (report.loaded or report.quarantined):
        log.warning(f"{file.name}: no route of the profile took any of its items")
    for name, count in report.rounded.items():
        log.info(f"{file.name}: {count:,} values were made to fit the column {name}, as the Row allows")
    return report
