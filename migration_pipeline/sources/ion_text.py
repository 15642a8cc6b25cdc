"""Translates a line of an export in Ion text to the line of DynamoDB JSON that has the same item.

`` $ion_1_0 {Item:{PK:"a",n:1d1,set:$dynamodb_SS::["x"]}}`` becomes
``{"Item":{"PK":{"S":"a"},"n":{"N":"10"},"set":{"SS":["x"]}}}``. What DynamoDB writes is taken, and little else of Ion: each other
value is refused with what it is. Facts: "DynamoDB table export output format" in the DynamoDB developer guide, and the
specification of Ion 1.0.

This is the specification of `_ion.c`, which does the same in C.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection

from migration_pipeline.errors import BadItem
from migration_pipeline.sources.ion_usual import RUN, members
from migration_pipeline.sources.values import MAX_DIGITS

MAX_DEPTH = 100
"""Levels of an item. DynamoDB's own limit is 32."""

MAX_PLACES = 170
"""Digits behind the point of the least number, 1E-130, with 38 digits, and a few."""

MAX_POWER = 999
"""An exponent beyond it is no number of DynamoDB, whose own limit is 125; nor is it one of `amazon.ion`, somewhere beyond."""

SPACES = b" \t\n\r"
"""What may stand between values; `amazon.ion` reads some values otherwise before the others that Ion has."""

NEVER = "{}, which DynamoDB does not write in an export"

_SPACE = re.compile(rb"[ \t\n\r]*")
_VERSION = re.compile(rb"[ \t\n\r]*(?:\$ion_1_0(?![\w$])[ \t\n\r]*)?")
_ENVELOPE = re.compile(rb"\{[ \t\n\r]*Item[ \t\n\r]*:[ \t\n\r]*(?=\{)(?!\{\{)")
_END = re.compile(rb"[ \t\n\r]*\}[ \t\n\r]*\Z")
_NAME = re.compile(rb"[A-Za-z_$][A-Za-z0-9_$]*")
_COLON = re.compile(rb"[ \t\n\r]*:[ \t\n\r]*")
_SET = re.compile(rb"\$dynamodb_([SNB])S(?![\w$])[ \t\n\r]*::[ \t\n\r]*(?=\[)")
_NUMBER = re.compile(rb"(-?)(0|[1-9][0-9]*)(?:\.([0-9]*))?(?:[dD]([+-]?[0-9]+))?(?=[ \t\n\r]*[,\]}])")
_BLOB = re.compile(
    rb"\{\{[ \t\n\r]*((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?)[ \t\n\r]*\}\}"
)
_WORD = re.compile(rb"(?:(null)|true|false)(?![\w$.])")
_PLAIN_TEXT = re.compile(rb'"[^"\\\x00-\x1f]*"')
_TEXT = {
    quote: re.compile(rb"%b(%b*(?:\\.%b*)*)%b" % (quote, inner, inner, quote))
    for quote in (b'"', b"'")
    for inner in [rb"[^\\\x00-\x08\n\r\x0e-\x1f%b]" % quote]
}
_SPECIAL = re.compile(
    rb"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|[\t\x0b\x0c\"']", re.DOTALL
)
_ESCAPES = {
    b'"': rb"\"", b"\\": rb"\\", b"/": b"/", b"'": b"'", b"?": b"?", b"b": rb"\b", b"f": rb"\f", b"n": rb"\n",
    b"r": rb"\r", b"t": rb"\t", b"0": rb"\u0000", b"a": rb"\u0007", b"v": rb"\u000b",
}  # fmt: skip
_RAW = {b"\t": rb"\t", b"\x0b": rb"\u000b", b"\x0c": rb"\f", b'"': rb"\"", b"'": b"'"}
_KEYWORDS = frozenset((b"null", b"true", b"false", b"nan"))

_NEVER_WRITTEN = (
    (re.compile(rb"null\.[a-z]"), "a null of a type"),
    (re.compile(rb"-?\d[\d_]*(?:\.[\d_]*)?[eE]|nan(?![\w$])|[+-]inf(?![\w$])"), "a float"),
    (re.compile(rb"\d{4}(?:T|-\d)"), "a timestamp"),
    (re.compile(rb"-?\d+_|-?0[xXbB]|-?0\d"), "a number of another spelling"),
    (re.compile(rb"'''"), "a long text"),
    (re.compile(rb"\{\{[ \t\n\r]*[\"']"), "a clob"),
    (re.compile(rb"\("), "an s-expression"),
    (re.compile(rb"/[/*]"), "a comment"),
    (re.compile(rb"(?:[A-Za-z_$][\w$]*|'[^'\\]*(?:\\.[^'\\]*)*')[ \t\n\r]*::"), "an annotation"),
    (re.compile(rb"[A-Za-z_$']"), "a symbol"),
)
"""What a value begins with, and what it is."""


def item_line(line: bytes) -> bytes:
    """Translate a line. Raises `BadItem`, whose reason holds no value."""
    reader = _Reader(line)
    reader.begin()
    reader.members(0)
    reader.end()
    return b"".join(reader.out)


def attributes_line(line: bytes, names: Collection[bytes]) -> bytes:
    """Translate the attributes of some names, and read no further than the last of them. Raises `BadItem`.

    Of one that stands twice, the first counts. Of what is passed over, nothing is checked; that the line was not cut off is seen at
    its end.
    """
    reader = _Reader(line)
    reader.begin()
    reader.some(names)
    rest = line[reader.at :].rstrip(SPACES)
    if not (rest.endswith(b"}") and rest[:-1].rstrip(SPACES).endswith(b"}")):
        item_line(line)  # says what is wrong
        raise reader.cut_off()
    reader.out.append(b"}}")
    return b"".join(reader.out)


class _Reader:
    """A place in a line, and what was written of it so far."""

    def __init__(self, line: bytes) -> None:
        self.line = line
        self.at = 0
        self.out: list[bytes] = []

    def begin(self) -> None:
        """Read up to the item's own brace."""
        version = _VERSION.match(self.line)
        found = version and _ENVELOPE.match(self.line, version.end())
        if found is None:
            if b"$ion_symbol_table" in self.line[:200]:
                raise BadItem(NEVER.format("a symbol table"))
            raise BadItem("not Ion as DynamoDB writes it: no {Item:{…}}")
        self.at = found.end()
        self.out.append(b'{"Item":')

    def end(self) -> None:
        """Read what follows the item."""
        if not _END.match(self.line, self.at):
            raise self.malformed("the line does not end behind its item")
        self.out.append(b"}")

    def some(self, names: Collection[bytes]) -> None:
        """Read attributes up to the last of `names`, and write those."""
        missing = set(names)
        out = self.out
        self.at += 1
        out.append(b"{")
        while missing and self._peek() != b"}":
            written = len(out)
            if out[-1] != b"{":
                out.append(b",")
            name = _decoded(self._name())
            if name in missing:
                self.value(1)
                missing.discard(name)
            else:
                del out[written:]
                self._pass_over()
            if self._next(b"}"):
                self.at -= 1
                break

    def members(self, depth: int) -> None:
        """Read a struct, written as an object."""
        out, line = self.out, self.line
        self.at += 1
        out.append(b"{")
        if self._peek() == b"}":
            self.at += 1
            out.append(b"}")
            return
        while True:
            if run := RUN.match(line, self.at):
                out.append(members(line, self.at, run.end()))
                self.at = run.end()
                if line[self.at - 1 : self.at] == b",":
                    out.append(b",")
                    continue
            else:
                self._name()
                self.value(depth + 1)
            if self._next(b"}"):
                out.append(b"}")
                return
            out.append(b",")

    def value(self, depth: int) -> None:
        """Read a value."""
        if depth > MAX_DEPTH:
            raise BadItem("it is nested too deeply; DynamoDB's own limit is 32 levels")
        out, line = self.out, self.line
        first = line[self.at : self.at + 1]
        if first == b'"':
            out += (b'{"S":', self._text(), b"}")
        elif first == b"{" and line[self.at + 1 : self.at + 2] == b"{":
            out += (b'{"B":', self._blob(), b"}")
        elif first == b"{":
            out.append(b'{"M":')
            self.members(depth)
            out.append(b"}")
        elif first == b"[":
            out.append(b'{"L":')
            self._elements(depth)
        elif number := _NUMBER.match(line, self.at):
            out += (b'{"N":', self._number(number), b"}")
        elif word := _WORD.match(line, self.at):
            out.append(b'{"NULL":true}' if word[1] else b'{"BOOL":%b}' % word[0])
            self.at = word.end()
        elif kind := _SET.match(line, self.at):
            self.at = kind.end()
            out.append(b'{"%bS":' % kind[1])
            self._elements(depth, kind[1])
        else:
            raise self._refused()

    def _elements(self, depth: int, kind: bytes = b"") -> None:
        """Read a list, or a set of a kind."""
        out = self.out
        self.at += 1
        out.append(b"[")
        if self._peek() == b"]":
            self.at += 1
        else:
            while True:
                if kind:
                    out.append(self._element(kind))
                else:
                    self.value(depth + 1)
                if self._next(b"]"):
                    break
                out.append(b",")
        out.append(b"]}")

    def _element(self, kind: bytes) -> bytes:
        """Read an element of a set."""
        first = self.line[self.at : self.at + 2]
        if kind == b"S" and first[:1] == b'"':
            return self._text()
        if kind == b"B" and first == b"{{":
            return self._blob()
        if kind == b"N" and (number := _NUMBER.match(self.line, self.at)):
            return self._number(number)
        raise BadItem(NEVER.format(f"an element of another type in a set of {kind.decode()}"))

    def _number(self, number: re.Match[bytes]) -> bytes:
        """Write a number as an N, spelled as DynamoDB JSON does: without an exponent, if it is one of DynamoDB's."""
        self.at = number.end()
        sign, whole, places, power = number.groups()
        if power is None:
            return b'"%b%b.%b"' % (sign, whole, places) if places else b'"%b%b"' % (sign, whole)
        if len(power) > 20 or abs(int(power)) > MAX_POWER:
            raise BadItem(NEVER.format("a number of that size"))
        places = places or b""
        digits, exponent = (whole + places).lstrip(b"0"), int(power) - len(places)
        if exponent >= 0 and len(digits) + exponent <= MAX_DIGITS:
            return b'"%b%b"' % (sign, digits + b"0" * exponent if digits else b"0")
        if exponent >= 0 and not digits:
            return b'"%b0"' % sign
        if -MAX_PLACES <= exponent < 0 and len(digits) <= MAX_PLACES:
            digits = digits.rjust(1 - exponent, b"0")
            return b'"%b%b.%b"' % (sign, digits[:exponent], digits[exponent:])
        return b'"%b%bE%d"' % (sign, digits or b"0", exponent)

    def _blob(self) -> bytes:
        found = _BLOB.match(self.line, self.at)
        if not found:
            raise self._refused("a blob that is no base64")
        self.at = found.end()
        return b'"%b"' % found[1]

    def _text(self) -> bytes:
        """Read a text, from its quote to behind the one that ends it, and write it as JSON does."""
        if plain := _PLAIN_TEXT.match(self.line, self.at):
            self.at = plain.end()
            return plain[0]
        found = _TEXT[self.line[self.at : self.at + 1]].match(self.line, self.at)
        if not found:
            raise self.malformed("a text that does not end, or that holds a control character")
        self.at = found.end()
        return b'"%b"' % _SPECIAL.sub(_escaped, found[1])

    def _name(self) -> bytes:
        """Read the name of a member and its colon, write it as JSON does, and return that."""
        first = self.line[self.at : self.at + 1]
        if first in (b"'", b'"') and not self.line.startswith(b"'''", self.at):
            text = self._text()
        elif found := _NAME.match(self.line, self.at):
            name = found[0]
            if name in _KEYWORDS or (name[:1] == b"$" and name[1:].isdigit()):
                raise BadItem(NEVER.format("a name that is no text"))
            self.at = found.end()
            text = b'"%b"' % name
        else:
            raise self.malformed("no name of an attribute")
        colon = _COLON.match(self.line, self.at)
        if not colon:
            raise self.malformed("no colon after a name")
        self.at = colon.end()
        self.out += (text, b":")
        return text

    def _pass_over(self) -> None:
        """Pass over a value, of which nothing but its end matters."""
        depth = 0
        for mark in _MARK.finditer(self.line, self.at):
            character = mark[0][:1]
            if character in b"{[":
                depth += 1
            elif character in b",}]":
                if not depth:
                    self.at = mark.start()
                    return
                depth -= character != b","
            elif mark[0] in (b'"', b"'"):
                break
        raise self.cut_off()

    def _peek(self) -> bytes:
        """Pass over spaces, and return the next character."""
        line = self.line
        if line[self.at : self.at + 1] <= b" ":
            self.at = _SPACE.match(line, self.at).end()  # type: ignore[union-attr]  # it always matches
        return line[self.at : self.at + 1]

    def _next(self, closing: bytes) -> bool:
        """Read a comma, or what closes a list; tell whether it is closed."""
        character = self._peek()
        self.at += 1
        if character == closing:
            return True
        if character != b",":
            self.at -= 1
            raise self.malformed("no comma after a value")
        if self._peek() == closing:
            raise self.malformed("no value after a comma")
        return False

    def _refused(self, otherwise: str = "") -> BadItem:
        """Say what a value is that is not taken."""
        for pattern, kind in _NEVER_WRITTEN:
            if pattern.match(self.line, self.at):
                return BadItem(NEVER.format(kind))
        return BadItem(otherwise) if otherwise else self.malformed("no value")

    def malformed(self, what: str) -> BadItem:
        """Say what is wrong with the line at this place."""
        if self.at >= len(self.line):
            return self.cut_off()
        return BadItem(f"not Ion as DynamoDB writes it: {what} (byte {self.at})")

    def cut_off(self) -> BadItem:
        """Say that the line is not all there."""
        return BadItem("not Ion as DynamoDB writes it: the line ends in the middle of the item")


def _escaped(found: re.Match[bytes]) -> bytes:
    """Write a character as JSON does: an escape, or what needs none in Ion."""
    digits, letter = found[1] or found[2] or found[3], found[4]
    if letter is not None:
        if letter not in _ESCAPES:
            raise BadItem("an escape in a text that Ion does not know")
        return _ESCAPES[letter]
    if digits is None:
        return _RAW[found[0]]
    code = int(digits, 16)
    if found[3] and (code > sys.maxunicode or 0xD800 <= code < 0xE000):
        raise BadItem("an escape in a text that is no character")
    units = chr(code).encode("utf-16-be", "surrogatepass")
    return b"".join(rb"\u%04x" % (units[n] << 8 | units[n + 1]) for n in range(0, len(units), 2))


def _decoded(name: bytes) -> bytes:
    """Read a name that JSON spells; b"" if it is no text."""
    if b"\\" not in name:
        return name[1:-1]
    try:
        return str(json.loads(name)).encode()
    except ValueError:
        return b""


_MARK = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|\'[^\'\\]*(?:\\.[^\'\\]*)*\'|["\'{}\[\],]', re.DOTALL)
"""What tells where a value ends: a text, a bracket, a comma; or a quote that nothing ends."""
