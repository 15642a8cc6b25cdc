"""A rerun leaves batches alone whose rows nobody has touched, and finds every row that somebody has."""

from __future__ import annotations

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID

import psycopg2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migration_pipeline import Fitted, Item, Profile, Row, prefix
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.profile.row import Merge, table_of
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets import known_batches, upsert
from migration_pipeline.targets.connection import DatabaseSettings, transaction
from migration_pipeline.targets.copy_csv import RowEncoder
from migration_pipeline.targets.ddl import create_tables, read_targets
from migration_pipeline.targets.known_batches import BLOCKS_BEFORE, KnownBatches
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import write_export
from migration_pipeline_tests.integration.test_load import load, load_all, shop
from migration_pipeline_tests.odd_rows import without_the_extension

KEYED = ("customers", "order_lines", "orders")


@pytest.fixture
def export(shop_export: Path) -> Export:
    return read_export(str(shop_export), Storage())


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tables whose rows are compared one by one, a name for each batch."""
    names: list[str] = []

    def listed(cursor: Any, target: Any, *rest: Any) -> None:
        names.append(target.table.qualified)
        one_by_one(cursor, target, *rest)

    one_by_one = upsert.upsert
    monkeypatch.setattr(upsert, "upsert", listed)
    return names


def contents(url: str) -> dict[str, list[Any]]:
    return {table: query(url, f"SELECT t::text FROM {table} t ORDER BY 1") for table in KEYED}


def places(url: str) -> dict[str, list[Any]]:
    return {table: query(url, f"SELECT ctid::text, xmin::text FROM {table} ORDER BY 1") for table in KEYED}


def accounts(reports: list[FileReport]) -> list[Any]:
    return [(r.items, r.loaded, r.skipped, r.rows, r.changed, r.quarantined) for r in reports]


def test_a_rerun_sends_nothing_where_nothing_was_touched(
    shop_database_url: str, export: Export, compared: list[str]
) -> None:
    url = shop_database_url
    first = load_all(url, export)
    execute(url, "VACUUM FREEZE")  # which keeps the ids that it makes of no use
    before = places(url)
    for _ in range(2):
        again = load_all(url, export)
        assert compared == []
        assert accounts(again) == accounts(first)
        assert [r.unchanged_rows for r in again] == [
            {table: rows for table, rows in r.rows.items() if table in KEYED} for r in first
        ]
        assert places(url) == before


def test_of_a_batch_with_touched_rows_these_alone_are_compared(
    shop_database_url: str, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, sent = shop_database_url, Counter[str]()
    load_all(url, export)
    before = contents(url)
    execute(url, "UPDATE orders SET status = 'tampered' WHERE ctid IN ('(0,5)', '(1,2)', '(2,1)')")
    execute(url, "DELETE FROM order_lines WHERE ctid IN ('(0,1)', '(0,9)')")
    execute(url, "UPDATE customers SET name = name WHERE ctid = '(0,3)'")

    def counted(cursor: Any, target: Any, statements: Any, data: bytes, *rest: Any) -> None:
        sent[target.table.qualified] += len(known_batches.ROW.findall(data))
        one_by_one(cursor, target, statements, data, *rest)

    one_by_one = upsert.upsert
    monkeypatch.setattr(upsert, "upsert", counted)
    reports = load_all(url, export)
    assert contents(url) == before
    assert sent == {"orders": 3, "order_lines": 2, "customers": 1}
    assert sum((Counter(r.changed_rows) for r in reports), Counter()) == {"orders": 3}
    rows, unchanged = (
        sum((Counter(each) for each in counts), Counter())
        for counts in ([r.rows for r in reports], [r.unchanged_rows for r in reports])
    )
    assert {table: rows[table] - unchanged[table] for table in KEYED} == {
        "orders": 3,
        "order_lines": 2,
        "customers": 0,
    }


ELSEWHERE = """
SELECT orders.ctid::text
  FROM orders
  JOIN migration.batch b ON table_name = 'orders' AND b.xmin = orders.xmin
 WHERE orders.ctid < format('(%s,0)', first_block)::tid
 ORDER BY orders.ctid
"""


def test_rows_that_lie_elsewhere_are_asked_for_by_their_keys(
    shop_database_url: str, export: Export, compared: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL fills old pages with new rows; here each batch ends the page of the one before, and no note has that."""
    url = shop_database_url
    monkeypatch.setattr(known_batches, "BLOCKS_BEFORE", 0)
    load_all(url, export)
    before, found = places(url), contents(url)
    elsewhere = [place for (place,) in query(url, ELSEWHERE)]
    assert len(elsewhere) > 3
    load_all(url, export)
    assert "orders" not in compared
    assert "order_lines" in compared, "of these a page has more than are asked for"
    assert places(url) == before

    execute(url, f"UPDATE orders SET status = 'tampered' WHERE ctid = '{elsewhere[0]}'")
    execute(url, f"DELETE FROM orders WHERE ctid = '{elsewhere[-1]}'")
    load_all(url, export)
    assert "orders" in compared
    assert contents(url) == found


class Noted(Row, table="noted", key=("k", "n")):
    before: str
    k: str
    n: int
    after: str | None


texts = st.text(alphabet='ab",\\\n\r\té🛒', max_size=6)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.builds(Noted, texts, texts, st.integers(-3, 3), st.none() | texts), max_size=12), st.data()
)
def test_rows_are_taken_out_of_copy_input_by_their_keys(rows: list[Noted], data: st.DataObject) -> None:
    rows = list({(row.k, row.n): row for row in rows}.values())
    table = table_of(Noted)
    coder = RowEncoder(table)
    target: Any = SimpleNamespace(
        table=table,
        fits=[SimpleNamespace(column=column) for column in table.columns],
        key_fits=[SimpleNamespace(column=column) for column in table.columns if column.name in table.key],
    )
    some = data.draw(st.lists(st.sampled_from(rows), max_size=12)) if rows else []
    known: set[tuple[str, ...]] = {(row.k, str(row.n)) for row in some} | {("a", "4")}

    def sent(rows: list[Noted]) -> bytes:
        return coder.join([coder.encode(rows)] if rows else []).data

    for way in (contextlib.nullcontext(), without_the_extension()):
        with way:
            left = known_batches.without_rows(target, b'"a,1', 1, known)
            assert left == b'"a,1', "what is no row is not lost"
            left = known_batches.without_rows(target, sent(rows), len(rows), known)
            assert left == sent([row for row in rows if row not in some])


COLUMN = (
    "ALTER TABLE orders DROP COLUMN status; ALTER TABLE orders ADD COLUMN status text NOT NULL DEFAULT 'new'"
)

TOUCHED = {
    "another value": "UPDATE orders SET status = 'tampered' WHERE ctid = '(0,5)'",
    "the same value, written again": "UPDATE orders SET status = status WHERE ctid = '(0,5)'",
    "a row is gone": "DELETE FROM orders WHERE ctid = '(0,5)'",
    "a row is gone, and another key is there": """
        CREATE TEMP TABLE gone AS SELECT * FROM orders WHERE ctid = '(0,5)'; DELETE FROM orders WHERE ctid = '(0,5)';
        UPDATE gone SET order_id = 'other'; INSERT INTO orders SELECT * FROM gone""",
    "all are gone": "TRUNCATE orders",
    "a column is dropped, and another one has its name": COLUMN,
    "the table is another one": """
        CREATE TABLE other (LIKE orders INCLUDING ALL); INSERT INTO other SELECT * FROM orders;
        UPDATE other SET status = 'tampered'; DROP TABLE orders; ALTER TABLE other RENAME TO orders""",
    "a note is wrong": "UPDATE migration.batch SET rows = rows - 1",
    "notes are of another time": "UPDATE migration.batch SET transaction = transaction + (1::bigint << 32)",
    "notes were written by another transaction": "UPDATE migration.batch SET rows = rows",
    "there are none": "DELETE FROM migration.batch",
}
"""What may become of a table. In each case a rerun has to compare rows."""


@pytest.mark.parametrize("how", TOUCHED)
def test_a_rerun_repairs_what_was_touched(
    shop_database_url: str, export: Export, compared: list[str], how: str
) -> None:
    url = shop_database_url
    load_all(url, export)
    before = contents(url)
    execute_each(url, TOUCHED[how])
    load_all(url, export)
    found = contents(url)
    if TOUCHED[how] == COLUMN:  # which stands last now
        assert query(url, "SELECT DISTINCT status FROM orders ORDER BY 1") != [("new",)]
    elif how == "a row is gone, and another key is there":
        assert [row for row in found["orders"] if "other" not in row[0]] == before["orders"]
    else:
        assert found == before
    assert "orders" in compared


def execute_each(url: str, statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    for statement in statements.split(";"):
        connection.cursor().execute(statement)
    connection.close()


def test_only_the_batch_that_was_touched_is_compared(
    shop_database_url: str, export: Export, compared: list[str]
) -> None:
    load_all(shop_database_url, export)
    batches = query(shop_database_url, "SELECT count(*) FROM migration.batch WHERE table_name = 'orders'")
    execute(shop_database_url, "DELETE FROM orders WHERE ctid = '(0,5)'")
    load_all(shop_database_url, export)
    assert compared == ["orders"]
    assert batches[0][0] > 3


class Reading(Item):
    PK: str
    site: str


class Kept(Row, table="readings", key="reading"):
    reading: str
    site: str


def profile_of(site: Callable[[str], str]) -> Profile:
    made = Profile("readings")

    @made.route(PK=prefix("R#"))
    def reading(item: Reading) -> Kept:
        return Kept(item.PK, site(item.site))

    return made


def lines(numbers: range, site: str) -> list[dict[str, Any] | bytes]:
    return [{"PK": {"S": f"R#{number}"}, "site": {"S": site}} for number in numbers]


@pytest.fixture
def readings(tmp_path: Path) -> Export:
    return read_export(str(write_export(tmp_path, [lines(range(500), "a")])), Storage())


def test_rows_that_would_be_others_are_compared(
    database_url: str, readings: Export, compared: list[str]
) -> None:
    profile = profile_of(str)
    create_tables(database_url, profile.all_tables)
    load_all(database_url, readings, profile=profile)
    load_all(database_url, readings, profile=profile_of(str.upper))
    assert query(database_url, "SELECT DISTINCT site FROM readings") == [("A",)]
    assert compared == ["readings"]


@pytest.mark.parametrize(
    ("kind", "change", "site"),
    [
        ("site AS ENUM ('a')", "ALTER TYPE site RENAME VALUE 'a' TO 'z'", None),
        ("site AS text", "ALTER DOMAIN site ADD CHECK (value <> 'z')", "a"),
    ],
)
def test_a_type_whose_values_may_be_renamed_is_compared(
    database_url: str, readings: Export, compared: list[str], kind: str, change: str, site: str | None
) -> None:
    profile = profile_of(str)
    create_tables(database_url, profile.all_tables)
    what = "DOMAIN" if kind.endswith("text") else "TYPE"
    execute(database_url, f"CREATE {what} {kind}; ALTER TABLE readings ALTER site TYPE site USING site::site")
    load_all(database_url, readings, profile=profile)
    execute(database_url, change)
    try:
        reports = load_all(database_url, readings, profile=profile)
    except MigrationError:
        assert site is None
    else:
        assert site or reports[0].quarantined == 500
    assert "readings" in compared


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked for of the rows of batches: their number or their keys, and of which blocks."""
    questions: list[str] = []

    def listed(known: KnownBatches, cursor: Any, target: Any, note: Any, what: Any, where: Any) -> Any:
        places = re.findall(r"\((\d+),0\)", where.as_string(cursor))
        questions.append(f"{'number' if 'count' in what.as_string(cursor) else 'keys'} {'-'.join(places)}")
        return found(known, cursor, target, note, what, where)

    found = KnownBatches._found
    monkeypatch.setattr(KnownBatches, "_found", listed)
    return questions


def load_together(url: str, export: Export, profile: Profile) -> list[FileReport]:
    """Load all files in one run."""
    log, plan = logging.getLogger("test"), make_plan(profile, "readings", [export])
    with Loader(plan, profile, url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        return [loader.load(file, log, lambda _: None, log.warning) for file in plan.files]


def test_where_rows_lay_elsewhere_the_keys_of_the_next_batch_are_asked_for_at_once(
    database_url: str, tmp_path: Path, compared: list[str], asked: list[str]
) -> None:
    files = [lines(range(start, start + 500), "a") for start in range(0, 2500, 500)]
    export = read_export(str(write_export(tmp_path, files)), Storage())
    profile = profile_of(str)
    create_tables(database_url, profile.all_tables)
    load_together(database_url, export, profile)
    assert asked == []
    execute(
        database_url,
        "UPDATE readings SET site = 'z' WHERE reading IN ('R#7', 'R#507'); "
        "UPDATE readings SET site = 'z' WHERE substr(reading, 3)::int BETWEEN 1100 AND 1499",
    )
    reports = load_together(database_url, export, profile)
    assert [report.changed for report in reports] == [1, 1, 400, 0, 0]
    assert [question.split()[0] for question in asked] == [
        "number", "keys", "keys",  # of all, and of the one that is missing
        "keys", "keys",
        "keys",  # most are missing: all are compared
        "keys",
        "number",
    ]  # fmt: skip
    assert compared == ["readings"] * 3
    assert query(database_url, "SELECT count(*), min(site), max(site) FROM readings") == [(2500, "a", "a")]


def test_the_last_blocks_are_counted_first(
    database_url: str, tmp_path: Path, compared: list[str], asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some rows lie among those that are seldom looked at: here those of the first 50 blocks that the batch made."""
    seldom = BLOCKS_BEFORE + 50
    monkeypatch.setattr(known_batches, "SELDOM", seldom)
    files = [lines(range(start, start + 3000), "a" * 1000) for start in range(0, 6000, 3000)]
    export = read_export(str(write_export(tmp_path, files)), Storage())
    profile = profile_of(str)
    create_tables(database_url, profile.all_tables)
    first, second = export.files
    load(database_url, export, first, profile)
    load(database_url, export, second, profile)
    ((begin, end),) = query(
        database_url, f"SELECT first_block, last_block FROM migration.batch WHERE file = '{second.name}'"
    )
    assert 0 < begin < begin + seldom < end
    report = load(database_url, export, second, profile)
    assert (report.unchanged_rows, compared) == ({"readings": 3000}, [])
    assert asked == [f"number {begin + seldom}-{end}", f"number {begin}-{begin + seldom}"]


def test_a_partitioned_table_is_compared(database_url: str, readings: Export, compared: list[str]) -> None:
    profile = profile_of(str)
    create_tables(database_url, profile.all_tables)
    execute(database_url, "DROP TABLE readings")
    execute(
        database_url,
        "CREATE TABLE readings (reading text PRIMARY KEY, site text NOT NULL) PARTITION BY HASH (reading);"
        "CREATE TABLE readings_0 PARTITION OF readings FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    for _ in range(2):
        load_all(database_url, readings, profile=profile)
    assert compared == ["readings"]
    assert query(database_url, "SELECT count(*) FROM migration.batch") == [(0,)]


def test_two_files_that_give_one_key_end_as_a_first_load_does(
    database_url: str, tmp_path: Path, compared: list[str]
) -> None:
    files = [lines(range(100), "a"), lines(range(50, 150), "b")]
    export = read_export(str(write_export(tmp_path, files)), Storage())
    profile = profile_of(str)
    create_tables(database_url, profile.all_tables)
    load_all(database_url, export, profile=profile)
    first = query(database_url, "SELECT * FROM readings ORDER BY 1")
    for file in (*export.files, *export.files):
        load(database_url, export, file, profile)
    assert query(database_url, "SELECT * FROM readings ORDER BY 1") == first
    assert set(compared) == {"readings"}


def test_the_shop_has_what_this_is_about(shop_database_url: str, export: Export) -> None:
    load_all(shop_database_url, export)
    assert {
        table for (table,) in query(shop_database_url, "SELECT DISTINCT table_name FROM migration.batch")
    } == {*KEYED} & {table.qualified for table in shop.all_tables}


@pytest.mark.parametrize(
    ("distance", "counts"),
    [(0, True), (1 << 32, False), (-(1 << 32), False), (-(1 << 21), False), (-(1 << 31), False)],
)
def test_a_note_counts_while_its_id_can_be_no_other_transaction_s(
    shop_database_url: str, distance: int, counts: bool
) -> None:
    """An id of 32 bits comes round; and in a dump that was restored, ids are not those that notes were written with."""
    file = {"profile": "shop", "export_id": "e", "file": "f"}
    execute(
        shop_database_url,
        "INSERT INTO migration.batch SELECT 'shop', 'e', 'f', 'orders', 'd', 1, 0, 1, "
        f"pg_current_xact_id()::text::bigint + {distance}",
    )
    with transaction(shop_database_url) as cursor:
        known = KnownBatches(cursor, read_targets(cursor, shop.tables).values())
        known.read(cursor, file)
        assert bool(known._notes) is counts


ODD = ["", "null", "a b", '"', "\\", "\\n", "x\ny", "\r", ",", '",', "é🛒", "'", "a ", "]\n["]
START = datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=2)))


class OfTexts(Row, table="odd", key=("z", "a")):
    """Its key is in another order than its columns, and one is between."""

    a: str
    middle: str
    z: Fitted[str]


class OfNumbers(Row, table="odd", key=("a", "z"), version="n"):
    n: int
    middle: str
    a: Decimal
    z: float


class OfTimes(Row, table="odd", key=("a", "z")):
    n: Annotated[int, Merge("greatest({old}, {new})")]
    middle: str
    a: datetime
    z: date


class OfBytes(Row, table="odd", key=("z", "a")):
    middle: str
    a: bytes
    z: UUID


ROWS: dict[type[Row], tuple[str, Callable[[int, str], Row]]] = {
    OfTexts: ("ALTER z TYPE char(12)", lambda n, odd: OfTexts(f"{odd}{n % 7}", odd, f"{n}{odd}")),
    OfNumbers: (
        "ALTER middle TYPE varchar(20)",
        lambda n, odd: OfNumbers(n, odd, Decimal(n) / 8, n / 7 * 10.0 ** (n % 20)),
    ),
    OfTimes: (
        "ALTER a TYPE timestamp",
        lambda n, odd: OfTimes(n, odd, START + timedelta(hours=n, microseconds=n % 2), date(2000 + n, 1, 1)),
    ),
    # What is refused halves its batch, so that several are copied in one transaction.
    OfBytes: (
        "ADD CHECK (middle <> 'a b')",
        lambda n, odd: OfBytes(odd, b"\\x,\n%d" % n, UUID(int=n * 7**40)),
    ),
}

TOUCHED_ROWS = """
CREATE TEMP TABLE counted AS SELECT row_number() OVER (ORDER BY a, z) AS number, a, z FROM odd;
UPDATE odd SET middle = 'tampered' WHERE (a, z) IN (SELECT a, z FROM counted WHERE number % 40 = 0);
UPDATE odd SET middle = middle WHERE (a, z) IN (SELECT a, z FROM counted WHERE number % 40 = 1);
DELETE FROM odd WHERE (a, z) IN (SELECT a, z FROM counted WHERE number % 40 IN (2, 3));
UPDATE odd SET (a, z) = (gone.a, gone.z) FROM counted s JOIN counted gone ON gone.number = s.number - 1
 WHERE s.number % 40 = 4 AND (odd.a, odd.z) = (s.a, s.z)
"""


@pytest.mark.parametrize("row_class", ROWS)
def test_a_rerun_ends_as_if_it_compared_all_rows(
    postgres: EmbeddedPostgres,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row_class: type[Row],
) -> None:
    profile, (change, make) = Profile("odd"), ROWS[row_class]

    def row(item: Reading) -> Row:
        number = int(item.PK[2:])
        return make(number, ODD[number % len(ODD)])

    row.__annotations__["return"] = row_class
    profile.route(PK=prefix("R#"))(row)
    files = [lines(range(400), ""), lines(range(400, 500), "")]
    export = read_export(str(write_export(tmp_path, files)), Storage())
    create_tables(database_url, profile.all_tables)
    execute(database_url, f"ALTER TABLE odd {change}")
    load_all(database_url, export, profile=profile)
    first = query(database_url, "SELECT o::text FROM odd o ORDER BY 1")
    execute_each(database_url, TOUCHED_ROWS)
    ((name,),) = query(database_url, "SELECT current_database()")
    execute(postgres.url, f"CREATE DATABASE {name}_compared TEMPLATE {name}")
    other_url = database_url.replace(f"/{name}?", f"/{name}_compared?")
    sizes, left_of = Counter[str](), KnownBatches.left

    def left(self: KnownBatches, cursor: Any, target: Any, data: bytes, rows: int) -> bytes:
        found = left_of(self, cursor, target, data, rows)
        sizes.update(sent=len(data), left=len(found))
        return found

    monkeypatch.setattr(KnownBatches, "left", left)
    if row_class is OfTimes:  # to ask for its keys would be in vain
        monkeypatch.delattr(known_batches, "without_rows")
    known = load_all(database_url, export, profile=profile)
    monkeypatch.setattr(KnownBatches, "left", lambda self, cursor, target, data, rows: data)
    compared = load_all(other_url, export, profile=profile)
    assert 0 < sizes["left"] < sizes["sent"] or row_class is OfTimes, (
        "of these keys each is spelled in another way"
    )
    for one, other in zip(known, compared, strict=True):
        assert (one.rows, one.changed_rows, one.unchanged_rows) == (
            other.rows,
            other.changed_rows,
            other.unchanged_rows,
        )
        assert (one.collisions, one.quarantined, one.rounded) == (
            other.collisions,
            other.quarantined,
            other.rounded,
        )
    found = query(database_url, "SELECT o::text FROM odd o ORDER BY 1")
    assert found == query(other_url, "SELECT o::text FROM odd o ORDER BY 1")
    # Of a row that somebody gave another one's key, the greater version stays, and what merges.
    assert (found == first) is (row_class in (OfTexts, OfBytes))
    execute(postgres.url, f"DROP DATABASE {name}_compared")
