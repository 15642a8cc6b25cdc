"""What people see on a terminal: the table of files, the summary, and the live progress of a backfill."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from migration_pipeline.engine import report
from migration_pipeline.instance import Backfill, FileStatus, Instance
from migration_pipeline.plan import Plan, PlannedFile
from migration_pipeline.profile import Profile

if TYPE_CHECKING:  # what it imports is not needed by most commands
    from migration_pipeline.comparison import Compared, OnProgress

PIPE_WIDTH = 1000
"""Columns when output is piped: wide enough that no cell is folded, so that lines can be grepped."""

POLL_SECONDS = 1.0

STYLES = {"materialized": "green", "failed": "red", "stopped": "yellow", "running": "cyan", "missing": "dim"}


def console() -> Console:
    """Make a console for standard output; plain and wide when that is a pipe."""
    made = Console(highlight=False, soft_wrap=False)
    return made if made.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def status_table(files: Sequence[FileStatus]) -> Table:
    """One line a file: state, items, rows, run, and why it failed."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("file", "state"):
        table.add_column(name, no_wrap=True)
    for name in ("items", "rows"):
        table.add_column(name, justify="right")
    table.add_column("run", no_wrap=True)
    table.add_column("error")
    for file in files:
        rows = sum(file.metadata.get("rows_by_table", {}).values()) if file.metadata else None
        table.add_row(
            file.file.name,
            f"[{STYLES[file.state]}]{file.state}[/]",
            f"{file.file.items:,}",
            "" if rows is None else f"{rows:,}",
            file.run_id[:8],
            file.error,
        )
    return table


def count_states(files: Sequence[FileStatus]) -> str:
    """Count the files by state, in words: ``6 of 8 files materialized, 2 failed``."""
    counts = Counter[str](file.state for file in files)
    others = "".join(
        f", {counts[state]} {state}" for state in STYLES if state != "materialized" and counts[state]
    )
    return f"{counts['materialized']:,} of {len(files):,} files materialized{others}"


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
    table.add_column("seconds", f"{seconds:,.1f}", justify="right")
    table.add_column("items/s", f"{sum(columns['items']) / seconds if seconds else 0:,.0f}", justify="right")
    for row, file in enumerate(file for file in files if file.metadata):
        table.add_row(
            file.file.name,
            *(f"{values[row]:,}" for values in columns.values()),
            f"{file.metadata['seconds']:,.1f}",
            f"{file.metadata['items_per_second']:,}",
        )
    legend = [Text(f"skipped ({number}): {reason}") for number, reason in enumerate(reasons, 1)]
    return Group(table, *legend)


def _names(done: Sequence[dict[str, Any]], label: str) -> list[str]:
    return list(dict.fromkeys(name for metadata in done for name in metadata[label]))


def watch(
    out: Console,
    instance: Instance,
    plan: Plan,
    profile: Profile,
    backfill_id: str,
    launched: Sequence[FileStatus],
) -> Backfill:
    """Show a backfill's progress until it is over, a bar on a terminal and a line a change in a pipe.

    `launched` are its files as they were before: a file is done when another run has materialized it.
    """
    before = {file.partition: file.run_id for file in launched}
    total = sum(file.file.items for file in launched)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} items"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    said = ""
    with Progress(*columns, console=out, disable=not out.is_terminal, speed_estimate_period=60) as bar:
        task = bar.add_task("waiting for the daemon", total=max(total, 1))
        while True:
            backfill = instance.backfill(backfill_id)
            files = [f for f in instance.files(plan, profile, attempts=False) if f.partition in before]
            for file in files:
                if file.state == "materialized" and file.run_id == before[file.partition]:
                    file.state = "missing"
            line = count_states(files)
            done = sum(f.file.items for f in files if f.state == "materialized")
            bar.update(task, description=line, completed=done if total else 1)
            if line != said and not out.is_terminal:
                left = bar.tasks[0].time_remaining
                eta = f", {left:,.0f} s left" if left and not backfill.over else ""
                out.print(f"{time.strftime('%H:%M:%S')}  {line}, {done:,} of {total:,} items{eta}")
                said = line
            if backfill.over:
                return backfill
            time.sleep(POLL_SECONDS)


@contextmanager
def reading(out: Console, files: Sequence[PlannedFile]) -> Iterator[OnProgress]:
    """Show how far files are read that this process reads, a bar on a terminal and a line a file in a pipe."""
    total, current = sum(file.file.items for file in files), ""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, disable=not out.is_terminal, transient=True) as bar:
        task = bar.add_task("reading", total=max(total, 1))
        done = {file.partition: sum(f.file.items for f in files[:n]) for n, file in enumerate(files)}

        def hook(planned: PlannedFile, progress: report.Progress) -> None:
            nonlocal current
            bar.update(
                task, description=planned.file.name, completed=done[planned.partition] + progress.items
            )
            if planned.partition != current and not out.is_terminal:
                out.print(f"{time.strftime('%H:%M:%S')}  reading {planned.file.name}", markup=False)
            current = planned.partition

        yield hook


def verification_table(compared: Compared, tables: Sequence[str]) -> Table:
    """One line a table: rows of the export, and what became of them."""
    kinds = ("missing", "different", "newer", "extra")
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column("table", no_wrap=True)
    for name in ("rows of the export", "same", *kinds):
        made.add_column(name, justify="right")
    made.add_column("columns that differ")
    for name in tables:
        total = compared.table(name)
        columns = ", ".join(f"{column} ({rows:,})" for column, rows in total.columns.items())
        numbers = (total.compared, total.same, *map(total.count, kinds))
        made.add_row(Text(name), *(f"{number:,}" for number in numbers), Text(columns))
    return made


def dry_run_table(compared: Compared, tables: Sequence[str]) -> Table:
    """One line a table: what a load would do to its rows."""
    made = Table(box=None, header_style="bold", pad_edge=False)
    made.add_column("table", no_wrap=True)
    for name in ("rows", "new", "changed", "unchanged", "kept, being newer"):
        made.add_column(name, justify="right")
    for name in tables:
        total = compared.table(name)
        numbers = (total.compared, total.count("missing"), total.count("different"), total.same)
        made.add_row(Text(name), *(f"{number:,}" for number in (*numbers, total.count("newer"))))
    return made
