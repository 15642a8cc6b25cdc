"""A whole export into a real PostgreSQL, without Dagster: held against the oracle, run again, cut short."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import psycopg2
import pytest

from migration_pipeline import Item, Row, WholeItem, prefix
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine import load as loading
from migration_pipeline.engine.file_report import FileReport, Progress
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Outcome, Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.profiles.shop import customer, order, order_line
from migration_pipeline.sources import dynamodb_json, stream
from migration_pipeline.sources.export import Export, ExportFile, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.bookkeeping import COLUMNS
from migration_pipeline.targets.connection import DatabaseSettings, transaction
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import eventually
from migration_pipeline_tests.oracle import actual, checksum, expected

shop = load_profile("shop")


def load(url: str, export: Export, file: ExportFile, profile: Profile = shop, **options: Any) -> FileReport:
    with PostgresTarget(
        url, profile.tables, FileIdentity("shop", "1", export.id, file.name, "run")
    ) as target:
        source, transform = FileStream(file, Storage()), Transform(profile, dynamodb_json)
        return FileLoad(file.name, file.items, source, transform, target, **options).run()


def load_all(url: str, export: Export, batch_items: int = 1000, profile: Profile = shop) -> list[FileReport]:
    settings = LoadSettings(batch_items=batch_items)
    return [load(url, export, file, profile, settings=settings) for file in export.files]


@pytest.fixture
def export(shop_export: Path) -> Export:
    return read_export(str(shop_export), Storage())


@pytest.fixture
def connection(shop_database_url: str) -> Iterator[Any]:
    made = psycopg2.connect(shop_database_url)
    yield made
    made.close()


def test_tables_hold_what_the_oracle_computes(
    shop_database_url: str, export: Export, connection: Any
) -> None:
    reports = load_all(shop_database_url, export)
    rows, counts = expected(Path(export.uri))
    found = actual(connection)
    for table in rows:
        assert len(found[table]) == len(rows[table]) > 0
        assert found[table] == rows[table]
    assert sum(report.items for report in reports) == counts["items"] == 6_000
    assert sum(report.loaded for report in reports) == sum(len(table) for table in rows.values())
    assert sum(report.rows.get("landing.shop_events", 0) for report in reports) == len(
        rows["landing.shop_events"]
    )
    skipped = [report.skipped for report in reports if report.items]
    assert sum(s["sessions expire within a day"] for s in skipped) == counts["SESSION"]
    assert all(report.conserved for report in reports)


def test_the_bookkeeping_has_just_the_columns_that_are_written_and_read(shop_database_url: str) -> None:
    found = query(
        shop_database_url,
        "SELECT table_name, array_agg(column_name::text ORDER BY column_name) FROM information_schema.columns "
        "WHERE table_schema = 'migration' GROUP BY table_name",
    )
    assert dict(found) == {table: sorted(columns) for table, columns in COLUMNS.items()}


@pytest.mark.parametrize(("table", "column"), [("loaded_file", "rounded"), ("slice", "alive_until")])
def test_a_bookkeeping_of_an_older_version_is_told_before_any_work(
    shop_database_url: str, export: Export, table: str, column: str
) -> None:
    execute(shop_database_url, f"ALTER TABLE migration.{table} DROP COLUMN {column}")
    with pytest.raises(MigrationError, match="or an older version of it; create or complete it with"):
        load_all(shop_database_url, export)
    create_tables(shop_database_url, [])
    load_all(shop_database_url, export)


class AnyCustomer(Item):
    PK: str
    everything: WholeItem


class ArchivedCustomer(Row, table="archived_customers", key="customer"):
    customer: str
    item: dict[str, Any]


def test_whole_items_are_documents(shop_database_url: str, export: Export) -> None:
    archive = Profile("archive")

    @archive.route(SK="PROFILE")
    def customer(item: AnyCustomer) -> ArchivedCustomer:
        return ArchivedCustomer(item.PK, item.everything)

    create_tables(shop_database_url, archive.all_tables)
    load_all(shop_database_url, export, profile=archive)
    found = dict(query(shop_database_url, "SELECT customer, item FROM archived_customers"))
    lines = [
        line for file in export.files for line in gzip.decompress(Path(file.uri).read_bytes()).splitlines()
    ]
    customers = [item for line in lines if (item := json.loads(line)["Item"])["SK"] == {"S": "PROFILE"}]
    assert len(found) == len(customers) > 0
    for item in customers:
        document = found[item["PK"]["S"]]
        assert document.keys() == item.keys()
        assert {name: value["S"] for name, value in item.items() if "S" in value} == {
            name: value for name, value in document.items() if "S" in item[name]
        }


def test_the_receipts_say_what_was_loaded(shop_database_url: str, export: Export) -> None:
    load_all(shop_database_url, export)
    receipts = query(
        shop_database_url,
        "SELECT file, md5, bytes, items, loaded + quarantined + (SELECT coalesce(sum(value::bigint), 0) "
        "FROM jsonb_each_text(skipped)) FROM migration.loaded_file WHERE profile = 'shop'",
    )
    assert {(name, md5, size, items) for name, md5, size, items, _ in receipts} == {
        (file.name, file.md5, file.size, file.items) for file in export.files
    }
    assert all(items == accounted for _, _, _, items, accounted in receipts)


@pytest.mark.parametrize("batch_items", [1, 7, 333, 1_000_000])
def test_order_batches_and_repetition_do_not_change_the_result(
    shop_database_url: str, tmp_path: Path, connection: Any, batch_items: int
) -> None:
    small = read_export(str(write_sample(tmp_path, items=600, files=4, seed=3)), Storage())
    load_all(shop_database_url, small)
    once = checksum(connection)
    files = list(small.files) * 2
    random.Random(batch_items).shuffle(files)
    for file in files:
        load(shop_database_url, small, file, settings=LoadSettings(batch_items=batch_items))
    assert checksum(connection) == once
    execute(shop_database_url, "TRUNCATE customers, orders, order_lines, landing.shop_events")
    load_all(shop_database_url, small, batch_items)
    assert checksum(connection) == once


def test_an_empty_file_succeeds_with_no_items(shop_database_url: str, export: Export) -> None:
    empty = next(file for file in export.files if not file.items)
    report = load(shop_database_url, export, empty)
    assert (report.items, report.loaded, report.rows) == (0, 0, {})
    assert query(shop_database_url, "SELECT items FROM migration.loaded_file") == [(0,)]


def broken(export: Export, tmp_path: Path, change: Any) -> ExportFile:
    """Copy the largest file, changed, with the manifest's promises as they were."""
    file = max(export.files, key=lambda file: file.items)
    path = tmp_path / file.name
    path.write_bytes(change(Path(file.uri).read_bytes()))
    return ExportFile(file.name, str(path), file.items, file.md5, file.size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-100], "the file is truncated"),
        (lambda data: gzip.compress(gzip.decompress(data)), "its MD5 is .*, but the manifest says"),
        (lambda data: b"", "its MD5 is .*, but the manifest says"),
    ],
)
def test_a_broken_file_leaves_no_receipt(
    shop_database_url: str, export: Export, tmp_path: Path, change: Any, message: str
) -> None:
    file = broken(export, tmp_path, change)
    with pytest.raises(MigrationError, match=f"{file.name}.*{message}"):
        load(shop_database_url, export, file)
    assert query(shop_database_url, "SELECT * FROM migration.loaded_file") == []


def test_a_file_that_holds_fewer_items_than_promised_fails(shop_database_url: str, export: Export) -> None:
    file = export.files[0]
    more = ExportFile(file.name, file.uri, file.items + 1, file.md5, file.size)
    with pytest.raises(
        MigrationError, match=f"it holds {file.items:,} items, but the manifest says {more.items:,}"
    ):
        load(shop_database_url, export, more)
    assert query(shop_database_url, "SELECT * FROM migration.loaded_file") == []


def test_a_rerun_after_a_failure_ends_as_if_nothing_had_happened(
    shop_database_url: str, export: Export, tmp_path: Path, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches before the fault are committed; the rerun starts from the beginning and overwrites them."""
    monkeypatch.setattr(stream, "READ_BYTES", 10_000)
    file = broken(export, tmp_path, lambda data: data[:-100])
    with pytest.raises(MigrationError):
        load(
            shop_database_url,
            export,
            file,
            settings=LoadSettings(batch_items=100),
            on_progress=lambda _: time.sleep(0.02),  # so that batches are written before the end is met
            progress_seconds=0,
        )
    assert query(shop_database_url, "SELECT count(*) > 0 FROM orders") == [(True,)]
    load_all(shop_database_url, export)
    rows, _ = expected(Path(export.uri))
    assert actual(connection) == rows


def test_unrouted_items_are_counted_by_the_pattern_of_their_keys(
    shop_database_url: str, tmp_path: Path
) -> None:
    def line(pk: str, sk: str) -> bytes:
        return json.dumps({"Item": {"PK": {"S": pk}, "SK": {"S": sk}}}).encode() + b"\n"

    content = gzip.compress(
        line("PRODUCT#1", "INFO") * 3 + line("s3cret", "x") + line("SESSION#1", "SESSION")
    )
    path = tmp_path / "f"
    path.write_bytes(content)
    source = FileStream(ExportFile("f", str(path), 5, _md5(content), len(content)), Storage())
    with PostgresTarget(shop_database_url, shop.tables, FileIdentity("shop", "1", "e", "f", "run")) as target:
        report = FileLoad("f", 5, source, Transform(shop, dynamodb_json), target).run()
    assert report.unrouted == {"SK=…, PK=PRODUCT#…": 3, "SK=…, PK=…": 1}
    assert report.skipped == {"sessions expire within a day": 1, "unrouted": 4}
    assert report.conserved


def _md5(content: bytes) -> str:
    import base64
    import hashlib

    return base64.b64encode(hashlib.md5(content).digest()).decode()


def test_progress_is_told_while_a_file_runs(shop_database_url: str, export: Export) -> None:
    told: list[Progress] = []
    largest = max(export.files, key=lambda file: file.items)
    load(shop_database_url, export, largest, on_progress=told.append, progress_seconds=0)
    assert told
    assert [p.items for p in told] == sorted(p.items for p in told)
    assert told[-1].items == largest.items
    assert told[-1].share == 1.0
    assert told[-1].eta_seconds == 0
    assert {p.quarantined for p in told} == {0}


def test_where_a_profile_takes_long_fewer_items_are_transformed_at_once(
    shop_database_url: str, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nobody would hear for minutes how far a file is."""
    monkeypatch.setattr(loading, "SLICE_SECONDS", 0.1)
    file = max(export.files, key=lambda file: file.items)
    sizes: list[int] = []

    class Slow(Transform):
        def __call__(self, lines: Sequence[bytes], first: int = 1) -> Outcome:
            sizes.append(len(lines))
            if first > 500:
                time.sleep(len(lines) / 1000)
            return super().__call__(lines, first)

    identity = FileIdentity("shop", "1", "e", file.name, "run")
    with PostgresTarget(shop_database_url, shop.tables, identity) as target:
        source = FileStream(file, Storage())
        report = FileLoad(file.name, file.items, source, Slow(shop, dynamodb_json), target).run()
    assert report.items == sum(sizes) == file.items
    assert sizes[:3] == [10, 20, 40], "small at first"
    greatest = sizes.index(max(sizes))
    assert max(sizes) > 200
    assert max(sizes[greatest + 1 :]) <= 110, "a tenth of a second, at a thousand a second"


def test_progress_counts_what_is_quarantined_so_far(shop_database_url: str, tmp_path: Path) -> None:
    """By the profile, and by the database."""
    export = read_export(str(write_sample(tmp_path, items=3_000, files=1, bad=9)), Storage())
    execute(shop_database_url, "ALTER TABLE order_lines ADD CONSTRAINT c CHECK (order_id > '05')")
    told: list[Progress] = []

    def tell(progress: Progress) -> None:
        told.append(progress)
        time.sleep(0.02)  # so that batches are written before the end is met

    report = load(
        shop_database_url, export, export.files[0], settings=LoadSettings(batch_items=50, max_bad_items=1_000),
        on_progress=tell, progress_seconds=0,
    )  # fmt: skip
    counts = [progress.quarantined for progress in told]
    assert counts == sorted(counts)
    assert 9 < counts[-1] <= report.quarantined


def wal_written(url: str, work: Any) -> int:
    """Bytes of WAL that the server wrote while `work` ran."""
    ((before,),) = query(url, "SELECT pg_current_wal_lsn()")
    work()
    ((amount,),) = query(url, f"SELECT pg_current_wal_lsn() - '{before}'")
    return int(amount)


def test_an_unchanged_rerun_writes_almost_nothing(shop_database_url: str, tmp_path: Path) -> None:
    export = read_export(str(write_sample(tmp_path, items=60_000, files=1)), Storage())
    # Slices of landing tables are replaced whole, so this goes without the events.
    keyed = Profile("shop")
    keyed.route(SK="PROFILE")(customer)
    keyed.route(PK=prefix("CUSTOMER#"), SK=prefix("ORDER#"))(order)
    keyed.route(PK=prefix("ORDER#"))(order_line)
    # A batch's staging tables cost some 16 KB each in the catalog: in batches as they are by default, a fraction of its rows.
    first = wal_written(shop_database_url, lambda: load_all(shop_database_url, export, 10_000, keyed))
    rows = (
        "SELECT sum(xmin::text::bigint) FROM (SELECT xmin FROM customers UNION ALL SELECT xmin FROM orders) t"
    )
    before = query(shop_database_url, rows)
    # The server's WAL is everybody's: a checkpoint or an autovacuum adds to it, but hardly three times.
    again = min(
        wal_written(shop_database_url, lambda: load_all(shop_database_url, export, 10_000, keyed))
        for _ in range(3)
    )
    assert query(shop_database_url, rows) == before, "no row was written anew"
    assert again < first / 20


@pytest.mark.parametrize(("default", "ours"), [("off", "on"), ("on", "on"), ("remote_write", "remote_write")])
def test_a_commit_waits_for_the_disk_whatever_the_server_does_by_default(
    shop_database_url: str, default: str, ours: str
) -> None:
    name = urlsplit(shop_database_url).path.removeprefix("/")
    execute(shop_database_url, f"ALTER DATABASE {name} SET synchronous_commit = {default}")
    with transaction(shop_database_url) as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == (ours,)


@pytest.mark.parametrize("receipts", [True, False])
def test_rows_that_are_there_are_brought_up_to_date(
    shop_database_url: str, export: Export, connection: Any, receipts: bool
) -> None:
    """With a receipt a file goes by staging from its start; without one, from the first row that is there."""
    load_all(shop_database_url, export)
    once = checksum(connection)
    execute(shop_database_url, "UPDATE customers SET name = 'changed' WHERE customer_id > '3'")
    execute(
        shop_database_url,
        "DELETE FROM orders WHERE order_id < '5'; DELETE FROM order_lines WHERE line_no > 1",
    )
    if not receipts:
        execute(shop_database_url, "TRUNCATE migration.loaded_file")
    assert checksum(connection) != once
    load_all(shop_database_url, export, batch_items=300)
    assert checksum(connection) == once


def test_an_error_of_the_database_in_mid_file_is_the_cause_that_is_reported(
    shop_database_url: str, export: Export
) -> None:
    """The writer's thread meets it while lines are read; reading stops, and nothing is recorded."""
    execute(
        shop_database_url,
        "CREATE FUNCTION refuse() RETURNS trigger AS $$ BEGIN RAISE 'no' USING ERRCODE = '58030'; END $$ "
        "LANGUAGE plpgsql; CREATE TRIGGER refuse BEFORE INSERT ON order_lines EXECUTE FUNCTION refuse()",
    )
    largest = max(export.files, key=lambda file: file.items)
    with pytest.raises(MigrationError, match=r"IoError \(SQLSTATE 58030\); the database server") as told:
        load(shop_database_url, export, largest, settings=LoadSettings(batch_items=50))
    assert (told.value.sqlstate, told.value.file) == ("58030", largest.name)
    assert query(shop_database_url, "SELECT * FROM migration.loaded_file") == []


def test_files_of_one_run_share_a_connection_until_one_fails(shop_database_url: str, export: Export) -> None:
    def connections() -> list[tuple[Any, ...]]:
        return query(
            shop_database_url,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'",
        )

    plan = make_plan(shop, "shop", [export])
    first, second, third, *_ = plan.files
    broken = msgspec.structs.replace(
        second, file=msgspec.structs.replace(second.file, items=second.file.items + 1)
    )
    log = logging.getLogger("test")
    with Loader(plan, shop, shop_database_url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        retried = loader.load(first, log, lambda _: None, lambda _: None).retries
        one = connections()
        assert len(one) == 1
        loader.load(second, log, lambda _: None, lambda _: None)
        assert connections() == one
        with pytest.raises(MigrationError):
            loader.load(broken, log, lambda _: None, lambda _: None)
        eventually(lambda: not connections(), "a load that failed keeps no connection")
        told: list[str] = []
        execute(
            shop_database_url,
            "CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF nextval('once') = 1 THEN "
            "RAISE EXCEPTION 'once' USING ERRCODE = '40001'; END IF; RETURN NEW; END $$; CREATE SEQUENCE once; "
            "CREATE TRIGGER t BEFORE INSERT ON migration.loaded_file FOR EACH ROW EXECUTE FUNCTION fail_once()",
        )
        assert loader.load(second, log, lambda _: None, told.append).retries == len(told) == 1
        assert loader.load(third, log, lambda _: None, told.append).retries == retried == 0, "each file's own"
    eventually(lambda: not connections(), "nor does one that ended")


def test_the_file_that_follows_is_read_while_the_last_batch_is_written(
    shop_database_url: str, export: Export, connection: Any
) -> None:
    plan = make_plan(shop, "shop", [export])
    log, hooks = logging.getLogger("test"), (lambda _: None, lambda _: None)
    files = [planned for planned in plan.files if planned.file.items]
    receipts = partial(query, shop_database_url, "SELECT count(*) FROM migration.loaded_file")
    with Loader(plan, shop, shop_database_url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        with ThreadPoolExecutor(1) as pool:
            with contextlib.closing(psycopg2.connect(shop_database_url)) as other:
                other.cursor().execute("LOCK migration.loaded_file IN SHARE MODE")
                loaded = pool.submit(loader.load, files[0], log, *hooks, following=files[1])
                eventually(lambda: loader._begun and loader._begun.source.lines_read, "it is being read")
                assert receipts() == [(0,)]
            loaded.result()
        assert receipts() == [(1,)]
        for planned, following in zip(files[1:], [*files[2:], None], strict=True):
            assert loader.load(planned, log, *hooks, following=following).items == planned.file.items
    assert actual(connection) == expected(Path(export.uri))[0]


def test_a_file_that_follows_and_cannot_be_read_fails_in_its_turn(
    shop_database_url: str, export: Export
) -> None:
    plan = make_plan(shop, "shop", [export])
    log, hooks = logging.getLogger("test"), (lambda _: None, lambda _: None)
    first, second, third = [planned for planned in plan.files if planned.file.items][:3]
    gone = msgspec.structs.replace(
        second, file=msgspec.structs.replace(second.file, uri="/nowhere/x.json.gz")
    )
    with Loader(plan, shop, shop_database_url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        assert loader.load(first, log, *hooks, following=gone).items == first.file.items
        with pytest.raises(MigrationError, match=r"/nowhere/x\.json\.gz: no such file"):
            loader.load(gone, log, *hooks, following=third)
        # Another one is loaded than was to follow: what was read of that is not its own.
        assert loader.load(third, log, *hooks, following=second).md5 == third.file.md5
        assert loader.load(first, log, *hooks, following=second).md5 == first.file.md5
    eventually(
        lambda: not any(thread.name == "read ahead" for thread in threading.enumerate()),
        "nothing is read any more",
    )


def test_a_load_that_fails_before_its_first_line_reads_nothing_on(
    shop_database_url: str, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a rerun meets items of windows that its plan does not know."""
    plan = make_plan(shop, "shop", [export])
    log, hooks = logging.getLogger("test"), (lambda _: None, lambda _: None)

    def refuse(*_: object) -> None:
        raise MigrationError("windows")

    with Loader(plan, shop, shop_database_url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        monkeypatch.setattr(loader, "_transform_for", refuse)
        for planned, following in zip(plan.files, [*plan.files[1:], None], strict=True):
            with pytest.raises(MigrationError, match="windows"):
                loader.load(planned, log, *hooks, following=following)
        eventually(
            lambda: not any(thread.name == "read ahead" for thread in threading.enumerate()),
            "none of them is read",
        )


def test_terminating_a_load_stops_it_at_once(shop_database_url: str, export: Export) -> None:
    """Dagster raises a BaseException in the run's thread; here the progress hook stands for its signal."""

    class Terminated(BaseException):
        pass

    def terminate(_: Progress) -> None:
        raise Terminated

    blocker = psycopg2.connect(shop_database_url)
    largest = max(export.files, key=lambda file: file.items)
    target = PostgresTarget(shop_database_url, shop.tables, FileIdentity("shop", "1", "e", "f", "run"))
    began = time.monotonic()
    with pytest.raises(Terminated):
        with_blocked_writer(target, blocker, largest, terminate)
    assert time.monotonic() - began < 8, "it did not wait for the blocked COPY"
    blocker.close()
    assert query(shop_database_url, "SELECT count(*) FROM orders") == [(0,)]


def with_blocked_writer(target: PostgresTarget, blocker: Any, file: ExportFile, terminate: Any) -> None:
    """Load with a writer that waits for a lock, and terminate while it does."""
    with target:
        blocker.cursor().execute("LOCK TABLE order_lines IN ACCESS EXCLUSIVE MODE")
        source, transform = FileStream(file, Storage()), Transform(shop, dynamodb_json)
        settings = LoadSettings(batch_items=100)
        FileLoad(
            file.name, file.items, source, transform, target, settings, terminate, progress_seconds=0
        ).run()
