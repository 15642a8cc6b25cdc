"""The commands that follow a living table until the application switches: follow, cutover."""

from __future__ import annotations

import fcntl
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click
import msgspec

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE, Opened, open_plan
from migration_pipeline.cli.exporting import OWNER, VIEW, ask, say, tell_asked, too_early
from migration_pipeline.cli.terminal import console, stamped, warn
from migration_pipeline.cli.times import length, moment
from migration_pipeline.cli.watch import watch_to_the_end
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.cutover import checklist, read_facts, ready
from migration_pipeline.migration.plan import Plan, add_windows
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.migration.reach import planned_until
from migration_pipeline.operations import backfills, following
from migration_pipeline.operations.client import DagsterClientError
from migration_pipeline.operations.cutover import ask_dagster
from migration_pipeline.operations.downstream import downstream, to_launch
from migration_pipeline.operations.exports import Asked, Place, UnreachableError
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.operations.preflight import mark_lost, tables_fit
from migration_pipeline.sources.export import View, read_export
from migration_pipeline.sources.storage import is_s3
from migration_pipeline.sources.window_times import LONGEST, SHORTEST, due, spelled
from migration_pipeline.units import counted, counted_that, readable_time

BUSY_SECONDS = 5.0
"""How often files are looked at that somebody else has launched."""

WAKE_SECONDS = 30.0
"""How often `follow` looks how far the table's recovery is, at least, while it waits for the next window."""


RETRY_SECONDS, TRIES = 60.0, 15
"""How long `follow` waits for a Dagster or DynamoDB that does not answer: the time of an upgrade."""


@click.command()
@PROFILE
@click.argument("address", metavar="s3://BUCKET/PREFIX")
@click.option(
    "--every",
    type=length,
    default="15m",
    show_default=True,
    metavar="LENGTH",
    help="How long a window is: 15m to 24h.",
)
@click.option(
    "--until",
    type=moment,
    metavar="TIME",
    help="End once everything up to TIME is loaded (ISO 8601, UTC unless a zone is given).",
)
@click.option(
    "--once", is_flag=True, help="One round at most, for cron: load what is left, then the windows up to now."
)
@VIEW
@OWNER
def follow(
    reference: str, address: str, every: timedelta, until: datetime | None, once: bool, view: View, owner: str
) -> None:
    """Follow the living table: export the next window to S3, add it to the plan, load it, and so on.

    It goes on until Ctrl-C, or --until. After it was ended or killed, it goes on from the plan: windows that are there are loaded
    first, and exports that were asked for are taken up. Exit status 1 if a file fails.
    """
    if not SHORTEST <= every <= LONGEST:
        raise click.BadParameter("expected 15m to 24h, as DynamoDB's windows are", param_hint="--every")
    course = _Course(reference, Place.of(address, owner), view, until)
    try:
        with _alone(course.profile):
            course.round(first=True)
            while not (once or course.over):
                course.go_on(every)
    except KeyboardInterrupt:
        click.echo(f"\n{course.doing or 'ended between two windows'}", err=True)
        sys.exit(1 if course.doing else 0)


@contextmanager
def _alone(profile: str) -> Iterator[None]:
    """See that no other `follow` of a profile runs on this machine, as one that cron starts may. Raises `MigrationError`."""
    place = settings.plans_dir()
    path = Path(tempfile.gettempdir() if is_s3(place) else place) / f"{profile}.follow"
    try:
        lock = path.open("w")
    except OSError as error:
        raise MigrationError(
            f"{path}: cannot be written: {error.strerror}; follow writes the plan there"
        ) from None
    with lock:  # it ends with the process
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MigrationError(
                f"another follow of {profile} is running here; let it go on, or end it with Ctrl-C"
            ) from None
        yield


class _Course:
    """The course of a `follow`."""

    def __init__(self, reference: str, place: Place, view: View, until: datetime | None) -> None:
        self._reference = reference
        self._place = place
        self._view = view
        self._until = until
        # One of each: what a client leaves is cleared away at any time, and a Ctrl-C in that moment is lost.
        plan, _, self._client = open_plan(reference)
        self.profile = plan.profile
        self._table = following.followed_table(plan)
        self._again = f"migration-pipeline follow {reference} {place.arguments}"
        self.doing = ""
        """What goes on without this command, and how to take it up; "" between two rounds."""

    @property
    def over(self) -> bool:
        """Whether everything up to the end is planned, and so loaded after a round."""
        return self._until is not None and planned_until(open_plan(self._reference)[0]) >= self._until

    def go_on(self, every: timedelta) -> None:
        """Wait for the next window, and load it. A Dagster or DynamoDB that does not answer is waited for, `TRIES` times."""
        for tried in itertools.count(1):
            try:
                self.sleep(every)
                self.round(first=tried > 1)  # what it had asked for when that happened is found again
                return
            except (DagsterClientError, UnreachableError) as error:
                if tried == TRIES:
                    raise
                say(f"{error}; trying again in {RETRY_SECONDS:.0f} s")
                time.sleep(RETRY_SECONDS)

    def sleep(self, every: timedelta) -> None:
        """Wait until the next window can be exported."""
        self.doing = ""
        goal = due(planned_until(open_plan(self._reference)[0]), every, self._until)
        while (left := (goal - self._table.recovery().latest).total_seconds()) > 0:
            time.sleep(min(max(left, 1.0), WAKE_SECONDS))

    def round(self, *, first: bool = False) -> None:
        """Load what is left, then the windows up to now."""
        self._load(self._open(changed=False))
        plan = open_plan(self._reference)[0]  # that took a while, and somebody may have added a window
        start = planned_until(plan)
        self.doing = f"exports that were asked for go on in AWS; {self._again} takes them up"
        asked = ask(self._table, plan, self._place, self._view, start, self._until, look_back=first)
        if not asked:
            say(too_early(plan, start, self._until))
        tell_asked(asked)
        for each in asked:
            self._add(self._table.wait(each, say))
            self._load(self._open(changed=True), finish=each is asked[-1])
        self.doing = ""

    def _open(self, *, changed: bool) -> Opened:
        """Read the plan, which another command may have changed since, and have Dagster load it."""
        plan, profile, _ = open_plan(self._reference)
        self._client.load_plan(plan, profile, changed=changed)
        return plan, profile, self._client

    def _add(self, asked: Asked) -> None:
        plan, profile, _ = open_plan(self._reference)
        added = add_windows(plan, profile, [read_export(asked.address, self._table.storage, warn)])
        write_plan(added, settings.plans_dir())
        say(f"added to the plan: {asked.address}, {counted(added.items - plan.items, 'record')}")

    def _load(self, opened: Opened, *, finish: bool = True) -> None:
        """Load what is not loaded, window by window; with `finish`, make what is made of all files, too."""
        plan, profile, instance = opened
        tried: set[str] = set()
        while True:
            files = self._settled(opened)
            assets = downstream(instance, profile)
            for lost in mark_lost(plan, profile, files, assets):
                click.echo(lost, err=True)
            wanted = following.next_files(plan, files)
            then = to_launch(assets, files, wanted) if finish else []
            if not wanted and not then:
                break
            if again := [file for file in wanted if file.partition in tried]:
                raise following.failure(plan, again)
            self._launch(opened, wanted, then)
            tried.update(file.partition for file in wanted)
            if not wanted:
                break
        self._tell_lag(plan, files)

    def _settled(self, opened: Opened) -> list[FileStatus]:
        """Read the files' states once nothing runs; what somebody else has launched is waited for."""
        plan, profile, instance = opened
        said = 0
        while busy := following.busy(files := read_files(instance, plan, profile)):
            if busy != said:
                say(
                    f"waiting for {counted_that(busy, 'file', 'that is', 'that are')} running, queued or launched"
                )
            said = busy
            time.sleep(BUSY_SECONDS)
        return files

    def _launch(self, opened: Opened, wanted: list[FileStatus], then: list[list[str]]) -> None:
        """Load some files, and what follows them. Raises `MigrationError` if one of them was not loaded."""
        plan, profile, instance = opened
        if unknown := tables_fit(profile):
            warn(unknown)
        export = plan.by_partition()[wanted[0].partition].export_id if wanted else ""
        title = following.titled(profile, wanted, export)
        backfill = backfills.launch(instance, profile, [file.partition for file in wanted], title, then)
        self._goes_on(backfill)
        watch_to_the_end(
            console(stderr=True), instance, plan, profile, backfill, wanted, then, on_launch=self._goes_on
        )
        partitions = {file.partition for file in wanted}
        left = [f for f in read_files(instance, plan, profile) if f.partition in partitions]
        if failed := [file for file in left if file.state != "materialized"]:
            raise following.failure(plan, failed)
        following.check_made(plan, downstream(instance, profile), then)

    def _goes_on(self, backfill: str) -> None:
        self.doing = f"backfill {backfill} goes on; {self._again} takes it up" if backfill else ""

    def _tell_lag(self, plan: Plan, files: Sequence[FileStatus]) -> None:
        reached = following.reached(plan, files)
        if reached is not None:
            lag = (datetime.now(timezone.utc) - reached).total_seconds()
            click.echo(stamped(f"loaded up to {spelled(reached)}; lag {readable_time(max(lag, 0))}"))


# -- cutover -----------------------------------------------------------------------------------------


@click.command()
@PROFILE
@click.option(
    "--max-lag",
    type=length,
    metavar="LENGTH",
    help="No, if the last loaded window ended longer ago: 30m, 1h.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")
def cutover(reference: str, max_lag: timedelta | None, as_json: bool) -> None:
    """Tell whether the application can switch to PostgreSQL now: a checklist that ends in yes or no.

    Nothing is changed. Run it once writes to the table have stopped, and the last window after that is loaded. Exit status 0 if
    all of it holds, else 1.
    """
    plan, profile, instance = open_plan(reference)
    with console(stderr=True).status("reading the receipts, and the tables"):
        facts = read_facts(
            plan, profile, settings.database_url(), ask_dagster(plan, profile, instance), max_lag
        )
    checks = checklist(facts)
    yes = ready(checks)
    if as_json:
        lag = None if facts.lag is None else facts.lag.total_seconds()
        document = {
            "profile": plan.profile,
            "cutover": yes,
            "loaded_until": facts.reached,
            "lag_seconds": lag,
            "checks": checks,
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        for check in checks:
            click.echo(
                f"{'ok' if check.passed else 'NO':2}  {check.name}: {check.text}{check.way_out and f'; {check.way_out}'}"
            )
        click.echo("yes: the application can switch" if yes else "no: see above")
    sys.exit(0 if yes else 1)
