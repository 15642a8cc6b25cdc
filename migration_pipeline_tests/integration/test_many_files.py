"""A backfill of many files: what it is still to load is launched and not loaded twice, a stop stops, options are taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import plan_path
from migration_pipeline.operations.backfills import read_backfill
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import read_files, read_launched
from migration_pipeline.profile.profile import load_profile
from migration_pipeline_tests.conftest import execute
from migration_pipeline_tests.operating import Operation, eventually, operation

FILES = 12


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    with operation(tmp_path_factory.mktemp("many"), "many-files") as (operator, _bucket):
        yield operator


@pytest.fixture(scope="module")
def plan(operator: Operation, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    export = write_sample(tmp_path_factory.mktemp("export"), items=FILES * 20, files=FILES, seed=3)
    return operator.plan("shop", str(export), "shop")


def by_state(operator: Operation, plan: Plan) -> dict[str, int]:
    states = operator.states(plan)
    return {state: states.count(state) for state in set(states)}


def test_a_second_backfill_leaves_out_what_the_first_is_still_to_load(
    operator: Operation, plan: Plan
) -> None:
    operator.hold("customers")
    operator.command("backfill", "shop")
    # The daemon has yet to make most of the runs, or all.
    before = by_state(operator, plan)
    assert before.get("launched", 0) > 0
    assert "missing" not in before
    again = operator.command("backfill", "shop")
    assert "nothing to launch" in again
    eventually(lambda: len(operator.runs()) == FILES, "a run for each file, and no more")
    assert "missing" not in by_state(operator, plan)


def test_stop_leaves_no_run_and_no_backfill(operator: Operation, plan: Plan) -> None:
    eventually(lambda: operator.held(), "a file waits")
    operator.command("stop", "shop")
    operator.release()
    assert {run["status"] for run in operator.runs()} <= {"CANCELED", "SUCCESS"}
    assert by_state(operator, plan).keys() <= {"stopped", "materialized"}


def test_another_number_of_files_per_run_is_taken_though_the_files_are_the_same(
    operator: Operation, plan: Plan
) -> None:
    before = len(operator.runs())
    path = Path(plan_path(operator.plans, "shop"))
    # As `plan` writes it where it cannot reach this Dagster: the command that comes next sees that it is another plan.
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"files_per_run": FILES}))
    execute(operator.database_url, "DROP TRIGGER held ON customers")
    operator.hold("customer_activity")
    operator.command("backfill", "shop")
    eventually(lambda: set(operator.states(plan)) == {"materialized"}, "all files are loaded")
    eventually(lambda: operator.held(), "what follows them waits")
    assert len(operator.runs()) - before == 2


def test_what_a_backfill_has_loaded_is_not_launched_while_it_makes_what_follows(
    operator: Operation, plan: Plan
) -> None:
    """A file whose materialization is wiped then is missing: no run will load it, unless it is launched again."""
    operator.query(WIPE, ranges=[{"assetKey": {"path": ["shop", "customers"]}}])
    try:
        assert by_state(operator, plan) == {"missing": FILES}
    finally:
        operator.release()


WIPE = """
mutation Wipe($ranges: [PartitionsByAssetSelector!]!) { wipeAssets(assetPartitionRanges: $ranges) { __typename } }
"""


def test_a_file_that_failed_is_no_longer_launched_while_others_of_its_backfill_are(
    operator: Operation, tmp_path: Path
) -> None:
    plan = operator.plan("shop", str(write_sample(tmp_path, items=3_000, files=3, seed=5)), "shop")
    shop, client = load_profile("shop"), DagsterClient(operator.url)
    broken, *others = (planned for planned in plan.files if planned.file.items)
    Path(broken.file.uri).unlink()
    execute(operator.database_url, "DROP TRIGGER IF EXISTS held ON customer_activity")
    operator.hold("customers")
    before = operator.files(plan)
    partitions = [file.partition for file in before]
    launched = operator.launch(
        plan, tables=("customers", "orders", "order_lines", "shop_events"), partitions=partitions
    )
    eventually(lambda: operator.held(), "a file waits")
    backfill = read_backfill(client, launched)
    assert not backfill.over
    for files in (
        read_launched(client, plan, shop, backfill, before),
        read_files(client, plan, shop, attempts=False),
    ):
        states = {file.partition: file.state for file in files}
        assert states[broken.partition] == "failed"
        assert {states[planned.partition] for planned in others} <= {"running", "launched"}
    operator.release()
    eventually(lambda: read_backfill(client, launched).over, "the others are loaded")
