"""Many items, one row: landing slices and aggregates on a real PostgreSQL, held against oracles."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from migration_pipeline import Profile
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.report import FileReport
from migration_pipeline.engine.transform import Transform
from migration_pipeline.profile import load_profile
from migration_pipeline.profiles.pictures import PictureOptions
from migration_pipeline.sample import write_sample
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.aggregate import (
    AggregateIdentity,
    AggregateReport,
    AggregateRun,
    AggregateSettings,
    LandedFile,
)
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
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
    (aggregate,) = profile.aggregates
    identity = AggregateIdentity(profile.name, "1", "run")
    patience = DatabaseSettings(retry_seconds=20)
    return AggregateRun(url, aggregate, landed, identity, AggregateSettings(**settings), patience, say).run()


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
    """Items of few pictures, so that they meet, and contradict each other, in every attribute."""
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
            "pictureId": number(1, 2, 3, 9, 10, 2**40),
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


def test_the_sample_of_pictures_is_what_the_oracle_makes_of_it(picture_url: str, tmp_path: Path) -> None:
    export = read_export(
        str(write_sample(tmp_path, items=6_000, files=5, seed=4, profile="pictures")), Storage()
    )
    load(picture_url, picture_profile, export)
    report = make(picture_url, picture_profile, files_of(export), part_rows=1000)
    assert report.parts > 3
    items = [json.loads(line)["Item"] for _, _, line in data_lines(Path(export.uri))]
    exported = datetime.fromisoformat(export.export_time.replace("Z", "+00:00"))
    rows = pictures(items, exported)
    assert query(picture_url, SELECT) == rows
    assert report.groups == report.rows == len(rows) == 2_000


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
