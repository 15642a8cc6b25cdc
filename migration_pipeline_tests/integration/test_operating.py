"""What an operator does in the UI, by the calls that the UI makes: a real code server, webserver and daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from migration_pipeline.defs.metadata import FILE_TAG, PROFILE_TAG
from migration_pipeline.defs.notify import SENSOR
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.names import FileProgress
from migration_pipeline.migration.plan import Plan
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import (
    LAUNCH,
    LOCATION,
    Bucket,
    Operation,
    eventually,
    operation,
)
from migration_pipeline_tests.oracle import expected

TABLES = ("customers", "orders", "order_lines", "shop_events")

HOOK = """
from pathlib import Path
import msgspec

def tell(report):
    if (Path(__file__).parent / "out of order").exists():
        raise ConnectionError("nobody answers")
    with (Path(__file__).parent / "told").open("a") as told:
        told.write(msgspec.json.encode([report, report.text]).decode() + "\\n")
"""

SLOW_PROFILE = """
import time
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("slow")

class Session(Item):
    PK: str

class Visit(Row, table="visits", key="session_id"):
    session_id: str

@profile.route(PK=prefix("SESSION#"))
def visit(item: Session) -> Visit:
    time.sleep(0.02)
    return Visit(item.PK)

profile.ignore(PK=prefix("CUSTOMER#"), because="not asked for")
profile.ignore(PK=prefix("ORDER#"), because="not asked for")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("operating")
    (home / "hooks.py").write_text(HOOK)
    (home / "slow.py").write_text(SLOW_PROFILE)
    return home


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("export"), items=2_400, files=4, seed=5)


@pytest.fixture(scope="module")
def started(home: Path) -> Iterator[tuple[Operation, Bucket]]:
    with operation(home, "operating", MIGRATION_NOTIFY="hooks:tell") as made:
        yield made


@pytest.fixture(scope="module")
def operator(started: tuple[Operation, Bucket]) -> Operation:
    return started[0]


@pytest.fixture(scope="module")
def bucket(started: tuple[Operation, Bucket]) -> Bucket:
    return started[1]


@pytest.fixture(scope="module")
def shop(operator: Operation, bucket: Bucket, export: Path) -> Plan:
    return operator.plan("shop", bucket.upload(export), "shop")


def key_of(plan: Plan, export: Path, number: int) -> str:
    return f"AWSDynamoDB/{export.name}/data/{plan.files[number].file.name}"


def told(home: Path) -> list[Any]:
    file = home / "told"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def ticks(operator: Operation) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = operator.query(TICKS, sensor=SENSOR_SELECTOR)["sensorOrError"][
        "sensorState"
    ]["ticks"]
    return found


def test_the_sensor_is_off_and_tells_of_each_backfill_once_it_is_on(
    operator: Operation, bucket: Bucket, shop: Plan, export: Path, home: Path
) -> None:
    # It is off by default: a backfill that ends now is told to nobody, then or later.
    state = operator.query(TICKS, sensor=SENSOR_SELECTOR)["sensorOrError"]["sensorState"]
    assert state["status"] == "STOPPED"
    empty = next(planned.partition for planned in shop.files if not planned.file.items)
    before = operator.launch(shop, tables=TABLES, partitions=[empty])
    eventually(lambda: operator.backfill_status(before) == "COMPLETED_SUCCESS", "the first backfill ends")

    reply = operator.query(START_SENSOR, sensor=SENSOR_SELECTOR)["startSensor"]
    assert reply["__typename"] == "Sensor", reply
    eventually(lambda: ticks(operator), "the sensor looks")
    (home / "out of order").touch()
    victim = max(range(4), key=lambda number: shop.files[number].file.items)
    with bucket.truncated(key_of(shop, export, victim)):
        failed = operator.launch(shop, tables=TABLES, partitions=[p.partition for p in shop.files])
        eventually(lambda: operator.backfill_status(failed) == "COMPLETED_FAILED", "the backfill fails")
    # A hook that raises shows as a failed tick, and is called again.
    eventually(lambda: "ConnectionError at " in str(ticks(operator)), "the tick fails")
    assert "hooks.py:7" in str(ticks(operator))
    assert "nobody answers" not in str(ticks(operator))  # a message may hold the address of a webhook
    assert told(home) == []
    (home / "out of order").unlink()
    eventually(lambda: told(home), "the backfill is told of")
    mended = operator.launch(shop, tables=TABLES, partitions=[shop.files[victim].partition])
    eventually(lambda: len(told(home)) > 1, "the second is told of")

    (first, text), (second, _) = told(home)
    assert (first["backfill_id"], first["status"], first["profile"]) == (failed, "failed", "shop")
    assert (first["files"], first["materialized"], first["failed"], first["missing"]) == (4, 3, 1, 0)
    assert first["failed_files"] == [shop.files[victim].file.name]
    assert first["url"] == f"{operator.url}/runs/b/{failed}"
    assert "3 of 4 files materialized, 1 failed, 0 missing" in text
    assert "migration-pipeline retry-failed shop" in text
    assert (second["backfill_id"], second["status"], second["files"]) == (mended, "succeeded", 1)
    operator.query(STOP_SENSOR, id=operator.query(TICKS, sensor=SENSOR_SELECTOR)["sensorOrError"]["id"])


def test_failed_and_missing_loads_what_failed_and_what_was_terminated(
    operator: Operation, bucket: Bucket, shop: Plan, export: Path
) -> None:
    operator.query(WIPE, key={"path": ["shop", "customers"]})
    operator.query(WIPE, key={"path": ["shop", "orders"]})
    operator.query(WIPE, key={"path": ["shop", "order_lines"]})
    assert operator.states(shop) == ["missing"] * 4
    # The queue has room for one at a time, and takes them in the plan's order.
    broken, held = sorted(sorted(range(4), key=lambda number: -shop.files[number].file.items)[:2])
    execute(operator.database_url, "DELETE FROM customers")
    operator.hold("customers")
    with bucket.truncated(key_of(shop, export, broken)):
        backfill = operator.launch(
            shop, tables=TABLES, partitions=[shop.files[n].partition for n in (broken, held)]
        )
        # The truncated file fails while it reads, before the held table is waited for.
        eventually(lambda: "failed" in operator.states(shop), "the truncated file fails")
        eventually(operator.held, "the other is loading")
        operator.terminate(operator.held()[0])
        eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_FAILED", "the backfill ends")
    operator.release()
    states = operator.states(shop)
    assert (states[broken], states[held]) == ("failed", "stopped")

    # The dialog's "Failed and missing" asks Dagster for these lists, and launches their partitions.
    health = operator.query(HEALTH, keys=[{"path": ["shop", "orders"]}])["assetNodes"][0][
        "assetPartitionStatuses"
    ]
    every = {planned.partition for planned in shop.files}
    wanted = every - set(health["materializedPartitions"])
    assert health["failedPartitions"] == [shop.files[broken].partition]
    again = operator.launch(shop, tables=TABLES, partitions=sorted(wanted))
    eventually(lambda: operator.backfill_status(again) == "COMPLETED_SUCCESS", "failed and missing load")
    assert operator.states(shop) == ["materialized"] * 4
    receipts = query(operator.database_url, "SELECT file FROM migration.loaded_file")
    assert {file for (file,) in receipts} == {planned.file.name for planned in shop.files}
    ((orders,),) = query(operator.database_url, "SELECT count(*) FROM orders")
    assert orders == len(expected(export)[0]["orders"])


@pytest.mark.parametrize("whole_backfill", [False, True])
def test_reexecute_from_failure_loads_the_file_that_failed(
    operator: Operation, bucket: Bucket, shop: Plan, export: Path, whole_backfill: bool
) -> None:
    number = max(range(4), key=lambda number: shop.files[number].file.items)
    with bucket.truncated(key_of(shop, export, number)):
        backfill = operator.launch(shop, tables=TABLES, partitions=[shop.files[number].partition])
        eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_FAILED", "the file fails")
    assert operator.states(shop)[number] == "failed"
    (run,) = operator.runs(backfill)
    assert run["tags"][PROFILE_TAG] == "shop"
    mutation, parent = (REEXECUTE_BACKFILL, backfill) if whole_backfill else (REEXECUTE_RUN, run["id"])
    reply = operator.query(mutation, parent={"parentRunId": parent, "strategy": "FROM_FAILURE"})["reexecuted"]
    assert reply["__typename"].endswith("Success"), reply
    eventually(lambda: operator.states(shop)[number] == "materialized", "it loads")


def test_one_file_is_loaded_again_alone(operator: Operation, shop: Plan) -> None:
    before = [file.run_id for file in operator.files(shop)]
    job = {
        "repositoryLocationName": LOCATION,
        "repositoryName": "__repository__",
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": ["shop", table]} for table in TABLES],
    }
    tags = [{"key": "dagster/partition", "value": shop.files[1].partition}]
    parameters = {
        "selector": job,
        "mode": "default",
        "executionMetadata": {"tags": tags},
        "runConfigData": {},
    }
    reply = operator.query(LAUNCH_RUN, parameters=parameters)["launchRun"]
    assert reply["__typename"] == "LaunchRunSuccess", reply
    eventually(lambda: operator.files(shop)[1].run_id == reply["run"]["id"], "the file is loaded")
    after = [file.run_id for file in operator.files(shop)]
    assert [n for n in range(4) if before[n] != after[n]] == [1]
    tags = next(run for run in operator.runs() if run["id"] == reply["run"]["id"])["tags"]
    assert (tags[PROFILE_TAG], tags[FILE_TAG]) == ("shop", shop.files[1].partition)


@pytest.mark.parametrize("job", ["shop_check", "shop_replay"])
def test_the_small_jobs_run(operator: Operation, shop: Plan, job: str) -> None:
    selector = {"repositoryLocationName": LOCATION, "repositoryName": "__repository__", "jobName": job}
    parameters = {"selector": selector, "mode": "default", "runConfigData": {}}
    reply = operator.query(LAUNCH_RUN, parameters=parameters)["launchRun"]
    assert reply["__typename"] == "LaunchRunSuccess", reply

    def run() -> dict[str, Any]:
        return next(run for run in operator.runs() if run["id"] == reply["run"]["id"])

    eventually(lambda: run()["status"] == "SUCCESS", f"{job} ends")
    assert run()["tags"][PROFILE_TAG] == "shop"


def test_the_migrate_job_loads_all_files(operator: Operation, shop: Plan) -> None:
    before = [file.run_id for file in operator.files(shop)]
    parameters = {
        "selector": {
            "partitionSetName": "shop_migrate_partition_set",
            "repositorySelector": {"repositoryLocationName": LOCATION, "repositoryName": "__repository__"},
        },
        "partitionNames": [planned.partition for planned in shop.files],
    }
    reply = operator.query(LAUNCH, parameters=parameters)["launchPartitionBackfill"]
    assert reply["__typename"] == "LaunchBackfillSuccess", reply
    eventually(
        lambda: operator.backfill_status(reply["backfillId"]) == "COMPLETED_SUCCESS", "all files are loaded"
    )
    assert operator.states(shop) == ["materialized"] * 4
    assert not set(before) & {file.run_id for file in operator.files(shop)}


def test_a_file_that_takes_long_tells_how_far_it_is(
    operator: Operation, bucket: Bucket, tmp_path: Path
) -> None:
    plan = operator.plan("slow:profile", bucket.upload(write_sample(tmp_path, items=2_400, files=1)), "slow")
    backfill = operator.launch(plan, tables=("visits",), partitions=[plan.files[0].partition])
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_SUCCESS", "the file is loaded")
    (run,) = operator.runs(backfill)
    observed = operator.query(OBSERVATIONS, key={"path": ["slow", "dynamodb_export"]})["assetOrError"]
    events = [
        {
            entry["label"]: entry.get("intValue", entry.get("floatValue", entry.get("text")))
            for entry in each["metadataEntries"]
        }
        for each in reversed(observed["assetObservations"])
    ]
    assert 1 <= len(events) <= 10
    for event in events:
        assert set(event) == set(FileProgress.__struct_fields__)
        assert 0 < event["percent"] < 100
        assert 0 < event["items_read"] < 2_400
        assert event["items_per_second"] > 0
        assert event["seconds_left"] > 0
        assert (event["items"], event["quarantined"]) == (2_400, 0)
    assert [event["items_read"] for event in events] == sorted(event["items_read"] for event in events)
    log = operator.query(LOG, run=run["id"])["logsForRun"]["events"]
    lines = [event["message"] for event in log if event["__typename"] == "LogMessageEvent"]
    assert len(
        [line for line in lines if "items/s, " in line and line.endswith(" left, 0 quarantined")]
    ) == len(events)


SENSOR_SELECTOR = {
    "repositoryLocationName": LOCATION,
    "repositoryName": "__repository__",
    "sensorName": SENSOR,
}

TICKS = """
query Ticks($sensor: SensorSelector!) {
  sensorOrError(sensorSelector: $sensor) {
    ... on Sensor { id sensorState { status ticks(limit: 20) { status skipReason error { message causes { message } } } } }
  }
}"""

START_SENSOR = """
mutation Start($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on Error { message } }
}"""

STOP_SENSOR = "mutation Stop($id: String) { stopSensor(id: $id) { __typename } }"

WIPE = """
mutation Wipe($key: AssetKeyInput!) {
  wipeAssets(assetPartitionRanges: [{assetKey: $key}]) { __typename ... on Error { message } }
}"""

HEALTH = """
query Health($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetPartitionStatuses { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } }
  }
}"""

REEXECUTE_RUN = """
mutation Again($parent: ReexecutionParams!) {
  reexecuted: launchRunReexecution(reexecutionParams: $parent) { __typename ... on Error { message } }
}"""

REEXECUTE_BACKFILL = """
mutation Again($parent: ReexecutionParams!) {
  reexecuted: reexecutePartitionBackfill(reexecutionParams: $parent) { __typename ... on Error { message } }
}"""

LAUNCH_RUN = """
mutation Run($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) {
    __typename
    ... on LaunchRunSuccess { run { id } }
    ... on Error { message }
  }
}"""

OBSERVATIONS = """
query Observations($key: AssetKeyInput!) {
  assetOrError(assetKey: $key) {
    ... on Asset {
      assetObservations(limit: 100) {
        metadataEntries {
          label
          ... on IntMetadataEntry { intValue }
          ... on FloatMetadataEntry { floatValue }
          ... on TextMetadataEntry { text }
        }
      }
    }
  }
}"""

LOG = """
query Log($run: ID!) {
  logsForRun(runId: $run) {
    ... on EventConnection { events { __typename ... on MessageEvent { message } } }
  }
}"""
