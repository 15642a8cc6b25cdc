"""Writes Python as a formatter would leave it: literals and calls on one line, or one part a line.

What does not fit into `WIDTH` is split, with a comma at the end of the last part. Formatters leave that
as it is whatever line length they are set to, from `WIDTH` up.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple, Union
from uuid import UUID

WIDTH = 88
"""Columns of a line: the least that is in use, as black and ruff have it by default."""


class Group(NamedTuple):
    """A bracket with parts: a call, or a display of a list, set or dict."""

    opening: str
    parts: list[Part]
    closing: str


Node = Union[str, Group]  # noqa: UP007  # an alias that Python 3.10 can evaluate


class Part(NamedTuple):
    """One part of a bracket, and what stands before it: ``name=`` or ``"name": ``."""

    before: str
    node: Node


def call(function: str, *arguments: Node, **named: Node) -> Group:
    """Write a call."""
    return Group(
        f"{function}(",
        [*(Part("", node) for node in arguments), *(Part(f"{name}=", node) for name, node in named.items())],
        ")",
    )


def flat(node: Node) -> str:
    """Write a node on one line."""
    if isinstance(node, str):
        return node
    inner = ", ".join(before + flat(part) for before, part in node.parts)
    return node.opening + inner + node.closing


def render(node: Node, indent: int, used: int, after: int = 0) -> str:
    """Write a node on a line that is indented by `indent`, behind `used` columns and before `after` more."""
    line = flat(node)
    if isinstance(node, str) or not node.parts or used + width(line) + after <= WIDTH:
        return line
    inner = indent + 4
    lines = [node.opening]
    for before, part in node.parts:
        lines.append(f"{' ' * inner}{before}{render(part, inner, inner + width(before), 1)},")
    return "\n".join([*lines, " " * indent + node.closing])


def statement(before: str, node: Node, after: str = "", indent: int = 0) -> str:
    """Write one statement: what stands before a node, the node, and what stands behind it."""
    start = " " * indent + before
    return start + render(node, indent, width(start), width(after)) + after


def width(text: str) -> int:
    """Count columns, as formatters do: East Asian characters take two; in doubt, more than they do."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in "WFA") for c in text)


def comment(text: str, indent: int = 0) -> list[str]:
    """Write a comment, folded to lines of a hundred columns or so. It must hold no line break."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) > 100 - indent:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [f"{' ' * indent}# {each}" for each in [*lines, line] if each]


# -- literals --------------------------------------------------------------------------------------


def text_literal(text: str) -> str:
    """Write a text in the quotes that formatters prefer: double ones, unless single ones need fewer escapes."""
    quoted = repr(text + "'\"")  # with both quotes in it, repr() takes single ones and escapes those
    body = quoted[1:-4]
    if text.count('"') > text.count("'"):
        return f"'{body}'"
    return '"' + body.replace("\\'", "'").replace('"', '\\"') + '"'


def bytes_literal(value: bytes) -> str:
    """Write bytes in the quotes that formatters prefer."""
    body = repr(value + b"'\"")[2:-4]
    if value.count(b'"') > value.count(b"'"):
        return f"b'{body}'"
    return 'b"' + body.replace("\\'", "'").replace('"', '\\"') + '"'


def literal(value: Any, names: set[str]) -> Node:
    """Write a value that a row or an item may hold; `names` takes the names that need an import."""
    if value is None or isinstance(value, (bool, int)):
        return repr(value)
    if isinstance(value, str):
        return text_literal(value)
    if isinstance(value, bytes):
        return bytes_literal(value)
    if isinstance(value, Decimal):
        names.add("Decimal")
        digits = str(value)
        whole = digits.lstrip("-").isdecimal() and digits == str(int(digits))
        return call("Decimal", digits if whole else text_literal(digits))
    if isinstance(value, UUID):
        names.add("UUID")
        return call("UUID", text_literal(str(value)))
    if isinstance(value, datetime):
        names.add("datetime")
        return call("datetime.fromisoformat", text_literal(value.isoformat()))
    if isinstance(value, date):
        names.add("date")
        return call("date", *map(str, (value.year, value.month, value.day)))
    if isinstance(value, dict):
        parts = [Part(f"{text_literal(name)}: ", literal(member, names)) for name, member in value.items()]
        return Group("{", parts, "}")
    if isinstance(value, (set, frozenset)):
        return call("frozenset", _display("{", sorted(value), "}", names)) if value else "frozenset()"
    return _display("[", value, "]", names)


def _display(opening: str, values: Iterable[Any], closing: str, names: set[str]) -> Group:
    return Group(opening, [Part("", literal(value, names)) for value in values], closing)
