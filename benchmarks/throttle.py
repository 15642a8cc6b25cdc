"""What a throttle costs that never trips: ``python -m benchmarks.throttle`` loads the shop without one, with that of every run, and with all limits.

All three load in turn, in an order that changes. What counts is the ratio within a round, of time, of the process's CPU, and of the
server's; where other processes are in the way, that of the least of all rounds says more. Goal: at most 1.01. Where even that is less
than the noise, what a throttle does is measured alone, many times over: a check, of which there is one a second, a reservation, of which
there is one a batch, and the opening, of which there is one a run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import click
import psutil
from rich.table import Table

from benchmarks.bench import execute, fill_wal, finish, free_port, fresh_tables, server_settings, start
from benchmarks.contenders import LIMITS
from benchmarks.workloads import WORKLOADS
from migration_pipeline.cli.terminal import console
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.targets.throttle import Throttle, ThrottleSettings

CONTENDERS = {"engine": "no throttle", "unlimited": "no limit", "limited": "all limits, none reached"}

FIGURES = {
    "seconds": "seconds",
    "cpu_seconds": "CPU of the process",
    "server_cpu_seconds": "CPU of the server",
}

FILES = 4


def server_cpu(server: EmbeddedPostgres) -> float:
    """Seconds of CPU that a server has used so far, those of its connections that have ended included."""
    main = psutil.Process(int((server.data_dir / "postmaster.pid").read_text().split()[0]))
    used = sum(main.cpu_times()[:4])
    for child in main.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # its parent counts it by then
            used += sum(child.cpu_times()[:2])
    return used


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--items", type=click.IntRange(FILES), default=800_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True)
def main(items: int, rounds: int) -> None:
    """Load with and without a throttle, and print medians and ratios."""
    out, workload, names = console(), WORKLOADS["shop"], list(CONTENDERS)
    home = Path(tempfile.mkdtemp(prefix="migration-throttle-", dir=os.environ.get("TMPDIR")))
    measured: list[dict[str, dict[str, float]]] = []
    try:
        export = workload.write(home / "export", items, FILES)
        port = free_port()
        url = f"postgresql://postgres:unused@127.0.0.1:{port}/postgres"
        server = EmbeddedPostgres(home, server_settings(port))
        with server:
            fill_wal(url)
            for number in range(rounds):
                figures: dict[str, dict[str, float]] = {}
                shift = number % len(names)
                for name in names[shift:] + names[:shift]:
                    with out.status(f"round {number + 1} of {rounds}: {CONTENDERS[name]}"):
                        fresh_tables(url, workload)
                        before = server_cpu(server)
                        figures[name] = finish(start(name, workload, export, url))
                        execute(url, "SELECT")  # behind the connections that have ended
                        figures[name]["server_cpu_seconds"] = server_cpu(server) - before
                measured.append(figures)
            parts = what_it_does(server, url)
        out.print(table_of(measured))
        out.print(parts)
    finally:
        EmbeddedPostgres(home).remove()
        shutil.rmtree(home)


def what_it_does(server: EmbeddedPostgres, url: str) -> Table:
    """Measure what a throttle does, one thing at a time, without anything else."""
    table = Table("one of them", "CPU of the process", "CPU of the server", header_style="bold", box=None)
    for called, limits in (("no limit", ThrottleSettings()), ("all limits", ThrottleSettings(**LIMITS))):

        def opening(limits: ThrottleSettings = limits) -> None:
            with closing(Throttle(url, "shop", limits)) as throttle:
                throttle.open()

        with closing(Throttle(url, "shop", limits)) as throttle:
            throttle.open()
            works = {"check": lambda: throttle._ask(throttle._read)}  # called at once
            if limits.items_per_second:
                works["reservation"] = lambda: throttle.reserve(20_000)
            for what, work in works.items():
                table.add_row(f"{what}, {called}", *cost_of(server, work, 2_000))
        table.add_row(f"opening, {called}", *cost_of(server, opening, 50))
    return table


def cost_of(server: EmbeddedPostgres, work: Callable[[], object], times: int) -> Iterator[str]:
    """Measure what doing something costs the process, and the server."""
    work()
    before, of_server = time.process_time(), server_cpu(server)
    for _ in range(times):
        work()
    for seconds in (time.process_time() - before, server_cpu(server) - of_server):
        yield f"{seconds / times * 1000:.2f} ms"


def table_of(rounds: list[dict[str, dict[str, float]]]) -> Table:
    """Sum rounds up: medians, medians of the ratios to a load without a throttle, and ratios of the least."""
    heads = (f"{what} (ratio, of the least)" for what in FIGURES.values())
    table = Table("throttle", *heads, header_style="bold", box=None)
    for name, called in CONTENDERS.items():
        cells = []
        for figure in FIGURES:
            middle = statistics.median(each[name][figure] for each in rounds)
            ratio = statistics.median(each[name][figure] / each["engine"][figure] for each in rounds)
            least = min(each[name][figure] for each in rounds) / min(
                each["engine"][figure] for each in rounds
            )
            cells.append(f"{middle:.2f} ({ratio:.3f}, {least:.3f})")
        table.add_row(called, *cells)
    return table


if __name__ == "__main__":
    main()
