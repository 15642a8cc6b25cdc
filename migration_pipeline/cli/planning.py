"""The commands before a load: pin the files of exports, create the tables."""

from __future__ import annotations

from collections.abc import Sequence

import click

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE
from migration_pipeline.cli.terminal import warn
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.first_look import first_look
from migration_pipeline.migration.plan import Plan, check_other_plans, make_plan, plan_path, write_plan
from migration_pipeline.migration.units import readable_size
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.ddl import ddl as ddl_of

RELOAD_SECONDS = 30
"""How long `plan` waits for a Dagster to take the plan."""


@click.command()
@click.option(
    "--profile",
    "reference",
    required=True,
    help="PROFILE is a shipped profile's name (shop, pictures) or a path (my_package.my_module:profile).",
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
@click.argument("exports", nargs=-1, required=True)
def plan(reference: str, files_per_run: int, options: tuple[str, ...], exports: tuple[str, ...]) -> None:
    """Read the manifests of EXPORTS and pin their files as the profile's partitions.

    An EXPORT is s3://bucket/prefix/AWSDynamoDB/<id> or a folder of the same layout.
    """
    profile = load_profile(reference)
    check_other_plans(profile, settings.plans_dir(), warn)
    storage = Storage()
    found = [read_export(location, storage, warn) for location in exports]
    made = make_plan(profile, reference, found, files_per_run, _options(options))
    changed = write_plan(made, settings.plans_dir())
    click.echo(
        f"{'planned' if changed else 'unchanged:'} {len(made.files):,} files, {made.items:,} items, "
        f"{readable_size(made.bytes)} compressed: {plan_path(settings.plans_dir(), profile.name)}"
    )
    for warning in first_look(profile, found, storage):
        warn(warning)
    _show_plan(made, profile, changed)
    click.echo(
        f"next: create the tables (migration-pipeline ddl {reference} --apply), then "
        f"migration-pipeline backfill {reference} --wait"
    )


def _options(given: Sequence[str]) -> dict[str, str]:
    """Split ``NAME=VALUE``."""
    options = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE", param_hint="--option")
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
        instance.load_plan(plan, profile, changed=changed)
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
        create_tables(settings.database_url(), tables)
        click.echo("-- applied", err=True)
