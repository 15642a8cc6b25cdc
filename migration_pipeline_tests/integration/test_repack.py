"""Loads go on while pg_repack makes their table anew: it adds a trigger, copies all rows, and puts the copy in the table's place."""

from __future__ import annotations

import os
import subprocess
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from migration_pipeline import Item, Profile, Row
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import line_of
from migration_pipeline_tests.integration.test_quarantine import load_lines
from migration_pipeline_tests.servers import InstalledPostgres, free_port


class ThingItem(Item):
    id: str
    price: Decimal


class Thing(Row, table="things", key="id"):
    id: str
    price: Decimal


profile = Profile("repacked")


@profile.route()
def thing(item: ThingItem) -> Thing:
    return Thing(item.id, item.price)


FILES, ITEMS = 12, 4_000


def lines_of(file: int) -> list[bytes]:
    return [line_of({"id": {"S": f"{n}-{file}"}, "price": {"N": f"{n}.5"}}) for n in range(ITEMS)]


def test_files_load_while_their_table_is_repacked(tmp_path: Path) -> None:
    binaries = InstalledPostgres.binaries()
    if binaries is None or not (binaries / "pg_repack").exists():
        pytest.skip(
            "the operating system has no pg_repack (Debian: postgresql-15-repack, by its server's version)"
        )
    port = free_port()
    with InstalledPostgres(tmp_path, {"listen_addresses": "127.0.0.1", "port": str(port)}):
        url = f"postgresql://postgres:unused@127.0.0.1:{port}/postgres"
        create_tables(url, profile.all_tables)
        execute(url, "CREATE EXTENSION pg_repack")
        for file in range(3):
            load_lines(url, profile, lines_of(file), f"file{file}", batch_items=250)
        over, repacked = threading.Event(), list[int]()

        def repack() -> None:
            command = [
                str(binaries / "pg_repack"),
                "-h",
                "127.0.0.1",
                "-p",
                str(port),
                "-U",
                "postgres",
                "-d",
                "postgres",
                "-t",
                "things",
            ]
            while not over.is_set():
                done = subprocess.run(
                    command, capture_output=True, env=os.environ | {"PGPASSWORD": "unused"}, check=False
                )
                repacked.append(done.returncode)

        thread = threading.Thread(target=repack)
        thread.start()
        try:
            for file in range(FILES):
                report = load_lines(url, profile, lines_of(file), f"file{file}", batch_items=250)
                assert (report.loaded, report.quarantined) == (ITEMS, 0)
        finally:
            over.set()
            thread.join()
        assert repacked.count(0) > 1
        assert query(url, "SELECT count(*), count(DISTINCT id), sum(price) FROM things") == [
            (FILES * ITEMS, FILES * ITEMS, FILES * sum(Decimal(f"{n}.5") for n in range(ITEMS)))
        ]
