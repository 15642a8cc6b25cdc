"""Where faults are injected into loads: a PostgreSQL to maltreat, a proxy in front of it, and one oracle.

A case loads an export of the shop while a fault strikes, takes the next step that the documentation names
(load the files again that have no receipt), and holds the database against what a faultless load makes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, urlsplit

import boto3
import msgspec
import psycopg2

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources import dynamodb_json, resumable, storage
from migration_pipeline.sources.export import Export, ExportFile, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets import faults, session
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.chaos.proxy import Proxy
from migration_pipeline_tests.chaos.s3_faults import FaultyS3
from migration_pipeline_tests.oracle import SELECTS, actual, data_lines, expected
from migration_pipeline_tests.s3 import s3_server

ITEMS, FILES, BAD = 2_400, 3, 24
PATIENCE = DatabaseSettings(retry_seconds=60, lock_timeout_seconds=0.3, statement_timeout_seconds=2)

SHORT = (
    (faults, "FIRST_WAIT_SECONDS", 0.02),
    (faults, "LONG_FIRST_WAIT_SECONDS", 0.1),
    (faults, "LONGEST_WAIT_SECONDS", 0.5),
    (session, "STALLED_SECONDS", 0.5),
    (session, "WATCH_SECONDS", 0.1),
    (resumable, "WAIT_SECONDS", (0.01,) * 5),
    (storage, "READ_SECONDS", 1.0),
)
"""Module, constant, and its value here."""

BUCKET = "exports-to-maltreat"  # moto keeps one state a process, whoever starts a server of it

GRANTS = """
GRANT TEMPORARY ON DATABASE {database} TO loader;
GRANT SELECT, INSERT, UPDATE ON customers, orders, order_lines, customer_activity TO loader;
GRANT USAGE ON SCHEMA migration TO loader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA migration TO loader;
ALTER SCHEMA landing OWNER TO loader;
ALTER TABLE landing.shop_events OWNER TO loader;
"""
"""All that a load of full exports needs, as docs/security.md has it."""

GRANTS_FOR_WINDOWS = "GRANT DELETE ON customers, orders, order_lines, customer_activity TO loader;"


class Lab:
    """A PostgreSQL server of its own, and sample exports with what they must become."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = EmbeddedPostgres(
            folder, {"deadlock_timeout": "50ms", "max_connections": "40", "wal_writer_delay": "10s"}
        )
        self._numbers = iter(range(10**9))
        self._lock = threading.Lock()
        self.bucket_made = False

    def __enter__(self) -> Lab:
        with contextlib.ExitStack() as ends:
            # Waits are for people's databases and networks; here somebody waits for the tests.
            for module, name, value in SHORT:
                ends.enter_context(mock.patch.object(module, name, value))
            ends.callback(self.server.remove)
            self.server.start()
            self.execute("CREATE ROLE loader LOGIN")
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    @property
    def socket(self) -> str:
        """The path of the server's socket."""
        query = parse_qs(urlsplit(self.server.url).query)
        return f"{query['host'][0]}/.s.PGSQL.{query['port'][0]}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run a statement as superuser."""
        connection = psycopg2.connect(self.server.url.replace("/postgres?", f"/{database}?"))
        connection.autocommit = True
        try:
            cursor = connection.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def database(self) -> str:
        """Make a database with the shop's tables, empty."""
        with self._lock:
            name = f"case_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        self.execute(ddl(load_profile("shop").all_tables), name)
        self.execute(GRANTS.format(database=name) + GRANTS_FOR_WINDOWS, name)
        return name

    @functools.cached_property
    def s3(self) -> FaultyS3:
        """An S3 server behind one that answers wrongly on demand."""
        behind = self._ends.enter_context(s3_server())["AWS_ENDPOINT_URL_S3"]
        faulty: FaultyS3 = self._ends.enter_context(FaultyS3(behind))
        return faulty

    @functools.cache  # noqa: B019  # a lab lives as long as its process
    def export(self, seed: int, bad: int) -> Sample:
        """Write a sample export, and compute what it must become."""
        folder = self.folder / f"export-{seed}-{bad}"
        export = read_export(
            str(write_sample(folder, items=ITEMS, files=FILES, seed=seed, bad=bad)), Storage()
        )
        places = frozenset(_places(folder)) if bad else frozenset()
        rows, _ = expected(Path(export.uri), leave_out=places)
        return Sample(export, places, rows)


@dataclass(frozen=True)
class Sample:
    """An export, the places of its bad items, and the rows that the others must become."""

    export: Export
    bad: frozenset[tuple[str, int]]
    rows: dict[str, list[tuple[Any, ...]]]


def _hashable(value: Any) -> Any:
    """Freeze a row, so that equal ones can be counted."""
    if isinstance(value, dict):
        return frozenset((name, _hashable(member)) for name, member in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value


def _places(folder: Path) -> Iterator[tuple[str, int]]:
    for line in (folder / "bad-items.jsonl").read_text().splitlines():
        bad = json.loads(line)
        yield bad["file"], bad["line"]


@dataclass
class Case:
    """One load under a fault; all that is random in it comes from `chance`."""

    lab: Lab
    seed: int
    bad: int = 0
    profile: Profile = field(default_factory=lambda: load_profile("shop"))

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.sample = self.lab.export(self.seed % 3, self.bad)
        self.files = list(self.sample.export.files)
        self.chance.shuffle(self.files)
        self.database = self.lab.database()
        self.batch_items = self.chance.choice([20, 50, 150])
        self.settings = PATIENCE
        self.told: list[str] = []
        self._ends = contextlib.ExitStack()

    def url(self, proxy: Proxy | None = None) -> str:
        """The database's URL for the least-privileged role, directly or through a proxy."""
        if proxy:
            return f"postgresql://loader@127.0.0.1:{proxy.port}/{self.database}?sslmode=disable&gssencmode=disable"
        return self.lab.server.url.replace("postgres@/postgres?", f"loader@/{self.database}?")

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement as superuser in the case's database."""
        return self.lab.execute(statement, self.database)

    @property
    def groups(self) -> list[list[ExportFile]]:
        """The files in groups; those of one may be loaded in any order, once the groups before are loaded."""
        return [self.files]

    def load(self, url: str, file: ExportFile) -> FileReport:
        """Load one file."""
        identity = FileIdentity("shop", self.profile.version, self.sample.export.id, file.name, "run")
        target = PostgresTarget(url, self.profile.tables, identity, self.settings, on_retry=self.told.append)
        with target:
            return FileLoad(
                file.name,
                file.items,
                FileStream(file, Storage()),
                Transform(self.profile, dynamodb_json),
                target,
                LoadSettings(batch_items=self.batch_items),
            ).run()

    def move_to_s3(self) -> FaultyS3:
        """Have the files read from S3 from now on, whose server goes wrong as its `plan` says."""
        server = self.lab.s3
        server.plan([])
        environment = mock.patch.dict(
            os.environ,
            AWS_ENDPOINT_URL_S3=server.url,
            AWS_ACCESS_KEY_ID="an-id",
            AWS_SECRET_ACCESS_KEY="a-s3cret",
            AWS_DEFAULT_REGION="eu-west-1",
            AWS_EC2_METADATA_DISABLED="true",
            AWS_MAX_ATTEMPTS="1",
        )
        self._ends.enter_context(environment)
        client = boto3.client("s3")
        if not self.lab.bucket_made:
            where: Any = {"LocationConstraint": "eu-west-1"}
            client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=where)
            self.lab.bucket_made = True
        moved = []
        for file in self.files:
            key = f"{self.database}/data/{file.name}"
            client.upload_file(file.uri, BUCKET, key)
            moved.append(msgspec.structs.replace(file, uri=f"s3://{BUCKET}/{key}"))
        self.files = moved
        return server

    def load_all(self, url: str) -> list[str]:
        """Load all files, going on past failed ones; gives their errors."""
        errors = []
        for file in self.files:
            try:
                self.load(url, file)
            except MigrationError as error:
                errors.append(str(error))
        return errors

    def without_receipt(self) -> list[ExportFile]:
        """Files that are not loaded."""
        loaded = {name for (name,) in self.execute("SELECT file FROM migration.loaded_file")}
        return [file for file in self.files if file.name not in loaded]

    def command(self, url: str) -> list[str]:
        """The command that loads all files."""
        names = [file.name for file in self.files]
        return ["-m", __name__, url, self.sample.export.uri, str(self.batch_items), *names]

    @contextmanager
    def process(self, url: str) -> Iterator[subprocess.Popen[str]]:
        """Load all files in a process of its own, which is there to be killed."""
        process = subprocess.Popen([sys.executable, *self.command(url)], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout
            process.stdout.readline()  # it has imported all, and begins
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout
            process.stdout.close()

    @contextmanager
    def meanwhile(self, work: Any) -> Iterator[None]:
        """Do `work` in a thread beside the block; its error is the block's."""
        errors: list[BaseException] = []

        def run() -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        yield
        thread.join()
        if errors:
            raise errors[0]

    def pause(self, longest: float = 0.3) -> None:
        """Wait a random time."""
        time.sleep(self.chance.uniform(0, longest))

    def verdict(self) -> Verdict:
        """Take the next step where files are not loaded, and compare all with a faultless load."""
        again = self.without_receipt()
        for file in again:
            self.load(self.url(), file)
        connection = psycopg2.connect(self.lab.server.url.replace("/postgres?", f"/{self.database}?"))
        try:
            found = actual(connection)
        finally:
            connection.close()
        lost = duplicated = 0
        for table in SELECTS:
            should, are = (Counter(map(_hashable, rows[table])) for rows in (self.sample.rows, found))
            lost += (should - are).total()
            duplicated += (are - should).total()
        quarantine = {
            (f, n): bytes(raw)
            for f, n, raw in self.execute("SELECT file, line, raw FROM migration.quarantine")
        }
        raw = {
            (name, number): line.rstrip(b"\n")
            for name, number, line in data_lines(Path(self.sample.export.uri))
            if (name, number) in self.sample.bad
        }
        unaccounted = self.execute(
            "SELECT file FROM migration.loaded_file f WHERE items <> loaded + quarantined + "
            "(SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(skipped)) OR quarantined <> "
            "(SELECT count(*) FROM migration.quarantine q WHERE q.file = f.file)"
        )
        return Verdict(
            survived=not again,
            lost=lost,
            duplicated=duplicated,
            quarantine_right=quarantine == raw,
            conserved=not unaccounted and not self.without_receipt(),
        )

    def close(self) -> None:
        """Drop the case's database, and forget where S3 was."""
        self._ends.close()
        self.lab.execute(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")


@dataclass(frozen=True)
class Verdict:
    """What a fault did."""

    survived: bool
    """No file had to be loaded again."""
    lost: int
    """Rows that should be there and are not."""
    duplicated: int
    """Rows that are there and should not be."""
    quarantine_right: bool
    conserved: bool
    brought_back: int = 0
    """Rows that are there, and were over before the last window's end."""

    @property
    def right(self) -> bool:
        """Whether the end state is that of a faultless load."""
        wrong = self.lost or self.duplicated or self.brought_back
        return not wrong and self.quarantine_right and self.conserved


@contextmanager
def lab() -> Iterator[Lab]:
    """A lab in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Lab(Path(folder)) as made:
        yield made


def main(url: str, export_uri: str, batch_items: str, *names: str) -> None:
    """Load files, as a run worker does; this is what `Case.process` runs, and somebody kills."""
    export = read_export(export_uri, Storage())
    by_name = {file.name: file for file in export.files}
    profile = load_profile("shop")
    transform = Transform(profile, dynamodb_json)
    sys.stdout.write("begin\n")
    sys.stdout.flush()
    settings = LoadSettings(batch_items=int(batch_items))
    for name in names:
        file, identity = by_name[name], FileIdentity("shop", "1", export.id, name, "run")
        with PostgresTarget(url, profile.tables, identity, PATIENCE) as target:
            FileLoad(name, file.items, FileStream(file, Storage()), transform, target, settings).run()


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MigrationError:
        sys.exit(1)  # a fault that ends a file; the verdict finds it without a receipt
