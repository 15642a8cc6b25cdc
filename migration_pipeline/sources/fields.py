"""Compiles the fields of an `Item` class: for each its wire form in DynamoDB JSON, and the expression that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Union, get_args, get_origin
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType, defstruct

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.item import Digits, Epoch, Item, Rest, Whole
from migration_pipeline.profile.row import unwrap
from migration_pipeline.sources.values import (
    EPOCH,
    NUMBER_CHARACTERS,
    Value,
    aware,
    document,
    instant,
    integer,
    listing,
    number,
    plain,
    real,
)


def braces(value: Value) -> int:
    """Count the objects that a value is spelled with, its own included and empty ones left out."""
    if value.M is not UNSET:
        return braces_of_members(value.M)
    return 1 if value.L is UNSET else braces_of_elements(value.L)


def braces_of_members(members: dict[str, Value]) -> int:
    """Count the objects that an M attribute is spelled with."""
    count = 2 + len(members) if members else 1
    for value in members.values():
        if value.M is not UNSET or value.L is not UNSET:
            count += braces(value) - 1
    return count


def braces_of_elements(elements: list[Value]) -> int:
    """Count the objects that an L attribute is spelled with."""
    return 1 + sum(map(braces, elements))


# -- the wire form of one annotation ---------------------------------------------------------------


class Wire(msgspec.Struct, frozen=True):
    """How an annotation looks on the wire, and the expression that makes the Python value of it."""

    members: dict[str, Any]
    """Type letter -> msgspec type; one of them holds the value."""
    expression: str = "{}"
    careful: str = ""
    """An expression that raises ValueError with the reason where `expression` raises anything; "" for itself."""
    braces: str = "1"
    """Python expression for the number of objects that a value `{}` is spelled with."""


NUMBERS: dict[Any, tuple[str, str]] = {
    int: ("(int(n) if (n := {}).isdecimal() and n.isascii() else integer(n))", "integer({})"),
    Decimal: ("(number(n) if (n := {}).strip(NUMBER_CHARACTERS) else Decimal(n))", "number({})"),
    float: ("real({})", ""),
}
"""The usual spelling of a number is read inline: calling a function costs as much as reading it."""

SETS: dict[Any, tuple[str, Any, str]] = {
    str: ("SS", list[str], "frozenset({})"),
    bytes: ("BS", list[bytes], "frozenset({})"),
    int: ("NS", list[str], "frozenset(map(integer, {}))"),
    Decimal: ("NS", list[str], "frozenset(map(number, {}))"),
}


def wire_of(bare: Any, markers: tuple[Any, ...]) -> Wire | None:
    """Look up the wire form of a bare annotation; None when there is none."""
    epoch = next((m for m in markers if isinstance(m, Epoch)), None)
    origin, arguments = get_origin(bare), get_args(bare)
    if epoch:
        tick = "second" if epoch.per_second == 1 else "millisecond"
        careful = f"instant({{}}, {epoch.per_second})"
        usual = (
            f"(EPOCH + {tick} * int(n) if (n := {{}}).isdecimal() and n.isascii() else {careful.format('n')})"
        )
        return Wire({"N": str, "S": str}, usual, careful)
    if bare in (str, UUID, date) or origin is Literal:
        return Wire({"S": bare})
    if bare is datetime:
        return Wire({"S": datetime}, "(n if (n := {}).tzinfo is not None else aware(n))", "aware({})")
    if bare in NUMBERS:
        digits = any(isinstance(m, Digits) for m in markers)
        return Wire({"N": str, "S": str} if digits else {"N": str}, *NUMBERS[bare])
    if bare is bool:
        return Wire({"BOOL": bool})
    if bare is bytes:
        return Wire({"B": bytes})
    if origin in (frozenset, set) and arguments[0] in SETS:
        letter, wire_type, expression = SETS[arguments[0]]
        return Wire({letter: wire_type}, expression)
    if bare is dict or (origin is dict and arguments == (str, Any)):
        return Wire({"M": dict[str, Value]}, "document({})", braces="braces_of_members({})")
    if bare is list or (origin is list and arguments == (Any,)):
        return Wire({"L": list[Value]}, "listing({})", braces="braces_of_elements({})")
    return None


def objects(raw: msgspec.Raw | UnsetType) -> int:
    """Count the objects that an attribute is spelled with, without reading it; 0 if it is not there."""
    return 0 if isinstance(raw, UnsetType) else bytes(raw).count(b'{"')


class Field(msgspec.Struct, frozen=True):
    """One field of an Item class, compiled: its member of the wire struct and its expression."""

    attribute: str | None
    """None for the whole item, and for the rest of it."""
    member: tuple[Any, ...] | None
    """As `msgspec.defstruct` takes a field: name, type[, default]; None where `attribute` is."""
    expression: str
    """Python source over `w`, the wire item, `line`, and `m`, the number of missing attributes, which it adds to."""
    careful: str
    """The same as `expression`, but what it raises is a ValueError that tells the reason."""
    braces: str
    """Python source for the number of objects that the attribute is spelled with; "0" and "1" are constants."""
    constants: dict[str, Any]


REST = "rest"
"""The expression of the rest of an item: a local name, because it is known only after all else is read."""


def field_of(item_class: type[Item], index: int, info: msgspec.structs.FieldInfo, annotation: Any) -> Field:
    """Compile a field. Raises `UsageError` for an annotation that no DynamoDB type reads as."""
    bare, markers, optional = unwrap(annotation)
    has_default = info.default is not msgspec.NODEFAULT
    name, slot = info.encode_name, f"f{index}"
    if any(isinstance(m, Rest) for m in markers):
        return Field(None, None, REST, "None", "0", {})  # what it raises says the reason
    if any(isinstance(m, Whole) for m in markers):
        return Field(None, None, "whole(line)", "whole(line)", "0", {})
    if bare is Any:
        default = info.default if has_default else None
        expression = f"(d{index} if (v := w.{slot}) is missing else plain(v))"
        member = (slot, Value, msgspec.field(name=name, default=MISSING))
        spelled = f"(0 if w.{slot} is missing else braces(w.{slot}))"
        constants = {f"d{index}": default, "missing": MISSING}
        return Field(name, member, expression, expression, spelled, constants)
    wire = wire_of(bare, markers)
    if wire is None:
        raise UsageError(
            f"{item_class.__name__}.{info.name}: no DynamoDB type reads as {annotation!r}; see Item"
        )
    careful = wire.careful or wire.expression
    if not optional and not has_default and len(wire.members) == 1:
        (letter, wire_type), *_ = wire.members.items()
        struct = _struct([(letter, wire_type)])
        value = f"w.{slot}.{letter}"
        return Field(
            name,
            (slot, struct, msgspec.field(name=name)),
            wire.expression.format(value),
            careful.format(value),
            wire.braces.format(value),
            {},
        )
    members = [(letter, Union[wire_type, UnsetType], UNSET) for letter, wire_type in wire.members.items()]  # noqa: UP007
    if optional:
        members.append(("NULL", Union[bool, UnsetType], UNSET))  # noqa: UP007
    struct = _struct(members)
    missing = struct()
    required = not optional and not has_default
    default = info.default if has_default else None

    def whichever(present: str) -> str:
        # A conditional expression evaluates its condition first, so `v` is set before it is used.
        expression = f"(d{index} if w.{slot} is e{index} and (m := m + 1) else empty())"
        if optional:
            expression = f"(None if w.{slot}.NULL is True else {expression})"
        for letter in reversed(wire.members):
            expression = f"({present.format('v')} if (v := w.{slot}.{letter}) is not UNSET else {expression})"
        return expression

    spelled = "1"  # missing ones are counted in m
    if wire.braces != "1":
        (letter,) = wire.members
        full = wire.braces.format(f"w.{slot}.{letter}")
        spelled = f"({full} if w.{slot}.{letter} is not UNSET else 1)"
    wire_default = msgspec.field(name=name) if required else msgspec.field(name=name, default=missing)
    constants = {f"e{index}": missing, f"d{index}": default}
    member = (slot, struct, wire_default)
    return Field(name, member, whichever(wire.expression), whichever(careful), spelled, constants)


MISSING = Value()


def _struct(members: Sequence[tuple[Any, ...]]) -> Any:
    return defstruct("Attribute", members, frozen=True, forbid_unknown_fields=True, gc=False)


def empty() -> None:
    """Refuse an attribute that is there, but is an empty object."""
    raise ValueError("has no value of its type")


CONVERSIONS: dict[str, Any] = {
    "UNSET": UNSET, "empty": empty, "plain": plain, "number": number, "integer": integer, "real": real,
    "instant": instant, "aware": aware, "EPOCH": EPOCH, "second": timedelta(seconds=1),
    "millisecond": timedelta(milliseconds=1), "Decimal": Decimal, "NUMBER_CHARACTERS": NUMBER_CHARACTERS, "document": document, "listing": listing, "braces": braces, "objects": objects,
    "braces_of_members": braces_of_members, "braces_of_elements": braces_of_elements,
}  # fmt: skip
"""What the generated functions may call."""
