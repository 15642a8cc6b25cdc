"""What is told and done before a backfill launches anything, on a real Dagster: plans that change, tables that do not fit, rows that are gone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan, planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import read_files
from migration_pipeline.operations.runs import log_lines
from migration_pipeline.sources.export import utc
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import (
    LOCATION,
    PATIENCE_SECONDS,
    SCRIPT,
    Operation,
    eventually,
    operation,
    without_waits,
)
from migration_pipeline_tests.windows import record, write_window

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("preflight")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A rehearsal's export and the final one, of two files with items each."""
    folder = tmp_path_factory.mktemp("exports")
    rehearsal, final = (write_sample(folder / str(seed), items=600, files=3, seed=seed) for seed in (1, 2))
    return str(rehearsal), str(final)


@pytest.fixture(scope="module")
def operator(home: Path) -> Iterator[Operation]:
    with operation(home, "preflight") as (made, _):
        yield made


@pytest.fixture(scope="module")
def first(operator: Operation, exports: tuple[str, str], home: Path) -> Plan:
    """The rehearsal's plan, made while Dagster runs, before there is any table."""
    assert run(operator, "plan", "--profile", "shop", exports[0])[0] == 0
    return the_plan(home)


@pytest.fixture(scope="module")
def loaded(operator: Operation, first: Plan) -> Operation:
    """The rehearsal, loaded."""
    operator.command("ddl", "shop", "--apply")
    status, output = run(operator, "backfill", "shop", "--wait")
    assert status == 0, output
    return operator


def run(operator: Operation, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run a command as on a terminal; gives its status and all that it said."""
    done = subprocess.run(
        [SCRIPT, *arguments],
        cwd=operator.home,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("MIGRATION_")},
            "MIGRATION_HOME": str(operator.home),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, without_waits(done.stdout)


def the_plan(home: Path) -> Plan:
    return read_plan(plan_path(home / "plans", "shop"))


def partitions_in_dagster(operator: Operation) -> set[str]:
    (node,) = operator.query(PARTITIONS, keys=[{"path": ["shop", "orders"]}])["assetNodes"]
    return set(node["partitionKeys"])


def by_file(operator: Operation) -> list[dict[str, Any]]:
    files: list[dict[str, Any]] = json.loads(run(operator, "status", "shop", "--json")[1])["by_file"]
    return files


def missing(operator: Operation) -> list[dict[str, Any]]:
    status, output = run(operator, "status", "shop", "--json")
    files = [file for file in json.loads(output)["by_file"] if file["state"] == "missing"]
    assert not files or status == 1
    return files


def nothing_is_left(operator: Operation) -> None:
    status, output = run(operator, "backfill", "shop")
    assert (status, output) == (0, "3 of 3 files materialized: nothing to launch (--all loads them again)\n")


# -- before there are tables ----------------------------------------------------------------------------


def test_a_plan_is_seen_by_the_dagster_that_runs(operator: Operation, first: Plan) -> None:
    assert partitions_in_dagster(operator) == set(first.by_partition())


def test_tables_that_are_missing_are_told_once_and_nothing_is_launched(
    operator: Operation, first: Plan
) -> None:
    for command in (("backfill", "shop"), ("backfill", "shop", "--wait")):
        status, output = run(operator, *command)
        assert status == 2
        assert "bookkeeping" in output
        for table in ("customers", "orders", "order_lines", "landing.shop_events", "customer_activity"):
            assert f"table {table} does not exist; create it with: migration-pipeline ddl" in output
    assert operator.runs() == []


def test_tables_that_are_missing_are_a_failed_check(operator: Operation, first: Plan) -> None:
    selector = {"repositoryName": "__repository__", "repositoryLocationName": LOCATION, "pipelineName": "shop_check"}  # fmt: skip
    operator.query(LAUNCH_RUN, params={"selector": selector})
    eventually(lambda: check(operator), "the check is made")
    made = check(operator)
    assert made
    assert (made["success"], made["severity"]) == (False, "ERROR")
    assert "table orders does not exist" in made["description"]
    eventually(lambda: operator.runs()[0]["status"] in ("SUCCESS", "FAILURE"), "the job ends")


def test_a_plan_is_made_and_shown_beside_one_that_does_not_load(
    operator: Operation, first: Plan, exports: tuple[str, str], home: Path
) -> None:
    gone = home / "plans" / "gone.json"
    gone.write_text(
        Path(plan_path(home / "plans", "shop")).read_text().replace('"shop"', '"gone"', 1).replace('"shop"', '"gone:profile"')
    )  # fmt: skip
    try:
        status, output = run(operator, "plan", "--profile", "shop", exports[1])
        assert status == 0
        assert "planned 3 files" in output
        assert (
            "warning: cannot check whether this plan writes a table of shop, too: profile gone:profile"
            in output
        )
        assert partitions_in_dagster(operator) == set(the_plan(home).by_partition())
        (fault,) = operator.query(DESCRIPTIONS, keys=[{"path": ["gone", "plan_does_not_load"]}])["assetNodes"]
        assert "profile gone:profile: no module 'gone'" in fault["description"]
    finally:
        gone.unlink()
    assert run(operator, "plan", "--profile", "shop", exports[0])[0] == 0
    assert partitions_in_dagster(operator) == set(first.by_partition())


def test_a_plan_is_made_and_the_trouble_told_where_the_code_does_not_load(
    operator: Operation, first: Plan, exports: tuple[str, str], home: Path
) -> None:
    """As where the code server lacks a package that this terminal has."""
    lacking = home / "isal.py"
    lacking.write_text("raise ModuleNotFoundError('isal')")
    try:
        status, output = run(operator, "plan", "--profile", "shop", exports[1], PYTHONPATH=str(TOP))
        assert status == 0
        assert "planned 3 files" in output
        assert "warning: Dagster at http" in output
        assert "until its definitions are reloaded" in output
    finally:
        lacking.unlink()
    assert run(operator, "plan", "--profile", "shop", exports[0])[0] == 0
    assert partitions_in_dagster(operator) == set(first.by_partition())


# -- loaded, and no longer there ------------------------------------------------------------------------


def test_a_plan_that_comes_back_is_landed_again(
    loaded: Operation, exports: tuple[str, str], home: Path, first: Plan
) -> None:
    """Dagster shows its files as materialized, but another plan's aggregate has dropped what they had landed."""
    nothing_is_left(loaded)
    assert run(loaded, "plan", "--profile", "shop", exports[1])[0] == 0
    final = the_plan(home)
    assert partitions_in_dagster(loaded) == set(final.by_partition()) != set(first.by_partition())
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 0, output
    assert run(loaded, "plan", "--profile", "shop", exports[0])[0] == 0
    assert {file["error"] for file in missing(loaded)} == {
        "materialized in Dagster, but without the landed rows that an aggregate needs"
    }
    status, output = run(loaded, "retry-failed", "shop")
    assert status == 0, output
    assert "they count as missing; migration-pipeline backfill shop loads them again" in output
    assert "3 missing: nothing to retry" in output
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 0, output
    assert output.startswith(
        "3 files are materialized in Dagster, but without the landed rows that an aggregate needs: they count as missing\n"
    )
    assert query(loaded.database_url, "SELECT sum((rows ->> 'landing.shop_events')::bigint) FROM migration.slice") == [
        query(loaded.database_url, "SELECT count(*) FROM landing.shop_events")[0]
    ]  # fmt: skip
    nothing_is_left(loaded)


def test_a_file_whose_receipt_is_gone_is_loaded_again_alone(loaded: Operation, first: Plan) -> None:
    victim = first.files[0].file.name
    execute(loaded.database_url, f"DELETE FROM migration.loaded_file WHERE file = '{victim}'")
    (file,) = missing(loaded)
    assert (file["file"], file["error"]) == (
        victim, "materialized in Dagster, but without a receipt in the database",
    )  # fmt: skip
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 0, output
    assert "1 file is materialized in Dagster, but without a receipt in the database" in output
    assert re_launched(output) == 1
    nothing_is_left(loaded)


def test_a_table_that_was_made_anew_is_filled_again(loaded: Operation) -> None:
    rows = query(loaded.database_url, "SELECT count(*) FROM orders")
    execute(loaded.database_url, "DROP TABLE orders")
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 2
    assert output.splitlines()[-1].startswith("error: table orders does not exist; create it with")
    loaded.command("ddl", "shop", "--apply")
    assert {file["error"] for file in missing(loaded)} == {
        "materialized in Dagster, but without rows in orders, which is empty"
    }
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 0, output
    assert 0 < query(loaded.database_url, "SELECT count(*) FROM orders")[0][0] <= rows[0][0]
    nothing_is_left(loaded)


def test_an_aggregate_that_is_empty_again_is_made_again(loaded: Operation) -> None:
    execute(loaded.database_url, "TRUNCATE customer_activity")
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 0, output
    assert re_launched(output) == 0
    assert query(loaded.database_url, "SELECT count(*) > 0 FROM customer_activity") == [(True,)]
    nothing_is_left(loaded)


def test_what_is_landed_may_go_once_all_is_made_and_comes_back_for_an_aggregate(loaded: Operation) -> None:
    execute(loaded.database_url, "DROP TABLE landing.shop_events CASCADE")
    loaded.command("ddl", "shop", "--apply")
    nothing_is_left(loaded)
    execute(loaded.database_url, "TRUNCATE customer_activity")
    status, output = run(loaded, "backfill", "shop", "--wait")
    assert status == 0, output
    # The file without items has landed nothing that could be gone.
    assert re_launched(output) == 2
    assert query(loaded.database_url, "SELECT count(*) > 0 FROM customer_activity") == [(True,)]
    nothing_is_left(loaded)


# -- windows --------------------------------------------------------------------------------------------


def test_windows_that_are_added_are_missing_beside_what_is_materialized(
    loaded: Operation, first: Plan, exports: tuple[str, str], home: Path
) -> None:
    """The Dagster that runs has their partitions, and keeps what it knows of the others."""
    nothing_is_left(loaded)
    (base,) = first.exports
    began = datetime.fromisoformat(base.export_time.replace("Z", "+00:00")).replace(microsecond=0)
    times = [utc(began + timedelta(minutes=minutes)) for minutes in (0, 15, 30)]
    session = {"PK": {"S": "SESSION#1"}, "SK": {"S": "SESSION"}}
    windows = [
        write_window(
            Path(base.uri).parents[1], [[record(None, session, start)]], start, end,
            tableArn=base.table_arn, tableId=base.table_id,
        )
        for start, end in pairwise(times)
    ]  # fmt: skip
    states = {file["partition"]: file["run_id"] for file in by_file(loaded)}
    try:
        for window in reversed(windows):  # the later one first, over a hole
            status, output = run(loaded, "plan", "shop", "--add", str(window), "--allow-gap")
            assert status == 0, output
        plan = the_plan(home)
        assert partitions_in_dagster(loaded) == set(plan.by_partition()) > set(first.by_partition())
        files = by_file(loaded)
        assert [file["partition"] for file in files] == [planned.partition for planned in plan.files]
        assert {file["partition"]: file["run_id"] for file in files[:3]} == states
        assert [file["state"] for file in files] == ["materialized"] * 3 + ["missing"] * 2
        assert [planned.export_id for planned in plan.files[3:]] == [window.name for window in windows]
    finally:
        assert run(loaded, "plan", "--profile", "shop", exports[0])[0] == 0
    nothing_is_left(loaded)


# -- what cannot be told --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["not named", "not reached"])
def test_a_terminal_that_does_not_know_the_database_launches_all_the_same(
    loaded: Operation, first: Plan, where: str
) -> None:
    """The embedded database is that of the local stack alone: for a Dagster elsewhere it says nothing."""
    elsewhere = loaded.url.replace("127.0.0.1", "localhost")
    settings = (
        {"MIGRATION_DAGSTER_URL": elsewhere}
        if where == "not named"
        else {"MIGRATION_DATABASE_URL": "postgresql://127.0.0.1:1/nowhere"}
    )
    (empty,) = [planned.file.name for planned in first.files if not planned.file.items]
    status, output = run(loaded, "backfill", "shop", "--all", "--only", empty, "--wait", **settings)
    assert status == 0, output
    (line,) = [line for line in output.splitlines() if line.startswith("warning: ")]
    assert line.startswith("warning: cannot check the tables from here")
    assert ("MIGRATION_DATABASE_URL is not set" if where == "not named" else "no database: ") in line


def test_rows_of_another_profile_are_told_in_the_log(loaded: Operation, first: Plan) -> None:
    execute(
        loaded.database_url,
        "INSERT INTO migration.loaded_file (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped, "
        "quarantined, rows, seconds, run_id) "
        """VALUES ('older', 'e', 'f', '1', 'm', 1, 1, 1, '{}', 0, '{"public.orders": 1, "customers": 0}', 1, 'r')""",
    )
    (empty,) = [planned for planned in first.files if not planned.file.items]
    status, output = run(loaded, "backfill", "shop", "--all", "--only", empty.file.name, "--wait")
    assert status == 0, output
    instance = DagsterClient(loaded.url)
    profile = planned_profile(first, loaded.home)
    run_id = next(
        file.run_id for file in read_files(instance, first, profile) if file.partition == empty.partition
    )
    said = [line.text for line in log_lines(instance, run_id)[0] if line.level == "WARNING"]
    assert said == [
        "public.orders: the profile older has loaded rows into it, too; each overwrites the other's rows"
    ]


def re_launched(output: str) -> int:
    return sum(int(line.split()[4]) for line in output.splitlines() if line.startswith("launched backfill"))


def check(operator: Operation) -> dict[str, Any] | None:
    """The last evaluation of `tables_fit`."""
    (node,) = operator.query(CHECKS, keys=[{"path": ["shop", "dynamodb_export"]}])["assetNodes"]
    for each in node["assetChecksOrError"]["checks"]:
        if each["name"] == "tables_fit":
            executed: dict[str, Any] = each["executionForLatestMaterialization"] or {}
            return executed.get("evaluation")
    raise AssertionError("there is no such check")


DESCRIPTIONS = """
query Descriptions($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) { description } }"""

PARTITIONS = """
query Partitions($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) { partitionKeys } }"""

LAUNCH_RUN = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { id } } }
}"""

CHECKS = """
query Checks($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetChecksOrError {
      ... on AssetChecks {
        checks { name executionForLatestMaterialization { evaluation { success severity description } } }
      }
    }
  }
}"""


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ("CREATE TABLE order_lines (order_id text PRIMARY KEY)", "not applied, because"),
        ("ALTER TABLE order_lines ALTER COLUMN quantity TYPE text", "applied, but"),
    ],
)
def test_ddl_does_not_call_applied_what_does_not_fit(
    database_url: str, monkeypatch: pytest.MonkeyPatch, there: str, told: str
) -> None:
    """Such as the demo's tables, which have the names of others."""
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    if there.startswith("ALTER"):
        assert CliRunner().invoke(main, ["ddl", "shop", "--apply"]).exit_code == 0
    execute(database_url, there)
    done = CliRunner().invoke(main, ["ddl", "shop", "--apply"])
    assert done.exit_code == 2
    said = done.output.partition("error: ")[2].splitlines()
    assert said[0] == f"{told} tables that were there before do not fit the profile:"
    assert all("order_lines" in line for line in said[1:])
    assert len(said) > 1
    assert "-- applied" not in done.output
    execute(database_url, "DROP TABLE order_lines")
    assert CliRunner().invoke(main, ["ddl", "shop", "--apply"]).exit_code == 0
