"""Several tables are read from the catalog at once, and each is told what is its own."""

from __future__ import annotations

import pytest

from migration_pipeline import Row
from migration_pipeline.profile.row import table_of
from migration_pipeline.targets.catalog import SchemaError, TargetTable
from migration_pipeline.targets.connection import transaction
from migration_pipeline.targets.ddl import create_tables, read_targets
from migration_pipeline_tests.conftest import execute


class Quoted(Row, table='We"ird', key="k"):
    k: str
    v: int


class Capital(Row, table="its%s schema.CAPITAL", key=("b", "a")):
    a: str
    b: str


class Parts(Row, table="parts", key="k"):
    k: int
    v: str | None


class Landed(Row, table="events", landing=True):
    v: int


CLASSES: list[type[Row]] = [Quoted, Capital, Parts, Landed]

PARTS = """
DROP TABLE parts;
CREATE TABLE parts (k numeric PRIMARY KEY, v text) PARTITION BY RANGE (k);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (k);
CREATE TABLE parts_2 PARTITION OF parts_1 FOR VALUES FROM (0) TO (5);
CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'
"""


@pytest.fixture
def url(database_url: str) -> str:
    create_tables(database_url, map(table_of, CLASSES))
    execute(database_url, PARTS)
    return database_url


def read(url: str) -> dict[type[Row], TargetTable]:
    with transaction(url) as cursor:
        return read_targets(cursor, {row_class: table_of(row_class) for row_class in CLASSES})


def test_each_table_has_its_own_columns_keys_and_schema(url: str) -> None:
    found = read(url)
    assert [(target.schema, target.arbiter) for target in found.values()] == [
        ("public", True), ("its%s schema", True), ("public", True), ("landing", False)
    ]  # fmt: skip
    assert [[fit.actual.type for fit in target.fits] for target in found.values()] == [
        ["text", "bigint"], ["text", "text"], ["numeric", "text"], ["bigint"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("table", "row_class"),
    [('"We""ird"', Quoted), ('"its%s schema"."CAPITAL"', Capital), ("parts_2", Parts)],
)
def test_a_trigger_is_that_of_one_table_alone_and_of_the_one_above_a_partition(
    url: str, table: str, row_class: type[Row]
) -> None:
    assert not any(target.triggers for target in read(url).values())
    execute(url, f"CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION same()")
    assert [each for each, target in read(url).items() if target.triggers] == [row_class]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ('DROP TABLE "its%s schema"."CAPITAL"', "table its%s schema.CAPITAL does not exist"),
        ("ALTER TABLE parts_2 SET UNLOGGED", "table parts is unlogged, or one of its partitions is"),
        ('ALTER TABLE "We""ird" DROP v', "table We\"ird has no column 'v'"),
        ('ALTER TABLE "We""ird" DROP CONSTRAINT "We""ird_pkey"', 'table We"ird: no primary key'),
    ],
)
def test_the_table_that_does_not_fit_is_named_among_others(url: str, change: str, told: str) -> None:
    execute(url, change)
    with pytest.raises(SchemaError, match=f"^{told}"):
        read(url)
