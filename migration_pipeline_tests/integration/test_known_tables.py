"""What files of one run know of their tables is what a new look at the catalog finds, whatever was changed between two of them."""

from __future__ import annotations

import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from migration_pipeline import Item, Row
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.profile.row import Table, table_of
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.catalog import SchemaError
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings, transaction
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.known_tables import KnownTables
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import write_export


class Thing(Row, table="things", key="id"):
    id: str
    n: int | None
    v: str | None


class Landed(Row, table="things_landed", landing=True):
    id: str


TABLES: dict[type[Row], Table] = {each: table_of(each) for each in (Thing, Landed)}

THINGS = """
CREATE SCHEMA a; ALTER DATABASE {database} SET search_path = a, b, public;
CREATE TABLE a.things (id varchar(40) PRIMARY KEY, n bigint, v text COLLATE "C", more int, CONSTRAINT wide UNIQUE (id, more));
CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER asleep BEFORE INSERT ON a.things FOR EACH ROW EXECUTE FUNCTION same(); ALTER TABLE a.things DISABLE TRIGGER asleep;
CREATE RULE before AS ON DELETE TO a.things DO INSTEAD NOTHING; DROP RULE before ON a.things;
CREATE TABLE before () INHERITS (a.things); DROP TABLE before;
"""
"""It had a trigger, a rule and a child before: of another one PostgreSQL takes no note in the table's own row."""


@pytest.fixture
def url(database_url: str) -> str:
    ((database,),) = query(database_url, "SELECT quote_ident(current_database())")
    execute(database_url, THINGS.format(database=database))
    create_tables(database_url, TABLES.values())
    return database_url


def read(url: str, known: KnownTables) -> None:
    with transaction(url) as cursor:
        known.read(cursor)


def refusal(url: str, known: KnownTables) -> str:
    """Read the tables; gives what is told of them if they are refused."""
    try:
        read(url, known)
    except SchemaError as error:
        return str(error)
    return ""


def in_words(known: KnownTables) -> str:
    """All that is known, but for the addresses of functions."""
    return re.sub(" at 0x[0-9a-f]+", "", f"{known.targets} {known.batches._tables}")


PARTITIONED = (
    "DROP TABLE things; CREATE TABLE a.things (id text PRIMARY KEY, n bigint, v text) PARTITION BY HASH (id)"
)

CHANGES = [
    "ALTER TABLE things ALTER n TYPE integer",
    "ALTER TABLE things ALTER n TYPE date USING NULL",
    "ALTER TABLE things ALTER n SET NOT NULL",
    "ALTER TABLE things ALTER n SET NOT NULL, ALTER n ADD GENERATED ALWAYS AS IDENTITY",
    "ALTER TABLE things DROP n; ALTER TABLE things ADD n bigint",
    "ALTER TABLE things DROP n; ALTER TABLE things ADD n bigint GENERATED ALWAYS AS (7) STORED",
    "ALTER TABLE things RENAME n TO m; ALTER TABLE things RENAME more TO n; ALTER TABLE things RENAME m TO more",
    "ALTER TABLE things ALTER id TYPE varchar(39)",
    'ALTER TABLE things ALTER id TYPE text COLLATE "POSIX"',
    "ALTER TABLE things ALTER v TYPE text COLLATE pg_catalog.default",
    "ALTER TABLE things ALTER more SET NOT NULL",
    "ALTER TABLE things ALTER more SET DEFAULT 7; ALTER TABLE things ALTER more SET NOT NULL",
    "ALTER TABLE things ADD yet_more text NOT NULL",
    "ALTER TABLE things DROP v",
    "ALTER TABLE things DROP CONSTRAINT wide",
    "ALTER TABLE things DROP CONSTRAINT things_pkey",
    "ALTER TABLE things DROP CONSTRAINT things_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
    "CREATE UNIQUE INDEX ON things (id) WHERE n > 0",
    "ALTER TABLE things ENABLE TRIGGER asleep",
    "ALTER TABLE things ENABLE ALWAYS TRIGGER asleep",
    "CREATE TRIGGER awake AFTER UPDATE ON things FOR EACH ROW EXECUTE FUNCTION same()",
    "DROP TRIGGER asleep ON things",
    "CREATE RULE r AS ON DELETE TO things DO INSTEAD NOTHING",
    "CREATE TABLE child () INHERITS (things)",
    "ALTER TABLE things SET UNLOGGED",
    "ALTER TABLE things RENAME TO others",
    "ALTER TABLE things RENAME TO others; CREATE TABLE a.things (LIKE others INCLUDING ALL)",
    "ALTER TABLE things RENAME TO others; CREATE VIEW a.things AS SELECT * FROM others",
    "ALTER TABLE things SET SCHEMA public",
    "ALTER SCHEMA a RENAME TO b",
    PARTITIONED,
    "ALTER TABLE landing.things_landed ALTER id TYPE varchar(5)",
    "DROP TABLE landing.things_landed",
]


@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change_the_tables_are_what_a_new_look_finds(url: str, change: str) -> None:
    known, anew = KnownTables(TABLES), KnownTables(TABLES)
    read(url, known)
    execute(url, change)
    refused = [refusal(url, anew), *(refusal(url, known) for _ in range(2))]
    assert len(set(refused)) == 1, "each file tells it, not only the first one"
    if not refused[0]:
        assert in_words(known) == in_words(anew)
    assert known.batches._tables or "TRIGGER" in change or "PARTITION" in change


@pytest.mark.parametrize(
    "nothing",
    [
        "SELECT 1",
        "VACUUM ANALYZE",
        "VACUUM FREEZE pg_class",
        "VACUUM FREEZE pg_attribute",
        "INSERT INTO things VALUES ('x')",
    ],
)
def test_tables_that_nobody_has_changed_are_not_read_again(url: str, nothing: str) -> None:
    execute(url, "VACUUM ANALYZE things")  # it finds out that there is no child any more
    known = KnownTables(TABLES)
    read(url, known)
    targets = known.targets
    execute(url, nothing)
    read(url, known)
    assert known.targets is targets


@pytest.mark.parametrize("column", ["ADD more_of_it number", "ALTER n TYPE number", "ADD others number[]"])
def test_a_table_with_a_column_of_somebody_s_type_is_read_for_each_file(url: str, column: str) -> None:
    execute(url, f"CREATE DOMAIN number AS bigint; ALTER TABLE things {column}")
    known, anew = KnownTables(TABLES), KnownTables(TABLES)
    assert refusal(url, known) == ""
    targets = known.targets
    if "[]" not in column:  # PostgreSQL refuses it of a domain that is in an array
        execute(url, "ALTER DOMAIN number SET NOT NULL")
    told = refusal(url, known)
    assert told == refusal(url, anew)
    assert told or known.targets is not targets
    assert bool(told) is ("[]" not in column)


def test_a_partitioned_table_is_read_for_each_file(url: str) -> None:
    """Whoever adds a partition leaves what the catalog has of the table above it alone."""
    execute(url, PARTITIONED)
    execute(url, "CREATE TABLE one PARTITION OF things FOR VALUES WITH (MODULUS 2, REMAINDER 0)")
    known = KnownTables(TABLES)
    assert refusal(url, known) == ""
    execute(url, "CREATE UNLOGGED TABLE other PARTITION OF things FOR VALUES WITH (MODULUS 2, REMAINDER 1)")
    assert "unlogged" in refusal(url, known)


def test_files_of_a_run_read_the_catalog_once_though_each_lands_a_slice(
    shop_database_url: str, shop_export: Path
) -> None:
    profile = load_profile("shop")
    plan = make_plan(profile, "shop", [read_export(str(shop_export), Storage())])
    log, found = logging.getLogger("test"), []
    with Loader(plan, profile, shop_database_url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        for file in plan.files:
            loader.load(file, log, lambda _: None, log.warning)
            found.append(loader._known.targets)
    assert len(found) > 3
    # The first slice changes what the catalog says of a landing table: that it has children. No other one does.
    assert len({id(targets) for targets in found}) == 2


class TimedItem(Item):
    k: str
    at: datetime
    zone: str | None


class Timed(Row, table="timed", key="k"):
    k: str
    at: datetime
    which: str | None


def test_rows_are_spelled_alike_whatever_files_the_run_had_before(database_url: str, tmp_path: Path) -> None:
    """A time in a named zone has the times after it spelled in UTC; of two rows of one key the spelling decides."""
    profile = Profile("timed")

    @profile.route()
    def timed(item: TimedItem) -> Timed:
        at = item.at.astimezone(ZoneInfo("Europe/Berlin")) if item.zone == "named" else item.at
        return Timed(item.k, at, item.zone)

    def item(k: str, at: str, zone: str) -> dict[str, Any]:
        return {"k": {"S": k}, "at": {"S": at}, "zone": {"S": zone}}

    items: list[list[Any]] = [
        [item("before", "2024-01-01T00:00:00Z", "named")],
        [item("twin", "2024-01-02T00:30:00+02:00", "x"), item("twin", "2024-01-01T23:00:00Z", "y")],
    ]
    export = read_export(str(write_export(tmp_path, items)), Storage())
    plan, log, found = make_plan(profile, "timed", [export]), logging.getLogger("test"), []
    for runs in ([plan.files], [[file] for file in plan.files], [plan.files[::-1]]):
        execute(database_url, "DROP TABLE IF EXISTS timed; DROP SCHEMA IF EXISTS migration CASCADE")
        create_tables(database_url, profile.all_tables)
        for files in runs:
            with Loader(
                plan, profile, database_url, "run", LoadSettings(), DatabaseSettings(), None
            ) as loader:
                for file in files:
                    loader.load(file, log, lambda _: None, log.warning)
        found.append(query(database_url, "SELECT k, at, which FROM timed ORDER BY k"))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 2


class KeyedItem(Item):
    k: str
    v: int


class Keyed(Row, table="keyed", key="k"):
    k: str
    v: int


def test_what_is_not_looked_at_between_two_files_is_refused_by_the_server(
    database_url: str, tmp_path: Path
) -> None:
    """A publication of updates that the table could not give: a new look names it; PostgreSQL takes no row, and says why."""
    create_tables(database_url, [])
    execute(database_url, "CREATE TABLE keyed (k text NOT NULL UNIQUE, v bigint NOT NULL)")
    profile = Profile("keyed")

    @profile.route()
    def keyed(item: KeyedItem) -> Keyed:
        return Keyed(item.k, item.v)

    items: list[list[Any]] = [[{"k": {"S": "a"}, "v": {"N": v}}] for v in ("1", "2")]
    export = read_export(str(write_export(tmp_path, items)), Storage())
    plan, log = make_plan(profile, "keyed", [export]), logging.getLogger("test")
    with Loader(plan, profile, database_url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        loader.load(plan.files[0], log, lambda _: None, log.warning)
        execute(database_url, "CREATE PUBLICATION everything FOR ALL TABLES")
        with pytest.raises(DatabaseError, match="55000"):
            loader.load(plan.files[1], log, lambda _: None, log.warning)
    assert query(database_url, "SELECT v FROM keyed") == [(1,)]
