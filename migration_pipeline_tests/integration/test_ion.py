"""Exports in Ion through everything that reads items, into a real PostgreSQL: the same tables as from DynamoDB JSON."""

from __future__ import annotations

import json
import random
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import psycopg2
import pytest
from click.testing import CliRunner

from migration_pipeline import Item, Profile, Row, WholeItem, prefix
from migration_pipeline.cli import main
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.sample_ion import ion_line
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.migration.verification import dry_run, verify
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.settings import ACCELERATOR, plans_dir
from migration_pipeline.sources.export import OutputFormat, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import accelerator_is_to_be_there, execute, query
from migration_pipeline_tests.exports import ion_line_of, write_export
from migration_pipeline_tests.fuzz_ion import Items
from migration_pipeline_tests.histories import History, Write, dealt, load, plan_of, state, write_files
from migration_pipeline_tests.integration.test_windows import TABLES, chain, empty, item
from migration_pipeline_tests.oracle import checksum

shop = load_profile("shop")

anything = Profile("anything", nul="escape")


class Odd(Item):
    PK: str
    n: Any
    aB_9: Any
    everything: WholeItem


class Thing(Row, table="thing", key="id"):
    id: str
    n: Any
    other: Any
    everything: dict[str, Any]


@anything.route(PK=prefix("T"))
def thing(item: Odd) -> Thing:
    return Thing(item.PK, item.n, item.aB_9, item.everything)


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_random_items_are_the_same_in_every_column(
    mode: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all ten types, nested, with numbers of all sizes: the columns' texts are compared, so numbers are spelled the same."""
    monkeypatch.setenv(ACCELERATOR, mode)
    execute(database_url, ddl(anything.all_tables))
    made = Items(random.Random(17))
    items = [made.item() | {"PK": {"S": f"T{n}"}} for n in range(600)]
    found = {}
    for output_format in ("DYNAMODB_JSON", "ION"):
        plan = planned(anything, tmp_path / output_format, items, output_format)
        (report,) = load(plan, anything, database_url, batch_items=100).values()
        found[output_format] = query(database_url, "SELECT t::text FROM thing t ORDER BY id")
        assert (report.loaded, report.quarantined) == (600, 0), report.quarantined_by_reason
        execute(database_url, "TRUNCATE thing")
    assert found["ION"] == found["DYNAMODB_JSON"]


def planned(profile: Profile, folder: Path, items: list[Any], output_format: Any) -> Plan:
    export = write_export(
        folder, [items], output_format=output_format, export_id=f"0170000000000-{output_format[0]}"
    )
    return make_plan(profile, profile.name, [read_export(str(export), Storage())])


def sample(folder: Path, output_format: OutputFormat, bad: int = 0) -> Plan:
    export = write_sample(folder, items=4_000, files=3, seed=7, bad=bad, output_format=output_format)
    return make_plan(shop, "shop", [read_export(str(export), Storage())])


def test_a_sample_loads_and_verifies_as_the_one_in_json(
    shop_database_url: str, database_url: str, tmp_path: Path
) -> None:
    in_ion, in_json = (
        sample(tmp_path / "ion", "ION", bad=30),
        sample(tmp_path / "json", "DYNAMODB_JSON", bad=30),
    )
    said = dry_run(in_ion, shop, shop_database_url, in_ion.files)
    reports = list(load(in_ion, shop, shop_database_url, batch_items=1000).values())
    for name in ("customers", "orders", "order_lines"):
        assert said.table(name).compared == sum(report.rows.get(name, 0) for report in reports) > 100
    kept = query(shop_database_url, "SELECT line, raw FROM migration.quarantine ORDER BY file, line")
    with closing(psycopg2.connect(shop_database_url)) as connection:
        loaded = checksum(connection)
    compared = verify(in_ion, shop, shop_database_url, "run", extra=True)
    assert {name: dict(+compared.table(name).found) for name in ("customers", "orders", "order_lines")} == {
        "customers": {}, "orders": {}, "order_lines": {},
    }  # fmt: skip
    assert compared.table("customers").same > 100
    planted = [json.loads(each) for each in (tmp_path / "ion" / "bad-items.jsonl").read_text().splitlines()]
    assert sum(report.quarantined for report in reports) == len(kept) == len(planted) == 30
    assert all(bytes(raw).startswith((b" $ion_1_0 ", b"[")) for _, raw in kept), (
        "they are as they stand in the file"
    )

    execute(
        shop_database_url,
        "TRUNCATE customers, orders, order_lines, landing.shop_events, migration.slice, migration.quarantine, migration.loaded_file CASCADE",
    )
    others = list(load(in_json, shop, shop_database_url, batch_items=1000).values())
    with closing(psycopg2.connect(shop_database_url)) as connection:
        assert checksum(connection) == loaded
    assert [(one.rows, one.skipped, one.quarantined) for one in reports] == [
        (one.rows, one.skipped, one.quarantined) for one in others
    ]


class Counted(Item):
    PK: str
    n: int


class Count(Row, table="counts", key="id"):
    id: str
    n: int


def limited(most: int) -> Profile:
    made = Profile("limited", may_quarantine=100)

    @made.route(PK=prefix("T"))
    def count(item: Counted) -> Count:
        if item.n > most:
            raise ValueError("too many")
        return Count(item.PK, item.n)

    return made


def test_bad_lines_are_kept_as_they_are_and_replayed(database_url: str, tmp_path: Path) -> None:
    execute(database_url, ddl(limited(1).all_tables))
    lines: list[Any] = [{"PK": {"S": f"T{n}"}, "n": {"N": str(n * 10)}} for n in range(4)]
    lines[2:2] = [b' $ion_1_0 {Item:{PK:"T9",n:1e5}}', b' $ion_1_0 {Item:{PK:"T9"']
    plan = planned(limited(15), tmp_path, lines, "ION")
    load(plan, limited(15), database_url)
    kept = "SELECT line, raw, reason FROM migration.quarantine ORDER BY line"
    found = [(line, bytes(raw), reason) for line, raw, reason in query(database_url, kept)]
    assert [(line, raw) for line, raw, _ in found] == [
        (3, lines[2]),
        (4, lines[3]),
        (5, ion_line_of(lines[4])),
        (6, ion_line_of(lines[5])),
    ]
    assert found[0][2] == "a float, which DynamoDB does not write in an export"
    assert "ends in the middle" in found[1][2]
    told = replay_plan(plan, limited(100), database_url, "replay", lambda _: None)
    assert (told.items, told.loaded, told.quarantined) == (4, 2, 2)
    assert query(database_url, "SELECT id, n FROM counts ORDER BY id") == [
        ("T0", 0),
        ("T1", 10),
        ("T2", 20),
        ("T3", 30),
    ]


def test_large_items_load(database_url: str, tmp_path: Path) -> None:
    execute(database_url, ddl(anything.all_tables))
    item = {
        "PK": {"S": "T"},
        "n": {"S": "ä" * 150_000},
        "aB_9": {"S": "x" * 32_000},
        "b": {"B": "QUJD" * 8_000},
    }
    load(planned(anything, tmp_path, [item], "ION"), anything, database_url)
    ((length, other, binary),) = query(
        database_url,
        "SELECT length(n #>> '{}'), length(other #>> '{}'), length(everything ->> 'b') FROM thing",
    )
    assert (length, other, binary) == (150_000, 32_000, 32_000)


def test_a_run_of_dagster_loads_a_file_as_its_plan_says(shop_database_url: str, tmp_path: Path) -> None:
    plan = read_back(sample(tmp_path, "ION"), tmp_path)
    _, load_, *_ = migration_assets(plan, shop)
    assert isinstance(load_, dg.AssetsDefinition)
    planned = max(plan.files, key=lambda each: each.file.items)
    result = dg.materialize(
        [load_], partition_key=planned.partition, resources={"database": Database(url=shop_database_url)}
    )
    assert result.success
    events = result.asset_materializations_for_node("shop_load")
    told: dict[str, Any] = next(
        {name: value.value for name, value in each.metadata.items()}
        for each in events
        if each.asset_key.path[-1] == "customers"
    )
    assert str(told["file"]).endswith(".ion.gz")
    assert (told["items"], told["quarantined"]) == (planned.file.items, 0)
    if accelerator_is_to_be_there():
        assert (told["accelerated"], told["not_accelerated_by_reason"]) == (planned.file.items, {})
    ((rows,),) = query(shop_database_url, "SELECT count(*) FROM customers")
    assert rows == told["rows"] > 50


def read_back(plan: Plan, folder: Path) -> Plan:
    """A plan as a worker reads it."""
    (folder / "shop.json").write_bytes(plan.content)
    return read_plan(folder / "shop.json")


# -- a base in Ion, and windows ------------------------------------------------------------------------


@pytest.fixture
def url(database_url: str) -> str:
    execute(database_url, ddl(chain.all_tables) + "ALTER TABLE a ADD CHECK (n < 100);")
    return database_url


def test_windows_follow_a_full_export_in_ion(url: str, tmp_path: Path) -> None:
    """They are in DynamoDB JSON; that both mean one item is found by its key, also of lines in the quarantine."""
    history = History(
        {
            "same": item("same", "a", "same", 1), "moved": item("moved", "a", "moved", 1), "gone": item("gone", "b", "gone", 1),
            "untouched": item("untouched", "a", "untouched", 10), "mended": item("mended", "a", "mended", "x"),
            "é'": item("é'", "a", "quoted", 2), "refused": item("refused", "a", "refused", 1_000),
        },
        [
            Write(1, "same", item("same", "a", "same", 2)), Write(2, "moved", item("moved", "b", "moved", 2)), Write(3, "gone", None),
            Write(4, "mended", item("mended", "a", "mended", 3)), Write(5, "é'", item("é'", "a", "quoted", 20)),
            Write(6, "refused", item("refused", "a", "refused", 5)),
        ],
    )  # fmt: skip
    wanted = {}
    for spell in (None, in_ion):
        base = write_files(
            tmp_path, f"base-{spell is None}", dealt(list(map(spell or bytes, history.full(0))), 2)
        )
        files = write_files(tmp_path, "window", dealt(history.window(0, 100), 2))
        plan = plan_of(chain, base, [(0, 100, files)])
        if spell:
            exports = [msgspec.structs.replace(plan.exports[0], output_format="ION"), *plan.exports[1:]]
            plan = msgspec.structs.replace(plan, exports=tuple(exports))
        first = load(plan, chain, url)
        after = state(url, TABLES)
        again = load(plan, chain, url)
        assert state(url, TABLES) == after
        assert sum(again[file.name].superseded for file in base) == 6
        assert verify(plan, chain, url, "run").unaccounted == 0
        wanted[spell] = after, [(one.rows, one.quarantined) for one in first.values()]
        empty(url)
    assert wanted[None] == wanted[in_ion]
    assert wanted[None][0]["a"] == [
        ("mended", 3, None),
        ("quoted", 20, None),
        ("refused", 5, None),
        ("same", 2, None),
        ("untouched", 10, None),
    ]


def in_ion(line: bytes) -> bytes:
    """A line of an export in Ion; a number that is none is an odd value."""
    item = json.loads(line)
    odd = item["Item"]["n"]["N"] == "x"
    if odd:
        item["Item"]["n"]["N"] = "77"
    made = ion_line(json.dumps(item).encode()).rstrip(b"\n")
    return made.replace(b"n:77.", b"n:2007T") if odd else made


# -- the commands --------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


def test_the_commands_take_an_export_in_ion(tmp_path: Path, shop_database_url: str) -> None:
    status, output = command(
        "sample", str(tmp_path / "s"), "--items", "3000", "--files", "3", "--format", "ion"
    )
    assert status == 0, output
    (export,) = (tmp_path / "s" / "AWSDynamoDB").iterdir()
    summary = json.loads((export / "manifest-summary.json").read_text())
    assert summary["outputFormat"] == "ION"
    assert all(each.name.endswith(".ion.gz") for each in (export / "data").iterdir())
    status, output = command("plan", "--profile", "shop", str(export))
    assert status == 0, output
    plan = read_plan(plan_path(plans_dir(), "shop"))
    assert plan.exports[0].output_format == "ION"
    assert not any("ion-gz" in each.partition for each in plan.files)
    status, output = command("inspect", str(export))
    assert status == 0, output
    assert "PROFILE" in output
    status, output = command("scaffold", str(export), "-o", str(tmp_path / "made.py"))
    assert status == 0, output
    assert " 0 be unrouted" in output
    assert '{"N": "' in (tmp_path / "test_made.py").read_text(), "the cases are items in DynamoDB JSON"


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    status, output = command("sample", str(tmp_path), "--format", "ion", "--changes", "10")
    assert (status, "windows are read in DynamoDB JSON only" in output) == (2, True)
