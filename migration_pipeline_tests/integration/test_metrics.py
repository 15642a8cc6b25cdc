"""The numbers of the metrics as PostgreSQL sums them up, and sources that are slow, gone or full of surprises."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest

from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, PlannedExport, PlannedFile, make_plan
from migration_pipeline.operations import metrics
from migration_pipeline.operations.backfills import Backfill
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.metrics import (
    OTHER_REASONS,
    REASONS,
    MigrationCollector,
    MigrationsCollector,
    Server,
)
from migration_pipeline.operations.running import Follow, RunningFile, _RunLog
from migration_pipeline.operations.runs import LogLine, Run
from migration_pipeline.profiles.shop import shop
from migration_pipeline.sources.export import Window, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.receipts import QuarantineReason, quarantined_by_reason, read_totals
from migration_pipeline_tests.conftest import execute

DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"


@pytest.fixture(scope="module")
def plan(shop_export: Path) -> Plan:
    return make_plan(shop, "shop", [read_export(str(shop_export), Storage())])


def receipt(
    url: str, plan: Plan, number: int, *, loaded: int, skipped: dict[str, int], quarantined: int, items: int
) -> None:
    """Write the receipt of a file, with numbers of the test's own."""
    planned = plan.files[number]
    execute(
        url,
        f"""
        INSERT INTO migration.loaded_file
               (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined,
                rows, retries, seconds, run_id, loaded_at)
        VALUES ('shop', '{planned.export_id}', '{planned.file.name}', '1', '{planned.file.md5}', 1000, {items}, {loaded},
                '{json.dumps(skipped)}', '{{"EVENT#*": 2}}', {quarantined}, '{{"customers": {loaded}}}', 3, 2.5, 'a-run',
                to_timestamp({1000 + number}.25))
        """,
    )


def samples(collector: MigrationCollector | MigrationsCollector) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(value for name, value in sample.labels.items() if name != "profile")): sample.value
        for metric in collector.collect()
        for sample in metric.samples
    }


@contextmanager
def listening() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_totals_are_the_sums_of_the_receipts_of_the_plan(shop_database_url: str, plan: Plan) -> None:
    receipt(shop_database_url, plan, 0, loaded=5, skipped={"a": 3, "b": 1}, quarantined=1, items=10)
    receipt(shop_database_url, plan, 1, loaded=7, skipped={"b": 9}, quarantined=0, items=16)
    execute(  # of another profile, and of an export that is not planned
        shop_database_url,
        f"""
        INSERT INTO migration.loaded_file
               (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped, quarantined, rows,
                seconds, run_id)
        SELECT profile, export_id, 'f', '1', 'x', 1, 1, 1, '{{"c": 5}}', 0, '{{"other": 1}}', 1, 'r'
          FROM (VALUES ('shop', 'old'), ('other', '1')) t(profile, export_id);
        INSERT INTO migration.quarantine (profile, export_id, file, line, raw, table_name, reason, profile_version, run_id)
        SELECT profile, '{plan.exports[0].id}', 'f', line, 'x', 'orders', reason, '1', 'r'
          FROM (VALUES ('shop', 1, 'bad'), ('shop', 2, 'bad'), ('shop', 3, 'worse'), ('other', 4, 'bad')) t(profile, line, reason)
        """,
    )
    exports = [export.id for export in plan.exports]
    totals = read_totals(shop_database_url, "shop", exports, 5)
    assert (totals.files, totals.items, totals.loaded, totals.skipped, totals.quarantined) == (
        2,
        26,
        12,
        13,
        1,
    )
    assert totals.skipped_by_reason == {"b": 10, "a": 3}
    assert list(totals.skipped_by_reason) == ["b", "a"]
    assert totals.rows == {"customers": 12}
    assert (totals.retries, totals.bytes, totals.seconds, totals.unrouted) == (6, 2000, 5.0, 4)
    assert totals.last_loaded_at == 1001.25
    assert all(file.conserved for file in totals.by_file.values())
    assert totals.in_quarantine == 3
    assert {key: file.md5 for key, file in totals.by_file.items()} == {
        (p.export_id, p.file.name): p.file.md5 for p in plan.files[:2]
    }
    assert totals.aggregates == {}
    assert quarantined_by_reason(shop_database_url, "shop", exports) == [
        QuarantineReason("orders", "", "bad", 2, 1, "f:1"), QuarantineReason("orders", "", "worse", 1, 1, "f:3")
    ]  # fmt: skip
    receipt(shop_database_url, plan, 2, loaded=1, skipped={}, quarantined=0, items=2)
    assert (
        sum(not f.conserved for f in read_totals(shop_database_url, "shop", exports, 5).by_file.values()) == 1
    )


def test_without_receipts_the_sums_are_zero(shop_database_url: str) -> None:
    totals = read_totals(shop_database_url, "shop", ["x"], 5)
    assert (totals.files, totals.items, totals.skipped, totals.last_loaded_at) == (0, 0, 0, 0)


def test_the_documented_privileges_are_enough(
    postgres: EmbeddedPostgres, shop_database_url: str, plan: Plan
) -> None:
    (sentence,) = re.findall(r"needs only `SELECT` (on [^.]*\.[^.]*\.[^.]*\.[^.]*)", DOCUMENT.read_text())
    granted = re.findall(r"`([\w.]+)`", sentence)
    assert granted == ["migration.loaded_file", "migration.quarantine", "migration.aggregate"]
    execute(
        shop_database_url,
        f"CREATE ROLE watcher LOGIN; GRANT USAGE ON SCHEMA migration TO watcher; GRANT SELECT ON {', '.join(granted)} TO watcher",
    )
    try:
        url = shop_database_url.replace("postgres@", "watcher@")
        assert read_totals(url, "shop", ["x"], 5, aggregates=True).files == 0
        with pytest.raises(DatabaseError, match="42501"):
            execute_as_reader(url)
    finally:
        execute(shop_database_url, "DROP OWNED BY watcher; DROP ROLE watcher")


def execute_as_reader(url: str) -> None:
    from migration_pipeline.targets.receipts import count_rows

    count_rows(url, next(iter(shop.tables.values())))


def test_many_reasons_share_a_label(shop_database_url: str, plan: Plan) -> None:
    reasons = {f"reason {n}": n + 1 for n in range(REASONS + 20)}
    total = sum(reasons.values())
    receipt(shop_database_url, plan, 0, loaded=0, skipped=reasons, quarantined=0, items=total)
    collector = MigrationCollector(plan, shop, DagsterClient("http://127.0.0.1:1"), shop_database_url)
    counts = {
        key[1]: value for key, value in samples(collector).items() if key[0] == "migration_skipped_items"
    }
    assert len(counts) == REASONS + 1
    assert sum(counts.values()) == total
    assert counts[OTHER_REASONS] == sum(range(1, 21))


def test_sources_that_hang_cost_a_scrape_a_bounded_time_and_are_not_asked_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "SCRAPE_SECONDS", 0.1)
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    asked: list[str] = []

    class Counting(DagsterClient):
        def query(self, text: str, **variables: Any) -> dict[str, Any]:
            asked.append(text)
            return super().query(text, **variables)

    with listening() as address:
        collector = MigrationCollector(
            plan, shop, Counting(f"http://{address}", 3.0), f"postgresql://x@{address}/x?connect_timeout=3"
        )
        for scrape in range(1, 5):
            found = samples(collector)
            assert found["migration_up", "dagster"] == found["migration_up", "database"] == 0
            assert found["migration_scrape_errors_total", "dagster"] == scrape
            assert found["migration_planned_items",] == plan.items
        assert not any(name.startswith(("migration_files", "migration_items")) for name, *_ in found)
        time.sleep(4)  # the first question has timed out; had there been more, they would be asked now
        assert len(asked) == 1


def test_a_fault_that_nobody_thought_of_is_no_crash(
    plan: Plan, shop_database_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FRESH_SECONDS", 0.0)
    instance = DagsterClient("http://127.0.0.1:1")
    monkeypatch.setattr(instance, "query", lambda *_, **__: {"runsOrError": "a secret"}["nothing"])
    execute(shop_database_url, "DROP TABLE migration.quarantine")
    collector = MigrationCollector(plan, shop, instance, shop_database_url)
    for _ in range(2):
        found = samples(collector)
        assert found["migration_up", "dagster"] == found["migration_up", "database"] == 0
    told = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[1].partition(":")[0] for line in told] == ["dagster", "database"], "told once"
    assert "KeyError" in told[0]
    assert "42P01" in told[1]


def test_each_number_is_served_under_its_name(
    plan: Plan, shop_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt(shop_database_url, plan, 0, loaded=5, skipped={"a": 3, "b": 1}, quarantined=1, items=10)
    now, states = time.time(), ["materialized", "materialized", "running", "missing"]
    file = RunningFile(
        planned=plan.files[2],
        run_id="r",
        started=now - 60,
        items=7,
        items_per_second=3.5,
        retries=2,
        heard=now - 30,
    )
    monkeypatch.setattr(Follow, "running", lambda _: [file])
    by_partition = dict(zip(plan.by_partition(), states, strict=True))
    monkeypatch.setattr(metrics, "read_states", lambda *_: by_partition)
    launched = [Backfill(id="b", status="REQUESTED"), Backfill(id="a", status="FAILED")]
    monkeypatch.setattr(metrics, "backfills", lambda *_: launched)
    found = samples(MigrationCollector(plan, shop, DagsterClient("http://127.0.0.1:1"), shop_database_url))
    passing = {
        name for name in found if "second" in name[0] and "receipt" not in name[0] and "load" not in name[0]
    }
    assert 60 <= found["migration_oldest_running_file_age_seconds",] < 90
    assert 30 <= found["migration_longest_silence_seconds",] < 60
    assert {name: value for name, value in found.items() if value and name not in passing} == {
        ("migration_up", "dagster"): 1, ("migration_up", "database"): 1,
        ("migration_info", "1", version("migration-pipeline")): 1,
        ("migration_planned_files",): 4, ("migration_planned_items",): 6_000, ("migration_planned_bytes",): plan.bytes,
        ("migration_files", "materialized"): 2, ("migration_files", "running"): 1, ("migration_files", "missing"): 1,
        ("migration_running_items",): 7, ("migration_running_retries",): 2,
        ("migration_newest_backfill", "REQUESTED"): 1, ("migration_active_backfills",): 1,
        ("migration_loaded_files",): 1,
        ("migration_items", "loaded"): 5, ("migration_items", "skipped"): 4, ("migration_items", "quarantined"): 1,
        ("migration_rows", "customers"): 5, ("migration_skipped_items", "a"): 3, ("migration_skipped_items", "b"): 1,
        ("migration_unrouted_items",): 2, ("migration_retries",): 3,
        ("migration_loaded_bytes",): 1_000, ("migration_load_seconds",): 2.5,
        ("migration_unconserved_files",): 1,  # the manifest has another number of items
        ("migration_newest_receipt_timestamp_seconds",): 1000.25,
        ("migration_unproven_files",): 1,
    }  # fmt: skip
    assert found["migration_running_items_per_second",] == 3.5
    assert found["migration_rows", "landing.shop_events"] == found["migration_files", "failed"] == 0


def test_the_lag_is_that_of_the_last_window_with_all_before_it(plan: Plan, shop_database_url: str) -> None:
    base = plan.exports[0]
    begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
    windows = [
        PlannedExport(f"w{n}", "s3://b", base.table_arn, "", "", Window(begin + timedelta(hours=n), begin + timedelta(hours=n + 1), "NEW_IMAGE"))
        for n in range(2)
    ]  # fmt: skip
    files = tuple(PlannedFile(each.id, each.id, plan.files[0].file) for each in windows)
    followed = msgspec.structs.replace(plan, exports=(base, *windows), files=(*plan.files, *files))

    def lag(of: Plan) -> float | None:
        collector = MigrationCollector(of, shop, DagsterClient("http://127.0.0.1:1"), shop_database_url)
        return samples(collector).get(("migration_window_lag_seconds",))

    for number in range(len(plan.files)):
        assert lag(followed) is None
        receipt(shop_database_url, followed, number, loaded=1, skipped={}, quarantined=0, items=1)
    assert lag(plan) is None
    now = time.time()
    assert lag(followed) == pytest.approx(now - begin_of(base), abs=30)
    receipt(shop_database_url, followed, len(plan.files) + 1, loaded=1, skipped={}, quarantined=0, items=1)
    assert lag(followed) == pytest.approx(now - begin_of(base), abs=30)
    receipt(shop_database_url, followed, len(plan.files), loaded=1, skipped={}, quarantined=0, items=1)
    assert lag(followed) == pytest.approx(now - (begin + timedelta(hours=2)).timestamp(), abs=30)


def begin_of(base: PlannedExport) -> float:
    return datetime.fromisoformat(base.export_time.replace("Z", "+00:00")).timestamp()


def test_profiles_share_a_name_once(plan: Plan, shop_database_url: str) -> None:
    one = MigrationCollector(plan, shop, DagsterClient("http://127.0.0.1:1"), shop_database_url)
    both = MigrationsCollector([one, one])
    for _ in range(2):
        names = [metric.name for metric in both.collect()]
        assert len(names) == len(set(names))
        (up,) = (metric for metric in both.collect() if metric.name == "migration_up")
        assert len(up.samples) == 4


def test_a_port_that_is_taken_is_told(plan: Plan) -> None:
    with listening() as address, pytest.raises(MigrationError, match=r"cannot serve metrics at .*--port"):
        Server([(plan, shop)], "http://127.0.0.1:1", "postgresql://", "127.0.0.1", int(address.split(":")[1]))


def test_each_retry_of_a_load_is_an_event_that_counts(plan: Plan) -> None:
    planned = plan.files[0]
    config = {"ops": {"shop_load": {"config": {"retry_seconds": 1.5}}}}
    database = Database(url="postgresql://x@127.0.0.1:1/x")
    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize(
            migration_assets(plan, shop), resources={"database": database}, run_config=config,
            partition_key=planned.partition, instance=instance, raise_on_error=False,
        )  # fmt: skip
        events = instance.all_logs(result.run_id)
    assert not result.success
    warnings = [event.user_message for event in events if event.level == logging.WARNING]
    observed = [
        event.dagster_event.asset_observation_data.asset_observation
        for event in events
        if event.dagster_event and event.dagster_event.event_type_value == "ASSET_OBSERVATION"
    ]
    assert len(warnings) > 1
    assert [each.description for each in observed] == warnings
    run = Run(id="a-run", status="STARTED", partitions=(planned.partition,), started=1.0)
    log = _RunLog(run, [planned])
    for number, each in enumerate(observed, 1):
        metadata = {label: value.value for label, value in each.metadata.items()}
        log._take(LogLine(float(number), "DEBUG", "", "ObservationEvent", metadata))
        assert log.current.retries == number
