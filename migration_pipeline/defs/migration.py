"""The assets of one migration: the export, and a table each for what its profile writes.

One multi-asset loads all tables of a file at once; a file is a static partition, and its materialization
is the file's checkpoint. There is no RetryPolicy: with the in_process executor it would swallow the UI's
Terminate (dagster#15026).
"""

from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from migration_pipeline.defs.config import load_config, options_of
from migration_pipeline.defs.dry_run import observe_dry_run
from migration_pipeline.defs.failures import Failed, failing
from migration_pipeline.defs.hosting import OURS, Hosting
from migration_pipeline.defs.metadata import (
    AHEAD_OF_FILES,
    FILE_TAG,
    PLAN_TAG,
    PROFILE_TAG,
    export_spec,
    file_metadata,
    file_tables,
    file_tag,
    table_spec,
)
from migration_pipeline.defs.progress import Telling
from migration_pipeline.defs.statuses import mend_statuses
from migration_pipeline.defs.turns import Turns
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.receipts import other_writers
from migration_pipeline.targets.throttle import Throttle
from migration_pipeline.units import counted

FAILURES_SHOWN = 20
"""Failed files that a run's failure lists at most; the run's log has all of them."""


class Database(dg.ConfigurableResource):  # type: ignore[type-arg]  # generic only in its private base
    """The PostgreSQL database that rows go to."""

    url: str = Field(description="A libpq connection URL; PG* variables fill in what it leaves out.")


def migration_assets(
    plan: Plan, profile: Profile, hosting: Hosting = OURS
) -> list[dg.AssetSpec | dg.AssetsDefinition]:
    """Build a plan's assets: ``[profile, dynamodb_export]`` and, downstream of it, ``[profile, table]`` each."""
    export = export_spec(plan, profile)
    return [export, _tables_asset(plan, profile, export, hosting)]


def _tables_asset(
    plan: Plan, profile: Profile, export: dg.AssetSpec, hosting: Hosting
) -> dg.AssetsDefinition:
    tables = profile.tables
    files = plan.by_partition()
    partitions = dg.StaticPartitionsDefinition(list(files))
    Config: Any = load_config(plan, profile)  # noqa: N806  # a class

    @dg.multi_asset(
        name=f"{profile.name}_load",
        specs=[table_spec(plan, profile, table, export) for table in tables.values()],
        partitions_def=partitions,
        backfill_policy=dg.BackfillPolicy.multi_run(
            max_partitions_per_run=hosting.files_per_run or plan.files_per_run
        ),
        required_resource_keys=hosting.keys,
        pool=hosting.pool,
        description=f"Loads export files into the tables of the profile {profile.name}.",
    )
    def load(context: dg.AssetExecutionContext, config: Config) -> Iterator[dg.MaterializeResult[Any]]:
        url = hosting.url(context)
        keys = context.partition_keys
        tags = {PLAN_TAG: plan.digest, FILE_TAG: file_tag(keys[0], keys[-1])}
        context.instance.add_run_tags(context.run.run_id, tags)
        with failing():
            options = options_of(config, profile)
        turns = Turns(context.instance, plan, context.run.run_id)
        failures: dict[str, MigrationError] = {}
        with suppress(DatabaseError):  # the load tells it, or outlasts it
            for other, name in other_writers(url, profile.name, tables.values()):
                context.log.warning(
                    f"{name}: the profile {other} has loaded rows into it, too; each overwrites the other's rows"
                )
        with (
            closing(Throttle(url, profile.name, config.throttle, config.database)) as throttle,
            Loader(
                plan,
                profile,
                url,
                context.run.run_id,
                config.load,
                config.database,
                options,
                throttle,
            ) as loader,
        ):
            for partition, following in zip(keys, [*map(files.get, keys[1:]), None], strict=True):
                planned, window = files[partition], plan.window_of(files[partition])
                telling = Telling(context, planned, profile.name, "record" if window else "item")
                # Where none has failed, what is recorded of the file before tells that this one begins.
                telling.begin(observed=bool(failures))
                try:
                    if config.dry_run:
                        observe_dry_run(
                            context, telling, plan, profile, planned, url, config.load, config.database, options
                        )  # fmt: skip
                        continue
                    load_it = partial(
                        loader.load,
                        planned,
                        context.log,
                        telling.progress,
                        telling.retry,
                        telling.pause,
                        following=following,
                    )
                    report = turns.in_turn(planned, load_it, telling.wait, failures)
                except MigrationError as error:
                    failures[partition] = error
                    reason = _by_name(error, planned).removeprefix(f"{planned.file.name}: ")
                    context.log.error(f"{planned.file.name}: failed: {reason}")
                    continue
                shown = file_tables(planned, report, window)
                for table in tables.values():
                    key = [plan.profile, table.name]
                    metadata = {**shown, **file_metadata(planned, report, table, window)}
                    if len(context.partition_keys) == 1:
                        yield dg.MaterializeResult(asset_key=key, metadata=metadata)
                    else:
                        # Recorded at once, so that a run that dies keeps the files it has finished.
                        context.log_event(
                            dg.AssetMaterialization(key, partition=partition, metadata=metadata)
                        )
                        # At the end of a run Dagster records all its files once more: with this metadata, or none.
                        context.add_asset_metadata(metadata, asset_key=key, partition_key=partition)
        _mend(context, partitions)
        if failures:
            raise _failure(failures, files)

    return load


def _mend(context: dg.AssetExecutionContext, partitions: dg.StaticPartitionsDefinition) -> None:
    """Have Dagster show again what it has lost. The files are loaded, so no run fails for want of that."""
    try:
        mended = mend_statuses(context.instance, context.assets_def.keys, partitions)
    except Exception as error:  # whatever a storage raises; its text may have parameters
        context.log.warning(
            f"whether Dagster has lost the status of a file is unknown: {type(error).__name__}"
        )
        return
    if mended:
        context.log.warning(
            f"Dagster had lost the status of {counted(len(mended), 'file')} that it knows as materialized: shown again"
        )


def replay_job(plan: Plan, profile: Profile, hosting: Hosting = OURS) -> dg.JobDefinition:
    """Build ``<profile>_replay``, which replays quarantined items after the profile or a table was fixed."""
    Config: Any = load_config(plan, profile)  # noqa: N806  # a class

    @dg.op(
        name=f"{profile.name}_replay_quarantine",
        required_resource_keys=hosting.keys,
        description="Runs quarantined items through the profile again.",
    )
    def run_again(context: dg.OpExecutionContext, config: Config) -> None:
        with failing():
            report = replay_plan(
                plan,
                profile,
                hosting.url(context),
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
                "superseded": report.superseded,
                "quarantined": report.quarantined,
                "quarantined_by_reason": report.quarantined_by_reason,
            }
        )

    @dg.job(
        name=f"{profile.name}_replay",
        description=f"Loads quarantined items of {profile.name}: run it after you have fixed the profile or a table. Items that "
        "load, or that the profile skips now, leave the quarantine.",
        tags={PROFILE_TAG: profile.name, **AHEAD_OF_FILES},
    )
    def job() -> None:
        run_again()

    return job


def _failure(failures: Mapping[str, MigrationError], files: Mapping[str, PlannedFile]) -> Failed:
    """Make the one failure of a run; its first line is what the command line and the UI show."""
    first, error = next(iter(failures.items()))
    others = (
        f" (and {counted(len(failures) - 1, 'more file')} failed in this run)" if len(failures) > 1 else ""
    )
    return Failed(
        f"{_by_name(error, files[first])}{others}",
        {partition: str(error) for partition, error in list(failures.items())[:FAILURES_SHOWN]},
    )


def _by_name(error: MigrationError, planned: PlannedFile) -> str:
    """Name the file in an error's text by its name alone: behind its whole address the reason would stand in the third line."""
    return str(error).replace(planned.file.uri, planned.file.name)
