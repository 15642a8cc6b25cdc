"""Values arrive in PostgreSQL as they were, through encoder and COPY: checked by reading them back."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migration_pipeline import Integer, Row
from migration_pipeline.engine.batch import TooManyBad
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.transform import Bad, Outcome
from migration_pipeline.profile.row import table_of
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.copy_csv import RowEncoder
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.conftest import execute, query


class Values(Row, table="values", key="k"):
    """One column a type; the table's name is a keyword."""

    k: int
    text: str | None
    number: Decimal | None
    real: float | None
    flag: bool | None
    raw: bytes | None
    at: datetime | None
    day: date | None
    id: UUID | None
    tags: frozenset[str] | None
    numbers: list[Decimal | None] | None
    blobs: list[bytes] | None
    document: Any


# Everything that text in PostgreSQL may hold: no NUL, no lone surrogates. Rich in what CSV and COPY treat specially.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.text(
    st.sampled_from(list("\\\"'\n\r\t\b\f.,{}[]Nnu0 \x01\x7f\u2028é🛒")), max_size=12
)
numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**38), max_value=10**38)
documents = st.recursive(
    st.none() | st.booleans() | text | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
rows = st.builds(
    Values,
    k=st.integers(-(2**63), 2**63 - 1),
    text=st.none() | text,
    number=st.none() | numbers,
    real=st.none() | st.floats(allow_nan=False),
    flag=st.none() | st.booleans(),
    raw=st.none() | st.binary(max_size=20),
    at=st.none() | st.datetimes(timezones=st.just(timezone.utc)),
    day=st.none() | st.dates(),
    id=st.none() | st.uuids(),
    tags=st.none() | st.frozensets(text, max_size=4),
    numbers=st.none() | st.lists(st.none() | numbers, max_size=3),
    blobs=st.none() | st.lists(st.binary(max_size=5), max_size=3),
    document=documents,
)


def read_back(url: str) -> list[tuple[Any, ...]]:
    return query(
        url,
        'SELECT k, "text", "number", "real", flag, raw, at, day, id::text, tags, numbers::text[], blobs::text[], '
        'document::text FROM "values" ORDER BY k',
    )


def as_read(row: Values) -> tuple[Any, ...]:
    """What psycopg2 gives for the row, by PostgreSQL's own rules for each type."""
    return (
        row.k, row.text, row.number, row.real, row.flag, row.raw, row.at, row.day, row.id and str(row.id),
        None if row.tags is None else sorted(row.tags), row.numbers,
        None if row.blobs is None else ["\\x" + b.hex() for b in row.blobs],
        row.document,
    )  # fmt: skip


def comparable(found: tuple[Any, ...]) -> tuple[Any, ...]:
    values = [bytes(v) if isinstance(v, memoryview) else v for v in found]
    if values[10] is not None:
        values[10] = [n and Decimal(n) for n in values[10]]  # psycopg2 would make floats of a numeric[]
    if values[-1] is not None:
        values[-1] = json.loads(values[-1], parse_float=Decimal, parse_int=Decimal)
    return tuple(values)


@pytest.fixture
def values_url(database_url: str) -> str:
    execute(database_url, ddl([table_of(Values)]))
    return database_url


@pytest.fixture
def open_values(values_url: str) -> Iterator[PostgresTarget]:
    with target(values_url) as opened:
        yield opened


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.lists(rows, min_size=1, max_size=8, unique_by=lambda row: row.k))
def test_every_value_comes_back_as_it_was(
    values_url: str, open_values: PostgresTarget, some: list[Values]
) -> None:
    write(open_values, {Values: list(some)})
    keys = {row.k for row in some}
    found = [comparable(row) for row in read_back(values_url) if row[0] in keys]
    assert found == [as_read(row) for row in sorted(some, key=lambda row: row.k)]


def outcome_of(kind: type[Row], row: Any) -> Outcome:
    outcome = Outcome([kind])
    outcome.rows[kind].append(row)
    return outcome


def write(open_target: PostgresTarget, some: dict[type[Row], list[Any]], **options: Any) -> None:
    """Write rows that come from no items; a refusal of one raises."""
    batch: Any = SimpleNamespace(
        encoded=open_target.encoder.join(
            [open_target.encoder.encode(outcome_of(kind, row)) for kind, rows in some.items() for row in rows]
        ),
        lines=[b""],
        bad=[],
        room=-1,
        refused=lambda reason, table, sqlstate: Bad(1, b"", reason, table, sqlstate),
    )
    open_target.write(batch, **options)


IMPATIENT = DatabaseSettings(retry_seconds=0)


def target(url: str, row_class: type[Row] = Values, **options: Any) -> PostgresTarget:
    identity = FileIdentity("p", "1", "e", "f", "r")
    return PostgresTarget(url, {row_class: table_of(row_class)}, identity, **options)


def value(k: int, text: str | None = None) -> Values:
    return Values(k, text, None, None, None, None, None, None, None, None, None, None, None)


def test_a_document_that_is_none_is_sql_null(values_url: str) -> None:
    with target(values_url) as open_target:
        write(open_target, {Values: [value(1)]})
    assert query(values_url, 'SELECT document IS NULL FROM "values"') == [(True,)]


def test_a_second_load_replaces_rows_by_key(values_url: str) -> None:
    with target(values_url) as open_target:
        write(open_target, {Values: [value(1, "old"), value(2, "stays")]})
        write(open_target, {Values: [value(1, "new"), value(3, "added")]})
    assert query(values_url, 'SELECT k, text FROM "values" ORDER BY k') == [
        (1, "new"),
        (2, "stays"),
        (3, "added"),
    ]


@given(st.permutations([("b", 1), ("a", 1), ("c", 1), ("x", 2)]))
def test_of_rows_with_one_key_the_same_stays_in_any_order(order: list[tuple[str, int]]) -> None:
    encoder = RowEncoder(table_of(Values))
    whole = encoder.join([encoder.encode([value(k, text) for text, k in order])])
    assert whole == encoder.join([encoder.encode([value(1, "c"), value(2, "x")])])
    assert whole == encoder.join([encoder.encode([value(k, text)]) for text, k in order])
    assert whole.rows == 2


def test_a_batch_is_one_transaction_and_a_receipt_comes_with_it(values_url: str) -> None:
    class Short(Row, table="values", key="k"):
        k: int
        text: str

    execute(values_url, 'ALTER TABLE "values" ALTER "text" TYPE varchar(3)')
    with target(values_url, Short) as open_target:
        with pytest.raises(TooManyBad) as caught:
            write(open_target, {Short: [Short(1, "abc"), Short(2, "s3cret")]}, close=lambda _: FileReport())
        assert [bad.sqlstate for bad in caught.value.bad] == ["22001"]
        assert query(values_url, 'SELECT count(*) FROM "values"') == [(0,)]
        assert query(values_url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]
        write(open_target, {Short: [Short(1, "abc")]}, close=lambda _: FileReport(items=5, md5="m"))
    assert query(
        values_url, "SELECT profile, export_id, file, items, md5, run_id FROM migration.loaded_file"
    ) == [("p", "e", "f", 5, "m", "r")]


def test_a_refusal_names_places_and_no_values(values_url: str) -> None:
    execute(values_url, 'ALTER TABLE "values" ADD CONSTRAINT no_secrets CHECK ("text" <> \'s3cret\')')
    with target(values_url) as open_target, pytest.raises(TooManyBad) as caught:
        write(open_target, {Values: [value(1, "s3cret")]})
    (bad,) = caught.value.bad
    assert bad.reason == "CheckViolation (SQLSTATE 23514) constraint no_secrets"
    assert (bad.table, bad.sqlstate) == ("values", "23514")


def test_no_database_is_one_clear_line() -> None:
    with (
        pytest.raises(DatabaseError, match=r"^no database: .*; check MIGRATION_DATABASE_URL"),
        target("postgresql://u:s3cret@127.0.0.1:1/nowhere", settings=IMPATIENT),
    ):
        pass


@pytest.mark.parametrize(
    "url",
    [
        "postgres:/u:s3cret@h/db",
        "postgresql://u:s3%zzcret@h/db",
        "postgresql://u:x/s3cret@h/db",
        "postgresql://u:p@s3cret@127.0.0.1:1/db",
        "postgresql://h:s3cret/db",
        "postgresql://u:s3cret@127.0.0.1:1/db",
    ],
)
def test_a_mistyped_url_does_not_tell_its_password(url: str) -> None:
    with pytest.raises(DatabaseError) as caught, target(url, settings=IMPATIENT):
        pass
    told = "".join(traceback.format_exception(caught.value))
    assert "cret" not in told.partition("DatabaseError: ")[2]
    assert "no database: " in str(caught.value)


class Keyed(Row, table="keyed", key=("a", "b")):
    a: int
    b: Integer
    t: str | None
    d: Decimal


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("DROP TABLE keyed", "table keyed does not exist; create it with: migration-pipeline ddl"),
        ("ALTER TABLE keyed DROP COLUMN t", "has no column 't'"),
        ("ALTER TABLE keyed ALTER d TYPE text", "column 'd' is text, but the Row makes numeric"),
        ("ALTER TABLE keyed ALTER t SET NOT NULL", "column 't' is NOT NULL, but the Row allows None"),
        (
            "ALTER TABLE keyed ADD x int NOT NULL",
            "column 'x' is NOT NULL without a default, and the Row has no such",
        ),
        (
            "ALTER TABLE keyed DROP CONSTRAINT keyed_pkey",
            r"no primary key or unique index on exactly \(a, b\)",
        ),
        ("DROP TABLE migration.loaded_file", "has no bookkeeping"),
    ],
)
def test_tables_that_do_not_fit_are_refused_before_any_work(
    database_url: str, change: str, message: str
) -> None:
    execute(database_url, ddl([table_of(Keyed)]))
    execute(database_url, change)
    with pytest.raises(DatabaseError.__mro__[1], match=message), target(database_url, Keyed):
        pass


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE keyed ALTER t TYPE varchar(10)",
        "ALTER TABLE keyed ALTER a TYPE numeric(20), ALTER d TYPE numeric(12, 2)",
        "ALTER TABLE keyed ADD x int NOT NULL DEFAULT 1, ADD y int",
        "ALTER TABLE keyed DROP CONSTRAINT keyed_pkey; CREATE UNIQUE INDEX ON keyed (b, a) INCLUDE (t)",
    ],
)
def test_tables_that_take_the_rows_are_taken(database_url: str, change: str) -> None:
    execute(database_url, ddl([table_of(Keyed)]))
    execute(database_url, change)
    with target(database_url, Keyed) as open_target:
        write(open_target, {Keyed: [Keyed(1, 2, "t", Decimal("1.5"))]})
    assert query(database_url, "SELECT a, b, t, d FROM keyed") == [(1, 2, "t", Decimal("1.5"))]


def test_ddl_may_run_again(database_url: str) -> None:
    for _ in range(2):
        execute(database_url, ddl([table_of(Keyed), table_of(Values)]))


def test_a_hostile_name_stays_a_name(database_url: str) -> None:
    class Hostile(Row, table='x"; DROP TABLE victim; --', key="k"):
        k: int

    execute(database_url, "CREATE TABLE victim (a int)")
    execute(database_url, ddl([table_of(Hostile)]))
    with target(database_url, Hostile) as open_target:
        write(open_target, {Hostile: [Hostile(1)]})
    assert query(database_url, "SELECT count(*) FROM victim") == [(0,)]


def test_the_connection_reports_who_it_is(values_url: str) -> None:
    with target(values_url), psycopg2.connect(values_url) as other, other.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'migration_pipeline'")
        assert cursor.fetchone() == (1,)


def test_fields_may_have_any_name(database_url: str) -> None:
    """Also those of the generated encoder's own variables."""

    class Named(Row, table="named", key="r"):
        r: bytes
        v: bytes | None
        spell1: list[int]

    execute(database_url, ddl([table_of(Named)]))
    with target(database_url, Named) as open_target:
        write(open_target, {Named: [Named(b"r", b"v", [1]), Named(b"s", None, [])]})
    assert query(database_url, "SELECT encode(r, 'escape'), encode(v, 'escape'), spell1 FROM named") == [
        ("r", "v", [1]),
        ("s", None, []),
    ]
