"""`make bench`: runs the contenders in turn on fresh tables, prints medians and ratios, writes build/bench.json.

Machines differ and are shared, so what counts are ratios within one run. Each contender runs in a process
of its own; its time is that of its work, without imports.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import psycopg2
from rich.table import Table

from benchmarks.workloads import WORKLOADS, Workload
from migration_pipeline import settings
from migration_pipeline.cli.terminal import console
from migration_pipeline.demo import stack
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample_history import write_history
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.operations.backfills import launch, read_backfill
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import read_files
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import create_tables

TOP = Path(__file__).parents[1]
FILES = 16
WAL_MEGABYTES = 3_000
"""WAL that the largest round writes, about."""

PROCESSES = min(os.cpu_count() or 1, 4)
"""Processes of the engine side by side, each with its share of the files, as Dagster's runs are. The floor has two."""


def execute(url: str, statement: str) -> Any:
    """Run a statement; gives its first value, if it has one."""
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]
    finally:
        connection.close()


def free_port() -> int:
    """Give a TCP port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def server_settings(port: int) -> dict[str, str]:
    """Settings of the server for all contenders. It has the buffers that PostgreSQL's documentation starts a server of its own from."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    buffers = f"{min(memory // 4, 2 << 30) >> 20}MB"
    return {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "shared_buffers": buffers,
        "min_wal_size": f"{WAL_MEGABYTES}MB",
    }


def fill_wal(url: str) -> None:
    """Write as much WAL as a round does: a server that is not new has files to write it to, and need not make each."""
    execute(
        url,
        f"SELECT pg_logical_emit_message(false, 'bench', repeat('x', 1 << 20)) FROM generate_series(1, {WAL_MEGABYTES})",
    )
    execute(url, "CHECKPOINT")


def wal_position(url: str) -> int:
    """Bytes of WAL written since the server was made."""
    return int(execute(url, "SELECT pg_current_wal_lsn() - '0/0'"))


def fresh_tables(url: str, workload: Workload) -> None:
    """Make the workload's tables anew, and start from a quiet server."""
    names = ", ".join(table.name for table in workload.profile.all_tables if not table.landing)
    schemas = "migration, landing, dlt_bench, dlt_bench_staging"
    execute(url, f"DROP TABLE IF EXISTS {names}; DROP SCHEMA IF EXISTS {schemas} CASCADE")
    create_tables(url, workload.profile.all_tables)
    execute(url, "CHECKPOINT")


def start(
    name: str, workload: Workload, export: Path, url: str, *part: int, accelerator: str = "required"
) -> subprocess.Popen[str]:
    """Start a contender; the engine's extensions in C must be built, or are off."""
    command = [sys.executable, "-m", "benchmarks.contenders", name, workload.name, str(export), url]
    command += map(str, part)
    environment = os.environ | {settings.ACCELERATOR: accelerator}
    return subprocess.Popen(command, cwd=TOP, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a contender; gives what it printed."""
    output, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"a contender failed: {' '.join(map(str, process.args))}")  # type: ignore[arg-type]
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def load(
    workload: Workload, export: Path, url: str, processes: int, accelerator: str = "required"
) -> dict[str, Any]:
    """Load with the engine in some processes; gives the seconds of the longest, the megabytes of the largest, and the CPU seconds of all."""
    started = [
        start("engine", workload, export, url, part, processes, accelerator=accelerator)
        for part in range(processes)
    ]
    results = [finish(process) for process in started]
    largest = {name: max(result[name] for result in results) for name in results[0]}
    return largest | {"cpu_seconds": sum(result["cpu_seconds"] for result in results)}


def encode_final_rows(workload: Workload, export: Path, url: str) -> None:
    """Write the rows that a load made as COPY input, sorted by key, for the floor."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        for table in workload.profile.tables.values():
            with (export.parent / f"{table.name}.copy").open("wb") as out:
                cursor.copy_expert(
                    f"COPY (SELECT * FROM {table.name} ORDER BY {', '.join(table.key)}) TO STDOUT", out
                )
    connection.close()


def one_round(workload: Workload, export: Path, url: str, slow: bool) -> dict[str, float]:
    """Run each contender once; gives seconds, bytes of WAL and megabytes by name."""
    figures: dict[str, float] = {}
    fresh_tables(url, workload)
    before = wal_position(url)
    first = load(workload, export, url, PROCESSES)
    figures["engine"], figures["peak_rss_mb"] = first["seconds"], first["peak_rss_mb"]
    figures["engine_cpu"] = first["cpu_seconds"]
    figures["engine_wal"] = wal_position(url) - before
    # Autovacuum comes by after a load; a rerun, hours later, does not find its hint bits unset.
    execute(url, "VACUUM ANALYZE")
    before = wal_position(url)
    figures["rerun"] = load(workload, export, url, PROCESSES)["seconds"]
    figures["rerun_wal"] = wal_position(url) - before
    fresh_tables(url, workload)
    python = load(workload, export, url, PROCESSES, accelerator="off")
    figures["python"], figures["python_cpu"] = python["seconds"], python["cpu_seconds"]
    fresh_tables(url, workload)
    figures["engine_one_process"] = load(workload, export, url, 1)["seconds"]
    encode_final_rows(workload, export, url)
    fresh_tables(url, workload)
    parse = start("floor_parse", workload, export, url)
    copy = start("floor_copy", workload, export, url)
    figures["floor_parse"], figures["floor_copy"] = finish(parse)["seconds"], finish(copy)["seconds"]
    figures["floor"] = max(figures["floor_parse"], figures["floor_copy"])
    if slow:
        for name in ("script", "dlt"):
            if name == "script" or find_spec("dlt"):
                fresh_tables(url, workload)
                figures[name] = finish(start(name, workload, export, url))["seconds"]
    return figures


def aggregate_round(workload: Workload, export: Path, url: str) -> dict[str, float]:
    """Land all files, make the rows of them, make them again, and run the floor's parser; as `one_round`."""
    fresh_tables(url, workload)
    python = load(workload, export, url, PROCESSES, accelerator="off")
    fresh_tables(url, workload)
    landing = load(workload, export, url, PROCESSES)
    figures: dict[str, float] = {"landing": landing["seconds"], "peak_rss_mb": landing["peak_rss_mb"]}
    figures |= {"engine_cpu": landing["cpu_seconds"]}
    figures |= {"python": python["seconds"], "python_cpu": python["cpu_seconds"]}
    made = finish(start("aggregate", workload, export, url))
    figures["aggregate"] = made["seconds"]
    figures["peak_rss_mb"] = max(figures["peak_rss_mb"], made["peak_rss_mb"])
    figures["aggregate_again"] = finish(start("aggregate", workload, export, url))["seconds"]
    figures["floor_parse"] = finish(start("floor_parse", workload, export, url))["seconds"]
    return figures


def aggregate_figures(items: int, rounds: list[dict[str, float]]) -> dict[str, float | None]:
    """Sum rounds of `aggregate_round` up."""
    middle = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    return {
        "items": items,
        "items_per_s": round(items / statistics.median(r["landing"] + r["aggregate"] for r in rounds)),
        "landing_items_per_s": round(items / middle["landing"]),
        "landing_ratio": round(statistics.median(r["floor_parse"] / r["landing"] for r in rounds), 2),
        "cpu_over_python": round(statistics.median(r["engine_cpu"] / r["python_cpu"] for r in rounds), 2),
        "speedup_over_python": round(
            statistics.median(
                (r["python"] + r["aggregate"]) / (r["landing"] + r["aggregate"]) for r in rounds
            ),
            2,
        ),
        "aggregate_seconds": round(middle["aggregate"], 1),
        "aggregate_rerun_speedup": round(middle["aggregate"] / middle["aggregate_again"], 2),
        "peak_rss_mb": round(max(r["peak_rss_mb"] for r in rounds)),
    }


WINDOWS = "windows"
"""The name of the benchmark of windows, beside those of the workloads."""


def windows_round(workload: Workload, folder: Path, url: str) -> dict[str, float]:
    """Load a full export, load it again, load the window that follows, load the export once more; as `one_round`."""
    fresh_tables(url, workload)
    figures: dict[str, float] = {}
    for name, contender in (("base", "base"), ("rerun", "base"), ("windows", "windows"), ("reload", "base")):
        # After the windows nearly every batch has a row that they touched: a rerun that compares is what to hold that against.
        execute(url, "DELETE FROM migration.batch" if name == "rerun" else "SELECT")
        execute(url, "VACUUM ANALYZE")
        started = [start(contender, workload, folder, url, part, PROCESSES) for part in range(PROCESSES)]
        results = [finish(process) for process in started]
        figures[name] = max(result["seconds"] for result in results)
        figures[f"{name}_items"] = sum(result["items"] for result in results)
        figures[f"{name}_rss_mb"] = max(result["peak_rss_mb"] for result in results)
    return figures


def windows_figures(rounds: list[dict[str, float]]) -> dict[str, float | None]:
    """Sum rounds of `windows_round` up."""
    rates = [{name: r[f"{name}_items"] / r[name] for name in ("base", "windows")} for r in rounds]
    return {
        "items": rounds[0]["base_items"],
        "changes": rounds[0]["windows_items"],
        "changes_per_s": round(statistics.median(rate["windows"] for rate in rates)),
        "ratio_to_full_load": round(statistics.median(rate["windows"] / rate["base"] for rate in rates), 2),
        "reload_after_windows": round(statistics.median(r["reload"] / r["rerun"] for r in rounds), 2),
        "peak_rss_mb": round(
            max(value for r in rounds for name, value in r.items() if name.endswith("_rss_mb"))
        ),
    }


def write_windows(folder: Path, items: int) -> None:
    """Write a full export, and a window with a change for each fifth of its items, in 8 files."""
    history = write_history(folder, items=items, files=8, seed=1, changes=items * 6 // 25, windows=1)
    (folder / "exports.json").write_text(json.dumps([str(history.base), *map(str, history.windows)]))


def through_dagster(workload: Workload, export: Path, files_per_run: int) -> dict[str, float]:
    """Backfill all files through a Dagster of its own; gives wall seconds, and the engine's part of them."""
    found = read_export(str(export), Storage())
    plan = make_plan(workload.profile, workload.reference, [found], files_per_run)
    write_plan(plan, settings.plans_dir())
    with stack.running() as services:
        fresh_tables(services.database_url, workload)
        instance = DagsterClient(services.webserver_url)
        instance.load_plan(plan, workload.profile)
        began = time.perf_counter()
        backfill_id = launch(instance, workload.profile, [f.partition for f in plan.files], "bench")
        while not read_backfill(instance, backfill_id).over:
            time.sleep(0.2)
        seconds = time.perf_counter() - began
        files = read_files(instance, plan, workload.profile)
    if any(file.state != "materialized" for file in files):
        raise click.ClickException("the backfill through Dagster failed")
    return {"seconds": seconds, "engine": sum(file.metadata["seconds"] for file in files)}


def ratios(items: int, rounds: list[dict[str, float]], dagster: dict[str, float]) -> dict[str, float | None]:
    """Sum rounds up: medians of the ratios within each."""

    def median(numerator: str, denominator: str) -> float | None:
        pairs = [(r[numerator], r[denominator]) for r in rounds if numerator in r and denominator in r]
        return round(statistics.median(a / b for a, b in pairs), 3) if pairs else None

    return {
        "items_per_s": round(items / statistics.median(r["engine"] for r in rounds)),
        "items_per_s_one_process": round(items / statistics.median(r["engine_one_process"] for r in rounds)),
        "items_per_s_through_dagster": round(items / dagster["seconds"]),
        "ratio_to_floor": median("engine", "floor"),
        "cpu_over_python": median("engine_cpu", "python_cpu"),
        "speedup_over_python": median("python", "engine"),
        "speedup_over_script": median("script", "engine"),
        "speedup_over_script_one_process": median("script", "engine_one_process"),
        "speedup_over_dlt": median("dlt", "engine"),
        "peak_rss_mb": round(max(r["peak_rss_mb"] for r in rounds)),
        "rerun_speedup": median("engine", "rerun"),
        "rerun_wal_share": median("rerun_wal", "engine_wal"),
        "dagster_overhead_s_per_file": round((dagster["seconds"] - dagster["engine"]) / FILES, 2),
    }


def measure_windows(out: Any, home: Path, items: int, rounds: int) -> list[dict[str, float]]:
    """Run `windows_round` some times."""
    with out.status(f"{WINDOWS}: writing {items:,} items and their changes"):
        write_windows(home / WINDOWS, items)
    port, measured = free_port(), []
    url = f"postgresql://postgres:unused@127.0.0.1:{port}/postgres"
    with EmbeddedPostgres(home, server_settings(port)):
        fill_wal(url)
        for number in range(rounds):
            with out.status(f"{WINDOWS}: round {number + 1} of {rounds}"):
                measured.append(windows_round(WORKLOADS["shop"], home / WINDOWS, url))
    return measured


def show(out: Any, name: str, figures: dict[str, float | None]) -> None:
    """Print a workload's figures."""
    table = Table("figure", name, header_style="bold", box=None)
    for figure, value in figures.items():
        table.add_row(figure, "–" if value is None else f"{value:,}")
    out.print(table)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--items",
    type=click.IntRange(1600),
    default=800_000,
    show_default=True,
    help="Items a workload, in 16 files; pictures has six times as many, windows two and a half times in 8 files.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How often the fast contenders run; the slow ones run once.",
)
@click.option(
    "--workload",
    "names",
    multiple=True,
    type=click.Choice([*WORKLOADS, WINDOWS]),
    help="Only this one; may be repeated.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=TOP / "build" / "bench.json",
    show_default="build/bench.json",
)
def main(items: int, rounds: int, names: tuple[str, ...], output: Path) -> None:
    """Compare this project with the usual script, with dlt, and with the floor."""
    out = console()
    if not find_spec("dlt"):
        out.print("dlt is not installed, so it is left out: pip install 'migration-pipeline\\[bench]'")
    result: dict[str, Any] = {"items": items, "files": FILES, "rounds": rounds, "workloads": {}}
    home = Path(tempfile.mkdtemp(prefix="migration-bench-", dir=os.environ.get("TMPDIR")))
    os.environ[settings.STATE_DIR] = str(home)
    try:
        for name in names or [*WORKLOADS, WINDOWS]:
            if name == WINDOWS:
                measured = measure_windows(out, home, items * 5 // 2, rounds)
                result["workloads"][name] = windows_figures(measured) | {"rounds": measured}
                show(out, name, windows_figures(measured))
                continue
            workload = WORKLOADS[name]
            count = items * workload.times_items
            with out.status(f"{name}: writing {count:,} items"):
                export = workload.write(home / name, count, FILES)
            port = free_port()
            # All contenders connect alike, by TCP: dlt takes no socket.
            url = f"postgresql://postgres:unused@127.0.0.1:{port}/postgres"
            with EmbeddedPostgres(home, server_settings(port)):
                fill_wal(url)
                measured = []
                for number in range(rounds):
                    with out.status(f"{name}: round {number + 1} of {rounds}"):
                        if workload.script_rows is None:
                            measured.append(aggregate_round(workload, export, url))
                        else:
                            measured.append(one_round(workload, export, url, slow=number == 0))
            if workload.script_rows is None:
                figures = aggregate_figures(count, measured)
            else:
                with out.status(f"{name}: through Dagster"):
                    dagster = through_dagster(workload, export, 1)
                    together = through_dagster(workload, export, FILES)
                figures = ratios(items, measured, dagster)
                figures["dagster_overhead_s_per_file_together"] = round(
                    (together["seconds"] - together["engine"]) / FILES, 2
                )
            result["workloads"][name] = figures | {"rounds": measured}
            show(out, name, figures)
    finally:
        EmbeddedPostgres(home).remove()
        shutil.rmtree(home)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    out.print(f"wrote {output}", soft_wrap=True)


if __name__ == "__main__":
    main()
