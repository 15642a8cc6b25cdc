"""A value is in the table exactly, or somebody is told: by column type, in both directions, and with what the Row allows."""

from __future__ import annotations

import itertools
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg2
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from migration_pipeline import Fitted, Item, PgType, Profile, Row
from migration_pipeline.cli import main
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.migration.verification import verify
from migration_pipeline.profile.row import RowMeta, table_of
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.bookkeeping import BOOKKEEPING
from migration_pipeline.targets.catalog import SchemaError, read_target
from migration_pipeline.targets.connection import transaction
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import line_of, write_export
from migration_pipeline_tests.integration.test_quarantine import load_lines

numbers = itertools.count(1)


class Any_(Item):
    id: str
    v: Any


def profile_of(annotation: Any, make: Any = lambda value: value) -> Profile:
    """A profile with a table ``t (id, v)``, whose v is made of the item's."""
    row: Any = RowMeta("Made", (Row,), {"__annotations__": {"id": str, "v": annotation}}, table="t", key="id")
    profile = Profile(f"e{next(numbers)}")

    def route(item: Any) -> Any:
        return row(item.id, make(item.v))

    route.__annotations__ = {"item": Any_, "return": row}
    profile.route()(route)
    return profile


def wire(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"L": [wire(each) for each in value]}
    if isinstance(value, dict):
        return {"M": {name: wire(each) for name, each in value.items()}}
    return {"N": str(value)} if isinstance(value, (int, Decimal, float)) else {"S": value}


def load(url: str, profile: Profile, values: list[Any], batch_items: int = 100) -> FileReport:
    lines = [line_of({"id": {"S": f"{n}"}, "v": wire(value)}) for n, value in enumerate(values)]
    return load_lines(url, profile, lines, batch_items=batch_items)


def prepared(url: str, column: str, before: str = "") -> None:
    execute(
        url,
        f"{BOOKKEEPING} DROP TABLE IF EXISTS t; {before} CREATE TABLE t (id text PRIMARY KEY, v {column})",
    )


moment = datetime.fromisoformat
D = Decimal

# Row's type, what makes it of the item's value, column type, values that fit and how they read, values that do not.
TOLD: list[tuple[Any, Any, str, dict[Any, str], list[Any]]] = [
    (D, D, "numeric(10,2)", {D("1.5"): "1.50", D("1.500"): "1.50", D("-2"): "-2.00"}, [D("1.005"), D("0.004"), D("-1.999")]),
    (D, D, "numeric(5)", {D("7"): "7", D("7.0"): "7"}, [D("7.5")]),
    (D, D, "numeric(3,-2)", {D("1200"): "1200"}, [D("1250"), D("1201")]),
    (int, int, "numeric(3,-2)", {1200: "1200"}, [1250, 1]),
    (int, int, "numeric(5,2)", {12: "12.00"}, []),
    (D, D, "numeric(38,20)", {D("1.00000000000000000001"): "1.00000000000000000001"}, [D("1.000000000000000000001")]),
    (float, float, "real", {0.1: "0.1", 1.5: "1.5", 16777216: "1.6777216e+07"}, [52.520006599, 16777217, 0.1234567891]),
    (datetime, moment, "timestamptz(0)", {"2024-07-01T12:00:00+00:00": "2024-07-01 12:00:00+00"},
     ["2024-07-01T12:00:00.5+00:00", "2024-07-01T12:00:00.987654+00:00"]),
    (datetime, moment, "timestamptz(3)", {"2024-07-01T12:00:00.123+00:00": "2024-07-01 12:00:00.123+00"}, ["2024-07-01T12:00:00.1234+00:00"]),
    (datetime, moment, "timestamp", {"2024-07-01T14:00:00+02:00": "2024-07-01 12:00:00", "2024-07-01T07:00:00-05:00": "2024-07-01 12:00:00"}, []),
    (datetime, moment, "timestamp(0)", {"2024-07-01T14:00:00+02:00": "2024-07-01 12:00:00"}, ["2024-07-01T12:00:00.5+00:00"]),
    (str, str, "varchar(3)", {"ab": "ab", "ab ": "ab ", "äöü": "äöü"}, ["ab  ", "abc ", "abcd"]),
    (str, str, "char(3)", {"abc": "abc"}, ["ab", "abc ", "abcd"]),
    (str, str, "bpchar", {"ab ": "ab"}, []),
    (str, str, "name", {"n" * 63: "n" * 63}, ["n" * 64, "ä" * 32]),
    (str, str, "money", {"$1.00": "$1.00"}, ["1.005", "1.00"]),
    (str, str, "interval day", {"3 days": "3 days"}, ["3 days 04:00:00"]),
    (str, str, "interval day to second(0)", {"3 days 04:00:00": "3 days 04:00:00"}, ["04:00:00.7"]),
    (str, str, "interval", {"1 mon": "1 mon"}, ["P1M", "1 month"]),
    (str, str, "date", {"2024-07-01": "2024-07-01"}, ["2024-07-01T23:00:00-05:00", "20240701", "today"]),
    (str, str, "time(0)", {"12:00:00": "12:00:00"}, ["12:00:00.5", "noon"]),
    (str, str, "timestamp", {"2024-07-01 12:00:00": "2024-07-01 12:00:00"}, ["2024-07-01T14:00:00+02:00", "now"]),
    (str, str, "timestamptz", {"2024-07-01 12:00:00+00": "2024-07-01 12:00:00+00"}, ["2024-07-01T14:00:00+02:00"]),
    (str, str, "oid", {"7": "7"}, ["-1"]),
    (str, str, "bigint", {"7": "7"}, ["007", " 7"]),
    (str, str, "numeric", {"7.50": "7.50"}, ["7.5e0"]),
    (str, str, "numeric(10,2)", {"7.50": "7.50"}, ["7.505", "7.5"]),
    (str, str, "float8", {"0.1": "0.1"}, ["0.12345678901234567890"]),
    (str, str, "boolean", {"true": "true"}, ["yes"]),
    (str, str, "json", {'{"a":1,  "a":2}': '{"a":1,  "a":2}'}, ["{"]),
    (str, str, "jsonb", {'{"a":1.50}': '{"a": 1.50}'}, ['{"a":1,"a":2}', '[{"b":{"c":1,"c":1}}]']),
    (str, str, "point", {"(1,2)": "(1,2)"}, ["1,2"]),
    (str, str, "uuid", {"A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"}, ["a0eebc99"]),
    (str, str, "inet", {"10.0.0.1": "10.0.0.1/32"}, ["10.0.0.1/33"]),
    (str, str, "bit(3)", {"101": "101"}, ["1"]),
    (str, str, "int4range", {"[1,3)": "[1,3)"}, ["[1,2]"]),
    (list[D], lambda v: v, "numeric(10,2)[]", {}, []),
    (Annotated[D, PgType("money")], D, "money", {D("1.25"): "$1.25"}, [D("1.005")]),
    (Annotated[D, PgType("double precision")], D, "double precision", {D("0.1"): "0.1"}, [D("0.12345678901234567890")]),
    (Annotated[int, PgType("oid")], int, "oid", {7: "7"}, [-1]),
    (Annotated[datetime, PgType("date")], moment, "date", {"2024-07-01T00:00:00+00:00": "2024-07-01"}, ["2024-07-01T01:00:00+00:00"]),
    (Annotated[date, PgType("timestamp without time zone")], date.fromisoformat, "timestamp", {"2024-07-01": "2024-07-01 00:00:00"}, []),
    (Annotated[UUID, PgType("text")], UUID, "text", {str(UUID(int=7)): str(UUID(int=7))}, []),
]  # fmt: skip


@pytest.mark.parametrize("batch_items", [1, 100])
@pytest.mark.parametrize("case", TOLD, ids=[f"{getattr(c[0], '__name__', c[0])} into {c[2]}" for c in TOLD])
def test_what_a_column_would_change_is_told_and_all_else_is_exact(
    database_url: str, case: tuple[Any, Any, str, dict[Any, str], list[Any]], batch_items: int
) -> None:
    annotation, make, column, fitting, others = case
    prepared(database_url, column)
    profile = profile_of(annotation, make)
    for _ in range(2):  # straight, or by staging as the type wants it; and by staging
        report = load(database_url, profile, [*fitting, *others], batch_items)
        assert report.quarantined == len(others), report.quarantined_by_reason
        assert report.rounded == {}
        found = query(database_url, "SELECT v::text FROM t ORDER BY id::int")
        assert [value for (value,) in found] == list(fitting.values())
    for reason in report.quarantined_by_reason:
        assert "column v is " in reason or "SQLSTATE" in reason


ARRAYS = [
    (list[D], "numeric(10,2)[]", [[D("1.5"), D(2)]], [[D("1.5"), D("2.005")]]),
    (list[str], "varchar(3)[]", [["abc", "ab "]], [["abc", "ab  "]]),
    (list[str], "text[]", [["NULL", "", 'a"b\\']], []),
    (list[datetime], "timestamptz(0)[]", [["2024-07-01T12:00:00+02:00"]], [["2024-07-01T12:00:00.5+02:00"]]),
    (list[datetime], "timestamp[]", [["2024-07-01T12:00:00+02:00"]], []),
    (list[float], "real[]", [[0.5, 0.1]], [[0.5, 0.1234567891]]),
    (list[str], "uuid[]", [[str(UUID(int=7)).upper()]], []),
    (list[str], "money[]", [["$1.00"]], [["1.005"]]),
]


@pytest.mark.parametrize(
    ("annotation", "column", "fitting", "others"), ARRAYS, ids=[each[1] for each in ARRAYS]
)
def test_of_arrays_every_element_is_looked_at(
    database_url: str, annotation: Any, column: str, fitting: list[Any], others: list[Any]
) -> None:
    prepared(database_url, column)
    elements: dict[Any, Any] = {list[D]: D, list[float]: float, list[datetime]: moment}
    element = elements.get(annotation, str)
    profile = profile_of(annotation, lambda values: [element(value) for value in values])
    for _ in range(2):
        report = load(database_url, profile, [*fitting, *others])
        assert (report.quarantined, report.changed) == (len(others), 0)
    assert query(database_url, "SELECT count(*) FROM t") == [(len(fitting),)]
    if column == "timestamp[]":
        assert query(database_url, "SELECT v::text FROM t") == [('{"2024-07-01 10:00:00"}',)]


def test_domains_are_what_lies_below_them(database_url: str) -> None:
    prepared(
        database_url,
        "price",
        "CREATE DOMAIN cents AS numeric(10,2); CREATE DOMAIN price AS cents CHECK (VALUE > 0);",
    )
    profile = profile_of(D, D)
    for _ in range(2):
        report = load(database_url, profile, [D("1.5"), D("1.005"), D(-1)])
        assert sorted(
            reason.partition(" column v constraint")[0].partition(" constraint")[0]
            for reason in report.quarantined_by_reason
        ) == [
            "t: CheckViolation (SQLSTATE 23514)",
            "t: column v is price, which would change the value; Fitted[…] in the Row allows it",
        ]
    prepared(database_url, "names", "CREATE DOMAIN short AS varchar(3); CREATE DOMAIN names AS short[];")
    report = load(database_url, profile_of(list[str], list), [["abc"], ["abc "]])
    assert (report.loaded, report.quarantined) == (1, 1)


ROUNDED = [
    (D, D, "numeric(10,2)", {D("1.005"): "1.01", D("-1.005"): "-1.01", D("1.5"): "1.50"}, 2),
    (float, float, "real", {52.520006599: "52.520008", 0.5: "0.5"}, 1),
    (datetime, moment, "timestamptz(0)", {"2024-07-01T12:00:00.987654+00:00": "2024-07-01 12:00:01+00"}, 1),
    (str, str, "varchar(3)", {"ab   ": "ab ", "ab": "ab"}, 1),
    (str, str, "char(3)", {"ab": "ab", "abc": "abc"}, 1),
    (str, str, "money", {"1.005": "$1.01", "$2.00": "$2.00"}, 1),
    (str, str, "interval day", {"3 days 04:00:00": "3 days"}, 1),
    (str, str, "date", {"2024-07-01T23:00:00-05:00": "2024-07-01"}, 1),
]


@pytest.mark.parametrize(
    ("bare", "make", "column", "values", "changed"), ROUNDED, ids=[each[2] for each in ROUNDED]
)
def test_what_the_row_allows_is_done_by_the_type_s_rule_and_counted(
    database_url: str, tmp_path: Path, bare: Any, make: Any, column: str, values: dict[Any, str], changed: int
) -> None:
    prepared(database_url, column)
    annotation = Fitted[bare]
    profile = profile_of(annotation, make)
    for _ in range(2):
        report = load(database_url, profile, list(values))
        assert (report.loaded, report.quarantined, report.changed) == (len(values), 0, 0)
        assert report.rounded == {"t.v": changed}
        assert query(database_url, "SELECT rounded FROM migration.loaded_file") == [({"t.v": changed},)]
    assert [each for (each,) in query(database_url, "SELECT v::text FROM t ORDER BY id::int")] == list(
        values.values()
    )
    items = [{"id": {"S": f"{n}"}, "v": wire(value)} for n, value in enumerate(values)]
    plan = make_plan(profile, "x", [read_export(str(write_export(tmp_path, [items])), Storage())])
    assert verify(plan, profile, database_url, "run").faults("t") == 0


def test_fitted_is_no_permission_for_what_a_type_refuses(database_url: str) -> None:
    prepared(database_url, "varchar(3)")
    report = load(database_url, profile_of(Fitted[str]), ["abcd", "ab    "])
    assert (report.quarantined, report.rounded) == (1, {"t.v": 1})


@pytest.mark.parametrize("offset", ["+00:53:28", "-00:44:30", "+05:30"])
def test_an_offset_with_seconds_is_no_other_instant(database_url: str, offset: str) -> None:
    """JSON encoders know offsets of whole minutes; local mean times of old dates have seconds."""
    for column in ("timestamptz", "timestamp"):
        prepared(database_url, column)
        hours, minutes, *seconds = (int(part) for part in offset[1:].split(":"))
        zone = timezone(
            (1 if offset[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes, seconds=sum(seconds))
        )
        when = datetime(1890, 1, 1, 12, tzinfo=zone)
        load(database_url, profile_of(datetime, lambda _, when=when: when), ["x"])
        ((found,),) = query(database_url, "SELECT extract(epoch FROM v AT TIME ZONE 'UTC')::bigint FROM t"
                            if column == "timestamptz" else "SELECT extract(epoch FROM v)::bigint FROM t")  # fmt: skip
        assert found == when.timestamp()
    monrovia = datetime(1971, 6, 1, tzinfo=ZoneInfo("Africa/Monrovia"))
    prepared(database_url, "timestamptz")
    load(
        database_url,
        profile_of(datetime | None, lambda value: monrovia if value == "x" else None),
        ["x", "y"],
    )
    assert query(database_url, "SELECT extract(epoch FROM v)::bigint FROM t ORDER BY id") == [
        (int(monrovia.timestamp()),),
        (None,),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), D("NaN"), D("-Infinity")])
def test_a_document_with_a_number_that_json_lacks_is_a_bad_item(database_url: str, value: Any) -> None:
    prepared(database_url, "jsonb")
    profile = profile_of(dict[str, Any], lambda _: {"a": [1, {"b": value}], "c": None})
    report = load(database_url, profile, ["x"])
    assert list(report.quarantined_by_reason) == [
        "t: column v: a document holds NaN or infinity, which JSON has not"
    ]
    prepared(database_url, "double precision")
    assert load(database_url, profile_of(float, lambda _: float(value)), ["x"]).loaded == 1


SPELLINGS: list[tuple[Any, str]] = [
    *((int, name) for name in ("int", "int4", "int8", "integer", "bigint", "smallint", "int2", "numeric", "oid")),
    *((D, name) for name in ("decimal", "decimal(10,2)", "numeric(10, 2)", "NUMERIC")),
    *((str, name) for name in ("varchar(20)", "character varying(20)", "varchar", "char(5)", "bpchar", "text", "interval")),
    *((float, name) for name in ("float", "float8", "double precision", "real", "float4")),
    *((bool, name) for name in ("bool", "boolean")),
    *((datetime, name) for name in ("timestamptz", "timestamp with time zone", "timestamp(3) without time zone",
                                    "timestamptz(3)", "timestamp")),
    (date, "date"), (UUID, "uuid"), (bytes, "bytea"), (dict[str, Any], "jsonb"), (dict[str, Any], "json"),
    (dict[str, Any], "JSONB"), (list[str], "varchar(5)[]"), (list[int], "int[]"), (str, "tsvector"),
]  # fmt: skip


@pytest.mark.parametrize(("bare", "name"), SPELLINGS)
def test_a_table_of_our_own_ddl_passes_its_own_check(database_url: str, bare: Any, name: str) -> None:
    made: Any = RowMeta(
        "Made",
        (Row,),
        {"__annotations__": {"id": str, "v": Annotated[bare, PgType(name)]}},
        table="t",
        key="id",
    )
    table = table_of(made)
    execute(database_url, ddl([table]))
    with transaction(database_url) as cursor:
        assert read_target(table, cursor).fits[1].column.name == "v"


@pytest.mark.parametrize(
    ("annotation", "column", "words"),
    [
        (
            Annotated[D, PgType("numeric(10,2)")],
            "numeric(12,2)",
            "is numeric(12,2), but the Row names numeric(10,2)",
        ),
        (Annotated[str, PgType("varchar(20)")], "text", "is text, but the Row names character varying(20)"),
        (Annotated[str, PgType("no_such_type")], "text", "is no type of this database (SQLSTATE 42704)"),
        (Annotated[int, PgType("bigint")], "numeric(5)", "but the Row names bigint"),
        (int, "text", "is text, but the Row makes bigint"),
        (D, "money", "is money, but the Row makes numeric"),
        (list[int], "integer", "is integer, but the Row makes bigint[]"),
    ],
)
def test_a_type_is_compared_whole_before_any_work(
    database_url: str, annotation: Any, column: str, words: str
) -> None:
    prepared(database_url, column)
    with pytest.raises(SchemaError) as told:
        load(database_url, profile_of(annotation), ["x"])
    assert words in str(told.value)
    assert told.value.sqlstate == ("42704" if "SQLSTATE" in words else None)


def test_wider_integers_take_narrower_ones(database_url: str) -> None:
    prepared(database_url, "bigint")
    assert load(database_url, profile_of(Annotated[int, PgType("smallint")], int), [7]).loaded == 1


# -- what verify must find ------------------------------------------------------------------------------

DIGITS = "12345678901234567890123456789012345678"

PLANTED: list[tuple[Any, Any, str, Any, str]] = [
    (D, D, "numeric(10,2)", D("1.25"), "1.26"),
    (datetime, moment, "timestamptz", "2024-07-01T12:00:00+00:00", "2024-07-01 12:00:01+00"),
    (datetime, moment, "timestamptz", "2024-07-01T12:00:00.000001+00:00", "2024-07-01 12:00:00+00"),
    (dict[str, Any], lambda v: v, "jsonb", {"n": D(DIGITS)}, f'{{"n": {DIGITS[:-1]}9}}'),
    (dict[str, Any], lambda v: v, "json", {"n": D(1)}, '{"n":2}'),
    (bytes, lambda v: v.encode(), "bytea", "ab", "\\x6163"),
    (list[str], lambda v: v, "text[]", ["a", "b"], "{a,c}"),
    (list[str], lambda v: v, "text[]", ["a", "b"], "[0:1]={a,b}"),
    (str, str, "text", "\u00e9", "e\u0301"),
    (str, str, "text", "a", "a "),
    (str, str, "char(2)", "ab", "ac"),
    (Annotated[str, PgType("box")], str, "box", "(2,2),(0,0)", "(4,1),(0,0)"),
    (Annotated[str, PgType("circle")], str, "circle", "<(0,0),1>", "<(5,5),1>"),
    (Annotated[str, PgType("interval")], str, "interval", "1 mon", "30 days"),
    (float, float, "double precision", "0.0", "-0"),
    (float, float, "real", "0.5", "0.25"),
    (bool, lambda v: v == "t", "boolean", "t", "false"),
    (int, int, "integer", 7, "8"),
    (str, str, "uuid", str(UUID(int=7)), str(UUID(int=8))),
]


@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize("planted", PLANTED, ids=[f"{each[2]} {n}" for n, each in enumerate(PLANTED)])
def test_a_planted_difference_is_found_and_mended(
    database_url: str, tmp_path: Path, planted: tuple[Any, Any, str, Any, str], extra: bool
) -> None:
    annotation, make, column, value, other = planted
    prepared(database_url, column)
    profile = profile_of(annotation, make)
    items = [{"id": {"S": "0"}, "v": wire(value)}]
    plan = make_plan(profile, "x", [read_export(str(write_export(tmp_path, [items])), Storage())])
    assert load(database_url, profile, [value]).loaded == 1
    assert verify(plan, profile, database_url, "run", extra=extra).table("t").same == 1
    before = query(database_url, "SELECT v::text FROM t")
    execute(database_url, f"UPDATE t SET v = '{other}'")
    found = verify(plan, profile, database_url, "run", extra=extra).table("t")
    assert (found.count("different"), found.columns) == (1, {"v": 1})
    report = load(database_url, profile, [value])
    assert report.changed == 1
    assert query(database_url, "SELECT v::text FROM t") == before
    assert verify(plan, profile, database_url, "run", extra=extra).table("t").same == 1


@pytest.mark.parametrize(
    ("annotation", "make", "column", "value", "same"),
    [
        (D, D, "numeric", D("1"), "1.00"),
        (D, D, "numeric(10,2)", D("1.5"), "1.50"),
        (str, str, "uuid", str(UUID(int=7)).upper(), str(UUID(int=7))),
        (dict[str, Any], lambda v: v, "jsonb", {"b": D(1), "a": D(2)}, '{"a": 2, "b": 1}'),
    ],
)
def test_another_spelling_of_the_same_value_is_no_difference(
    database_url: str, tmp_path: Path, annotation: Any, make: Any, column: str, value: Any, same: str
) -> None:
    prepared(database_url, column)
    profile = profile_of(annotation, make)
    items = [{"id": {"S": "0"}, "v": wire(value)}]
    plan = make_plan(profile, "x", [read_export(str(write_export(tmp_path, [items])), Storage())])
    load(database_url, profile, [value])
    execute(database_url, f"UPDATE t SET v = '{same}'")
    assert verify(plan, profile, database_url, "run").table("t").same == 1
    assert load(database_url, profile, [value]).changed == 0


def test_what_an_older_load_rounded_is_found_though_it_is_no_row_any_more(
    database_url: str, tmp_path: Path
) -> None:
    """The value is known before any cast, and an item that would be refused now is not in the quarantine."""
    prepared(database_url, "numeric(10,2)")
    profile = profile_of(D, D)
    items = [{"id": {"S": "0"}, "v": {"N": "1.005"}}]
    plan = make_plan(profile, "x", [read_export(str(write_export(tmp_path, [items])), Storage())])
    execute(database_url, "INSERT INTO t VALUES ('0', 1.01)")
    compared = verify(plan, profile, database_url, "run")
    assert compared.unaccounted == 1


# -- laws ---------------------------------------------------------------------------------------------

real = st.floats(width=64, allow_nan=False, allow_infinity=False, min_value=-3e38, max_value=3e38)


@pytest.mark.parametrize(
    ("bare", "column", "strategy"),
    [
        (D, "numeric(12,3)", st.decimals(-(10**6), 10**6, places=4) | st.decimals(-(10**6), 10**6, places=2)),
        (float, "real", real | st.floats(width=32, allow_nan=False, allow_infinity=False)),
        (str, "varchar(4)", st.text(" ab", max_size=6)),
        (str, "char(4)", st.text(" ab", max_size=6)),
        (str, "name", st.text("aä", min_size=30, max_size=70)),
    ],
)
def test_python_and_the_server_agree_on_what_a_type_would_change(
    database_url: str, bare: Any, column: str, strategy: st.SearchStrategy[Any]
) -> None:
    """Each value is loaded and reads back as it was, or is told; and none that fits is told."""
    reads_back = {
        "numeric(12,3)": "v::numeric = s::numeric", "real": "v::text::float8 = s::float8", "name": "v::text = s",
        "varchar(4)": "v::text = s", "char(4)": "concat(v) = s",
    }[column]  # fmt: skip
    prepared(database_url, column)

    @settings(max_examples=15)
    @given(st.lists(strategy, min_size=1, max_size=40))
    def check(values: list[Any]) -> None:
        execute(
            database_url, "TRUNCATE t; DELETE FROM migration.loaded_file; DELETE FROM migration.quarantine"
        )
        profile = profile_of(bare, lambda place: values[int(place)])
        report = load(database_url, profile, [f"{n}" for n in range(len(values))], 1_000)
        assert report.loaded + report.quarantined == len(values)
        there = {number for (number,) in query(database_url, "SELECT id FROM t")}
        for number, value in enumerate(values):
            text = (value if isinstance(value, str) else str(value)).replace("'", "''")
            cast = f"'{text}'::float8::{column}" if column == "real" else f"'{text}'::{column}"
            asked = f"SELECT {reads_back} FROM (SELECT {cast} AS v, '{text}'::text AS s) q"
            try:
                ((exact,),) = query(database_url, asked)
            except psycopg2.DataError:  # it refuses what is too large, or too small
                exact = False
            assert (f"{number}" in there) == exact, value

    check()


# -- a profile that takes nothing -------------------------------------------------------------------------

ROUTED = """
from migration_pipeline import Item, Profile, Row

profile = Profile("kinds")


class In(Item):
    id: str


class Out(Row, table="kinds", key="id"):
    id: str


@profile.route(kind={condition})
def one(item: In) -> Out:
    return Out(item.id)


profile.ignore(kind={other}, because="another kind")
"""


@pytest.mark.parametrize(("condition", "other"), [('"1"', '"2"'), ("1", "2")])
def test_a_rule_on_another_type_is_told_by_plan_dry_run_and_verify(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, condition: str, other: str
) -> None:
    module = f"routed_{next(numbers)}"
    (tmp_path / f"{module}.py").write_text(ROUTED.format(condition=condition, other=other))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    items = [{"id": {"S": f"{n}"}, "kind": {"N": kind}} for n, kind in enumerate(["1", "2"])]
    export = write_export(tmp_path, [items])
    execute(database_url, BOOKKEEPING + "CREATE TABLE kinds (id text PRIMARY KEY)")
    run = CliRunner()
    planned = run.invoke(main, ["plan", "--profile", f"{module}:profile", str(export)])
    assert planned.exit_code == 0
    dry = run.invoke(main, ["backfill", f"{module}:profile", "--dry-run"])
    verified = run.invoke(main, ["verify", f"{module}:profile"])
    said = "have 'kind' as N, and the profile's rules compare it with S, so that none can hold; write a number: kind=1"
    if condition == "1":
        assert said not in planned.output + dry.output + verified.output
        assert dry.exit_code == 0
        assert "no route" not in planned.output
        execute(database_url, "INSERT INTO kinds VALUES ('0')")
        assert run.invoke(main, ["verify", f"{module}:profile"]).exit_code == 0
    else:
        for output in (planned.output, dry.output, verified.output):
            assert said in " ".join(output.split())
        assert "no route of the profile takes any of the first 2 items" in planned.output
        assert "no route of the profile takes any of the 2 items: nothing was compared" in verified.output
        assert (dry.exit_code, verified.exit_code) == (1, 1)
