"""What tests share: one PostgreSQL for the session, a database for each test that asks, sample exports."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
import signal
import sysconfig
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from hypothesis import settings

from migration_pipeline import accelerator
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.settings import ACCELERATOR
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.replica import Replica

# A test says whether something is right, and not how long that took: the machine may be busy.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

# Tests interrupt what they start. A shell has its background jobs ignore that, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` has its reasons, which are none of the tests'

_numbers = itertools.count(1)


def memory_kept(work: Callable[[], object], times: int, bound: int) -> int:
    """Bytes that doing something some times leaves behind, once it is less than `bound`: caches stop growing, and a leak does not."""
    work()
    kept = bound
    tracemalloc.start()
    try:
        for _ in range(12):
            gc.collect()
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(times):
                work()
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0] - before
            if kept < bound:
                break
    finally:
        tracemalloc.stop()
    return kept


def accelerator_is_to_be_there() -> bool:
    """Whether tests of the extensions run: not where they are off, nor where no compiler, or none of Python's headers, could have built them."""
    if accelerator.described().startswith("accelerator off"):
        return False
    headers = Path(sysconfig.get_path("include"), "Python.h").exists()
    return accelerator.described() == "accelerated" or (headers and shutil.which("cc") is not None)


@pytest.fixture(autouse=True)
def _no_settings_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep the developer's own environment out of the tests, and the tests out of it; all may run with one accelerator."""
    for name in list(os.environ):
        if name.startswith(("MIGRATION_", "DAGSTER_", "AWS_", "PG")) and name != ACCELERATOR:
            monkeypatch.delenv(name)
    monkeypatch.setenv("MIGRATION_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path_factory.mktemp("postgres"))
    server.start()
    yield server
    server.remove()


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> str:
    """An empty database of its own."""
    name = f"test_{next(_numbers)}"
    execute(postgres.url, f"CREATE DATABASE {name}")
    return postgres.url.replace("/postgres?", f"/{name}?")


@pytest.fixture
def shop_database_url(database_url: str) -> str:
    """A database with the shop's tables, empty."""
    execute(database_url, ddl(load_profile("shop").all_tables))
    return database_url


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server that a `replica` follows."""
    server = EmbeddedPostgres(tmp_path_factory.mktemp("primary"), {"fsync": "off"})
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="module")
def replica(
    primary: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmbeddedPostgres]:
    server = Replica(tmp_path_factory.mktemp("replica"), primary)
    server.start()
    yield server
    server.remove()


def execute(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        connection.cursor().execute(statement)
    finally:
        connection.close()


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = psycopg2.connect(url)
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())
    finally:
        connection.close()


@pytest.fixture(scope="session")
def shop_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample of 6,000 items in 4 files, the last empty. Read only: copy it to change it."""
    return write_sample(tmp_path_factory.mktemp("export"), items=6_000, files=4, seed=7)
