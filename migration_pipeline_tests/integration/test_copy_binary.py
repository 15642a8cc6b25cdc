"""COPY input in the binary format means the rows of the CSV that it is made of: PostgreSQL takes both, and compares what it holds."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migration_pipeline import Integer, Item, Profile, Row, SmallInt
from migration_pipeline.engine.batch import TooManyBad
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.profile.row import table_of
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets import copy_binary, upsert
from migration_pipeline.targets.catalog import TargetTable, read_target
from migration_pipeline.targets.connection import copy_in
from migration_pipeline.targets.copy_binary import FEWEST, copy_input
from migration_pipeline.targets.copy_csv import RowEncoder
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.sql import copy_rows
from migration_pipeline_tests.conftest import accelerator_is_to_be_there, execute, query
from migration_pipeline_tests.exports import write_export
from migration_pipeline_tests.integration.test_changed_tables import READINGS, Reading
from migration_pipeline_tests.integration.test_copy import write
from migration_pipeline_tests.odd_rows import without_the_extension

pytestmark = pytest.mark.skipif(not accelerator_is_to_be_there(), reason="it is off, or there is no compiler")


class Kinds(Row, table="kinds", key="k"):
    """One column for each type that goes as binary; some of the table's columns are narrower, or of a domain."""

    k: int
    text: str | None
    short: str | None
    flag: bool | None
    small: SmallInt | None
    whole: Integer | None
    big: int | None
    number: Decimal | None
    price: Decimal | None
    at: datetime | None
    day: date | None
    id: UUID | None
    document: Any
    kept: Any


TABLE = """
CREATE DOMAIN price AS numeric(14, 2) CHECK (VALUE > -1e9);
CREATE TABLE kinds (
    k numeric PRIMARY KEY, "text" text, short varchar(8), flag boolean, small smallint, whole integer, big bigint, "number" numeric,
    price price, at timestamptz, day date, id uuid, document jsonb, kept json
)
"""

# Rich in what CSV, JSON and COPY treat specially.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.text(
    st.sampled_from(list("\\\"'\n\r\t\b\f.,{}[]Nnul0 \x01\x7f\u2028é🛒")), max_size=20
)
numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**38), max_value=10**38) | st.sampled_from(
    ["0", "-0", "0.00", "10000", "-10000.0001", "0.00010000", "100000000", "9999.9999", "12345678901234567890.5", "1E+3", "1E+5", "-7E+20", "1E-7", "1E-130", "-1.2345E-9"]
).map(Decimal)  # fmt: skip
zones = st.sampled_from(
    [timezone.utc, timezone(timedelta(hours=-15, minutes=-59)), timezone(timedelta(minutes=330))]
)
documents = st.none() | st.dictionaries(texts, st.none() | st.booleans() | texts | numbers, max_size=3)
rows = st.builds(
    Kinds,
    k=st.integers(-(2**70), 2**70),
    text=st.none() | texts,
    short=st.none() | st.text("ab\"\\ ", max_size=8),
    flag=st.none() | st.booleans(),
    small=st.none() | st.integers(-(2**15), 2**15 - 1),
    whole=st.none() | st.integers(-(2**31), 2**31 - 1),
    big=st.none() | st.integers(-(2**63), 2**63 - 1),
    number=st.none() | numbers,
    price=st.none() | st.decimals(-(10**8), 10**8, places=2),
    at=st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=zones),
    day=st.none() | st.dates(),
    id=st.none() | st.uuids(),
    document=documents,
    kept=documents,
)  # fmt: skip


@pytest.fixture
def cursor(database_url: str) -> Iterator[Any]:
    execute(database_url, TABLE)
    connection = psycopg2.connect(database_url)
    yield connection.cursor()
    connection.close()


@pytest.fixture
def kinds(cursor: Any, monkeypatch: pytest.MonkeyPatch) -> TargetTable:
    monkeypatch.setattr(copy_binary, "FEWEST", 1)
    return read_target(table_of(Kinds), cursor)


def csv_of(some: list[Kinds]) -> bytes:
    encoder = RowEncoder(table_of(Kinds))
    return encoder.join([encoder.encode(some)]).data


def taken(cursor: Any, statement: Any, data: bytes) -> str:
    """What PostgreSQL makes of COPY input, as the rows of a table of their own; or the kind of its refusal."""
    cursor.execute("SAVEPOINT copying")
    try:
        copy_in(cursor, statement, data)
    except psycopg2.Error as error:
        cursor.execute("ROLLBACK TO SAVEPOINT copying")
        return str(error.pgcode)
    cursor.execute("CREATE TEMP TABLE taken AS TABLE kinds")
    return ""


def differing(cursor: Any) -> int:
    """How many rows of the table are not just those that were taken before, by their image."""
    cursor.execute(
        "SELECT count(*) FROM kinds FULL JOIN taken USING (k) "
        "WHERE kinds.k IS NULL OR taken.k IS NULL OR NOT kinds.* *= taken.*"
    )
    (count,) = cursor.fetchone()
    return int(count)


def verdicts(cursor: Any, target: TargetTable, csv: bytes, count: int) -> tuple[str, str, int] | None:
    """What PostgreSQL says of some CSV, and of the binary that is made of it, and in how many rows they differ; None where none is made."""
    statement, data = copy_input(target, csv, count)
    if data == csv:
        return None
    cursor.execute("TRUNCATE kinds; DROP TABLE IF EXISTS pg_temp.taken")
    by_csv = taken(cursor, copy_rows(target, target.identifier), csv)
    cursor.execute("TRUNCATE kinds")
    cursor.execute("ALTER TABLE IF EXISTS pg_temp.taken RENAME TO before")
    by_binary = taken(cursor, statement, data)
    count = 0
    if not by_csv and not by_binary:
        cursor.execute("DROP TABLE pg_temp.taken; ALTER TABLE pg_temp.before RENAME TO taken")
        count = differing(cursor)
    cursor.connection.rollback()
    return by_csv, by_binary, count


slow = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=250)


@slow
@given(st.lists(rows, min_size=1, max_size=5, unique_by=lambda row: row.k))
def test_binary_means_the_same_rows(cursor: Any, kinds: TargetTable, some: list[Kinds]) -> None:
    assert verdicts(cursor, kinds, csv_of(some), len(some)) == ("", "", 0)


PIECES = [
    b'"', b"\\", b",", b"\n", b"\r", b"null", b"true", b'""', b"-", b".", b"0", b"E", b"+", b"E-3", b".Z", b"9" * 19, b"T", b"Z", b"+01:00",
    b"\xff", b"\0", b"",
]  # fmt: skip


@slow
@given(
    st.lists(rows, min_size=1, max_size=3, unique_by=lambda row: row.k),
    st.integers(0, 2**32),
    st.integers(1, 3),
)
def test_of_spoilt_csv_none_is_made_or_one_that_means_the_same(
    cursor: Any, kinds: TargetTable, some: list[Kinds], seed: int, spoils: int
) -> None:
    csv, random = csv_of(some), Random(seed)
    for _ in range(spoils):
        at = random.randrange(len(csv) + 1)
        # Most of what comes between bytes is nothing that is known; a byte in the place of another is more often.
        piece = (
            random.choice(PIECES)
            if random.random() < 0.3
            else random.choice(b'0123456789-+.:TZE,"abcf ').to_bytes(1, "big")
        )
        csv = csv[:at] + piece + csv[at + random.choice([1, 1, 1, 0, 2]) :]
    told = verdicts(cursor, kinds, csv, len(some))
    # Of two faults in a row PostgreSQL tells the first that it meets.
    assert told is None or (bool(told[0]) == bool(told[1]) and told[2] == 0), (told, csv)


@pytest.mark.parametrize(
    ("python", "type_"),
    [(frozenset[str], "text[]"), (bytes, "bytea"), (float, "double precision"), (datetime, "timestamp"), (str, "char(8)"), (str, "word")],
)  # fmt: skip
def test_a_table_with_a_column_of_another_type_gets_csv(
    database_url: str, cursor: Any, python: Any, type_: str
) -> None:
    row_class = type(
        "Word",
        (Row,),
        {"__annotations__": {"k": int, "v": python | None}, "__module__": __name__},
        table="words",
        key="k",
    )
    execute(
        database_url, f"CREATE TYPE word AS ENUM ('a'); CREATE TABLE words (k bigint PRIMARY KEY, v {type_})"
    )
    target, csv = read_target(table_of(row_class), cursor), b"1,null\n" * FEWEST
    assert copy_input(target, csv, FEWEST) == (copy_rows(target, target.identifier), csv)


def test_a_type_of_somebody_elses_that_bears_a_name_of_postgresqls_gets_csv(database_url: str) -> None:
    class Word(Row, table="words", key="k"):
        k: int
        v: UUID | None

    execute(
        database_url,
        "CREATE TYPE public.uuid AS ENUM ('00000000-0000-0000-0000-000000000001'); "
        "CREATE TABLE words (k bigint PRIMARY KEY, v public.uuid)",
    )
    connection = psycopg2.connect(database_url, options="-c search_path=public,pg_catalog")
    target = read_target(table_of(Word), connection.cursor())
    assert target.fits[1].actual.element == "uuid"
    csv = b'1,"00000000-0000-0000-0000-000000000001"\n' * FEWEST
    assert copy_input(target, csv, FEWEST)[1] == csv
    connection.close()


def test_few_rows_and_a_load_without_the_extension_get_csv(cursor: Any) -> None:
    target = read_target(table_of(Kinds), cursor)
    line = b"1" + b",null" * (len(target.fits) - 1) + b"\n"
    statement, data = copy_input(target, line * FEWEST, FEWEST)
    assert "FORMAT binary" in statement.as_string(cursor)
    assert data.startswith(b"PGCOPY\n\xff\r\n\0")
    for rows, csv in ((FEWEST - 1, line * (FEWEST - 1)), (FEWEST, line * (FEWEST + 1))):
        assert copy_input(target, csv, rows) == (copy_rows(target, target.identifier), csv)
    with without_the_extension():
        assert copy_input(target, line * FEWEST, FEWEST)[1] == line * FEWEST


class PricedItem(Item):
    id: str
    price: Decimal


class Priced(Row, table="priced", key="id"):
    id: str
    price: Decimal


def priced(item: PricedItem) -> Priced:
    return Priced(item.id, item.price)


def load_priced(url: str, export: Path) -> list[tuple[Any, ...]]:
    """Load a file into a new table; what became of it."""
    execute(url, "DROP SCHEMA IF EXISTS migration CASCADE; DROP TABLE IF EXISTS priced")
    create_tables(url, [table_of(Priced)])
    execute(url, "ALTER TABLE priced ALTER price TYPE numeric(5, 2), ADD CONSTRAINT above CHECK (price > 0)")
    profile = Profile("prices")
    profile.route()(priced)
    found = read_export(str(export), Storage())
    with PostgresTarget(
        url, profile.tables, FileIdentity("prices", "1", found.id, found.files[0].name, "run")
    ) as target:
        source, transform = FileStream(found.files[0], Storage()), Transform(profile, dynamodb_json)
        report = FileLoad(
            "file", found.files[0].items, source, transform, target, settings=LoadSettings(batch_items=2500)
        ).run()
    assert (report.items, report.loaded, report.quarantined) == (5000, 4997, 3)
    bad = query(url, "SELECT line, reason, table_name, sqlstate, raw FROM migration.quarantine ORDER BY 1")
    return [
        *query(url, "SELECT id, price::text FROM priced ORDER BY id"),
        *((*each, bytes(line)) for *each, line in bad),
    ]


def test_bad_items_among_many_rows_stand_alone_with_the_same_reasons(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bool] = []

    def noted(target: TargetTable, data: bytes, rows: int) -> Any:
        made = copy_input(target, data, rows)
        sent.append(made[1] != data)
        return made

    monkeypatch.setattr(upsert, "copy_input", noted)
    prices = {7: "1000", 2600: "-1", 4999: "1E+3"}
    items = [{"id": {"S": f"{n:05}"}, "price": {"N": prices.get(n, f"{n % 900}.5")}} for n in range(1, 5001)]
    items[899 - 1]["price"] = {"N": "1.25"}
    export = write_export(tmp_path, [items])
    by_binary = load_priced(database_url, export)
    assert [(each[0], each[1]) for each in by_binary[-3:]] == [
        (7, "NumericValueOutOfRange (SQLSTATE 22003) column price"),
        (2600, "CheckViolation (SQLSTATE 23514) constraint above"),
        (4999, "NumericValueOutOfRange (SQLSTATE 22003) column price"),
    ]
    assert set(sent) == {True, False}
    with without_the_extension():
        assert load_priced(database_url, export) == by_binary


def test_of_binary_input_a_reason_names_the_column_as_well(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy_binary, "FEWEST", 1)
    execute(database_url, READINGS.replace("v numeric", "v numeric(5, 2)"))
    create_tables(database_url, [])
    with (
        PostgresTarget(
            database_url, {Reading: table_of(Reading)}, FileIdentity("p", "1", "e", "f", "r")
        ) as target,
        pytest.raises(TooManyBad) as caught,
    ):
        write(target, {Reading: [Reading("a", 1, 1, Decimal(1000), None)]})
    assert [bad.reason for bad in caught.value.bad] == ["NumericValueOutOfRange (SQLSTATE 22003) column v"]
