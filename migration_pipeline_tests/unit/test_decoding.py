"""Decoding of DynamoDB JSON against an independent reading of the same types, and its refusals."""

from __future__ import annotations

import base64
import contextlib
import json
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration_pipeline import EpochMillis, EpochSeconds, Item, RestOfItem, WholeItem, attribute
from migration_pipeline.errors import BadItem, UsageError
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.dynamodb_json import item_decoder, keys_decoder


class Everything(Item):
    S: str
    N: Decimal
    whole: int
    B: bytes
    yes: bool
    SS: frozenset[str]
    NS: frozenset[Decimal]
    BS: frozenset[bytes]
    M: dict[str, Any]
    L: list[Any]
    any: Any
    maybe: str | None
    odd: int = attribute("an ödd näme 🛒", default=7)


decode = item_decoder(Everything)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
digits38 = st.integers(-(10**38) + 1, 10**38 - 1)
numbers = st.builds(lambda n, e: str(Decimal(n).scaleb(e)), digits38, st.integers(-90, 80))
binary = st.binary(max_size=20)


def in_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


# Pairs of (as the export spells it, as it must be read): written down from the format, not from the code.
scalars = st.one_of(
    text.map(lambda v: ({"S": v}, v)),
    numbers.map(lambda v: ({"N": v}, Decimal(v))),
    binary.map(lambda v: ({"B": in_base64(v)}, v)),
    st.booleans().map(lambda v: ({"BOOL": v}, v)),
    st.just(({"NULL": True}, None)),
    st.sets(text, min_size=1, max_size=4).map(lambda v: ({"SS": list(v)}, sorted(v))),
    st.sets(digits38, min_size=1, max_size=4).map(
        lambda v: ({"NS": [str(n) for n in v]}, sorted(map(Decimal, v)))
    ),
    st.sets(binary, min_size=1, max_size=4).map(lambda v: ({"BS": [in_base64(b) for b in v]}, sorted(v))),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda v: ({"L": [a for a, _ in v]}, [b for _, b in v])),
        st.dictionaries(text | st.sampled_from(["S", "N", "M"]), inner, max_size=4).map(
            lambda v: ({"M": {k: a for k, (a, _) in v.items()}}, {k: b for k, (_, b) in v.items()})
        ),
    ),
    max_leaves=8,
)


def item(**changes: Any) -> bytes:
    attributes: dict[str, Any] = {
        "S": {"S": ""}, "N": {"N": "1.50"}, "whole": {"N": "12"}, "B": {"B": "AAE="}, "yes": {"BOOL": True},
        "SS": {"SS": ["b", "a"]}, "NS": {"NS": ["2", "1"]}, "BS": {"BS": ["AA=="]},
        "M": {"M": {}}, "L": {"L": []}, "any": {"NULL": True}, "not named": {"S": "is not decoded"},
    } | changes  # fmt: skip
    return json.dumps({"Item": {k: v for k, v in attributes.items() if v is not None}}).encode()


@given(text, numbers, digits38, binary, st.booleans(), values)
def test_all_types_read_as_their_independent_reading(
    s: str, n: str, whole: int, b: bytes, yes: bool, anything: tuple[Any, Any]
) -> None:
    spelled, read = anything
    got = decode(
        item(
            S={"S": s}, N={"N": n}, whole={"N": str(whole)}, B={"B": in_base64(b)}, yes={"BOOL": yes},
            any=spelled, M={"M": {"x": spelled}}, L={"L": [spelled]},
        )
    )  # fmt: skip
    assert (got.S, got.N, got.whole, got.B, got.yes) == (s, Decimal(n), whole, b, yes)
    assert got.N.as_tuple() == Decimal(n).as_tuple(), "no digit is added or lost"
    assert (got.any, got.M, got.L) == (read, {"x": read}, [read])
    assert (sorted(got.SS), sorted(got.NS), sorted(got.BS)) == (["a", "b"], [Decimal(1), Decimal(2)], [b"\0"])


class Archived(Item):
    """One attribute, and all of them."""

    PK: str | None
    everything: WholeItem


@given(st.dictionaries(text, values, max_size=6), st.none() | text)
def test_the_whole_item_is_a_document(members: dict[str, tuple[Any, Any]], key: str | None) -> None:
    members.pop("PK", None)
    if key is not None:
        members["PK"] = ({"S": key}, key)
    line = json.dumps({"Item": {name: wire for name, (wire, _) in members.items()}}).encode()
    decode = item_decoder(Archived)
    document = {name: value for name, (_, value) in members.items()}
    for read in (decode(line), *decode.many([line]), *decode.many([line])):  # the last knows the names
        assert (read.PK, read.everything) == (key, document)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (b'"a":{"S":"x"},"a":{"S":"y"}', "an attribute name occurs twice"),
        (b'"PK":{"S":"k"},"a":{"N":"s3cret"}', "one of its attributes is not a number"),
        (b'"PK":{"N":"1"},"a":{"S":"s3cret"}', "Object contains unknown field `N` at `$.Item.PK`"),
        (b'"a":{"X":"s3cret"}', "a type that DynamoDB does not know at `$.Item[...]`"),
    ],
)
def test_what_is_wrong_with_any_attribute_of_a_whole_item(attributes: bytes, reason: str) -> None:
    line = b'{"Item":{' + attributes + b"}}"
    with pytest.raises(BadItem) as caught:
        item_decoder(Archived)(line)
    assert str(caught.value) == reason
    with pytest.raises(Exception):  # noqa: B017, PT011  # `many` may raise any
        list(item_decoder(Archived).many([line]))


class Rested(Item):
    """A document between two attributes, and whatever else there is."""

    more: dict[str, Any] | None
    others: RestOfItem
    n: Decimal | None = attribute("the number")


@given(
    st.dictionaries(text, values, max_size=6),
    st.none() | text,
    st.sampled_from([None, (",", ":"), (", ", ":")]),
)
def test_the_rest_of_an_item_is_what_no_field_names(
    members: dict[str, tuple[Any, Any]], inside: str | None, separators: tuple[str, str] | None
) -> None:
    """Together they are the whole item; spaces, and braces inside of texts, make no difference."""
    members = {name: pair for name, pair in members.items() if name not in ("more", "the number")}
    document = {name: value for name, (_, value) in members.items()}
    item = {name: wire for name, (wire, _) in members.items()}
    if inside is not None:
        item |= {"more": {"M": {inside: {"S": '{"'}, "{": {"M": {}}}}}
    if len(members) % 2:
        item |= {"the number": {"N": "1.50"}}
    line = json.dumps({"Item": item}, separators=separators).encode()
    more = None if inside is None else {inside: '{"', "{": {}}
    decode = item_decoder(Rested, ["PK", *members])
    for read in (decode(line), *decode.many([line]), *decode.many([line])):
        assert (read.others, read.more) == (document, more)
        assert read.n == (Decimal("1.50") if len(members) % 2 else None)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (b'"a":{"S":"x"},"a":{"S":"y"}', "an attribute name occurs twice"),
        (b'"more":{"M":{}},"more":{"M":{}}', "an attribute name occurs twice"),
        (b'"more":{"M":{"a":{"S":"x"},"a":{"S":"y"}}}', "an attribute name occurs twice"),
        (b'"a":{"M":{"a":{"S":"x"},"a":{"S":"y"}}}', "an attribute name occurs twice"),
        (b'"a":{"N":"s3cret"}', "one of its attributes is not a number"),
        (b'"the number":{"N":"s3cret"},"a":{"S":"x"}', "attribute 'the number' is not a number"),
        (b'"a":{"X":"s3cret"}', "a type that DynamoDB does not know"),
        (b'"a":{"S":"\xff"}', "invalid UTF-8"),
    ],
)
def test_what_is_wrong_with_any_attribute_of_the_rest(attributes: bytes, reason: str) -> None:
    line = b'{"Item":{' + attributes + b"}}"
    with pytest.raises(BadItem) as caught:
        item_decoder(Rested)(line)
    assert str(caught.value) == reason
    with pytest.raises(Exception):  # noqa: B017, PT011  # `many` may raise any
        list(item_decoder(Rested).many([line]))


def test_an_item_without_a_rest_is_not_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = item_decoder(Rested)
    monkeypatch.delattr(dynamodb_json, "_decode_raw")
    line = b'{"Item":{"more":{"M":{"a":{"S":"x"}}},"the number":{"N":"1"}}}'
    assert decode(line) == Rested({"a": "x"}, {}, Decimal(1))
    with pytest.raises(BadItem):
        decode(line.replace(b'"more"', b'"less"'))


def test_missing_null_and_default() -> None:
    assert decode(item()).maybe is None
    assert decode(item(maybe={"NULL": True})).maybe is None
    assert decode(item(maybe={"S": "x"})).maybe == "x"
    assert decode(item()).odd == 7
    assert decode(item(**{"an ödd näme 🛒": {"N": "8"}})).odd == 8


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"S": None}, "missing required field `S`"),
        ({"S": {"N": "1"}}, "at `$.Item.S`"),
        ({"S": {"NULL": True}}, "at `$.Item.S`"),
        ({"S": {"S": 1}}, "at `$.Item.S.S`"),
        ({"N": {"N": "abc"}}, "'N' is not a number"),
        ({"N": {"N": "NaN"}}, "'N' is not a number"),
        ({"N": {"N": "Infinity"}}, "'N' is not a number"),
        ({"N": {"N": "1_000"}}, "'N' is not a number"),
        ({"N": {"N": " 1"}}, "'N' is not a number"),
        ({"N": {"N": "١"}}, "'N' is not a number"),
        ({"N": {"N": ""}}, "'N' is not a number"),
        ({"N": {"N": 1}}, "at `$.Item.N.N`"),
        ({"whole": {"N": "1.5"}}, "'whole' is not a whole number"),
        ({"whole": {"N": "1_0"}}, "'whole' is not a whole number"),
        ({"B": {"B": "*"}}, "base64"),
        ({"yes": {"BOOL": "true"}}, "at `$.Item.yes.BOOL`"),
        ({"maybe": {}}, "'maybe' has no value"),
        ({"maybe": {"NULL": False}}, "'maybe' has no value"),
        ({"NS": {"NS": ["1", "x"]}}, "'NS' is not a number"),
        ({"any": {}}, "'any' has no type"),
        ({"any": {"Z": 1}}, "at `$.Item.any`"),
    ],
)
def test_a_wrong_attribute_is_a_bad_item_that_names_it(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadItem) as caught:
        decode(item(**changes))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"Keys":{}}',
        item()[:-5],
        item() + b"x",
        item().replace(b'"12"', b'"\xff"'),
        item(S={"S": "\ud800"}),
    ],
)
def test_a_line_that_is_no_item_is_a_bad_item(line: bytes) -> None:
    with pytest.raises(BadItem):
        decode(line)


@given(st.binary(max_size=60) | values.map(lambda v: json.dumps({"Item": {"S": v[0]}}).encode()))
def test_no_line_raises_anything_but_a_bad_item(line: bytes) -> None:
    for read in (decode, keys_decoder(["PK"])):
        with contextlib.suppress(BadItem):
            read(line)


class Some(Item):
    wanted: int
    maybe: str | None


@given(
    st.dictionaries(
        text.filter(lambda name: name not in ("wanted", "maybe")), values.map(lambda v: v[0]), max_size=6
    ),
    st.none() | st.text(st.sampled_from('{}":\\'), max_size=6),
    st.sampled_from([None, "wanted", "maybe"]),
)
def test_attributes_that_nobody_reads_hide_no_twin(
    others: dict[str, Any], maybe: str | None, twin: str | None
) -> None:
    """The decoder learns what it passes over; it must tell a wanted attribute's twin before that and after."""
    read = item_decoder(Some, known=["PK"])
    attributes = {"wanted": {"N": "1"}, **({} if maybe is None else {"maybe": {"S": maybe}}), **others}
    line = json.dumps({"Item": attributes}, separators=(",", ":")).encode()
    spelled = {"wanted": b'"wanted":{"N":"2"}', "maybe": b'"maybe":{"S":"x"}'}.get(twin or "")
    twins = line[:-2] + b"," + spelled + b"}}" if spelled else b""
    for _ in range(3):
        assert list(read.many([line, line])) == [Some(1, maybe)] * 2
        if twin == "wanted" or (twin and maybe is not None):
            with pytest.raises(BadItem, match="an attribute name occurs twice"):
                read(twins)


class Documents(Item):
    wanted: int
    d: dict[str, Any] | None
    l: list[Any] | None  # noqa: E741
    any: Any


RAW_VALUES = [
    b'{"S":"x"}', b'{"S":"\xff"}', b"5", b"null", b"{}", b"[]", b'{"M":{}}', b'{"L":[{"M":{"x":{"S":"1"}}}]}',
    b'{"M":{"x":{"S":"1"},"x":{"S":"2"}}}', b'{"M":{"x":5,"x":{"S":"2"}}}', b'{"M":{"wanted":{"S":"\xff"}}}',
    b'{"M":{"wanted":{"N":"1"}},"M":{"x":{"S":"1"}}}', b'{"L":[{"M":{"x":{"S":"{\\"S"},"x":{"N":"2"}}}]}',
]  # fmt: skip


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from([b"wanted", b"d", b"l", b"any", b"a", b"b", b"a"]), st.sampled_from(RAW_VALUES)),
            max_size=4,
        ).map(lambda pairs: [(b"wanted", b'{"N":"1"}'), *pairs]),
        max_size=5,
    ),
    st.sampled_from([Some, Documents]),
)  # fmt: skip
def test_what_becomes_of_a_line_depends_on_no_other(
    lines: list[list[tuple[bytes, bytes]]], item_class: type[Item]
) -> None:
    """What a decoder has learned of other lines spares it time, and changes nothing else (promise P2)."""
    raw = [b'{"Item":{' + b",".join(b'"%b":%b' % pair for pair in pairs) + b"}}" for pairs in lines]

    def verdict(read: Any, line: bytes) -> Any:
        # As the engine does it: the list's way first, then the single line's.
        with contextlib.suppress(Exception):
            return next(iter(read.many([line])))
        try:
            return read(line)
        except BadItem as error:
            return str(error)

    learned = item_decoder(item_class)
    for line in [*raw, *raw]:
        assert verdict(learned, line) == verdict(item_decoder(item_class), line)


def test_attributes_that_nobody_reads_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read = item_decoder(Some)
    looks = []
    learn = read._learn

    def look(line: bytes) -> None:
        looks.append(line)
        learn(line)

    monkeypatch.setattr(read, "_learn", look)
    flat = b'{"Item":{"wanted":{"N":"1"},"a":{"S":"x"},"b":{"BOOL":true}}}'
    nested = b'{"Item":{"wanted":{"N":"1"},"a":{"S":"{"},"d":{"M":{"x":{"L":[{"N":"1"}]}}}}}'
    for line in (flat, nested, flat, nested):
        assert list(read.many([line] * 3)) == [Some(1, None)] * 3
    assert looks == [flat] * 3 + [nested] * 3, "a list of lines each, and no more"


def test_reasons_hold_no_values() -> None:
    class Colour(Item):
        colour: Literal["red", "green"]
        at: datetime | None
        n: Decimal | None

    read = item_decoder(Colour)
    secrets = [{"colour": {"S": "s3cret"}}, {"colour": {"S": "red"}, "at": {"S": "s3cret"}}]
    secrets += [{"colour": {"S": "red"}, "n": {"N": "s3cret"}}, {"colour": {"s3cret": "red"}}][:1]
    for attributes in secrets:
        with pytest.raises(BadItem) as caught:
            read(json.dumps({"Item": attributes}).encode())
        assert "s3cret" not in str(caught.value)


class Times(Item):
    iso: datetime
    day: date
    seconds: EpochSeconds
    millis: EpochMillis | None
    id: Optional[UUID] = None  # noqa: UP045  # the older spelling works, too


def times(**changes: Any) -> bytes:
    attributes = {
        "iso": {"S": "2024-05-06T07:08:09.123456+02:00"}, "day": {"S": "2024-05-06"}, "seconds": {"N": "1700000000"},
        "id": {"S": "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
    } | changes  # fmt: skip
    return json.dumps({"Item": attributes}).encode()


def test_times() -> None:
    read = item_decoder(Times)
    got = read(times(millis={"S": "1700000000123"}))
    assert got.iso == datetime(2024, 5, 6, 5, 8, 9, 123456, tzinfo=timezone.utc)
    assert got.day == date(2024, 5, 6)
    assert got.seconds == datetime(2023, 11, 14, 22, 13, 20, tzinfo=timezone.utc)
    assert got.millis == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=timezone.utc)
    assert got.id == UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
    assert read(times(iso={"S": "2024-05-06T07:08:09"})).iso == datetime(
        2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc
    )
    assert read(times(seconds={"N": "-1.5"})).seconds == datetime(
        1969, 12, 31, 23, 59, 58, 500000, tzinfo=timezone.utc
    )


def test_digits_beyond_the_microsecond_are_rounded() -> None:
    read = item_decoder(Times)
    last = datetime(2024, 12, 31, 23, 59, 59, 999999, tzinfo=timezone.utc)
    assert read(times(iso={"S": "2024-12-31T23:59:59.9999994Z"})).iso == last
    assert read(times(iso={"S": "2024-12-31T23:59:59.9999995Z"})).iso == last + timedelta(microseconds=1)
    with pytest.raises(BadItem):  # .NET's DateTime.MaxValue
        read(times(iso={"S": "9999-12-31T23:59:59.9999999Z"}))


@given(st.integers(-62135596800000, 253402300799999))
def test_milliseconds_are_exact(ticks: int) -> None:
    read = item_decoder(Times)
    expected = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ticks)
    assert read(times(millis={"N": str(ticks)})).millis == expected


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        ("1e400", "is a time outside the years 1 to 9999"),
        ("99999999999999", "is a time outside the years 1 to 9999"),
        ("99999999999999999999", "is a time outside the years 1 to 9999"),
        ("x", "is not a number"),
        ("", "is not a number"),
        ("١", "is not a number"),
    ],
)
def test_a_time_that_is_none_is_a_bad_item(number: str, reason: str) -> None:
    with pytest.raises(BadItem, match=f"^attribute 'seconds' {reason}$"):
        item_decoder(Times)(times(seconds={"N": number}))


def test_keys_are_read_without_decoding_the_rest() -> None:
    read = keys_decoder(["PK", "SK", "type"])
    line = b'{"Item":{"SK":{"S":"B"},"big":{"M":{"x":{"L":[{"S":"\xff"}]}}},"PK":{"S":"A"},"type":{"N":"1"}}}'
    assert read(line)[:3] == ("A", "B", "")
    assert keys_decoder(["PK"])(line)[0] == "A"


def test_an_annotation_that_no_attribute_reads_as_is_refused() -> None:
    class Wrong(Item):
        value: complex

    with pytest.raises(UsageError, match=r"Wrong.value: no DynamoDB type"):
        item_decoder(Wrong)
