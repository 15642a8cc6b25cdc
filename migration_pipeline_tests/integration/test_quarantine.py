"""Bad items on a real PostgreSQL: isolated, kept, replayed; U+0000; two items of one key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from migration_pipeline import EpochSeconds, Item, Options, Profile, Row, prefix
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.batch import Batch
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.migration.replay import ReplayReport, replay, replay_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.upsert import TableWriter
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import line_of, write_export
from migration_pipeline_tests.oracle import actual, data_lines, expected

shop = load_profile("shop")


class Lines:
    """A source of lines in memory."""

    bytes_read, md5 = 0, "md5"

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines

    def __iter__(self) -> Iterator[list[bytes]]:
        yield self.lines

    def verify(self) -> None:
        pass


def load_lines(url: str, profile: Profile, lines: list[bytes], file: str = "f", **options: Any) -> FileReport:
    identity = FileIdentity(profile.name, profile.version, "export", file, "run")
    with PostgresTarget(url, profile.tables, identity, nul=profile.nul) as target:
        settings = LoadSettings(**({"max_bad_share": 1.0} | options))
        return FileLoad(
            file, len(lines), Lines(lines), Transform(profile, dynamodb_json), target, settings
        ).run()


def replay_file(url: str, profile: Profile, export_id: str = "export", file: str = "f") -> ReplayReport:
    identity = FileIdentity(profile.name, profile.version, export_id, file, "replay")
    with PostgresTarget(url, profile.tables, identity, nul=profile.nul) as target:
        return replay(Transform(profile, dynamodb_json), target, LoadSettings(batch_items=7))


def load_shop(url: str, export: Export, **options: Any) -> list[FileReport]:
    reports = []
    for file in export.files:
        identity = FileIdentity("shop", "1", export.id, file.name, "run")
        with PostgresTarget(url, shop.tables, identity) as target:
            load = FileLoad(
                file.name,
                file.items,
                FileStream(file, Storage()),
                Transform(shop, dynamodb_json),
                target,
                LoadSettings(**options),
            )
            reports.append(load.run())
    return reports


@pytest.fixture
def connection(shop_database_url: str) -> Iterator[Any]:
    made = psycopg2.connect(shop_database_url)
    yield made
    made.close()


@pytest.mark.parametrize("batch_items", [3, 100, 10_000])
def test_bad_items_are_quarantined_and_all_others_loaded(
    shop_database_url: str, tmp_path: Path, connection: Any, batch_items: int
) -> None:
    """Of every kind that the sample plants; and once more: a rerun finds the same."""
    export = read_export(str(write_sample(tmp_path, items=3_000, files=3, seed=5, bad=40)), Storage())
    planted = [json.loads(line) for line in (tmp_path / "bad-items.jsonl").read_text().splitlines()]
    places = {(bad["file"], bad["line"]): bad for bad in planted}
    assert len({bad["kind"] for bad in planted}) >= 12
    raw = {(name, number): line.rstrip(b"\n") for name, number, line in data_lines(Path(export.uri))}
    rows, _ = expected(Path(export.uri), leave_out=places)
    for _ in range(2):
        reports = load_shop(shop_database_url, export, batch_items=batch_items)
        assert all(report.conserved for report in reports)
        assert sum(report.quarantined for report in reports) == len(planted) == 40
        found = query(
            shop_database_url,
            "SELECT file, line, raw, table_name, sqlstate, reason, export_id, profile_version "
            "FROM migration.quarantine",
        )
        assert {(file, line) for file, line, *_ in found} == set(places)
        for file, line, kept, table, sqlstate, reason, export_id, version in found:
            assert bytes(kept) == raw[file, line]
            in_database = places[file, line]["stage"] == "database"
            assert (sqlstate is not None) == in_database, (places[file, line], reason)
            assert reason
            assert table in ((*rows, None) if in_database else (None,))
            assert (export_id, version) == (export.id, "1")
        assert actual(connection) == rows


def test_no_reason_tells_a_value(shop_database_url: str, tmp_path: Path) -> None:
    export = read_export(str(write_sample(tmp_path, items=2_000, files=1, seed=5, bad=40)), Storage())
    (report,) = load_shop(shop_database_url, export)
    raws = query(shop_database_url, "SELECT raw, reason FROM migration.quarantine")
    for raw, reason in raws:
        try:
            item = json.loads(bytes(raw))["Item"]
        except (ValueError, KeyError, TypeError):
            continue
        for attribute in item.values() if isinstance(item, dict) else ():
            for value in attribute.values() if isinstance(attribute, dict) else ():
                if isinstance(value, str) and len(value) > 3:
                    assert value not in reason
    assert sum(report.quarantined_by_reason.values()) == 40


def test_halving_costs_few_batches(shop_database_url: str, tmp_path: Path, monkeypatch: Any) -> None:
    """O(bad × log batch) copies: one bad item among 1,000 takes about 2 × log2(1,000) of them."""
    export = read_export(str(write_sample(tmp_path, items=1_300, files=1, seed=2)), Storage())
    execute(
        shop_database_url,
        "ALTER TABLE order_lines ADD CHECK (md5(order_id || line_no) > '01000000000000000000000000000000')",
    )
    copies: list[TableWriter] = []
    write = TableWriter.write

    def counted(writer: TableWriter, cursor: Any, encoded: Any) -> Any:
        copies.append(writer)
        return write(writer, cursor, encoded)

    monkeypatch.setattr(TableWriter, "write", counted)
    (report,) = load_shop(shop_database_url, export)
    assert 1 <= report.quarantined <= 4
    assert len(copies) <= 1 + report.quarantined * 2 * 11


def test_the_rows_of_an_item_come_and_go_together(database_url: str) -> None:
    """An item that makes two rows, one of which is refused, is quarantined whole."""
    p, lines = pairs("1")
    execute(database_url, ddl([*p.tables.values()]))
    execute(database_url, "ALTER TABLE seconds ADD CHECK (id <> 'PAIR#5')")
    report = load_lines(database_url, p, lines)
    assert (report.loaded, report.quarantined) == (9, 1)
    assert query(database_url, "SELECT count(*) FROM firsts") == [(9,)]
    assert query(database_url, "SELECT count(*) FROM firsts WHERE id = 'PAIR#5'") == [(0,)]
    assert query(database_url, "SELECT line, table_name, sqlstate FROM migration.quarantine") == [
        (6, "seconds", "23514")
    ]


class Pair(Item):
    PK: str


class First(Row, table="firsts", key="id"):
    id: str


class Second(Row, table="seconds", key="id"):
    id: str
    version: str


def pairs(version: str, fails: str = "") -> tuple[Profile, list[bytes]]:
    p = Profile("pairs", version=version)

    @p.route(PK=prefix("PAIR#"))
    def pair(item: Pair) -> list[First | Second]:
        if fails == item.PK:
            raise KeyError(item.PK)
        return [First(item.PK), Second(item.PK, version)]

    return p, [json.dumps({"Item": {"PK": {"S": f"PAIR#{n}"}}}).encode() for n in range(10)]


def test_a_deferred_constraint_is_found_in_its_batch(database_url: str) -> None:
    p, lines = pairs("1")
    execute(database_url, ddl([*p.tables.values()]))
    execute(
        database_url, "ALTER TABLE seconds ADD kind text UNIQUE DEFERRABLE INITIALLY DEFERRED DEFAULT 'only'"
    )
    report = load_lines(database_url, p, lines)
    assert (report.loaded, report.quarantined) == (1, 9)


def receipt(url: str) -> dict[str, Any]:
    ((row,),) = query(url, "SELECT to_jsonb(f) FROM migration.loaded_file f")
    return dict(row)


def test_replay_after_the_table_is_mended(database_url: str) -> None:
    p, lines = pairs("1")
    execute(database_url, ddl([*p.tables.values()]))
    load_lines(database_url, p, lines)
    whole = query(database_url, "SELECT * FROM seconds ORDER BY id"), receipt(database_url)
    execute(database_url, "TRUNCATE firsts, seconds, migration.loaded_file")
    execute(database_url, "ALTER TABLE seconds ADD CONSTRAINT c CHECK (id < 'PAIR#7')")
    load_lines(database_url, p, lines)
    assert replay_file(database_url, p).quarantined == 3, "it is as bad as before"
    assert receipt(database_url)["quarantined"] == 3
    execute(database_url, "ALTER TABLE seconds DROP CONSTRAINT c")
    report = replay_file(database_url, p)
    assert (report.items, report.loaded, report.quarantined) == (3, 3, 0)
    assert query(database_url, "SELECT count(*) FROM migration.quarantine") == [(0,)]
    mended = receipt(database_url)
    for name in ("items", "loaded", "skipped", "quarantined", "rows"):
        assert mended[name] == whole[1][name]
    assert query(database_url, "SELECT * FROM seconds ORDER BY id") == whole[0]
    assert replay_file(database_url, p).items == 0


@pytest.mark.parametrize("way", ["replay", "rerun"])
def test_items_that_a_mended_profile_takes_leave_the_quarantine(database_url: str, way: str) -> None:
    p, lines = pairs("1", fails="PAIR#3")
    lines = [*lines, b"nonsense", b'{"Item":{"PK":{"S":"OTHER#1"}}}']
    execute(database_url, ddl([*p.tables.values()]))
    load_lines(database_url, p, lines)
    assert query(database_url, "SELECT line, reason FROM migration.quarantine ORDER BY line")[0][0] == 4
    mended, _ = pairs("2")
    if way == "replay":
        report = replay_file(database_url, mended)
        assert (report.items, report.loaded, report.quarantined) == (2, 1, 1)
        assert receipt(database_url)["profile_version"] == "1"
    else:
        load_lines(database_url, mended, lines)
    assert query(database_url, "SELECT line FROM migration.quarantine") == [(11,)]
    assert query(database_url, "SELECT count(*) FROM seconds") == [(10,)]
    found = receipt(database_url)
    assert (found["loaded"], found["quarantined"], found["skipped"]) == (10, 1, {"unrouted": 1})


def test_items_that_the_profile_skips_now_leave_the_quarantine(database_url: str) -> None:
    p, lines = pairs("1", fails="PAIR#3")
    execute(database_url, ddl([*p.tables.values()]))
    load_lines(database_url, p, lines)
    mended = Profile("pairs", version="2")
    mended.ignore(PK="PAIR#3", because="broken at the source")
    mended.rules += pairs("2")[0].rules
    mended.row_classes = p.row_classes
    report = replay_file(database_url, mended)
    assert (report.items, report.skipped, report.quarantined) == (1, 1, 0)
    found = receipt(database_url)
    assert (found["loaded"], found["quarantined"], found["skipped"]) == (9, 0, {"broken at the source": 1})


def test_replay_of_a_file_that_is_not_loaded_is_refused(database_url: str) -> None:
    p, lines = pairs("1", fails="PAIR#3")
    execute(database_url, ddl([*p.tables.values()]))
    load_lines(database_url, p, lines)
    execute(database_url, "TRUNCATE migration.loaded_file")
    with pytest.raises(MigrationError, match="it has no receipt"):
        replay_file(database_url, p)
    assert query(database_url, "SELECT count(*) FROM migration.quarantine") == [(1,)]


# -- U+0000 -------------------------------------------------------------------------------------------


class Texts(Item):
    PK: str
    text: str
    document: dict[str, Any]


class TextRow(Row, table="texts", key="id"):
    id: str
    text: str
    document: dict[str, Any]


def texts(nul: Any) -> tuple[Profile, list[bytes]]:
    p = Profile("texts", nul=nul)

    @p.route(PK=prefix("T#"))
    def text(item: Texts) -> TextRow:
        return TextRow(item.PK, item.text, item.document)

    def line(key: str, value: str, member: str) -> bytes:
        item = {"PK": {"S": key}, "text": {"S": value}, "document": {"M": {member: {"S": member}}}}
        return json.dumps({"Item": item}).encode()

    return p, [
        line("T#1", "no \\u0000 here", "\\u0000 nor \\\\here"),
        line("T#2", "a\0b\\\0\n", "m"),
        line("T#3", "t", "x\0y"),
        line("T#4\0", "t", "m"),
    ]


@pytest.mark.parametrize(
    ("nul", "rows", "changed"),
    [
        ("quarantine", [("T#1", "no \\u0000 here", {"\\u0000 nor \\\\here": "\\u0000 nor \\\\here"})], 0),
        (
            "strip",
            [
                ("T#1", "no \\u0000 here", {"\\u0000 nor \\\\here": "\\u0000 nor \\\\here"}),
                ("T#2", "ab\\\n", {"m": "m"}),
                ("T#3", "t", {"xy": "xy"}),
                ("T#4", "t", {"m": "m"}),
            ],
            4,
        ),
        (
            "escape",
            [
                ("T#1", "no \\u0000 here", {"\\u0000 nor \\\\here": "\\u0000 nor \\\\here"}),
                ("T#2", "a\\u0000b\\\\u0000\n", {"m": "m"}),
                ("T#3", "t", {"x\\u0000y": "x\\u0000y"}),
                ("T#4\\u0000", "t", {"m": "m"}),
            ],
            4,
        ),
    ],
)
@pytest.mark.parametrize("batch_items", [1, 100])
def test_u0000_becomes_what_the_profile_says(
    database_url: str, nul: str, rows: Any, changed: int, batch_items: int
) -> None:
    p, lines = texts(nul)
    execute(database_url, ddl([*p.tables.values()]))
    report = load_lines(database_url, p, lines, batch_items=batch_items)
    assert query(database_url, "SELECT id, text, document FROM texts ORDER BY id") == rows
    assert (report.nul, report.quarantined) == (changed, 4 - len(rows))
    assert report.conserved
    found = query(database_url, "SELECT line, sqlstate FROM migration.quarantine ORDER BY line")
    assert found == ([(2, "22021"), (3, "22P05"), (4, "22021")] if nul == "quarantine" else [])


# -- two items of one key -----------------------------------------------------------------------------


class Event(Item):
    PK: str
    at: EpochSeconds
    what: str


class Plain(Row, table="plain", key="id"):
    id: str
    at: Any
    what: str


class Versioned(Row, table="versioned", key="id", version="at"):
    id: str
    at: int | None
    what: str


class Numbered(Item):
    PK: str
    at: int | None
    what: str


def versioned(version: str = "1", suffix: str = "") -> Profile:
    p = Profile("versions", version=version)

    @p.route(PK=prefix("V#"))
    def latest(item: Numbered) -> Versioned:
        return Versioned(item.PK, item.at, item.what + suffix)

    return p


def event(key: str, at: int | None, what: str) -> bytes:
    when = {"NULL": True} if at is None else {"N": str(at)}
    return json.dumps({"Item": {"PK": {"S": f"V#{key}"}, "at": when, "what": {"S": what}}}).encode()


@pytest.mark.parametrize("batch_items", [1, 10])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_the_greater_version_stays_in_any_order(
    database_url: str, batch_items: int, order: tuple[int, ...]
) -> None:
    """In one batch, across batches, across files, and when they are loaded again."""
    execute(database_url, ddl([*versioned().tables.values()]))
    files = [
        [event("a", 10, "new"), event("b", 1, "old"), event("c", None, "never")],
        [event("a", 9, "old"), event("b", 2, "new"), event("c", 1, "once"), event("c", None, "never")],
        [event("a", -1, "oldest"), event("b", None, "never"), event("a", 8, "older")],
    ]
    for number in (*order, *order):
        load_lines(database_url, versioned(), files[number], f"f{number}", batch_items=batch_items)
    assert query(database_url, "SELECT id, at, what FROM versioned ORDER BY id") == [
        ("V#a", 10, "new"),
        ("V#b", 2, "new"),
        ("V#c", 1, "once"),
    ]
    # A mended profile still replaces the row, whose version is the same.
    for number in order:
        load_lines(database_url, versioned("2", "!"), files[number], f"f{number}", batch_items=batch_items)
    assert query(database_url, "SELECT what FROM versioned ORDER BY id") == [("new!",), ("new!",), ("once!",)]


def test_colliding_keys_are_counted_and_shown(database_url: str) -> None:
    """Without a version: inside a batch exactly, across files by the rows that they replaced."""
    p = Profile("plain")

    @p.route(PK=prefix("V#"))
    def plain(item: Numbered) -> Plain:
        return Plain(item.PK, item.at, item.what)

    execute(database_url, ddl([*p.tables.values()]))
    one = load_lines(database_url, p, [event("a", 1, "x"), event("a", 1, "y"), event("b", 1, "x")], "f1")
    assert (one.collisions, one.changed, one.rows) == ({"plain": 1}, 0, {"plain": 2})
    two = load_lines(database_url, p, [event("b", 1, "other"), event("c", 1, "x")], "f2")
    assert (two.collisions, two.changed) == ({}, 1)
    assert query(database_url, "SELECT file, table_name, key FROM migration.collision") == [
        ("f2", "plain", {"id": "V#b"})
    ]
    again = load_lines(database_url, p, [event("b", 1, "other"), event("c", 1, "x")], "f2")
    assert again.changed == 0
    ((rows,),) = query(database_url, "SELECT count(*) FROM plain")
    ((receipts,),) = query(database_url, "SELECT sum((rows->>'plain')::int)::int FROM migration.loaded_file")
    assert receipts - rows == 1


def test_rows_that_a_mended_profile_changes_are_no_collisions(database_url: str) -> None:
    p, lines = pairs("1")
    execute(database_url, ddl([*p.tables.values()]))
    load_lines(database_url, p, lines)
    report = load_lines(database_url, pairs("2")[0], lines)
    assert report.changed == 10
    assert query(database_url, "SELECT * FROM migration.collision") == []


def test_a_row_that_cannot_be_encoded_makes_its_item_a_bad_one(database_url: str) -> None:
    p = Profile("plain")

    @p.route(PK=prefix("V#"))
    def plain(item: Numbered) -> Plain:
        return Plain(
            item.PK, object() if item.what == "object" else "\ud800" if item.what == "lone" else 1, "w"
        )

    execute(database_url, ddl([*p.tables.values()]))
    lines = [event("a", 1, "x"), event("b", 1, "object"), event("c", 1, "lone"), event("d", 1, "x")]
    report = load_lines(database_url, p, lines)
    assert (report.loaded, report.quarantined, report.rows) == (2, 2, {"plain": 2})
    assert report.conserved
    assert query(database_url, "SELECT line FROM migration.quarantine ORDER BY line") == [(2,), (3,)]


@pytest.mark.parametrize("batch_items", [2, 100])
def test_a_key_that_is_none_makes_its_item_a_bad_one(database_url: str, batch_items: int) -> None:
    """A None, a list, and values that cannot be compared, which a profile's annotations did not keep out."""
    p = Profile("plain")
    keys: dict[str, Any] = {"none": None, "list": ["x"], "number": 5}

    @p.route(PK=prefix("V#"))
    def plain(item: Numbered) -> Plain:
        return Plain(keys.get(item.what, item.PK), 1, "w")

    execute(database_url, ddl([*p.tables.values()]))
    lines = [event(str(n), 1, what) for n, what in enumerate(["x", "none", "x", "list", "x", "number", "x"])]
    report = load_lines(database_url, p, lines, batch_items=batch_items)
    assert (report.loaded, report.quarantined) == (5, 2)
    assert report.conserved
    assert query(database_url, "SELECT line FROM migration.quarantine ORDER BY line") == [(2,), (4,)]
    assert query(database_url, "SELECT count(*), count(*) FILTER (WHERE id = '5') FROM plain") == [(5, 1)]


def test_batches_keep_their_lines_small(database_url: str) -> None:
    """What a batch holds of memory is counted: encoded rows, and the lines kept for halving."""
    p, lines = pairs("1")
    transform = Transform(p, dynamodb_json)
    target = PostgresTarget(database_url, p.tables, FileIdentity("p", "1", "e", "f", "r"))
    batch = Batch.of(transform, target.encoder, lines, range(1, len(lines) + 1))
    assert batch.size == batch.encoded.size + sum(map(len, lines))


class Limit(Options):
    below: int = 100


class Limited(Item):
    id: str
    n: int


def test_a_replay_has_the_options_of_the_plan(database_url: str, tmp_path: Path) -> None:
    def limited(version: str) -> Profile:
        p = Profile("limited", version=version)

        @p.route()
        def plain(item: Limited, options: Limit) -> Plain | None:
            if version == "1":
                raise ValueError
            return Plain(item.id, item.n, "") if item.n < options.below else None

        return p

    items = [{"id": {"S": f"i{n}"}, "n": {"N": str(n)}} for n in range(8)]
    export = read_export(str(write_export(tmp_path, [items])), Storage())
    plan = make_plan(limited("1"), "limited", [export], options={"below": "3"})
    execute(database_url, ddl([*limited("1").tables.values()]))
    lines, (file,) = [line_of(item) for item in items], export.files
    identity = FileIdentity("limited", "1", export.id, file.name, "run")
    with PostgresTarget(database_url, limited("1").tables, identity) as target:
        source, transform = Lines(lines), Transform(limited("1"), dynamodb_json)
        FileLoad(file.name, 8, source, transform, target, LoadSettings(max_bad_share=1)).run()
    report = replay_plan(plan, limited("2"), database_url, "replay", lambda _: None)
    assert (report.items, report.loaded, report.skipped) == (8, 3, 5)
    assert query(database_url, "SELECT count(*) FROM plain") == [(3,)]


def test_two_replays_at_once_count_their_items_once(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    p, lines = pairs("1", fails="PAIR#3")
    execute(database_url, ddl([*p.tables.values()]))
    load_lines(database_url, p, lines)
    mended, _ = pairs("2")
    identity = FileIdentity("pairs", "2", "export", "f", "replay")
    with PostgresTarget(database_url, mended.tables, identity) as late:
        seen = late.quarantined()
        assert replay_file(database_url, mended).loaded == 1
        before = receipt(database_url)
        monkeypatch.setattr(late, "quarantined", lambda: seen)
        with pytest.raises(MigrationError, match="its quarantine changed meanwhile"):
            replay(Transform(mended, dynamodb_json), late, LoadSettings())
    assert receipt(database_url) == before
