"""Lines in Ion: the same item as in DynamoDB JSON, each value that DynamoDB never writes with its reason, and `amazon.ion` as oracle."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migration_pipeline import (
    EpochSeconds,
    Item,
    Profile,
    RestOfItem,
    Row,
    WholeItem,
    accelerator,
    attribute,
    prefix,
)
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.sample_ion import ion_line, ion_number
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import BadItem
from migration_pipeline.profiles.shop import profile as shop
from migration_pipeline.settings import ACCELERATOR
from migration_pipeline.sources import dynamodb_json, ion
from migration_pipeline.sources.dialects import dialect_of, is_ion, item_digests
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.ion_text import attributes_line, item_line
from migration_pipeline.sources.ion_usual import quick_attributes
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.testing import rows_of
from migration_pipeline_tests import fuzz_ion
from migration_pipeline_tests.conftest import accelerator_is_to_be_there, memory_kept

things = Profile("things")


class Thing(Item):
    """A field of each kind."""

    PK: str
    text: str | None
    number: Decimal | None
    whole: int | None
    real: float | None
    at: EpochSeconds | None
    flag: bool | None
    binary: bytes | None
    texts: frozenset[str] | None
    numbers: frozenset[Decimal] | None
    binaries: frozenset[bytes] | None
    document: dict[str, Any] | None
    elements: list[Any] | None
    anything: Any
    everything: WholeItem
    named: str | None = attribute("it's a name ÿ€😀", default=None)


class Seen(Row, table="seen", landing=True):
    item: str


@things.route(PK=prefix("T"))
def thing(item: Thing) -> Seen:
    return Seen(repr(item))


class Pair(Item):
    PK: str
    rest: RestOfItem


@things.route(PK=prefix("R"))
def pair(item: Pair) -> Seen:
    return Seen(repr(item))


things.ignore(PK="skipped", because="skipped")


def line(values: str, head: str = " $ion_1_0 ") -> bytes:
    return f"{head}{{Item:{{{values}}}}}".encode("utf-8", "surrogateescape")


# -- the same item ----------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
digits = st.tuples(st.integers(-(10**38) + 1, 10**38 - 1), st.integers(-130, 87)).map(
    lambda pair: format(Decimal(f"{pair[0]}E{pair[1]}"), "f") if pair[0] else "0"
)
numbers = st.one_of(
    digits.map(lambda text: text.rstrip("0").rstrip(".") if "." in text else text),
    st.sampled_from(["-0", "0", "10", "600", "12101", "1" + "0" * 125, "9" * 38, "0." + "0" * 129 + "1"]),
)
binaries = st.binary(max_size=8).map(lambda value: base64.b64encode(value).decode())
scalars = st.one_of(
    st.fixed_dictionaries({"S": texts}),
    st.fixed_dictionaries({"N": numbers}),
    st.fixed_dictionaries({"B": binaries}),
    st.fixed_dictionaries({"BOOL": st.booleans()}),
    st.just({"NULL": True}),
    st.fixed_dictionaries({"SS": st.lists(texts, min_size=1, max_size=4, unique=True)}),
    st.fixed_dictionaries({"NS": st.lists(numbers, min_size=1, max_size=4, unique_by=Decimal)}),
    st.fixed_dictionaries({"BS": st.lists(binaries, min_size=1, max_size=4, unique=True)}),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.fixed_dictionaries({"L": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"M": st.dictionaries(texts, inner, max_size=3)})
    ),
    max_leaves=8,
)
names = st.sampled_from(
    [*Thing.__struct_fields__[1:-2], "it's a name ÿ€😀", 'a "name"', "null", "$7", "a b", "unread"]
)
of_type = {
    "text": "S", "number": "N", "whole": "N", "real": "N", "flag": "BOOL", "binary": "B", "texts": "SS", "numbers": "NS", "binaries": "BS",
}  # fmt: skip
items = st.builds(
    lambda key, some: {"PK": {"S": key}} | some,
    st.sampled_from(["T", "T1", "R", "skipped", "", "unrouted"]),
    st.dictionaries(names, values, max_size=8),
)


def outcome(profile: Profile, output_format: Any, content: bytes) -> Any:
    """What becomes of a line: its rows and counts, and why it is bad."""
    made = Transform(profile, dialect_of(output_format))([content], 5)
    bad = [(each.number, each.reason) for each in made.bad]
    return bad, {kind.__name__: repr(rows) for kind, rows in made.rows.items()}, made.counts.skipped


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_an_item_becomes_the_same_rows_from_both_formats(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCELERATOR, mode)

    @given(items)
    @settings(max_examples=400, deadline=None)
    def check(item: dict[str, Any]) -> None:
        spelled = json.dumps({"Item": item}).encode()
        in_ion = ion_line(spelled).rstrip(b"\n")
        assert outcome(things, "DYNAMODB_JSON", spelled) == outcome(things, "ION", in_ion)
        assert dynamodb_json.whole_item(spelled) == dynamodb_json.whole_item(item_line(in_ion))

    check()


@pytest.mark.parametrize(
    ("spelled", "json_spelled"),
    [
        ("1d1", "10"), ("6d2", "600"), ("12101.", "12101"), ("1334.", "1334"), ("12.5", "12.5"), ("-0.", "-0"), ("0.", "0"), ("7", "7"),
        ("1d125", "1" + "0" * 125), ("9.9d125", "99" + "0" * 124), ("1d-130", "0." + "0" * 129 + "1"), ("15d-1", "1.5"), ("0.05d2", "5"),
        ("-25d-4", "-0.0025"), ("1.50", "1.50"), ("10.50d1", "105.0"), ("0d5", "0"), ("1D+2", "100"), ("1d002", "100"),
        ("12345678901234567890123456789012345678.", "12345678901234567890123456789012345678"), ("1d126", "1E126"), ("1d-300", "1E-300"),
    ],
)  # fmt: skip
def test_numbers_are_spelled_as_in_json(spelled: str, json_spelled: str) -> None:
    expected = {"n": {"N": json_spelled}}
    assert json.loads(translated(line(f"n:{spelled}"))) == {"Item": expected}
    decimal = dynamodb_json.whole(item_line(line(f"n:{spelled}")))["n"]
    assert decimal == Decimal(spelled.lower().replace("d", "e"))


def translated(content: bytes) -> bytes:
    """The translation in Python, which that in C has to give, too, where it is built."""
    made = item_line(content)
    extension = accelerator.extension(accelerator.ION)
    if extension:

        def hand(_: bytes) -> bytes:
            raise AssertionError("C did not take it")

        assert extension.items([content], hand) == [made]
    return made


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (r"a\r\n\t\b\f\"\\\/", 'a\r\n\t\b\f"\\/'), (r"\a\v\0\'\?", "\a\v\0'?"), (r"\x41\xe9", "Aé"), (r"\u00e9\u20AC", "é€"),
        (r"\ud83d\ude00", "😀"), (r"\U0001F600\U00000041", "😀A"), ("a\tb\x0bc\x0cd", "a\tb\x0bc\x0cd"), ("ÿ€😀\x7f\x85", "ÿ€😀\x7f\x85"), ("{}[],:'", "{}[],:'"),
        ("", ""),
    ],
)  # fmt: skip
def test_texts_and_names_are_read_with_all_escapes(text: str, meant: str) -> None:
    assert json.loads(translated(line(f'a:"{text}"'))) == {"Item": {"a": {"S": meant}}}
    quoted = text.replace("'", "\\'") if "\\'" not in text else text
    assert json.loads(translated(line(f"'{quoted}':1."))) == {"Item": {meant: {"N": "1"}}}


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("null", {"NULL": True}), ("true", {"BOOL": True}), ("false", {"BOOL": False}), ("[]", {"L": []}), ("{}", {"M": {}}),
        ("{{YQ==}}", {"B": "YQ=="}), ("{{ YWI= }}", {"B": "YWI="}), ("{{}}", {"B": ""}),
        ('$dynamodb_SS::["b","a"]', {"SS": ["b", "a"]}), ("$dynamodb_NS::[1d1,2.]", {"NS": ["10", "2"]}),
        ("$dynamodb_BS::[{{YQ==}},{{}}]", {"BS": ["YQ==", ""]}), ('$dynamodb_SS :: [ "a" , "b" ]', {"SS": ["a", "b"]}),
        ('[1.,"x",[null,{a:true}]]', {"L": [{"N": "1"}, {"S": "x"}, {"L": [{"NULL": True}, {"M": {"a": {"BOOL": True}}}]}]}),
        ('{\'a\':1.,"b":2.,$dynamodb_SS:3.}', {"M": {"a": {"N": "1"}, "b": {"N": "2"}, "$dynamodb_SS": {"N": "3"}}}),
    ],
)  # fmt: skip
def test_each_type_is_read(value: str, read: dict[str, Any]) -> None:
    assert json.loads(translated(line(f"x:{value}"))) == {"Item": {"x": read}}


@pytest.mark.parametrize(
    "content",
    [b"$ion_1_0 {Item:{a:1.}}", b" $ion_1_0 {Item:{a:1.}}", b"$ion_1_0{Item:{a:1.}}", b"\t$ion_1_0  { Item : { a : 1. } } \r", b"{Item:{a:1.}}"],
)  # fmt: skip
def test_a_line_may_begin_with_spaces(content: bytes) -> None:
    assert translated(content) == b'{"Item":{"a":{"N":"1"}}}'
    assert is_ion(content)


# -- what DynamoDB never writes -------------------------------------------------------------------------

NEVER = {
    "1e5": "a float", "1.5E-3": "a float", "nan": "a float", "+inf": "a float", "-inf": "a float", "2007T": "a timestamp",
    "2007-02-23T12:14:33.079Z": "a timestamp", "2007-02-23": "a timestamp", "secret": "a symbol", "'secret'": "a symbol", "$10": "a symbol",
    '{{"secret"}}': "a clob", "{{'''secret'''}}": "a clob", 'secret::"a"': "an annotation", "'secret'::1.": "an annotation",
    '$dynamodb_XS::["a"]': "an annotation", "$dynamodb_SS::1.": "an annotation", "null.string": "a null of a type", "(1. 2.)": "an s-expression",
    "'''secret'''": "a long text", "1_000.": "a number of another spelling", "0xFF": "a number of another spelling", "012.": "a number of another spelling",
    "/*secret*/1.": "a comment", "$dynamodb_SS::[1.]": "an element of another type in a set of S", "$dynamodb_NS::[null]": "an element of another type in a set of N",
    '$dynamodb_BS::["a"]': "an element of another type in a set of B", "1d999999999": "a number of that size", "{$10:1.}": "a name that is no text",
    "{null:1.}": "a name that is no text",
}  # fmt: skip


@pytest.mark.parametrize("value", NEVER)
def test_a_value_that_dynamodb_never_writes_is_a_bad_item(value: str) -> None:
    (reason,) = bad_of(line(f'PK:"T",text:{value},flag:true'))
    assert reason == f"{NEVER[value]}, which DynamoDB does not write in an export"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'$ion_1_0 $ion_symbol_table::{symbols:["secret"]} {Item:{$10:1.}}', "a symbol table, which DynamoDB does not write in an export"),
        (b"$ion_1_1 {Item:{a:1.}}", "no {Item:{"), (b"{item:{a:1.}}", "no {Item:{"), (b"", "no {Item:{"), (b"secret", "no {Item:{"), (b"[1.]", "no {Item:{"),
        (b'$ion_1_0 {Item:{PK:"T"},more:1.}', "does not end behind its item"), (b'$ion_1_0 {Item:{PK:"T"}} {Item:{}}', "does not end behind its item"),
        (line('PK:"T",text:"secret')[:-2], "ends in the middle of the item|a text that does not end"), (line('PK:"T",text:"x"')[:-1], "ends in the middle"),
        (line('PK:"T" text:"x"'), r"no comma after a value \(byte"), (line('PK:"T",,'), "no name of an attribute"), (line('PK:"T",'), "no value after a comma"),
        (line('PK "T"'), "no colon after a name"), (line('PK:"T",text:'), "no value"), (line('PK:"T",text:"\\q"'), "an escape in a text that Ion does not know"),
        (line('PK:"T",text:"\\U0011FFFF"'), "an escape in a text that is no character"), (line('PK:"T",text:"\x01"'), "control character"),
        (line('PK:"T",text:"\udcff"'), "invalid UTF-8"), (line('PK:"T",text:"\\ud83d and more"'), "surrogate"), (line('PK:"T",binary:{{YQ=}}'), "a blob that is no base64"),
        (line('PK:"T",text:"a",text:"b"'), "an attribute name occurs twice"), (line("PK:\"T\",text:\"a\",'text':\"b\""), "an attribute name occurs twice"),
        (line('PK:"T",document:{a:1.,\'\\x61\':2.}'), "an attribute name occurs twice"), (line('PK:"R",a:{b:1.,b:2.}'), "an attribute name occurs twice"),
        (line('PK:"T",elements:' + "[" * 101 + "]" * 101), "nested too deeply"), (line('PK:"T",text:1.'), r"unknown field `N`"), (line('PK:1.,text:"a"'), None),
    ],
)  # fmt: skip
def test_a_bad_line_is_a_bad_item_with_its_reason(content: bytes, reason: str | None) -> None:
    found = bad_of(content)
    assert len(found) == (reason is not None)
    for each in found:
        assert any(part in each for part in (reason or "").replace(r"\(", "(").split("|")), each


def bad_of(content: bytes) -> list[str]:
    """The reasons of a line that stands among good ones, which are loaded; none holds what it said."""
    good = line('PK:"T",text:"good"')
    made = Transform(things, ion)([good, content, good], 7)
    assert list(made.numbers) == [7, 9]
    assert [(each.number, each.line) for each in made.bad] == [(8, content)] * len(made.bad)
    assert not any("secret" in each.reason for each in made.bad)
    return [each.reason for each in made.bad]


def test_reasons_name_no_place_of_the_translation() -> None:
    (reason,) = bad_of(line('PK:"T",text:"\\ud83d"'))
    assert "byte" not in reason


# -- routing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_routing_reads_no_further_than_its_attributes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCELERATOR, mode)
    transform = Transform(things, ion)
    skipped = line('a:{b:["}",\'x\']},PK:"skipped",odd:1e5,b:"\\q"')
    assert transform([skipped]).counts.skipped == {"skipped": 1}
    assert transform.read_keys(skipped) == ("skipped", "skipped")
    cut_off = transform([line('a:"x",PK:"skipped",b:1.')[:-1]])
    assert [bad.reason for bad in cut_off.bad] == [
        "not Ion as DynamoDB writes it: the line ends in the middle of the item"
    ]


def test_the_first_of_two_routing_attributes_counts_and_the_item_is_bad() -> None:
    twice = line('PK:"T",text:"a",PK:"skipped"')
    assert attributes_line(twice, (b"PK",)) == b'{"Item":{"PK":{"S":"T"}}}'
    for names in ((b"PK", b"text"), (b"text", b"PK")):
        first = attributes_line(line('PK:"T",PK:"skipped",text:"a"'), names)
        assert json.loads(first) == {"Item": {"PK": {"S": "T"}, "text": {"S": "a"}}}
        quick = quick_attributes(names)(line('PK:"T",PK:"skipped",text:"a"'))
        assert quick is None or json.loads(quick) == json.loads(first)
    assert bad_of(twice) == ["an attribute name occurs twice"]


typed = Profile("typed")
typed.ignore(kind=10, because="ten")
typed.ignore(kind=True, because="yes")
typed.ignore(kind="null", because="a text")


def test_rules_of_numbers_and_booleans_hold() -> None:
    lines = [
        line(f"kind:{value}")
        for value in ("1d1", "10.", "10", "100d-1", "true", '"null"', "null", "11.", "[]")
    ] + [line("")]
    made = Transform(typed, ion)(lines)
    assert made.counts.skipped == {"a text": 1, "ten": 4, "yes": 1, "unrouted": 4}
    assert made.counts.unrouted == {"kind=(NULL)": 1, "kind=(N)": 1, "kind=(L)": 1, "kind=(none)": 1}


# -- sizes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "auto"])
def test_large_items_are_read(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ACCELERATOR, mode)
    text, binary = "ä" * 100_000 + '"\\\n', base64.b64encode(bytes(range(256)) * 600).decode()
    item = {
        "PK": {"S": "T"},
        "text": {"S": text},
        "binary": {"B": binary},
        "unread": {"L": [{"S": "x" * 32_000}] * 3},
    }
    spelled = json.dumps({"Item": item}).encode()
    assert outcome(things, "ION", ion_line(spelled)) == outcome(things, "DYNAMODB_JSON", spelled)
    assert not outcome(things, "ION", ion_line(spelled))[0]


@pytest.mark.parametrize(
    "odd", ['"', "'", "[", "{", "{{", "\\", "(", "a::", "'''", '"\\', "[1.,", "{a:", '{a:"']
)
def test_hostile_lines_take_no_long_time(odd: str) -> None:
    for head in ("", "x:"):
        assert len(bad_of(line(f'PK:"T",{head}{odd * 100_000}'))) == 1


# -- both ways in -----------------------------------------------------------------------------------------


def test_a_line_of_an_export_is_what_tests_of_a_profile_take() -> None:
    assert rows_of(things, line('PK:"R",n:1d1')) == rows_of(things, {"PK": {"S": "R"}, "n": {"N": "10"}})


def test_an_item_has_one_digest_in_both_formats() -> None:
    digest = item_digests(("PK", "n"), "things")
    spelled = b'{"Item":{"n":{"N":"10"},"x":{"S":"y"},"PK":{"S":"\\u00e4"}}}'
    assert digest(line('n:1d1,x:"y",PK:"ä"')) == digest(spelled)
    assert digest(line('n:1d1,x:"y",PK:"a"')) != digest(spelled)
    with pytest.raises(ValueError, match=r"."):
        digest(line('x:"y"'))
    with pytest.raises(ValueError, match=r"."):
        digest(b"$ion_1_0")


def test_the_sample_in_ion_has_the_items_of_the_one_in_json(tmp_path: Path) -> None:
    found = {}
    for output_format in ("DYNAMODB_JSON", "ION"):
        export = read_export(
            str(write_sample(tmp_path, items=3_000, files=2, bad=30, output_format=output_format)),
            Storage(),
        )
        transform, outcomes = Transform(shop, dialect_of(export.output_format)), []
        for file in export.files:
            made = transform([each for some in FileStream(file, Storage()) for each in some])
            rows = {kind.__name__: list(map(repr, rows)) for kind, rows in made.rows.items()}
            outcomes.append((rows, [bad.number for bad in made.bad], made.counts.skipped))
        planted = [json.loads(each) for each in (tmp_path / "bad-items.jsonl").read_text().splitlines()]
        found[output_format] = outcomes, [(fault["line"], fault["kind"]) for fault in planted]
    assert found["ION"] == found["DYNAMODB_JSON"]
    assert sum(len(bad) for _, bad, _ in found["ION"][0]) == 26  # those that the database does not refuse


@pytest.mark.parametrize(
    ("number", "spelled"),
    [("10", "1d1"), ("600", "6d2"), ("12101", "12101."), ("12.5", "12.5"), ("0", "0."), ("-0.0025", "-0.0025"), ("1E-10", "1d-10"), ("-5", "-5.")],
)  # fmt: skip
def test_the_sample_spells_numbers_as_real_exports_do(number: str, spelled: str) -> None:
    assert ion_number(number) == spelled


# -- the oracle, and C ------------------------------------------------------------------------------------

oracle = pytest.mark.skipif(not fuzz_ion.ORACLE_IS_THERE, reason="amazon.ion is not installed")


@oracle
@given(items)
@settings(max_examples=300, deadline=None)
def test_each_line_is_read_as_amazon_ion_reads_it(item: dict[str, Any]) -> None:
    assert (
        fuzz_ion.check(
            ion_line(json.dumps({"Item": item}).encode()).rstrip(b"\n"),
            accelerator.extension(accelerator.ION),
        )
        == "sound"
    )


@oracle
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mutated_lines_are_read_as_amazon_ion_reads_them_or_are_bad(seed: int) -> None:
    found = fuzz_ion.fuzz(seed, 4_000)
    assert found["sound"] > 800, found
    assert sum(count for what, count in found.items() if what.startswith("bad")) > 1_500, found


c = pytest.mark.skipif(not accelerator_is_to_be_there(), reason="it is off, or there is no compiler")


@c
def test_what_is_read_in_c_is_counted() -> None:
    lines = [line(f'PK:"T",text:"{n}"') for n in range(5)]
    odd = line('\'P\\x4b\':"T",text:"x"')
    made = Transform(things, ion)([*lines, line('PK:"skipped"'), odd, line('PK:"T",text:null')])
    assert (made.counts.loaded, made.counts.skipped) == (7, {"skipped": 1})
    assert made.counts.accelerated + sum(made.counts.odd.values()) == 8
    assert made.counts.accelerated >= 6
    assert [repr(each) for each in made.rows[Seen]] == [
        repr(each) for one in made.lines for each in rows_of(things, one)
    ]
    assert list(made.lines) == [*lines, odd, line('PK:"T",text:null')]
    assert list(made.numbers) == [1, 2, 3, 4, 5, 7, 8]


@c
def test_no_memory_is_lost() -> None:
    transform = Transform(things, ion)
    source = fuzz_ion.lines(7)
    lines = [next(source).replace(b'PK:"', b'PK:"T') for _ in range(300)]

    def work() -> None:
        for each in lines:
            transform([each])

    assert memory_kept(work, times=10, bound=10 * 64) < 10 * 64


@c
@pytest.mark.parametrize(
    "arguments", [([b""], (b"PK",)), ([b""], [b"PK"], len), ([b""], ("PK",), len), (5, (b"PK",), len)]
)
def test_wrong_arguments_are_errors(arguments: tuple[Any, ...]) -> None:
    extension = accelerator.extension(accelerator.ION)
    with pytest.raises((TypeError, ValueError)):
        extension.attributes(*arguments)


@c
def test_what_is_no_line_is_handed_to_python() -> None:
    extension = accelerator.extension(accelerator.ION)
    assert extension.items(["text", b"", bytearray(b"{Item:{}}")], lambda line: b"handed") == [b"handed"] * 3

    def fail(_: bytes) -> bytes:
        raise BadItem("it is bad")

    with pytest.raises(BadItem, match="it is bad"):
        extension.items([b"{Item:{}}", b"x"], fail)
