"""What people see on a terminal: the table of files, the summary, and the live progress of a backfill."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from migration_pipeline.instance import Backfill, FileStatus, Instance
from migration_pipeline.plan import Plan
from migration_pipeline.profile import Profile

PIPE_WIDTH = 240
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


def summary(files: Sequence[FileStatus]) -> Table:
    """Sum up what was loaded, a line a file and one in total: items, rows by table, skipped, quarantined, speed."""
    done = [file for file in files if file.metadata]
    tables = list(dict.fromkeys(name for file in done for name in file.metadata["rows_by_table"]))
    reasons = list(dict.fromkeys(name for file in done for name in file.metadata["skipped_by_reason"]))
    table = Table(header_style="bold", caption_justify="left", show_footer=True)
    table.add_column("file", footer="total", no_wrap=True)
    columns = (
        [("items", [file.metadata["items"] for file in done])]
        + [
            (f"rows of\n{name}", [file.metadata["rows_by_table"].get(name, 0) for file in done])
            for name in tables
        ]
        + [
            (f"skipped:\n{name}", [file.metadata["skipped_by_reason"].get(name, 0) for file in done])
            for name in reasons
        ]
        + [("quaran-\ntined", [file.metadata["quarantined"] for file in done])]
    )
    for name, values in columns:
        table.add_column(name, f"{sum(values):,}", justify="right")
    seconds = sum(file.metadata["seconds"] for file in done)
    items = sum(file.metadata["items"] for file in done)
    table.add_column("seconds", f"{seconds:,.1f}", justify="right")
    table.add_column("items/s", f"{items / seconds if seconds else 0:,.0f}", justify="right")
    for row, file in enumerate(done):
        table.add_row(
            file.file.name,
            *(f"{values[row]:,}" for _, values in columns),
            f"{file.metadata['seconds']:,.1f}",
            f"{file.metadata['items_per_second']:,}",
        )
    return table


def watch(
    out: Console,
    instance: Instance,
    plan: Plan,
    profile: Profile,
    backfill_id: str,
    partitions: Sequence[str],
) -> Backfill:
    """Show a backfill's progress until it is over, a bar on a terminal and a line a change in a pipe."""
    wanted = set(partitions)
    total = sum(planned.file.items for planned in plan.files if planned.partition in wanted)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("items"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    said = ""
    with Progress(*columns, console=out, disable=not out.is_terminal, speed_estimate_period=60) as bar:
        task = bar.add_task("waiting for the daemon", total=max(total, 1))
        while True:
            backfill = instance.backfill(backfill_id)
            files = [f for f in instance.files(plan, profile, attempts=False) if f.partition in wanted]
            line = count_states(files)
            done = sum(f.file.items for f in files if f.state == "materialized")
            bar.update(task, description=line, completed=done if total else 1)
            if line != said and not out.is_terminal:
                out.print(f"{time.strftime('%H:%M:%S')}  {line}, {done:,} of {total:,} items")
                said = line
            if backfill.over:
                return backfill
            time.sleep(POLL_SECONDS)
