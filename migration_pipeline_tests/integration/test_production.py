"""dagster.production.yaml as it is shipped: a backfill on PostgreSQL storage, with its limits, and its logs in S3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_pipeline.defs.metadata import FILE_TAG, PLAN_TAG, PROFILE_TAG
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.doctor.dagster import dagster
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import Bucket, Operation, eventually, operation

TOP = Path(__file__).parents[2]
TABLES = ("customers", "orders", "order_lines", "shop_events")
LOGS = "a-bucket-for-logs"

OTHER_PROFILE = """
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("other")

class Session(Item):
    PK: str

class Visit(Row, table="visits", key="session_id"):
    session_id: str

@profile.route(PK=prefix("SESSION#"))
def visit(item: Session) -> Visit:
    return Visit(item.PK)

profile.ignore(PK=prefix("CUSTOMER#"), because="not asked for")
profile.ignore(PK=prefix("ORDER#"), because="not asked for")
"""


@pytest.fixture(scope="module")
def databases(postgres: EmbeddedPostgres) -> tuple[str, str]:
    """Dagster's own database, and the migration's target."""
    for name in ("dagster_storage", "production_target"):
        execute(postgres.url, f"CREATE DATABASE {name}")
    dagster, target = (
        postgres.url.replace("/postgres?", f"/{name}?") for name in ("dagster_storage", "production_target")
    )
    return dagster, target


@pytest.fixture(scope="module")
def started(
    databases: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Operation, Bucket]]:
    home = tmp_path_factory.mktemp("production")
    (home / "other.py").write_text(OTHER_PROFILE)
    (home / "dagster home").mkdir()
    shutil.copy(TOP / "dagster.production.yaml", home / "dagster home" / "dagster.yaml")
    with operation(
        home,
        "production-exports",
        DAGSTER_HOME=str(home / "dagster home"),
        DAGSTER_PG_URL=databases[0].replace("postgresql:", "postgresql+psycopg2:"),
        DAGSTER_LOGS_BUCKET=LOGS,
        MIGRATION_PLANS="s3://production-exports/our plans/",
        MIGRATION_DATABASE_URL=databases[1],
    ) as made:
        yield made


@pytest.fixture(scope="module")
def plans(started: tuple[Operation, Bucket], tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Plan]:
    operator, bucket = started
    location = bucket.upload(write_sample(tmp_path_factory.mktemp("export"), items=2_000, files=5, seed=9))
    return operator.plan("shop", location, "shop"), operator.plan("other:profile", location, "other")


def running(operator: Operation, profile: str) -> list[str]:
    """Give the runs of a profile that have a place."""
    return [
        run["id"]
        for run in operator.runs()
        if run["tags"].get(PROFILE_TAG) == profile and run["status"] in ("STARTING", "STARTED")
    ]


def test_a_backfill_keeps_to_its_limit_and_leaves_room_for_another_profile(
    started: tuple[Operation, Bucket], plans: tuple[Plan, Plan], databases: tuple[str, str]
) -> None:
    operator, bucket = started
    shop, other = plans
    logs = Bucket(LOGS, bucket.client)
    operator.hold("customers")
    full = [planned.partition for planned in shop.files if planned.file.items]
    backfill = operator.launch(shop, tables=TABLES, partitions=full)
    eventually(lambda: len(operator.runs(backfill)) == len(full) == 4, "all runs are queued")
    eventually(lambda: len(running(operator, "shop")) == 2, "two files are loading")

    # Two of four wait, though there is a third place: another profile gets it.
    passing = operator.launch(other, tables=("visits",), partitions=[p.partition for p in other.files])
    eventually(lambda: operator.backfill_status(passing) == "COMPLETED_SUCCESS", "the other is done")
    assert len(running(operator, "shop")) == 2
    assert [run["status"] for run in operator.runs(backfill)].count("QUEUED") == 2
    assert {run["tags"][FILE_TAG] for run in operator.runs(backfill)} == set(full)
    operator.release()
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_SUCCESS", "the files are loaded")

    # Each run has read the plan in S3, and says which it was; that one is kept.
    assert {run["tags"][PLAN_TAG] for run in operator.runs(backfill)} == {shop.digest}
    assert bucket.get(f"our plans/history/{shop.digest}/shop.json") == shop.content
    assert not (operator.home / "plans").exists()

    # Dagster's history is in PostgreSQL, and what the run workers wrote in S3.
    ((runs,),) = query(databases[0], "SELECT count(*) FROM runs WHERE status = 'SUCCESS'")
    assert runs == len(full) + len(other.files)
    loaded = [run["id"] for run in operator.runs(backfill)]
    eventually(
        lambda: all(any(run in key for key in logs.keys("migration-pipeline/")) for run in loaded),
        "logs are there",
    )
    one = next(key for key in logs.keys("migration-pipeline/") if loaded[0] in key and key.endswith(".err"))
    assert b"items/s" in logs.get(one)
    state = (operator.home / "dagster home").rglob("*")
    assert not [path for path in state if path.suffix == ".db"], "nothing is left in SQLite"


def test_doctor_tells_that_dagsters_database_is_in_another_time_zone(
    started: tuple[Operation, Bucket],
    plans: tuple[Plan, Plan],
    databases: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    operator, _ = started
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", operator.url)

    def warned() -> bool:
        return any(found.topic == "storage" for found in dagster([]))

    _, other = plans
    for zone, off in (("UTC", False), ("Asia/Kolkata", True), ("America/New_York", True)):
        execute(databases[0], "UPDATE runs SET create_timestamp = now() AT TIME ZONE 'UTC'")
        execute(databases[0], f"ALTER DATABASE dagster_storage SET timezone = '{zone}'")
        made = operator.launch(other, tables=("visits",), partitions=[other.files[0].partition])
        eventually(lambda made=made: operator.runs(made), f"a run is made in {zone}")  # type: ignore[misc]
        assert warned() is off, zone
