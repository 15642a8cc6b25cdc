"""What the commands print: tables of files, summaries, warnings. The live display is in `cli/watch.py`."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TextIO

import click
from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from migration_pipeline.engine import file_report
from migration_pipeline.migration.plan import PlannedFile
from migration_pipeline.operations.doctor.findings import Finding
from migration_pipeline.operations.downstream import AssetStatus
from migration_pipeline.operations.files import FileStatus
from migration_pipeline.operations.running import RunningFile
from migration_pipeline.operations.runs import LogLine
from migration_pipeline.units import counted, duration, some_of

if TYPE_CHECKING:  # what they import is not needed by most commands
    from migration_pipeline.migration.newest import OnProgress
    from migration_pipeline.migration.verdicts import Left
from migration_pipeline.migration.verification import Compared

PIPE_WIDTH = 1000
"""Columns when output is piped: wide enough that no cell is folded, so that lines can be grepped."""

PATIENCE_SECONDS, SAID_AGAIN_SECONDS = 0.5, 15.0
"""A step is told of if it takes longer than that, and again after each of the other: with the start of the command, nothing is
silent for more than two seconds."""

LAID_OUT = 200
"""Files at most whose table is laid out for the width of the terminal, with colours."""

FEW = 40
"""Files that `status` lists one by one; of more it lists no more than so many, those that somebody has to look at."""

FAILED = ("failed", "stopped")
"""States of files that `retry-failed` takes."""

Which = Literal["some", "all", "failed"]
"""Which files have a line of their own."""

FILE_COLUMNS = ("file", "state", "items", "rows", "run", "note")

STYLES = {
    "materialized": "green",
    "failed": "red",
    "stopped": "yellow",
    "running": "cyan",
    "queued": "blue",
    "launched": "blue",
    "missing": "dim",
}


def console(*, stderr: bool = False) -> Console:
    """Make a console for standard output, or for errors; plain and wide when that is a pipe."""
    made = Console(highlight=False, soft_wrap=False, stderr=stderr)
    if made.is_terminal:
        return made
    pipe: Any = _Unpadded(sys.stderr if stderr else sys.stdout)
    return Console(highlight=False, width=PIPE_WIDTH, file=pipe)


class _Unpadded:
    """A file that takes lines without the blanks at their ends: tables pad each cell to its column."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def print_status(
    out: Console, files: Sequence[FileStatus], running: Sequence[RunningFile] = (), which: Which = "some"
) -> None:
    """Print a line for each file: state, items, rows, run, and progress or error.

    Of more than `FEW` files these are those that failed, were stopped or are running, and the rest is counted, unless `which`
    is "all" or "failed". More than `LAID_OUT` lines come without rich's layout, which takes a millisecond and a half a line.
    """
    shown = _shown(files, which)
    if len(shown) > LAID_OUT:
        _print_plainly(shown, running)
    elif shown:
        out.print(status_table(shown, running))
    if which == "some" and len(shown) < len(files):
        said = {id(file) for file in shown}
        others = Counter[str](file.state for file in files if id(file) not in said)
        counts = ", ".join(f"{others[state]:,} {state}" for state in STYLES if others[state])
        more = "more file" if shown else "file"
        failed = "--failed lists what failed, " if any(others[state] for state in FAILED) else ""
        out.print(f"{counted(others.total(), more)}: {counts} ({failed}--all lists them)", markup=False)


def _shown(files: Sequence[FileStatus], which: Which) -> Sequence[FileStatus]:
    """Choose the files that have a line."""
    if which == "failed":
        return [file for file in files if file.state in FAILED]
    if which == "all" or len(files) <= FEW:
        return files
    states = (*FAILED, "running")
    return sorted((f for f in files if f.state in states), key=lambda f: states.index(f.state))[:FEW]


def _print_plainly(files: Sequence[FileStatus], running: Sequence[RunningFile]) -> None:
    rows = [FILE_COLUMNS, *_status_rows(files, running)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, state, items, loaded, run, note = (
            text.rjust(width) if place in (2, 3) else text.ljust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo(f"{name}  {state}  {items}  {loaded}  {run}  {note}".rstrip())


def status_table(files: Sequence[FileStatus], running: Sequence[RunningFile] = ()) -> Table:
    """Make a table with a line for each file: state, items, rows, run, and progress or error."""
    table = _table(FILE_COLUMNS[:2], FILE_COLUMNS[2:4])
    table.add_column("run", no_wrap=True)
    table.add_column("note")
    for name, state, items, rows, run, note in _status_rows(files, running):
        table.add_row(
            name, Text(state, STYLES[state]), items, rows, run, Text(note)
        )  # an error may hold brackets
    return table


def _status_rows(
    files: Sequence[FileStatus], running: Sequence[RunningFile]
) -> Iterator[tuple[str, str, str, str, str, str]]:
    now = {file.planned.partition: file for file in running}
    for file in files:
        loading = now.get(file.partition) if file.state == "running" else None
        rows = sum(file.metadata.get("rows_by_table", {}).values()) if file.metadata else None
        yield (
            file.file.name,
            file.state,
            f"{file.file.items:,}",
            "" if rows is None else f"{rows:,}",
            (loading.run_id if loading else file.run_id)[:8],
            how_far(loading) if loading else file.error,
        )


def _table(words: Sequence[str], numbers: Sequence[str]) -> Table:
    """Make a table without borders: first columns of words, which are not folded, then columns of numbers."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    for name in words:
        made.add_column(name, no_wrap=True)
    for name in numbers:
        made.add_column(name, justify="right")
    return made


def _state(status: FileStatus | AssetStatus) -> Text:
    return Text(status.state, STYLES[status.state])


def downstream_table(assets: Sequence[AssetStatus]) -> Table:
    """Make a table with a line for each asset: state, rows, run, and why it failed."""
    table = _table(("then", "state"), ("rows",))
    table.add_column("run", no_wrap=True)
    table.add_column("error")
    for asset in assets:
        rows = "" if asset.rows is None else f"{asset.rows:,}"
        table.add_row(asset.name, _state(asset), rows, asset.run_id[:8], Text(asset.error))
    return table


def how_far(file: RunningFile) -> str:
    """Format a running file's progress: ``45%, 61,700 items/s, 0:24 left``."""
    progress = file.progress
    more = f", {counted(file.retries, 'retry', 'retries')}" if file.retries else ""
    more += f", throttled: {file.throttled}" if file.throttled else ""
    if not file.items:
        return f"started{more}"
    return (
        f"{progress.share:.0%}, {file.items_per_second:,.0f} items/s, "
        f"{duration(progress.eta_seconds)} left{more}"
    )


def count_states(files: Sequence[FileStatus], missing: str = "missing") -> str:
    """Count the files by state, in words: ``6 of 8 files materialized, 2 failed``; `missing` is the word for that state."""
    counts = Counter[str](file.state for file in files)
    others = "".join(
        f", {counts[state]:,} {missing if state == 'missing' else state}"
        for state in STYLES
        if state != "materialized" and counts[state]
    )
    return f"{some_of(counts['materialized'], len(files), 'file')} materialized{others}"


def summary(files: Sequence[FileStatus]) -> Group:
    """Sum up what was loaded, a line a file and one in total: items, rows by table, skipped, quarantined, speed."""
    done = [file.metadata for file in files if file.metadata]
    tables = _names(done, "rows_by_table")
    reasons = _names(done, "skipped_by_reason")
    columns = {"items": [metadata["items"] for metadata in done]}
    columns |= {name: [metadata["rows_by_table"].get(name, 0) for metadata in done] for name in tables}
    columns |= {
        f"skipped\n({number})": [metadata["skipped_by_reason"].get(reason, 0) for metadata in done]
        for number, reason in enumerate(reasons, 1)
    }
    columns["quaran-\ntined"] = [metadata["quarantined"] for metadata in done]
    seconds = sum(metadata["seconds"] for metadata in done)
    table = Table(
        box=box.SIMPLE_HEAD, header_style="bold", show_footer=True, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column("file", footer="total", no_wrap=True)
    for name, values in columns.items():
        table.add_column(name, f"{sum(values):,}", justify="right", overflow="fold")
    table.add_column("seconds", f"{seconds:,.2f}", justify="right")
    table.add_column("items/s", f"{sum(columns['items']) / seconds if seconds else 0:,.0f}", justify="right")
    for row, file in enumerate(file for file in files if file.metadata):
        table.add_row(
            file.file.name,
            *(f"{values[row]:,}" for values in columns.values()),
            f"{file.metadata['seconds']:,.2f}",
            f"{file.metadata['items_per_second']:,}",
        )
    legend = [Text(f"skipped ({number}): {reason}") for number, reason in enumerate(reasons, 1)]
    return Group(table, *legend)


def _names(done: Sequence[dict[str, Any]], label: str) -> list[str]:
    return list(dict.fromkeys(name for metadata in done for name in metadata[label]))


def exit_status(states: Sequence[FileStatus | AssetStatus]) -> int:
    """Return 0 if all are materialized, else 1."""
    return 0 if all(each.state == "materialized" for each in states) else 1


def tell_left(items: Left, reference: str = "") -> int:
    """Print how many items no rule takes, and how many are in the quarantine. Returns the exit status.

    `reference` names the profile in the next step that is printed; without it nothing is loaded yet.
    """
    for line in items.lines(reference):
        click.echo(line)
    return int(items.faults)


def warn(text: str) -> None:
    """Print a warning to standard error."""
    click.echo(f"warning: {text}", err=True)


@contextmanager
def patiently(what: str) -> Iterator[None]:
    """Say what is being done, on standard error, if it takes longer than `PATIENCE_SECONDS`, and again now and then."""
    over = threading.Event()

    def tell() -> None:
        gap = PATIENCE_SECONDS
        while not over.wait(gap):
            click.echo(stamped(f"{what} …"), err=True)
            gap = SAID_AGAIN_SECONDS

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def log_line(line: LogLine) -> str:
    """Format a line of a run's log: time of day, level where it matters, text."""
    level = "" if line.level in ("INFO", "DEBUG") else f"{line.level}: "
    return stamped(f"{level}{line.text}", line.time)


def stamped(text: str, when: float | None = None) -> str:
    """Put the time of day before a line: of `when`, in seconds of the epoch, or now."""
    return f"{time.strftime('%H:%M:%S', time.localtime(when))}  {text}"


@contextmanager
def reading(out: Console, files: Sequence[PlannedFile]) -> Iterator[OnProgress]:
    """Show the progress of files that this process reads: a bar on a terminal, a line for each file in a pipe."""
    total, current = sum(file.file.items for file in files), ""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task("reading", total=max(total, 1))
        begins = accumulate((file.file.items for file in files), initial=0)
        done = dict(zip((file.partition for file in files), begins, strict=False))

        def hook(planned: PlannedFile, progress: file_report.Progress) -> None:
            nonlocal current
            bar.update(
                task, description=planned.file.name, completed=done[planned.partition] + progress.items
            )
            if planned.partition != current and not out.is_terminal:
                out.print(stamped(f"reading {planned.file.name}"), markup=False)
            current = planned.partition

        yield hook


def verification_table(compared: Compared) -> Table:
    """Make a table with a line for each table: rows of the export, and how they compare."""
    kinds = ("missing", "different", "newer", "extra")
    made = _table(("table",), ("rows of the export", "same", *kinds))
    made.add_column("columns that differ")
    for name in compared.names:
        total = compared.table(name)
        columns = ", ".join(f"{column} ({rows:,})" for column, rows in total.columns.items())
        numbers = (total.compared, total.same, *map(total.count, kinds))
        made.add_row(Text(name), *(f"{number:,}" for number in numbers), Text(columns))
    return made


def dry_run_table(compared: Compared) -> Table:
    """Make a table with a line for each table: what a load would do to its rows."""
    made = _table(("table",), ("rows", "new", "changed", "unchanged", "kept, being newer"))
    for name in compared.names:
        total = compared.table(name)
        numbers = (total.compared, total.count("missing"), total.count("different"), total.same)
        made.add_row(Text(name), *(f"{number:,}" for number in (*numbers, total.count("newer"))))
    return made


FINDINGS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """Make a table with a line for each finding of the doctor: state, topic, and what is there with its way out."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for _ in ("state", "topic"):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        way_out = f"; {each.way_out}" if each.way_out else ""
        table.add_row(Text(each.state, FINDINGS[each.state]), each.topic, Text(each.text + way_out))
    return table
