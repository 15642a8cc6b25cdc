"""Thousands of small files through the local stack: ``python -m benchmarks.many_files --files 5000 --files-per-run 100``.

Prints how fast Dagster makes the runs, what `status` and `--wait` cost meanwhile, and how long it all takes.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import psutil

from migration_pipeline import settings
from migration_pipeline.demo import stack
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.backfills import backfills, read_backfill
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.targets.ddl import create_tables

COMMAND = (sys.executable, "-c", "from migration_pipeline.cli import main; main()")

ITEMS_PER_FILE = 20
QUIET_SECONDS = 60.0
"""How long a process's use of a core is looked at."""

SETTLE_SECONDS = 10.0
"""Before that: a watcher starts, and its first looks are closer together than the others."""

COUNT_RUNS = "{ runsOrError { ... on Runs { count } } }"


class Bench:
    """A stack of its own, and the commands against it."""

    def __init__(self, home: Path, files: int, files_per_run: int) -> None:
        os.environ[settings.STATE_DIR] = str(home)
        self.home, self.files, self.per_run = home, files, files_per_run
        self.export = write_sample(home / "export", items=files * ITEMS_PER_FILE, files=files)
        self.since = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        print(f"{time.monotonic() - self.since:8.1f} s  {text}", flush=True)

    def call(self, *arguments: str) -> tuple[float, float, str]:
        """Call a command; returns seconds, seconds of CPU, and the last line of its output."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        done = subprocess.run(
            [*COMMAND, *arguments],
            capture_output=True, text=True, env={**os.environ}, check=False,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        lines = (done.stdout + done.stderr).strip().splitlines()
        return time.monotonic() - began, cpu, lines[-1] if lines else ""

    def told(self, *arguments: str) -> str:
        """Call a command and print what it took."""
        seconds, cpu, last = self.call(*arguments)
        self.say(f"{' '.join(arguments)[:60]}: {seconds:.2f} s, {cpu:.2f} s CPU: {last}")
        return last


def cpu_of(pids: Mapping[str, int]) -> dict[str, float]:
    """Seconds of CPU that processes have used, by name."""
    found = {}
    for name, pid in pids.items():
        times = psutil.Process(pid).cpu_times()
        found[name] = times.user + times.system
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--files", type=click.IntRange(1), default=1_000, show_default=True)
@click.option("--files-per-run", type=click.IntRange(1), default=1, show_default=True)
@click.option("--stop-after", type=click.IntRange(0), default=0, help="Stop once so many runs are made.")
@click.option(
    "--watch", is_flag=True, help="Only measure what `--wait` and `--watch` cost, of a backfill that waits."
)
def main(files: int, files_per_run: int, stop_after: int, watch: bool) -> None:
    """Load many small files and say what it costs."""
    home = Path(tempfile.mkdtemp(prefix="many-files-", dir=os.environ.get("TMPDIR")))
    profile = load_profile("shop")
    try:
        bench = Bench(home, files, files_per_run)
        bench.told("plan", "--profile", "shop", f"--files-per-run={files_per_run}", bench.export.as_posix())
        with stack.running() as services:
            create_tables(services.database_url, profile.all_tables)
            bench.say(f"stack runs: {home}")
            measure(bench, services, stop_after, watch)
    finally:
        stack.remove()
        shutil.rmtree(home, ignore_errors=True)


def measure(bench: Bench, services: stack.Stack, stop_after: int, watch: bool) -> None:
    """Launch, look at it while runs are made and while files load, and stop it or wait."""
    client = DagsterClient(services.webserver_url)
    profile = load_profile("shop")
    plan = read_plan(plan_path(settings.plans_dir(), "shop"))
    client.load_plan(plan, profile)
    wanted = stop_after or -(-bench.files // bench.per_run)
    if watch:
        cost_of_watching(bench, services, client, wanted)
        return
    bench.told("backfill", "shop")
    began, made = time.monotonic(), 0
    backfill = backfills(client, plan)[0]
    looked = False
    while made < wanted and not backfill.over:
        time.sleep(1)
        now = int(client.query(COUNT_RUNS)["runsOrError"]["count"])
        backfill = read_backfill(client, backfill.id)
        if now > made and now >= 50 and not looked:
            bench.told("status", "shop")
            looked = True
        made = now
        if int(time.monotonic() - began) % 20 == 0:
            bench.say(f"{made:,} runs made, {made / (time.monotonic() - began):.1f} a second")
    bench.say(
        f"{made:,} runs made in {time.monotonic() - began:.1f} s, {made / (time.monotonic() - began):.1f} a second"
    )
    bench.told("status", "shop")
    if stop_after:
        bench.told("stop", "shop")
        bench.told("status", "shop")
        return
    while not (backfill := read_backfill(client, backfill.id)).over:
        time.sleep(2)
    bench.say(f"over: {backfill.status} {backfill.error}, {time.monotonic() - began:.1f} s since the launch")
    bench.told("status", "shop")


def cost_of_watching(bench: Bench, services: stack.Stack, client: DagsterClient, runs: int) -> None:
    """Compare each service's use of a core while nobody looks, and with a `backfill --wait` or a `status --watch` beside it.

    The throttle is on pause, so that the first run stays in the middle of its files, all others in the queue, and nothing else
    changes. The webserver's share goes up by what looking costs: goal, at most 2 %.
    """
    bench.told("throttle", "shop", "--pause")
    pids = {
        service.name: int((bench.home / "log" / f"{service.name}.pid").read_text())
        for service in services.services
    }
    with watcher("backfill", "shop", "--wait") as wait:
        while int(client.query(COUNT_RUNS)["runsOrError"]["count"]) < runs:
            time.sleep(2)
        bench.say(f"{runs:,} runs of {bench.files:,} files are made")
        time.sleep(SETTLE_SECONDS)
        used = {"backfill --wait": use_of_a_core({**pids, "watcher": wait.pid})}
    used["nobody"] = use_of_a_core(pids)
    with watcher("status", "shop", "--watch") as look:
        time.sleep(SETTLE_SECONDS)
        used["status --watch"] = use_of_a_core({**pids, "watcher": look.pid})
    for name, shares in used.items():
        bench.say(f"{name}: " + ", ".join(f"{process} {share:.1%}" for process, share in shares.items()))
    for name in ("backfill --wait", "status --watch"):
        more = used[name]["webserver"] - used["nobody"]["webserver"]
        bench.say(f"{name} costs the webserver {more:.1%} of a core")
    bench.told("stop", "shop")


@contextmanager
def watcher(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that watches, until the end of the block."""
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
        assert process.poll() is None, "it has ended"
    finally:
        process.terminate()
        process.wait()


def use_of_a_core(pids: Mapping[str, int]) -> dict[str, float]:
    """How much of a core processes use, over `QUIET_SECONDS`."""
    before = cpu_of(pids)
    time.sleep(QUIET_SECONDS)
    after = cpu_of(pids)
    return {name: (after[name] - before[name]) / QUIET_SECONDS for name in pids}


if __name__ == "__main__":
    main()
