"""Other clients of a pool and ours: what they leave does not reach us, what we do does not reach them. Backslashes on a hostile server."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2
import pytest

from migration_pipeline import Fitted, Item, Profile, Row, attribute
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.migration.verification import dry_run, verify
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.connection import APPLICATION, DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.session import Session
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import line_of, write_export
from migration_pipeline_tests.integration.test_aggregates import load, make
from migration_pipeline_tests.integration.test_quarantine import load_lines
from migration_pipeline_tests.oracle import actual, data_lines, expected
from migration_pipeline_tests.servers import pooled

shop = load_profile("shop")
PATIENCE = DatabaseSettings(retry_seconds=20)
numbers = itertools.count(1)


class PriceItem(Item):
    id: str
    amount: Decimal = attribute("price")


class Rounded(Row, table="rounded", key="id"):
    id: str
    price: Fitted[Decimal]


class Exact(Row, table="exact", key="id"):
    id: str
    price: Decimal


def prices(row: type[Row]) -> Profile:
    """A profile that writes prices to a table of its own."""
    profile = Profile(f"prices{next(numbers)}")

    def route(item: Any) -> Any:
        return row(item.id, item.amount)

    route.__annotations__ = {"item": PriceItem, "return": row}
    profile.route()(route)
    return profile


class Pool(NamedTuple):
    """A pooler in front of the tests' server."""

    url: str
    mode: str
    size: int

    def to(self, database_url: str) -> str:
        """The URL of a database, through the pooler."""
        name = database_url.partition("?")[0].rpartition("/")[2]
        return self.url.replace("/postgres?", f"/{name}?")


def pool_of(mode: str, size: int, postgres: EmbeddedPostgres, folder: Path) -> Iterator[Pool]:
    with pooled(postgres, folder, mode, size) as url:
        yield Pool(url, mode, size)


@pytest.fixture(scope="module", params=[("transaction", 2), ("transaction", 1), ("session", 2)], ids=str)
def pool(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    mode, size = request.param
    yield from pool_of(mode, size, postgres, tmp_path_factory.mktemp("pool"))


@pytest.fixture(scope="module")
def transactions(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    yield from pool_of("transaction", 2, postgres, tmp_path_factory.mktemp("pool"))


def settings_of(url: str, clients: int) -> list[dict[str, str]]:
    """All settings of so many server connections at once: each in a transaction, so that a pooler gives each another one."""
    found = []
    with ExitStack() as stack:
        for _ in range(clients):
            cursor = stack.enter_context(closing(psycopg2.connect(url))).cursor()
            cursor.execute("SELECT name, setting FROM pg_settings")
            found.append(dict(cursor.fetchall()))
    return found


def assert_nothing_stays_behind(pool: Pool, database_url: str) -> None:
    (own,) = settings_of(database_url, 1)
    for theirs in settings_of(pool.to(database_url), pool.size):
        # A client that names no application bears the name of the one before: a pooler's own habit, and not our mark.
        assert {name for name in own if own[name] != theirs[name]} <= {"application_name"}
        assert theirs["application_name"] in ("", APPLICATION)
    made = "SELECT relname FROM pg_class WHERE relpersistence = 't' OR relname LIKE 'migration\\_%'"
    assert query(database_url, made) == []
    assert query(database_url, "SELECT * FROM pg_locks WHERE locktype = 'advisory'") == []
    held = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in%' AND datname = current_database()"
    # A pooler may need a moment to roll back what its client left.
    deadline = time.monotonic() + 5
    while query(database_url, held):
        assert time.monotonic() < deadline, query(database_url, held)
        time.sleep(0.1)


def at_once(*works: Callable[[], None]) -> None:
    """Run all at once, each in a thread; raises the first error."""
    errors: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised again below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive(), "it hangs"
    if errors:
        raise errors[0]


def tables_of(url: str) -> Any:
    """The shop's tables, read by a session in which the server's settings make no difference."""
    with closing(psycopg2.connect(url)) as connection:
        plain = {"DateStyle": "ISO", "TimeZone": "UTC", "bytea_output": "hex", "extra_float_digits": "1"}
        for name, value in plain.items():
            connection.cursor().execute(f"SET {name} TO '{value}'")
        return actual(connection)


def a_night_of_the_shop(url: str, direct: str, export: Export, rows: Any) -> None:
    plan = make_plan(shop, "x", [export])
    promised = dry_run(plan, shop, url, plan.files, database=PATIENCE)
    load(url, shop, export, batch_items=300)
    files = [(export.id, file) for file in export.files]
    made = make(url, shop, files)
    assert made.rows == made.new == made.groups > 0
    assert tables_of(direct) == rows
    for name in ("customers", "orders", "order_lines", "landing.shop_events"):
        assert promised.table(name).count("missing") == len(rows[name])
    load(url, shop, export, batch_items=300)
    assert query(url, "SELECT sum(changed) FROM migration.loaded_file WHERE profile = 'shop'") == [(0,)]
    made = make(url, shop, files)
    assert made.unchanged == made.rows
    for extra in (False, True):
        compared = verify(plan, shop, url, "run", extra=extra, database=PATIENCE)
        assert [compared.faults(name) for name in compared.names] == [0] * 5
        assert not compared.unaccounted
    finish(url, shop, False, PATIENCE)


def a_night_of_prices(url: str, direct: str, folder: Path, row: Any, held: str) -> None:
    """Load, rerun, dry run, replay, verify, of many small transactions."""
    profile, table = prices(row), row._declared[0]
    items = [{"id": {"S": f"k{n:03}"}, "price": {"N": f"{n}.005"}} for n in range(60)]
    items[7]["price"]["N"] = "1000"
    plan: Plan = make_plan(profile, "x", [read_export(str(write_export(folder, [items])), Storage())])
    execute(direct, f"ALTER TABLE {table} ADD CONSTRAINT unlucky CHECK (price < 1000)")
    promised = dry_run(plan, profile, url, plan.files, database=PATIENCE)
    assert promised.files[0].report.quarantined == 1
    assert query(url, f"SELECT count(*) FROM {table}") == [(0,)]
    for _ in range(2):
        load(url, profile, read_export(plan.exports[0].uri, Storage()), batch_items=7)
    assert query(url, f"SELECT count(*), sum(price)::text FROM {table}") == [(59, held)]
    execute(direct, f"ALTER TABLE {table} DROP CONSTRAINT unlucky")
    report = replay_plan(plan, profile, url, "replay", lambda _: None, database=PATIENCE)
    assert (report.loaded, report.quarantined) == (1, 0)
    for extra in (False, True):
        compared = verify(plan, profile, url, "run", extra=extra, database=PATIENCE)
        assert compared.table(table).same == 60
        assert compared.faults(table) == 0


def test_profiles_at_once_do_all_that_they_do(
    pool: Pool, shop_database_url: str, shop_export: Path, tmp_path: Path
) -> None:
    """The rows of one are not rounded by the tables of another, in a pool that has fewer connections than they have."""
    url = pool.to(shop_database_url)
    execute(shop_database_url, "CREATE TABLE rounded (id text PRIMARY KEY, price numeric(10,2)); "
            "CREATE TABLE exact (id text PRIMARY KEY, price numeric)")  # fmt: skip
    export, (rows, _) = read_export(str(shop_export), Storage()), expected(shop_export)
    total = sum(range(60)) - 7
    at_once(
        lambda: a_night_of_the_shop(url, shop_database_url, export, rows),
        lambda: a_night_of_prices(
            url, shop_database_url, tmp_path / "1", Rounded, f"{total + 59 * Decimal('0.01')}"
        ),
        lambda: a_night_of_prices(
            url, shop_database_url, tmp_path / "2", Exact, f"{total + 59 * Decimal('0.005')}"
        ),
    )
    assert_nothing_stays_behind(pool, shop_database_url)


# -- cancel, and sessions that are lost ------------------------------------------------------------------


def pid_of(cursor: Any) -> int:
    cursor.execute("SELECT pg_backend_pid()")
    return int(cursor.fetchone()[0])


class Other:
    """Another client of the pool, with a transaction of its own."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.cursor = self.connection.cursor()
        self.pid = pid_of(self.cursor)

    def works(self, seconds: float = 0.0) -> bool:
        self.cursor.execute("SELECT pg_sleep(%s)", (seconds,))
        alive = pid_of(self.cursor) == self.pid
        self.connection.commit()
        self.connection.close()
        return alive


@pytest.mark.parametrize("hold", [False, True])
def test_cancel_ends_our_statement_and_no_other(transactions: Pool, database_url: str, hold: bool) -> None:
    url = transactions.to(database_url)
    session, other = Session(url, PATIENCE, hold=hold), Other(url)
    session.open()
    told: list[BaseException] = []

    def ours() -> None:
        try:
            session.persistently(lambda cursor: cursor.execute("SELECT pg_sleep(60)"))
        except DatabaseError as error:
            told.append(error)

    thread = threading.Thread(target=ours)
    thread.start()
    running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(60)' AND state = 'active'"
    while not query(database_url, running):
        time.sleep(0.02)
    at_once(lambda: assert_works(other, 1.0), session.cancel)
    thread.join(10)
    assert not thread.is_alive()
    assert "57014" in str(told)
    session.close()
    assert_nothing_stays_behind(transactions, database_url)


def assert_works(other: Other, seconds: float) -> None:
    assert other.works(seconds)


def test_cancel_between_two_transactions_meets_nobody_else(transactions: Pool, database_url: str) -> None:
    """The server connection of the last transaction is another client's by then."""
    url = transactions.to(database_url)
    session = Session(url, PATIENCE)
    session.open()
    ours = session.persistently(pid_of)
    other = Other(url)
    assert other.pid == ours
    at_once(lambda: assert_works(other, 1.0), session.cancel)
    session.close()


def test_a_session_that_is_lost_takes_no_transaction_of_another_client_with_it(
    transactions: Pool, database_url: str
) -> None:
    url = transactions.to(database_url)
    said: list[str] = []
    session = Session(url, PATIENCE, said.append)
    session.open()
    ours = session.persistently(pid_of)
    session._hang_up()  # as a network does
    other = Other(url)
    assert other.pid == ours, "the pool has given it our last connection"
    assert session.persistently(pid_of) != ours
    assert session.retries == 1
    assert other.works()
    session.close()
    assert_nothing_stays_behind(transactions, database_url)


def test_a_transaction_that_is_lost_does_not_hold_its_locks(transactions: Pool, database_url: str) -> None:
    execute(database_url, "CREATE TABLE t (n int); INSERT INTO t VALUES (0)")
    url = transactions.to(database_url)
    session, tries = Session(url, PATIENCE), itertools.count()
    session.open()
    other = Other(url)

    def work(cursor: Any) -> None:
        cursor.execute("UPDATE t SET n = n + 1")
        if next(tries) == 0:
            session._hang_up()
            cursor.execute("SELECT 1")

    session.persistently(work)
    session.close()
    assert query(database_url, "SELECT n FROM t") == [(1,)]
    assert other.works()
    assert_nothing_stays_behind(transactions, database_url)


def test_a_temporary_table_that_another_client_left_is_not_ours_to_fill(
    transactions: Pool, database_url: str
) -> None:
    """It is found first, by every name that has no schema: receipts would say *loaded*, and the table be empty."""
    profile = prices(Exact)
    create_tables(database_url, profile.all_tables)
    url = transactions.to(database_url)
    execute(url, "CREATE TEMP TABLE exact (id text PRIMARY KEY, price numeric)")
    try:
        report = load_lines(url, profile, [line_of({"id": {"S": "a"}, "price": {"N": "1"}})])
        assert report.loaded == 1
        assert query(database_url, "SELECT id FROM exact") == [("a",)]
    finally:
        execute(url, "DISCARD TEMP")


@pytest.mark.parametrize(("size", "at_a_time"), [(1, 1), (2, 2)])
def test_an_aggregate_needs_no_more_connections_than_a_pool_of_sessions_has(
    postgres: EmbeddedPostgres,
    tmp_path: Path,
    shop_database_url: str,
    shop_export: Path,
    size: int,
    at_a_time: int,
) -> None:
    """Each waits with one in its hand for another one, or it is told at once how many are needed."""
    export = read_export(str(shop_export), Storage())
    load(shop_database_url, shop, export)
    files = [(export.id, file) for file in export.files]
    began = time.monotonic()

    def one(url: str) -> None:
        with suppress(MigrationError):
            assert make(url, shop, files).rows

    for small in pool_of("session", size, postgres, tmp_path / "pool"):
        at_once(*[partial(one, small.to(shop_database_url))] * at_a_time)
    assert time.monotonic() - began < 60


# -- hostile settings ------------------------------------------------------------------------------------

HOSTILE = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "extra_float_digits": "-3",
    "TimeZone": "Asia/Kolkata",
    "row_security": "on",
    "search_path": "elsewhere, public",
    "bytea_output": "escape",
    "xmloption": "document",
    "transform_null_equals": "on",
    "default_transaction_isolation": "serializable",
    "enable_nestloop": "off",
    "enable_indexscan": "off",
    "client_min_messages": "error",
    "statement_timeout": "1h",
    "synchronous_commit": "off",
}


@pytest.mark.parametrize("behind_a_pooler", [False, True])
def test_whatever_the_server_has_set_the_results_are_the_same(
    transactions: Pool, database_url: str, tmp_path: Path, behind_a_pooler: bool
) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    url = transactions.to(database_url) if behind_a_pooler else database_url
    hostile = dict(HOSTILE)
    if behind_a_pooler:
        del hostile["standard_conforming_strings"]  # see below
    for setting, value in hostile.items():
        execute(
            database_url, f"ALTER DATABASE {name} SET {setting} = {value if ',' in value else repr(value)}"
        )
    create_tables(url, shop.all_tables)
    folder = write_sample(tmp_path, items=2_000, files=3, seed=11)
    export, (rows, _) = read_export(str(folder), Storage()), expected(folder)
    a_night_of_the_shop(url, database_url, export, rows)
    if behind_a_pooler:
        assert_nothing_stays_behind(transactions, database_url)


def test_what_a_pooler_does_not_let_us_set_is_refused_at_once(transactions: Pool, database_url: str) -> None:
    """It takes no options, by which alone this can be set before psycopg2 looks at it."""
    name = database_url.partition("?")[0].rpartition("/")[2]
    execute(database_url, f"ALTER DATABASE {name} SET standard_conforming_strings = off")
    with pytest.raises(MigrationError, match="ALTER ROLE … SET standard_conforming_strings = on"):
        create_tables(transactions.to(database_url), shop.all_tables)


@pytest.mark.parametrize("setting", ["standard_conforming_strings = off", "bytea_output = escape"])
def test_the_quarantine_keeps_lines_whatever_the_server_makes_of_backslashes(
    database_url: str, tmp_path: Path, setting: str
) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    execute(database_url, f"ALTER DATABASE {name} SET {setting}")
    profile = prices(Exact)
    create_tables(database_url, profile.all_tables)
    lines = [
        line_of({"id": {"S": "a"}, "price": {"S": "C:\\new\\x41 'quoted' \\\\ \u00e9 \u0001"}}),
        b'{"Item": {"id": \\x00\xff}',
        line_of({"id": {"S": "\\b'"}, "price": {"N": "1"}}),
    ]
    file = "it's\\n1.gz"
    report = load_lines(database_url, profile, lines, file)
    assert report.quarantined == 2
    kept = query(database_url, "SELECT file, raw FROM migration.quarantine ORDER BY line")
    assert [(of, bytes(raw)) for of, raw in kept] == [(file, line) for line in lines[:2]]
    assert query(database_url, "SELECT id FROM exact") == [("\\b'",)]
    assert load_lines(database_url, profile, lines, file).changed == 0


def test_the_sample_s_bad_items_are_kept_on_a_hostile_server(database_url: str, tmp_path: Path) -> None:
    name = database_url.partition("?")[0].rpartition("/")[2]
    for setting, value in HOSTILE.items():
        execute(
            database_url, f"ALTER DATABASE {name} SET {setting} = {value if ',' in value else repr(value)}"
        )
    create_tables(database_url, shop.all_tables)
    folder = write_sample(tmp_path, items=1_000, files=2, seed=5, bad=30)
    export = read_export(str(folder), Storage())
    load(database_url, shop, export)
    raw = {(name, number): line.rstrip(b"\n") for name, number, line in data_lines(folder)}
    kept = query(database_url, "SELECT file, line, raw FROM migration.quarantine")
    assert len(kept) == 30
    assert all(bytes(line) == raw[file, number] for file, number, line in kept)
    compared = verify(make_plan(shop, "x", [export]), shop, database_url, "run", extra=True)
    assert not compared.unaccounted
    assert [compared.faults(name) for name in compared.names[:4]] == [0] * 4
