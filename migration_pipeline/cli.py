"""The command line. Thin: it reads arguments, calls the layers, prints, and sets the exit status.

Exit status: 0 done, 1 something is failed or missing, 2 the call was wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from migration_pipeline import settings
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.instance import FileStatus, Instance
from migration_pipeline.plan import Plan, make_plan, plan_path, planned_profile, read_plan, write_plan
from migration_pipeline.profile import Profile, load_profile
from migration_pipeline.terminal import console, count_states, status_table, watch

if TYPE_CHECKING:
    from migration_pipeline.inspection.survey import Survey

PROFILE_HELP = "PROFILE is a shipped profile's name (shop) or a path (my_package.my_module:profile)."


class _Group(click.Group):
    """Prints our own errors as one line, and gives them their exit status."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MigrationError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(2 if isinstance(error, UsageError) else 1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="migration-pipeline")
def main() -> None:
    """Move a DynamoDB table, exported to S3, into PostgreSQL through Dagster.

    The usual order: inspect, scaffold, plan, ddl, backfill --wait, status, retry-failed.
    """


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--items", type=click.IntRange(0), default=200_000, show_default=True, help="Items in all files."
)
@click.option(
    "--files",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Data files; of three or more, the last is empty.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed writes the same bytes.")
@click.option(
    "--bad",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Broken items to plant; bad-items.jsonl beside the export says which and why.",
)
def sample(folder: Path, items: int, files: int, seed: int, bad: int) -> None:
    """Write a realistic export of a shop below FOLDER, in the layout that DynamoDB writes."""
    from migration_pipeline.sample import write_sample

    out = console()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(f"writing {items:,} items", total=items)
        export = write_sample(
            folder, items=items, files=files, seed=seed, bad=bad,
            on_progress=lambda written: bar.update(task, completed=written),
        )  # fmt: skip
    out.print(f"wrote {items:,} items in {files} files: {escape(str(export))}", soft_wrap=True)
    if bad:
        out.print(f"{bad} of them are broken: {escape(str(folder / 'bad-items.jsonl'))}", soft_wrap=True)


ITEMS_PER_FILE = click.option(
    "--items-per-file",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="Items drawn of each file.",
)
EVERYTHING = click.option(
    "--all", "everything", is_flag=True, help="Read every item, instead of a sample: minutes for millions."
)


@main.command()
@click.argument("location", metavar="EXPORT")
@ITEMS_PER_FILE
@EVERYTHING
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all that was found to a page for a browser.",
)
def inspect(location: str, items_per_file: int, everything: bool, as_json: bool, page: Path | None) -> None:
    """Say what EXPORT holds: its entity types, their attributes, and the types that these fit.

    It reads a sample of every file, and says which. No text of an item is shown, but key prefixes, the
    constants of attributes with few values, and the range of numbers and times.
    """
    from migration_pipeline.inspection import report

    found = report.facts(_survey(location, items_per_file, everything))
    if page is not None:
        try:
            page.write_text(report.html(found), encoding="utf-8")
        except OSError as error:
            raise MigrationError(f"{page}: cannot be written: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console().print(report.tables(found))
        if page is not None:
            click.echo(f"written: {page}")
    sys.exit(1 if found["unread"] else 0)


@main.command("scaffold")
@click.argument("location", metavar="EXPORT")
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE.py",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The profile's module, which gives it its name; schema.sql and a test are written beside it.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@ITEMS_PER_FILE
@EVERYTHING
def scaffold_command(location: str, output: Path, force: bool, items_per_file: int, everything: bool) -> None:
    """Write a first profile for EXPORT, to read and to change: its module, schema.sql, and a test.

    It is made from a sample of every file, and tried on it. The test holds sampled items as they are.
    """
    from migration_pipeline import scaffold

    survey = _survey(location, items_per_file, everything)
    made = scaffold.scaffold(survey, output)
    scaffold.write(made, force)
    for reason in survey.unread.values():
        click.echo(f"warning: not read: {reason}", err=True)
    for path in made.files:
        click.echo(f"wrote {path}")
    click.echo(
        f"{made.entity_types:,} entity types; {made.cases:,} real items are cases of the test: mind who may see it"
    )
    for reason, count in made.bad.items():
        click.echo(f"bad: {count:,} sampled items: {reason}")
    click.echo(
        f"tried on {survey.sample.items:,} sampled items: {made.items:,} become rows, {made.unrouted:,} are unrouted, "
        f"{sum(made.bad.values()):,} would go to the quarantine"
    )
    click.echo(
        f"next: read {output.name}, then migration-pipeline plan --profile {output.stem}:profile {location}"
    )
    sys.exit(1 if survey.unread else 0)


@main.command()
@click.option("--profile", "reference", required=True, help=PROFILE_HELP)
@click.option(
    "--files-per-run",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Files that a backfill loads in one run; for exports of thousands of small files, a few hundred.",
)
@click.argument("exports", nargs=-1, required=True)
def plan(reference: str, files_per_run: int, exports: tuple[str, ...]) -> None:
    """Read the manifests of EXPORTS and pin their files as the profile's partitions.

    An EXPORT is s3://bucket/prefix/AWSDynamoDB/<id> or a folder of the same layout.
    """
    from migration_pipeline.sources.export import read_export
    from migration_pipeline.sources.storage import Storage

    profile = load_profile(reference)
    storage = Storage()
    found = [
        read_export(location, storage, warn=lambda text: click.echo(f"warning: {text}", err=True))
        for location in exports
    ]
    made = make_plan(profile, reference, found, files_per_run)
    changed = write_plan(made, settings.plans_dir())
    click.echo(
        f"{'planned' if changed else 'unchanged:'} {len(made.files):,} files, {made.items:,} items, "
        f"{made.bytes / 1e6:,.1f} MB compressed: {plan_path(settings.plans_dir(), profile.name)}"
    )
    click.echo(
        f"next: create the tables (migration-pipeline ddl {reference} --apply), then "
        f"migration-pipeline backfill {reference} --wait"
    )


@main.command()
@click.argument("reference", metavar="PROFILE")
@click.option(
    "--apply", "apply_it", is_flag=True, help="Run it on the database of MIGRATION_DATABASE_URL, too."
)
def ddl(reference: str, apply_it: bool) -> None:
    """Print the SQL that creates the profile's tables and the bookkeeping; running it again changes nothing."""
    from migration_pipeline.targets import ddl as target

    tables = load_profile(reference).tables.values()
    click.echo(target.ddl(tables), nl=False)
    if apply_it:
        target.create_tables(settings.database_url(), tables)
        click.echo("-- applied", err=True)


@main.command()
@click.argument("reference", metavar="PROFILE")
@click.option(
    "--all", "everything", is_flag=True, help="Load materialized files, too: again, from their beginning."
)
@click.option(
    "--wait", is_flag=True, help="Show progress until it is over; Ctrl-C leaves the backfill running."
)
def backfill(reference: str, everything: bool, wait: bool) -> None:
    """Launch a backfill of all files that are not materialized, in the running Dagster."""
    plan, profile, instance = _open(reference)
    instance.load_plan(plan, profile)
    files = instance.files(plan, profile, attempts=False)
    wanted = [f for f in files if everything or f.state in ("missing", "failed")]
    if not wanted:
        running = any(f.state == "running" for f in files)
        click.echo(
            f"{count_states(files)}: nothing to launch" + ("" if running else " (--all loads them again)")
        )
        return
    _launch(instance, plan, profile, wanted, f"{profile.name}: {len(wanted)} files", wait)


@main.command()
@click.argument("reference", metavar="PROFILE")
def replay(reference: str) -> None:
    """Run the quarantined items of loaded files through the profile again, after it or a table was mended.

    Items that load, or that the profile skips now, leave the quarantine. Loading a file again does the same.
    """
    from migration_pipeline.replay import replay_plan

    made, profile, _ = _open(reference)
    report = replay_plan(made, profile, settings.database_url(), "replay", click.echo)
    if not report.items:
        click.echo("nothing to replay: no loaded file has items in quarantine")
        return
    for reason, count in report.quarantined_by_reason.items():
        click.echo(f"still bad: {count:,} items: {reason}")
    click.echo(
        f"{report.items:,} items replayed: {report.loaded:,} loaded, {report.skipped:,} skipped, "
        f"{report.quarantined:,} still in quarantine"
    )
    if report.quarantined:
        raise click.exceptions.Exit(1)


@main.command("retry-failed")
@click.argument("reference", metavar="PROFILE")
@click.option(
    "--wait", is_flag=True, help="Show progress until it is over; Ctrl-C leaves the backfill running."
)
def retry_failed(reference: str, wait: bool) -> None:
    """Load the files again that failed or were stopped, each from its beginning."""
    plan, profile, instance = _open(reference)
    instance.load_plan(plan, profile)
    files = instance.files(plan, profile)
    wanted = [f for f in files if f.state in ("failed", "stopped")]
    if not wanted:
        click.echo(f"{count_states(files)}: nothing to retry")
        return
    _launch(instance, plan, profile, wanted, f"{profile.name}: retry of {len(wanted)} files", wait)


@main.command()
@click.argument("reference", metavar="PROFILE")
def status(reference: str) -> None:
    """List the files: state, items, rows, run and error. Exit status 1 unless all are materialized."""
    plan, profile, instance = _open(reference)
    files = instance.files(plan, profile)
    out = console()
    out.print(status_table(files))
    out.print(count_states(files))
    sys.exit(_status_code(files))


@main.command("reconcile")
@click.argument("reference", metavar="PROFILE")
def reconcile_command(reference: str) -> None:
    """Tell Dagster of files that are loaded, as the database's receipts prove, and that it does not show.

    As after a run was deleted, and its materialization with it. Exit status 1 if Dagster shows files as
    materialized that have no receipt.
    """
    from migration_pipeline.reconcile import reconcile

    plan, profile, instance = _open(reference)
    instance.load_plan(plan, profile)
    done = reconcile(plan, profile, instance, settings.database_url())
    for file, receipt in done.reported:
        note = (
            f", by version {receipt.profile_version} of the profile (it is {profile.version} now)"
            if file in done.other_version
            else ""
        )
        click.echo(
            f"reported as materialized: {file.file.name}: loaded {receipt.loaded_at:%Y-%m-%d %H:%M:%S %Z}, "
            f"run {receipt.run_id[:8]}{note}"
        )
    for file, reason in done.refused:
        click.echo(f"not reported: {file.file.name}: {reason}", err=True)
    for file in done.unproven:
        click.echo(
            f"warning: {file.file.name}: Dagster shows it as materialized, and the database has no receipt of it",
            err=True,
        )
    if done.unproven:
        click.echo(
            f"next: if this is the right database ({settings.DATABASE_URL}), load these files again: materialize "
            f"their partitions in the UI, or everything with migration-pipeline backfill {plan.reference} --all",
            err=True,
        )
    if not (done.reported or done.refused or done.unproven):
        click.echo("nothing to do: Dagster shows every file that has a receipt")
    click.echo(count_states(instance.files(plan, profile)))
    sys.exit(1 if done.unproven else 0)


@main.command()
@click.option("--items", type=click.IntRange(0), default=200_000, show_default=True)
@click.option("--files", type=click.IntRange(1), default=8, show_default=True)
def demo(items: int, files: int) -> None:
    """Migrate a sample export into an embedded PostgreSQL, through a Dagster of its own."""
    from migration_pipeline.local.demo import run_demo

    sys.exit(run_demo(items, files))


@main.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the Dagster UI."
)
def dev(port: int) -> None:
    """Run Dagster (UI, daemon, code server) and the embedded PostgreSQL until Ctrl-C."""
    from migration_pipeline.local.demo import run_dev

    run_dev(port)


@main.command()
def clean() -> None:
    """Remove the embedded PostgreSQL with its data, and everything else below the state folder."""
    from migration_pipeline.local.demo import remove_state

    remove_state()


def _survey(location: str, items_per_file: int, everything: bool) -> Survey:
    """Look at an export, with progress on stderr."""
    from migration_pipeline.inspection.sampling import take_sample
    from migration_pipeline.inspection.survey import survey_everything, survey_sample
    from migration_pipeline.sources.export import read_export
    from migration_pipeline.sources.storage import Storage

    storage = Storage()
    export = read_export(location, storage, warn=lambda text: click.echo(f"warning: {text}", err=True))
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        sampling = bar.add_task("sampling the files", total=len(export.files))
        sample = take_sample(export, storage, items_per_file, lambda: bar.advance(sampling))
        if not everything:
            looking = bar.add_task(f"looking at {sample.items:,} items", total=sample.items)
            return survey_sample(sample, lambda items: bar.advance(looking, items))
        reading = bar.add_task(f"reading {export.items:,} items", total=export.items)
        return survey_everything(sample, storage, lambda items: bar.advance(reading, items))


def _open(reference: str) -> tuple[Plan, Profile, Instance]:
    """Find a profile's plan, and the instance that runs it."""
    name = load_profile(reference).name if ":" in reference or "." in reference else reference
    path = plan_path(settings.plans_dir(), name)
    plan = read_plan(path)
    if reference not in (name, plan.reference):
        raise UsageError(
            f"{path}: this plan was made for another profile: {plan.reference}; plan again with --profile {reference}"
        )
    return plan, planned_profile(plan, path), Instance(settings.webserver_url())


def _launch(
    instance: Instance, plan: Plan, profile: Profile, wanted: list[FileStatus], title: str, wait: bool
) -> None:
    partitions = [file.partition for file in wanted]
    backfill_id = instance.launch(plan, profile, partitions, title)
    click.echo(f"launched backfill {backfill_id} of {len(wanted)} files: {instance.url}/runs/b/{backfill_id}")
    if not wait:
        return
    try:
        result = watch(console(), instance, plan, profile, backfill_id, wanted)
    except KeyboardInterrupt:
        click.echo(f"\nthe backfill goes on; see `migration-pipeline status {plan.profile}`")
        sys.exit(1)
    files = [f for f in instance.files(plan, profile) if f.partition in partitions]
    for file in files:
        if file.error:
            click.echo(f"failed: {file.file.name} (run {file.run_id[:8]}): {file.error}", err=True)
    if result.error:
        click.echo(f"backfill {backfill_id} {result.status}: {result.error}", err=True)
    click.echo(count_states(files))
    if code := _status_code(files):
        click.echo(
            f"next: mend the cause, then migration-pipeline retry-failed {plan.reference} --wait", err=True
        )
        sys.exit(code)


def _status_code(files: list[FileStatus]) -> int:
    return 0 if all(file.state == "materialized" for file in files) else 1
