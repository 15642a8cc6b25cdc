"""A table that is changed while a file is loaded: what is written rests on what it was, so it is told, or the load goes on in another way."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from migration_pipeline import Integer, Row
from migration_pipeline.engine.batch import TooManyBad
from migration_pipeline.profile.row import table_of
from migration_pipeline.targets.catalog import SchemaError
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.copy_binary import FEWEST
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_copy import write


class Reading(Row, table="readings", key="id"):
    id: str
    n: int
    whole: Integer
    v: Decimal
    document: Any


def readings(prefix: str, count: int) -> dict[type[Row], list[Any]]:
    return {Reading: [Reading(f"{prefix}{n}", n, n, Decimal("1.5"), {"a": n}) for n in range(count)]}


READINGS = """
CREATE TABLE readings (id text PRIMARY KEY, n bigint NOT NULL, whole integer NOT NULL, v numeric NOT NULL, document jsonb)
"""
DOUBLE = """
CREATE FUNCTION doubled() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.v := NEW.v * 2; RETURN NEW; END';
CREATE TRIGGER doubled BEFORE INSERT OR UPDATE ON readings FOR EACH ROW EXECUTE FUNCTION doubled()
"""


@pytest.mark.parametrize("rows", [10, FEWEST])
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("ALTER TABLE readings ALTER n TYPE double precision", "column 'n' or its type"),
        (
            "ALTER TABLE readings ALTER n TYPE timestamptz USING 'epoch'::timestamptz",
            "column 'n' or its type",
        ),
        ("ALTER TABLE readings ALTER whole TYPE bigint", "column 'whole' or its type"),
        ("ALTER TABLE readings ALTER document TYPE text", "column 'document' or its type"),
        ("ALTER TABLE readings ALTER v TYPE numeric(12, 0)", "column 'v' or its type"),
        ("ALTER TABLE readings DROP CONSTRAINT readings_pkey", "it has lost a unique index (column 1)"),
        (
            "ALTER TABLE readings RENAME v TO w; ALTER TABLE readings ADD v numeric NOT NULL DEFAULT 0",
            "column 'v' or its type",
        ),
        (f"ALTER TABLE readings RENAME TO before; {READINGS}", "it is another table"),
    ],
    ids=["double", "time", "longer", "text", "rounded", "no key", "renamed", "another table"],
)
def test_a_table_that_is_changed_while_a_file_is_loaded_is_told(
    database_url: str, change: str, part: str, rows: int
) -> None:
    execute(database_url, READINGS)
    create_tables(database_url, [])
    identity, hasty = FileIdentity("p", "1", "e", "f", "r"), DatabaseSettings(retry_seconds=0)
    with PostgresTarget(database_url, {Reading: table_of(Reading)}, identity, hasty) as target:
        write(target, readings("a", rows))
        execute(database_url, change)
        with pytest.raises(SchemaError) as caught:
            write(target, readings("b", rows))
    assert str(caught.value) == (
        f"table readings was changed while its rows were written: {part}; run it again"
    )
    assert query(database_url, "SELECT count(*) FROM readings WHERE id LIKE 'b%'") == [(0,)]


@pytest.mark.parametrize("rows", [10, FEWEST])
@pytest.mark.parametrize("place", ["readings", "readings_0"])
def test_rows_that_a_trigger_changes_are_told_though_it_came_while_the_file_was_loaded(
    database_url: str, place: str, rows: int
) -> None:
    execute(
        database_url,
        f"{READINGS.strip()} PARTITION BY HASH (id); "
        "CREATE TABLE readings_0 PARTITION OF readings FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
    )
    create_tables(database_url, [])
    with PostgresTarget(
        database_url, {Reading: table_of(Reading)}, FileIdentity("p", "1", "e", "f", "r")
    ) as target:
        write(target, readings("a", rows))
        execute(database_url, DOUBLE.replace("ON readings", f"ON {place}"))
        with pytest.raises(TooManyBad) as caught:
            write(target, readings("b", rows))
        assert {bad.reason for bad in caught.value.bad} == {
            "a trigger of the table changed or dropped the row"
        }
        execute(database_url, f"DROP TRIGGER doubled ON {place}")
        write(target, readings("c", rows))
        execute(
            database_url,
            DOUBLE.replace("doubled", "same").replace("* 2", "* 1").replace("ON readings", f"ON {place}"),
        )
        write(target, readings("d", rows))
    found = query(
        database_url, "SELECT left(id, 1), count(*), min(v), max(v) FROM readings GROUP BY 1 ORDER BY 1"
    )
    assert found == [(each, rows, Decimal("1.5"), Decimal("1.5")) for each in "acd"]


def test_a_column_that_is_added_while_a_file_is_loaded_is_no_matter(database_url: str) -> None:
    execute(database_url, READINGS)
    create_tables(database_url, [])
    with PostgresTarget(
        database_url, {Reading: table_of(Reading)}, FileIdentity("p", "1", "e", "f", "r")
    ) as target:
        write(target, readings("a", 1))
        execute(database_url, "ALTER TABLE readings ADD noted text; CREATE UNIQUE INDEX ON readings (id, n)")
        write(target, readings("b", 1))
    assert query(database_url, "SELECT id FROM readings ORDER BY id") == [("a0",), ("b0",)]
