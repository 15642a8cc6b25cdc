"""Verification, dry run and replay of a plan with windows: the newest record of each item counts, whatever the ledger says."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import dagster as dg
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from migration_pipeline.cli import main
from migration_pipeline.defs.checks import check_job, migration_checks
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.demo.sample_history import write_history
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.migration.verdicts import conserved, loaded_files
from migration_pipeline.migration.verification import Compared, dry_run, verify
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import FileStatus
from migration_pipeline.operations.metrics import MigrationCollector
from migration_pipeline.operations.report.account import gather
from migration_pipeline.operations.report.page import page
from migration_pipeline.operations.status import left
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.settings import plans_dir
from migration_pipeline.sources.export import View, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets import newest
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.ledger import TooEarlyError
from migration_pipeline.targets.receipts import read_differences, read_receipts, read_totals
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.histories import History, Write, dealt, load, plan_of, state, write_files
from migration_pipeline_tests.integration.test_metrics import samples
from migration_pipeline_tests.integration.test_quarantine import load_shop
from migration_pipeline_tests.integration.test_windows import TABLES, chain, empty, histories, item

Found = dict[str, Counter[str]]

SMALL = LoadSettings(batch_items=3, max_bad_items=1_000, max_bad_share=1.0)


@pytest.fixture
def url(database_url: str) -> str:
    execute(database_url, ddl(chain.all_tables))
    return database_url


def verified(plan: Plan, url: str, *, extra: bool = True) -> Compared:
    return verify(plan, chain, url, "run", extra=extra, settings=SMALL)


def faults(compared: Compared) -> Found:
    """Rows by table and kind of difference, without those of none."""
    found = {name: Counter[str]() for name in TABLES}
    for name, counts in found.items():
        for difference, rows in compared.table(name).found.items():
            counts[difference.kind] += rows
    return {name: +counts for name, counts in found.items() if +counts}


def plan_in(
    tmp_path: Path,
    history: History,
    cuts: list[tuple[float, float]],
    files: int = 2,
    view: View = "NEW_AND_OLD_IMAGES",
) -> Plan:
    base = write_files(tmp_path, "base", dealt(history.full(0), files))
    windows = [
        (start, end, write_files(tmp_path, f"w{number}", dealt(history.window(start, end, view), files)))
        for number, (start, end) in enumerate(cuts)
    ]
    return plan_of(chain, base, windows, view)


def load_full(history: History, second: float, tmp_path: Path, url: str) -> dict[str, list[tuple[Any, ...]]]:
    """Load a full export at a moment into empty tables, and forget all that the bookkeeping knows of it."""
    empty(url)
    load(plan_of(chain, write_files(tmp_path, f"full{second}", [history.full(second)])), chain, url)
    found = {name: rows for name, rows in state(url, TABLES).items() if name != "quarantine"}
    execute(url, "TRUNCATE migration.loaded_file, migration.quarantine, migration.item")
    return found


WIDTH = {"a": 1, "b": 2, "tag": 1}
"""How many of a table's first columns are its key, where it has one."""


def between(there: dict[str, list[tuple[Any, ...]]], wanted: dict[str, list[tuple[Any, ...]]]) -> Found:
    """How rows that are there differ from those that are wanted, as a verification says it."""
    found: Found = {}
    for name in wanted.keys() - WIDTH.keys():  # landed: rows count as often as they occur
        one, other = (Counter(map(repr, rows[name])) for rows in (wanted, there))
        found[name] = +Counter(missing=(one - other).total(), extra=(other - one).total())
    for name, width in WIDTH.items():
        ours, theirs = ({row[:width]: row for row in rows[name]} for rows in (wanted, there))
        found[name] = +Counter(
            missing=len(ours.keys() - theirs.keys()),
            extra=len(theirs.keys() - ours.keys()),
            different=sum(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()),
        )
    return {name: counts for name, counts in found.items() if counts}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_windows_and_base_make_what_a_full_export_at_the_end_does(
    url: str, tmp_path: Path, data: st.DataObject
) -> None:
    """The tables are filled without the windows and without a ledger: each difference of two moments is found, and no other."""
    history, end = data.draw(histories()), 80.0
    cuts = sorted({0.0, end, *data.draw(st.lists(st.integers(1, 30).map(float), max_size=3))})
    windows = [
        (start - data.draw(st.sampled_from([0.0, 0.0, 2.0])), stop)
        for start, stop in itertools.pairwise(cuts)
    ]
    view: View = data.draw(st.sampled_from(get_args(View)))
    plan = plan_in(tmp_path, history, windows, data.draw(st.integers(1, 3)), view)
    wanted = load_full(history, end, tmp_path, url)
    # A filter of eight bits takes nearly every item for one that windows have touched.
    bits = data.draw(st.sampled_from([newest.MOST_BITS, 8]))
    with patch.object(newest, "MOST_BITS", bits):
        compared = verified(plan, url)
    assert faults(compared) == {}
    bad = sum(each["kind"]["S"] in "aboe" and each["n"]["N"] == "x" for each in history.at(end).values())
    assert compared.unaccounted == bad
    assert all(file.report.conserved for file in compared.files)
    moment = data.draw(st.sampled_from(cuts))
    there = load_full(history, moment, tmp_path, url)
    assert faults(verified(plan, url)) == between(there, wanted)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_was_loaded_is_as_the_windows_say(url: str, tmp_path: Path, data: st.DataObject) -> None:
    """With items that the database refuses, too: these are in the quarantine, and have no row."""
    empty(url)
    execute(
        url,
        "ALTER TABLE a DROP CONSTRAINT IF EXISTS small; ALTER TABLE a ADD CONSTRAINT small CHECK (n < 100)",
    )
    history = data.draw(histories())
    cut = data.draw(st.integers(1, 30))
    plan = plan_in(tmp_path, history, [(0, cut), (cut - data.draw(st.sampled_from([0, 2])), 80)])
    load(plan, chain, url)
    load(plan, chain, url, data.draw(st.permutations(plan.files))[:2])
    compared = verified(plan, url)
    assert (faults(compared), compared.unaccounted) == ({}, 0)


def test_what_two_nested_windows_say(url: str, tmp_path: Path) -> None:
    """A window that ends before an earlier one says nothing of what was written after it; both may have one write."""
    history = History(
        {name: item(name, "a", name, 1) for name in ("kept", "both", "again")},
        [
            Write(3, "both", item("both", "a", "both", 2)),
            Write(5, "gone", item("gone", "a", "gone", 1)),
            Write(8, "both", item("both", "a", "both", 3)),
            Write(20, "gone", None),
            Write(25, "again", item("again", "a", "again", 2)),
            Write(95, "kept", item("kept", "a", "kept", 2)),
            Write(96, "late", item("late", "a", "late", 1)),
            Write(97, "again", item("again", "a", "again", 3)),
        ],
    )
    wide = write_files(tmp_path, "w0", [history.window(-5, 100)])
    # The first window was taken with the item there, the second after it was deleted.
    early = write_files(tmp_path, "w1", [history.window(0, 10)])
    nested = write_files(tmp_path, "w2", [history.window(4, 30)])
    base = write_files(tmp_path, "base", [history.full(0)])
    plan = plan_of(chain, base, [(-5, 100, wide), (0, 10, early), (4, 30, nested)])
    load_full(history, 100, tmp_path, url)
    assert faults(verified(plan, url)) == {}


def test_landed_rows_are_compared_as_a_whole(shop_database_url: str, tmp_path: Path) -> None:
    """The shop's sample, whose final export is loaded: its base and windows make the same rows."""
    shop, url = load_profile("shop"), shop_database_url
    history = write_history(tmp_path, items=1_500, files=2, changes=400, windows=2)
    load_shop(url, read_export(str(history.final), Storage()))
    exports = [read_export(str(path), Storage()) for path in (history.base, *history.windows)]
    plan = make_plan(shop, "shop", exports)

    def found(table: str) -> dict[str, int]:
        total = compared.table(table)
        return {kind: total.count(kind) for kind in ("missing", "different", "extra") if total.count(kind)}

    compared = verify(plan, shop, url, "run")
    for name in ("customers", "orders", "order_lines", "landing.shop_events"):
        total = compared.table(name)
        assert (found(name), total.compared) == ({}, total.same)
        assert [(total.same,)] == query(url, f"SELECT count(*) FROM {name}")
    # One of two equal rows more, and one less of others.
    first = "(SELECT ctid FROM landing.shop_events ORDER BY customer_id LIMIT 1)"
    (slice_of,) = query(
        url, "SELECT tableoid::regclass FROM landing.shop_events ORDER BY customer_id LIMIT 1"
    )[0]
    execute(url, f"INSERT INTO {slice_of} SELECT * FROM {slice_of} LIMIT 1")
    compared = verify(plan, shop, url, "run")
    assert found("landing.shop_events") == {"extra": 1}
    execute(url, f"DELETE FROM {slice_of} WHERE ctid = {first}; DELETE FROM {slice_of} WHERE ctid = {first}")
    compared = verify(plan, shop, url, "run")
    assert found("landing.shop_events")["missing"] in (1, 2)


# -- what is planted ---------------------------------------------------------------------------------


@pytest.fixture
def history() -> History:
    return History(
        {
            "updated": item("updated", "a", "updated", 1),
            "deleted": item("deleted", "a", "deleted", 1),
            "twice": item("twice", "a", "twice", 1),
            "mended": item("mended", "a", "mended", "x"),
            "bad": item("bad", "a", "bad", "x"),
            "untouched": item("untouched", "a", "untouched", 1),
        },
        [
            Write(1, "updated", item("updated", "a", "updated", 2)),
            Write(2, "deleted", None),
            Write(3, "twice", item("twice", "a", "twice", 2)),
            Write(4, "inserted", item("inserted", "a", "inserted", 1)),
            Write(5, "broken", item("broken", "a", "broken", "x")),
            Write(15, "twice", item("twice", "b", "twice", 3)),
            Write(16, "mended", item("mended", "a", "mended", 4)),
        ],
    )


@pytest.fixture
def loaded(history: History, tmp_path: Path, url: str) -> Plan:
    plan = plan_in(tmp_path, history, [(0, 10), (10, 20)])
    load(plan, chain, url)
    return plan


TAMPERED = {
    "as it is": "SELECT 1",
    "emptied": "TRUNCATE migration.item",
    "later": "UPDATE migration.item SET written = written + 1000000000, window_id = 0, place = 0",
    "owns nothing": "UPDATE migration.item SET owned = '{}'",
}


@pytest.mark.parametrize("ledger", TAMPERED)
@pytest.mark.parametrize("extra", [False, True])
def test_what_is_planted_is_found_whatever_the_ledger_says(
    loaded: Plan, url: str, ledger: str, extra: bool
) -> None:
    execute(url, TAMPERED[ledger])
    compared = verified(loaded, url, extra=extra)
    assert (faults(compared), compared.unaccounted) == ({}, 0)
    assert {name: compared.table(name).same for name in WIDTH} == {"a": 4, "b": 1, "tag": 1}
    execute(url, "INSERT INTO a VALUES ('deleted', 1, NULL)")  # somebody put it back
    execute(url, "UPDATE a SET n = 1 WHERE code = 'updated'")  # an update that was not applied
    execute(url, "DELETE FROM a WHERE code = 'inserted'")
    execute(url, "INSERT INTO a VALUES ('twice', 2, NULL)")  # what the first window made of it
    compared = verified(loaded, url, extra=extra)
    assert faults(compared) == {"a": Counter(extra=2, different=1, missing=1)}
    keys = {
        (kind, key["code"], file)
        for table, kind, _, key, file in read_differences(url, chain.name)
        if table == "a"
    }
    assert keys - {("extra", "deleted", ""), ("extra", "twice", "")} == {
        ("different", "updated", "w0-0.json.gz"),
        ("missing", "inserted", "w0-1.json.gz"),
    }
    assert (("extra", "deleted", "") in keys) == extra


def test_each_line_is_accounted_for(loaded: Plan, url: str) -> None:
    reports = {file.planned.file.name[:2]: Counter[str]() for file in verified(loaded, url).files}
    for file in verified(loaded, url).files:
        report = file.report
        reports[file.planned.file.name[:2]].update(
            items=report.items,
            loaded=report.loaded,
            superseded=report.superseded,
            quarantined=report.quarantined,
            skipped=sum(report.skipped.values()),
        )
        assert report.conserved
    assert reports == {
        "ba": Counter(items=6, loaded=1, superseded=4, quarantined=1, skipped=0),
        "w0": Counter(items=5, loaded=2, superseded=1, quarantined=1, skipped=1),
        "w1": Counter(items=2, loaded=2, superseded=0, quarantined=0, skipped=0),
    }


def test_a_bad_item_that_is_not_in_the_quarantine_is_found(loaded: Plan, url: str) -> None:
    assert query(url, "SELECT count(*) FROM migration.quarantine") == [(2,)]  # bad, and broken
    execute(url, "DELETE FROM migration.quarantine WHERE file LIKE 'w%'")
    assert verified(loaded, url).unaccounted == 1
    execute(url, "DELETE FROM migration.quarantine")
    assert verified(loaded, url).unaccounted == 2


def test_records_of_no_item(url: str, tmp_path: Path, history: History) -> None:
    """They stay in the quarantine, and say nothing of any item."""
    outside = history.window(15, 20)  # of the time after the window that it stands in
    lines = [*history.window(0, 10), b"{", b'{"Keys":{}}', *outside]
    base = write_files(tmp_path, "base", [history.full(0)])
    plan = plan_of(chain, base, [(0, 10, write_files(tmp_path, "w", [lines]))])
    load(plan, chain, url)
    compared = verified(plan, url)
    assert (faults(compared), compared.unaccounted) == ({}, 0)
    # mended, bad; broken, and those of no item
    assert [file.report.quarantined for file in compared.files] == [2, 3 + len(outside)]


def test_an_empty_window_changes_nothing(url: str, tmp_path: Path, history: History) -> None:
    base = write_files(tmp_path, "base", [history.full(0)])
    plan = plan_of(chain, base, [(0, 10, write_files(tmp_path, "w", [[]]))])
    load(plan, chain, url)
    assert faults(verified(plan, url)) == {}
    execute(url, "UPDATE a SET n = 9 WHERE code = 'deleted'")
    assert faults(verified(plan, url)) == {"a": Counter(different=1)}


# -- dry run -----------------------------------------------------------------------------------------


def test_a_dry_run_of_a_window_waits_for_its_base(url: str, tmp_path: Path, history: History) -> None:
    plan = plan_in(tmp_path, history, [(0, 10)])
    window = [file for file in plan.files if plan.window_of(file)]
    with pytest.raises(
        TooEarlyError, match=r"^the window waits for 2 of 2 files before it, which are not loaded: base-0"
    ):
        dry_run(plan, chain, url, window, SMALL)
    assert query(url, "SELECT count(*) FROM migration.item") == [(0,)]


def test_a_dry_run_of_a_window_tells_what_a_load_does(url: str, tmp_path: Path, history: History) -> None:
    plan = plan_in(tmp_path, history, [(0, 10)])
    base, window = plan.files[:2], list(plan.files[2:])
    load(plan, chain, url, base)
    before = (state(url, TABLES), query(url, "SELECT * FROM migration.loaded_file ORDER BY file"))
    compared = dry_run(plan, chain, url, window, SMALL)
    assert (state(url, TABLES), query(url, "SELECT * FROM migration.loaded_file ORDER BY file")) == before
    assert query(url, "SELECT count(*) FROM migration.item") == [(0,)]
    assert "1 row of a would be deleted" in compared.notes
    reports = load(plan, chain, url, window)
    for file in compared.files:
        told, done = file.report, reports[file.planned.file.name]
        for name in (
            "items",
            "loaded",
            "superseded",
            "skipped",
            "quarantined",
            "rows",
            "changed_rows",
            "deleted_rows",
        ):
            assert getattr(told, name) == getattr(done, name), name


def test_a_dry_run_of_all_files_needs_nothing_loaded(url: str, tmp_path: Path, history: History) -> None:
    plan = plan_in(tmp_path, history, [(0, 10), (10, 20)])
    compared = dry_run(plan, chain, url, list(plan.files), SMALL)
    assert sum(file.report.quarantined for file in compared.files) == 3
    assert query(url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]
    reloaded = dry_run(plan, chain, url, [*plan.files, plan.files[0]], SMALL)
    assert any("a newer state is loaded" in note for note in reloaded.notes)


# -- replay ------------------------------------------------------------------------------------------


def replayed(plan: Plan, url: str) -> tuple[int, int, int, int]:
    said: list[str] = []
    report = replay_plan(plan, chain, url, "replay", said.append, SMALL)
    assert all(conserved(*each) for each in loaded_files(plan, read_receipts(url, chain.name)))
    return report.loaded, report.skipped, report.superseded, report.quarantined


def test_a_record_of_a_window_is_replayed_as_it_is_loaded(url: str, tmp_path: Path) -> None:
    history = History(
        {"one": item("one", "a", "one", 1), "two": item("two", "a", "two", 1)},
        [Write(1, "one", item("one", "a", "other", 1_000)), Write(2, "two", item("two", "a", "two", "x"))],
    )
    execute(url, "ALTER TABLE a ADD CONSTRAINT small CHECK (n < 100)")
    plan = plan_in(tmp_path, history, [(0, 10)], files=1)
    load(plan, chain, url)
    assert query(url, "SELECT code FROM a") == []
    execute(url, "ALTER TABLE a DROP CONSTRAINT small")
    assert replayed(plan, url) == (1, 0, 0, 1)
    assert query(url, "SELECT code, n FROM a") == [("other", 1_000)]
    receipt = read_receipts(url, chain.name)["window1", "w0-0.json.gz"]
    assert (receipt.loaded, receipt.superseded, receipt.quarantined) == (1, 0, 1)
    compared = verified(plan, url)
    assert (faults(compared), compared.unaccounted) == ({}, 0)
    # The item owns its row now: a window that deletes it takes it away.
    history.writes.append(Write(12, "one", None))
    longer = plan_in(tmp_path, history, [(0, 10), (10, 20)], files=1)
    load(longer, chain, url, longer.files[2:])
    assert query(url, "SELECT code FROM a") == []


def test_what_a_later_window_says_ends_the_quarantine_of_older_lines(url: str, tmp_path: Path) -> None:
    """Older lines that are in the quarantine all the same leave it, and write nothing."""
    history = History(
        {"one": item("one", "a", "one", 1_000), "two": item("two", "a", "two", "x")},
        [
            Write(1, "three", item("three", "a", "three", 1_000)),
            Write(2, "four", item("four", "a", "four", "x")),
            Write(11, "one", None),
            Write(12, "two", item("two", "a", "new two", 2)),
            Write(13, "three", None),
            Write(14, "four", item("four", "a", "new four", 4)),
        ],
    )
    execute(url, "ALTER TABLE a ADD CONSTRAINT small CHECK (n < 100)")
    plan = plan_in(tmp_path, history, [(0, 10), (10, 20)], files=1)
    load(plan, chain, url, plan.files[:2])
    execute(url, "CREATE TABLE kept AS TABLE migration.quarantine")
    load(plan, chain, url, plan.files[2:])
    assert query(url, "SELECT count(*) FROM migration.quarantine") == [(0,)]
    assert (faults(verified(plan, url)), replayed(plan, url)) == ({}, (0, 0, 0, 0))
    execute(url, "INSERT INTO migration.quarantine TABLE kept; ALTER TABLE a DROP CONSTRAINT small")
    compared = verified(plan, url)
    assert (faults(compared), compared.unaccounted) == ({}, 0)
    assert replayed(plan, url) == (0, 0, 4, 0)
    assert query(url, "SELECT code, n FROM a ORDER BY code") == [("new four", 4), ("new two", 2)]
    receipts = read_receipts(url, chain.name)
    for key in (("base", "base-0.json.gz"), ("window1", "w0-0.json.gz")):
        assert (receipts[key].loaded, receipts[key].superseded, receipts[key].quarantined) == (0, 2, 0)


def test_a_damaged_window_stops_a_verification(loaded: Plan, url: str) -> None:
    path = Path(loaded.files[-1].file.uri)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(MigrationError, match="truncated") as raised:
        verified(loaded, url)
    assert raised.value.file == path.name


# -- who judges --------------------------------------------------------------------------------------


def failed_checks(plan: Plan, url: str) -> set[str]:
    checks = migration_checks(plan, chain)
    definitions = dg.Definitions(
        assets=migration_assets(plan, chain),
        asset_checks=checks,
        jobs=[check_job(plan, checks)],
        resources={"database": Database(url=url)},
    )
    result = definitions.resolve_job_def("chain_check").execute_in_process()
    return {each.check_name for each in result.get_asset_check_evaluations() if not each.passed}


def test_windows_that_changed_and_deleted_rows_speak_against_nothing(loaded: Plan, url: str) -> None:
    """A mended item's older line is still counted by its file's receipt; rows that windows deleted are no collisions."""
    load(loaded, chain, url, loaded.files[2:])  # another time, which takes nothing away
    dagster = DagsterClient("http://127.0.0.1:9", timeout_seconds=1)
    account = gather(loaded, chain, dagster, url)
    assert (account.verdict, failed_checks(loaded, url)) == ("not verified", set())
    verified(loaded, url)
    account = gather(loaded, chain, dagster, url)
    assert account.verdict == "complete", [v for v in account.verdicts if v.outcome != "passed"]
    statuses = [
        FileStatus(partition=p.partition, file=p.file, state="materialized", metadata={"quarantined": 1})
        for p in loaded.files
    ]
    assert left(loaded, chain, statuses, url).quarantined == 2
    assert left(loaded, chain, statuses, None).quarantined == 6
    text = " ".join(page(account).split())
    assert "windows changed rows and deleted" in text
    assert (
        "superseded: a newer state of them was loaded" in text or account.sum_of(lambda r: r.superseded) == 0
    )
    execute(url, "DELETE FROM a WHERE code = 'inserted'")
    assert gather(loaded, chain, dagster, url).verdict == "not verified"
    verified(loaded, url)
    assert gather(loaded, chain, dagster, url).verdict == "not complete"


def test_every_sum_has_what_is_superseded(loaded: Plan, url: str) -> None:
    load(loaded, chain, url, loaded.files[:4])  # the base and the first window again
    totals = read_totals(url, chain.name, [export.id for export in loaded.exports], 5.0)
    assert totals.superseded == 4 + 1
    assert totals.items == totals.loaded + totals.superseded + totals.skipped + totals.quarantined
    assert all(file.conserved for file in totals.by_file.values())
    assert totals.deleted_rows == {"a": 1}
    assert failed_checks(loaded, url) == set()
    dagster = DagsterClient("http://127.0.0.1:9", timeout_seconds=1)
    told = samples(MigrationCollector(loaded, chain, dagster, url))
    assert told["migration_items", "superseded"] == 5
    assert [told["migration_deleted_rows", table] for table in WIDTH] == [1, 0, 0]
    assert told["migration_unconserved_files",] == 0
    html = page(gather(loaded, chain, dagster, url))
    assert "+ superseded: a newer state of them was loaded" in html
    # Of a file of the second window: records, loaded, superseded, skipped, quarantined, rows, inserted, updated, deleted.
    cells = html.split("w1-0</code>")[1].replace('<td class="n">', " ").replace("</td>", " ").split()
    assert cells[:9] == ["1", "1", "0", "0", "0", "2", "2", "0", "1"]


def test_on_the_command_line(
    url: str, tmp_path: Path, history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", url)
    plan = plan_in(tmp_path, history, [(0, 10), (10, 20)])
    plan = structs.replace(plan, reference="migration_pipeline_tests.integration.test_windows:chain")
    write_plan(plan, plans_dir())

    def command(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, arguments)
        return done.exit_code, done.output

    status, output = command("backfill", "chain", "--dry-run", "--only", "w0-0")
    assert (status, output.count("the window waits for 2 of 2 files before it")) == (1, 1), output
    status, output = command("backfill", "chain", "--dry-run")
    assert (status, "2 rows of a would be deleted" in output) == (0, True), output
    load(plan, chain, url)
    status, output = command("verify", "chain", "--extra")
    assert (status, "all 6 rows of the export are in the tables, and no others" in output) == (0, True), (
        output
    )
    execute(url, "INSERT INTO a VALUES ('deleted', 1, NULL)")
    status, output = command("verify", "chain", "--extra", "--keys")
    assert (status, 'a: extra  {"code": "deleted"}' in output) == (1, True), output
