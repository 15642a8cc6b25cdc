"""Many items, one row: landing slices and aggregates on a real PostgreSQL, held against oracles."""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import pytest

from migration_pipeline import Fitted, Item, Profile, Row, prefix
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.replay import ReplayReport, replay
from migration_pipeline.migration.verdicts import aggregate_fault
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.profiles.pictures import PictureOptions
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets import session
from migration_pipeline.targets.aggregate_part import PartMaker
from migration_pipeline.targets.aggregation import (
    AggregateIdentity,
    AggregateRun,
    AggregateSettings,
    LandedFile,
)
from migration_pipeline.targets.catalog import TABLES, qualified
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.receipts import read_aggregates, read_receipts
from migration_pipeline.targets.records import AggregateReport
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.oracle import activities, checksum, data_lines, expected
from migration_pipeline_tests.oracle_pictures import SELECT, pictures

shop, picture_profile = load_profile("shop"), load_profile("pictures")
EXPORTED = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)


class Lines:
    """A file that never was one."""

    bytes_read, md5 = 0, "md5"

    def __init__(self, items: Sequence[Any]) -> None:
        self.lines = [
            item if isinstance(item, bytes) else json.dumps({"Item": item}).encode() for item in items
        ]

    def __iter__(self) -> Iterator[list[bytes]]:
        yield self.lines

    def verify(self) -> None:
        pass


def land(
    url: str, profile: Profile, name: str, items: Sequence[Any], options: Any = None, batch_items: int = 1000
) -> FileReport:
    """Load items as a file."""
    identity = FileIdentity(profile.name, "1", "e", name, "run", EXPORTED.isoformat())
    source, transform = Lines(items), Transform(profile, dynamodb_json, options)
    settings = LoadSettings(batch_items=batch_items, max_bad_share=1)
    with PostgresTarget(url, profile.tables, identity) as target:
        return FileLoad(name, len(items), source, transform, target, settings).run()


def load(url: str, profile: Profile, export: Export, batch_items: int = 1000) -> None:
    """Load all files of an export."""
    for file in export.files:
        identity = FileIdentity(profile.name, "1", export.id, file.name, "run", export.export_time)
        with PostgresTarget(url, profile.tables, identity) as target:
            source, transform = FileStream(file, Storage()), Transform(profile, dynamodb_json)
            FileLoad(
                file.name, file.items, source, transform, target, LoadSettings(batch_items=batch_items)
            ).run()


def make(
    url: str, profile: Profile, files: Sequence[Any], say: Any = lambda _: None, **settings: Any
) -> AggregateReport:
    """Make the profile's aggregate of files: names, or an export's."""
    landed = [
        LandedFile("e", file, "md5")
        if isinstance(file, str)
        else LandedFile(file[0], file[1].name, file[1].md5)
        for file in files
    ]
    (one,) = profile.aggregates
    identity = AggregateIdentity(profile.name, "1", "run")
    patience = DatabaseSettings(retry_seconds=20)
    return AggregateRun(url, one, landed, identity, AggregateSettings(**settings), patience, say).run()


def files_of(export: Export) -> list[Any]:
    return [(export.id, file) for file in export.files]


@pytest.fixture
def picture_url(database_url: str) -> str:
    execute(database_url, ddl(picture_profile.all_tables))
    return database_url


# -- what comes out --------------------------------------------------------------------------------


def test_the_shops_activity_is_what_the_oracle_sums_up(shop_database_url: str, shop_export: Path) -> None:
    export = read_export(str(shop_export), Storage())
    load(shop_database_url, shop, export)
    report = make(shop_database_url, shop, files_of(export))
    rows = activities(expected(shop_export)[0])
    assert query(shop_database_url, "SELECT * FROM customer_activity ORDER BY customer_id") == rows
    assert (report.groups, report.rows, report.new, report.changed) == (len(rows), len(rows), len(rows), 0)
    # Again: nothing to write, and the receipt says so.
    xmin = "SELECT customer_id, xmin::text FROM customer_activity ORDER BY 1"
    before = query(shop_database_url, xmin)
    again = make(shop_database_url, shop, files_of(export))
    assert (again.new, again.changed, again.unchanged) == (0, 0, len(rows))
    assert query(shop_database_url, xmin) == before
    receipt = (
        "SELECT table_name, files, groups, rows, new, changed, unchanged, deleted FROM migration.aggregate"
    )
    assert query(shop_database_url, receipt) == [
        ("customer_activity", len(export.files), len(rows), len(rows), 0, 0, len(rows), 0)
    ]


def odd_items(chance: random.Random, count: int) -> list[dict[str, Any]]:
    """Items that meet, and contradict each other, in every attribute."""
    urls = [
        "/img/a/b.jpg",
        "/img/a.b/c",
        "img/x.PNG",
        "/img//img/y.gif",
        "",
        ".",
        "/img/",
        "z.tar.webp",
        "ü/ß.jpeg",
    ]

    def number(*choices: int) -> dict[str, str]:
        return {chance.choice("NS"): str(chance.choice(choices))}

    items = []
    for n in range(count):
        item: dict[str, Any] = {
            "id": {"S": f"{chance.choice(['', 'é', 'Z', 'a', '10', '9', '-'])}-{n}"},
            "pictureId": number(*[1, 2, 9, 10, 2**40] * 5, *range(20, 50)),  # of many items, and of few
            "languageId": number(0, 1, 2, 3, 17, 99),
            "url": {"S": chance.choice(urls)},
            "caption": {"S": chance.choice(["", "one", 'a "quoted"\n\\ one', "ünï 🛒", "null"])},
            "agencyId": number(1, 2, 2**31 - 1),
            "formatId": number(85, 72, 68, 9, 100),
            "formatPictureId": number(1, 2, 10, 2**33),
            "originalWidth": number(1, 4000),
            "originalHeight": number(1, 3000),
            "x": number(1), "y": number(2),
        }  # fmt: skip
        for name in list(item):
            if name not in ("id", "pictureId") and chance.random() < 0.15:
                item[name] = {"NULL": True}
                if chance.random() < 0.5:
                    del item[name]
        items.append(item)
    return items


@pytest.mark.parametrize("seed", range(6))
def test_pictures_are_what_the_oracle_makes_of_odd_items(picture_url: str, seed: int) -> None:
    chance = random.Random(seed)
    items = odd_items(chance, 150)
    max_id = None if seed % 2 else 2**40
    names = ["f0", "f1", "f2"]
    for n, name in enumerate(names):
        report = land(picture_url, picture_profile, name, items[n::3], PictureOptions(max_id), batch_items=20)
        too_great = sum(int(next(iter(i["pictureId"].values()))) >= 2**40 for i in items[n::3])
        assert report.skipped == ({} if max_id is None else {"picture_item: no row": too_great})
    make(picture_url, picture_profile, names, part_rows=[10, 40, 1000][seed % 3], sessions=1 + seed % 2)
    assert query(picture_url, SELECT) == pictures(items, EXPORTED, max_id)


def test_items_of_one_id_in_two_exports_make_the_same_row_in_any_order(picture_url: str) -> None:
    """What such a row is made of is nobody's promise; that it does not depend on the order is."""
    chance, found = random.Random(5), []
    items = odd_items(chance, 60)
    for item, other in zip(items[::2], items[1::2], strict=True):
        other["id"], other["pictureId"] = item["id"], item["pictureId"]
        if chance.random() < 0.7:
            for name in ("languageId", "formatId", "formatPictureId"):
                other.pop(name, None)
                if name in item:
                    other[name] = item[name]
    for order in range(4):
        chance.shuffle(items)
        execute(picture_url, "TRUNCATE picture")
        for n, name in enumerate(("f0", "f1", "f2")):
            land(picture_url, picture_profile, name, items[n::3])
        make(picture_url, picture_profile, ["f0", "f1", "f2"], part_rows=[10, 1000][order % 2])
        found.append(query(picture_url, SELECT))
    assert found == found[:1] * 4


def test_items_of_pictures_that_are_none_are_quarantined(picture_url: str) -> None:
    good, without, text, large = odd_items(random.Random(1), 4)
    good["pictureId"] = {"S": "12"}
    del without["pictureId"]
    text["pictureId"] = {"S": "a secret"}
    large["formatPictureId"] = {"N": str(2**63)}
    report = land(picture_url, picture_profile, "f", [good, b"{broken", without, text, large])
    assert (report.loaded, report.quarantined) == (1, 4)
    assert "secret" not in str(report.quarantined_by_reason)
    make(picture_url, picture_profile, ["f"])
    assert query(picture_url, "SELECT id FROM picture") == [(12,)]


def test_the_sample_of_pictures_is_what_the_oracle_makes_of_it(picture_url: str, tmp_path: Path) -> None:
    export = read_export(
        str(write_sample(tmp_path, items=6_000, files=5, seed=4, profile="pictures")), Storage()
    )
    load(picture_url, picture_profile, export)
    report = make(picture_url, picture_profile, files_of(export), part_rows=1000)
    assert report.parts == 6, "as many for each of two sessions"
    items = [json.loads(line)["Item"] for _, _, line in data_lines(Path(export.uri))]
    exported = datetime.fromisoformat(export.export_time.replace("Z", "+00:00"))
    rows = pictures(items, exported)
    assert query(picture_url, SELECT) == rows
    assert report.groups == report.rows == len(rows) == 2_000


def test_rows_that_come_into_an_empty_range_meanwhile_are_met(
    picture_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range without rows is inserted as it comes. If it is not empty after all, the upsert does it."""
    land(picture_url, picture_profile, "f", odd_items(random.Random(1), 300))
    make(picture_url, picture_profile, ["f"])
    once = query(picture_url, SELECT)
    execute(
        picture_url, "DELETE FROM picture WHERE id % 3 = 0; UPDATE picture SET path = 'x' WHERE id % 3 = 1"
    )
    ((stale,),) = query(picture_url, "SELECT count(*) FROM picture WHERE path = 'x'")
    ((gone,),) = query(picture_url, f"SELECT {len(once)} - count(*) FROM picture")
    monkeypatch.setattr("migration_pipeline.targets.sql.OCCUPIED", "SELECT false")
    report = make(picture_url, picture_profile, ["f"])
    assert query(picture_url, SELECT) == once
    assert (report.new, report.changed) == (gone, stale)
    assert min(gone, stale) > 0


@pytest.mark.parametrize("workers", [1, 3])
def test_neither_order_nor_workers_nor_repetition_change_a_row(
    picture_url: str, tmp_path: Path, workers: int
) -> None:
    export = read_export(
        str(write_sample(tmp_path, items=3_000, files=6, seed=9, profile="pictures")), Storage()
    )
    tables = ["picture", "landing.picture_items"]
    load(picture_url, picture_profile, export)
    make(picture_url, picture_profile, files_of(export), part_rows=500)
    connection = psycopg2.connect(picture_url)
    once = checksum(connection, tables)
    execute(picture_url, "TRUNCATE picture")
    files = list(export.files) * 2
    random.Random(workers).shuffle(files)
    errors: list[BaseException] = []

    def some(mine: Sequence[Any]) -> None:
        for file in mine:
            identity = FileIdentity("pictures", "1", export.id, file.name, "run", export.export_time)
            try:
                with PostgresTarget(picture_url, picture_profile.tables, identity) as target:
                    source = FileStream(file, Storage())
                    transform = Transform(picture_profile, dynamodb_json)
                    settings = LoadSettings(batch_items=77)
                    FileLoad(file.name, file.items, source, transform, target, settings).run()
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=some, args=(files[n::workers],)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    make(picture_url, picture_profile, files_of(export), part_rows=200, sessions=workers)
    assert checksum(connection, tables) == once
    connection.close()


# -- slices ----------------------------------------------------------------------------------------

EVENTS = "SELECT customer_id, kind FROM landing.shop_events ORDER BY 1, 2"
SLICES = "SELECT relname FROM pg_class WHERE relname LIKE 'shop\\_events\\_%' ORDER BY 1"


def event(customer: str, kind: str = "viewed", at: str = "2024-01-01T00:00:00Z") -> dict[str, Any]:
    return {
        "PK": {"S": f"CUSTOMER#{customer}"}, "SK": {"S": f"EVENT#{at}#1"}, "at": {"S": at}, "kind": {"S": kind},
    }  # fmt: skip


def test_a_slice_is_replaced_whole(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event("a"), event("b")])
    land(shop_database_url, shop, "g", [event("c")])
    assert query(shop_database_url, EVENTS) == [("a", "viewed"), ("b", "viewed"), ("c", "viewed")]
    land(shop_database_url, shop, "f", [event("a", "login")])
    assert query(shop_database_url, EVENTS) == [("a", "login"), ("c", "viewed")]
    land(shop_database_url, shop, "g", [])
    assert query(shop_database_url, EVENTS) == [("a", "login")]
    assert len(query(shop_database_url, SLICES)) == 1, "replaced and empty slices leave no table"
    # What is of the file before stays while it is loaded again, and when that fails.
    identity = FileIdentity("shop", "1", "e", "f", "run")
    with PostgresTarget(shop_database_url, shop.tables, identity) as target:
        lines, transform = Lines([event("z")] * 30), Transform(shop, dynamodb_json)
        with pytest.raises(MigrationError, match="not conserved"):
            FileLoad("f", 99, lines, transform, target, LoadSettings(batch_items=10)).run()
    assert query(shop_database_url, EVENTS) == [("a", "login")]
    assert len(query(shop_database_url, SLICES)) == 2
    land(shop_database_url, shop, "h", [])
    assert len(query(shop_database_url, SLICES)) == 1, "the next load drops what a failed one left"


def test_a_file_does_not_look_at_the_slices_of_others(shop_database_url: str) -> None:
    """Or each of thousands of files would take longer than the one before."""
    for name in "abc":
        land(shop_database_url, shop, name, [event(name)])
    table = next(each for each in shop.tables.values() if each.landing)
    with closing(psycopg2.connect(shop_database_url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {TABLES}",
            {"names": [qualified(table)], "landing": [table.landing]},
        )
        plan = cursor.fetchall()
    (recursion,) = re.findall(r'"Recursive Union".*?"Actual Rows": ([0-9.]+)', json.dumps(plan))
    assert float(recursion) == 1


def test_the_slice_of_a_live_load_is_not_taken_for_a_leftover(shop_database_url: str) -> None:
    proceed, begun = threading.Event(), threading.Event()

    class Slow(Lines):
        def __iter__(self) -> Iterator[list[bytes]]:
            yield self.lines[:10]
            begun.set()
            proceed.wait(60)
            yield self.lines[10:]

    def slowly() -> None:
        identity = FileIdentity("shop", "1", "e", "slow", "run")
        with PostgresTarget(shop_database_url, shop.tables, identity) as target:
            lines = Slow([event(str(n)) for n in range(20)])
            FileLoad("slow", 20, lines, Transform(shop, dynamodb_json), target, LoadSettings(5)).run()

    thread = threading.Thread(target=slowly)
    thread.start()
    begun.wait(60)
    deadline = time.monotonic() + 60
    while not query(shop_database_url, SLICES) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert query(shop_database_url, EVENTS) == [], "nothing of it shows yet"
    land(shop_database_url, shop, "f", [event("a")])
    proceed.set()
    thread.join()
    assert len(query(shop_database_url, EVENTS)) == 21


@pytest.mark.parametrize("lost", [{3}, {4}, {3, 4, 5, 7}])
def test_a_batch_whose_commit_was_not_answered_does_not_come_twice(
    shop_database_url: str, monkeypatch: pytest.MonkeyPatch, lost: set[int]
) -> None:
    """The server commits, and the connection is gone before it says so."""
    commits: list[int] = []

    class Deaf(psycopg2.extensions.connection):
        def commit(self) -> None:
            super().commit()
            commits.append(len(commits))
            if len(commits) in lost:
                self.close()
                raise psycopg2.OperationalError("server closed the connection unexpectedly")

    def deaf(url: str) -> Any:
        return psycopg2.connect(url, connection_factory=Deaf)

    monkeypatch.setattr(session, "open_connection", deaf)
    items: list[Any] = [event(f"{n:02}") for n in range(50)]
    items[7]["kind"]["S"] = "nul\0"
    report = land(shop_database_url, shop, "f", items, batch_items=10)
    assert any(number + 1 in lost for number in commits)
    assert (report.loaded, report.quarantined, report.retries > 0) == (49, 1, True)
    assert query(shop_database_url, EVENTS) == [(f"{n:02}", "viewed") for n in range(50) if n != 7]
    counted = "SELECT (s.rows ->> 'landing.shop_events')::int, f.loaded FROM migration.slice s JOIN migration.loaded_file f USING (file)"
    assert query(shop_database_url, counted) == [(49, 49)]


def test_refused_rows_of_landing_tables_are_quarantined_alone_and_replayed(shop_database_url: str) -> None:
    from migration_pipeline.migration.replay import replay

    execute(shop_database_url, "ALTER TABLE landing.shop_events ADD CONSTRAINT c CHECK (kind <> 'refused')")
    items: list[Any] = [event(str(n), "refused" if n in (3, 44) else "viewed") for n in range(60)]
    items[20] = b"{broken"
    items[30]["kind"]["S"] = "nul\0"
    report = land(shop_database_url, shop, "f", items, batch_items=25)
    assert (report.loaded, report.quarantined) == (56, 4)
    assert len(query(shop_database_url, EVENTS)) == 56
    lines = "SELECT line FROM migration.quarantine ORDER BY 1"
    assert query(shop_database_url, lines) == [(4,), (21,), (31,), (45,)]
    ((slice_,),) = query(shop_database_url, SLICES)
    for table in ("shop_events", slice_):  # a slice has its constraints for itself
        execute(shop_database_url, f"ALTER TABLE landing.{table} DROP CONSTRAINT c")
    identity = FileIdentity("shop", "1", "e", "f", "again")
    with PostgresTarget(shop_database_url, shop.tables, identity) as target:
        again = replay(Transform(shop, dynamodb_json), target, LoadSettings())
    assert (again.loaded, again.quarantined) == (2, 2)
    assert len(query(shop_database_url, EVENTS)) == 58
    counted = "SELECT (rows ->> 'landing.shop_events')::int FROM migration.slice"
    assert query(shop_database_url, counted) == [(58,)]
    assert make(shop_database_url, shop, ["f"]).groups == 58


# -- aggregates that cannot be made ----------------------------------------------------------------


def test_files_that_are_not_landed_are_named(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f1.json.gz", [event("a")])
    with pytest.raises(MigrationError) as told:
        make(shop_database_url, shop, ["f1.json.gz", "f2.json.gz", "f3.json.gz"])
    assert "2 of 3 files are not landed in landing.shop_events: f2.json.gz, f3.json.gz; load them" in str(
        told.value
    )
    assert query(shop_database_url, "SELECT * FROM customer_activity") == []
    # A file of other contents is not the plan's, even under the same name.
    other, identity = LandedFile("e", "f1.json.gz", "other"), AggregateIdentity("shop", "1", "r")
    with pytest.raises(MigrationError, match=r"1 of 1 file is not landed .*: f1.json.gz"):
        AggregateRun(shop_database_url, shop.aggregates[0], [other], identity).run()
    # Neither is one that landed before the profile had the landing table.
    land(shop_database_url, shop, "f", [event("a")])
    execute(shop_database_url, "UPDATE migration.slice SET rows = rows - 'landing.shop_events'")
    with pytest.raises(MigrationError, match=r"1 of 1 file is not landed .*: f;"):
        make(shop_database_url, shop, ["f"])


def test_rows_without_a_source_are_deleted_only_when_told_to(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event("a"), event("b")])
    land(shop_database_url, shop, "g", [event("b"), event("c")])
    make(shop_database_url, shop, ["f", "g"])
    land(shop_database_url, shop, "f", [event("b", "login")])
    report = make(shop_database_url, shop, ["f", "g"])
    assert (report.rows, report.new, report.changed, report.unchanged, report.deleted) == (2, 0, 1, 1, 0)
    ids = "SELECT customer_id FROM customer_activity ORDER BY 1"
    assert query(shop_database_url, ids) == [("a",), ("b",), ("c",)]
    report = make(shop_database_url, shop, ["f", "g"], delete_rows=True)
    assert (report.rows, report.unchanged, report.deleted) == (2, 2, 1)
    assert query(shop_database_url, ids) == [("b",), ("c",)]
    # Where all rows that are there have lost their source, none of the new ones meets them.
    for name in ("f", "g"):
        land(shop_database_url, shop, name, [event("x")])
    report = make(shop_database_url, shop, ["f", "g"], delete_rows=True)
    assert (report.rows, report.new, report.deleted) == (1, 1, 2)
    assert query(shop_database_url, ids) == [("x",)]


def test_files_that_the_plan_no_longer_has_are_dropped(shop_database_url: str) -> None:
    land(shop_database_url, shop, "old", [event("a")])
    land(shop_database_url, shop, "new", [event("b")])
    said: list[str] = []
    assert make(shop_database_url, shop, ["new"], said.append).groups == 1
    assert any("old" in line for line in said)
    assert query(shop_database_url, EVENTS) == [("b", "viewed")]


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("SELECT customer_id, 1 AS n FROM landing.marks WHERE customer_id <> 'CUSTOMER#a' GROUP BY 1", "2 groups .* became 1 row:"),
        ("SELECT customer_id, 1 AS n FROM landing.marks", "returns 1 row more than there are keys; GROUP BY customer_id"),
        ("SELECT customer_id,\n nothing AS n FROM landing.marks", r"its SQL, marks\.sql, line 2: .*SQLSTATE 42703"),
        ("SELECT customer_id, 1 AS n FROM landing.marks GROUP BY 1; -- all", "its SQL, marks.sql.*SQLSTATE 42601"),
        ("SELECT customer_id, 1 / 0 AS n FROM landing.marks GROUP BY 1", "SQLSTATE 22012"),
        ("SELECT customer_id, NULL::int AS n FROM landing.marks GROUP BY 1", "SQLSTATE 23502"),
    ],
)  # fmt: skip
def test_sql_that_makes_other_rows_than_groups_fails_without_a_receipt(
    database_url: str, tmp_path: Path, sql: str, reason: str
) -> None:
    marks = marks_profile(tmp_path, sql)
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event("a"), event("b"), event("b")])
    with pytest.raises(MigrationError, match=reason) as told:
        make(database_url, marks, ["f"])
    assert str(told.value).startswith("aggregate counts: ")
    state = re.search(r"SQLSTATE (\w+)", str(told.value))
    assert told.value.sqlstate == (state and state[1])
    assert query(database_url, "SELECT * FROM migration.aggregate") == []


class MarkItem(Item):
    PK: str


class Mark(Row, table="marks", landing=True):
    customer_id: str


class Count(Row, table="counts", key="customer_id"):
    customer_id: str
    n: int


def marks_profile(folder: Path, sql: str, row_class: type[Row] = Count) -> Profile:
    (folder / "marks.sql").write_text(sql)
    marks = Profile("marks")

    @marks.route(PK=prefix("CUSTOMER#"))
    def mark(item: MarkItem) -> Mark:
        return Mark(item.PK)

    marks.aggregate(row_class, of=Mark, by="customer_id", sql=str(folder / "marks.sql"))
    return marks


COUNTS = "SELECT customer_id, count(*) AS n FROM landing.marks GROUP BY customer_id"


KEY = "customer_id text PRIMARY KEY, n bigint NOT NULL"
SHAPES = {
    "partitioned": "CREATE TABLE counts (" + KEY + ") PARTITION BY HASH (customer_id); "
    "CREATE TABLE c0 PARTITION OF counts FOR VALUES WITH (MODULUS 2, REMAINDER 0); "
    "CREATE TABLE c1 PARTITION OF counts FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    "deferrable key": "CREATE TABLE counts (customer_id text PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, n bigint NOT NULL)",
    "deferrable key beside a unique index": "CREATE TABLE counts (customer_id text PRIMARY KEY DEFERRABLE, n bigint NOT NULL); "
    "CREATE UNIQUE INDEX ON counts (customer_id)",
    "identity, not in the Row": f"CREATE TABLE counts ({KEY}, i bigint GENERATED ALWAYS AS IDENTITY)",
    "generated": f"CREATE TABLE counts ({KEY}, g bigint GENERATED ALWAYS AS (n + 1) STORED)",
    "trigger": f"CREATE TABLE counts ({KEY}); CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$; "
    "CREATE TRIGGER t BEFORE INSERT OR UPDATE ON counts FOR EACH ROW EXECUTE FUNCTION f()",
    "numeric that holds it": "CREATE TABLE counts (customer_id text PRIMARY KEY, n numeric(10,2) NOT NULL)",
    "published": f"CREATE TABLE counts ({KEY}); CREATE PUBLICATION everything FOR ALL TABLES",
}


@pytest.mark.parametrize("statement", SHAPES.values(), ids=SHAPES)
def test_each_shape_is_made_made_again_and_mended(database_url: str, tmp_path: Path, statement: str) -> None:
    marks = marks_profile(tmp_path, COUNTS)
    execute(database_url, statement)
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event(f"{n}") for n in (1, 2, 2, 3)])
    rows = [("CUSTOMER#1", 1), ("CUSTOMER#2", 2), ("CUSTOMER#3", 1)]
    asked = "SELECT customer_id, n FROM counts ORDER BY 1"
    for new, unchanged in ((3, 0), (0, 3)):
        report = make(database_url, marks, ["f"])
        assert (report.rows, report.new, report.changed, report.unchanged) == (3, new, 0, unchanged)
        assert query(database_url, asked) == rows
    execute(database_url, "UPDATE counts SET n = 9 WHERE customer_id = 'CUSTOMER#1'")
    execute(database_url, "DELETE FROM counts WHERE customer_id = 'CUSTOMER#2'")
    report = make(database_url, marks, ["f"])
    assert (report.new, report.changed) == (1, 1)
    assert query(database_url, asked) == rows


@pytest.mark.parametrize(
    ("column", "sql", "fault"),
    [
        ("numeric(3,-1)", COUNTS, "in 3 rows, column n is numeric\\(3,-1\\), which would change the value"),
        ("bigint CHECK (n < 2)", COUNTS, "SQLSTATE 23514"),
    ],
)
def test_what_a_column_would_change_or_refuse_ends_the_aggregate(
    database_url: str, tmp_path: Path, column: str, sql: str, fault: str
) -> None:
    marks = marks_profile(tmp_path, sql)
    execute(database_url, f"CREATE TABLE counts (customer_id text PRIMARY KEY, n {column} NOT NULL)")
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event(f"{n}") for n in (1, 2, 2, 3)])
    with pytest.raises(MigrationError, match=fault):
        make(database_url, marks, ["f"])
    assert query(database_url, "SELECT * FROM migration.aggregate") == []


def test_a_trigger_that_changes_an_aggregate_s_row_is_told(database_url: str, tmp_path: Path) -> None:
    marks = marks_profile(tmp_path, COUNTS)
    execute(database_url, SHAPES["trigger"].replace("RETURN NEW", "NEW.n = 0; RETURN NEW"))
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event("1")])
    with pytest.raises(MigrationError, match="a trigger of the table changed or dropped the row"):
        make(database_url, marks, ["f"])


TRIGGER = SHAPES["trigger"].partition("; ")[2]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            "ALTER TABLE counts ALTER n TYPE numeric(3,-1)",
            "table counts was changed while its rows were written: column 'n' or its type; run it again",
        ),
        (
            TRIGGER.replace("RETURN NEW", "NEW.n = 0; RETURN NEW"),
            "a trigger of the table changed or dropped the row",
        ),
        (TRIGGER, ""),
    ],
    ids=["type", "trigger", "harmless trigger"],
)
def test_a_table_that_is_changed_while_an_aggregate_is_made_is_told(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, fault: str
) -> None:
    marks = marks_profile(tmp_path, COUNTS)
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event(f"{n}") for n in (1, 2, 2, 3)])
    changes, made = [change], PartMaker.make

    def change_first(*arguments: Any) -> Any:
        if changes:
            execute(database_url, changes.pop())
        return made(*arguments)

    monkeypatch.setattr(PartMaker, "make", change_first)
    with pytest.raises(MigrationError, match=re.escape(fault)) if fault else contextlib.nullcontext():
        assert make(database_url, marks, ["f"]).rows == 3
    assert not changes
    found = query(database_url, "SELECT count(*) FROM counts")
    assert found == [(0 if fault else 3,)]


class FittedCount(Row, table="counts", key="customer_id"):
    customer_id: str
    n: Fitted[Decimal]


def test_values_that_an_aggregate_s_row_allows_to_be_rounded_are_counted(
    database_url: str, tmp_path: Path
) -> None:
    marks = marks_profile(tmp_path, COUNTS.replace("count(*)", "count(*) / 3.0"), FittedCount)
    execute(database_url, "CREATE TABLE counts (customer_id text PRIMARY KEY, n numeric(10,2) NOT NULL)")
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event(f"{n}") for n in (1, 2, 2, 2)])
    for _ in range(2):
        report = make(database_url, marks, ["f"])
        assert (report.rounded, report.changed) == ({"counts.n": 1}, 0)
    assert query(database_url, "SELECT n::text FROM counts ORDER BY 1") == [("0.33",), ("1.00",)]
    assert query(database_url, "SELECT rounded FROM migration.aggregate") == [({"counts.n": 1},)]


@pytest.mark.parametrize("key_type", ["text", 'text COLLATE "C"', "bigint", "uuid", "varchar(40)"])
def test_ranges_are_those_of_the_tables_own_key(database_url: str, tmp_path: Path, key_type: str) -> None:
    """Landed keys are text: other types order and compare them otherwise, and no range may lose or double any."""
    digits = Profile("digits")
    (tmp_path / "counts.sql").write_text(COUNTS)

    @digits.route(PK=prefix("CUSTOMER#"))
    def mark(item: MarkItem) -> Mark:
        return Mark(item.PK.removeprefix("CUSTOMER#"))

    digits.aggregate(Count, of=Mark, by="customer_id", sql=str(tmp_path / "counts.sql"))
    execute(database_url, f"CREATE TABLE counts (customer_id {key_type} PRIMARY KEY, n bigint NOT NULL)")
    execute(database_url, ddl(digits.all_tables))

    def key(number: int) -> str:
        return str(UUID(int=number)) if key_type == "uuid" else str(number)

    land(database_url, digits, "f", [event(key(n)) for n in range(2_000)])
    report = make(database_url, digits, ["f"], part_rows=200)
    assert (report.parts, report.groups, report.new) == (10, 2_000, 2_000)
    land(database_url, digits, "f", [event(key(n)) for n in range(500, 2_500)])
    report = make(database_url, digits, ["f"], part_rows=200, delete_rows=True)
    assert (report.parts, report.new, report.changed, report.deleted) == (10, 500, 0, 500)
    found = query(database_url, "SELECT customer_id::text FROM counts")
    assert sorted(found) == sorted((key(n),) for n in range(500, 2_500))


def test_few_groups_are_split_too(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event(f"{n % 24:02}") for n in range(2_400)])
    report = make(shop_database_url, shop, ["f"], part_rows=240)
    assert (report.groups, report.rows, report.parts) == (24, 24, 10)


def test_what_does_not_fit_is_refused_and_not_cut_off(database_url: str, tmp_path: Path) -> None:
    marks = marks_profile(tmp_path, COUNTS)
    execute(database_url, "CREATE TABLE counts (customer_id varchar(12) PRIMARY KEY, n bigint NOT NULL)")
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event("ab")])
    assert make(database_url, marks, ["f"]).rows == 1
    for known in ("ab", "other"):  # staged, as there are rows, and straight
        land(database_url, marks, "f", [event(known), event("abcdefghij")])
        with pytest.raises(
            MigrationError, match=r"customer_id is character varying\(12\), which would change"
        ):
            make(database_url, marks, ["f"])
        execute(database_url, "TRUNCATE counts")


class Marked(Row, table="part", key="customer_id"):
    customer_id: str


def test_a_table_that_is_all_key_is_made_again(database_url: str, tmp_path: Path) -> None:
    marks = marks_profile(tmp_path, "SELECT DISTINCT customer_id FROM landing.marks", Marked)
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event("a"), event("a"), event("b")])
    assert make(database_url, marks, ["f"]).new == 2
    land(database_url, marks, "f", [event("b"), event("c")])
    report = make(database_url, marks, ["f"], delete_rows=True)
    assert (report.rows, report.new, report.changed, report.deleted) == (2, 1, 0, 1)


def test_settings_are_those_of_its_own_transactions(database_url: str, tmp_path: Path) -> None:
    select = (
        "SELECT customer_id, (pg_size_bytes(current_setting('work_mem')) >> 20) * 100 "
        "+ current_setting('max_parallel_workers_per_gather')::int AS n FROM landing.marks GROUP BY 1"
    )
    marks = marks_profile(tmp_path, select)
    execute(database_url, ddl(marks.all_tables))
    land(database_url, marks, "f", [event("a")])
    before = query(database_url, "SHOW work_mem")
    make(database_url, marks, ["f"], work_mem_mb=7, parallel_workers=3)
    assert query(database_url, "SELECT n FROM counts") == [(703,)]
    assert query(database_url, "SHOW work_mem") == before


class Other(Row, table="others", landing=True):
    customer_id: str


class OtherCount(Row, table="other_counts", key="customer_id"):
    customer_id: str
    n: int


def test_files_that_left_the_plan_leave_all_landing_tables(database_url: str, tmp_path: Path) -> None:
    both = Profile("both")
    for name in ("marks", "others"):
        (tmp_path / f"{name}.sql").write_text(COUNTS.replace("marks", name))

    @both.route(PK=prefix("CUSTOMER#"))
    def rows(item: MarkItem) -> list[Mark | Other]:
        return [Mark(item.PK), Other(item.PK)]

    both.aggregate(Count, of=Mark, by="customer_id", sql=str(tmp_path / "marks.sql"))
    both.aggregate(OtherCount, of=Other, by="customer_id", sql=str(tmp_path / "others.sql"))
    execute(database_url, ddl(both.all_tables))
    for name in ("old", "new"):
        land(database_url, both, name, [event(name)])
    identity, file = AggregateIdentity("both", "1", "run"), LandedFile("e", "new", "md5")
    for each in both.aggregates:
        assert AggregateRun(database_url, each, [file], identity).run().rows == 1
    rest = "SELECT customer_id FROM landing.marks UNION ALL SELECT customer_id FROM landing.others"
    assert query(database_url, rest) == [("CUSTOMER#new",)] * 2


def test_an_aggregate_that_makes_no_sense_is_a_mistake_of_the_profile(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_text(" ;\n")
    made, path = Profile("made"), str(tmp_path / "a.sql")
    with pytest.raises(UsageError, match=r"a\.sql is empty"):
        made.aggregate(Count, of=Mark, by="customer_id", sql=path)
    with pytest.raises(UsageError, match="cannot read its SQL"):
        made.aggregate(Count, of=Mark, by="customer_id", sql="missing.sql")
    with pytest.raises(UsageError, match="by= names 'nothing', which must be a column"):
        made.aggregate(Count, of=Mark, by="nothing", sql=path)
    with pytest.raises(
        UsageError, match=r"'customer_id', which must be a column, .* of the landing table counts"
    ):
        made.aggregate(Count, of=Count, by="customer_id", sql=path)
    with pytest.raises(UsageError, match="must not have a key or version"):

        class _Bad(Row, table="bad", landing=True, key="a"):
            a: str


def test_a_receipt_holds_for_its_files_alone(shop_database_url: str) -> None:
    def fault(name: str) -> str:
        files = [
            receipt for (_, file), receipt in read_receipts(shop_database_url, "shop").items() if file == name
        ]
        made = read_aggregates(shop_database_url, "shop")["customer_activity"]
        return aggregate_fault(shop.aggregates[0], made, files)

    land(shop_database_url, shop, "old", [event("a")])
    land(shop_database_url, shop, "new", [event("b")])
    make(shop_database_url, shop, ["old"])
    assert fault("old") == ""
    assert fault("new") == "it was made of other files than the plan has"


def test_a_replay_makes_the_aggregate_outdated(shop_database_url: str) -> None:
    """It is replayed while the receipt is written: it waits, and its own is the later one."""
    bad = event("b") | {"at": {"S": "no time"}}
    land(shop_database_url, shop, "f", [event("a"), bad])
    execute(shop_database_url, "UPDATE migration.quarantine SET raw = convert_to(replace(convert_from(raw, 'UTF8'), 'no time', '2024-01-01T00:00:00Z'), 'UTF8')")  # fmt: skip
    identity = FileIdentity("shop", "1", "e", "f", "replay")
    replayed: list[ReplayReport] = []

    class Slow(PostgresTarget):
        """A target that takes its time before it adds rows to its slice."""

        def _write(self, cursor: Any, batch: Batch) -> Written:
            written = super()._write(cursor, batch)
            make(shop_database_url, shop, ["f"])
            return written

    with Slow(shop_database_url, shop.tables, identity) as target:
        replayed.append(replay(Transform(shop, dynamodb_json), target, LoadSettings()))
    assert replayed[0].loaded == 1
    (receipt,) = read_receipts(shop_database_url, "shop").values()
    made = read_aggregates(shop_database_url, "shop")["customer_activity"]
    assert made.groups == 1
    assert aggregate_fault(shop.aggregates[0], made, [receipt]) == "1 file was loaded after it was made"


def test_the_time_is_that_of_the_exports_that_are_landed(picture_url: str) -> None:
    items = odd_items(random.Random(2), 20)
    land(picture_url, picture_profile, "old", items)
    land(picture_url, picture_profile, "new", items)
    execute(picture_url, "UPDATE migration.loaded_file SET export_time = export_time + interval '1 year' WHERE file = 'old'")  # fmt: skip
    make(picture_url, picture_profile, ["new"])
    assert query(picture_url, 'SELECT DISTINCT "createdAt", "updatedAt" FROM picture') == [
        (EXPORTED, EXPORTED)
    ]


# -- faults ----------------------------------------------------------------------------------------


def test_a_lost_connection_is_made_anew_and_the_part_again(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event(f"{n:05}") for n in range(3_000)])
    killed: list[int] = []

    def kill(said: str) -> None:
        if "parts" in said and len(killed) < 2:
            found = query(
                shop_database_url,
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
                "AND application_name LIKE 'migration_pipeline%'",
            )
            killed.append(found[0][0])

    report = make(shop_database_url, shop, ["f"], kill, part_rows=100, sessions=2)
    assert sum(killed) > 1
    assert report.retries > 0
    assert (report.groups, report.rows, report.parts) == (3_000, 3_000, 30)
    assert query(shop_database_url, "SELECT count(*), sum(events) FROM customer_activity") == [(3_000, 3_000)]


def test_files_that_land_meanwhile_keep_the_receipt_back(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event(f"{n:05}") for n in range(500)])

    def again(said: str) -> None:
        if "landed rows" in said:
            land(shop_database_url, shop, "f", [event(f"{n:05}") for n in range(500)])

    with pytest.raises(MigrationError, match="loaded again while the aggregate was being made"):
        make(shop_database_url, shop, ["f"], again)
    assert query(shop_database_url, "SELECT * FROM migration.aggregate") == []


def test_the_receipt_waits_for_files_that_are_just_landing(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event("a")])
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
        "AND query LIKE 'LOCK TABLE migration.slice%'"
    )
    landing = psycopg2.connect(shop_database_url)
    landing.cursor().execute("UPDATE migration.slice SET batches = batches")
    thread = threading.Thread(target=make, args=(shop_database_url, shop, ["f"]))
    thread.start()
    deadline = time.monotonic() + 30
    while query(shop_database_url, waits) == [(0,)] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert query(shop_database_url, waits) == [(1,)]
    assert query(shop_database_url, "SELECT * FROM migration.aggregate") == []
    landing.commit()
    landing.close()
    thread.join()
    assert query(shop_database_url, "SELECT rows FROM migration.aggregate") == [(1,)]


def test_an_interruption_ends_the_statement_that_runs(shop_database_url: str, tmp_path: Path) -> None:
    """As Dagster's Terminate does it: an exception in the thread that waits."""
    import _thread

    marks = marks_profile(
        tmp_path, "SELECT customer_id, count(pg_sleep(300)) AS n FROM landing.marks GROUP BY 1"
    )
    execute(shop_database_url, ddl(marks.all_tables))
    land(shop_database_url, marks, "f", [event("a")])
    running = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(300)%' AND state = 'active'"
    other = f"{running} AND pid <> pg_backend_pid()"

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while query(shop_database_url, other) == [(0,)] and time.monotonic() < deadline:
            time.sleep(0.05)
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        make(shop_database_url, marks, ["f"])
    thread.join()
    assert query(shop_database_url, other) == [(0,)]


HELD = """
CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$;
CREATE TRIGGER slowly BEFORE INSERT ON customer_activity FOR EACH STATEMENT EXECUTE FUNCTION slowly();
"""

KILLED = """
import sys
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, AggregateSettings, LandedFile
shop, file = load_profile("shop"), LandedFile("e", "f", "md5")
settings = AggregateSettings(part_rows=100)
AggregateRun(sys.argv[1], shop.aggregates[0], [file], AggregateIdentity("shop", "1", "killed"), settings).run()
"""


def test_what_a_killed_process_has_made_is_completed(shop_database_url: str) -> None:
    land(shop_database_url, shop, "f", [event(f"{n:05}") for n in range(3_000)])
    execute(shop_database_url, HELD)
    process = subprocess.Popen([sys.executable, "-c", KILLED, shop_database_url])
    rows, deadline = 0, time.monotonic() + 60
    while not rows and time.monotonic() < deadline:
        ((rows,),) = query(shop_database_url, "SELECT count(*) FROM customer_activity")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < rows < 3_000
    assert query(shop_database_url, "SELECT * FROM migration.aggregate") == []
    execute(shop_database_url, "DROP TRIGGER slowly ON customer_activity")
    report = make(shop_database_url, shop, ["f"], part_rows=100)
    assert (report.rows, report.changed) == (3_000, 0)
    assert 0 < report.unchanged < 3_000
    assert query(shop_database_url, "SELECT count(*), sum(events) FROM customer_activity") == [(3_000, 3_000)]


# -- finishing -------------------------------------------------------------------------------------


def test_finishing_may_be_repeated_and_never_sets_a_sequence_back(picture_url: str) -> None:
    execute(picture_url, "CREATE SEQUENCE picture_id_seq")
    land(picture_url, picture_profile, "f", odd_items(random.Random(1), 50))
    make(picture_url, picture_profile, ["f"])
    (greatest,) = query(picture_url, "SELECT max(id) FROM picture")[0]
    report = finish(picture_url, picture_profile, drop_landing=False)
    assert report.sequences == {"picture_id_seq": greatest}
    assert report.analyzed == ["picture"]
    assert query(picture_url, "SELECT nextval('picture_id_seq')") == [(greatest + 1,)]
    assert finish(picture_url, picture_profile, drop_landing=False).sequences == {}
    assert query(picture_url, "SELECT nextval('picture_id_seq')") == [(greatest + 2,)]
    # Dropped landing tables leave the rows, and a clear word when the aggregate is wanted again.
    # So does what a killed load has left, but not what a live one has, or one in a transaction however long.
    begun = (
        "INSERT INTO migration.slice (profile, export_id, file, run_id, alive_until) "
        "VALUES ('pictures', 'e', %s, 'r', now() + %s::interval) RETURNING id"
    )
    kept = []
    with closing(psycopg2.connect(picture_url)) as live, live.cursor() as cursor:
        for name, alive in (("killed", "-1 s"), ("live", "1 min"), ("waiting", "-1 s")):
            cursor.execute(begun, (name, alive))
            ((number,),) = cursor.fetchall()
            cursor.execute(f"CREATE TABLE landing.picture_items_{number} (LIKE landing.picture_items)")
            if name != "killed":
                kept.append((f"picture_items_{number}",))
        live.commit()
        cursor.execute("UPDATE migration.slice SET batches = 1 WHERE file = 'waiting'")
        assert finish(picture_url, picture_profile, drop_landing=True).dropped == 2
    left = "SELECT relname FROM pg_class WHERE relname LIKE 'picture\\_items\\__' ORDER BY 1"
    assert query(picture_url, left) == kept
    assert query(picture_url, "SELECT count(*) FROM landing.picture_items") == [(0,)]
    assert query(picture_url, "SELECT count(*) > 0 FROM picture") == [(True,)]
    with pytest.raises(MigrationError, match="1 of 1 file is not landed"):
        make(picture_url, picture_profile, ["f"])


def test_indexes_and_constraints_are_made_once(shop_database_url: str) -> None:
    made = Profile("shop")
    made.route(SK=prefix("EVENT#"))(shop.rules[3].function)  # type: ignore[type-var]
    activity = shop.aggregates[0].row_class
    made.aggregates.append(shop.aggregates[0])
    made.index(activity, "last_event_at", "events", name="by time")
    made.constraint(activity, "CHECK (events > 0)", name="some")
    assert finish(shop_database_url, made, False).made == ["by time", "some"]
    assert finish(shop_database_url, made, False).made == []
    made.constraint(activity, "CHECK (events < 0)", name="none")
    land(shop_database_url, shop, "f", [event("a")])
    make(shop_database_url, shop, ["f"])
    with pytest.raises(DatabaseError, match=r"finishing, constraint none: .*SQLSTATE 23514") as told:
        finish(shop_database_url, made, False)
    assert told.value.sqlstate == "23514"
