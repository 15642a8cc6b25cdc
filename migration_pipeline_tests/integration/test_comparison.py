"""Verification finds what was planted, and nothing else; a dry run tells what a load does, and touches nothing."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg2
import pytest
from click.testing import CliRunner

from migration_pipeline import Item, Profile, Row, prefix
from migration_pipeline.cli import main
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.defs.verify_job import verify_check, verify_job
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.migration.verification import Compared, dry_run, verify
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.settings import plans_dir
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets import sql
from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, LandedFile
from migration_pipeline.targets.comparison import Difference
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.receipts import read_differences, read_verifications
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_quarantine import load_lines, load_shop
from migration_pipeline_tests.oracle import checksum

shop = load_profile("shop")
TABLES = ("customers", "orders", "order_lines")


@pytest.fixture
def plan(shop_export: Path) -> Plan:
    return make_plan(shop, "shop", [read_export(str(shop_export), Storage())])


@pytest.fixture
def loaded(shop_database_url: str, shop_export: Path) -> str:
    load_shop(shop_database_url, read_export(str(shop_export), Storage()))
    make_activity(shop_database_url, make_plan(shop, "shop", [read_export(str(shop_export), Storage())]))
    return shop_database_url


def found(compared: Compared) -> dict[str, dict[Difference, int]]:
    """Differences by table, without those of no rows."""
    totals = {name: compared.table(name).found for name in TABLES}
    return {name: dict(+each) for name, each in totals.items() if +each}


# -- verify -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("batch_items", [7, 10_000])
def test_after_a_load_every_row_is_the_same(loaded: str, plan: Plan, extra: bool, batch_items: int) -> None:
    compared = verify(plan, shop, loaded, "run", extra=extra, settings=LoadSettings(batch_items=batch_items))
    for name in TABLES:
        total = compared.table(name)
        ((rows,),) = query(loaded, f"SELECT count(*) FROM {name}")
        assert total.compared == total.same == rows > 100
    assert (found(compared), compared.unaccounted) == ({}, 0)
    kept = {each.table_name: each for each in read_verifications(loaded, "shop")}
    assert set(kept) == {*TABLES, "landing.shop_events", "customer_activity"}
    ((events,),) = query(loaded, "SELECT count(*) FROM landing.shop_events")
    assert kept["landing.shop_events"].same == events > 100
    assert all((each.same, each.run_id) == (each.compared, "run") for each in kept.values())


@pytest.mark.parametrize("extra", [False, True])
def test_what_is_planted_is_found_and_nothing_else(loaded: str, plan: Plan, extra: bool) -> None:
    (key,) = query(loaded, "SELECT order_id FROM orders ORDER BY md5(order_id) LIMIT 1")[0]
    ((order_id, line_no),) = query(loaded, "SELECT order_id, line_no FROM order_lines ORDER BY 1, 2 LIMIT 1")
    ((customer,),) = query(loaded, "SELECT customer_id FROM customers ORDER BY md5(customer_id) LIMIT 1")
    execute(loaded, f"UPDATE orders SET total = total + 0.01 WHERE order_id = '{key}'")  # a changed value
    execute(loaded, f"DELETE FROM customers WHERE customer_id = '{customer}'")  # a deleted row
    execute(  # an added row
        loaded,
        "INSERT INTO order_lines SELECT 'added', 1, sku, title, quantity, unit_price, gift, weight_kg "
        "FROM order_lines LIMIT 1",
    )
    execute(  # a swapped column
        loaded,
        f"UPDATE order_lines SET sku = title, title = sku WHERE (order_id, line_no) = ('{order_id}', {line_no})",
    )
    compared = verify(plan, shop, loaded, "run", extra=extra)
    assert found(compared) == {
        "customers": {Difference("missing"): 1},
        "orders": {Difference("different", ("total",)): 1},
        "order_lines": {Difference("different", ("sku", "title")): 1, Difference("extra"): 1},
    }
    examples = {
        (table, kind, tuple(columns), json.dumps(at, sort_keys=True))
        for table, kind, columns, at, _ in read_differences(loaded, "shop")
    }
    expected = {
        ("customers", "missing", (), json.dumps({"customer_id": customer})),
        ("orders", "different", ("total",), json.dumps({"order_id": key})),
        (
            "order_lines",
            "different",
            ("sku", "title"),
            json.dumps({"line_no": line_no, "order_id": order_id}),
        ),
    }
    if extra:
        expected.add(("order_lines", "extra", (), json.dumps({"line_no": 1, "order_id": "added"})))
    assert examples == expected
    load_shop(loaded, read_export(plan.exports[0].uri, Storage()))
    again = verify(plan, shop, loaded, "run", extra=extra)
    assert found(again) == {"order_lines": {Difference("extra"): 1}}, "a load mends all but rows of no item"


def test_what_is_planted_in_landed_rows_and_aggregates_is_found(loaded: str, plan: Plan) -> None:
    assert verified(plan, loaded) == {}
    ((customer,),) = query(loaded, "SELECT min(customer_id) FROM customer_activity")
    execute(loaded, f"UPDATE customer_activity SET events = events + 1 WHERE customer_id = '{customer}'")
    execute(
        loaded,
        "INSERT INTO customer_activity SELECT (jsonb_populate_record(a, jsonb_build_object('customer_id', 'added'))).* "
        "FROM customer_activity a LIMIT 1",
    )
    assert verified(plan, loaded) == {
        "customer_activity": {Difference("different", ("events",)): 1, Difference("extra"): 1}
    }
    execute(loaded, "DELETE FROM customer_activity WHERE customer_id = 'added'")
    make_activity(loaded, plan)
    assert verified(plan, loaded) == {}
    # One row of a slice changed, which the aggregate made of it then shows as well.
    execute(
        loaded,
        "UPDATE landing.shop_events SET customer_id = 'x' WHERE ctid = (SELECT min(ctid) FROM landing.shop_events) "
        "AND tableoid = (SELECT tableoid FROM landing.shop_events LIMIT 1)",
    )
    assert verified(plan, loaded)["landing.shop_events"] == {
        Difference("missing"): 1,
        Difference("extra"): 1,
    }


def make_activity(url: str, plan: Plan) -> None:
    (aggregate,) = shop.aggregates
    files = [LandedFile(p.export_id, p.file.name, p.file.md5) for p in plan.files]
    AggregateRun(url, aggregate, files, AggregateIdentity("shop", "1", "run")).run()


def verified(plan: Plan, url: str) -> dict[str, dict[Difference, int]]:
    compared = verify(plan, shop, url, "run")
    assert compared.notes == []
    totals = {name: compared.table(name).found for name in compared.names}
    return {name: dict(+each) for name, each in totals.items() if +each}


def test_landed_rows_that_finishing_dropped_are_not_compared(loaded: str, plan: Plan) -> None:
    finish(loaded, shop, drop_landing=True)
    compared = verify(plan, shop, loaded, "run")
    assert found(compared) == {}
    assert compared.table("landing.shop_events").compared == 0
    assert "customer_activity" not in compared.names
    assert compared.notes == ["customer_activity was not compared: what files had landed was dropped"]


def test_nothing_loaded_is_all_missing(shop_database_url: str, plan: Plan) -> None:
    compared = verify(plan, shop, shop_database_url, "run")
    assert {name: list(kinds) for name, kinds in found(compared).items()} == {
        name: [Difference("missing")] for name in TABLES
    }


def test_items_in_the_quarantine_are_accounted_for_and_others_are_not(
    shop_database_url: str, tmp_path: Path
) -> None:
    export = read_export(str(write_sample(tmp_path, items=3_000, files=3, seed=5, bad=40)), Storage())
    plan = make_plan(shop, "shop", [export])
    load_shop(shop_database_url, export)
    compared = verify(plan, shop, shop_database_url, "run", extra=True)
    assert (found(compared), compared.unaccounted) == ({}, 0)
    assert sum(file.report.quarantined for file in compared.files) == 40
    assert all(file.report.conserved for file in compared.files)
    execute(
        shop_database_url,
        "DELETE FROM migration.quarantine WHERE ctid IN (SELECT ctid FROM migration.quarantine ORDER BY line LIMIT 3)",
    )
    compared = verify(plan, shop, shop_database_url, "run")
    missing = sum(compared.faults(name) for name in TABLES)
    assert compared.unaccounted + missing == 3, "not to be had from the export, nor kept"


class Price(Item):
    PK: str
    version: int
    price: int


class Latest(Row, table="latest", key="sku", version="version"):
    sku: str
    version: int
    price: int


prices = Profile("prices")


@prices.route(PK=prefix("P#"))
def price(item: Price) -> Latest:
    return Latest(item.PK, item.version, item.price)


def line(sku: int, version: int, amount: int) -> bytes:
    item = {"PK": {"S": f"P#{sku}"}, "version": {"N": str(version)}, "price": {"N": str(amount)}}
    return json.dumps({"Item": item}).encode()


def test_a_row_of_a_greater_version_is_as_it_should_be(database_url: str, tmp_path: Path) -> None:
    execute(database_url, ddl(prices.tables.values()))
    lines = [line(n, 1, n) for n in range(10)] + [line(3, 2, 33)]
    load_lines(database_url, prices, lines)
    plan = plan_of_lines(prices, tmp_path, lines)
    compared = verify(plan, prices, database_url, "run", extra=True)
    total = compared.table("latest")
    assert (total.same, total.count("different"), total.count("extra")) == (10, 0, 0)
    execute(database_url, "UPDATE latest SET version = 9, price = 99 WHERE sku = 'P#5'")
    execute(database_url, "UPDATE latest SET version = 0 WHERE sku = 'P#6'")
    total = verify(plan, prices, database_url, "run").table("latest")
    assert dict(+total.found) == {
        Difference("newer", ("version", "price")): 1,
        Difference("different", ("version",)): 1,
    }


class Turned(Row, table="turned", key=("version", "price")):
    """Its key names the columns in another order than the table has them."""

    price: int
    version: int


def test_a_key_may_name_its_columns_in_any_order(database_url: str, tmp_path: Path) -> None:
    turned = Profile("turned")

    @turned.route(PK=prefix("P#"))
    def price(item: Price) -> Turned:
        return Turned(price=item.price, version=item.version)

    execute(database_url, ddl(turned.tables.values()))
    lines = [line(n, n, 100 + n) for n in range(10)]
    load_lines(database_url, turned, lines)
    execute(database_url, "INSERT INTO turned (price, version) VALUES (7, 107)")
    total = verify(plan_of_lines(turned, tmp_path, lines), turned, database_url, "run", extra=True).table(
        "turned"
    )
    assert (total.same, dict(+total.found)) == (10, {Difference("extra"): 1})
    assert [json.loads(key) for _, key in total.examples] == [{"price": 7, "version": 107}]


def plan_of_lines(profile: Profile, folder: Path, lines: list[bytes]) -> Plan:
    """A plan of one file with these lines."""
    export = write_sample(folder, items=100, files=1, seed=1)
    (data,) = (export / "data").glob("*.json.gz")
    content = gzip.compress(b"".join(each + b"\n" for each in lines))
    data.write_bytes(content)
    manifest = export / "manifest-files.json"
    entry = json.loads(manifest.read_text())
    entry |= {
        "itemCount": len(lines),
        "md5Checksum": base64.b64encode(hashlib.md5(content).digest()).decode(),
    }
    manifest.write_text(json.dumps(entry) + "\n")
    for path in export.glob("manifest-*.md5"):
        path.unlink()
    summary = export / "manifest-summary.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"itemCount": len(lines)}))
    return make_plan(profile, "x:prices", [read_export(str(export), Storage(), warn=lambda _: None)])


def test_the_server_itself_refuses_a_verification_that_writes(
    loaded: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sql, "COMPARE", "WITH gone AS (DELETE FROM orders RETURNING 1) " + sql.COMPARE.lstrip()
    )
    monkeypatch.setattr("migration_pipeline.targets.session.fault_of", lambda error, **_: None)
    with pytest.raises(DatabaseError, match="25006"):
        verify(plan, shop, loaded, "run")


# -- dry run ----------------------------------------------------------------------------------------


def dry(plan: Plan, url: str, **options: Any) -> Compared:
    return dry_run(plan, shop, url, plan.files, **options)


def state(url: str) -> list[Any]:
    """All that a load could change and a rollback takes back: rows with their places and transactions, and tables."""
    with closing(psycopg2.connect(url)) as connection:
        made: list[Any] = [checksum(connection)]
        cursor = connection.cursor()
        cursor.execute(
            "SELECT oid::regclass::text, pg_relation_filenode(oid) FROM pg_class "
            "WHERE relnamespace IN ('public'::regnamespace, 'migration'::regnamespace, 'landing'::regnamespace) ORDER BY 1"
        )
        made += cursor.fetchall()
        for name in (
            *TABLES,
            "migration.loaded_file",
            "migration.quarantine",
            "migration.collision",
            "numbers",
        ):
            cursor.execute(f"SELECT count(*), md5(string_agg(ctid::text || xmin, ',')) FROM {name}")
            made += cursor.fetchall()
        return made


def test_a_dry_run_tells_what_a_load_does_and_leaves_nothing(
    shop_database_url: str, plan: Plan, shop_export: Path
) -> None:
    url, export = shop_database_url, read_export(str(shop_export), Storage())
    execute(url, "CREATE SEQUENCE number_seq; CREATE TABLE numbers (n int)")
    execute(url, "ALTER TABLE orders ADD COLUMN n bigint NOT NULL DEFAULT nextval('number_seq')")
    before = state(url)
    compared = dry(plan, url)
    assert state(url) == before
    assert {name: list(kinds) for name, kinds in found(compared).items()} == {
        name: [Difference("missing")] for name in TABLES
    }
    reports = load_shop(url, export)
    for name in TABLES:
        assert compared.table(name).count("missing") == sum(report.rows.get(name, 0) for report in reports)
    assert [file.report.loaded for file in compared.files] == [report.loaded for report in reports]
    execute(url, "UPDATE customers SET name = 'changed' WHERE customer_id < '8'")
    ((changed,),) = query(url, "SELECT count(*) FROM customers WHERE name = 'changed'")
    execute(url, "DELETE FROM orders WHERE order_id < '8'")
    before = state(url)
    compared = dry(plan, url, settings=LoadSettings(batch_items=100))
    assert state(url) == before
    assert compared.table("customers").count("different") == changed > 10
    gone = compared.table("orders").count("missing")
    reports = load_shop(url, export)
    assert sum(report.changed for report in reports) == changed
    ((there,),) = query(url, "SELECT count(*) FROM orders")
    assert there == compared.table("orders").compared > gone > 10
    assert not found(dry(plan, url))


def test_a_verification_writes_no_wal_of_a_table(postgres: Any, loaded: str, plan: Plan) -> None:
    nodes = {
        f"{tablespace}/{database}/{node}"
        for tablespace, database, node in query(
            loaded,
            "SELECT 1663, (SELECT oid FROM pg_database WHERE datname = current_database()), "
            "pg_relation_filenode(oid) FROM pg_class WHERE relnamespace IN "
            "('public'::regnamespace, 'landing'::regnamespace) AND pg_relation_filenode(oid) IS NOT NULL",
        )
    }
    execute(loaded, "VACUUM (FREEZE, ANALYZE)")  # so that reading has nothing to tidy up
    execute(loaded, "SELECT pg_switch_wal()")
    ((begin,),) = query(loaded, "SELECT pg_current_wal_lsn()")
    verify(plan, shop, loaded, "run", extra=True)
    ((middle,),) = query(loaded, "SELECT pg_current_wal_insert_lsn()")
    execute(loaded, "UPDATE customers SET name = 'x'")
    execute(loaded, "SELECT pg_switch_wal()")
    ((end,),) = query(loaded, "SELECT pg_current_wal_lsn()")

    def touched(start: str, stop: str) -> set[str]:
        dump = postgres._binaries() / "pg_waldump"
        done = subprocess.run(
            [dump, "-p", postgres.data_dir / "pg_wal", "-s", start, "-e", stop],
            capture_output=True,
            text=True,
        )
        assert "rmgr" in done.stdout, done.stderr
        return {node for node in nodes if f"rel {node} " in done.stdout}

    assert not touched(begin, middle)
    assert touched(middle, end), "the test sees WAL of a table"


def test_a_dry_run_finds_the_items_that_a_load_would_quarantine(
    shop_database_url: str, tmp_path: Path
) -> None:
    export = read_export(str(write_sample(tmp_path, items=3_000, files=3, seed=5, bad=40)), Storage())
    plan = make_plan(shop, "shop", [export])
    execute(shop_database_url, "ALTER TABLE orders ADD CONSTRAINT few CHECK (right(order_id, 1) <> '7')")
    compared = dry(plan, shop_database_url, settings=LoadSettings(max_bad_share=1.0))
    assert query(shop_database_url, "SELECT count(*) FROM migration.quarantine") == [(0,)]
    reports = load_shop(shop_database_url, export, max_bad_share=1.0)
    assert [file.report.quarantined for file in compared.files] == [report.quarantined for report in reports]
    assert [file.report.quarantined_by_reason for file in compared.files] == [
        report.quarantined_by_reason for report in reports
    ]
    assert any("few" in reason for report in reports for reason in report.quarantined_by_reason)


def test_a_dry_run_of_a_wrong_profile_stops_as_a_load_does(shop_database_url: str, plan: Plan) -> None:
    execute(shop_database_url, "ALTER TABLE orders ADD CONSTRAINT never CHECK (false)")
    with pytest.raises(MigrationError, match=r"more than .* items are bad"):
        dry(plan, shop_database_url)


# -- Dagster and the command line -------------------------------------------------------------------


@pytest.fixture
def definitions(plan: Plan, shop_database_url: str) -> Iterator[tuple[Any, dg.DagsterInstance]]:
    check = verify_check(plan, shop)
    made = dg.Definitions(
        assets=migration_assets(plan, shop),
        asset_checks=[check],
        jobs=[verify_job(plan, check)],
        resources={"database": Database(url=shop_database_url)},
        executor=dg.in_process_executor,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield made, instance


def test_in_dagster_a_dry_run_materializes_nothing_and_the_check_tells(
    definitions: tuple[Any, dg.DagsterInstance], plan: Plan, shop_database_url: str
) -> None:
    made, instance = definitions
    file = max(plan.files, key=lambda planned: planned.file.items)
    assets = [asset for asset in made.assets if isinstance(asset, dg.AssetsDefinition)]
    resources = {"database": Database(url=shop_database_url)}
    done = dg.materialize(
        assets,
        partition_key=file.partition,
        resources=resources,
        instance=instance,
        run_config={"ops": {"shop_load": {"config": {"dry_run": True}}}},
    )
    assert done.success
    assert not done.get_asset_materialization_events()
    seen = {
        event.asset_observation_data.asset_observation.asset_key.path[-1]: event
        for event in done.get_asset_observation_events()
    }
    assert set(seen) == {*TABLES, "shop_events"}
    metadata: Any = seen["orders"].asset_observation_data.asset_observation.metadata
    assert metadata["rows_new"].value > 10
    assert metadata["rows_changed"].value == 0
    assert query(shop_database_url, "SELECT count(*) FROM orders") == [(0,)]

    job = made.resolve_job_def("shop_verify")
    (first,) = check_of(job, instance)
    assert not first.passed
    load_shop(shop_database_url, read_export(plan.exports[0].uri, Storage()))
    make_activity(shop_database_url, plan)
    (second,) = check_of(job, instance)
    assert second.passed, second.description
    assert second.metadata["rows_at_fault"].value == 0
    secret = query(shop_database_url, "SELECT order_id FROM orders LIMIT 1")[0][0]
    assert secret not in str(first.metadata)


def check_of(job: Any, instance: dg.DagsterInstance) -> list[Any]:
    done = job.execute_in_process(instance=instance)
    assert done.success
    return list(done.get_asset_check_evaluations())


def test_on_the_command_line(plan: Plan, shop_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", shop_database_url)
    write_plan(plan, plans_dir())

    def command(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, arguments)
        return done.exit_code, done.output

    status, output = command("backfill", "shop", "--dry-run")
    assert status == 0, output
    assert "6,000 items" in output
    assert "nothing was written" in output
    status, output = command("verify", "shop")
    assert status == 1
    assert "rows differ from the export; see some of their keys with --keys" in output
    load_shop(shop_database_url, read_export(plan.exports[0].uri, Storage()))
    make_activity(shop_database_url, plan)
    status, output = command("verify", "shop", "--extra")
    assert status == 0, output
    assert "rows of the export are in the tables, and no others" in output
    ((key,),) = query(shop_database_url, "SELECT order_id FROM orders LIMIT 1")
    execute(shop_database_url, f"DELETE FROM orders WHERE order_id = '{key}'")
    assert key not in command("verify", "shop")[1]
    assert key in command("verify", "shop", "--keys")[1]
    monkeypatch.setenv("MIGRATION_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    status, output = command("verify", "shop")
    assert status == 1
    assert "error: no database" in output
