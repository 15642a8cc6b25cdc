"""The laws of a load, on a real PostgreSQL: whatever the order, the batches, the workers and the repetitions."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migration_pipeline import Item, Profile, Row, prefix
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.conftest import execute

laws = Profile("laws")


class Thing(Item):
    PK: str
    version: int
    text: str


class One(Row, table="ones", key="id"):
    id: str
    text: str


class Latest(Row, table="latest", key="kind", version="version"):
    kind: str
    version: int
    text: str


@laws.route(PK=prefix("T#"))
def thing(item: Thing) -> list[One | Latest]:
    if item.text == "raise":
        raise ValueError(item.text)
    kind = item.PK.rpartition("#")[2]
    return [One(item.PK, item.text), Latest(kind[-1], item.version, item.text)]


transform = Transform(laws, dynamodb_json)


class Lines:
    bytes_read, md5 = 0, "md5"

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[list[bytes]]:
        yield self.lines

    def verify(self) -> None:
        pass


TEXTS = st.sampled_from(["fine", "fine too", "refuse", "raise", "a\0b", "ünï", 'quote" and \\', "nl\n"])
FILES = st.lists(st.lists(TEXTS, max_size=8), min_size=1, max_size=4)


def lines_of(files: list[list[str]]) -> list[list[bytes]]:
    """Items with keys of their own; versions are unique, too, as the law of versions demands."""
    number = iter(range(10**6))
    made = []
    for texts in files:
        lines = []
        for text in texts:
            n = next(number)
            item = {"PK": {"S": f"T#{n}"}, "version": {"N": str(n * 7919 % 1009)}, "text": {"S": text}}
            lines.append(json.dumps({"Item": item}).encode() if n % 11 != 10 else b"{broken")
        made.append(lines)
    return made


@pytest.fixture(scope="module")
def url(postgres: Any) -> str:
    execute(postgres.url, "CREATE DATABASE laws")
    made: str = postgres.url.replace("/postgres?", "/laws?")
    execute(made, ddl(laws.tables.values()))
    execute(made, "ALTER TABLE ones ADD CHECK (text <> 'refuse')")
    return made


def load(url: str, number: int, lines: list[bytes], batch_items: int) -> FileReport:
    identity = FileIdentity("laws", "1", "export", f"f{number}", "run")
    with PostgresTarget(url, laws.tables, identity) as target:
        chosen = LoadSettings(batch_items=batch_items, max_bad_share=1.0)
        return FileLoad(f"f{number}", len(lines), Lines(lines), transform, target, chosen).run()


def state(url: str) -> list[Any]:
    """Everything that must not depend on how the files came."""
    connection = psycopg2.connect(url)
    try:
        cursor = connection.cursor()
        found = []
        for select in (
            "SELECT * FROM ones ORDER BY id",
            "SELECT * FROM latest ORDER BY kind",
            "SELECT file, line, raw::text, table_name, sqlstate, reason FROM migration.quarantine ORDER BY file, line",
            "SELECT file, items, loaded, skipped, quarantined, nul FROM migration.loaded_file ORDER BY file",
        ):
            cursor.execute(select)
            found.append(cursor.fetchall())
        return found
    finally:
        connection.close()


EMPTY = "TRUNCATE ones, latest, migration.loaded_file, migration.quarantine, migration.collision"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    FILES,
    st.randoms(use_true_random=False),
    st.integers(min_value=1, max_value=9),
    st.integers(min_value=1, max_value=3),
    st.integers(min_value=1, max_value=3),
)
def test_order_batches_workers_and_repetition_never_change_the_result(
    url: str, files: list[list[str]], chance: random.Random, batch_items: int, workers: int, copies: int
) -> None:
    lines = lines_of(files)
    execute(url, EMPTY)
    reports = [load(url, number, some, 1000) for number, some in enumerate(lines)]
    assert all(report.conserved for report in reports)
    texts = [text for some in files for text in some]
    bad = [text in ("refuse", "raise", "a\0b") or n % 11 == 10 for n, text in enumerate(texts)]
    assert sum(report.quarantined for report in reports) == sum(bad)
    once = state(url)
    execute(url, EMPTY)
    work = list(range(len(lines))) * copies
    chance.shuffle(work)
    errors: list[BaseException] = []

    def some(mine: list[int]) -> None:
        for number in mine:
            try:
                load(url, number, lines[number], batch_items)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=some, args=(work[n::workers],)) for n in range(workers)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not errors, errors
    assert state(url) == once
