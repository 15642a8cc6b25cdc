"""Compiles a profile to one function a line: route, decode, transform. Nothing here touches a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from migration_pipeline.errors import BadItem
from migration_pipeline.item import Item
from migration_pipeline.profile import Prefix, Profile, Rule
from migration_pipeline.row import Row

UNROUTED = "unrouted"
"""The reason under which items that no rule takes are counted."""

MAX_PATTERNS = 50
"""Distinct key patterns kept of unrouted items; the rest is counted under one."""


class Dialect(Protocol):
    """How lines are read: `migration_pipeline.sources.dynamodb_json` is the one there is."""

    def keys_decoder(self, attributes: Sequence[str]) -> Callable[[bytes], tuple[str, ...]]:
        """Compile the reader of the routing attributes."""

    def item_decoder(self, item_class: type[Item]) -> Callable[[bytes], Item]:
        """Compile the reader of a typed item."""


class Transform:
    """A compiled profile. `classify` and `convert` are its two steps, for one line each."""

    def __init__(self, profile: Profile, dialect: Dialect) -> None:
        self.profile = profile
        self.rules = list(profile.rules)
        self.row_classes = list(profile.row_classes)
        self.read_keys = dialect.keys_decoder(profile.routing_attributes)
        self.classify = compile_rules(self.rules, profile.routing_attributes)
        """Maps the routing attributes' values to the number of the first rule that holds, or -1."""
        decoders = {
            rule.item_class: dialect.item_decoder(rule.item_class) for rule in self.rules if rule.item_class
        }
        self.decoders = [decoders[rule.item_class] if rule.item_class else None for rule in self.rules]
        self.functions = [rule.function for rule in self.rules]

    def convert(self, rule: int, line: bytes) -> Any:
        """Decode a line and call its route. Raises `BadItem`; an exception of the profile becomes one, too."""
        decode, function = self.decoders[rule], self.functions[rule]
        if decode is None or function is None:
            return None
        item = decode(line)
        try:
            return function(item)
        except Exception as error:
            raise BadItem(f"route {function.__name__} failed: {describe(error, function)}") from error

    def rows_of(self, rule: int, result: Any) -> list[Row]:
        """Check what a route returned, other than one row or None. Raises `BadItem` for anything but rows."""
        rows = list(result) if isinstance(result, (list, tuple)) and not isinstance(result, Row) else [result]
        for row in rows:
            if row.__class__ not in self.row_classes:
                raise BadItem(
                    f"route {self.rules[rule].reason} returned a {type(row).__name__}, which its annotation does not name"
                )
        return rows


def compile_rules(rules: Sequence[Rule], attributes: Sequence[str]) -> Callable[[tuple[str, ...]], int]:
    """Generate one function for the whole route table: a chain of comparisons, first match first."""
    slot = {name: index for index, name in enumerate(attributes)}
    source = ["def classify(k):"]
    namespace: dict[str, Any] = {}
    for number, rule in enumerate(rules):
        tests = []
        for name, condition in rule.conditions:
            constant = f"c{len(namespace)}"
            namespace[constant] = condition.text if isinstance(condition, Prefix) else condition
            value = f"k[{slot[name]}]"
            tests.append(
                f"{value}.startswith({constant})"
                if isinstance(condition, Prefix)
                else f"{value} == {constant}"
            )
        source.append(f"    if {' and '.join(tests)}: return {number}")
    source.append("    return -1")
    exec(compile("\n".join(source), "<route table>", "exec"), namespace)  # noqa: S102  # constants are bound by name, not written into the source
    return namespace["classify"]  # type: ignore[no-any-return]


def describe(error: BaseException, function: Callable[..., Any]) -> str:
    """Name an exception of a profile's function and its place, without its text, which may echo a value."""
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == function.__code__.co_filename:
            place = f" at {function.__module__}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f"{type(error).__name__}{place}"


def key_pattern(attributes: Sequence[str], values: Sequence[str]) -> str:
    """Describe an item's keys without their values: ``PK=CUSTOMER#…, SK=PROFILE``.

    Only upper-case words survive, as single-table designs use them to name entity types.
    """
    return ", ".join(f"{name}={_shape(value)}" for name, value in zip(attributes, values, strict=False))


def _shape(value: str) -> str:
    if not value:
        return "(none)"
    head, separator, _ = value.partition("#")
    if len(head) <= 32 and head.replace("_", "").isalpha() and head.isupper() and head.isascii():
        return f"{head}#…" if separator else head
    return "…"


def count_pattern(patterns: Counter[str], pattern: str) -> None:
    """Count a key pattern, keeping at most `MAX_PATTERNS` distinct ones."""
    if pattern not in patterns and len(patterns) >= MAX_PATTERNS:
        pattern = "other patterns"
    patterns[pattern] += 1
