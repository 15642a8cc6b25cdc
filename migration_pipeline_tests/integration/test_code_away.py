"""A backfill outlasts code that is away, does not load, or that Dagster's daemon does not have yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.service import Service
from migration_pipeline.migration.plan import Plan
from migration_pipeline_tests.operating import Bucket, Operation, eventually, operation

TABLES = ("customers", "orders", "order_lines", "shop_events")


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


def held_in_a_file(operator: Operation, plan: Plan) -> str:
    """Launch a backfill, and have its first file wait in the middle; gives its id."""
    operator.hold("customers")
    backfill = operator.launch(plan, tables=TABLES, partitions=[p.partition for p in plan.files])
    eventually(operator.held, "a file waits")
    return backfill


def test_a_backfill_and_its_runs_wait_for_a_code_server_that_is_away(operator: Operation, shop: Plan) -> None:
    backfill = held_in_a_file(operator, shop)
    log = operator.home / "log" / "daemon.log"
    with operator.without("code-server"):
        eventually(
            lambda: f"Backfill {backfill} was unable to continue" in log.read_text(), "the daemon gives it up"
        )
        # The worker of the file that was loading ended with the code server. Dagster gives it up for want of code.
        operator.release()
        eventually(lambda: "Failed to retry run" in log.read_text(), "the daemon gives the run up")
        eventually(lambda: "true" in will_retry(operator, backfill), "it is to be started again nevertheless")
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_SUCCESS", "the backfill ends", 240)
    statuses = sorted(run["status"] for run in operator.runs(backfill))
    assert statuses == ["FAILURE", *["SUCCESS"] * len(shop.files)], "the one that crashed, and one for each file"
    assert operator.states(shop) == ["materialized"] * len(shop.files)


def test_a_backfill_that_the_daemon_has_no_code_for_is_launched_again(
    tmp_path_factory: pytest.TempPathFactory, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Service.start

    def with_fixed_id(self: Service, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start a code server that gives new code no new id, so that the daemon reads it only when it reads all."""
        fixed = ["--fixed-server-id", "always-this"] if self.name == "code-server" else []
        start(self, [*command, *fixed], environment)

    monkeypatch.setattr(Service, "start", with_fixed_id)
    with operation(tmp_path_factory.mktemp("stale"), "stale") as (operator, bucket):
        operator.command("plan", "--profile", "shop", bucket.upload(export))
        operator.command("ddl", "shop", "--apply")
        said = operator.command("backfill", "shop", "--wait")
        assert "launched again as backfill" in said
        found = operator.query(BACKFILLS)["partitionBackfillsOrError"]["results"]
        assert [(one["title"], one["status"]) for one in found] == [
            ("Re-execution of shop: 4 files", "COMPLETED_SUCCESS"),
            ("shop: 4 files", "FAILED"),
        ]


BACKFILLS = "{ partitionBackfillsOrError { ... on PartitionBackfills { results { title status } } } }"
