"""Windows in Dagster: files that are run too early wait, and what comes after the files is made anew after each window."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg2
import pytest

from migration_pipeline.defs.aggregates import KEPT, downstream_assets
from migration_pipeline.defs.migration import Database
from migration_pipeline.demo.sample_history import History, write_history
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.downstream import AssetStatus, downstream
from migration_pipeline.operations.files import FileStatus
from migration_pipeline.operations.runs import log_lines, run_error
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_exports
from migration_pipeline.sources.storage import Storage
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import Operation, eventually, operation
from migration_pipeline_tests.oracle import Rows, activities, actual, expected

TABLES = ("customers", "orders", "order_lines", "shop_events")
PROJECT = Path(__file__).parents[2]
SLOTS = 3

SEQUENCE = """
CREATE SEQUENCE points OWNED BY customers.loyalty_points;
SELECT setval('points', 1)
"""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> History:
    folder = tmp_path_factory.mktemp("history")
    return write_history(folder, items=2_400, files=3, seed=8, changes=900, windows=2)


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operation]:
    """A stack with some places in its queue."""
    home = tmp_path_factory.mktemp("windows")
    settings = (PROJECT / "dagster.yaml").read_text()
    assert "max_concurrent_runs: 1" in settings
    (home / "dagster").mkdir()
    (home / "dagster" / "dagster.yaml").write_text(
        settings.replace("max_concurrent_runs: 1", f"max_concurrent_runs: {SLOTS}")
    )
    with operation(home, "windows", DAGSTER_HOME=str(home / "dagster")) as (made, _):
        yield made


@pytest.fixture(scope="module")
def plan(operator: Operation, history: History) -> Plan:
    """The base and the first window."""
    made = operator.plan("shop", str(history.base), "shop")
    execute(operator.database_url, SEQUENCE)
    return added(operator, made, history.windows[0])


def added(operator: Operation, plan: Plan, window: Path) -> Plan:
    operator.command("plan", "shop", "--add", str(window))
    found = read_plan(plan_path(operator.home / "plans", "shop"))
    DagsterClient(operator.url).load_plan(found, load_profile("shop"))
    assert found.files[: len(plan.files)] == plan.files
    return found


def of(plan: Plan, number: int) -> list[str]:
    """The partitions of an export that have items."""
    return [p.partition for p in plan.files if p.export_id == plan.exports[number].id and p.file.items]


def state_of(operator: Operation, plan: Plan, partition: str) -> FileStatus:
    return next(file for file in operator.files(plan) if file.partition == partition)


def said(operator: Operation, run_id: str) -> list[str]:
    return [line.text for line in log_lines(DagsterClient(operator.url), run_id)[0]]


def running(operator: Operation, partition: str) -> list[str]:
    tag = "dagster/asset_partition_range_start"
    return [
        run["id"]
        for run in operator.runs()
        if run["status"] == "STARTED" and partition in (run["tags"].get(tag), run["tags"].get("dagster/partition"))
    ]  # fmt: skip


def tables(url: str) -> Rows:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        return actual(connection)


def then(operator: Operation) -> dict[str, AssetStatus]:
    return {each.name: each for each in downstream(DagsterClient(operator.url), load_profile("shop"))}


def test_a_window_without_its_base_fails_in_one_line(operator: Operation, plan: Plan) -> None:
    (first, *_) = of(plan, 1)
    backfill = operator.launch(plan, tables=TABLES, partitions=[first])
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_FAILED", "it fails")
    (run,) = operator.runs(backfill)
    error = run_error(DagsterClient(operator.url), run["id"])
    assert error.startswith("the window waits for 3 of 3 files before it, which are not loaded: ")
    assert error.endswith("load them, then this one: nothing of it was loaded")
    assert not [line for line in said(operator, run["id"]) if "must be loaded before this window" in line]


def test_files_that_come_too_early_wait_and_can_be_terminated(operator: Operation, plan: Plan) -> None:
    base, (one, two, *_) = of(plan, 0), of(plan, 1)
    operator.hold("customers")
    backfill = operator.launch(plan, tables=TABLES, partitions=[p.partition for p in plan.files])
    eventually(lambda: running(operator, one), "the first file of the window has a place")
    (waiting,) = running(operator, one)
    eventually(
        lambda: any("loading now" in line for line in said(operator, waiting)), "it says that it waits"
    )
    (told,) = [
        line for line in said(operator, waiting) if "loading now" in line and "Observation" not in line
    ][:1]
    name = plan.by_partition()[one].file.name
    assert told.startswith(f"{name}: waits for 2 files that must be loaded before this window; loading now: ")
    for partition in base:
        assert f"{plan.by_partition()[partition].file.name} (run " in told
    assert query(operator.database_url, "SELECT count(*) FROM migration.item") == [(0,)]

    # Terminated, it ends at once, and the next file takes its place.
    began = time.monotonic()
    operator.terminate(waiting)
    eventually(lambda: state_of(operator, plan, one).state == "stopped", "the waiting run ends")
    assert time.monotonic() - began < 20
    eventually(lambda: running(operator, two), "the second file of the window has the place")
    (next_one,) = running(operator, two)
    eventually(lambda: any("loading now" in line for line in said(operator, next_one)), "it waits, too")
    operator.release()
    eventually(lambda: operator.backfill_status(backfill).startswith("COMPLETED"), "the backfill ends", 240)
    states = {file.partition: file.state for file in operator.files(plan)}
    assert {p: s for p, s in states.items() if s != "materialized"} == {one: "stopped"}
    assert state_of(operator, plan, two).run_id == next_one
    assert then(operator)["finishing"].state == "missing"

    # Without its first file the window is not whole, and loading the file is all that is left to do.
    output = operator.command("retry-failed", "shop", "--wait")
    assert "customer_activity materialized, finishing materialized" in output
    assert set(operator.states(plan)) == {"materialized"}


def test_a_window_shows_its_own_account(operator: Operation, plan: Plan) -> None:
    first, *_ = of(plan, 1)
    found = state_of(operator, plan, first).metadata
    assert found["records"] == found["items"] == plan.by_partition()[first].file.items
    assert found["records"] == found["loaded"] + found["superseded"] + found["skipped"] + found["quarantined"]
    assert {"inserted", "updated", "deleted", "unchanged"} <= set(found)
    assert found["inserted"] + found["updated"] + found["unchanged"] == found["rows"]
    done = [line for line in said(operator, state_of(operator, plan, first).run_id) if ": done, " in line]
    assert len(done) == 1
    assert "records: 0 superseded" in done[0]
    run_id = state_of(operator, plan, first).run_id
    (start,) = [line for line in said(operator, run_id) if ": start, " in line]
    assert f": start, {found['records']:,} records, " in start
    base = state_of(operator, plan, of(plan, 0)[0]).metadata
    assert not {"records", "superseded", "inserted"} & set(base)


def test_what_comes_after_the_files_is_made_anew_after_another_window(
    operator: Operation, plan: Plan, history: History
) -> None:
    made = then(operator)
    before = {file.partition: file.run_id for file in operator.files(plan)}
    whole = added(operator, plan, history.windows[1])
    execute(operator.database_url, "SELECT setval('points', 1)")
    output = operator.command("backfill", "shop", "--wait")
    assert f"of {len(whole.files) - len(plan.files)} files" in output
    assert "customer_activity materialized, finishing materialized" in output
    after = {file.partition: file.run_id for file in operator.files(whole)}
    assert {p: run for p, run in after.items() if p in before} == before, "no file was loaded twice"
    again = then(operator)
    assert {asset.state for asset in again.values()} == {"materialized"}
    for name in ("customer_activity", "finishing"):
        assert again[name].run_id != made[name].run_id
    assert tables(operator.database_url) == expected(history.final)[0]
    activity = query(operator.database_url, "SELECT * FROM customer_activity ORDER BY customer_id")
    assert activity == activities(expected(history.final)[0])
    ((highest,),) = query(operator.database_url, "SELECT max(loyalty_points) FROM customers")
    assert query(operator.database_url, "SELECT nextval('points')") == [(highest + 1,)]


def test_a_base_file_loaded_again_says_what_windows_have_touched(
    operator: Operation, plan: Plan, history: History
) -> None:
    first, *_ = of(plan, 0)
    whole = read_plan(plan_path(operator.home / "plans", "shop"))
    backfill = operator.launch(whole, tables=TABLES, partitions=[first])
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_SUCCESS", "it is loaded again")
    found = state_of(operator, whole, first).metadata
    assert found["superseded"] > 0
    assert found["items"] == found["loaded"] + found["superseded"] + found["skipped"]
    assert tables(operator.database_url) == expected(history.final)[0]


@pytest.mark.parametrize(("windows", "last"), [(False, False), (True, False), (True, True)])
def test_finishing_keeps_landed_rows_for_windows_to_come(
    shop_database_url: str, history: History, windows: bool, last: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = load_profile("shop")
    paths = [str(history.base), *(map(str, history.windows) if windows else ())]
    plan = make_plan(shop, "shop", read_exports(paths, Storage(), lambda _: None))
    execute(
        shop_database_url,
        "CREATE TABLE landing.shop_events_7 () INHERITS (landing.shop_events); INSERT INTO migration.slice "
        "(profile, export_id, file, run_id, landed_at) OVERRIDING SYSTEM VALUE VALUES ('shop', 'e', 'f', 'r', now());"
        "UPDATE migration.slice SET id = DEFAULT",
    )
    *_, finishing = downstream_assets(plan, shop)
    config = {"drop_landing": True, "last_window": last}
    result = dg.materialize(
        [finishing],
        resources={"database": Database(url=shop_database_url)},
        run_config={"ops": {"shop__finishing": {"config": config}}},
    )
    dropped = result.asset_materializations_for_node("shop__finishing")[0].metadata["dropped"].value
    assert dropped == (0 if windows and not last else 1)
    assert (KEPT in capfd.readouterr().err) == (windows and not last)
