"""The live displays: a backfill until it is over, and the state of all files until they are loaded.

In a pipe it writes a line when something changes, and once a minute while files are running.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from migration_pipeline import settings
from migration_pipeline.cli.terminal import count_states, stamped, status_table
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.backfills import Backfill, read_backfill, relaunch
from migration_pipeline.operations.client import (
    DAEMON_READS_ALL_SECONDS,
    DagsterAwayError,
    DagsterClient,
    DagsterClientError,
)
from migration_pipeline.operations.downstream import downstream
from migration_pipeline.operations.files import FileStatus, read_files, read_launched, tell_queued
from migration_pipeline.operations.running import Follow, RunningFile
from migration_pipeline.operations.runs import last_run, log_lines, run_error
from migration_pipeline.operations.status import known_receipts
from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted, duration, some_of

POLL_SECONDS = 0.5

STATUS_SECONDS = 2.0

SHARE = 0.02
"""Of a core, at most, that looking costs: so much of the time is spent in it, however many files there are."""

FEW, FEW_SECONDS = 50, 2.0
"""So many files or fewer are looked at so often by `--wait`: people look at their bars, and their looks are cheap."""

RELAUNCHES = 3
"""How often a backfill is launched again that Dagster's daemon has failed for want of code."""

OUTLASTED_SECONDS = 600.0
"""How long `--wait` goes on without an answer that tells how the files are."""

SPEED_SECONDS = 60.0
"""The speed shown is that of the last minute."""

PIPE_SECONDS = 60.0
"""Seconds between two lines in a pipe while no file changes its state."""

BARS = 8
"""Running files that have a bar of their own."""


def watch(
    out: Console,
    instance: DagsterClient,
    plan: Plan,
    profile: Profile,
    backfill_id: str,
    launched: Sequence[FileStatus],
    then: Sequence[Sequence[str]] = (),
) -> Backfill:
    """Show a backfill's progress until it is over: overall, of each running file, and of the assets that follow.

    `launched` are its files as they were before: a file is done when another run has materialized it. `then`
    are the keys of the assets that follow the files (aggregates, finishing). It outlasts a Dagster that is away for
    `OUTLASTED_SECONDS`.
    """
    before = {file.partition for file in launched}
    total = sum(file.file.items for file in launched)
    follow = Follow(instance, plan)
    pace = _Pace(POLL_SECONDS, FEW_SECONDS if len(launched) <= FEW else inf)
    answered = time.monotonic()
    with _Board(out, total) as board:
        while True:
            over: Backfill | None = None
            try:
                with pace:
                    backfill = read_backfill(instance, backfill_id)
                    over = backfill if backfill.over else None
                    running = [file for file in follow.running() if file.planned.partition in before]
                    files = read_launched(instance, plan, profile, backfill, launched)
                    tell_queued(files, running)
                    loaded = all(file.state == "materialized" for file in files)
                    making = _making(instance, profile, then) if loaded and then else ""
                    board.show(files, running, over=backfill.over, making=making)
                    for file in board.newly_failed(files):
                        run = last_run(instance, plan, profile, plan.by_partition()[file.partition])
                        board.say(f"failed: {file.file.name}: {run_error(instance, run.id) if run else ''}")
                # Another backfill's run may still be making what follows the files: not yet done, and not failed either.
                if over and not making:
                    return over
                answered = time.monotonic()
                pace.wait(partial(_moved, instance, backfill))
            except DagsterClientError as error:
                if over:  # how its files are, the caller asks again, and tells
                    return over
                if not isinstance(error, DagsterAwayError) or time.monotonic() - answered > OUTLASTED_SECONDS:
                    raise
                board.say_once(f"waiting: {error}")
                time.sleep(FEW_SECONDS)


def watch_to_the_end(
    out: Console,
    instance: DagsterClient,
    plan: Plan,
    profile: Profile,
    backfill_id: str,
    launched: Sequence[FileStatus],
    then: Sequence[Sequence[str]] = (),
    on_launch: Callable[[str], None] = lambda _: None,
) -> Backfill:
    """Watch a backfill, and launch it again while Dagster's daemon fails it for want of the code that the webserver has.

    `on_launch` gets the id of each one that is launched, and "" while none goes on.
    """
    result = watch(out, instance, plan, profile, backfill_id, launched, then)
    for number in range(RELAUNCHES):
        if not (result.without_code and instance.knows(plan, profile)):
            break
        on_launch("")
        out.print(
            f"backfill {result.id} failed: Dagster's daemon has older code; it is launched again once it must have this, within "
            f"{DAEMON_READS_ALL_SECONDS} s",
            markup=False,
            soft_wrap=True,
        )
        if number:
            time.sleep(DAEMON_READS_ALL_SECONDS)
        else:
            instance.await_daemon(DAEMON_READS_ALL_SECONDS)
        again = relaunch(instance, result.id)
        on_launch(again)
        result = watch(out, instance, plan, profile, again, launched, then)
    return result


class _Pace:
    """Looks so seldom that looking takes at most `SHARE` of the time, with `least` to `most` seconds between two looks."""

    def __init__(self, least: float, most: float = inf) -> None:
        self._least, self._most = least, most
        self._began = self._took = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        # What failed was waited for, rather than worked on.
        self._took = 0.0 if failed else time.monotonic() - self._began

    def wait(self, over: Callable[[], bool] = lambda: False) -> None:
        """Wait for the time of the next look, or until it is over, which is asked meanwhile, and counts, too."""
        pause = self._least
        while self._left() > 2 * pause:
            time.sleep(pause)
            asking = time.monotonic()
            if over():
                return
            asked = time.monotonic() - asking
            self._took += asked
            pause = max(self._least, 2 * asked / SHARE)
        time.sleep(max(self._least, self._left()))

    def _left(self) -> float:
        return self._began + min(self._took / SHARE, self._most) - time.monotonic()


def _moved(instance: DagsterClient, backfill: Backfill) -> bool:
    """Whether a backfill has another status by now."""
    return read_backfill(instance, backfill.id).status != backfill.status


def _making(instance: DagsterClient, profile: Profile, keys: Sequence[Sequence[str]]) -> str:
    """Return the last log line of the run that makes one of these assets now; "" for none."""
    said_by = {table.name: f"{table.qualified}: " for table in profile.all_tables}
    for asset in downstream(instance, profile):
        if asset.key in keys and asset.state == "running":
            lines, _ = log_lines(instance, asset.run_id)
            said = [line.text for line in lines if line.text.startswith(said_by.get(asset.name, "\n"))]
            return said[-1] if said else f"{asset.name}: started"
    return ""


class _Board:
    """The display of `watch`."""

    def __init__(self, out: Console, items: int) -> None:
        self._out = out
        self._items = items
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=40)),
            _text("{task.percentage:>3.0f}%"),
            _text("{task.fields[speed]}"),
            _text("{task.fields[left]}"),
            speed_estimate_period=SPEED_SECONDS,
            auto_refresh=False,
            expand=True,
        )
        self._live = Live(console=out, auto_refresh=False, redirect_stderr=False)
        self._all = self._bars.add_task("all files", total=max(items, 1), speed="", left="")
        self._of: dict[str, TaskID] = {}
        self._failed: set[str] = set()
        self._said = ("", 0, 0.0)
        self._made = self._complained = ""

    def __enter__(self) -> _Board:
        if self._out.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(
        self, files: Sequence[FileStatus], running: Sequence[RunningFile], *, over: bool, making: str = ""
    ) -> None:
        line = count_states(files, missing="missing" if over else "waiting")  # for the daemon, to be queued
        done = sum(file.file.items for file in files if file.state == "materialized")
        loading = {file.partition for file in files if file.state == "running"}
        running = [file for file in running if file.planned.partition in loading]
        read = done + sum(file.items for file in running)
        # A file that failed takes its part back.
        self._bars.update(self._all, completed=read if self._items else 1)
        task = self._bars.tasks[0]
        left = (
            "" if over or read >= self._items or not task.speed else f"{duration(task.time_remaining)} left"
        )
        self._bars.update(self._all, speed=_speed(task.speed), left=left)
        self._show_running(running)
        if self._out.is_terminal:
            head = Text(f"{line}; {some_of(read, self._items, 'item')} in {duration(task.elapsed)}")
            self._live.update(Group(head, self._bars, *([Text(making)] if making else [])), refresh=True)
        elif making:
            self._write_making(making)
        else:
            self._write(line, done, read, left)

    def _show_running(self, running: Sequence[RunningFile]) -> None:
        shown = {file.planned.partition: file for file in running[:BARS]}
        for partition in set(self._of) - set(shown):
            self._bars.remove_task(self._of.pop(partition))
        for partition, file in shown.items():
            if partition not in self._of:
                name = f"  {file.planned.file.name}"
                items = max(file.planned.file.items, 1)
                self._of[partition] = self._bars.add_task(name, total=items, speed="", left="")
            eta = file.progress.eta_seconds
            self._bars.update(
                self._of[partition],
                completed=file.items,
                speed=_speed(file.items_per_second),
                left="" if eta is None else f"{duration(eta)} left",
            )

    def _write(self, line: str, done: int, read: int, left: str) -> None:
        said, then_read, when = self._said
        now = time.monotonic()
        if line != said or (read != then_read and now - when > PIPE_SECONDS):
            running = f" ({read - done:,} more in running files)" if read > done else ""
            self._out.print(
                stamped(
                    f"{line}, {some_of(done, self._items, 'item')}{running}" + (f", {left}" if left else "")
                ),
                markup=False,
            )
            self._said = (line, read, now)

    def _write_making(self, making: str) -> None:
        if making != self._made:
            self._out.print(stamped(making), markup=False)
            self._made = making

    def newly_failed(self, files: Sequence[FileStatus]) -> list[FileStatus]:
        """Return files that failed since the last call; none in a pipe, where they are printed at the end."""
        failed = [file for file in files if file.state == "failed" and file.partition not in self._failed]
        self._failed.update(file.partition for file in failed)
        return failed if self._out.is_terminal else []

    def say_once(self, text: str) -> None:
        """Write a line above the bars, unless it is there already."""
        if text != self._complained:
            self._complained = text
            self.say(text)

    def say(self, text: str) -> None:
        """Write a line above the bars."""
        self._out.print(text, markup=False, style="red", soft_wrap=True)


def _text(template: str) -> TextColumn:
    return TextColumn(template, justify="right", table_column=Column(no_wrap=True))


def _speed(items_per_second: float | None) -> str:
    return f"{items_per_second:,.0f} items/s" if items_per_second else ""


def watch_status(out: Console, instance: DagsterClient, plan: Plan, profile: Profile) -> list[FileStatus]:
    """Show all files, refreshed until all are materialized; returns their final states.

    It waits for a Dagster that does not answer for a while.
    """
    follow = Follow(instance, plan)
    said = ""
    pace = _Pace(STATUS_SECONDS)
    known: dict[str, FileStatus] = {}
    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            files: list[FileStatus] = []
            try:
                with pace:
                    running = follow.running()
                    receipts = {} if known else known_receipts(plan, settings.known_database_url())
                    files = read_files(instance, plan, profile, known=known, receipts=receipts)
                known = {file.partition: file for file in files}
                tell_queued(files, running)
                line = count_states(files)
                shown = Group(_fitting(out, files, running), Text(f"{line}   {time.strftime('%H:%M:%S')}"))
            except MigrationError as error:
                line, shown = f"error: {error}", Group(Text(f"error: {error}", style="red"))
            if out.is_terminal:
                live.update(shown, refresh=True)
            elif line != said:
                out.print(stamped(line), markup=False)
                said = line
            if files and all(file.state == "materialized" for file in files):
                return files
            pace.wait()


def _fitting(out: Console, files: Sequence[FileStatus], running: Sequence[RunningFile]) -> Group:
    """Make a table of as many files as the terminal has lines for, the most interesting first."""
    room = max(out.height - 4, 3)
    order = ("failed", "running", "stopped", "queued", "launched", "missing", "materialized")
    chosen = sorted(files, key=lambda file: order.index(file.state))[:room] if len(files) > room else files
    more = (
        [Text(f"… and {counted(len(files) - len(chosen), 'more file')}", style="dim")]
        if len(files) > room
        else []
    )
    return Group(status_table(chosen, running), *more)
