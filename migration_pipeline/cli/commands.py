"""The command line. Thin: it reads arguments, calls the layers, prints, and sets the exit status.

Exit status: 0 done, 1 something is failed or missing, 2 the call was wrong.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from migration_pipeline import settings
from migration_pipeline.cli.terminal import (
    console,
    count_states,
    downstream_table,
    dry_run_table,
    log_line,
    reading,
    status_table,
    verification_table,
)
from migration_pipeline.cli.watch import watch, watch_status
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import (
    Plan,
    PlannedFile,
    check_other_plans,
    make_plan,
    plan_path,
    planned_profile,
    read_plan,
    read_plans,
    write_plan,
)
from migration_pipeline.migration.verdicts import Left, exports_before, extra_text, left_of
from migration_pipeline.operations.client import FileStatus, Instance
from migration_pipeline.operations.runs import (
    Follow,
    backfills,
    file_log,
    last_run,
    one_file,
    stop,
    tell_queued,
)
from migration_pipeline.operations.status import left, status_json
from migration_pipeline.profile.profile import Profile, load_profile

if TYPE_CHECKING:  # not needed by most commands; the first takes Dagster, whose import costs a second
    from migration_pipeline.discovery.survey import Survey
    from migration_pipeline.operations.downstream import AssetStatus

RELOAD_SECONDS = 30
"""How long `plan` waits for a Dagster to take the plan."""

PROFILE_HELP = (
    "PROFILE is a shipped profile's name (shop, pictures) or a path (my_package.my_module:profile)."
)


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
@click.option(
    "--profile",
    type=click.Choice(["shop", "pictures"]),
    default="shop",
    show_default=True,
    help="The shipped profile whose table it is.",
)
def sample(folder: Path, items: int, files: int, seed: int, bad: int, profile: str) -> None:
    """Write a realistic export below FOLDER, in the layout that DynamoDB writes."""
    from migration_pipeline.demo.sample import write_sample

    out = console()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(f"writing {items:,} items", total=items)
        export = write_sample(
            folder, items=items, files=files, seed=seed, bad=bad, profile=profile,
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
    from migration_pipeline.discovery import inspection

    found = inspection.facts(_survey(location, items_per_file, everything))
    if page is not None:
        try:
            page.write_text(inspection.html(found), encoding="utf-8")
        except OSError as error:
            raise MigrationError(f"{page}: cannot be written: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console().print(inspection.tables(found))
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
    from migration_pipeline.discovery import scaffold

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
    for rest in made.rests:
        if rest.others:
            click.echo(
                f"{rest.table}: {rest.columns:,} attributes are columns; {rest.others:,}"
                f"{'' if rest.all_counted else ' or more'} others are none, and go to its document, the column {rest.column}"
            )
    if not survey.whole:
        click.echo(
            "attributes that only items have that were not looked at go to the document of their table"
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
@click.option(
    "--option",
    "options",
    metavar="NAME=VALUE",
    multiple=True,
    help="A value for an option of the profile, for all that is done with the plan. May be repeated.",
)
@click.argument("exports", nargs=-1, required=True)
def plan(reference: str, files_per_run: int, options: tuple[str, ...], exports: tuple[str, ...]) -> None:
    """Read the manifests of EXPORTS and pin their files as the profile's partitions.

    An EXPORT is s3://bucket/prefix/AWSDynamoDB/<id> or a folder of the same layout.
    """
    from migration_pipeline.migration.first_look import first_look
    from migration_pipeline.sources.export import read_export
    from migration_pipeline.sources.storage import Storage

    profile = load_profile(reference)
    check_other_plans(profile, settings.plans_dir(), _warn)
    storage = Storage()
    found = [
        read_export(location, storage, warn=lambda text: click.echo(f"warning: {text}", err=True))
        for location in exports
    ]
    made = make_plan(profile, reference, found, files_per_run, _options(options))
    changed = write_plan(made, settings.plans_dir())
    click.echo(
        f"{'planned' if changed else 'unchanged:'} {len(made.files):,} files, {made.items:,} items, "
        f"{made.bytes / 1e6:,.1f} MB compressed: {plan_path(settings.plans_dir(), profile.name)}"
    )
    for warning in first_look(profile, found, storage):
        _warn(warning)
    _show_plan(made, profile, changed)
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

    profile = load_profile(reference)
    check_other_plans(profile, settings.plans_dir(), _warn)
    tables = profile.all_tables
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
@click.option(
    "--only",
    metavar="FILE",
    multiple=True,
    help="Only files of this name or partition; a part of it will do, or a pattern (*, ?). May be repeated.",
)
@click.option(
    "--files",
    "first",
    type=click.IntRange(1),
    metavar="N",
    help="Only the first N of them: a careful first step.",
)
@click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help="Launch nothing: read the files here, all of them unless some are chosen, and tell what their load would do. Nothing is written.",
)
def backfill(
    reference: str, everything: bool, wait: bool, only: tuple[str, ...], first: int | None, dry: bool
) -> None:
    """Launch a backfill of all files that are not materialized, then of what is made of them all."""
    from migration_pipeline.operations.downstream import downstream, outdated, to_launch
    from migration_pipeline.operations.preflight import mark_lost

    plan, profile, instance = _open(reference)
    chosen = {planned.partition for text in only for planned in plan.matching(text)}
    if dry:
        _dry_run(plan, profile, [p for p in plan.files if not only or p.partition in chosen][:first])
        return
    instance.load_plan(plan, profile)
    files = instance.files(plan, profile, attempts=False)
    assets = downstream(instance, profile)
    for lost in mark_lost(plan, profile, files, assets):
        click.echo(lost, err=True)
    asked = [f for f in files if not only or f.partition in chosen]
    busy = [f for f in asked if f.state in ("running", "queued")]
    if everything and busy:
        click.echo(f"left out, as they are running or queued: {len(busy):,} files", err=True)
    left_to_load = [f for f in asked if f not in busy and (everything or f.state in ("missing", "failed"))]
    wanted = left_to_load[:first]
    then = to_launch(assets, files, wanted, lambda: outdated(plan, profile, settings.known_database_url()))
    if not wanted and not then:
        click.echo(
            f"{count_states(asked)}: nothing to launch" + ("" if busy else " (--all loads them again)")
        )
        if wait:
            sys.exit(_tell_left(left(plan, profile, asked, settings.known_database_url()), plan))
        return
    _launch(instance, plan, profile, wanted, f"{profile.name}: {len(wanted)} files", wait, then)


@main.command()
@click.argument("reference", metavar="PROFILE")
def replay(reference: str) -> None:
    """Run the quarantined items of loaded files through the profile again, after it or a table was mended.

    Items that load, or that the profile skips now, leave the quarantine. Loading a file again does the same.
    """
    from migration_pipeline.migration.replay import replay_plan

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
    if report.loaded and profile.aggregates:
        click.echo(
            f"what is made of all files does not have them yet: migration-pipeline backfill {reference} --wait"
        )
    if report.quarantined:
        raise click.exceptions.Exit(1)


@main.command()
@click.argument("reference", metavar="PROFILE")
@click.option(
    "--extra", is_flag=True, help="Look for rows that no item makes, key by key; without, they are counted."
)
@click.option("--keys", is_flag=True, help="Print keys of rows at fault, which are values of items.")
def verify(reference: str, extra: bool, keys: bool) -> None:
    """Read the export again, and compare each row that it makes with the database. Nothing in the tables is written.

    Exit status 1 if a row is missing, different or extra, a bad item is not in the quarantine, no rule takes an item, or
    more items are in the quarantine than the profile says may be.
    """
    from migration_pipeline.migration import verification
    from migration_pipeline.targets.receipts import read_differences, read_receipts

    made, profile, _ = _open(reference)
    out, url = console(), settings.database_url()
    with reading(out, made.files) as on_progress:
        compared = verification.verify(
            made, profile, url, "verify", extra=extra, say=out.print, on_progress=on_progress
        )
    tables = compared.names
    out.print(verification_table(compared, tables))
    for note in compared.notes:
        out.print(note, markup=False)
    if keys:
        for table, kind, columns, key, file in read_differences(url, profile.name):
            out.print(f"{table}: {kind} {','.join(columns)} {json.dumps(key)} {file}", markup=False)
    faults = sum(map(compared.faults, tables))
    rows = sum(compared.table(name).compared for name in tables)
    if compared.unaccounted:
        out.print(f"{compared.unaccounted:,} bad items are not in the quarantine: load their files again")
    if not faults and compared.takes_nothing:
        out.print(f"no route of the profile takes any of the {made.items:,} items: nothing was compared")
    elif not faults:
        out.print(f"all {rows:,} rows of the export are in the tables, and no others")
    else:
        out.print(
            f"{faults:,} rows are not as the export has them"
            + ("" if keys else "; see some of their keys with --keys, or in migration.difference")
        )
    if surplus := sum(compared.table(name).count("extra") for name in tables):
        before = exports_before(made, read_receipts(url, profile.name))
        out.print(extra_text(surplus, before, made.reference), markup=False)
    code = _tell_left(left_of(profile, [file.report for file in compared.files]), made)
    sys.exit(1 if faults or compared.unaccounted or compared.takes_nothing else code)


@main.command("retry-failed")
@click.argument("reference", metavar="PROFILE")
@click.option(
    "--wait", is_flag=True, help="Show progress until it is over; Ctrl-C leaves the backfill running."
)
def retry_failed(reference: str, wait: bool) -> None:
    """Load the files again that failed or were stopped, each from its beginning; then what is made of all files."""
    from migration_pipeline.operations.downstream import downstream, to_launch
    from migration_pipeline.operations.preflight import mark_lost

    plan, profile, instance = _open(reference)
    instance.load_plan(plan, profile)
    files = instance.files(plan, profile)
    assets = downstream(instance, profile)
    for lost in mark_lost(plan, profile, files, assets):
        click.echo(f"{lost}; migration-pipeline backfill {plan.reference} loads them again", err=True)
    wanted = [f for f in files if f.state in ("failed", "stopped")]
    then = to_launch(assets, files, wanted)
    if not wanted and not then:
        click.echo(f"{count_states(files)}: nothing to retry")
        return
    _launch(instance, plan, profile, wanted, f"{profile.name}: retry of {len(wanted)} files", wait, then)


@main.command()
@click.argument("reference", metavar="PROFILE")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")
@click.option(
    "--watch", "again", is_flag=True, help="Show it anew every two seconds until all is materialized."
)
def status(reference: str, as_json: bool, again: bool) -> None:
    """List the files, and what is made of them all: state, items, rows, run, how far it is or why it failed.

    Exit status 1 unless all are materialized, a rule took every item, and no more items are in the quarantine than the
    profile says may be.
    """
    from migration_pipeline.operations.downstream import downstream
    from migration_pipeline.operations.preflight import mark_lost

    if as_json and again:
        raise UsageError("--json and --watch exclude each other; call status --json as often as you like")
    plan, profile, instance = _open(reference)
    out = console()
    if again:
        try:
            files = watch_status(out, instance, plan, profile)
        except KeyboardInterrupt:
            sys.exit(1)  # the last state stays on the screen
        then = downstream(instance, profile)
        mark_lost(plan, profile, files, then)
    else:
        running = Follow(instance, plan).running()
        files = instance.files(plan, profile)
        then = downstream(instance, profile)
        mark_lost(plan, profile, files, then)
        tell_queued(files, running)
        if as_json:
            items = left(plan, profile, files, settings.known_database_url())
            click.echo(status_json(plan, files, running, backfills(instance, plan), then, items))
            sys.exit(_status_code([*files, *then]) or int(items.faults))
        out.print(status_table(files, running))
    out.print(downstream_table(then))
    out.print(count_states(files))
    code = _tell_left(left(plan, profile, files, settings.known_database_url()), plan)
    sys.exit(_status_code([*files, *then]) or code)


@main.command()
@click.argument("reference", metavar="PROFILE")
@click.argument("file")
@click.option("--follow", "-f", is_flag=True, help="Go on with what is new until the run is over, or Ctrl-C.")
def logs(reference: str, file: str, follow: bool) -> None:
    """Print the log of the last run that tried FILE: the file's name, or a part that no other file has."""
    plan, profile, instance = _open(reference)
    planned = one_file(plan, file)
    run = last_run(instance, plan, profile, planned)
    if run is None:
        click.echo(f"{planned.file.name}: no run has tried it yet, or the run was deleted", err=True)
        sys.exit(1)
    click.echo(
        f"{planned.file.name}: run {run.id}, {run.status.lower()}: {instance.url}/runs/{run.id}", err=True
    )
    with contextlib.suppress(KeyboardInterrupt):
        for line in file_log(instance, run, planned, follow=follow):
            click.echo(log_line(line))


@main.command("stop")
@click.argument("reference", metavar="PROFILE")
def stop_command(reference: str) -> None:
    """Stop the migration: cancel its backfills, terminate its runs. What is materialized stays so.

    A running file keeps the batches that it has committed; it is loaded from its beginning the next time.
    """
    plan, profile, instance = _open(reference)
    try:
        done = stop(instance, plan, lambda text: click.echo(text, err=True))
    except KeyboardInterrupt:
        click.echo(f"\nDagster goes on stopping; see `migration-pipeline status {plan.profile}`", err=True)
        sys.exit(1)
    if done.runs or done.backfills:
        click.echo(f"cancelled {len(done.backfills):,} backfills, terminated {len(done.runs):,} runs")
    else:
        click.echo("nothing to stop: no backfill and no run of this profile is active")
    files = instance.files(plan, profile)
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
    if _status_code(files):
        click.echo(
            f"next: to go on, migration-pipeline backfill {plan.reference} --wait: it loads all that is not materialized"
        )
    sys.exit(1 if done.left or done.open_backfills else 0)


@main.command()
@click.argument("references", metavar="[PROFILE]...", nargs=-1)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9464,
    show_default=True,
    help="Port to serve at; 0: a free one.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; there is no password."
)
def metrics(references: tuple[str, ...], port: int, host: str) -> None:
    """Serve /metrics for Prometheus until Ctrl-C: of these profiles, or of all that are planned.

    The numbers come from the running Dagster and from the receipts in the database, at each scrape.
    """
    from migration_pipeline.operations.metrics import Server

    plans, faults = [_open(reference)[:2] for reference in references], dict[str, str]()
    if not references:
        plans, faults = read_plans(settings.plans_dir())
    for fault in faults.values():
        click.echo(f"not served: {fault}", err=True)
    server = Server(plans, settings.webserver_url(), settings.database_url(), host, port)
    click.echo(f"serving {server.url} of {', '.join(plan.profile for plan, _ in plans)}; Ctrl-C ends it")
    with contextlib.suppress(KeyboardInterrupt):
        server.wait()
    server.close()


@main.command()
@click.argument("reference", metavar="PROFILE")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False, writable=True),
    default=Path("report.html"),
    show_default=True,
    help="The file to write.",
)
def report(reference: str, output: Path) -> None:
    """Write one HTML file that tells and proves what was migrated, to attach to a change ticket.

    It needs no network to be opened. Exit status 1 if items of the plan are not accounted for, and if no verification
    proves what the tables hold now.
    """
    try:
        from migration_pipeline.operations.report.account import gather
        from migration_pipeline.operations.report.page import write_page
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error}; install what reports need: pip install 'migration-pipeline[report]'"
        ) from None
    plan, profile, instance = _open(reference)
    with console(stderr=True).status("gathering what is known, and counting the rows"):
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
        click.echo(f"next: migration-pipeline verify {plan.reference}, then this again", err=True)
    sys.exit(0 if account.complete else 1)


@main.command("reconcile")
@click.argument("reference", metavar="PROFILE")
def reconcile_command(reference: str) -> None:
    """Tell Dagster of what is loaded and made, as the database's receipts prove, and that it does not show.

    As after a run was deleted, and its materialization with it. Exit status 1 if Dagster shows files as
    materialized that have no receipt.
    """
    from migration_pipeline.operations.reconcile import reconcile

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
    for asset, made in done.aggregates:
        click.echo(
            f"reported as materialized: {asset.name}: made {made.made_at:%Y-%m-%d %H:%M:%S %Z}, run {made.run_id[:8]}"
        )
    for file, reason in done.refused:
        click.echo(f"not reported: {file.file.name}: {reason}", err=True)
    for asset, reason in done.refused_aggregates:
        click.echo(
            f"not reported: {asset.name}: {reason}; migration-pipeline backfill {plan.reference} makes it again",
            err=True,
        )
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
    if not (done.reported or done.aggregates or done.refused or done.refused_aggregates or done.unproven):
        click.echo("nothing to do: Dagster shows all that has a receipt")
    click.echo(count_states(instance.files(plan, profile)))
    sys.exit(1 if done.unproven else 0)


@main.command()
@click.option("--items", type=click.IntRange(0), default=200_000, show_default=True)
@click.option("--files", type=click.IntRange(1), default=8, show_default=True)
def demo(items: int, files: int) -> None:
    """Migrate a sample export into an embedded PostgreSQL, through a Dagster of its own."""
    from migration_pipeline.demo.demo import run_demo

    sys.exit(run_demo(items, files))


@main.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the Dagster UI."
)
def dev(port: int) -> None:
    """Run Dagster (UI, daemon, code server) and the embedded PostgreSQL until Ctrl-C."""
    from migration_pipeline.demo.demo import run_dev

    run_dev(port)


@main.command()
def clean() -> None:
    """Remove the embedded PostgreSQL with its data, and everything else below the state folder."""
    from migration_pipeline.demo.demo import remove_state

    remove_state()


def _survey(location: str, items_per_file: int, everything: bool) -> Survey:
    """Look at an export, with progress on stderr."""
    from migration_pipeline.discovery.sampling import take_sample
    from migration_pipeline.discovery.survey import survey_everything, survey_sample
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


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


def _show_plan(plan: Plan, profile: Profile, changed: bool) -> None:
    """Have a Dagster that runs load the plan; else its UI goes on with the one before. A plan can be made without one."""
    instance = Instance(settings.webserver_url(), RELOAD_SECONDS)
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
        _warn(f"{error}; until its definitions are reloaded, Dagster goes on with the plan that it knows")


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
    instance: Instance,
    plan: Plan,
    profile: Profile,
    wanted: list[FileStatus],
    title: str,
    wait: bool,
    then: list[list[str]],
) -> None:
    from migration_pipeline.operations.downstream import downstream
    from migration_pipeline.operations.preflight import tables_fit

    if unknown := tables_fit(profile):
        _warn(unknown)
    partitions = [file.partition for file in wanted]
    backfill_id = instance.launch(plan, profile, partitions, title, then)
    click.echo(f"launched backfill {backfill_id} of {len(wanted)} files: {instance.url}/runs/b/{backfill_id}")
    if then:
        click.echo(f"then: {', '.join(key[-1] for key in then)}")
    if not wait:
        return
    try:
        result = watch(console(), instance, plan, profile, backfill_id, wanted, then)
    except KeyboardInterrupt:
        click.echo(
            f"\nbackfill {backfill_id} goes on; see it with `migration-pipeline status {plan.reference} --watch`, "
            f"end it with `migration-pipeline stop {plan.reference}`",
            err=True,
        )
        sys.exit(1)
    everything = instance.files(plan, profile)
    files = [f for f in everything if f.partition in partitions]
    for file in files:
        if file.error:
            click.echo(f"failed: {file.file.name} (run {file.run_id[:8]}): {file.error}", err=True)
    if result.error:
        click.echo(f"backfill {backfill_id} {result.status}: {result.error}", err=True)
    made = [asset for asset in downstream(instance, profile) if asset.key in then]
    for asset in made:
        if asset.error:
            click.echo(f"failed: {asset.name} (run {asset.run_id[:8]}): {asset.error}", err=True)
    if then:
        click.echo(", ".join(f"{asset.name} {asset.state}" for asset in made))
    click.echo(count_states(files))
    if code := _status_code([*files, *made]):
        click.echo(
            f"next: mend the cause, then migration-pipeline retry-failed {plan.reference} --wait", err=True
        )
    loaded = everything if then else files
    left_code = _tell_left(left(plan, profile, loaded, settings.known_database_url()), plan)
    if code or left_code:
        sys.exit(1)


def _dry_run(plan: Plan, profile: Profile, files: list[PlannedFile]) -> None:
    """Tell what a load of some files would do. Exit status 1 if it would leave items that speak against its being complete."""
    from migration_pipeline.migration import verification

    out = console()
    with reading(out, files) as on_progress:
        compared = verification.dry_run(
            plan, profile, settings.database_url(), files, say=out.print, on_progress=on_progress
        )
    out.print(dry_run_table(compared, compared.names))
    for note in compared.notes:
        out.print(note, markup=False)
    reports = [file.report for file in compared.files]
    reasons = Counter[str]()
    for report in reports:
        reasons.update(report.quarantined_by_reason)
    for reason, count in reasons.most_common():
        out.print(f"would be quarantined: {count:,} items: {reason}", markup=False)
    out.print(
        f"dry run of {len(reports)} files, {sum(r.items for r in reports):,} items: "
        f"{sum(r.loaded for r in reports):,} would load, {sum(sum(r.skipped.values()) for r in reports):,} be "
        f"skipped, {reasons.total():,} be quarantined; nothing was written"
    )
    sys.exit(_tell_left(left_of(profile, reports)))


def _tell_left(items: Left, plan: Plan | None = None) -> int:
    """Name the items that no rule takes, and those in the quarantine, of files that were loaded by a plan, or of a dry run.

    Gives the exit status that they make.
    """
    for line in items.lines(plan.reference if plan else ""):
        click.echo(line)
    return int(items.faults)


def _options(given: Sequence[str]) -> dict[str, str]:
    """Split ``NAME=VALUE``."""
    options = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(f"{text!r} is to be NAME=VALUE", param_hint="--option")
        options[name] = value
    return options


def _status_code(states: Sequence[FileStatus | AssetStatus]) -> int:
    return 0 if all(each.state == "materialized" for each in states) else 1
