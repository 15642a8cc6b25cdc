"""The vocabulary of profiles: what a declaration makes, and what a wrong one says."""

from __future__ import annotations

import sys
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration_pipeline import Integer, Item, Options, PgType, Profile, Row, column, prefix
from migration_pipeline.engine.patterns import key_pattern, rules_that_cannot_hold
from migration_pipeline.engine.transform import Outcome, Transform
from migration_pipeline.errors import BadItem, UsageError
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.profile.row import table_of
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.testing import rows_of


class Thing(Item):
    PK: str
    n: int = 0


class Wide(Row, table="wide_schema.wide", key=("a", "b")):
    """A row of every type."""

    a: str
    b: int
    c: Decimal | None
    d: float
    e: bool
    f: bytes
    g: datetime
    h: date
    i: UUID
    j: dict[str, Any]
    k: list[Any] | None
    m: frozenset[str]
    n: list[Decimal]
    o: Integer
    p: Annotated[str | None, PgType("varchar(10)")]
    q: Literal["x", "y"] = column("camelCase")


def test_a_row_class_gives_columns_types_and_key() -> None:
    table = table_of(Wide)
    assert (table.schema, table.name, table.key, table.comment) == (
        "wide_schema", "wide", ("a", "b"), "A row of every type.",
    )  # fmt: skip
    assert [(c.name, c.pg_type, c.nullable) for c in table.columns] == [
        ("a", "text", False), ("b", "bigint", False), ("c", "numeric", True), ("d", "double precision", False),
        ("e", "boolean", False), ("f", "bytea", False), ("g", "timestamp with time zone", False),
        ("h", "date", False), ("i", "uuid", False), ("j", "jsonb", False), ("k", "jsonb", True),
        ("m", "text[]", False), ("n", "numeric[]", False), ("o", "integer", False), ("p", "varchar(10)", True),
        ("camelCase", "text", False),
    ]  # fmt: skip


class Documented(Row, table="documented", key="k"):
    k: str
    """One line, with a 'quote'."""
    n: int = column("camelCase")
    """
    Two lines,
    and the indentation is not kept.
    """
    plain: str
    # A comment is none.
    of_another: str
    "Any string literal does."


class Inherited(Documented, table="inherited", key="k"):
    own: str
    """Its own."""


def test_docstrings_below_fields_are_the_columns_comments() -> None:
    assert {c.name: c.comment for c in table_of(Documented).columns} == {
        "k": "One line, with a 'quote'.",
        "camelCase": "Two lines,\nand the indentation is not kept.",
        "plain": "",
        "of_another": "Any string literal does.",
    }
    assert [c.comment for c in table_of(Inherited).columns][0::4] == ["One line, with a 'quote'.", "Its own."]

    class Local(Row, table="local", key="k"):
        k: str
        """In a function."""

    assert table_of(Local).columns[0].comment == "In a function."


def test_a_class_without_source_has_no_docstrings() -> None:
    namespace: dict[str, Any] = {"Row": Row}
    exec('class Typed(Row, table="t", key="k"):\n    k: str\n    """Nobody finds it."""', namespace)
    assert [c.comment for c in table_of(namespace["Typed"]).columns] == [""]


def test_a_row_without_table_or_key_is_refused() -> None:
    with pytest.raises(UsageError, match="NoKey: a Row needs a table and a key"):

        class NoKey(Row, table="t"):
            a: str


@pytest.mark.parametrize(
    ("key", "message"), [("b", "names 'b'"), ("c", "'c' is part of the key, so it must not allow None")]
)
def test_a_key_that_is_no_column_is_refused(key: str, message: str) -> None:
    class Wrong(Row, table="t", key=key):
        a: str
        c: str | None

    with pytest.raises(UsageError, match=message):
        table_of(Wrong)


class Small(Row, table="small", key="k"):
    k: str


class Other(Row, table="other", key="k"):
    k: str


def transform_of(profile: Profile) -> Transform:
    return Transform(profile, dynamodb_json)


def line(**attributes: str) -> bytes:
    import json

    return json.dumps({"Item": {name: {"S": value} for name, value in attributes.items()}}).encode()


def test_the_first_rule_that_holds_takes_the_item() -> None:
    p = Profile("p")

    @p.route(PK=prefix("A#"), SK="X")
    def first(item: Thing) -> Small:
        return Small("first")

    p.ignore(PK=prefix("A#"), because="old")

    @p.route(SK="X")
    def second(item: Thing) -> Small | None:
        return Small("second")

    t = transform_of(p)
    items = [
        line(PK="A#1", SK="X"),
        line(SK="Y", PK="A#1"),
        line(PK="B", SK="X"),
        line(PK="B", SK="Y"),
        line(x=""),
    ]
    outcome = t(items)
    assert outcome.rows[Small] == [Small("first"), Small("second")]
    assert (outcome.counts.loaded, outcome.counts.ignored) == (2, {"old": 1})
    assert outcome.counts.unrouted == {"PK=…, SK=…": 1, "PK=(none), SK=(none)": 1}
    assert p.routing_attributes == ["PK", "SK"]
    one_by_one = Outcome(p.row_classes)
    for number, item in enumerate(items, 1):
        one_by_one.add(t.one(item, number))
    for each in (outcome, one_by_one):
        taken = sorted(zip(each.numbers, each.lines, strict=True))
        assert taken == [(1, items[0]), (3, items[2])]
    # Which lines C hands to Python depends on how often it is asked.
    one_by_one.counts.odd = outcome.counts.odd
    assert vars(one_by_one.counts) == vars(outcome.counts)
    assert one_by_one.rows == outcome.rows


def test_an_empty_prefix_matches_every_item_that_no_rule_before_takes() -> None:
    p = Profile("p")
    p.ignore(PK=prefix("A#"), because="old")

    @p.route(self=prefix(""))
    def rest(item: Thing) -> Small:
        return Small(item.PK)

    outcome = transform_of(p)([line(PK="A#1"), line(PK="B"), line(PK="C", self="x")])
    assert outcome.rows[Small] == [Small("B"), Small("C")]
    assert (outcome.counts.ignored, outcome.counts.unrouted) == ({"old": 1}, {})


def test_an_ignore_without_conditions_takes_all_that_is_left_and_is_the_last_rule() -> None:
    p = Profile("p")

    @p.route(PK=prefix("A#"))
    def first(item: Thing) -> Small:
        return Small(item.PK)

    p.ignore(because="not asked for")
    outcome = transform_of(p)([line(PK="A#1"), line(PK="B"), line(x="")])
    assert outcome.rows[Small] == [Small("A#1")]
    assert (outcome.counts.ignored, outcome.counts.unrouted) == ({"not asked for": 2}, {})
    with pytest.raises(UsageError, match="no item reaches the rules after ignore"):
        p.route(PK="B")(first)
    with pytest.raises(UsageError, match="make it the last"):
        p.ignore(PK="B", because="late")


def test_a_route_may_return_many_rows_but_only_those_it_names() -> None:
    p = Profile("p")

    @p.route(PK="1")
    def both(item: Thing) -> list[Small | Other]:
        return [Small("a"), Other("b")]

    @p.route(PK="2")
    def wrong(item: Thing) -> Small:
        return "text"  # type: ignore[return-value]

    t = transform_of(p)
    assert p.row_classes == [Small, Other]
    outcome = t([line(PK="1")])
    assert (outcome.rows, outcome.counts.loaded) == ({Small: [Small("a")], Other: [Other("b")]}, 1)
    with pytest.raises(BadItem, match="route wrong returned a str"):
        t.one(line(PK="2"))


def test_an_exception_of_a_route_names_its_line_and_no_value() -> None:
    p = Profile("p")

    @p.route(PK=prefix("s"))
    def fails(item: Thing) -> Small:
        return Small(str(int(item.PK)))

    with pytest.raises(BadItem) as caught:
        transform_of(p).one(line(PK="s3cret"))
    assert str(caught.value).startswith(f"route fails failed: ValueError at {__name__}:")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "pattern"),
    [
        (("CUSTOMER#12", "PROFILE"), "PK=CUSTOMER#…, SK=…"),
        (("ALICE", "ORDER_LINE#1#SECRET"), "PK=…, SK=ORDER_LINE#…"),
        (("c@example.org", ""), "PK=…, SK=(none)"),
        (("secret#1", "ÉTÉ#1"), "PK=…, SK=…"),
        (("#SECRET", "SECRET" * 6 + "#"), "PK=…, SK=…"),
        (("4711#1", "NAME 7#1"), "PK=…, SK=…"),
    ],
)
def test_key_patterns_hold_no_values(values: tuple[str, ...], pattern: str) -> None:
    assert key_pattern(["PK", "SK"], values) == pattern


def test_declarations_that_make_no_sense_are_refused() -> None:
    p = Profile("p")
    with pytest.raises(UsageError, match="use a non-empty string"):
        p.ignore(PK="", because="empty")
    with pytest.raises(UsageError, match="must take one argument, annotated with an Item class"):

        @p.route(PK="1")
        def untyped(item):  # type: ignore[no-untyped-def]
            return None

    with pytest.raises(UsageError, match="its return type must be annotated with a Row class"):

        @p.route(PK="1")
        def unreturned(item: Thing) -> None:
            return None

    with pytest.raises(UsageError, match="use lower-case letters"):
        Profile("No Good")


def test_a_shipped_profile_loads_by_name() -> None:
    assert load_profile("shop").name == "shop"
    assert load_profile("migration_pipeline.profiles.shop:shop") is load_profile("shop")


@pytest.mark.parametrize(
    ("source", "reference", "message"),
    [
        (
            None,
            "nothing_here",
            "no module 'migration_pipeline.profiles.nothing_here'; give a shipped profile",
        ),
        (None, "gone.away:profile", "no module 'gone'"),
        ("import json.nothing", "broken_one", "broken_one does not import: ModuleNotFoundError"),
        ("x = 1 / 0", "broken_two:profile", r"does not import: ZeroDivisionError: .*broken_two.py:1\)"),
        ("x = 1", "empty_one:profile", "has no Profile called 'profile'"),
        (
            "from migration_pipeline import Profile\nprofile = Profile('a')",
            "empty_two:profile",
            "it has no route",
        ),
    ],
)
def test_a_profile_that_does_not_load_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, reference: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = reference.partition(":")[0]
    if source is not None:
        (tmp_path / f"{module}.py").write_text(source)
        reference = f"{module}:profile"
    with pytest.raises(UsageError, match=message):
        load_profile(reference)


LAZY = """
import first_of_mine
from migration_pipeline import Item, Profile, Row
profile = Profile("mine")
class It(Item):
    PK: str
class Out(Row, table="out", key="id"):
    id: str
@profile.route(SK="X")
def it(item: It) -> Out:
    from second_of_mine import made
    return made(Out, item)
"""


@pytest.mark.parametrize("module", ["lazy_profile", "lazy_package.of.profiles"])
def test_a_profile_in_the_current_folder_finds_what_lies_beside_it_and_leaves_the_path_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LAZY)
    (tmp_path / "first_of_mine.py").write_text("")
    (tmp_path / "second_of_mine.py").write_text("def made(row, item): return row(item.PK)")
    for name in ("first_of_mine", "second_of_mine"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = list(sys.path)
    profile = load_profile(f"{module}:profile")
    assert sys.path == before
    outcome = transform_of(profile)([b'{"Item":{"PK":{"S":"a"},"SK":{"S":"X"}}}'])
    assert (outcome.counts.loaded, outcome.bad) == (1, [])


ROWS = """
from migration_pipeline import Item, Profile, Row
class It(Item):
    PK: str
class Landed(Row, table="landed", landing=True):
    id: str
class Sum(Row, table="sums", key="id"):
    id: str
profile = Profile("sums")
"""
ROUTE = """
from summed.rows import It, Landed, Sum, profile
@profile.route(SK="X")
def it(item: It) -> Landed:
    return Landed(item.PK)
"""
SUMS = """
from summed.rows import Landed, Sum, profile
profile.aggregate(Sum, of=Landed, by="id", sql="sums.sql")
"""


@pytest.mark.parametrize(
    ("source", "there", "found"),
    [
        (ROUTE + SUMS, "profiles/sums.sql", "profiles/sums.sql"),
        (ROUTE + SUMS, "sums.sql", "sums.sql"),
        (SUMS + ROUTE, "sums.sql", "sums.sql"),
        (ROUTE + SUMS, "away/sums.sql", None),
    ],
    ids=["beside the routes", "beside the Row", "beside the Row, before the routes", "missing"],
)
def test_the_sql_of_an_aggregate_lies_beside_the_module_of_the_routes_or_of_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, there: str, found: str | None
) -> None:
    folder = tmp_path / "summed"
    for path, text in (
        ("rows.py", ROWS),
        ("profiles/it.py", source),
        (there, "SELECT id FROM landing.landed"),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "summed"]:
        monkeypatch.delitem(sys.modules, name)
    if found is None:
        with pytest.raises(
            UsageError, match=r"cannot read its SQL: .*/summed/profiles/sums\.sql: No such file"
        ):
            load_profile("summed.profiles.it:profile")
    else:
        assert load_profile("summed.profiles.it:profile").aggregates[0].path == folder / found


TWICE = """
from migration_pipeline import Item, Profile, Row
profile = Profile("twice")
class It(Item):
    PK: str
class Out(Row, table="{one}", key="id"):
    id: str
class Also(Row, table="{other}", key="id"):
    id: str
@profile.route(SK="X")
def it(item: It) -> Out | Also:
    return Out(item.PK)
"""


@pytest.mark.parametrize(
    ("one", "other", "refused"),
    [
        ("out", "out", True),
        ("out", "public.out", True),
        ("public.out", "out", True),
        ("out", "s.out", False),
        ("out", "Out", False),
    ],
)
def test_two_rows_of_one_table_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, refused: bool
) -> None:
    (tmp_path / "twice_rows.py").write_text(TWICE.format(one=one, other=other))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "twice_rows", raising=False)
    if refused:
        with pytest.raises(
            UsageError, match=r"two Row classes write the table public\.out, Out and Also; use"
        ):
            load_profile("twice_rows:profile")
    else:
        load_profile("twice_rows:profile")


# -- rows of an item, for a profile's own tests ------------------------------------------------------


class Doubling(Options):
    times: int = 2


@pytest.mark.parametrize("name", ["dynamodb_export", "finishing", "other.kept"])
def test_two_assets_of_one_name_are_refused(name: str) -> None:
    """Dagster would load no plan at all."""
    profile = Profile("things")

    class Thing(Item):
        PK: str

    class Kept(Row, table="kept", key="pk"):
        pk: str

    class Other(Row, table=name, key="pk"):
        pk: str

    def both(thing: Thing) -> list[Kept | Other]:
        return [Kept(thing.PK), Other(thing.PK)]

    both.__annotations__ = {"thing": Thing, "return": list[Kept | Other]}
    profile.route()(both)
    with pytest.raises(
        UsageError, match=rf"the table {name} would have the asset \[things, \w+\], which is that of"
    ):
        make_plan(profile, "things", [])


def test_the_rows_of_an_item_are_those_that_a_load_makes() -> None:
    made = Profile("made")

    @made.route(PK=prefix("T#"))
    def both(item: Thing, options: Doubling) -> list[Small | Other]:
        return [Other("o"), *(Small(f"{item.PK}{n}") for n in range(item.n * options.times)), Other("p")]

    item = {"PK": {"S": "T#"}, "n": {"N": "1"}}
    assert rows_of(made, item) == [Small("T#0"), Small("T#1"), Other("o"), Other("p")]
    assert rows_of(made, item, Doubling(1)) == [Small("T#0"), Other("o"), Other("p")]
    assert rows_of(made, b'{"Item":{"PK":{"S":"T#"}}}') == [Other("o"), Other("p")]
    assert rows_of(made, {"PK": {"S": "U#"}}) == []
    with pytest.raises(BadItem, match="attribute 'n' is not a whole number"):
        rows_of(made, {"PK": {"S": "T#"}, "n": {"N": "1.5"}})

    @made.route(PK=prefix("U#"))
    def late(item: Thing) -> Small:
        return Small(item.PK)

    assert rows_of(made, {"PK": {"S": "U#"}}) == [Small("U#")], "a rule that was added counts"


# -- routes on numbers and booleans -----------------------------------------------------------------


class Kinded(Item):
    id: str


class Kind(Row, table="kinds", key="id"):
    id: str


def kinds(**conditions: Any) -> Profile:
    made = Profile("kinds")
    made.route(**conditions)(lambda_of(Kinded, Kind))
    return made


def lambda_of(item: Any, row: Any) -> Any:
    def route(each: Any) -> Any:
        return row(each.id)

    route.__annotations__ = {"each": item, "return": row}
    return route


def kind_line(kind: str) -> bytes:
    return b'{"Item":{"id":{"S":"a"},"kind":%s}}' % kind.encode()


@pytest.mark.parametrize(
    ("condition", "taken", "left"),
    [
        (1, ['{"N":"1"}', '{"N":"1.0"}', '{"N":"1E0"}', '{"N":"0.1e1"}'],
         ['{"N":"1.0000000000000000000001"}', '{"N":"2"}', '{"S":"1"}', '{"BOOL":true}', '{"NULL":true}', '{"M":{}}']),
        (Decimal("-0.5"), ['{"N":"-0.5"}', '{"N":"-5E-1"}'], ['{"N":"0.5"}']),
        (0, ['{"N":"0"}', '{"N":"-0"}'], ['{"BOOL":false}', '{"S":""}']),
        (True, ['{"BOOL":true}'], ['{"BOOL":false}', '{"N":"1"}', '{"S":"true"}']),
        (False, ['{"BOOL":false}'], ['{"BOOL":true}', '{"N":"0"}']),
        ("1", ['{"S":"1"}'], ['{"N":"1"}', '{"BOOL":true}']),
    ],
)  # fmt: skip
def test_a_rule_compares_texts_numbers_and_booleans_each_as_what_they_are(
    condition: Any, taken: list[str], left: list[str]
) -> None:
    transform = Transform(kinds(kind=condition), dynamodb_json)
    outcome = transform([kind_line(kind) for kind in [*taken, *left]])
    assert (outcome.counts.loaded, outcome.counts.unrouted.total(), outcome.bad) == (
        len(taken),
        len(left),
        [],
    )
    for kind in left:
        shown = kind[2:].partition('"')[0]
        (pattern,) = transform([kind_line(kind)]).counts.unrouted
        assert pattern == ("kind=…" if shown == "S" else f"kind=({shown})")
    (pattern,) = transform([b'{"Item":{"id":{"S":"a"}}}']).counts.unrouted
    assert pattern == "kind=(none)"


def test_rules_of_several_types_share_an_attribute() -> None:
    made = kinds(kind=1)
    made.ignore(kind=prefix("a"), because="texts")
    made.ignore(kind=True, because="yes")
    lines = [
        kind_line(kind)
        for kind in ('{"N":"1"}', '{"S":"ab"}', '{"BOOL":true}', '{"N":"3"}', '{"BOOL":false}')
    ]
    outcome = Transform(made, dynamodb_json)(lines)
    assert (outcome.counts.loaded, outcome.counts.ignored) == (1, {"texts": 1, "yes": 1})
    assert outcome.counts.unrouted == {"kind=(N)": 1, "kind=(BOOL)": 1}


@given(st.decimals(-(10**9), 10**9, places=3), st.integers(-5, 5))
def test_a_number_is_the_same_in_whatever_spelling(value: Decimal, exponent: int) -> None:
    transform = Transform(kinds(kind=value), dynamodb_json)
    spelled = f"{value.scaleb(-exponent):f}e{exponent}"
    assert transform([kind_line(f'{{"N":"{spelled}"}}')]).counts.loaded == 1
    assert transform([kind_line(f'{{"N":"{value + Decimal("0.0001")}"}}')]).counts.loaded == 0


@pytest.mark.parametrize(
    ("condition", "words"),
    [(1.5, "a float is not exact; write a whole number or Decimal('1.5')"), (Decimal("NaN"), "DynamoDB has no such number"),
     (None, "use a non-empty string"), ("", "use a non-empty string"), (b"x", "use a non-empty string")],
)  # fmt: skip
def test_a_condition_that_compares_with_nothing_is_refused(condition: Any, words: str) -> None:
    with pytest.raises(UsageError) as told:
        kinds(kind=condition)
    assert words in str(told.value)


def test_rules_that_can_never_hold_are_told_with_the_way_out() -> None:
    made = kinds(kind="1")
    unrouted = Transform(made, dynamodb_json)([kind_line('{"N":"1"}')] * 3).counts.unrouted
    (said,) = rules_that_cannot_hold(made, unrouted)
    assert said == (
        "3 items that no rule takes have 'kind' as N, but the profile's rules compare it with S, so none of them can match; "
        "write a number: kind=1"
    )
    assert rules_that_cannot_hold(kinds(kind=2), unrouted) == []
