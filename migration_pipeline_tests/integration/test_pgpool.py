"""Behind pgpool-II, which may send reads to a replica that lags: all is read of the primary, or nothing is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.verification import dry_run, verify
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, LandedFile
from migration_pipeline.targets.connection import READ_ELSEWHERE, DatabaseError
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.health import read_health
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_quarantine import load_shop
from migration_pipeline_tests.operating import eventually
from migration_pipeline_tests.oracle import actual, expected
from migration_pipeline_tests.servers import balanced

shop = load_profile("shop")
names = count(1)


@pytest.fixture
def direct(primary: EmbeddedPostgres, replica: EmbeddedPostgres) -> Iterator[str]:
    """A database with the shop's tables on the primary. The replica has it, and learns nothing more of it."""
    name = f"shop_{next(names)}"
    execute(primary.url, f"CREATE DATABASE {name}")
    url = primary.url.replace("/postgres?", f"/{name}?")
    execute(url, ddl(shop.all_tables))
    ((written,),) = query(primary.url, "SELECT pg_current_wal_flush_lsn()")
    eventually(
        lambda: query(replica.url, f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == [(True,)],
        "the replica has the tables",
    )
    execute(replica.url, "SELECT pg_wal_replay_pause()")
    yield url
    execute(replica.url, "SELECT pg_wal_replay_resume()")


@pytest.fixture
def plan(shop_export: Path) -> Plan:
    return make_plan(shop, "shop", [read_export(str(shop_export), Storage())])


def aggregate(url: str, plan: Plan) -> int:
    files = [LandedFile(each.export_id, each.file.name, each.file.md5) for each in plan.files]
    return AggregateRun(url, shop.aggregates[0], files, AggregateIdentity("shop", "1", "run")).run().rows


def test_a_whole_migration_reads_nothing_of_a_replica(
    primary: EmbeddedPostgres, replica: EmbeddedPostgres, direct: str, plan: Plan, shop_export: Path
) -> None:
    export = read_export(str(shop_export), Storage())
    rows, _ = expected(Path(export.uri))
    with balanced(primary, replica) as pool:
        url = pool.replace("/postgres?", f"{urlsplit(direct).path}?")
        with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
            cursor.execute("SELECT current_setting('transaction_read_only')")
            assert cursor.fetchone() == ("on",), "reads of others do go to the replica"
        dry_run(plan, shop, url, plan.files)
        load_shop(url, export)
        # A rerun mends what somebody has changed; the replica does not know of it, nor of anything that was loaded.
        execute(direct, "UPDATE orders SET status = 'lost'; DELETE FROM customers")
        load_shop(url, export)
        with closing(psycopg2.connect(direct)) as connection:
            assert actual(connection) == rows
        assert aggregate(url, plan) > 100
        finish(url, shop, drop_landing=False)
        execute(direct, "DELETE FROM customers WHERE customer_id = (SELECT min(customer_id) FROM customers)")
        compared = verify(plan, shop, url, "run", extra=True)
        assert {name: compared.faults(name) for name in compared.names if compared.faults(name)} == {
            "customers": 1
        }


@pytest.mark.parametrize("setting", ["off", "dml_adaptive"])
def test_where_reads_of_a_transaction_may_go_to_a_replica_nothing_is_done(
    primary: EmbeddedPostgres,
    replica: EmbeddedPostgres,
    direct: str,
    plan: Plan,
    shop_export: Path,
    setting: str,
) -> None:
    """A rerun took rows for untouched that somebody had changed, and a verification counted those of the replica."""
    export = read_export(str(shop_export), Storage())
    with balanced(primary, replica, f"disable_load_balance_on_write = '{setting}'") as pool:
        url = pool.replace("/postgres?", f"{urlsplit(direct).path}?")
        for work in (
            lambda: load_shop(url, export),
            lambda: aggregate(url, plan),
            lambda: finish(url, shop, drop_landing=False),
            lambda: verify(plan, shop, url, "run"),
            lambda: dry_run(plan, shop, url, plan.files),
            lambda: read_health(url),
        ):
            with pytest.raises(DatabaseError) as caught:
                work()
            assert READ_ELSEWHERE in str(caught.value)
    assert query(direct, "SELECT count(*) FROM orders") == [(0,)]


def refusal(url: str, export: Export) -> str:
    """Load the shop; gives what is told if it cannot be."""
    try:
        load_shop(url, export)
    except DatabaseError as error:
        return str(error)
    return ""


def test_what_is_read_of_a_replica_by_chance_proves_nothing(
    primary: EmbeddedPostgres, replica: EmbeddedPostgres, direct: str, shop_export: Path
) -> None:
    """Where each statement may go to another server, a connection that is begun on the writer says nothing of its next statement."""
    export = read_export(str(shop_export), Storage())
    rows, _ = expected(Path(export.uri))
    load_shop(direct, export)
    execute(replica.url, "SELECT pg_wal_replay_resume()")
    ((written,),) = query(primary.url, "SELECT pg_current_wal_flush_lsn()")
    eventually(
        lambda: query(replica.url, f"SELECT pg_last_wal_replay_lsn() >= '{written}'") == [(True,)],
        "the replica has the rows",
    )
    execute(replica.url, "SELECT pg_wal_replay_pause()")
    settings = [
        "statement_level_load_balance = on",
        "disable_load_balance_on_write = 'off'",
        "backend_weight0 = 9",
    ]
    refused = loaded = 0
    with balanced(primary, replica, *settings) as pool:
        url = pool.replace("/postgres?", f"{urlsplit(direct).path}?")
        while not (refused and loaded > 3) and refused + loaded < 100:
            execute(direct, "UPDATE orders SET status = 'lost'; DELETE FROM customers")
            if told := refusal(url, export):
                assert told == READ_ELSEWHERE
                refused += 1
            else:
                with closing(psycopg2.connect(direct)) as connection:
                    assert actual(connection) == rows
                loaded += 1
    assert refused
    assert loaded
