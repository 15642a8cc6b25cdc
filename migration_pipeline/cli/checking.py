"""The commands that prove what was loaded: verify, report and reconcile."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE, open_plan
from migration_pipeline.cli.terminal import (
    console,
    count_states,
    reading,
    tell_left,
    verification_table,
    warn,
)
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration import verification
from migration_pipeline.migration.verdicts import exports_before, extra_text, left_of
from migration_pipeline.operations.files import read_files
from migration_pipeline.targets.receipts import read_differences, read_receipts
from migration_pipeline.units import all_that, counted, counted_that

if TYPE_CHECKING:  # it takes Dagster, whose import costs a second
    from migration_pipeline.operations.reconcile import Reconciled


@click.command()
@PROFILE
@click.option(
    "--extra", is_flag=True, help="Find rows that no item makes, key by key; otherwise they are counted."
)
@click.option("--keys", is_flag=True, help="Print the keys of differing rows; these are values of items.")
def verify(reference: str, extra: bool, keys: bool) -> None:
    """Read the export again, and compare each row that it makes with the database. Nothing in the tables is written.

    Exit status 1 if a row is missing, different or extra, a bad item is not in the quarantine, no rule takes an item, or
    more items are in the quarantine than the profile allows.
    """
    made, profile, _ = open_plan(reference)
    out, url = console(), settings.database_url()
    with reading(out, made.files) as on_progress:
        compared = verification.verify(
            made, profile, url, "verify", extra=extra, say=out.print, on_progress=on_progress
        )
    out.print(verification_table(compared))
    for note in compared.notes:
        out.print(note, markup=False)
    if keys:
        for table, kind, columns, key, file in read_differences(url, profile.name):
            out.print(f"{table}: {kind} {','.join(columns)} {json.dumps(key)} {file}", markup=False)
    faults = sum(map(compared.faults, compared.names))
    if compared.unaccounted:
        out.print(
            f"{counted_that(compared.unaccounted, 'bad item', 'is', 'are')} not in the quarantine: load their files again"
        )
    if faults:
        see = "" if keys else "; see some of their keys with --keys, or in migration.difference"
        out.print(f"{counted_that(faults, 'row', 'differs', 'differ')} from the export{see}")
    elif compared.takes_nothing:
        out.print(
            f"no route of the profile takes any of the {counted(made.items, 'item')}: nothing was compared"
        )
    else:
        rows = sum(compared.table(name).compared for name in compared.names)
        out.print(
            f"{all_that(rows, 'row', 'of the export is', 'of the export are')} in the tables, and no others"
        )
    if surplus := sum(compared.table(name).count("extra") for name in compared.names):
        before = exports_before(made, read_receipts(url, profile.name))
        out.print(extra_text(surplus, before, made.reference), markup=False)
    code = tell_left(left_of(profile, [file.report for file in compared.files]), made.reference)
    sys.exit(1 if faults or compared.unaccounted or compared.takes_nothing else code)


@click.command()
@PROFILE
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
def report(reference: str, output: Path) -> None:
    """Write one HTML file that shows and proves what was migrated, to attach to a change ticket.

    It opens without a network. Exit status 1 if items of the plan are not accounted for, or if no verification
    proves what the tables hold now.
    """
    try:
        from migration_pipeline.operations.report.account import gather
        from migration_pipeline.operations.report.page import write_page
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error}; install what reports need: pip install 'migration-pipeline[report]'"
        ) from None
    plan, profile, instance = open_plan(reference)
    with console(stderr=True).status("reading the receipts, and counting the rows"):
        account = gather(plan, profile, instance, settings.database_url())
    try:
        write_page(account, output)
    except OSError as error:
        raise MigrationError(f"cannot write {output}: {error.strerror or error}") from None
    for verdict in account.verdicts:
        if verdict.outcome != "passed":
            click.echo(f"{verdict.outcome}: {verdict.name}: {verdict.text}", err=True)
    click.echo(f"{account.verdict}: {output}")
    if account.verdict == "not verified":
        click.echo(f"next: migration-pipeline verify {plan.reference}, then this command again", err=True)
    sys.exit(0 if account.complete else 1)


@click.command()
@PROFILE
def reconcile(reference: str) -> None:
    """Restore in Dagster what it no longer shows: files and aggregates that the database's receipts prove.

    Use it when a run was deleted, and its materialization with it. Exit status 1 if Dagster shows files as
    materialized that have no receipt, or aggregates that are not made of all files as they are now.
    """
    from migration_pipeline.operations.reconcile import reconcile as report_lost

    plan, profile, instance = open_plan(reference)
    instance.load_plan(plan, profile, for_launch=False)
    done = report_lost(plan, profile, instance, settings.database_url())
    _tell_reported(done, profile.version)
    _tell_not_reported(done, plan.reference)
    if not any(msgspec.structs.astuple(done)):
        click.echo("nothing to do: Dagster shows everything that has a receipt")
    click.echo(count_states(read_files(instance, plan, profile)))
    sys.exit(1 if done.unproven or done.outdated else 0)


def _tell_reported(done: Reconciled, version: str) -> None:
    """Print what was reported to Dagster; `version` is the profile's current one."""
    for file, receipt in done.reported:
        note = (
            f", by version {receipt.profile_version} of the profile (it is {version} now)"
            if file in done.other_version
            else ""
        )
        click.echo(
            f"reported as materialized: {file.file.name}: loaded {receipt.loaded_at:%Y-%m-%d %H:%M:%S %Z}, "
            f"run {receipt.run_id[:8]}{note}"
        )
    for asset, made in done.aggregates:
        click.echo(
            f"reported as materialized: {asset.name}: made {made.made_at:%Y-%m-%d %H:%M:%S %Z}, run {made.run_id[:8]}"
        )


def _tell_not_reported(done: Reconciled, reference: str) -> None:
    """Print what was not reported to Dagster, what has no receipt, and what to do."""
    for file, reason in done.refused:
        click.echo(f"not reported: {file.file.name}: {reason}", err=True)
    for asset, reason in done.refused_aggregates:
        click.echo(
            f"not reported: {asset.name}: {reason}; migration-pipeline backfill {reference} makes it again",
            err=True,
        )
    for file in done.unproven:
        warn(f"{file.file.name}: Dagster shows it as materialized, but the database has no receipt for it")
    for asset, reason in done.outdated:
        warn(
            f"{asset.name}: Dagster shows it as materialized, but {reason}; migration-pipeline backfill {reference} makes it again"
        )
    if done.unproven:
        click.echo(
            f"next: if this is the right database ({settings.DATABASE_URL}), load these files again: materialize "
            f"their partitions in the UI, or everything with migration-pipeline backfill {reference} --all",
            err=True,
        )
