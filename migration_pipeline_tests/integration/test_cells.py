"""Cells of the matrix that have a table of their own: what the first load takes no later one may fail at, or read otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import psycopg2
import pytest

from migration_pipeline import Fitted, Item, Merge, PgType, Profile, Row
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.verification import dry_run, verify
from migration_pipeline.profile.row import RowMeta
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.bookkeeping import BOOKKEEPING
from migration_pipeline.targets.catalog import SchemaError
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import line_of, write_export
from migration_pipeline_tests.integration.test_quarantine import load_lines
from migration_pipeline_tests.servers import InstalledPostgres, need

numbers = itertools.count(1)
Pair = tuple[str, str]


class Thing(Item):
    id: str
    v: str


def same(value: str) -> Any:
    return value


def profile_of(
    annotations: dict[str, Any],
    make: Callable[[str], Any] = same,
    make_id: Callable[[str], Any] = same,
    between: tuple[Any, ...] | None = None,
    **more: Any,
) -> Profile:
    """A profile of the table t; columns between id and v hold the same of all items, or what v holds."""
    made: Any = RowMeta("Made", (Row,), {"__annotations__": annotations}, table="t", key="id", **more)
    profile = Profile(f"cells{next(numbers)}")

    def route(item: Any) -> Any:
        value = make(item.v)
        return made(make_id(item.id), *(between or (value,) * (len(annotations) - 2)), value)

    route.__annotations__ = {"item": Thing, "return": made}
    profile.route()(route)
    return profile


def items_of(pairs: tuple[Pair, ...]) -> list[dict[str, Any]]:
    return [{"id": {"S": key}, "v": {"S": value}} for key, value in pairs]


def load(url: str, profile: Profile, *pairs: Pair, file: str = "f") -> FileReport:
    return load_lines(url, profile, [line_of(item) for item in items_of(pairs)], file)


def plan_of(profile: Profile, folder: Path, *pairs: Pair) -> Plan:
    return make_plan(profile, "x", [read_export(str(write_export(folder, [items_of(pairs)])), Storage())])


def table(url: str, sql: str) -> None:
    execute(url, f"{BOOKKEEPING}{sql}")


def rows(url: str) -> list[tuple[Any, ...]]:
    return query(url, "SELECT id::text, v::text FROM t ORDER BY 1, 2")


def works_or_is_refused(url: str, profile: Profile, *loads: tuple[Pair, ...]) -> None:
    """Load one after the other: the first may be refused before any work, and then all are; else none fails."""
    for number, pairs in enumerate(loads):
        try:
            report = load(url, profile, *pairs)
        except SchemaError:
            assert not number, "the first load was taken"
            assert query(url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]
            return
        assert report.loaded == len(pairs), report.quarantined_by_reason


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    need(InstalledPostgres.binaries(), "PostgreSQL", "postgresql")
    with InstalledPostgres(tmp_path_factory.mktemp("installed")) as server:
        yield server
        server.remove()


@pytest.fixture
def contrib_url(installed: EmbeddedPostgres) -> str:
    """An empty database of a server that has extensions."""
    name = f"cells_{next(numbers)}"
    execute(installed.url, f"CREATE DATABASE {name}")
    return installed.url.replace("/postgres?", f"/{name}?")


# -- what a type refuses is refused on each path ---------------------------------------------------------

CUT = [
    (str, "char(3)", "abc", "abcd"), (Fitted[str], "char(3)", "abc", "abcd"), (str, "varchar(3)", "abc", "abcd"),
    (Fitted[str], "varchar(3)", "abc", "abcd"), (Fitted[str], "bit(3)", "101", "1011"), (str, "bit(3)", "101", "1011"),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "column", "good", "long"), CUT)
def test_a_key_that_is_too_long_is_no_other_rows_key(
    database_url: str, tmp_path: Path, annotation: Any, column: str, good: str, long: str
) -> None:
    """A cast cuts it where an assignment refuses it: then its item would overwrite another's row."""
    table(database_url, f"CREATE TABLE t (id {column} PRIMARY KEY, v text)")
    profile = profile_of({"id": annotation, "v": str})
    plan = plan_of(profile, tmp_path, (good, "right"), (long, "wrong"))
    for _ in range(2):
        report = load(database_url, profile, (good, "right"), (long, "wrong"))
        assert (report.loaded, report.quarantined, report.collisions) == (1, 1, {})
        assert rows(database_url) == [(good, "right")]
        compared = verify(plan, profile, database_url, "run")
        assert (compared.table("t").same, compared.unaccounted + compared.faults("t")) == (1, 1)
        (file,) = dry_run(plan, profile, database_url, plan.files, LoadSettings(max_bad_share=1.0)).files
        assert file.report.quarantined == 1


@pytest.mark.parametrize(("annotation", "column", "good", "long"), CUT)
def test_a_value_that_is_too_long_is_not_the_one_that_a_cast_makes_of_it(
    database_url: str, tmp_path: Path, annotation: Any, column: str, good: str, long: str
) -> None:
    table(
        database_url,
        f"CREATE TABLE t (id text PRIMARY KEY, v {column}); INSERT INTO t VALUES ('k', '{good}')",
    )
    profile = profile_of({"id": str, "v": annotation})
    plan = plan_of(profile, tmp_path, ("k", long))
    report = load(database_url, profile, ("k", long))
    assert (report.loaded, report.quarantined) == (0, 1)
    compared = verify(plan, profile, database_url, "run")
    assert compared.table("t").same == 0
    assert compared.unaccounted + compared.faults("t") >= 1


def test_nan_is_a_number_of_a_scale_too(database_url: str) -> None:
    """numeric(10,2) holds NaN as it is."""
    table(database_url, "CREATE TABLE t (id text PRIMARY KEY, v numeric(10,2))")
    report = load(
        database_url, profile_of({"id": str, "v": Decimal}, Decimal), ("a", "NaN"), ("b", "Infinity")
    )
    assert list(report.quarantined_by_reason) == ["t: NumericValueOutOfRange (SQLSTATE 22003) column v"]
    assert rows(database_url) == [("a", "NaN")]


@pytest.mark.parametrize(("annotation", "column"), [(Decimal, "numeric"), (float, "float8")])
def test_a_key_that_is_no_number_holds_nobody_up(database_url: str, annotation: Any, column: str) -> None:
    table(database_url, f"CREATE TABLE t (id {column} PRIMARY KEY, v text)")
    profile = profile_of({"id": annotation, "v": str}, make_id=annotation)
    pairs = [("1", "x"), ("NaN", "y"), ("2", "z"), ("NaN", "a")]
    for some in (pairs, pairs[::-1]):
        report = load(database_url, profile, *some)
        assert report.conserved
        assert [row for row in rows(database_url) if row[0] != "NaN"] == [("1", "x"), ("2", "z")]


# -- equal is not the same, in a key, too ----------------------------------------------------------------


def test_a_key_that_is_spelled_otherwise_is_found(contrib_url: str, tmp_path: Path) -> None:
    table(contrib_url, "CREATE EXTENSION citext; CREATE TABLE t (id citext PRIMARY KEY, v text)")
    profile = profile_of({"id": str, "v": str})
    plan = plan_of(profile, tmp_path, ("abc", "x"), ("d", "y"))
    load(contrib_url, profile, ("abc", "x"), ("d", "y"))
    assert verify(plan, profile, contrib_url, "run", extra=True).table("t").same == 2
    execute(contrib_url, "UPDATE t SET id = 'ABC' WHERE id = 'abc'")
    for extra in (False, True):
        assert verify(plan, profile, contrib_url, "run", extra=extra).faults("t") >= 1


@pytest.mark.parametrize(
    ("annotation", "column", "make", "key", "other"),
    [
        (float, "float8", float, "0.0", "-0"),
        (Annotated[str, PgType("interval")], "interval", same, "1 mon", "30 days"),
        (Decimal, "numeric", Decimal, "1", None),
    ],
)
def test_a_key_of_another_image_is_found(
    database_url: str, tmp_path: Path, annotation: Any, column: str, make: Any, key: str, other: str | None
) -> None:
    table(database_url, f"CREATE TABLE t (id {column} PRIMARY KEY, v text)")
    profile = profile_of({"id": annotation, "v": str}, make_id=make)
    plan = plan_of(profile, tmp_path, (key, "x"))
    load(database_url, profile, (key, "x"))
    execute(database_url, f"UPDATE t SET id = '{other or '1.00'}'")
    assert bool(verify(plan, profile, database_url, "run", extra=True).faults("t")) == (other is not None)


@pytest.mark.parametrize("key", ["citext", "hstore", "ltree"])
def test_a_type_of_a_schema_that_is_not_searched(contrib_url: str, key: str) -> None:
    """Its operators are found only where they are named with their schema."""
    table(contrib_url, f"CREATE SCHEMA ext; CREATE EXTENSION {key} SCHEMA ext; CREATE TABLE t (id ext.{key} PRIMARY KEY, v text)")  # fmt: skip
    spelled = '"a"=>"1"' if key == "hstore" else "A1"
    profile = profile_of({"id": str if key == "citext" else Annotated[str, PgType(f"ext.{key}")], "v": str})
    works_or_is_refused(contrib_url, profile, ((spelled, "x"),), ((spelled, "x"),), ((spelled, "y"),))
    if key == "citext" and query(contrib_url, "SELECT 1 FROM migration.loaded_file"):
        report = load(contrib_url, profile, ("a1", "z"), file="g")
        assert (report.loaded, report.changed) == (1, 1)


# -- which of two rows stays does not depend on the order ------------------------------------------------


def test_a_column_named_like_an_alias_of_ours(database_url: str) -> None:
    """``s::text`` is the column s then, and not the row."""
    key = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"
    found = set()
    both = (key, "1"), (key.upper(), "2")
    for order in (both, both[::-1]):
        table(database_url, f"DROP TABLE IF EXISTS t; CREATE TABLE t (id uuid PRIMARY KEY, s text, v text); INSERT INTO t VALUES ('{key}')")  # fmt: skip
        profile = profile_of({"id": str, "s": str, "v": str}, between=("same",))
        load(database_url, profile, *order)
        found |= set(rows(database_url))
    assert len(found) == 1


def test_versions_that_are_rounded_to_one_do_not_leave_it_to_the_order(database_url: str) -> None:
    """The same version may stand for two items then: one rule decides, or it is refused."""
    profile = profile_of(
        {"id": str, "at": Fitted[datetime], "v": datetime}, datetime.fromisoformat, version="at"
    )
    early, late = (("a", f"2024-01-01T00:00:00.{part}+00:00") for part in (3, 4))
    found = set()
    for order in ((early, late), (late, early)):
        table(
            database_url,
            "DROP TABLE IF EXISTS t; CREATE TABLE t (id text PRIMARY KEY, at timestamptz(0), v timestamptz)",
        )
        try:
            for pair in order:
                load(database_url, profile, pair, file=pair[1])
        except SchemaError:
            return
        found |= set(rows(database_url))
    assert len(found) == 1


def test_a_merge_into_a_column_that_rounds_comes_to_rest(database_url: str, tmp_path: Path) -> None:
    table(database_url, "CREATE TABLE t (id text PRIMARY KEY, v numeric(10,2))")
    profile = profile_of({"id": str, "v": Annotated[Fitted[Decimal], Merge("least({old}, {new})")]}, Decimal)
    plan = plan_of(profile, tmp_path, ("a", "1.005"))
    try:
        load(database_url, profile, ("a", "1.005"))
    except SchemaError:
        return
    assert load(database_url, profile, ("a", "1.005")).changed == 0
    assert verify(plan, profile, database_url, "run").faults("t") == 0


# -- what a first load does not need, and a later one does -----------------------------------------------


@pytest.mark.parametrize("lacks", ["SELECT", "UPDATE", "TEMP", "quarantine"])
def test_a_role_that_lacks_a_privilege_is_told_before_any_work(database_url: str, lacks: str) -> None:
    role, name = f"poor_{next(numbers)}", database_url.partition("?")[0].rpartition("/")[2]
    granted = ", ".join({"SELECT", "INSERT", "UPDATE"} - {lacks})
    table(database_url, f"CREATE TABLE t (id text PRIMARY KEY, v text); CREATE ROLE {role} LOGIN; GRANT {granted} ON t TO {role}; "
          f"GRANT USAGE ON SCHEMA migration TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA migration TO {role}")  # fmt: skip
    if lacks == "TEMP":
        execute(database_url, f"REVOKE TEMP ON DATABASE {name} FROM PUBLIC")
    if lacks == "quarantine":
        execute(database_url, f"REVOKE ALL ON migration.quarantine FROM {role}")
    profile = profile_of({"id": str, "v": str})
    with pytest.raises(SchemaError) as told:
        load(database_url.replace("postgres@", f"{role}@"), profile, ("a", "x"))
    assert "\n" not in str(told.value)
    assert query(database_url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]


PUBLISHED = {
    "a row filter on another column": "CREATE TABLE t (id text PRIMARY KEY, v text); "
    "CREATE PUBLICATION p FOR TABLE t WHERE (v <> '')",
    "a list of columns without the key": "CREATE TABLE t (id text PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE t (v)",
    "partitions by their root": "CREATE TABLE t (id text NOT NULL UNIQUE, v text) PARTITION BY HASH (id); "
    "CREATE TABLE p PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0); ALTER TABLE t REPLICA IDENTITY FULL; "
    "CREATE PUBLICATION pu FOR TABLE t WITH (publish_via_partition_root = true)",
    "inserts alone": "CREATE TABLE t (id text NOT NULL UNIQUE, v text); CREATE PUBLICATION p FOR TABLE t WITH (publish = 'insert')",
}


@pytest.mark.parametrize("sql", PUBLISHED.values(), ids=PUBLISHED)
def test_a_publication_that_takes_an_insert_and_no_update(database_url: str, sql: str) -> None:
    table(database_url, sql)
    works_or_is_refused(
        database_url, profile_of({"id": str, "v": str}), (("a", "x"),), (("a", "y"), ("b", "z"))
    )


OTHERS = {
    "a child that inherits": "CREATE TABLE t (id text PRIMARY KEY, v text); CREATE TABLE c () INHERITS (t); "
    "INSERT INTO c VALUES ('a', 'old')",
    "an event trigger against new tables": "CREATE TABLE t (id text PRIMARY KEY, v text); "
    "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; "
    "CREATE EVENT TRIGGER e ON ddl_command_start WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION no()",
    "a domain elsewhere that is never null": "CREATE DOMAIN d AS text NOT NULL; CREATE TABLE t (id text PRIMARY KEY, v text, x d)",
}


@pytest.mark.parametrize("sql", OTHERS.values(), ids=OTHERS)
def test_other_tables_work_or_are_refused(database_url: str, sql: str) -> None:
    table(database_url, sql)
    works_or_is_refused(
        database_url, profile_of({"id": str, "v": str}), (("a", "x"),), (("a", "y"), ("b", "z"))
    )
    if query(database_url, "SELECT 1 FROM migration.loaded_file"):
        assert rows(database_url) == [("a", "y"), ("b", "z")]


def test_partitions_that_a_crash_would_empty_are_refused(database_url: str) -> None:
    table(database_url, "CREATE TABLE t (id text PRIMARY KEY, v text) PARTITION BY HASH (id); "
          "CREATE UNLOGGED TABLE p PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0)")  # fmt: skip
    with pytest.raises(SchemaError, match="unlogged"):
        load(database_url, profile_of({"id": str, "v": str}), ("a", "x"))


def test_a_unique_index_of_another_collation_than_the_column(database_url: str) -> None:
    """It calls keys equal that the column tells apart: no trigger is to blame."""
    table(database_url, "CREATE TABLE t (id text NOT NULL, v text)")
    try:
        execute(database_url, "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false); "
                "CREATE UNIQUE INDEX ON t (id COLLATE ci)")  # fmt: skip
    except psycopg2.errors.FeatureNotSupported:
        pytest.skip("this server is built without ICU")
    profile = profile_of({"id": str, "v": str})
    for _ in range(2):
        try:
            report = load(database_url, profile, ("a", "x"), ("A", "y"))
        except SchemaError:
            return
        assert "trigger" not in str(report.quarantined_by_reason)


def test_a_time_limit_of_the_server_for_transactions_is_not_ours(database_url: str, tmp_path: Path) -> None:
    """A dry run is one transaction, and so is a verification that looks for other rows."""
    if query(database_url, "SELECT 1 FROM pg_settings WHERE name = 'transaction_timeout'") == []:
        pytest.skip("new in PostgreSQL 17")
    table(database_url, "CREATE TABLE t (id text PRIMARY KEY, v text)")
    name = database_url.partition("?")[0].rpartition("/")[2]
    execute(database_url, f"ALTER DATABASE {name} SET transaction_timeout = '250ms'")
    profile = profile_of({"id": str, "v": str})
    plan = plan_of(profile, tmp_path, *((f"{n}", "x") for n in range(2_000)))
    small = LoadSettings(batch_items=10)
    assert dry_run(plan, profile, database_url, plan.files, small).table("t").count("missing") == 2_000
    found = verify(plan, profile, database_url, "run", extra=True, settings=small)
    assert found.table("t").count("missing") == 2_000
