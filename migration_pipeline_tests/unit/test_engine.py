"""The engine against sources and targets in memory: the account of items, and the order of its steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration_pipeline import Item, Profile, Row, prefix
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.report import FileReport
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.sources import dynamodb_json


class Thing(Item):
    PK: str


class Kept(Row, table="kept", key="id"):
    id: str


things = Profile("things")


@things.route(PK=prefix("KEEP#"))
def keep(item: Thing) -> Kept | None:
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

    def encode(self, rows: dict[type[Row], list[Row]]) -> Any:
        flat = [row for batch in rows.values() for row in batch]
        return SimpleNamespace(
            flat=flat, rows={"kept": len(flat)} if flat else {}, collisions=0, size=len(flat)
        )

    def cancel(self) -> None:
        raise AssertionError("nothing here takes long")

    def write(self, encoded: Any, receipt: FileReport | None = None) -> None:
        self.rows += encoded.flat
        self.commits.append((len(encoded.flat), receipt))


def line(kind: str, number: int) -> bytes:
    return json.dumps({"Item": {"PK": {"S": f"{kind}{number}"}}}).encode()


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


def test_a_bad_item_is_named_by_file_and_line() -> None:
    source = Source([[line("KEEP#", 1), line("DROP#", 1)], [b"nonsense"]])
    with pytest.raises(
        MigrationError, match=r"^f, line 3: .*; mend the item or the profile, then rerun the file$"
    ):
        FileLoad("f", 3, source, transform, Target()).run()


def test_unrouted_patterns_are_bounded() -> None:
    import string

    names = [a + b for a in string.ascii_uppercase for b in string.ascii_uppercase]
    source = Source([[line(f"{name}#", 1) for name in names]])
    report = FileLoad("f", len(names), source, transform, Target()).run()
    assert len(report.unrouted) == 51
    assert report.unrouted["other patterns"] == len(names) - 50
