"""Reads generated and mutated lines in Python and in C, and compares: ``python -m migration_pipeline_tests.fuzz_lines --lines 1000000``.

Every line that C understands must give what Python gives: the same rule, and the same item, to the type of each value. A line
that C hands to Python is right whatever it holds; how many are, by reason, is printed, so that a fuzzer that tests nothing is seen.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from types import ModuleType
from typing import Any, Literal
from uuid import UUID

from migration_pipeline import (
    AnyInt,
    EpochMillis,
    EpochSeconds,
    Item,
    Profile,
    RestOfItem,
    Row,
    WholeItem,
    attribute,
    prefix,
)
from migration_pipeline.accelerator import LINES, extension
from migration_pipeline.block import Block
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import BadItem
from migration_pipeline.sources import dynamodb_json, lines

profile = Profile("fuzz")


class Anything(Row, table="anything", landing=True):
    item: str


class Needed(Item):
    """Each kind of field, and none may be missing."""

    PK: str
    s: str
    n: Decimal
    i: int
    a: AnyInt
    t: datetime
    e: EpochSeconds
    b: bytes
    o: bool
    ss: frozenset[str]
    ns: frozenset[Decimal]
    m: dict[str, Any]
    l: list[Any]  # noqa: E741


class Perhaps(Item):
    """Each kind of field, and all may be missing."""

    s: str | None
    n: Decimal | None
    i: int | None
    a: AnyInt | None
    f: float | None
    t: datetime | None
    d: date | None
    u: UUID | None
    w: Literal["a", "b"] | None
    e: EpochSeconds | None
    k: EpochMillis | None
    b: bytes | None
    o: bool | None
    ss: frozenset[str] | None
    ns: frozenset[Decimal] | None
    ii: frozenset[int] | None = attribute("ns2")
    bs: frozenset[bytes] | None
    m: dict[str, Any] | None
    l: list[Any] | None  # noqa: E741
    x: Any
    y: int = attribute("ÿ€😀", default=7)


class Whole(Item):
    PK: str
    everything: WholeItem


class Rest(Item):
    PK: str
    m: dict[str, Any] | None
    rest: RestOfItem
    s: str = ""


class Picky(Item):
    """Its own code refuses some values."""

    s: str
    n: Decimal = Decimal(5)

    def __post_init__(self) -> None:
        if self.s.startswith("x"):
            raise ValueError("it begins with x")


@profile.route(PK=prefix("N#"), SK="needed")
def needed(item: Needed) -> Anything:
    return Anything(repr(item))


@profile.route(kind=7)
def seven(item: Picky) -> Anything:
    return Anything(repr(item))


@profile.route(kind=True, SK=prefix("t"))
def yes(item: Rest) -> Anything | None:
    return Anything(repr(item)) if item.rest else None


profile.ignore(kind="text", because="a text")
profile.ignore(kind=Decimal("-120"), because="a number")


@profile.route(PK=prefix("W#"))
def whole(item: Whole) -> Anything:
    return Anything(repr(item))


@profile.route(PK=prefix("P#ü"))
def perhaps_other(item: Perhaps) -> Anything:
    return Anything(repr(item))


@profile.route(PK=prefix("P#"))
def perhaps(item: Perhaps) -> Anything:
    return Anything(repr(item))


TEXTS = (
    "", "a", "needed", "text", "true", "t", "x", "N#1", "W#", "P#", "P#ü", "P#üb", "b", '"', "\\", "/", "\n\t\r\b\f", "\x00",
    "\x7f", "ü", "€", "😀", "\ue000", "\u2028", "{", '{"', '{"S":"', "}}", "7", "-0", "a" * 7, "b" * 8, "c" * 9, "ü" * 17,
    "2024-02-29T23:59:59Z", "2023-02-29T00:00:00Z", "2024-01-01T00:00:00.123456Z", "2024-01-01T00:00:00.1",
    "2024-01-01T00:00:00+01:00", "2024-01-01T00:00:00.1234567Z", "2024-01-01", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999",
    "2024-01-01T24:00:00Z", "123e4567-e89b-12d3-a456-426614174000", "1700000000",
)  # fmt: skip
NUMBERS = (
    "0", "-0", "7", "07", "7.0", "70e-1", "+7", "-120", "-12E1", "1", "12", "1.50", "-1.5e-3", "1E125", "1e126", "9" * 18, "9" * 19,
    "9" * 38, "-" + "9" * 18, "1700000000", "1700000000123", "253402300799", "253402300800", "253402300799999", "-1", "1.999",
    "0.1", "NaN", "Infinity", "1_0", "", "-", "--1", "1-", ".", ".5", "5.", "e", "٣", "0x1", " 1", "1e999999999999999999999",
)  # fmt: skip
NAMES = (
    "PK",
    "SK",
    "kind",
    *Perhaps.__struct_encode_fields__,
    "other",
    "Item",
    "S",
    "PK2",
    "",
    "z" * 40,
    "ü",
)
LETTERS = ("S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS")
USUAL = {
    "PK": "S", "SK": "S", "s": "S", "n": "N", "i": "N", "a": "N", "f": "N", "t": "S", "d": "S", "u": "S", "w": "S", "e": "N",
    "k": "N", "b": "B", "o": "BOOL", "ss": "SS", "ns": "NS", "ns2": "NS", "bs": "BS", "m": "M", "l": "L", "ÿ€😀": "N",
}  # fmt: skip
FITTING = {
    "PK": TEXTS[7:12], "SK": ("needed", "true", "t", ""), "t": TEXTS[34:38], "d": ("2024-01-01",), "w": ("a", "b"),
    "u": ("123e4567-e89b-12d3-a456-426614174000",), "i": ("0", "7", "-120", "9" * 18, "1E3"), "ns2": ("1", "2", "-3"),
    "a": ("0", "12"), "e": NUMBERS[19:22], "k": NUMBERS[19:24],
}  # fmt: skip
STORIES: tuple[dict[str, bytes], ...] = (
    {"PK": b'{"S":"N#1"}', "SK": b'{"S":"needed"}'},
    {"kind": b'{"N":"7"}'},
    {"kind": b'{"N":"7.0"}'},
    {"kind": b'{"BOOL":true}', "SK": b'{"S":"true"}', "PK": '{"S":"ü"}'.encode()},
    {"kind": b'{"BOOL":true}', "SK": b'{"S":"t"}', "PK": b'{"S":"P#"}'},
    {"kind": b'{"S":"text"}'},
    {"kind": b'{"N":"-120"}'},
    {"kind": b'{"N":"8"}', "PK": '{"S":"P#übung"}'.encode()},
    {"PK": b'{"S":"W#"}'},
    {"PK": b'{"S":"P#\\u00fc"}'},
    {"PK": b'{"S":"P#"}', "SK": b'{"NULL":true}'},
)
"""Routing attributes, for each rule."""
BYTES = (*b'{}[]":,\\u0Ee+-.ntSNBML \t\n=/\x00\x1f\x7f', 0x80, 0xBF, 0xC3, 0xE2, 0xED, 0xF0, 0xFF)


class Lines:
    """Makes lines: sound ones, sound ones with odd values, and broken ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            line = self._line()
            yield line
            if self._random.random() < 0.5:
                yield self._mutated(line)

    def _line(self) -> bytes:
        choose = self._random
        names = choose.choices(NAMES, k=choose.randrange(12)) if choose.random() < 0.5 else list(USUAL)
        if choose.random() < 0.6:
            names += ["PK", "SK"]
        if choose.random() < 0.98:
            names = list(dict.fromkeys(names))
        choose.shuffle(names)
        wild = choose.choice((0.0, 0.0, 0.02, 0.3))
        keys = {}
        if choose.random() < 0.8:
            keys = choose.choice(STORIES)
            names = [*(name for name in names if name not in keys), *(keys if choose.random() < 0.97 else ())]
            choose.shuffle(names)
        members = [
            self._dumped(name) + b":" + (keys[name] if name in keys else self._attribute(name, wild))
            for name in names
        ]
        return b'{"Item":{' + b",".join(members) + b"}}"

    def _dumped(self, value: Any) -> bytes:
        """One of the spellings of JSON."""
        return json.dumps(value, ensure_ascii=self._random.random() < 0.05, separators=(",", ":")).encode()

    def _attribute(self, name: str, wild: float) -> bytes:
        letter = USUAL.get(name) if self._random.random() >= wild else None
        if name == "kind" and self._random.random() < 0.8:
            letter = self._random.choice(("S", "N", "BOOL"))
        usual = FITTING.get(name) if self._random.random() >= wild else None
        return self._value(letter or self._random.choice(LETTERS), 0, usual, wild)

    def _value(self, letter: str, depth: int, usual: Any, wild: float) -> bytes:
        choose = self._random
        payload = self._payload(letter, depth, usual, wild)
        if choose.random() < wild / 100:
            payload += (
                b"," + self._dumped(choose.choice(LETTERS)) + b":" + self._payload("S", depth, None, wild)
            )
        return b'{"' + letter.encode() + b'":' + payload + b"}"

    def _payload(self, letter: str, depth: int, usual: Any, wild: float) -> bytes:
        choose = self._random
        if letter == "S":
            return self._dumped(choose.choice(usual or TEXTS))
        if letter == "N":
            return self._dumped(choose.choice(usual or (NUMBERS if choose.random() < wild else NUMBERS[:27])))
        if letter == "B":
            text = base64.b64encode(choose.randbytes(choose.randrange(7))).decode()
            return self._dumped(text + "=" if choose.random() < wild / 3 else text)
        if letter in ("BOOL", "NULL"):
            return (
                b"true"
                if letter == "NULL" and choose.random() >= wild
                else choose.choice((b"true", b"false"))
            )
        count = choose.randrange(4)
        if letter in ("SS", "NS", "BS"):
            return b"[" + b",".join(self._payload(letter[0], 0, usual, wild) for _ in range(count)) + b"]"
        if depth > choose.choice((2, 3, 60)):
            count = 0
        elif depth > 3:
            count = 1
        inner = [self._value(choose.choice(LETTERS), depth + 1, None, wild) for _ in range(count)]
        if letter == "L":
            return b"[" + b",".join(inner) + b"]"
        names = choose.choices(NAMES, k=count) if choose.random() < 0.02 else choose.sample(NAMES, k=count)
        return b"{" + b",".join(self._dumped(n) + b":" + v for n, v in zip(names, inner, strict=True)) + b"}"

    def _mutated(self, line: bytes) -> bytes:
        choose = self._random
        changed = bytearray(line)
        for _ in range(choose.choice((1, 1, 1, 2, 5))):
            at, end = choose.randrange(len(changed) + 1), choose.randrange(len(changed) + 1)
            kind = choose.randrange(6)
            if kind == 0:
                changed[at:at] = bytes([choose.choice(BYTES)])
            elif kind == 1:
                del changed[at : at + choose.choice((1, 1, 2, 8))]
            elif kind == 2 and at < len(changed):
                changed[at] = choose.choice(BYTES)
            elif kind == 3:
                changed[at:at] = changed[min(at, end) : min(max(at, end), min(at, end) + 60)]
            elif kind == 4:
                del changed[at:]
            else:
                changed[at:at] = choose.choice(
                    (b"\\ud83d", b"\\ude00", b"\\u00e9", b"\\n", b"\xc3\xa9", b"\xed\xa0\x80", b" ")
                )
        return bytes(changed)


BAD = "bad, so handed to Python"


class Handed(Exception):  # no failure
    """C hands a line to Python."""


class Readers:
    """The Python path and the C path of one profile, a line at a time."""

    def __init__(self, of: Profile, c: ModuleType) -> None:
        self.python = Transform(of, dynamodb_json)
        self.python._read = None
        self.accelerated = Transform(of, dynamodb_json)
        assert self.accelerated._read, "the accelerator is not built"
        decoders = {
            rule.item_class: dynamodb_json.item_decoder(rule.item_class)
            for rule in of.rules
            if rule.item_class
        }
        self._decoders = decoders

        def hand(_: bytes) -> Any:
            raise Handed

        typed = {name for name in of.routing_attributes if of.wire_types(name) - {"S"}}
        self._read = lines.reader(
            c, of.rules, of.routing_attributes, typed, _Handing(decoders, hand), hand
        )  # fmt: skip

    def in_python(self, line: bytes) -> tuple[Any, ...]:
        """Number of the rule, whether there are unrouted keys, and the item; or why it is bad."""
        rule = None
        try:
            rule = self.python._which(self.python.read_keys(line))
            item_class = self.python.rules[rule].item_class if rule < len(self.python.rules) else None
            return rule, self._decoders[item_class](line) if item_class else None
        except BadItem as error:
            return rule, error

    def in_c(self, line: bytes) -> tuple[Any, ...]:
        """The same, by C alone. Raises `Handed`."""
        taken, places, counts, unrouted, items, bad, odd = self._read([line], [5])
        assert not odd
        assert not bad
        rules = [n for n, count in enumerate(counts) if count] + [n for n, each in enumerate(taken) if each]
        if unrouted:
            assert unrouted == [line]
            assert not rules
            return len(counts), None
        (rule,) = rules
        assert taken[rule] == ([line] if places[rule] else [])
        assert places[rule] == ([5] if taken[rule] else [])
        return rule, *(items[rule] or [None])

    def check_line(self, line: bytes) -> str:
        """Compare a line on both paths. Returns what became of it."""
        python = self.in_python(line)
        try:
            accelerated = self.in_c(line)
        except Handed:
            return BAD if isinstance(python[1], BadItem) else "sound, but handed to Python"
        assert same(python, accelerated), f"{line!r}\nPython: {python}\nC:      {accelerated}"
        return f"understood: {type(python[1]).__name__}"

    def check_list(self, some: list[bytes]) -> Counter[str]:
        """Compare a list of lines, and a block of them, through the whole transform. Returns why C handed lines to Python."""
        handed = self._check(some, some)
        block = Block(b"\n".join(some))
        of_block = self._check(block, list(block))
        assert handed == of_block or list(block) != some, some
        return handed

    def _check(self, given: Sequence[bytes], some: list[bytes]) -> Counter[str]:
        python, accelerated = self.python(some, 11), self.accelerated(given, 11)
        handed: Counter[str] = accelerated.counts.odd
        for outcome in (python, accelerated):
            outcome.counts.accelerated, outcome.counts.odd = 0, Counter()
        assert told(python) == told(accelerated), some
        return handed


class _Handing(dict[Any, Any]):
    """Decoders that C cannot call; it sees their fields."""

    def __init__(self, decoders: dict[Any, Any], hand: Any) -> None:
        class Fields:
            def __init__(self, fields: Any) -> None:
                self.fields = fields

            __call__ = staticmethod(hand)

        super().__init__({item_class: Fields(decoder.fields) for item_class, decoder in decoders.items()})


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal, and of equal types all the way down; order in sets and dicts counts."""
    return bool(one == other) and repr(one) == repr(other)


def told(outcome: Any) -> list[Any]:
    """All of an outcome; the rows of a list are in no order, since Python goes by route, or by line where one is bad."""
    rows = {row_class: sorted(map(repr, rows)) for row_class, rows in outcome.rows.items()}
    return [rows, sorted(zip(outcome.numbers, outcome.lines, strict=True)), outcome.bad, vars(outcome.counts)]


def fuzz(seed: int, count: int, seconds: float = float("inf")) -> Counter[str]:
    """Compare so many lines, or for so long. Returns how many were understood, or why not."""
    c = extension(LINES)
    assert c, "the accelerator is not built"
    readers, found, waiting = Readers(profile, c), Counter[str](), list[bytes]()
    end = time.monotonic() + seconds
    for number, line in enumerate(Lines(seed)):
        if number >= count or (number % 100 == 0 and time.monotonic() > end):
            break
        became = readers.check_line(line)
        found[became] += 1
        waiting.append(line)
        if len(waiting) == 20:
            for why, times in readers.check_list(waiting).items():
                found[f"in lists, handed to Python: {why}"] += times
            waiting.clear()
    return found


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--lines", type=int, default=1_000_000)
    arguments.add_argument("--seconds", type=float, default=float("inf"))
    arguments.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    given = arguments.parse_args()
    print(f"seed {given.seed}")  # noqa: T201
    for what, times in sorted(fuzz(given.seed, given.lines, given.seconds).items()):
        print(f"{times:>12,}  {what}")  # noqa: T201
