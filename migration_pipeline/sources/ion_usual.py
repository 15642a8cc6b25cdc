"""Translates attributes in Ion that are spelled as nearly all are, many by one pattern: what `ion_text` does, but faster."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

_UNQUOTED = rb"(?!(?:null|true|false|nan):)[A-Za-z_][A-Za-z0-9_$]*"
_USUAL_NAME = rb"(%b):" % _UNQUOTED
_USUAL_VALUE = rb'(?:"([^"\\\x00-\x1f]*)"|(-?(?:0|[1-9][0-9]*)(?:\.[0-9]+(?!\.))?)\.?|(true|false))'
_USUAL = re.compile(rb"%b%b,?" % (_USUAL_NAME, _USUAL_VALUE))
"""A name with a text, a number or a boolean, as nearly all attributes are spelled."""
RUN = re.compile(rb"(?:%b%b(?:,(?=[A-Za-z_$'])|(?=\})))+" % (_USUAL_NAME, _USUAL_VALUE))
"""Some of these, one after another."""
_NESTED = rb"(?!)"
for _ in range(4):
    _NESTED = rb'[\[{](?:[^"\'\[\]{}]|"[^"\\]*"|%b)*[\]}]' % _NESTED
_ANY_USUAL = rb'%b:(?:"[^"\\\x00-\x1f]*"|[-0-9.]+|true|false|null|(?:\$dynamodb_[SNB]S::)?%b),' % (
    _UNQUOTED,
    _NESTED,
)
"""An attribute that is passed over, with values of a few levels."""


def members(line: bytes, start: int, end: int) -> bytes:
    """Write what `RUN` has matched as members of an object."""
    return b",".join(map(_usual, _USUAL.findall(line, start, end)))


def quick_attributes(names: Collection[bytes]) -> Callable[[bytes], bytes | None]:
    """Make a function that does for most lines what `attributes_line` does, by one pattern; it returns None for the others."""
    if not all(map(_USUAL.fullmatch, (b"%b:0" % name for name in names))):
        return lambda line: None
    ahead = (
        rb"(?=(?:(?!%b:)%b)*?%b:%b(?:\}|,(?=[A-Za-z_$'])))" % (name, _ANY_USUAL, name, _USUAL_VALUE)
        for name in map(re.escape, names)
    )
    match = re.compile(rb" ?\$ion_1_0 \{Item:\{" + b"".join(ahead)).match

    def attributes(line: bytes) -> bytes | None:
        found = match(line)
        if not found or not line.endswith(b"}}"):
            return None
        groups = found.groups()
        values = zip(names, groups[::3], groups[1::3], groups[2::3], strict=True)
        return b'{"Item":{%b}}' % b",".join(map(_usual, values))

    return attributes


def _usual(found: Sequence[Any]) -> bytes:
    name, text, digits, truth = found
    if digits:
        return b'"%b":{"N":"%b"}' % (name, digits)
    return b'"%b":{"BOOL":%b}' % (name, truth) if truth else b'"%b":{"S":"%b"}' % (name, text)
