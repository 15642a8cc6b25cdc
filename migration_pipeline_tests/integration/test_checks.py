"""The asset checks, against receipts in a real PostgreSQL: each passes after a whole load, and fails for its own fault."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from migration_pipeline.defs.checks import check_job, migration_checks
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_aggregates import files_of, make
from migration_pipeline_tests.integration.test_load import load_all

shop = load_profile("shop")
TABLES = ("customers", "orders", "order_lines")
MADE = "made_of_all_files_customer_activity"
COLLISION_CHECKS = {f"no_key_collisions_{table}" for table in TABLES}


@pytest.fixture
def plan(shop_export: Path) -> Plan:
    return make_plan(shop, "shop", [read_export(str(shop_export), Storage())])


@pytest.fixture
def loaded(shop_database_url: str, shop_export: Path) -> str:
    export = read_export(str(shop_export), Storage())
    load_all(shop_database_url, export)
    make(shop_database_url, shop, files_of(export))
    return shop_database_url


def run(plan: Plan, url: str, profile: Any = shop) -> dict[str, dg.AssetCheckEvaluation]:
    """Run the job; gives the evaluations by name."""
    checks = migration_checks(plan, profile)
    definitions = dg.Definitions(
        assets=migration_assets(plan, profile),
        asset_checks=checks,
        jobs=[check_job(plan, checks)],
        resources={"database": Database(url=url)},
    )
    result = definitions.resolve_job_def("shop_check").execute_in_process()
    assert result.success
    assert result.get_asset_materialization_events() == []
    evaluations = {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}
    assert set(evaluations) == {
        "tables_fit", "all_files_loaded", "items_conserved", "md5_matches", "nothing_quarantined", "nothing_unrouted",
        *COLLISION_CHECKS, MADE,
    }  # fmt: skip
    assert {evaluation.asset_key for evaluation in evaluations.values()} == {
        dg.AssetKey(["shop", "dynamodb_export"])
    }
    return evaluations


def failed(evaluations: dict[str, dg.AssetCheckEvaluation]) -> set[str]:
    return {name for name, evaluation in evaluations.items() if not evaluation.passed}


def text(evaluation: dg.AssetCheckEvaluation) -> str:
    return "\n".join(f"{label}: {value.value}" for label, value in evaluation.metadata.items())


def test_all_pass_after_a_whole_load(plan: Plan, loaded: str) -> None:
    evaluations = run(plan, loaded)
    assert failed(evaluations) == set()
    assert evaluations["all_files_loaded"].description == "4 of 4 files are loaded"
    assert evaluations["items_conserved"].metadata["items"].value == 6_000


def test_each_statement_that_a_check_shows_runs_as_it_is(plan: Plan, loaded: str) -> None:
    for evaluation in run(plan, loaded).values():
        block = str(evaluation.metadata["sql"].value)
        statements = block.removeprefix("```sql\n").removesuffix("\n```").split(";")[:-1]
        assert statements
        for statement in statements:
            query(loaded, statement)


def test_nothing_loaded_is_files_missing_and_nothing_else(plan: Plan, shop_database_url: str) -> None:
    evaluations = run(plan, shop_database_url)
    assert failed(evaluations) == {"all_files_loaded"}
    told = text(evaluations["all_files_loaded"])
    assert all(planned.partition in told for planned in plan.files)
    assert "migration-pipeline backfill shop --wait" in told


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("UPDATE migration.loaded_file SET loaded = loaded - 1 WHERE items > 0", "items_conserved"),
        ("UPDATE migration.loaded_file SET items = items + 1, loaded = loaded + 1", "items_conserved"),
        ("UPDATE migration.loaded_file SET md5 = 'other'", "md5_matches"),
        ("""UPDATE migration.loaded_file SET unrouted = '{"PK=CART#…": 3}'""", "nothing_unrouted"),
        ("DELETE FROM migration.loaded_file WHERE items = 0", "all_files_loaded"),
    ],
)
def test_a_fault_is_told_with_its_files(plan: Plan, loaded: str, fault: str, check: str) -> None:
    execute(loaded, fault)
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {check}
    concerned = evaluations[check].metadata["files_concerned"].value
    assert isinstance(concerned, int)
    told = text(evaluations[check])
    assert concerned == sum(planned.partition in told for planned in plan.files) > 0
    assert evaluations[check].metadata["next"].value
    assert evaluations[check].severity == dg.AssetCheckSeverity.ERROR
    if check == "nothing_unrouted":
        assert evaluations[check].description == "no rule takes 12 items, with keys PK=CART#… (12)"


QUARANTINE = """
INSERT INTO migration.quarantine (profile, export_id, file, line, raw, reason, profile_version, run_id)
SELECT profile, export_id, file, 1, 'a secret', 'a secret', '1', 'r' FROM migration.loaded_file WHERE items > 0
"""


def test_quarantined_items_fail_unless_the_profile_allows_them_and_must_be_those_of_the_receipts(
    plan: Plan, loaded: str
) -> None:
    execute(loaded, QUARANTINE)
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {"nothing_quarantined", "items_conserved"}
    assert evaluations["nothing_quarantined"].severity == dg.AssetCheckSeverity.ERROR
    assert "secret" not in "".join(map(text, evaluations.values()))

    execute(
        loaded,
        "UPDATE migration.loaded_file SET quarantined = 1, loaded = loaded - 1 WHERE items > 0",
    )
    assert failed(run(plan, loaded)) == {"nothing_quarantined"}
    ((bad,),) = query(loaded, "SELECT count(*) FROM migration.quarantine")
    assert failed(run(plan, loaded, replace(shop, may_quarantine=bad - 1))) == {"nothing_quarantined"}
    allowed = run(plan, loaded, replace(shop, may_quarantine=bad))
    assert failed(allowed) == set()
    told = f"{bad} items are in the quarantine, and the profile allows {bad}"
    assert allowed["nothing_quarantined"].description == told


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("DELETE FROM migration.aggregate", "it has not been made yet"),
        ("UPDATE migration.loaded_file SET loaded_at = now() WHERE file = (SELECT min(file) FROM migration.loaded_file)", "1 file was loaded after it was made"),
        ("UPDATE migration.aggregate SET files = files + 1", "it was made of 5 files, but the plan has 4"),
        ("UPDATE migration.aggregate SET sql_md5 = 'x'", "the profile's SQL has changed since it was made"),
        ("UPDATE migration.aggregate SET groups = groups + 1", " groups of landed rows became "),
        ("DELETE FROM customer_activity WHERE customer_id = (SELECT min(customer_id) FROM customer_activity)", " rows were made, "),
    ],
)  # fmt: skip
def test_an_aggregate_that_is_not_made_of_all_files_fails(
    plan: Plan, loaded: str, fault: str, told: str
) -> None:
    ((rows,),) = query(loaded, "SELECT count(*) FROM customer_activity")
    passed = run(plan, loaded)[MADE]
    assert passed.passed
    assert passed.metadata["rows_in_table"].value == rows > 0
    execute(loaded, fault)
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {MADE}
    assert told in (evaluations[MADE].description or "")
    assert "materialize the asset `customer_activity` again" in text(evaluations[MADE])


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("ALTER TABLE orders DROP COLUMN coupon", ["table orders has no column 'coupon'"]),
        (
            "ALTER TABLE customers DROP COLUMN name; ALTER TABLE customer_activity ALTER events TYPE text",
            ["table customers has no column 'name'", "table customer_activity: column 'events' is text"],
        ),
    ],
)
def test_every_table_that_does_not_fit_is_told(plan: Plan, loaded: str, fault: str, told: list[str]) -> None:
    execute(loaded, fault)
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {"tables_fit"}
    evaluation = evaluations["tables_fit"]
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    for one in told:
        assert one in (evaluation.description or "")
        assert f"- {one}" in text(evaluation)


OTHER = """
INSERT INTO migration.loaded_file (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped,
                                   quarantined, rows, seconds, run_id)
VALUES ('older', 'e', 'f', '1', 'm', 1, 1, 1, '{}', 0, '{"public.orders": 1, "customers": 0, "s.customers": 1}', 1, 'r')
"""

OTHER_AGGREGATE = """
INSERT INTO migration.aggregate (profile, table_name, profile_version, sql_md5, files, groups, rows, new, changed,
                                 unchanged, deleted, parts, retries, seconds, run_id)
VALUES ('older', 'customer_activity', '1', 'm', 1, 1, 1, 1, 0, 0, 0, 1, 0, 1, 'r')
"""


@pytest.mark.parametrize(
    ("receipt", "table"), [(OTHER, "public.orders"), (OTHER_AGGREGATE, "customer_activity")]
)
def test_rows_of_another_profile_in_a_table_warn(plan: Plan, loaded: str, receipt: str, table: str) -> None:
    execute(loaded, receipt)
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {"tables_fit"}
    evaluation = evaluations["tables_fit"]
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert evaluation.description == f"the profile older has loaded rows into {table}, too"


def test_rows_that_replaced_others_fail_their_table_alone(plan: Plan, loaded: str) -> None:
    execute(loaded, "DELETE FROM orders WHERE order_id = (SELECT min(order_id) FROM orders)")
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {"no_key_collisions_orders"}
    evaluation = evaluations["no_key_collisions_orders"]
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert evaluation.metadata["rows_replaced"].value == 1
    assert "migration.collision" in text(evaluation)


def test_collisions_within_a_batch_fail(plan: Plan, loaded: str) -> None:
    execute(loaded, "UPDATE migration.loaded_file SET collisions = '{\"orders\": 2}' WHERE items > 0")
    evaluations = run(plan, loaded)
    assert failed(evaluations) == {"no_key_collisions_orders"}
    assert evaluations["no_key_collisions_orders"].metadata["collisions_within_batches"].value == 6


def test_a_table_with_a_version_only_tells_the_number(
    plan: Plan, loaded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {
        row_class: replace(table, version="placed_at") if table.name == "orders" else table
        for row_class, table in shop.tables.items()
    }
    monkeypatch.setattr(type(shop), "tables", tables)
    execute(
        loaded,
        "DELETE FROM orders; UPDATE migration.loaded_file SET collisions = '{\"orders\": 1}' WHERE items > 0",
    )
    evaluations = run(plan, loaded)
    assert failed(evaluations) == set()
    replaced = evaluations["no_key_collisions_orders"].metadata["rows_replaced"].value
    assert isinstance(replaced, int)
    assert replaced > 0


def test_many_files_are_listed_in_part_and_counted_in_full(shop_database_url: str, tmp_path: Path) -> None:
    export = write_sample(tmp_path, items=50, files=25, seed=1)
    plan = make_plan(shop, "shop", [read_export(str(export), Storage())])
    told = text(run(plan, shop_database_url)["all_files_loaded"])
    assert sum(planned.partition in told for planned in plan.files) == 20
    assert "… and 5 more" in told


def test_a_database_without_the_bookkeeping_says_what_to_do(plan: Plan, database_url: str) -> None:
    with pytest.raises(Exception, match="SQLSTATE 42P01"):
        run(plan, database_url)
