"""Columns that merge: the laws that an expression must keep, and that then no order changes the result."""

from __future__ import annotations

import random
from typing import Annotated, Any

import pytest
from hypothesis import strategies as st

from migration_pipeline import Item, Merge, Profile, Row, prefix
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.errors import UsageError
from migration_pipeline.profile.row import RowMeta
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.testing import check_merges
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_aggregates import land


class PlayItem(Item):
    PK: str
    points: int
    nick: str | None
    level: int


class Best(Row, table="best", key="player"):
    """Each player's best."""

    player: str
    points: Annotated[int, Merge("greatest({old}, {new})")]
    nick: Annotated[str | None, Merge("least({old}, {new})")]
    levels: Annotated[int, Merge("{old} | {new}")]


plays = Profile("plays")


@plays.route(PK=prefix("P#"))
def play(item: PlayItem) -> Best:
    return Best(item.PK, item.points, item.nick, 1 << item.level)


class Tags(Row, table="tags", key="id"):
    id: str
    tags: Annotated[dict[str, Any], Merge("{old} || {new}")]
    numbers: Annotated[frozenset[int], Merge("CASE WHEN {old} > {new} THEN {old} ELSE {new} END")]


def test_expressions_that_keep_the_laws_pass(postgres: EmbeddedPostgres) -> None:
    check_merges(Best, postgres.url)
    # Documents of one value for each member merge in any order; others do not.
    sets = st.frozensets(st.integers(0, 9))
    alike = st.dictionaries(st.sampled_from("abc"), st.just({"a": "\\'"}))
    check_merges(Tags, postgres.url, {"tags": alike, "numbers": sets})
    unlike = st.dictionaries(st.sampled_from("abc"), st.integers(0, 2))
    with pytest.raises(AssertionError, match=r"Tags\.tags is not commutative"):
        check_merges(Tags, postgres.url, {"tags": unlike, "numbers": sets})


@pytest.mark.parametrize(
    ("expression", "law"),
    [
        ("least({old} + {new}, 100)", "(commutative|associative|idempotent)"),
        ("coalesce({new}, {old})", "commutative"),
        ("({old} + {new}) / 2", "(associative|idempotent)"),
        ("greatest({old}, {new}) + 0 * random()::int + 1", "(associative|idempotent)"),
    ],
)
def test_expressions_that_break_a_law_are_found_out(
    postgres: EmbeddedPostgres, expression: str, law: str
) -> None:
    annotations = {"id": str, "n": Annotated[int, Merge(expression)]}
    broken: Any = RowMeta("Broken", (Row,), {"__annotations__": annotations}, table="broken", key="id")
    with pytest.raises(AssertionError, match=rf"Broken\.n is not {law}"):
        check_merges(broken, postgres.url, {"n": st.integers(-50, 50)})


def test_what_cannot_be_checked_or_declared_says_why(postgres: EmbeddedPostgres) -> None:
    class Refused(Row, table="refused", key="id"):
        id: str
        n: Annotated[int, Merge("greatest({old}, {new}, nothing)")]

    with pytest.raises(DatabaseError, match=r"column n: .*SQLSTATE 42703"):
        check_merges(Refused, postgres.url)

    class Plain(Row, table="plain", key="id"):
        id: str

    with pytest.raises(UsageError, match="no column with a Merge"):
        check_merges(Plain, postgres.url)

    class Key(Row, table="key", key="id"):
        id: Annotated[str, Merge("greatest({old}, {new})")]

    profile = Profile("wrong")
    profile.row_classes.append(Key)
    with pytest.raises(UsageError, match="Merge is not allowed in a key"):
        _ = profile.tables


@pytest.mark.parametrize("seed", range(5))
def test_merged_rows_do_not_depend_on_order_batches_or_repetition(database_url: str, seed: int) -> None:
    execute(database_url, ddl(plays.all_tables))
    chance = random.Random(seed)
    items: list[Any] = [
        {
            "PK": {"S": f"P#{chance.randrange(7)}"},
            "points": {"N": str(chance.randrange(1000))},
            "nick": chance.choice([{"S": chance.choice("abc")}, {"NULL": True}]),
            "level": {"N": str(chance.randrange(20))},
        }
        for _ in range(120)
    ]
    files = {f"f{n}": items[n::3] for n in range(3)}
    work = list(files) * 2
    chance.shuffle(work)
    for name in work:
        land(database_url, plays, name, files[name], batch_items=chance.choice([1, 7, 1000]))
    should = []
    for player in sorted({item["PK"]["S"] for item in items}):
        mine = [item for item in items if item["PK"]["S"] == player]
        levels = 0
        for item in mine:
            levels |= 1 << int(item["level"]["N"])
        nicks = [item["nick"]["S"] for item in mine if "S" in item["nick"]]
        points = max(int(item["points"]["N"]) for item in mine)
        should.append((player, points, min(nicks, default=None), levels))
    assert query(database_url, "SELECT player, points, nick, levels FROM best ORDER BY 1") == should
