"""`make demo` and `make dev`: the whole path on one machine, by the same calls that a user makes."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections import Counter
from contextlib import ExitStack

from rich.console import Console

from migration_pipeline import settings
from migration_pipeline.cli import main
from migration_pipeline.cli.terminal import console, count_states, downstream_table, summary
from migration_pipeline.cli.watch import watch
from migration_pipeline.demo import CLONE, LocalError, stack
from migration_pipeline.demo.sample_history import write_history
from migration_pipeline.demo.service import signals_held_back
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import plan_path, read_plan, read_plans, write_plan
from migration_pipeline.operations.backfills import launch
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.downstream import AssetStatus, downstream, to_launch
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.operations.status import left
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import Export, read_exports
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.units import counted, readable_size

PROFILE = "shop"
SEED = 1
WINDOWS, WINDOW_FILES = 2, 2

ITEMS_PER_CHANGE = 10
"""A write in the windows for so many items of the table."""

CUT_OVER = "cutover"

DONE = "complete"
"""A file beside a sample that was written whole."""

STATE = (
    "dagster",
    "database-url",
    "exports",
    "log",
    "plans",
    "postgres",
    "stack.lock",
    "webserver-url",
    "workspace.yaml",
)
"""All that the project makes in its state folder."""


def run_demo(items: int, files: int) -> int:
    """Migrate a sample table: its full export, two windows after it, the cut-over. Returns the exit status."""
    out = console()
    began = time.monotonic()
    for name in settings.OF_A_DEPLOYMENT:
        if os.environ.pop(name, None):
            out.print(f"{name} is set; the demo leaves it alone and uses its own")
    profile = load_profile(PROFILE)
    with out.status("writing the sample exports"):
        base, windows = _sample(items, files)
        plan = _plan(profile, base)
    full = [planned.file for planned in plan.files if planned.export_id == base.id]
    out.print(
        f"export: {counted(sum(file.items for file in full), 'item')} in {counted(len(full), 'file')}, "
        f"{readable_size(sum(file.size for file in full))} compressed"
    )
    with ExitStack() as ends:
        with out.status("starting PostgreSQL and Dagster"):
            services = ends.enter_context(stack.running())
            create_tables(services.database_url, profile.all_tables)
            instance = DagsterClient(services.webserver_url)
            instance.load_plan(plan, profile)
        status = _load(out, instance, plan, profile, {file.name for file in full})
        for window in windows:
            status = status or _call(out, "plan", PROFILE, "--add", window.uri)
            status = status or _call(out, "backfill", PROFILE, "--wait")
            status = status or _tell(out, instance, profile, window)
        status = status or _cut_over(out)
        plan = _planned()
        found = left(plan, profile, read_files(instance, plan, profile), services.database_url)
        for line in found.lines(PROFILE):
            out.print(line, markup=False)
    out.print(f"\n{time.monotonic() - began:,.0f} s from start to end")
    dev = "make dev" if CLONE else "migration-pipeline dev"
    out.print(f"See it in Dagster's UI:  {dev}   then open http://127.0.0.1:3000/assets")
    return status or int(found.faults)


def _load(out: Console, instance: DagsterClient, plan: Plan, profile: Profile, names: set[str]) -> int:
    """Load the full export's files that are not loaded yet; returns the exit status."""
    every = read_files(instance, plan, profile, attempts=False)
    wanted = [file for file in every if file.state != "materialized" and file.file.name in names]
    then = to_launch(downstream(instance, profile), every, wanted)
    if not wanted and not then:
        out.print(f"{count_states(every)}: nothing to do")
        return 0
    backfill_id = launch(
        instance, profile, [file.partition for file in wanted], f"demo: {counted(len(wanted), 'file')}", then
    )
    out.print(f"launched backfill {backfill_id} of {counted(len(wanted), 'file')}")
    watch(out, instance, plan, profile, backfill_id, wanted, then)
    files = [file for file in read_files(instance, plan, profile) if file.file.name in names]
    return _conclude(out, files, downstream(instance, profile) if then else [])


def _tell(out: Console, instance: DagsterClient, profile: Profile, window: Export) -> int:
    """Print what a window did to the tables; returns the exit status."""
    names = {file.name for file in window.files}
    files = [file for file in read_files(instance, _planned(), profile) if file.file.name in names]
    rows = Counter[str]()
    for file in files:
        rows.update({kind: sum(tables.values()) for kind, tables in file.metadata["row_changes"].items()})
    told = ", ".join(f"{rows[kind]:,} {kind}" for kind in ("inserted", "updated", "deleted", "unchanged"))
    out.print(f"{counted(sum(file.items for file in window.files), 'record')} of the window; rows: {told}")
    return 0


def _cut_over(out: Console) -> int:
    """Prove that the tables hold what the export and the windows say, and ask whether one may switch; returns the exit status."""
    if CUT_OVER not in main.commands:
        return 0
    return _call(out, "verify", PROFILE) or _call(out, CUT_OVER, PROFILE)


def _call(out: Console, *words: str) -> int:
    """Call a command as a user does, and show it; returns its exit status."""
    out.print(
        f"\n$ {shlex.join(('migration-pipeline', *words))}", markup=False, highlight=False, soft_wrap=True
    )
    try:
        main(list(words), prog_name="migration-pipeline")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _conclude(out: Console, files: list[FileStatus], then: list[AssetStatus]) -> int:
    """Print the summary and what failed; returns the exit status."""
    out.print(summary(files))
    failed = [file for file in files if file.state != "materialized"]
    for file in failed:
        out.print(f"{file.file.name}: {file.state}: {file.error}", markup=False)
    out.print()
    out.print(downstream_table(then))
    out.print(count_states(files))
    return 1 if failed or any(asset.state != "materialized" for asset in then) else 0


def run_dev(port: int) -> None:
    """Run the stack with its UI until Ctrl-C."""
    out = console()
    with ExitStack() as ends:
        with out.status("starting PostgreSQL and Dagster"):
            services = ends.enter_context(stack.running(port))
            plans, faults = read_plans(settings.plans_dir())
            embedded = settings.DATABASE_URL not in os.environ
            for _, profile in plans if embedded else ():
                create_tables(services.database_url, profile.all_tables)
        out.print(f"Dagster UI:  {services.webserver_url}/assets")
        # A URL of the user's may hold a password.
        shown = f'psql "{services.database_url}"' if embedded else f"as {settings.DATABASE_URL} says"
        out.print(f"PostgreSQL:  {shown}", markup=False, soft_wrap=True)
        for fault in faults.values():
            out.print(f"not loaded: {fault.why}", markup=False)
        if not (plans or faults):
            out.print("no plan yet; in another terminal:  migration-pipeline plan --profile shop EXPORT")
        try:
            with signals_held_back():  # who reads it may press before the call is over; that ends it as well
                out.print("Ctrl-C ends it")
            services.wait()
        except KeyboardInterrupt:
            out.print("ending")


def _sample(items: int, files: int) -> tuple[Export, list[Export]]:
    """Read a sample's full export and its windows, writing them if they are not there."""
    folder = settings.state_dir() / "exports" / f"{PROFILE}-{items}-{files}-history"
    if not (folder / DONE).exists():
        changes = max(WINDOWS, items // ITEMS_PER_CHANGE)
        write_history(
            folder,
            items=items,
            files=files,
            seed=SEED,
            changes=changes,
            windows=WINDOWS,
            window_files=WINDOW_FILES,
        )
        (folder / DONE).touch()
    found = sorted(path.parent for path in folder.glob("AWSDynamoDB/*/manifest-summary.json"))
    exports = read_exports([str(path) for path in found], Storage(), lambda _: None)
    base = min((each for each in exports if each.window is None), key=lambda each: each.export_time)
    windows = [(each.window.start, each) for each in exports if each.window is not None]
    return base, [window for _, window in sorted(windows, key=lambda pair: pair[0])]


def _planned() -> Plan:
    return read_plan(plan_path(settings.plans_dir(), PROFILE))


def _plan(profile: Profile, base: Export) -> Plan:
    """Plan the full export, unless the plan of an earlier demo has it, and perhaps windows.

    Raises `LocalError` if that has windows of another sample: the tables follow these, and take nothing older.
    """
    path = plan_path(settings.plans_dir(), profile.name)
    if Storage().exists(path):
        there = read_plan(path)
        if there.exports[0].id == base.id:
            return there
        if there.windows:
            raise LocalError(
                f"{path}: the tables hold another table's windows; use the same ITEMS and FILES, or "
                f"{'make' if CLONE else 'migration-pipeline'} clean first"
            )
    plan = make_plan(profile, PROFILE, [base])
    write_plan(plan, settings.plans_dir())
    return plan


def remove_state() -> None:
    """Remove the embedded PostgreSQL and what is ours in the state folder. Raises `LocalError` while a stack runs there."""
    stack.remove()
    folder = settings.state_dir()
    # By name: the folder may be one that holds other things, too.
    for name in STATE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
