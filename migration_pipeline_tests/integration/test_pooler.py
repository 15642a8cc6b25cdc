"""Behind PgBouncer, and on a server with other settings than ours: right, and nothing stays behind for others."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from migration_pipeline import Item, Profile, Row
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.migration.verification import dry_run, verify
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, LandedFile
from migration_pipeline.targets.connection import SETTINGS, DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.session import Session
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import line_of
from migration_pipeline_tests.integration.test_quarantine import load_lines, load_shop
from migration_pipeline_tests.oracle import actual, expected
from migration_pipeline_tests.servers import pooled

shop = load_profile("shop")
names = itertools.count(1)


@pytest.fixture(scope="module", params=["transaction", "session"])
def pooler(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with pooled(postgres, tmp_path_factory.mktemp("pooler"), request.param, 2) as url:
        yield url


@pytest.fixture
def plan(shop_export: Path) -> Plan:
    return make_plan(shop, "shop", [read_export(str(shop_export), Storage())])


def database(postgres: EmbeddedPostgres, pooler: str) -> tuple[str, str]:
    """A new database with the shop's tables: its URL, and that through the pooler."""
    name = f"pooled_{next(names)}"
    execute(postgres.url, f"CREATE DATABASE {name}")
    direct = postgres.url.replace("/postgres?", f"/{name}?")
    execute(direct, ddl(shop.all_tables))
    return direct, pooler.replace("/postgres?", f"/{name}?")


def left_behind(direct: str, pooler: str) -> list[Any]:
    """What is not as a new session has it, of the pool's server connections; and what we made for a transaction."""
    found = []
    for _ in range(6):
        with closing(psycopg2.connect(pooler)) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT name, setting, reset_val FROM pg_settings WHERE setting IS DISTINCT FROM reset_val "
                "AND context IN ('user', 'superuser') AND name <> ALL (%s)",
                # What the client asked for itself, and what follows from it.
                (["application_name", "client_encoding", "transaction_isolation", "transaction_deferrable",
                  "transaction_read_only", "DateStyle", "TimeZone"],),
            )  # fmt: skip
            found += cursor.fetchall()
    found += query(
        direct, "SELECT relname FROM pg_class WHERE relname LIKE 'migration\\_%' AND relpersistence = 't'"
    )
    found += query(direct, "SELECT locktype, classid, objid FROM pg_locks WHERE locktype = 'advisory'")
    return found


def test_a_whole_migration_behind_a_pooler(
    postgres: EmbeddedPostgres, pooler: str, plan: Plan, shop_export: Path
) -> None:
    direct, url = database(postgres, pooler)
    export = read_export(str(shop_export), Storage())
    promised = dry_run(plan, shop, url, plan.files)
    assert query(direct, "SELECT count(*) FROM orders") == [(0,)]
    reports = load_shop(url, export, batch_items=300)
    assert [file.report.rows for file in promised.files] == [report.rows for report in reports]
    rows, _ = expected(Path(export.uri))
    for _ in range(2):
        with closing(psycopg2.connect(direct)) as connection:
            assert actual(connection) == rows
        reports = load_shop(url, export, batch_items=300)
        assert sum(report.changed for report in reports) == 0
    (aggregate,) = shop.aggregates
    files = [LandedFile(each.export_id, each.file.name, each.file.md5) for each in plan.files]
    made = AggregateRun(url, aggregate, files, AggregateIdentity("shop", "1", "run")).run()
    assert made.rows == made.groups > 100
    finish(url, shop, drop_landing=False)
    for extra in (False, True):
        compared = verify(plan, shop, url, "run", extra=extra)
        assert {name: compared.faults(name) for name in compared.names} == dict.fromkeys(compared.names, 0)
    assert left_behind(direct, url) == []


def test_bad_items_are_quarantined_and_replayed_behind_a_pooler(
    postgres: EmbeddedPostgres, pooler: str, plan: Plan, shop_export: Path
) -> None:
    direct, url = database(postgres, pooler)
    execute(direct, "ALTER TABLE orders ADD CONSTRAINT few CHECK (right(order_id, 1) <> '7')")
    reports = load_shop(url, read_export(str(shop_export), Storage()), max_bad_share=1.0)
    bad = sum(report.quarantined for report in reports)
    assert bad > 10
    execute(direct, "ALTER TABLE orders DROP CONSTRAINT few")
    assert replay_plan(plan, shop, url, "replay", lambda _: None).loaded == bad
    assert left_behind(direct, url) == []


class Thing(Item):
    id: str
    n: float


class Narrow(Row, table="narrow", key="id"):
    id: str
    n: float


class Wide(Row, table="wide", key="id"):
    id: str
    n: float


def narrow(item: Thing) -> Narrow:
    return Narrow(item.id, item.n)


def wide(item: Thing) -> Wide:
    return Wide(item.id, item.n)


def test_two_profiles_at_once_do_not_meet_in_the_pool(postgres: EmbeddedPostgres, pooler: str) -> None:
    """A staging table that outlasted its transaction would be another profile's, with other types."""
    direct, url = database(postgres, pooler)
    execute(
        direct,
        "CREATE TABLE narrow (id text PRIMARY KEY, n real); CREATE TABLE wide (id text PRIMARY KEY, n float8)",
    )
    profiles = Profile("narrow"), Profile("wide")
    profiles[0].route()(narrow)
    profiles[1].route()(wide)
    lines = [line_of({"id": {"S": f"{n}"}, "n": {"N": f"{n}.5"}}) for n in range(400)]
    errors: list[BaseException] = []

    def work(profile: Profile) -> None:
        try:
            for file in ("f", "g", "f"):
                load_lines(url, profile, lines, file, batch_items=20)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(profile,)) for profile in profiles * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for table in ("narrow", "wide"):
        assert query(direct, f"SELECT count(*), sum(n)::float8 FROM {table}") == [(400, 80_000.0)]
    assert left_behind(direct, url) == []


def test_a_lost_session_is_ended_by_its_own_mark(postgres: EmbeddedPostgres, pooler: str) -> None:
    """The process that had our transaction is the pooler's: another client may use it by now."""
    _, url = database(postgres, pooler)
    session = Session(url, DatabaseSettings(retry_seconds=20))
    session.open()
    pids: list[int] = []
    others: list[Any] = []

    def work(cursor: Any) -> None:
        cursor.execute("SELECT pg_backend_pid()")
        pids.append(cursor.fetchone()[0])
        if len(pids) == 1:
            session._hang_up()  # the network is gone; the pooler gives the process to somebody else, or ends it
            deadline = time.monotonic() + 10
            while not others and time.monotonic() < deadline:
                others.append(psycopg2.connect(url))
                others[-1].cursor().execute("SELECT 1")  # a transaction that goes on
            cursor.execute("SELECT 1")

    try:
        session.persistently(work)
        assert session.retries >= 1
    except DatabaseError:  # the pool was used up by the others
        pass
    finally:
        session.close()
    for other in others:
        with closing(other), other.cursor() as cursor:
            cursor.execute("SELECT 'alive'")
            assert cursor.fetchone() == ("alive",)


def test_to_cancel_ends_our_statement_and_no_other(postgres: EmbeddedPostgres, pooler: str) -> None:
    _, url = database(postgres, pooler)
    session = Session(url, DatabaseSettings())
    session.open()
    with closing(psycopg2.connect(url)) as other, other.cursor() as cursor:
        cursor.execute("SELECT 1")
        timer = threading.Timer(1.0, session.cancel)
        timer.start()
        began = time.monotonic()
        with pytest.raises(MigrationError, match="SQLSTATE 57014"):
            session.persistently(lambda cursor: cursor.execute("SELECT pg_sleep(30)"))
        assert time.monotonic() - began < 15
        timer.join()
        session.close(failed=True)
        cursor.execute("SELECT 'alive'")
        assert cursor.fetchone() == ("alive",)


HOSTILE = {
    "DateStyle": "'German, DMY'", "IntervalStyle": "iso_8601", "array_nulls": "off", "standard_conforming_strings": "off",
    "quote_all_identifiers": "on", "extra_float_digits": "-3", "TimeZone": "'Asia/Kolkata'", "bytea_output": "escape",
    "transform_null_equals": "on", "default_transaction_isolation": "serializable", "enable_nestloop": "off",
    "xmloption": "document", "row_security": "on", "synchronous_commit": "off", "enable_indexscan": "off",
}  # fmt: skip


class Odd(Row, table="odd", key="id"):
    id: str
    numbers: list[int | None]
    raw: bytes
    n: float


def odd(item: Thing) -> Odd:
    return Odd(item.id, [1, None], b"\\x\x00\xff'", item.n)


def test_what_the_server_is_set_to_decides_nothing(
    postgres: EmbeddedPostgres, shop_database_url: str, plan: Plan, shop_export: Path
) -> None:
    assert set(HOSTILE) - {"default_transaction_isolation", "synchronous_commit"} <= set(SETTINGS)
    name = shop_database_url.partition("?")[0].rpartition("/")[2]
    for setting, value in HOSTILE.items():
        execute(postgres.url, f"ALTER DATABASE {name} SET {setting} = {value}")
    export = read_export(str(shop_export), Storage())
    rows, _ = expected(Path(export.uri))
    load_shop(shop_database_url, export, batch_items=200)
    assert sum(report.changed for report in load_shop(shop_database_url, export)) == 0
    compared = verify(plan, shop, shop_database_url, "run", extra=True)
    assert all(not compared.faults(table) for table in ("customers", "orders", "order_lines"))
    profile = Profile("odd")
    profile.route()(odd)
    execute(shop_database_url, ddl(profile.all_tables))
    lines = [line_of({"id": {"S": "1"}, "n": {"N": "0.1234567890123456"}})]
    for _ in range(2):
        assert load_lines(shop_database_url, profile, lines).changed == 0
    for setting in HOSTILE:
        execute(postgres.url, f"ALTER DATABASE {name} RESET {setting}")
    with closing(psycopg2.connect(shop_database_url)) as connection:
        assert actual(connection) == rows
    ((numbers, raw, n),) = query(shop_database_url, "SELECT numbers, raw, n FROM odd")
    assert (numbers, bytes(raw), n) == ([1, None], b"\\x\x00\xff'", 0.1234567890123456)


def test_a_search_path_of_another_client_is_not_ours(postgres: EmbeddedPostgres, pooler: str) -> None:
    direct, url = database(postgres, pooler)
    execute(direct, "CREATE SCHEMA other; CREATE TABLE other.wide (id text PRIMARY KEY, n float8); "
            "CREATE TABLE wide (id text PRIMARY KEY, n float8)")  # fmt: skip
    for _ in range(2):
        with closing(psycopg2.connect(url)) as careless, careless.cursor() as cursor:
            cursor.execute("SET search_path = other")
            careless.commit()
    profile = Profile("wide")
    profile.route()(wide)
    for _ in range(2):
        load_lines(url, profile, [line_of({"id": {"S": "1"}, "n": {"N": "1"}})])
    assert query(direct, "SELECT (SELECT count(*) FROM wide), (SELECT count(*) FROM other.wide)") == [(1, 0)]
