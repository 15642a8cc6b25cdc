"""The commands that look at a running migration: its files, a file's log, its metrics."""

from __future__ import annotations

import contextlib
import sys

import click

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE, open_plan
from migration_pipeline.cli.terminal import (
    Which,
    console,
    count_states,
    downstream_table,
    exit_status,
    log_line,
    print_status,
    tell_left,
)
from migration_pipeline.cli.watch import watch_status
from migration_pipeline.errors import UsageError
from migration_pipeline.migration.plans import Unloadable, read_plans
from migration_pipeline.operations.backfills import backfills
from migration_pipeline.operations.downstream import downstream
from migration_pipeline.operations.files import read_files, tell_queued
from migration_pipeline.operations.preflight import mark_lost
from migration_pipeline.operations.running import Follow, RunningFile
from migration_pipeline.operations.runs import file_log, last_run, one_file, runs_of
from migration_pipeline.operations.status import known_receipts, left, status_json


@click.command()
@PROFILE
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")
@click.option(
    "--watch", "again", is_flag=True, help="Refresh every two seconds until everything is materialized."
)
@click.option("--failed", "which", flag_value="failed", help="List only files that failed or were stopped.")
@click.option("--all", "which", flag_value="all", help="List all files, one by one, however many there are.")
def status(reference: str, as_json: bool, again: bool, which: Which | None) -> None:
    """List files, aggregates and finishing: state, items, rows, run, and progress or error.

    Of more than 40 files, those that failed or are running are listed, and the rest is counted. Exit status 1 unless all are materialized, a rule took every item, and no more items are in the quarantine than the
    profile allows.
    """
    if as_json and again:
        raise UsageError("--json and --watch cannot be combined; to poll, call status --json repeatedly")
    if which and (as_json or again):
        raise UsageError(f"--{which} cannot be combined with --json or --watch, which have all files")
    plan, profile, instance = open_plan(reference)
    out, running = console(), list[RunningFile]()
    if again:
        try:
            files = watch_status(out, instance, plan, profile)
        except KeyboardInterrupt:
            sys.exit(1)  # the last state stays on the screen
    else:
        running = Follow(instance, plan).running()
        receipts = known_receipts(plan, settings.known_database_url())
        files = read_files(instance, plan, profile, receipts=receipts)
    then = downstream(instance, profile)
    mark_lost(plan, profile, files, then)
    tell_queued(files, running)
    items = left(plan, profile, files, settings.known_database_url())
    if as_json:
        click.echo(status_json(plan, files, running, backfills(instance, plan), then, items))
        sys.exit(exit_status([*files, *then]) or int(items.faults))
    if not again:
        print_status(out, files, running, which or "some")
    out.print(downstream_table(then))
    out.print(count_states(files))
    sys.exit(tell_left(items, plan.reference) or exit_status([*files, *then]))


@click.command()
@PROFILE
@click.argument("file")
@click.option("--follow", "-f", is_flag=True, help="Print new lines until the run is over, or Ctrl-C.")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Print all tries, the oldest first, each after a line that names its run.",
)
def logs(reference: str, file: str, follow: bool, every: bool) -> None:
    """Print the log of the last run that tried FILE: the file's name, or a unique part of it.

    A line before it, on standard error, says which try it is, of how many, and how it ended.
    """
    plan, profile, instance = open_plan(reference)
    planned = one_file(plan, file)
    run = last_run(instance, plan, profile, planned)
    if run is None:
        click.echo(f"{planned.file.name}: no run has tried it yet, or the run was deleted", err=True)
        sys.exit(1)
    tries = runs_of(instance, plan, planned)
    earlier = [each for each in tries if each.id != run.id]
    more = " (--all prints the others, too)" if earlier and not every else ""
    with contextlib.suppress(KeyboardInterrupt):
        for number, each in enumerate([*(earlier if every else ()), run], 1 if every else len(earlier) + 1):
            click.echo(
                f"{planned.file.name}: run {each.id}, try {number} of {len(earlier) + 1}{more}, {each.status.lower()}: "
                f"{instance.url}/runs/{each.id}",
                err=not every,  # of several tries it tells them apart, also in a file that they are written to
            )
            for line in file_log(instance, each, planned, follow=follow and each is run):
                click.echo(log_line(line))


@click.command()
@click.argument("references", metavar="[PROFILE]...", nargs=-1)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9464,
    show_default=True,
    help="Port to serve at; 0: a free one.",
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at; there is no authentication."
)
def metrics(references: tuple[str, ...], port: int, host: str) -> None:
    """Serve /metrics for Prometheus until Ctrl-C, for these profiles or for all that have a plan.

    The numbers come from the running Dagster and from the receipts in the database, at each scrape.
    """
    from migration_pipeline.operations.metrics import Server  # of no use to who looks once

    plans, faults = [open_plan(reference)[:2] for reference in references], dict[str, Unloadable]()
    if not references:
        plans, faults = read_plans(settings.plans_dir())
    for fault in faults.values():
        click.echo(f"not served: {fault.why}", err=True)
    if not plans:
        raise UsageError("no plan yet, so nothing to measure; make one with: migration-pipeline plan")
    server = Server(plans, settings.webserver_url(), settings.database_url(), host, port)
    with contextlib.suppress(KeyboardInterrupt):
        click.echo(f"serving {server.url} of {', '.join(plan.profile for plan, _ in plans)}; Ctrl-C ends it")
        server.wait()
    server.close()
