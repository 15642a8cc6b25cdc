"""What befalls a file that is running, through Dagster's queue and launcher: it is ended while it waits, or a second run loads it, too."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.threads import CANCEL_SECONDS
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.runs import log_lines
from migration_pipeline.targets.connection import APPLICATION
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_operating import LAUNCH_RUN, TABLES, WIPE
from migration_pipeline_tests.operating import LOCATION, Operation, eventually, operation
from migration_pipeline_tests.oracle import Rows, actual, expected

PROJECT = Path(__file__).parents[2]

SOON_SECONDS = CANCEL_SECONDS - 2
"""From the word that a run must end to its end. A load that does not hear it is left alone after `CANCEL_SECONDS`."""

LOADERS = f"SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '{APPLICATION}%' AND datname = current_database()"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("export"), items=3_000, files=1, seed=12)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    """A stack that lets two runs at a time out of its queue."""
    home = tmp_path_factory.mktemp("running")
    settings = (PROJECT / "dagster.yaml").read_text()
    assert "max_concurrent_runs: 1" in settings
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text(
        settings.replace("max_concurrent_runs: 1", "max_concurrent_runs: 2")
    )
    with operation(home, "running-files", DAGSTER_HOME=str(home / "dagster")) as (made, _):
        yield made


@pytest.fixture(scope="module")
def plan(shared: Operation, export: Path) -> Plan:
    return shared.plan("shop", str(export), "shop")


@pytest.fixture
def operator(shared: Operation, plan: Plan) -> Operation:
    """The stack with nothing loaded, and nothing in the way."""
    shared.command("throttle", "shop", "--resume", "--rate", "default")
    for table in TABLES:
        shared.query(WIPE, key={"path": ["shop", table]})
    execute(
        shared.database_url,
        "DROP TRIGGER IF EXISTS held ON customers;"
        "TRUNCATE customers, orders, order_lines, landing.shop_events, migration.loaded_file, migration.collision",
    )
    return shared


def launch(operator: Operation, plan: Plan, **config: Any) -> str:
    """Launch a run of the plan's file, as the launchpad does; gives its id."""
    tags = [{"key": "dagster/partition", "value": plan.files[0].partition}]
    return launch_assets(operator, TABLES, tags, {"ops": {"shop_load": {"config": config}}})


def launch_assets(
    operator: Operation, assets: Sequence[str], tags: Sequence[dict[str, str]], config: dict[str, Any]
) -> str:
    selector = {
        "repositoryLocationName": LOCATION,
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": ["shop", asset]} for asset in assets],
    }
    parameters = {
        "selector": selector,
        "mode": "default",
        "executionMetadata": {"tags": tags},
        "runConfigData": config,
    }
    reply = operator.query(LAUNCH_RUN, parameters=parameters)["launchRun"]
    assert reply["__typename"] == "LaunchRunSuccess", reply
    return str(reply["run"]["id"])


def status(operator: Operation, run: str) -> str:
    return str(next(each["status"] for each in operator.runs() if each["id"] == run))


def said(operator: Operation, run: str) -> str:
    return "\n".join(line.text for line in log_lines(DagsterClient(operator.url), run)[0])


def seconds_to_end(operator: Operation, run: str) -> float:
    """From the moment when a run was told to end to the moment when it had."""
    events = operator.query(TIMES, run=run)["logsForRun"]["events"]
    at = {each["__typename"]: float(each["timestamp"]) / 1000 for each in events}
    return at["RunCanceledEvent"] - at["RunCancelingEvent"]


def tables(operator: Operation) -> Rows:
    with contextlib.closing(psycopg2.connect(operator.database_url)) as connection:
        return actual(connection)


@pytest.mark.parametrize("how", ["Terminate", "stop"])
def test_a_file_that_is_ended_in_a_pause_of_the_throttle(
    operator: Operation, plan: Plan, export: Path, how: str
) -> None:
    url = operator.database_url
    operator.command(
        "throttle", "shop", "--rate", "100"
    )  # so that the pause comes between two of its batches
    run = launch(operator, plan, batch_items=50)
    eventually(lambda: query(url, "SELECT count(*) > 0 FROM customers") == [(True,)], "it writes")
    operator.command("throttle", "shop", "--pause")
    eventually(lambda: "throttled: paused by" in said(operator, run), "it pauses")
    paused = tables(operator)
    assert paused != expected(export)[0]
    assert status(operator, run) == "STARTED"

    if how == "Terminate":
        operator.terminate(run)
    else:
        operator.command("stop", "shop")
    eventually(lambda: status(operator, run) == "CANCELED", "it is canceled")
    assert seconds_to_end(operator, run) < SOON_SECONDS
    eventually(lambda: query(url, LOADERS) == [(0,)], "its connections are closed")
    # Whole batches are there, and nothing that says that the file is.
    assert tables(operator) == paused
    assert paused["landing.shop_events"] == [], "what is landed takes its place with the receipt"
    assert query(url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]
    assert operator.states(plan) == ["stopped"]

    operator.command("throttle", "shop", "--resume", "--rate", "default")
    time.sleep(3)
    assert status(operator, run) == "CANCELED", "nothing is started again"
    operator.command("retry-failed", "shop", "--wait")
    assert tables(operator) == expected(export)[0]
    assert query(url, "SELECT count(*) FROM migration.loaded_file") == [(1,)]
    assert query(url, "SELECT count(*) FROM migration.slice WHERE landed_at IS NULL") == [(0,)]


@pytest.mark.parametrize("asset", ["customer_activity", "finishing"])
def test_what_follows_the_files_ends_in_a_pause_as_well(operator: Operation, plan: Plan, asset: str) -> None:
    file = launch(operator, plan)
    eventually(lambda: status(operator, file) == "SUCCESS", "the file is loaded")
    operator.command("throttle", "shop", "--pause")
    run = launch_assets(operator, [asset], [], {})
    eventually(lambda: "throttled: paused by" in said(operator, run), "it pauses")
    operator.terminate(run)
    eventually(lambda: status(operator, run) == "CANCELED", "it is canceled")
    assert seconds_to_end(operator, run) < SOON_SECONDS
    eventually(lambda: query(operator.database_url, LOADERS) == [(0,)], "its connections are closed")


@pytest.mark.parametrize("way", ["straight", "staged"])
def test_a_file_that_two_runs_load_at_once(operator: Operation, plan: Plan, export: Path, way: str) -> None:
    """Both begin before either has written anything, and each meets the other's rows: copied straight, or by staging tables."""
    url = operator.database_url
    if way == "straight":
        operator.command("throttle", "shop", "--pause")
    else:  # a table with a trigger is not copied into
        operator.hold("customers")
    runs = [launch(operator, plan, batch_items=50) for _ in range(2)]
    if way == "straight":
        for run in runs:
            eventually(lambda run=run: "throttled: paused by" in said(operator, run), "both wait")  # type: ignore[misc]
        operator.command("throttle", "shop", "--resume", "--rate", "500")  # in small steps, by turns
    else:
        eventually(lambda: len(operator.held()) == 2, "both are in the middle of the file")
        operator.release()
    eventually(lambda: {status(operator, run) for run in runs} == {"SUCCESS"}, "both end")
    assert tables(operator) == expected(export)[0]
    ((file, run_id),) = query(url, "SELECT file, run_id FROM migration.loaded_file")
    assert file == plan.files[0].file.name
    assert run_id in runs
    assert operator.states(plan) == ["materialized"]
    operator.command("backfill", "shop", "--wait")  # what follows the file
    assert checks(operator) == {"SUCCEEDED"}
    operator.command("verify", "shop")


def checks(operator: Operation) -> set[str]:
    """Run the profile's job of checks; gives the results that they have."""
    selector = {
        "repositoryLocationName": LOCATION,
        "repositoryName": "__repository__",
        "jobName": "shop_check",
    }
    parameters = {"selector": selector, "mode": "default", "runConfigData": {}}
    run = operator.query(LAUNCH_RUN, parameters=parameters)["launchRun"]["run"]["id"]
    eventually(lambda: status(operator, run) == "SUCCESS", "the checks end")
    (node,) = operator.query(CHECKS, keys=[{"path": ["shop", "dynamodb_export"]}])["assetNodes"]
    found = {
        each["name"]: (each["executionForLatestMaterialization"] or {"status": "NONE"})["status"]
        for each in node["assetChecksOrError"]["checks"]
    }
    assert found.pop("rows_match_export") == "NONE", "it reads the whole export, and has a job of its own"
    assert len(found) > 5
    return set(found.values())


TIMES = """
query Times($run: ID!) {
  logsForRun(runId: $run) {
    ... on EventConnection { events { __typename ... on MessageEvent { timestamp } } }
  }
}"""

CHECKS = """
query Checks($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetChecksOrError {
      ... on AssetChecks { checks { name executionForLatestMaterialization { status } } }
    }
  }
}"""
