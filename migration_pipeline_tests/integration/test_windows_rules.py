"""Windows: a history for each rule that random ones seldom meet; each ends as a full export at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from migration_pipeline.engine.changes import NO_ROW
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Row
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.histories import History, Write, dealt, load, plan_of, state, write_files
from migration_pipeline_tests.integration.test_windows import TABLES, chain, expected, item

by_key = Profile("by_key", may_quarantine=1_000)


class Named(Item):
    id: str


class Name(Row, table="names", key="id"):
    id: str


@by_key.route()
def name(item: Named) -> Name:
    return Name(item.id)


by_number = Profile("by_number", may_quarantine=1_000)


class Numbered(Item):
    id: int
    code: str


class Code(Row, table="tag", key="code"):
    code: str


@by_number.route()
def code(item: Numbered) -> Code:
    return Code(item.code)


@pytest.fixture
def url(database_url: str) -> str:
    execute(database_url, ddl(chain.all_tables) + "ALTER TABLE a ADD CHECK (n < 100);")
    return database_url


def landed(key: str, n: int = 0) -> dict[str, dict[str, Any]]:
    return item(key, "e", key, n)


def test_an_item_of_an_overlap_that_was_deleted_without_a_record(url: str, tmp_path: Path) -> None:
    """Made after the second window began and before the first one ended: the second one has no record of it."""
    history = History({}, [Write(9, "brief", item("brief", "a", "brief", 1)), Write(12, "brief", None)])
    wanted = expected(history, 20, tmp_path, url)
    assert history.window(8, 20) == []
    base = write_files(tmp_path, "base", [[]])
    windows = [
        (0.0, 10.0, write_files(tmp_path, "one", [history.window(0, 10)])),
        (8.0, 20.0, write_files(tmp_path, "two", [[]])),
    ]
    load(plan_of(chain, base, windows), chain, url)
    assert state(url, TABLES) == wanted


def test_new_images_delete_by_the_key_alone(database_url: str, tmp_path: Path) -> None:
    execute(database_url, ddl(by_key.all_tables))
    start = {key: {"id": {"S": key}} for key in ("deleted", "kept", "changed")}
    changed = {"id": {"S": "changed"}, "more": {"S": "text"}}
    writes = [Write(1, "deleted", None), Write(2, "changed", changed), Write(3, "new", {"id": {"S": "new"}})]
    history = History(start, writes)
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10, "NEW_IMAGE")])
    plan = plan_of(by_key, base, [(0, 10, window)], "NEW_IMAGE")
    reports = load(plan, by_key, database_url)
    assert query(database_url, "SELECT id FROM names ORDER BY id") == [("changed",), ("kept",), ("new",)]
    assert reports[window[0].name].deleted_rows == {"names": 1}
    load(plan, by_key, database_url)
    assert query(database_url, "SELECT id FROM names ORDER BY id") == [("changed",), ("kept",), ("new",)]


def test_a_deletion_is_loaded_if_there_was_a_row_and_skipped_if_not(url: str, tmp_path: Path) -> None:
    history = History(
        {"row": item("row", "a", "row", 1), "none": item("none", "x", "none")},
        [Write(1, "row", None), Write(2, "none", None)],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    report = load(plan_of(chain, base, [(0, 10, window)]), chain, url)[window[0].name]
    assert (report.items, report.loaded, report.skipped) == (2, 1, {NO_ROW: 1})


@pytest.mark.parametrize("again", [(), (2,), (0,), (1,), (0, 1), (1, 0), (2, 0, 2, 1)])
@pytest.mark.parametrize("gone", ["one", "other"])
def test_of_two_equal_landed_rows_just_one_goes(
    url: str, tmp_path: Path, gone: str, again: tuple[int, ...]
) -> None:
    """Of two files, which are loaded again afterwards, or their window is."""
    history = History({key: landed(key) for key in ("one", "other")}, [Write(1, gone, None)])
    lines = history.full(0)
    base = write_files(tmp_path, "base", [[line] for line in lines])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(chain, base, [(0, 10, window)])
    load(plan, chain, url)
    load(plan, chain, url, [plan.files[number] for number in again])
    assert query(url, "SELECT count(*) FROM landing.seen") == [(1,)]


def test_a_changed_landed_row_is_taken_once(url: str, tmp_path: Path) -> None:
    """A window that is loaded again takes no second row away."""
    history = History({key: landed(key) for key in ("one", "other")}, [Write(1, "one", landed("one", 5))])
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(chain, base, [(0, 10, window)])
    load(plan, chain, url)
    load(plan, chain, url, plan.files[-1:])
    assert query(url, "SELECT n FROM landing.seen ORDER BY n") == [(0,), (5,)]


def test_a_line_of_the_quarantine_that_is_older_than_all_windows(url: str, tmp_path: Path) -> None:
    """When it was put there, no plan with windows told which attributes the key has."""
    history = History(
        {key: item(key, "a", key, "x") for key in ("mended", "deleted", "bad")},
        [Write(1, "mended", item("mended", "a", "mended", 1)), Write(2, "deleted", None)],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    load(plan_of(chain, base), chain, url)
    assert query(url, "SELECT DISTINCT item FROM migration.quarantine") == [(None,)]
    plan = plan_of(chain, base, [(0, 10, window)])
    load(plan, chain, url, plan.files[-1:])
    raw = "SELECT convert_from(raw, 'UTF8') LIKE '%\"bad\"%' FROM migration.quarantine"
    assert query(url, raw) == [(True,)]


def test_an_old_window_again_leaves_what_a_later_one_took(url: str, tmp_path: Path) -> None:
    """A key that one item gave up in the first window, and another item took in the second."""
    history = History(
        {"giver": item("giver", "a", "handed", 1)},
        [
            Write(1, "giver", item("giver", "a", "other", 2)),
            Write(11, "taker", item("taker", "a", "handed", 3)),
        ],
    )
    wanted = expected(history, 20, tmp_path, url)
    base = write_files(tmp_path, "base", [history.full(0)])
    windows = [
        (0.0, 10.0, write_files(tmp_path, "one", [history.window(0, 10)])),
        (10.0, 20.0, write_files(tmp_path, "two", [history.window(10, 20)])),
    ]
    plan = plan_of(chain, base, windows)
    load(plan, chain, url, [*plan.files, plan.files[1]])
    assert state(url, TABLES) == wanted


def test_what_the_base_has_already_is_neither_landed_twice_nor_taken_of_others(
    url: str, tmp_path: Path
) -> None:
    """A window that begins before the base was taken tells, of that time, states before that the base never had."""
    start = {key: landed(key) for key in ("changed", "deleted", "other")}
    writes = [
        Write(2, "changed", landed("changed", 1)),
        Write(3, "deleted", None),
        Write(4, "inserted", landed("inserted", 3)),
        Write(7, "late", landed("late", 4)),
    ]
    history = History(start, writes)
    wanted = expected(history, 10, tmp_path, url)
    base = write_files(tmp_path, "base", dealt(history.full(5), 2))
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(chain, base, [(0, 10, window)], base_time=5)
    load(plan, chain, url)
    assert state(url, TABLES) == wanted
    load(plan, chain, url)
    assert state(url, TABLES) == wanted


@pytest.mark.parametrize("nothing", [b"}", b',"NewImage":null}', b',"OldImage":null,"NewImage":null}'])
def test_a_record_without_any_image_is_bad_and_changes_nothing(
    url: str, tmp_path: Path, nothing: bytes
) -> None:
    """Of a window with both images; where it has new ones alone, such a record is a deletion."""
    history = History({"it": item("it", "a", "it", 1)}, [Write(1, "it", None)])
    (record,) = history.window(0, 10)
    empty = record.partition(b',"OldImage"')[0] + nothing
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [[empty]])
    report = load(plan_of(chain, base, [(0, 10, window)]), chain, url)[window[0].name]
    reason = "it has neither OldImage nor NewImage, and the window has both images"
    assert report.quarantined_by_reason == {reason: 1}
    assert (report.skipped, report.loaded) == ({}, 0)
    assert query(url, "SELECT code FROM a") == [("it",)]


def test_an_item_in_two_files_of_a_window_is_told(url: str, tmp_path: Path) -> None:
    """In the same line of each, so that only the file tells the two records apart."""
    history = History({"it": item("it", "a", "it", 1)}, [Write(1, "it", item("it", "a", "it", 2))])
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)] * 2)
    plan = plan_of(chain, base, [(0, 10, window)])
    with pytest.raises(MigrationError, match="the item in line 1 stands twice in its window") as told:
        load(plan, chain, url)
    assert told.value.file == window[1].name
    assert query(url, "SELECT file FROM migration.loaded_file ORDER BY file") == [
        (base[0].name,),
        (window[0].name,),
    ]


@pytest.mark.parametrize("batch_items", [1, 10])
def test_an_item_twice_in_a_window_is_told_with_its_line(url: str, tmp_path: Path, batch_items: int) -> None:
    history = History({"it": item("it", "a", "it", 1)}, [Write(1, "it", item("it", "a", "it", 2))])
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10) * 2])
    plan = plan_of(chain, base, [(0, 10, window)])
    with pytest.raises(MigrationError, match="the item in line 2 stands twice in its window"):
        load(plan, chain, url, batch_items=batch_items)


def test_a_key_is_one_item_however_its_number_is_spelled(url: str, tmp_path: Path) -> None:
    """The base has 1.0, the window 1: what the window deleted does not come back with the base."""

    def spelled(lines: list[bytes], number: bytes) -> list[bytes]:
        return [line.replace(b'"id":{"S":"it"}', b'"id":{"N":"%b"}' % number) for line in lines]

    history = History({"it": item("it", "o", "it")}, [Write(1, "it", None)])
    base = write_files(tmp_path, "base", [spelled(history.full(0), b"1.0")])
    window = write_files(tmp_path, "window", [spelled(history.window(0, 10), b"1")])
    plan = plan_of(by_number, base, [(0, 10, window)])
    load(plan, by_number, url)
    assert query(url, "SELECT * FROM tag") == []
    reports = load(plan, by_number, url, plan.files[:1])
    assert query(url, "SELECT * FROM tag") == []
    assert reports[base[0].name].superseded == 1


def overlapped(tmp_path: Path, n: int) -> tuple[History, Plan]:
    """Two windows that both have the one record; the later one has another file."""
    history = History({}, [Write(9, "it", item("it", "a", "it", n))])
    base = write_files(tmp_path, "base", [[]])
    windows = [
        (0.0, 10.0, write_files(tmp_path, "one", [history.window(0, 10)])),
        (8.0, 20.0, write_files(tmp_path, "two", [history.window(8, 20), []])),
    ]
    return history, plan_of(chain, base, windows)


def test_of_one_record_in_two_windows_the_later_window_s_counts(url: str, tmp_path: Path) -> None:
    """The earlier window is loaded again, and then a file of the later one in which the record is not."""
    history, plan = overlapped(tmp_path, 1)
    wanted = expected(history, 20, tmp_path, url)
    _, earlier, _, other = plan.files
    load(plan, chain, url)
    reports = load(plan, chain, url, [earlier, other])
    assert state(url, TABLES) == wanted
    assert reports[earlier.file.name].superseded == 1


def test_a_bad_record_in_two_windows_is_in_the_quarantine_of_the_later_one(url: str, tmp_path: Path) -> None:
    """Where `verify` looks for it."""
    _, plan = overlapped(tmp_path, 1_000)
    _, earlier, later, _ = plan.files
    load(plan, chain, url)
    load(plan, chain, url, [earlier])
    assert query(url, "SELECT file FROM migration.quarantine") == [(later.file.name,)]


SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NEW; END $$;
CREATE TRIGGER slow BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION slow();
"""

WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"


def test_a_window_waits_for_a_base_file_that_is_writing(url: str, tmp_path: Path) -> None:
    """Else it finds nothing to delete, and then the base file commits the old row."""
    history = History({"it": item("it", "a", "it", 1)}, [Write(1, "it", None)])
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(chain, base, [(0, 10, window)])
    load(plan, chain, url, plan.files[:1])
    execute(url, "DELETE FROM a;" + SLOW)
    with contextlib.closing(psycopg2.connect(url)) as holder, ThreadPoolExecutor(2) as threads:
        holder.cursor().execute("SELECT pg_advisory_lock(4711)")
        try:
            full = threads.submit(load, plan, chain, url, plan.files[:1])
            eventually(lambda: query(url, WAITING) == [(1,)])
            changes = threads.submit(load, plan, chain, url, plan.files[1:])
            eventually(lambda: query(url, WAITING) == [(2,)] or changes.done())
        finally:
            holder.cursor().execute("SELECT pg_advisory_unlock(4711)")
        full.result(60), changes.result(60)
    assert query(url, "SELECT * FROM a") == []


SLOW_AT_FIRST = SLOW.replace("BEGIN PERFORM", "BEGIN IF nextval('calls') = 1 THEN PERFORM").replace(
    "(4711);", "(4711); END IF;"
)


def test_a_load_of_the_base_does_not_end_while_another_one_of_the_file_is_writing(
    url: str, tmp_path: Path
) -> None:
    """Else a window is let in, and then the one that was slower commits the old row."""
    history = History({key: item(key, "a", key, 1) for key in ("it", "other")}, [Write(1, "it", None)])
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(chain, base, [(0, 10, window)])
    execute(url, "CREATE SEQUENCE calls;" + SLOW_AT_FIRST)
    with contextlib.closing(psycopg2.connect(url)) as holder, ThreadPoolExecutor(2) as threads:
        holder.cursor().execute("SELECT pg_advisory_lock(4711)")
        try:
            slow = threads.submit(load, plan, chain, url, plan.files[:1], 1)
            eventually(lambda: query(url, WAITING) == [(1,)])
            quick = threads.submit(load, plan, chain, url, None, 1)
            eventually(lambda: query(url, WAITING) == [(2,)] or quick.done())
        finally:
            holder.cursor().execute("SELECT pg_advisory_unlock(4711)")
        slow.result(60), quick.result(60)
    assert query(url, "SELECT code FROM a") == [("other",)]


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
