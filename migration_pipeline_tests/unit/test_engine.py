"""The engine against sources and targets in memory: the account of items, and the order of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration_pipeline import Item, Profile, Row, prefix
from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Bad, Outcome, Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.sources import dynamodb_json


class Thing(Item):
    PK: str


class Kept(Row, table="kept", key="id"):
    id: str


things = Profile("things")


@things.route(PK=prefix("KEEP#"))
def keep(item: Thing) -> Kept | None:
    if "raise" in item.PK:
        raise KeyError(item.PK)
    return Kept(item.PK)


@things.route(PK=prefix("TWO#"))
def twice(item: Thing) -> list[Kept]:
    return [Kept(item.PK + "a"), Kept(item.PK + "b")]


@things.route(PK=prefix("NONE#"))
def nothing(item: Thing) -> Kept | None:
    return None


things.ignore(PK=prefix("DROP#"), because="not wanted")
transform = Transform(things, dynamodb_json)

KINDS = ("KEEP#", "TWO#", "NONE#", "DROP#", "other")


class Source:
    def __init__(self, lists: list[list[bytes]], sound: bool = True) -> None:
        self.lists, self.sound, self.bytes_read, self.md5 = lists, sound, 7, "md5"

    def __iter__(self) -> Iterator[list[bytes]]:
        return iter(self.lists)

    def verify(self) -> None:
        if not self.sound:
            raise MigrationError("unsound")


class Target:
    """Remembers what was committed, in order."""

    def __init__(self) -> None:
        self.commits: list[tuple[int, FileReport | None]] = []
        self.rows: list[Any] = []
        self.bad: list[Bad] = []
        self.retries = 0
        self.encoder = self

    def encode(self, outcome: Outcome) -> list[Row]:
        return outcome.all_rows

    def join(self, pieces: Sequence[list[Row]]) -> Any:
        flat = [row for piece in pieces for row in piece]
        return SimpleNamespace(flat=flat, rows={"kept": len(flat)} if flat else {}, size=len(flat))

    def stay_alive(self) -> None:
        raise AssertionError("nothing here waits")

    def cancel(self) -> None:
        raise AssertionError("nothing here takes long")

    def write(self, batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        """Refuse the items whose key holds "refuse", by halving as a real target does."""
        written = Written()
        self._load(batch, written)
        self.bad += [*batch.bad, *written.refused]
        self.commits.append((sum(written.rows.values()), close(written) if close else None))
        return written

    def _load(self, batch: Batch, written: Written) -> None:
        if not any("refuse" in row.id for row in batch.encoded.flat):
            self.rows += batch.encoded.flat
            written.rows.update(batch.encoded.rows)
        elif len(batch.lines) > 1:
            for half in batch.halves():
                self._load(half, written)
        else:
            written.refuse(batch.refused("refused", "kept", "23514"))


def line(kind: str, number: int) -> bytes:
    return json.dumps({"Item": {"PK": {"S": f"{kind}{number}"}}}).encode()


def test_a_file_has_one_speed_that_of_its_receipt() -> None:
    target = Target()
    commit = target.write

    def slowly(batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        written = commit(batch, close)
        time.sleep(0.05)  # the commit
        return written

    target.write = slowly  # type: ignore[method-assign]
    report = FileLoad("f", 3, Source([[line("KEEP#", n) for n in range(3)]]), transform, target).run()
    receipt = target.commits[-1][1]
    assert receipt
    assert (report.seconds, report.items_per_second) == (receipt.seconds, receipt.items_per_second)
    assert 0 < report.seconds < 0.05


BAD = ("KEEP#refuse", "TWO#refuse", "KEEP#raise")


@given(
    st.lists(st.lists(st.sampled_from(KINDS + BAD), max_size=9), max_size=5),
    st.integers(min_value=1, max_value=7),
)
def test_halving_isolates_exactly_the_bad_items(kinds: list[list[str]], batch_items: int) -> None:
    lists = [[line(kind, n) for n, kind in enumerate(some)] for some in kinds]
    flat = [kind for some in kinds for kind in some]
    target = Target()
    settings = LoadSettings(batch_items=batch_items, max_bad_share=1.0)
    report = FileLoad("f", len(flat), Source(lists), transform, target, settings).run()
    every = [each for some in lists for each in some]
    assert sorted((bad.number, bad.line) for bad in target.bad) == [
        (n, every[n - 1]) for n, kind in enumerate(flat, 1) if kind in BAD
    ]
    assert report.conserved
    assert report.quarantined == sum(report.quarantined_by_reason.values()) == len(target.bad)
    assert report.loaded == flat.count("KEEP#") + flat.count("TWO#")
    assert sum(report.rows.values()) == len(target.rows) == flat.count("KEEP#") + 2 * flat.count("TWO#")


@given(
    st.lists(st.lists(st.sampled_from(KINDS), max_size=9), max_size=5), st.integers(min_value=1, max_value=7)
)
def test_every_item_is_accounted_for(kinds: list[list[str]], batch_items: int) -> None:
    lists = [[line(kind, n) for n, kind in enumerate(some)] for some in kinds]
    flat = [kind for some in kinds for kind in some]
    target = Target()
    report = FileLoad(
        "f", len(flat), Source(lists), transform, target, LoadSettings(batch_items=batch_items)
    ).run()
    loaded = flat.count("KEEP#") + flat.count("TWO#")
    assert report.conserved
    assert (report.items, report.loaded) == (len(flat), loaded)
    assert sum(report.rows.values()) == len(target.rows) == flat.count("KEEP#") + 2 * flat.count("TWO#")
    counted = {"not wanted": "DROP#", "nothing: no row": "NONE#", "unrouted": "other"}
    assert report.skipped == {reason: flat.count(k) for reason, k in counted.items() if k in flat}
    assert sum(report.unrouted.values()) == flat.count("other")
    # The receipt comes with the last commit, and only then.
    assert [receipt is not None for _, receipt in target.commits] == [False] * (len(target.commits) - 1) + [
        True
    ]


def test_an_unsound_file_gets_no_receipt_and_not_its_last_batch() -> None:
    target = Target()
    source = Source([[line("KEEP#", n) for n in range(5)]], sound=False)
    with pytest.raises(MigrationError, match="unsound"):
        FileLoad("f", 5, source, transform, target, LoadSettings(batch_items=2)).run()
    assert [(rows, receipt) for rows, receipt in target.commits] == [(2, None), (2, None)]


@pytest.mark.parametrize("promised", [4, 6])
def test_a_file_whose_items_are_not_conserved_fails_loudly(promised: int) -> None:
    """A source that verifies although it lost or doubled an item: the engine counts for itself."""
    target = Target()
    source = Source([[line("KEEP#", n) for n in range(5)]])
    with pytest.raises(
        MigrationError, match=f"items are not conserved: manifest {promised}, read 5, loaded 5"
    ):
        FileLoad("f", promised, source, transform, target).run()
    assert target.commits == []


@pytest.mark.parametrize("kind", ["KEEP#refuse", "KEEP#raise"])
def test_a_file_with_too_many_bad_items_fails_and_says_why(kind: str) -> None:
    """Ten do not count; here 100 of 1,000 may be bad."""
    good = [line("KEEP#", n) for n in range(900)]
    target = Target()
    settings = LoadSettings(batch_items=50, max_bad_share=0.1)
    source = Source([[line(kind, n) for n in range(100)] + good])
    report = FileLoad("f", 1_000, source, transform, target, settings).run()
    assert report.quarantined == 100
    source = Source([[line(kind, n) for n in range(101)] + good[1:]])
    with pytest.raises(MigrationError) as caught:
        FileLoad("f", 1_000, source, transform, Target(), settings).run()
    reason = {"KEEP#refuse": "kept: refused", "KEEP#raise": "route keep failed: KeyError at"}[kind]
    assert str(caught.value).startswith(
        f"f: more than 100 of its 1,000 items are bad, the last one in line {caught.value.line}: "
    )
    assert caught.value.file == "f"
    assert reason in str(caught.value)
    assert "max_bad_items" in str(caught.value)


def test_a_line_that_is_no_item_is_quarantined_with_its_number() -> None:
    target = Target()
    source = Source([[line("KEEP#", 1), line("DROP#", 1)], [b"nonsense"]])
    report = FileLoad("f", 3, source, transform, target).run()
    assert [(bad.number, bad.line) for bad in target.bad] == [(3, b"nonsense")]
    assert (report.loaded, report.quarantined) == (1, 1)


def test_unrouted_patterns_are_bounded() -> None:
    import string

    names = [a + b for a in string.ascii_uppercase for b in string.ascii_uppercase]
    source = Source([[line(f"{name}#", 1) for name in names]])
    report = FileLoad("f", len(names), source, transform, Target()).run()
    assert len(report.unrouted) == 51
    assert report.unrouted["other patterns"] == len(names) - 50
