"""Windows of incremental exports: whatever happens to their files, the tables end as a full export at the end would leave them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Row
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.histories import History, Write, dealt, load, plan_of, state, write_files

chain = Profile("chain", may_quarantine=1_000)


class Thing(Item):
    id: str
    kind: str
    code: str
    n: int = 0
    text: str | None = None


class Pair(Item):
    id: str
    kind: str
    code: str
    n: int = 0


class A(Row, table="a", key="code"):
    code: str
    n: int
    text: str | None


class B(Row, table="b", key=("code", "n")):
    code: str
    n: int
    owner: str


class Only(Row, table="tag", key="code"):
    code: str


class Seen(Row, table="landing.seen", landing=True):
    text: str | None
    n: int
    tags: list[str]


@chain.route(kind="e")
def seen(item: Thing) -> list[Seen]:
    return [Seen(item.text, item.n, ["t"])] * (2 if item.n == 2 else 1)


@chain.route(kind="a")
def thing(item: Thing) -> A | None:
    return None if item.n == 7 else A(item.code, item.n, item.text)


@chain.route(kind="b")
def pair(item: Pair) -> list[B | Only]:
    return [B(item.code, item.n, item.id), Only(item.code)]


@chain.route(kind="o")
def only(item: Pair) -> Only:
    return Only(item.code)


chain.ignore(kind="x", because="no use")

TABLES = {"a": "code", "b": "code, n", "tag": "code", "landing.seen": "text, n"}


def item(key: str, kind: str, code: str, n: Any = 0, text: str | None = None) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {
        "id": {"S": key},
        "kind": {"S": kind},
        "code": {"S": code},
        "n": {"N": str(n)},
    }
    if text is not None:
        made["text"] = {"S": text}
    return made


@pytest.fixture
def url(database_url: str) -> str:
    execute(database_url, ddl(chain.all_tables) + "ALTER TABLE a ADD CHECK (n < 100);")
    return database_url


def expected(history: History, second: float, tmp_path: Path, url: str) -> dict[str, Any]:
    """What a full export at a moment leaves in empty tables."""
    empty(url)
    files = write_files(tmp_path, "final", dealt(history.full(second), 2))
    load(plan_of(chain, files, [(second - 1, second, ())]), chain, url)
    found = state(url, TABLES)
    empty(url)
    return found


def empty(url: str) -> None:
    execute(
        url,
        "DELETE FROM landing.seen; TRUNCATE migration.slice, migration.taken, a, b, tag, migration.item, migration.claim, migration.loaded_file, migration.quarantine, migration.collision",
    )


def test_rows_follow_their_items(url: str, tmp_path: Path) -> None:
    history = History(
        {
            "same": item("same", "a", "same", 1),
            "rekeyed": item("rekeyed", "a", "old", 1),
            "moved": item("moved", "a", "moved", 1),
            "dropped": item("dropped", "b", "dropped", 1),
            "deleted": item("deleted", "b", "deleted", 1),
            "untouched": item("untouched", "a", "untouched", 1),
            "mended": item("mended", "a", "mended", "x"),
            "broken": item("broken", "a", "broken", 1),
            "refused": item("refused", "a", "refused", 1),
            "giver": item("giver", "a", "handed", 1),
        },
        [
            Write(1, "same", item("same", "a", "same", 2)),
            Write(2, "rekeyed", item("rekeyed", "a", "new", 2)),
            Write(3, "moved", item("moved", "b", "moved", 2)),
            Write(4, "dropped", item("dropped", "x", "dropped", 2)),
            Write(5, "deleted", None),
            Write(6, "inserted", item("inserted", "a", "inserted", 2)),
            Write(7, "mended", item("mended", "a", "mended", 2)),
            Write(8, "broken", item("broken", "a", "broken", "x")),
            Write(9, "refused", item("refused", "a", "refused", 1_000)),
            Write(10, "giver", item("giver", "a", "giver", 2)),
            Write(11, "taker", item("taker", "a", "handed", 2)),
        ],
    )
    wanted = expected(history, 100, tmp_path, url)
    base = write_files(tmp_path, "base", dealt(history.full(0), 2))
    files = write_files(tmp_path, "window", dealt(history.window(0, 100), 2))
    plan = plan_of(chain, base, [(0, 100, files)])
    reports = load(plan, chain, url)
    assert state(url, TABLES) == wanted
    window = [reports[file.name] for file in files]
    assert sum(each.items for each in window) == 11
    assert sum(each.quarantined for each in window) == 2
    assert sum(sum(each.deleted_rows.values()) for each in window) == 8  # fmt: skip
    again = load(plan, chain, url)
    assert state(url, TABLES) == wanted
    assert sum(again[file.name].superseded for file in base) == 9


def test_half_an_emoji_in_one_image_does_not_hide_the_other(url: str, tmp_path: Path) -> None:
    """In the base, and mended; and the other way about. Text that only looks like it stays as it is."""
    history = History(
        {
            "mended": item("mended", "a", "mended", 1, "half"),
            "broken": item("broken", "a", "broken", 1, r"\ud83d"),
        },
        [
            Write(1, "mended", item("mended", "a", "mended", 2, r"a \ud83d that is none")),
            Write(2, "broken", item("broken", "a", "broken", 2, "half")),
        ],
    )

    def broken(lines: list[bytes]) -> list[bytes]:
        return [line.replace(b'"half"', b'"half \\ud83d \\ud83d\\ude00"') for line in lines]

    files = write_files(tmp_path, "final", [broken(history.full(100))])
    load(plan_of(chain, files, [(99, 100, ())]), chain, url)
    wanted = state(url, TABLES)
    empty(url)
    base = write_files(tmp_path, "base", [broken(history.full(0))])
    window = write_files(tmp_path, "window", [broken(history.window(0, 100))])
    reports = load(plan_of(chain, base, [(0, 100, window)]), chain, url)
    assert state(url, TABLES) == wanted
    assert [row[0] for row in wanted["a"]] == ["mended"]
    assert reports[window[0].name].quarantined == 1


@pytest.mark.parametrize("again", ["base", "first window"])
def test_an_old_file_again_between_two_files_of_a_later_window(url: str, tmp_path: Path, again: str) -> None:
    """A row's key goes from one item to another in the second window, which is loaded in part."""
    writes = [
        Write(1, "giver", item("giver", "a", "handed", 2)),
        Write(11, "giver", item("giver", "a", "other", 3)),
        Write(12, "taker", item("taker", "a", "handed", 4)),
    ]
    history = History(
        {"giver": item("giver", "a", "handed", 1)}, writes if again == "first window" else writes[1:]
    )
    wanted = expected(history, 20, tmp_path, url)
    base = write_files(tmp_path, "base", [history.full(0)])
    first = write_files(tmp_path, "first", [history.window(0, 10)])
    gives, takes = history.window(10, 20)
    second = write_files(tmp_path, "second", [[gives], [takes]])
    plan = plan_of(chain, base, [(0, 10, first), (10, 20, second)])
    full, one, giving, taking = plan.files
    load(plan, chain, url, [full, one, taking, full if again == "base" else one, giving])
    assert state(url, TABLES) == wanted


# -- any history -------------------------------------------------------------------------------------

CODES = st.sampled_from("pqrs")
KINDS = st.sampled_from(["a", "a", "b", "o", "x", "y", "e", "e", "e"])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Histories in which no two items have one row at a time: a row's key may go from one item to another all the same."""
    keys = [f"i{number}" for number in range(draw(st.integers(1, 6)))]
    free: dict[str, str] = {}

    def state_of(key: str) -> dict[str, dict[str, Any]]:
        codes = [code for code in "pqrstuvw" if free.get(code, key) == key]
        code = draw(st.sampled_from(codes))
        for other in [other for other, owner in free.items() if owner == key]:
            del free[other]
        free[code] = key
        n: Any = draw(st.sampled_from([0, 1, 1, 2, 7, 1_000, "x"]))
        return item(key, draw(KINDS), code, n, draw(st.sampled_from([None, "t", "u"])))

    start = {key: state_of(key) for key in keys if draw(st.booleans())}
    history, second = History(start), 0
    for _ in range(draw(st.integers(0, 14))):
        key = draw(st.sampled_from(keys))
        second += draw(st.sampled_from([1, 1, 1, 5]))
        if draw(st.integers(0, 3)):
            history.writes.append(Write(second, key, state_of(key)))
        else:
            for other in [other for other, owner in free.items() if owner == key]:
                del free[other]
            history.writes.append(Write(second, key, None))
    return history


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_in_any_cut(url: str, tmp_path: Path, data: st.DataObject) -> None:
    history = data.draw(histories())
    end = 80.0
    wanted = expected(history, end, tmp_path, url)
    cuts = sorted({0.0, end, *data.draw(st.lists(st.integers(1, 30).map(float), max_size=3))})
    number, windows = itertools.count(), []
    for one, other in itertools.pairwise(cuts):
        overlap = data.draw(st.sampled_from([0.0, 0.0, 2.0]))
        start = one - overlap
        lines = data.draw(st.permutations(history.window(start, other)))
        windows.append(
            (
                start,
                other,
                write_files(tmp_path, f"w{next(number)}", dealt(lines, data.draw(st.integers(1, 3)))),
            )
        )
    base = write_files(tmp_path, "base", dealt(history.full(0), 2))
    plan = plan_of(chain, base, windows)
    batch = data.draw(st.integers(1, 4))
    for export in plan.exports:
        files = [each for each in plan.files if each.export_id == export.id]
        load(plan, chain, url, data.draw(st.permutations(files)), batch)
        load(
            plan, chain, url, data.draw(st.lists(st.sampled_from(files), max_size=2)) if files else [], batch
        )
        earlier = [each for each in plan.files if each.export_id <= export.id]
        load(
            plan,
            chain,
            url,
            data.draw(st.lists(st.sampled_from(earlier), max_size=2)) if earlier else [],
            batch,
        )
    assert state(url, TABLES) == wanted
    assert query(url, "SELECT count(*) FROM migration.loaded_file") == [(len(plan.files),)]
