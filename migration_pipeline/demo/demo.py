"""`make demo` and `make dev`: the whole path on one machine, by the same calls that a user makes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from contextlib import ExitStack

from rich.console import Console

from migration_pipeline import settings
from migration_pipeline.cli.terminal import console, count_states, downstream_table, summary
from migration_pipeline.cli.watch import watch
from migration_pipeline.demo import stack
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan, make_plan, read_plans, write_plan
from migration_pipeline.migration.units import readable_size
from migration_pipeline.operations.backfills import launch
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.downstream import AssetStatus, downstream, to_launch
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.operations.status import left
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import create_tables

PROFILE = "shop"
SEED = 1

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
    """Migrate a sample export through Dagster's queue and daemon; returns the exit status."""
    out = console()
    began = time.monotonic()
    for name in settings.OF_A_DEPLOYMENT:
        if os.environ.pop(name, None):
            out.print(f"{name} is set; the demo leaves it alone and uses its own")
    profile = load_profile(PROFILE)
    with out.status("writing the sample export"):
        plan = _sample_plan(profile, items, files)
    out.print(
        f"export: {plan.items:,} items in {len(plan.files)} files, {readable_size(plan.bytes)} compressed"
    )
    with ExitStack() as ends:
        with out.status("starting PostgreSQL and Dagster"):
            services = ends.enter_context(stack.running())
            create_tables(services.database_url, profile.all_tables)
            instance = DagsterClient(services.webserver_url)
            instance.load_plan(plan, profile)
        files_now = read_files(instance, plan, profile, attempts=False)
        wanted = [file for file in files_now if file.state != "materialized"]
        then = to_launch(downstream(instance, profile), files_now, wanted)
        if not wanted and not then:
            out.print(f"{count_states(files_now)}: nothing to do")
        else:
            partitions = [file.partition for file in wanted]
            title = f"demo: {len(wanted)} files"
            backfill_id = launch(instance, profile, partitions, title, then)
            out.print(f"launched backfill {backfill_id} of {len(wanted)} files")
            watch(out, instance, plan, profile, backfill_id, wanted, then)
            files_now = read_files(instance, plan, profile)
        status = _conclude(out, files_now, downstream(instance, profile), time.monotonic() - began)
        found = left(plan, profile, files_now, services.database_url)
        for line in found.lines(PROFILE):
            out.print(line, markup=False)
        status = status or int(found.faults)
    out.print("\nSee it in Dagster's UI:  make dev   then open http://127.0.0.1:3000/assets")
    return status


def _conclude(out: Console, files: list[FileStatus], then: list[AssetStatus], seconds: float) -> int:
    """Print the summary and what failed; returns the exit status."""
    out.print(summary(files))
    failed = [file for file in files if file.state != "materialized"]
    for file in failed:
        out.print(f"{file.file.name}: {file.state}: {file.error}", markup=False)
    out.print()
    out.print(downstream_table(then))
    out.print(f"{count_states(files)}, in {seconds:,.0f} s from start to end")
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
            out.print(f"not loaded: {fault}", markup=False)
        if not (plans or faults):
            out.print("no plan yet; in another terminal:  migration-pipeline plan --profile shop EXPORT")
        out.print("Ctrl-C ends it")
        try:
            services.wait()
        except KeyboardInterrupt:
            out.print("ending")


def _sample_plan(profile: Profile, items: int, files: int) -> Plan:
    """Write the sample if it is not there, and plan it."""
    folder = settings.state_dir() / "exports" / f"{PROFILE}-{items}-{files}"
    found = sorted(folder.glob("AWSDynamoDB/*/manifest-summary.json"))
    export = found[0].parent if found else write_sample(folder, items=items, files=files, seed=SEED)
    plan = make_plan(profile, PROFILE, [read_export(str(export), Storage())])
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
