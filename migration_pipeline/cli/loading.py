"""The commands that load files and stop loads: backfill, retry, replay of the quarantine, stop."""

from __future__ import annotations

import sys
from collections import Counter
from typing import NoReturn

import click

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE, WAIT, Opened, open_plan
from migration_pipeline.cli.terminal import (
    console,
    count_states,
    dry_run_table,
    exit_status,
    patiently,
    reading,
    tell_left,
    warn,
)
from migration_pipeline.cli.watch import watch_to_the_end
from migration_pipeline.migration import verification
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.migration.verdicts import left_of
from migration_pipeline.operations import backfills
from migration_pipeline.operations.downstream import AssetStatus, downstream, to_launch
from migration_pipeline.operations.files import BUSY, FileStatus, read_files
from migration_pipeline.operations.preflight import mark_lost, tables_fit
from migration_pipeline.operations.status import left
from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted


@click.command()
@PROFILE
@click.option(
    "--all", "everything", is_flag=True, help="Also load materialized files again, from their beginning."
)
@WAIT
@click.option(
    "--only",
    metavar="FILE",
    multiple=True,
    help="Only files with this name or partition key, a part of it, or a pattern (*, ?). May be repeated.",
)
@click.option(
    "--files",
    "first",
    type=click.IntRange(1),
    metavar="N",
    help="Load only the first N of them, as a careful first step.",
)
@click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help="Launch and write nothing: read the files here (all, unless some are chosen) and print what their load would do.",
)
def backfill(
    reference: str, everything: bool, wait: bool, only: tuple[str, ...], first: int | None, dry: bool
) -> None:
    """Launch a backfill of all files that are not materialized; aggregates and finishing follow."""
    opened = plan, profile, instance = open_plan(reference)
    chosen = {planned.partition for text in only for planned in plan.matching(text)}
    if dry:
        _dry_run(plan, profile, [p for p in plan.files if not only or p.partition in chosen][:first])
    with patiently("waiting for Dagster to load the plan"):
        instance.load_plan(plan, profile)
    files, assets = _read_states(opened, "", attempts=False)
    asked = [f for f in files if not only or f.partition in chosen]
    busy = [f for f in asked if f.state in BUSY]
    if busy:
        click.echo(
            f"left out, as they are running, queued or launched: {counted(len(busy), 'file')}", err=True
        )
    left_to_load = [f for f in asked if f not in busy and (everything or f.state in ("missing", "failed"))]
    wanted = left_to_load[:first]
    then = to_launch(assets, files, wanted)
    if wanted or then:
        _launch(opened, wanted, then, f"{profile.name}: {counted(len(wanted), 'file')}", wait)
        return
    click.echo(f"{count_states(asked)}: nothing to launch" + ("" if busy else " (--all loads them again)"))
    if wait:
        sys.exit(tell_left(left(plan, profile, asked, settings.known_database_url()), plan.reference))


def _dry_run(plan: Plan, profile: Profile, files: list[PlannedFile]) -> NoReturn:
    """Print what a load of some files would do. Exit status 1 if the migration would not be complete."""
    out = console()
    with reading(out, files) as on_progress:
        compared = verification.dry_run(
            plan, profile, settings.database_url(), files, say=out.print, on_progress=on_progress
        )
    out.print(dry_run_table(compared))
    for note in compared.notes:
        out.print(note, markup=False)
    reports = [file.report for file in compared.files]
    reasons = Counter[str]()
    for report in reports:
        reasons.update(report.quarantined_by_reason)
    for reason, count in reasons.most_common():
        out.print(f"would be quarantined: {counted(count, 'item')}: {reason}", markup=False)
    superseded = sum(report.superseded for report in reports)
    over = f"{superseded:,} be superseded, " if superseded else ""
    out.print(
        f"dry run of {counted(len(reports), 'file')}, {counted(sum(r.items for r in reports), 'item')}: "
        f"{sum(r.loaded for r in reports):,} would load, {sum(sum(r.skipped.values()) for r in reports):,} be "
        f"skipped, {over}{reasons.total():,} be quarantined; nothing was written"
    )
    sys.exit(tell_left(left_of(profile, reports)))


@click.command("retry-failed")
@PROFILE
@WAIT
def retry_failed(reference: str, wait: bool) -> None:
    """Load failed and stopped files again, each from its beginning; aggregates and finishing follow."""
    opened = plan, profile, instance = open_plan(reference)
    with patiently("waiting for Dagster to load the plan"):
        instance.load_plan(plan, profile)
    files, assets = _read_states(opened, f"; migration-pipeline backfill {plan.reference} loads them again")
    wanted = [f for f in files if f.state in ("failed", "stopped")]
    then = to_launch(assets, files, wanted)
    if not wanted and not then:
        click.echo(f"{count_states(files)}: nothing to retry")
        return
    _launch(opened, wanted, then, f"{profile.name}: retry of {counted(len(wanted), 'file')}", wait)


def _read_states(
    opened: Opened, way_out: str, *, attempts: bool = True
) -> tuple[list[FileStatus], list[AssetStatus]]:
    """Read the states of files and of what follows them, and say what the database no longer has, with its `way_out`."""
    plan, profile, instance = opened
    with patiently(f"reading the state of {counted(len(plan.files), 'file')}"):
        files = read_files(instance, plan, profile, attempts=attempts)
        assets = downstream(instance, profile)
    with patiently("comparing it with the database"):
        lost = mark_lost(plan, profile, files, assets)
    for line in lost:
        click.echo(f"{line}{way_out}", err=True)
    return files, assets


def _launch(opened: Opened, wanted: list[FileStatus], then: list[list[str]], title: str, wait: bool) -> None:
    _, profile, instance = opened
    with patiently("comparing the tables with the profile"):
        unknown = tables_fit(profile)
    if unknown:
        warn(unknown)
    with patiently("launching"):
        backfill_id = backfills.launch(instance, profile, [file.partition for file in wanted], title, then)
    click.echo(
        f"launched backfill {backfill_id} of {counted(len(wanted), 'file')}: {instance.url}/runs/b/{backfill_id}"
    )
    if then:
        click.echo(f"then: {', '.join(key[-1] for key in then)}")
    if wait:
        sys.exit(_await(opened, backfill_id, wanted, then))


def _await(opened: Opened, backfill_id: str, wanted: list[FileStatus], then: list[list[str]]) -> int:
    """Show a backfill until it is over, then its result. Returns the exit status."""
    plan, profile, instance = opened
    result = _watch(opened, backfill_id, wanted, then)
    if result.error:  # first: how the files are may not be known
        click.echo(f"backfill {result.id} {result.status}: {result.error}", err=True)
    everything = read_files(instance, plan, profile)
    partitions = {file.partition for file in wanted}
    files = [file for file in everything if file.partition in partitions]
    for file in files:
        _tell_failed(file.file.name, file)
    made = [asset for asset in downstream(instance, profile) if asset.key in then]
    for asset in made:
        _tell_failed(asset.name, asset)
    if then:
        click.echo(", ".join(f"{asset.name} {asset.state}" for asset in made))
    click.echo(count_states(files))
    code = exit_status([*files, *made])
    if code:
        click.echo(
            f"next: fix the cause, then migration-pipeline retry-failed {plan.reference} --wait", err=True
        )
    loaded = everything if then else files
    return tell_left(left(plan, profile, loaded, settings.known_database_url()), plan.reference) or code


def _watch(
    opened: Opened, backfill_id: str, wanted: list[FileStatus], then: list[list[str]]
) -> backfills.Backfill:
    """Show a backfill until it is over. Ctrl-C ends the process, and leaves the backfill."""
    plan, profile, instance = opened
    goes_on = backfill_id

    def launched(again: str) -> None:
        nonlocal goes_on
        goes_on = again
        if again:
            click.echo(f"launched again as backfill {again}: {instance.url}/runs/b/{again}")

    try:
        return watch_to_the_end(
            console(), instance, plan, profile, backfill_id, wanted, then, on_launch=launched
        )
    except KeyboardInterrupt:
        told = (
            f"backfill {goes_on} goes on; follow it with `migration-pipeline status {plan.reference} --watch`, "
            f"stop it with `migration-pipeline stop {plan.reference}`"
            if goes_on
            else f"nothing goes on; launch it again with `migration-pipeline backfill {plan.reference} --wait`"
        )
        click.echo(f"\n{told}", err=True)
        sys.exit(1)


def _tell_failed(name: str, status: FileStatus | AssetStatus) -> None:
    if status.error:
        click.echo(f"failed: {name} (run {status.run_id[:8]}): {status.error}", err=True)


@click.command()
@PROFILE
def replay(reference: str) -> None:
    """Run the quarantined items of loaded files through the profile again, after fixing it or a table.

    Items that load now, or that the profile skips now, leave the quarantine. Loading a file again does the same.
    """
    made, profile, _ = open_plan(reference)
    report = replay_plan(made, profile, settings.database_url(), "replay", click.echo)
    if not report.items:
        click.echo("nothing to replay: no loaded file has items in quarantine")
        return
    for reason, count in report.quarantined_by_reason.items():
        click.echo(f"still bad: {counted(count, 'item')}: {reason}")
    over = f"{report.superseded:,} superseded, " if report.superseded else ""
    click.echo(
        f"{counted(report.items, 'item')} replayed: {report.loaded:,} loaded, {report.skipped:,} skipped, "
        f"{over}{report.quarantined:,} still in quarantine"
    )
    if report.loaded and profile.aggregates:
        click.echo(
            f"the aggregates do not have them yet; next: migration-pipeline backfill {reference} --wait"
        )
    sys.exit(1 if report.quarantined else 0)


@click.command()
@PROFILE
def stop(reference: str) -> None:
    """Stop the migration: cancel its backfills, terminate its runs. Materialized files stay materialized.

    A running file keeps the batches that it has committed; it is loaded from its beginning the next time.
    """
    plan, profile, instance = open_plan(reference)
    try:
        done = backfills.stop(instance, plan, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(f"\nDagster goes on stopping; see `migration-pipeline status {plan.profile}`", err=True)
        sys.exit(1)
    if done.runs or done.backfills:
        click.echo(
            f"cancelled {counted(len(done.backfills), 'backfill')}, terminated {counted(len(done.runs), 'run')}"
        )
    else:
        click.echo("nothing to stop: no backfill and no run of this profile is active")
    files = read_files(instance, plan, profile)
    click.echo(count_states(files))
    for run in done.left:
        click.echo(
            f"still {run.status.lower()}: run {run.id}: {instance.url}/runs/{run.id} (Terminate there can force it)",
            err=True,
        )
    for backfill_id in done.open_backfills:
        click.echo(
            f"still being cancelled: backfill {backfill_id}: {instance.url}/runs/b/{backfill_id}", err=True
        )
    if exit_status(files):
        click.echo(
            f"next: to go on, migration-pipeline backfill {plan.reference} --wait loads everything that is not materialized"
        )
    sys.exit(1 if done.left or done.open_backfills else 0)
