"""Reads generated and mutated lines of Ion, and holds them against `amazon.ion`: ``python -m migration_pipeline_tests.fuzz_ion --lines 1000000``.

Each line is a bad item, or its values are those that `amazon.ion` reads. The translation in C, where it is built, must give the bytes
that the one in Python gives, or hand the line to it. How many lines were what is printed, so that a fuzzer that tests nothing is seen.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from migration_pipeline.accelerator import ION, extension
from migration_pipeline.demo.sample_ion import ion_line
from migration_pipeline.errors import BadItem
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.ion_text import attributes_line, item_line
from migration_pipeline.sources.ion_usual import quick_attributes

NAMES = (
    "PK",
    "SK",
    "n",
    "aB_9",
    "null",
    "true",
    "$10",
    "$x",
    "a b",
    "it's",
    'say "x"',
    "ÿ€😀",
    "a\\b",
    "-",
    "9",
    "Item",
)
ALPHABET = "abc XYZ 019 .,:;{}[]()'\"\\/\n\r\t\x00\x07\x0b\x0c\x1b\x7f\x85é€😀\u2028"
TOKENS = (
    b"1e5", b"1.5e0", b"nan", b"+inf", b"2007T", b"2007-02-23", b"2007-02-23T12:14Z", b"foo", b"$10", b"null.string", b"null.null",
    b"'''a'''", b"'a'", b'{{"a"}}', b"{{'''a'''}}", b"(1 2)", b"a::1.", b"$dynamodb_SS::1.", b"$dynamodb_LS::[]", b"1_000.", b"0x1F", b"0b1",
    b"012.", b"00", b"-0.", b"-0", b"0d-5", b"0d7", b"1d125", b"9.9d-130", b"1.5D+3", b"12d00004", b"1d999999999", b"1d1000", b"1d-999", b"1.", b"17", b"-1.50", b"/*a*/", b"//",
    b'"\\a\\v\\0\\x41\\u00e9\\U0001F600\\?\\\'\\/"', b'"\\ud83d"', b'"\\ud83d\\ude00"', b'"\\U0000d83d"', b'"\\q"', b'"\xff"', b'"\xed\xa0\x80"',
    b"null", b"true", b"false", b"truex", b"{{YQ==}}", b"{{ YQ== }}", b"{{Y Q = =}}", b"{{YQ=}}", b"{{YR==}}", b"{{}}", b"[]", b"{}", b"[1.,]", b"{a:1.,}",
    b"{a:1.,a:2.}", b"{'a':1.,\"b\":2.}", b"$ion_1_0 ", b"$ion_symbol_table::{}", b"[[[[", b"{ }", b"[ ]", b"$dynamodb_SS::[]", b"$dynamodb_NS :: [ 1. ]",
    b"'$dynamodb_SS'::[\"a\"]", b"\t", b"\x0b", b"\r", b" ", b"::", b",", b":", b"}", b"]", b"'", b'"', b"\\",
)  # fmt: skip


ORACLE_IS_THERE = importlib.util.find_spec("amazon") is not None
"""It has no wheel for Python 3.14."""

HEAD = len(b" $ion_1_0 {Item:")
"""Where a line's item begins. What is wrong before that is found soon enough."""


class Items:
    """Random items of all ten types, spelled in DynamoDB JSON."""

    def __init__(self, source: random.Random) -> None:
        self._random = source

    def item(self) -> dict[str, Any]:
        """The attributes of an item."""
        return {"PK": {"S": self.text()}, **self._members(3)}

    def text(self) -> str:
        """A text, often of odd characters."""
        return "".join(self._random.choices(ALPHABET, k=self._random.choice((0, 1, 3, 8, 20))))

    def number(self) -> str:
        """A number of up to 38 digits, from 1E-130 to 9.9E+125, without zeros at its end."""
        r = self._random
        digits = "".join(r.choices("0123456789", k=r.choice((1, 1, 2, 5, 17, 38)))).strip("0")
        if not digits:
            return r.choice(("0", "-0"))
        least, most = -130, 126 - len(digits)
        exponent = r.choice((0, 0, 0, 1, 2, -1, -2, r.randrange(least, most), least, most - 1))
        number = Decimal(f"{r.choice(('', '-'))}{digits}E{exponent}")
        return f"{number:f}"

    def value(self, depth: int) -> dict[str, Any]:
        """A value of any type."""
        r = self._random
        kinds = ("S", "N", "S", "N", "B", "BOOL", "NULL", "SS", "NS", "BS") + ("M", "L") * (depth > 0)
        kind = r.choice(kinds)
        some = range(r.choice((1, 2, 3)))
        makers: dict[str, Callable[[], Any]] = {
            "S": self.text, "N": self.number, "B": self._binary, "BOOL": lambda: r.random() < 0.5, "NULL": lambda: True,
            "SS": lambda: list({self.text() for _ in some}), "NS": lambda: list({self.number() for _ in some}),
            "BS": lambda: list({self._binary() for _ in some}), "M": lambda: self._members(depth - 1),
            "L": lambda: [self.value(depth - 1) for _ in range(r.choice((0, 1, 2)))],
        }  # fmt: skip
        return {kind: makers[kind]()}

    def _binary(self) -> str:
        return b64encode(self._random.randbytes(self._random.choice((0, 1, 2, 3, 20)))).decode()

    def _members(self, depth: int) -> dict[str, Any]:
        names = self._random.sample(NAMES[1:], self._random.choice((0, 1, 2, 4)))
        return {name: self.value(depth) for name in names}


def lines(seed: int) -> Iterator[bytes]:
    """Lines in Ion without end: sound ones, and most of them changed in a few places."""
    r = random.Random(seed)
    items, before = Items(r), b""
    while True:
        line = ion_line(json.dumps({"Item": items.item()}).encode()).rstrip(b"\n")
        yield line
        for _ in range(4):
            yield mutated(r, line, before)
        before = line


def mutated(r: random.Random, line: bytes, other: bytes) -> bytes:
    """Change a line in one to three places."""
    changed = bytearray(line)
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        at = r.randrange(HEAD if r.random() < 0.95 and len(changed) > HEAD else 0, len(changed) + 1)
        end = min(len(changed), at + r.choice((1, 1, 2, 8)))
        what = r.randrange(9)
        if what == 0:
            del changed[at:end]
        elif what == 1:
            changed[at:at] = r.choice(TOKENS)
        elif what == 2:
            changed[at:at] = bytes(changed[at:end])
        elif what == 3 and at < len(changed):
            changed[at] = r.randrange(256)
        elif what == 4:
            del changed[at:]
        elif what == 5 and other:
            start = r.randrange(len(other))
            changed[at:end] = other[start : start + 12]
        else:  # a value takes the place of another, or a name that of a name
            places = [n + 1 for n, c in enumerate(changed) if c in b":,[" and n > HEAD]
            if places:
                start = r.choice(places)
                stop = next((n for n in range(start, len(changed)) if changed[n] in b",]}:"), len(changed))
                changed[start:stop] = r.choice(TOKENS)
    return bytes(changed.replace(b"\n", b" "))


# -- the oracle --------------------------------------------------------------------------------------


REFUSED_BY_MISTAKE = re.compile(rb"\\U00(?:0[1-9a-fA-F]|10)[dD][89a-fA-F]")
"""A character beyond U+FFFF of which `amazon.ion` 0.15 looks at the last 16 bits alone. DynamoDB writes these unescaped."""


class Unknown(Exception):  # no failure
    """`amazon.ion` refuses a line, or reads what is no value of DynamoDB."""


def by_oracle(line: bytes) -> Any:
    """Read a line with `amazon.ion`: its item, each value with its type. Raises `Unknown`."""
    from amazon.ion import simpleion
    from amazon.ion.exceptions import IonException

    try:
        whole = simpleion.loads(line, text_buffer_size_limit=4_000_000)
    except (IonException, ValueError, ArithmeticError, TypeError, RecursionError, EOFError) as error:
        raise Unknown(repr(error)) from None
    return _typed(whole["Item"]) if "Item" in whole else _unknown("no Item")


def _unknown(what: str) -> Any:
    raise Unknown(what)


def _typed(value: Any) -> Any:
    """Tell the type of DynamoDB that a value has, and the value, so that equal ones compare equal."""
    from amazon.ion.core import IonType

    kind = value.ion_type
    notes = [note.text for note in value.ion_annotations]
    if notes:
        if kind != IonType.LIST or notes not in (["$dynamodb_SS"], ["$dynamodb_NS"], ["$dynamodb_BS"]):
            _unknown("annotation")
        letter, elements = notes[0][-2], [_typed(each) for each in value]
        if any(each[0] != letter for each in elements):
            _unknown("element")
        return f"{letter}S", sorted(each[1] for each in elements)
    if kind == IonType.STRING:
        return "S", str(value)
    if kind in (IonType.DECIMAL, IonType.INT):
        return "N", Decimal(int(value)) if kind == IonType.INT else Decimal(value)
    if kind == IonType.BOOL:
        return "BOOL", bool(value)
    if kind == IonType.NULL:
        return "NULL", None
    if kind == IonType.BLOB:
        return "B", bytes(value)
    if kind == IonType.LIST:
        return "L", [_typed(each) for each in value]
    if kind == IonType.STRUCT:
        members = list(value.items())
        if len({name for name, _ in members}) < len(members):
            _unknown("twins")
        return "M", {name: _typed(each) for name, each in members}
    return _unknown(str(kind))


def _of_value(value: Any) -> Any:
    """The same of a value that was read as DynamoDB JSON."""
    for letter in value.__struct_fields__:
        found = getattr(value, letter)
        if isinstance(found, (str, bytes, bool, list, dict)):
            break
    if letter == "M":
        return "M", {name: _of_value(each) for name, each in found.items()}
    if letter == "L":
        return "L", [_of_value(each) for each in found]
    if letter in ("SS", "BS"):
        return letter, sorted(found)
    if letter == "NS":
        return "NS", sorted(map(Decimal, found))
    return letter, Decimal(found) if letter == "N" else None if letter == "NULL" else found


# -- the comparison -----------------------------------------------------------------------------------

WANTED = ((b"PK",), (b"n", b"PK"), (b"aB_9", "ÿ€😀".encode()), (b"it's",), (b"null", b"none"))
QUICK = {names: quick_attributes(names) for names in WANTED}


class Hand:
    """Notes that C hands a line to Python."""

    def __init__(self) -> None:
        self.taken = False

    def __call__(self, line: bytes) -> bytes:
        self.taken = True
        return b""


def check(line: bytes, c: Any) -> str:
    """Compare a line in all ways. Returns what became of it."""
    handed = Hand()
    try:
        python: bytes | BadItem = item_line(line)
    except BadItem as error:
        python = error
    if c:
        (fast,) = c.items([line], handed)
        assert handed.taken or fast == python, f"{line!r}\nPython: {python!r}\nC:      {fast!r}"
    check_attributes(line, c)
    try:
        if isinstance(python, BadItem):
            raise python
        read = "M", {name: _of_value(value) for name, value in dynamodb_json.whole_item(python).items()}
    except BadItem as error:
        return f"bad: {str(error).partition(' (byte')[0].partition(' at `$')[0]}"
    try:
        truth = by_oracle(line)
    except Unknown as error:
        if REFUSED_BY_MISTAKE.search(line):
            return "sound, but amazon.ion takes it for half a surrogate pair"
        raise AssertionError(f"{line!r} is read, but not by amazon.ion: {error}") from None
    assert read == truth, f"{line!r}\nread: {read}\nbut:  {truth}"
    return "sound, but handed to Python" if handed.taken else "sound"


def check_attributes(line: bytes, c: Any) -> None:
    """Compare the short translations."""
    for names in WANTED:
        handed = Hand()
        try:
            slow = attributes_line(line, names)
        except BadItem:
            slow = b""
        if c:
            (fast,) = c.attributes([line], names, handed)
            assert handed.taken or fast == slow, f"{line!r}, {names}\nPython: {slow!r}\nC:      {fast!r}"
        if quick := QUICK[names](line):
            assert slow, f"{line!r}, {names}: {quick!r}"
            assert _by_name(quick) == _by_name(slow), f"{line!r}, {names}: {quick!r}, {slow!r}"


def _by_name(line: bytes) -> Any:
    return json.loads(line.decode("utf-8", "surrogateescape"), strict=False)


def fuzz(seed: int, count: int, seconds: float = float("inf")) -> Counter[str]:
    """Compare so many lines, or for so long. Returns what became of them."""
    c, found = extension(ION), Counter[str]()
    end = time.monotonic() + seconds
    for number, line in enumerate(lines(seed)):
        if number >= count or (number % 100 == 0 and time.monotonic() > end):
            break
        found[check(line, c)] += 1
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
