"""A disk that is really full: the tables lie on a file system of a few megabytes, which root alone can make."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_load import load_all
from migration_pipeline_tests.oracle import actual, expected


@pytest.fixture
def small_disk(postgres: EmbeddedPostgres) -> Iterator[Path]:
    """An empty file system of 8 MB that belongs to the server's user."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only Linux's root can mount a small file system")
    folder = Path(tempfile.mkdtemp(prefix="small-disk-", dir="/var/tmp"))  # the server's user has to reach it
    owner = postgres.data_dir.stat()
    options = f"size=8m,mode=0700,uid={owner.st_uid},gid={owner.st_gid}"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    try:
        if mounted.returncode:
            pytest.skip(f"this root may not mount: {mounted.stderr.strip()}")
        yield folder
    finally:
        subprocess.run(["umount", folder], capture_output=True)
        folder.rmdir()


def test_a_full_disk_fails_the_file_and_a_rerun_ends_as_if_nothing_had_happened(
    postgres: EmbeddedPostgres, small_disk: Path, tmp_path: Path
) -> None:
    export = write_sample(tmp_path, items=160_000, files=2, seed=5)
    execute(postgres.url, f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    url = postgres.url.replace("/postgres?", "/on_a_small_disk?")
    try:
        execute(postgres.url, "CREATE DATABASE on_a_small_disk TABLESPACE small")
        execute(url, ddl(load_profile("shop").tables.values()))
        with pytest.raises(DatabaseError, match=r"SQLSTATE 53100.*make room, then rerun the file"):
            load_all(url, read_export(str(export), Storage()))
        assert query(url, "SELECT count(*) FROM migration.quarantine") == [(0,)]
        assert len(query(url, "SELECT file FROM migration.loaded_file")) < 2
        subprocess.run(["mount", "-o", "remount,size=256m", small_disk], check=True)
        load_all(url, read_export(str(export), Storage()))
        with contextlib.closing(psycopg2.connect(url)) as connection:
            assert actual(connection) == expected(export)[0]
    finally:
        execute(postgres.url, "DROP DATABASE IF EXISTS on_a_small_disk WITH (FORCE)")
        execute(postgres.url, "DROP TABLESPACE small")
