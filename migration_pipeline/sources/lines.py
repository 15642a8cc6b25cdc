"""Tells the accelerator of lines (`_lines.c`) what a profile reads, and has it read them; the Python path judges what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import defstruct

from migration_pipeline.block import Block
from migration_pipeline.errors import BadItem
from migration_pipeline.generated import generated
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Condition, Prefix, Rule
from migration_pipeline.sources.fields import NAMES, Field
from migration_pipeline.sources.values import MAX_DIGITS, Value

if TYPE_CHECKING:
    from migration_pipeline.sources.dynamodb_json import ItemDecoder

KINDS = (
    "text", "integer", "decimal", "time", "seconds", "milliseconds", "bool", "bytes", "set", "integers", "document",
    "list", "any", "whole", "rest", "",
)  # fmt: skip
"""In the order of the enum in C; the last one is read by code in Python, a value at a time."""

TYPES = {letter: 1 << bit for bit, letter in enumerate(Value.__struct_fields__)}
"""DynamoDB type -> its bit in C. Both have the types in one order."""

TEXT, PREFIX, NUMBER, BOOLEAN = range(4)
"""What a condition compares with, as the enum in C."""

NEVER = b"no number"
"""The text that no whole number has: what a condition compares with that none can meet."""

Read = Callable[[Sequence[bytes], Sequence[int]], tuple[Any, ...]]


def reader(
    extension: ModuleType,
    rules: Sequence[Rule],
    attributes: Sequence[str],
    typed: Collection[str],
    decoders: Mapping[type[Item], ItemDecoder[Any]],
    which: Callable[[bytes], int],
) -> Read:
    """Compile the reader of a profile's lines.

    It is called with lines and their numbers. It gives, for each rule, the lines that it took (of a block in a block), their numbers, and how many
    it counted; the lines that no rule takes; for each rule the Items; the bad lines, as tuples of number, line, `BadItem`,
    and the rule that takes it, or -1; and how many lines Python judged, by reason. `which` tells the number of the rule that
    takes a line, `len(rules)` for none. It raises nothing but what interrupts.
    """
    names = list(attributes)
    for decoder in decoders.values():
        names += [f.attribute for f in decoder.fields if f.attribute is not None and f.attribute not in names]
    classes = list(decoders)
    read: Callable[..., tuple[Any, ...]] = extension.Reader(
        tuple(map(str.encode, names)),
        tuple(name in typed for name in attributes),
        tuple(
            (
                classes.index(rule.item_class) if rule.function and rule.item_class else -1,
                tuple((attributes.index(name), *_condition(c)) for name, c in rule.conditions),
            )
            for rule in rules
        ),
        tuple(
            (item_class, tuple(_field(f, names) for f in decoder.fields), _judged(decoder))
            for item_class, decoder in decoders.items()
        ),
        _judged(which),
    ).read

    def of_block(lines: Sequence[bytes], numbers: Sequence[int]) -> tuple[Any, ...]:
        if isinstance(lines, Block) and isinstance(numbers, range):
            taken, places, *rest = read(lines.data, numbers[0])
            return [Block(*each) for each in zip(taken, map(len, places), strict=True)], places, *rest
        return read(lines, numbers)

    return of_block


def _judged(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return the `BadItem` that a function raises."""

    def judged(line: bytes) -> Any:
        try:
            return read(line)
        except BadItem as error:
            return error.with_traceback(None)

    return judged


def _condition(condition: Condition) -> tuple[int, bytes]:
    if isinstance(condition, Prefix):
        return PREFIX, condition.text.encode()
    if isinstance(condition, bool):
        return BOOLEAN, b"1" if condition else b"0"
    if isinstance(condition, (int, Decimal)):
        return NUMBER, _digits(Decimal(condition))
    return TEXT, condition.encode()


def _digits(number: Decimal) -> bytes:
    """The usual spelling of a whole number; the accelerator reads no other."""
    whole = number.is_finite() and number.adjusted() < MAX_DIGITS and number == number.to_integral_value()
    return b"%d" % int(number) if whole else NEVER


def _field(field: Field, names: Sequence[str]) -> tuple[Any, ...]:
    return (
        -1 if field.attribute is None else names.index(field.attribute),
        sum(TYPES[letter] for letter in field.types),
        KINDS.index(field.kind),
        field.optional,
        field.required,
        field.absent,
        _converter(field),
    )


def _converter(field: Field) -> Callable[[bytes], Any] | None:
    """Compile the reader of one raw value, by the field's own expression; it raises any exception for an odd one."""
    if field.member is None:
        return None
    member, wire_type, _ = field.member
    one = defstruct("One", [(member, Any)])
    decode = msgspec.json.Decoder(wire_type).decode
    source = f"def convert(raw):\n    w, m = One(decode(raw)), 0\n    return {field.expression}\n"
    names = dict(NAMES, One=one, decode=decode) | field.constants
    return generated("convert", source, "reader of a value", names)  # type: ignore[no-any-return]
