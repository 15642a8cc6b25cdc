"""The encoder in C makes what the one in Python does, and gives back what it does not know."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migration_pipeline import accelerator
from migration_pipeline.profile.row import Row, table_of
from migration_pipeline.targets import accelerated_rows
from migration_pipeline.targets.copy_csv import RowEncoder
from migration_pipeline_tests.conftest import accelerator_is_to_be_there, memory_kept
from migration_pipeline_tests.odd_rows import Angry, Wide, both, made_of, without_the_extension

rows_in_c = accelerator.extension(accelerator.ROWS)
pytestmark = pytest.mark.skipif(not accelerator_is_to_be_there(), reason="it is off, or there is no compiler")


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**64))
def test_both_encoders_make_the_same_bytes_keys_counts_and_errors(seed: int) -> None:
    in_c, in_python, *_ = both(Random(seed), Random(seed))
    assert repr(in_c) == repr(in_python)


NOON = datetime(2024, 2, 29, 12, tzinfo=timezone.utc)


def wide(k: Any = 1, **values: Any) -> Wide:
    others: Any = {name: values.get(name) for name in Wide.__struct_fields__[1:]}
    return Wide(k=k, **others)


KNOWN = [
    {"text": "plain"}, {"text": "\"\\\n\0é"}, {"number": Decimal("-1.50E+7")}, {"real": 0.1}, {"flag": False}, {"raw": b"\0\xff"},
    {"at": NOON}, {"at": NOON.replace(tzinfo=None, microsecond=7)}, {"at": NOON.astimezone(timezone(-timedelta(minutes=90)))},
    {"day": NOON.date()}, {"id": UUID(int=2**127 + 5)}, {"tags": frozenset({"b", 'a"\\', ""})}, {"numbers": [Decimal(1), None]},
    {"times": [NOON]}, {"blobs": {b"b", b"a"}}, {"listed": []}, {"spelled": "text"},
    {"document": {"a": [1, None, True, Decimal("1E-5"), "x\n\x01"], "s": {"only"}}},
]  # fmt: skip


@pytest.mark.parametrize("values", KNOWN, ids=lambda values: next(iter(values)))
def test_ordinary_values_are_not_given_back(values: dict[str, Any]) -> None:
    in_c, given_back = made_of(Wide, [[wide(**values)]], "quarantine", True)
    with without_the_extension():
        in_python, _ = made_of(Wide, [[wide(**values)]], "quarantine", True)
    assert (in_c, given_back) == (in_python, 0)


@pytest.mark.parametrize(
    "values",
    [{"text": 1.5}, {"flag": 2**64 - 1}, {"at": NOON.astimezone(ZoneInfo("Europe/Berlin"))}],
    ids=["a float as a text", "beyond 64 bits", "another zone"],
)
def test_a_row_with_a_value_that_c_does_not_know_is_encoded_in_python(values: dict[str, Any]) -> None:
    some = [wide(1), wide(2, **values), wide(3)]
    in_c, given_back = made_of(Wide, [some], "quarantine", True)
    with without_the_extension():
        in_python, _ = made_of(Wide, [some], "quarantine", True)
    assert in_c == in_python
    assert given_back in (1, 3)


@pytest.mark.parametrize(
    "values",
    [
        {"text": "\ud800"},
        {"document": {"a": float("nan")}},
        {"tags": frozenset({1, "a"})},
        {"at": "today"},
        {"number": Angry()},
        {"k": Decimal("sNaN")},
    ],
    ids=[
        "half a character",
        "NaN in a document",
        "a set without order",
        "no time",
        "an object that fails",
        "a key without a hash",
    ],
)
def test_what_cannot_be_encoded_raises_what_python_raises(values: dict[str, Any]) -> None:
    in_c, _ = made_of(Wide, [[wide(**values)]], "quarantine", True)
    with without_the_extension():
        in_python, _ = made_of(Wide, [[wide(**values)]], "quarantine", True)
    assert in_c == in_python
    assert issubclass(in_c[0][0], Exception)


def test_from_the_first_odd_zone_on_all_times_are_in_utc_in_both() -> None:
    odd = timezone(timedelta(seconds=1))
    some = [[wide(1, at=NOON)], [wide(2, at=NOON), wide(3, at=NOON.astimezone(odd))], [wide(4, at=NOON)]]
    in_c, given_back = made_of(Wide, some, "quarantine", True)
    with without_the_extension():
        assert (in_c, 2) == (made_of(Wide, some, "quarantine", True)[0], given_back)
    assert b'2024-02-29T12:00:00"' in in_c[2][3][0]


keys = st.one_of(
    st.lists(st.text(max_size=12), max_size=40),
    st.lists(st.text(alphabet="ab\0é🛒", max_size=12).map(lambda text: "SENSOR#0000" + text), max_size=40),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.lists(st.tuples(st.sampled_from(["", "a", "ab", "é"]), st.integers(-3, 3)), max_size=40),
    st.lists(st.one_of(st.text(max_size=2), st.integers(), st.none(), st.floats()), max_size=8),
)


@settings(deadline=None, max_examples=500)
@given(keys, st.booleans(), st.integers(0, 40))
def test_lines_are_sorted_as_python_sorts_their_keys(some: list[Any], twins: bool, cut: int) -> None:
    lines = [b"%d" % number for number in range(len(some))]
    data = accelerated_rows.join(rows_in_c, (some[:cut], some[cut:]), [lines[:cut], lines[cut:]], twins=twins)
    if data is None:
        plain = all(
            type(key) in (str, tuple) or (type(key) is int and -(2**63) <= key < 2**63) for key in some
        )
        alike = len(set(map(type, some))) == 1
        assert not (plain and alike) or (not twins and len(set(some)) < len(some))
    else:
        order = sorted(range(len(some)), key=some.__getitem__)
        assert data == b"".join(lines[number] + b"\n" for number in order)
        assert twins or len(set(some)) == len(some)


def test_twins_are_for_python_unless_they_merge() -> None:
    assert accelerated_rows.join(rows_in_c, [["a", "b"], ["a"]], [[b"1", b"2"], [b"3"]], twins=False) is None
    assert (
        accelerated_rows.join(rows_in_c, [["a", "b"], ["a"]], [[b"1", b"2"], [b"3"]], twins=True)
        == b"1\n3\n2\n"
    )


class Member(Row, table="member", key="k"):
    k: int


class Property(Row, table="member", key="k"):
    k: int

    @property
    def text(self) -> str:
        return "made up"


@pytest.mark.parametrize(
    "arguments",
    [
        (Member, (), (), len, True),
        (Member, ((Wide.text, 0, None),), (), len, True),
        (Member, ((Property.text, 0, None),), (), len, True),
        (Member, ((Member.k, 99, None),), (), len, True),
        (Member, ((Member.k, -1, None),), (), len, True),
        (Member, ((Member.k, 0, 1),), (), len, True),
        (Member, ((Member.k, 0),), (), len, True),
        (Member, ([],), (), len, True),
        (Member, ((Member.k, 0, None),), (1,), len, True),
        (Member, ((Member.k, 0, None),), (-1,), len, True),
        (Member, ((Member.k, 0, None),), ("k",), len, True),
        (1, (), (), len, True),
    ],
)
def test_an_encoder_of_columns_that_are_none_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises((TypeError, ValueError)):
        rows_in_c.Encoder(*arguments)


def test_rows_of_another_class_are_refused() -> None:
    encoder = rows_in_c.Encoder(Member, ((Member.k, 0, None),), (0,), lambda _: b"", True)
    made, lines, given_back = encoder.encode([Member(1)])
    assert (list(made), list(lines), bytes(lines), given_back) == ([1], [b"1"], b"1", 0)
    for others in ([Property(1)], [object()], [None], 5):
        with pytest.raises(TypeError):
            encoder.encode(others)
    with pytest.raises(TypeError):
        rows_in_c.Encoder(Member, ((Member.k, 0, None),), (), lambda _: "text", True).encode([Member(2**70)])
    with pytest.raises(ValueError, match="each line must have a key"):
        rows_in_c.join([["a"]], [], False)
    with pytest.raises(TypeError):
        rows_in_c.join([["a"]], [["a"]], False)
    for ours in (made, lines):
        assert ours[-1] == next(iter(ours))
        with pytest.raises(IndexError):
            ours[1]
        with pytest.raises(TypeError):
            type(ours)()


class Pair(Row, table="pair", key=("a", "b")):
    a: str
    b: int


@pytest.mark.parametrize("odd", [None, 2**64, "3", True, Decimal(3)])
def test_keys_are_objects_from_the_first_one_on_that_c_does_not_keep(odd: Any) -> None:
    some = [Pair(*each) for each in [("a", 1), ("b", 2), ("c", odd), ("d", 4)]]
    plain = RowEncoder(table_of(Pair)).encode(some[:2])
    assert (type(plain.keys).__name__, list(plain.keys)) == ("Keys", [("a", 1), ("b", 2)])
    mixed = RowEncoder(table_of(Pair)).encode(some)
    assert [(key, type(key[1])) for key in mixed.keys] == [((row.a, row.b), type(row.b)) for row in some]
    assert (
        accelerated_rows.join(rows_in_c, [plain.keys, mixed.keys], [[b"1", b"2"], [b"3"] * 4], twins=True)
        is None
    )


class Emptying:
    """Empties the collection that it is in when it is asked what it is."""

    def __init__(self, of: Any) -> None:
        self.of = of

    def __str__(self) -> str:
        self.of.clear()
        return "emptied"

    def __lt__(self, other: object) -> bool:
        return len(str(self)) > 0

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("field", ["numbers", "tags", "document", "listed", "real", "k"])
def test_a_collection_that_changes_while_it_is_encoded_does_no_harm(field: str) -> None:
    some: list[Any] = [wide(k) for k in range(3)]
    a_list: list[Any] = ["a", "b"]
    a_set: set[Any] = {"a", "b"}
    a_dict: dict[str, Any] = {"a": "b"}
    a_list.append(Emptying(a_list))
    a_set.add(Emptying(a_set))
    a_dict["c"] = Emptying(a_dict)
    for value in (a_list, a_set, a_dict, Emptying(some)):
        with contextlib.suppress(Exception):
            RowEncoder(table_of(Wide)).encode([*some, wide(**{"k": 5, field: value})])
    some.append(wide(**{"k": 6, field: [Emptying(some)]}))
    with contextlib.suppress(Exception):
        RowEncoder(table_of(Wide)).encode(some)


def ordinary() -> list[list[Wide]]:
    each = {
        "at": NOON,
        "raw": b"ab",
        "numbers": [Decimal(1)],
        "tags": frozenset({"x", "y"}),
        "id": UUID(int=7),
    }
    return [[wide(k, text=str(k), document={"a": [k, {"b": str(k)}]}, **each) for k in range(300)]]


def given_back() -> list[list[Wide]]:
    return [
        [
            wide(1, flag=2**64 - 1),
            wide(2, real=[1]),
            wide(3, document={"f": [str(1), 1.5]}),
            wide(4, blobs={b"a", 1}),
        ]
    ]


def refused() -> list[list[Wide]]:
    values: list[dict[str, Any]] = [
        {"text": "\ud800"}, {"document": {"a": [{"b": Angry()}]}}, {"at": "today"}, {"k": [1]}, {"numbers": [Angry()]}, {"k": Decimal("sNaN")},
    ]  # fmt: skip
    return [[wide(1), wide(**{"k": 2} | each)] for each in values]


@pytest.mark.parametrize("make", [ordinary, given_back, refused])
def test_no_memory_is_lost(make: Callable[[], list[list[Wide]]]) -> None:
    encoder = RowEncoder(table_of(Wide))

    def work() -> None:
        for rows in make():
            with contextlib.suppress(Exception):
                encoder.join([encoder.encode(rows)])

    # An object of each round would be more.
    assert memory_kept(work, times=50, bound=50 * 16) < 50 * 16


def test_an_encoder_that_is_given_up_leaves_nothing() -> None:
    gc.collect()
    before = len([each for each in gc.get_objects() if isinstance(each, rows_in_c.Encoder)])
    for _ in range(10):
        RowEncoder(table_of(Wide)).encode(ordinary()[0])
    gc.collect()
    assert len([each for each in gc.get_objects() if isinstance(each, rows_in_c.Encoder)]) == before
