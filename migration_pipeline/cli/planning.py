"""The commands before a load: pin the files of exports, create the tables."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import click

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE, open_plan
from migration_pipeline.cli.terminal import patiently, warn
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.first_look import first_look
from migration_pipeline.migration.plan import Plan, add_windows, make_plan, proposed_files_per_run
from migration_pipeline.migration.plans import check_other_plans, plan_path, read_plan, write_plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.profile.row import Table
from migration_pipeline.sources.bare import read_bare_export
from migration_pipeline.sources.export import Export, read_exports, utc
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.catalog import SchemaError
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.ddl import create_tables, misfits
from migration_pipeline.targets.ddl import ddl as ddl_of
from migration_pipeline.units import counted, counted_that, readable_size

RELOAD_SECONDS = 30
"""How long `plan` waits for a Dagster to take the plan."""


@click.command()
@click.option(
    "--profile",
    "reference",
    help="Make a new plan for this profile: PROFILE is a shipped profile's name (shop, pictures) or a path (my_package.my_module:profile).",
)
@click.option(
    "--files-per-run",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Files that a backfill loads in one run; for thousands of small files, use a few hundred.",
)
@click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="A value for one of the profile's options, for everything done with the plan. May be repeated.",
)
@click.option(
    "--throttle",
    "throttle",
    metavar="NAME=VALUE",
    multiple=True,
    help="A default for a setting of the throttle, such as max_lag_seconds=5. May be repeated.",
)
@click.option(
    "--add",
    "added",
    metavar="WINDOW",
    multiple=True,
    help="Add windows to the plan of the profile that is named first: plan shop --add WINDOW WINDOW.",
)
@click.option(
    "--allow-gap",
    is_flag=True,
    help="Accept a hole in the chain of windows: what was written in it is lost, and a check fails for good.",
)
@click.option(
    "--without-manifest",
    is_flag=True,
    help="EXPORTS have none, such as those of emulators: take all files of each folder (….gz), and count and checksum them now. "
    "Nothing vouches for completeness then, and plan, receipts and report say so.",
)
@click.option(
    "--ignore-manifest-md5",
    "ignore_md5",
    is_flag=True,
    help="Take a manifest that does not match its .md5. Plan, receipts and report say so.",
)
@click.argument("exports", nargs=-1)
def plan(
    reference: str | None,
    files_per_run: int,
    options: tuple[str, ...],
    throttle: tuple[str, ...],
    added: tuple[str, ...],
    allow_gap: bool,
    without_manifest: bool,
    ignore_md5: bool,
    exports: tuple[str, ...],
) -> None:
    """Read the manifests of EXPORTS and pin their files as the profile's partitions.

    An EXPORT is s3://bucket/prefix/AWSDynamoDB/<id> or a folder of the same layout: full exports, or one full export and
    the windows (incremental exports) that follow it. With --add, windows are added to a plan, and what is planned already
    stays as it is.
    """
    if added:
        if files_per_run > 1 or options or throttle:
            raise click.UsageError(
                "--files-per-run, --option and --throttle are those of the plan; they cannot be given with --add"
            )
        if without_manifest:
            raise click.UsageError(
                "a window's manifest says which time it covers: --add cannot do without it"
            )
        _add(reference, [*exports, *added], allow_gap, ignore_md5)
        return
    if reference is None or not exports:
        raise click.UsageError("give --profile and its exports, or a profile's name and --add with windows")
    profile = load_profile(reference)
    check_other_plans(profile, settings.plans_dir(), warn)
    storage = Storage()
    found = (
        [read_bare_export(each, storage, partial(click.echo, err=True)) for each in exports]
        if without_manifest
        else read_exports(exports, storage, warn, ignore_md5=ignore_md5)
    )
    before = _plan_that_is_there(profile.name)
    made = make_plan(
        profile,
        reference,
        found,
        files_per_run,
        _options(options),
        allow_gap,
        tell=warn,
        throttle=_options(throttle, "--throttle"),
        before=before,
    )
    if before:
        _tell_dropped(before, made)
    _write(made, profile, found, storage)
    if several := proposed_files_per_run(made):
        click.echo(
            f"{counted(len(made.files), 'small file')}: plan again with --files-per-run {several}, and a backfill needs "
            f"{counted(-(-len(made.files) // several), 'run')} instead of {len(made.files):,}"
        )
    click.echo(
        f"next: create the tables (migration-pipeline ddl {reference} --apply), then "
        f"migration-pipeline backfill {reference} --wait"
    )


def _add(reference: str | None, given: list[str], allow_gap: bool, ignore_md5: bool) -> None:
    """Add windows to the plan of a profile: that of --profile, or else the first that is given."""
    if reference is None:
        reference, *given = given
    if not given:
        raise click.UsageError("--add needs the profile whose plan it adds to: plan shop --add WINDOW")
    there, profile, _ = open_plan(reference)
    check_other_plans(profile, settings.plans_dir(), warn)
    storage = Storage()
    found = read_exports(given, storage, warn, ignore_md5=ignore_md5)
    made = add_windows(there, profile, found, allow_gap, tell=warn)
    known = {export.id for export in there.exports}
    for export in found:
        if export.id in known:
            click.echo(f"in the plan already: {export.id}")
    _write(made, profile, [export for export in found if export.id not in known], storage)
    click.echo(f"next: migration-pipeline backfill {reference} --wait")


def _plan_that_is_there(name: str) -> Plan | None:
    try:
        return read_plan(plan_path(settings.plans_dir(), name))
    except UsageError:
        return None  # there is none, or none that is valid


def _tell_dropped(before: Plan, plan: Plan) -> None:
    """Warn of windows in the plan that is there and not in the one that takes its place: what they loaded stays loaded."""
    kept = {export.id for export in plan.exports}
    dropped = [export for export in before.windows if export.id not in kept]
    if dropped:
        warn(
            f"{counted_that(len(dropped), 'window', 'of the plan before is', 'of the plan before are')} not in this one, {dropped[0].uri} first; if they are loaded, "
            f"their rows stay: give them, too, or add them (migration-pipeline plan {plan.reference} --add WINDOW…)"
        )


def _write(plan: Plan, profile: Profile, read: Sequence[Export], storage: Storage) -> None:
    """Write a plan, say what it holds and what is odd about the exports just read, and have a running Dagster load it."""
    changed = write_plan(plan, settings.plans_dir())
    click.echo(
        f"{'planned' if changed else 'unchanged:'} {_summary(plan)}: {plan_path(settings.plans_dir(), profile.name)}"
    )
    for export in read:
        if export.doubt:
            warn(f"nothing vouches that {export.uri} is complete: {export.doubt}")
    for warning in first_look(profile, read, storage):
        warn(warning)
    _show_plan(plan, profile, changed)


def _summary(plan: Plan) -> str:
    """Say what a plan holds; of one with windows, base and windows apart, with their times."""
    size = f"{readable_size(plan.bytes)} compressed"
    if not plan.windows:
        return f"{counted(len(plan.files), 'file')}, {counted(plan.items, 'item')}, {size}"
    windows = {export.id for export in plan.windows}
    files = [planned for planned in plan.files if planned.export_id in windows]
    records = sum(planned.file.items for planned in files)
    last = max(export.window.end for export in plan.windows if export.window)
    return (
        f"{counted(len(plan.files) - len(files), 'file')}, {counted(plan.items - records, 'item')} of {plan.exports[0].export_time}, and "
        f"{counted(len(windows), 'window')} to {utc(last)}: {counted(len(files), 'file')}, {counted(records, 'record')}; {size}"
    )


def _options(given: Sequence[str], hint: str = "--option") -> dict[str, str]:
    """Split ``NAME=VALUE``."""
    options = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE", param_hint=hint)
        options[name] = value
    return options


def _show_plan(plan: Plan, profile: Profile, changed: bool) -> None:
    """Make a running Dagster load the plan; otherwise its UI keeps the previous one. Without a Dagster, only warn."""
    instance = DagsterClient(settings.webserver_url(), RELOAD_SECONDS)
    if not instance.answers():
        if instance.url != settings.DEFAULT_WEBSERVER_URL:  # somebody has named it
            click.echo(
                f"no Dagster answers at {instance.url}: it shows the plan once its definitions are reloaded",
                err=True,
            )
        return
    try:
        with patiently("waiting for Dagster to load the plan"):
            instance.load_plan(plan, profile, changed=changed, for_launch=False)
    except MigrationError as error:
        warn(f"{error}; until its definitions are reloaded, Dagster goes on with the plan that it has")


@click.command()
@PROFILE
@click.option(
    "--apply", "apply_it", is_flag=True, help="Also run it on the database in MIGRATION_DATABASE_URL."
)
def ddl(reference: str, apply_it: bool) -> None:
    """Print the SQL that creates the profile's tables and the bookkeeping; running it again changes nothing."""
    profile = load_profile(reference)
    check_other_plans(profile, settings.plans_dir(), warn)
    tables = profile.all_tables
    click.echo(ddl_of(tables), nl=False)
    if apply_it:
        _apply(settings.database_url(), tables)
        click.echo("-- applied", err=True)


def _apply(url: str, tables: Sequence[Table]) -> None:
    """Create tables. Raises `SchemaError` if some that were there before do not fit, be the rest applied or not."""
    refused: DatabaseError | None = None
    try:
        create_tables(url, tables)
    except DatabaseError as error:
        if not error.sqlstate:
            raise
        refused = error
    if wrong := misfits(url, tables):
        what = "not applied, because" if refused else "applied, but"
        raise SchemaError(
            "\n".join([f"{what} tables that were there before do not fit the profile:", *wrong])
        )
    if refused:
        raise refused
