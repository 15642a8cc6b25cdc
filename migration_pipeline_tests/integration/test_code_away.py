"""A backfill outlasts code that is away, does not load, or that Dagster's daemon does not have yet."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import pytest

from migration_pipeline.defs.metadata import FILE_TAG
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.service import Service
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.client import (
    DAEMON_CATCHES_UP_SECONDS,
    RELOAD,
    DagsterClient,
    DagsterClientError,
)
from migration_pipeline.operations.runs import run_error
from migration_pipeline.profile.profile import load_profile
from migration_pipeline_tests.operating import LOCATION, SCRIPT, Bucket, Operation, eventually, operation

TABLES = ("customers", "orders", "order_lines", "shop_events")


PARTITION = "dagster/asset_partition_range_start"

PROFILE = """
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("things")

class Thing(Item):
    PK: str
    SK: str

class Kept(Row, table="things", key=("pk", "sk")):
    pk: str
    sk: str

@profile.route()
def keep(item: Thing) -> Kept:
    return Kept(item.PK, item.SK)
"""


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("export"), items=2_400, files=4, seed=5)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operation, Bucket]]:
    with operation(tmp_path_factory.mktemp("away"), "away") as made:
        yield made


@pytest.fixture(scope="module")
def operator(started: tuple[Operation, Bucket]) -> Operation:
    return started[0]


@pytest.fixture(scope="module")
def shop(started: tuple[Operation, Bucket], export: Path) -> Plan:
    operator, bucket = started
    return operator.plan("shop", bucket.upload(export), "shop")


def will_retry(operator: Operation, backfill: str) -> list[str]:
    """Whether each of the runs that have failed is to be started again."""
    tags = [run["tags"] for run in operator.runs(backfill) if run["status"] == "FAILURE"]
    return [each["dagster/will_retry"] for each in tags]


def test_a_backfill_and_its_runs_wait_for_a_code_server_that_is_away(operator: Operation, shop: Plan) -> None:
    operator.hold("customers")
    environment = dict(os.environ) | operator.environment
    with subprocess.Popen(
        [SCRIPT, "backfill", "shop", "--wait"], env=environment, stdout=subprocess.PIPE, text=True
    ) as waiting:
        eventually(operator.held, "a file waits")
        (running,) = operator.held()
        (backfill,) = [run["tags"]["dagster/backfill"] for run in operator.runs() if run["id"] == running]
        log = operator.home / "log" / "daemon.log"
        with operator.without("code-server"):
            given_up = f"Backfill {backfill} was unable to continue"
            eventually(lambda: given_up in log.read_text(), "the daemon gives the code server up")
            # The worker of the file that was loading ended with the code server. Dagster gives it up for want of code.
            operator.release()
            eventually(lambda: "Failed to retry run" in log.read_text(), "the daemon gives the run up")
            eventually(
                lambda: "true" in will_retry(operator, backfill), "it is to be started again nevertheless"
            )
        said, _ = waiting.communicate(timeout=240)
    assert "does not have all tables of shop: its code does not load: " in said
    assert said.endswith("4 of 4 files materialized\n"), said
    assert waiting.returncode == 0
    crashed, *others = sorted(run["status"] for run in operator.runs(backfill) if FILE_TAG in run["tags"])
    assert (crashed, set(others), len(others)) == ("FAILURE", {"SUCCESS"}, len(shop.files))


def test_a_machine_that_was_paused_goes_on(operator: Operation, shop: Plan) -> None:
    # The test before may have started another.
    server = int(
        max(
            (operator.home / "log").glob("*code-server.pid"), key=lambda file: file.stat().st_mtime
        ).read_text()
    )
    os.killpg(server, signal.SIGSTOP)
    time.sleep(40)  # Dagster's processes end where they hear nothing from each other for 30
    os.killpg(server, signal.SIGCONT)
    backfill = operator.launch(shop, tables=TABLES, partitions=[p.partition for p in shop.files])
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_SUCCESS", "the backfill ends")


def test_what_is_loading_goes_on_where_its_profile_does_not_load_any_more(
    started: tuple[Operation, Bucket], export: Path
) -> None:
    operator, bucket = started
    profile = operator.home / "things.py"
    profile.write_text(PROFILE)
    plan = operator.plan("things:profile", bucket.upload(export), "things")
    loaded, client = load_profile("things:profile"), DagsterClient(operator.url)
    operator.command("backfill", "things", "--files", "1", "--wait")
    operator.hold("things")
    first, *others = [p.partition for p in plan.files if p.file.items][1:]
    backfill = operator.launch(plan, tables=("things",), partitions=[first, *others])
    eventually(operator.held, "a file waits")
    with profile.open("a") as file:
        file.write("import no_such_module\n")
    operator.query(RELOAD, name=LOCATION)
    why = "the plan of things does not load: profile things:profile: things does not import"
    with pytest.raises(DagsterClientError, match="not know the plan of things: T" + why[1:]):
        client.load_plan(plan, loaded)
    # The daemon has taken the reload up when it has looked at the backfill with the new code.
    time.sleep(DAEMON_CATCHES_UP_SECONDS)
    assert operator.backfill_status(backfill) == "REQUESTED"
    operator.release()
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_FAILED", "the backfill ends")
    by_file = {run["tags"][PARTITION]: run for run in operator.runs(backfill)}
    assert {key: run["status"] for key, run in by_file.items()} == {
        first: "SUCCESS", **dict.fromkeys(others, "FAILURE")
    }  # fmt: skip
    assert why in run_error(client, by_file[others[0]]["id"])
    profile.write_text(PROFILE)
    operator.command("retry-failed", "things", "--wait")
    assert {f.state for f in operator.files(plan) if f.partition in by_file} == {"materialized"}


def test_a_backfill_that_is_failed_is_told_at_once_where_its_tables_are_gone(
    started: tuple[Operation, Bucket], export: Path
) -> None:
    """As before plans named their tables: their profile's are gone while it does not load."""
    operator, bucket = started
    profile = operator.home / "older.py"
    profile.write_text(PROFILE.replace("things", "older"))
    operator.command("plan", "--profile", "older:profile", bucket.upload(export))
    operator.command("ddl", "older:profile", "--apply")
    path = Path(plan_path(operator.plans, "older"))
    path.write_bytes(msgspec.structs.replace(read_plan(path), tables=()).content)
    operator.hold("older")
    with subprocess.Popen(
        [SCRIPT, "backfill", "older", "--wait"],
        env=dict(os.environ) | operator.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        eventually(operator.held, "a file waits")
        with profile.open("a") as file:
            file.write("import no_such_module\n")
        operator.query(RELOAD, name=LOCATION)
        _, told = waiting.communicate(timeout=60)
    assert "FAILED: dagster._core.errors.DagsterAssetBackfillDataLoadError" in told
    assert waiting.returncode == 1
    operator.release()
    profile.unlink()
    path.unlink()
    operator.query(RELOAD, name=LOCATION)


def test_a_backfill_that_the_daemon_has_no_code_for_is_launched_again(
    tmp_path_factory: pytest.TempPathFactory, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Service.start

    def with_fixed_id(self: Service, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a code server that gives new code no new id, so that the daemon reads it only when it reads all."""
        fixed = ["--fixed-server-id", "always-this"] if self.name == "code-server" else []
        start(self, [*command, *fixed], environment)

    monkeypatch.setattr(Service, "start", with_fixed_id)
    home = tmp_path_factory.mktemp("stale")
    (home / "things.py").write_text(PROFILE)
    with operation(home, "stale") as (operator, bucket):
        location = bucket.upload(export)
        # The daemon reads all code once a minute. It can do so in the middle of this once, and not twice.
        for reference, name in (("shop", "shop"), ("things:profile", "things")):
            operator.command("plan", "--profile", reference, location)
            operator.command("ddl", reference, "--apply")
            said = operator.command("backfill", name, "--wait", seconds=360)
            if "launched again as backfill" in said:
                break
        assert "launched again as backfill" in said
        found = operator.query(BACKFILLS)["partitionBackfillsOrError"]["results"]
        assert [(one["title"], one["status"]) for one in found[:2]] == [
            (f"Re-execution of {name}: 4 files", "COMPLETED_SUCCESS"),
            (f"{name}: 4 files", "FAILED"),
        ]


BACKFILLS = "{ partitionBackfillsOrError { ... on PartitionBackfills { results { title status } } } }"
