"""Compiles the fields of an `Item` class: for each its wire form in DynamoDB JSON, and the expression that reads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType, defstruct

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.item import Item, Rest, Whole
from migration_pipeline.profile.row import unwrap
from migration_pipeline.sources.values import CONVERSIONS, Form, Value, form_of, plain


class Field(msgspec.Struct, frozen=True):
    """One field of an Item class, compiled: its member of the wire struct and its expression."""

    expression: str
    """Python source over `w`, the wire item, `line`, and `m`, the number of missing attributes, which it adds to."""
    careful: str
    """The same as `expression`, but what it raises is a ValueError that tells the reason."""
    attribute: str | None = None
    """None for the whole item, and for the rest of it."""
    member: tuple[Any, ...] | None = None
    """As `msgspec.defstruct` takes a field: name, type, default; None where `attribute` is."""
    braces: str = "0"
    """Python source for the number of objects that the attribute is spelled with; "0" and "1" are constants."""
    constants: dict[str, Any] = {}
    kind: str = ""
    """What the accelerator calls it; "" where it has no code of its own for it."""
    types: tuple[str, ...] = ()
    """The DynamoDB types that it accepts, but NULL."""
    optional: bool = False
    """Whether it accepts NULL, as None."""
    required: bool = False
    absent: Any = None
    """What it is where the attribute is missing and not required."""


REST = "rest"
"""The expression of the rest of an item: a local name, because it is known only after all else is read."""


def field_of(item_class: type[Item], index: int, info: msgspec.structs.FieldInfo, annotation: Any) -> Field:
    """Compile a field. Raises `UsageError` for an annotation that no DynamoDB type reads as."""
    bare, markers, optional = unwrap(annotation)
    if any(isinstance(marker, Rest) for marker in markers):
        return Field(REST, "None", kind="rest")  # what it raises says the reason
    if any(isinstance(marker, Whole) for marker in markers):
        return Field("whole(line)", "whole(line)", kind="whole")
    if bare is Any:
        return _any(info, index)
    form = form_of(bare, markers)
    if form is None:
        raise UsageError(
            f"{item_class.__name__}.{info.name}: no DynamoDB type can be read as {annotation!r}; see Item for the supported types"
        )
    required = not optional and info.default is msgspec.NODEFAULT
    if required and len(form.types) == 1:
        return _required(form, info, index)
    return _one_of(form, info, index, optional, required)


def _any(info: msgspec.structs.FieldInfo, index: int) -> Field:
    """Compile a field that takes any type."""
    wire = f"w.f{index}"
    expression = f"(d{index} if (v := {wire}) is missing else plain(v))"
    return Field(
        expression,
        expression,
        info.encode_name,
        (f"f{index}", Value, msgspec.field(name=info.encode_name, default=MISSING)),
        f"(0 if {wire} is missing else braces({wire}))",
        {f"d{index}": _default(info)},
        kind="any",
        types=tuple(Value.__struct_fields__),
        absent=_default(info),
    )


def _required(form: Form, info: msgspec.structs.FieldInfo, index: int) -> Field:
    """Compile a field that must be there, and of one type."""
    ((letter, wire_type),) = form.types.items()
    value = f"w.f{index}.{letter}"
    return Field(
        form.expression.format(value),
        (form.careful or form.expression).format(value),
        info.encode_name,
        (f"f{index}", _struct([(letter, wire_type)]), msgspec.field(name=info.encode_name)),
        BRACES.get(letter, "1").format(value),
        kind=form.kind,
        types=(letter,),
        required=True,
    )


def _one_of(form: Form, info: msgspec.structs.FieldInfo, index: int, optional: bool, required: bool) -> Field:
    """Compile a field that may be missing, NULL, or of several types."""
    wire = f"w.f{index}"
    types = form.types | ({"NULL": bool} if optional else {})
    struct = _struct((letter, wire_type | UnsetType, UNSET) for letter, wire_type in types.items())
    missing = struct()
    absent = msgspec.NODEFAULT if required else missing

    def whichever(present: str) -> str:
        # A conditional expression evaluates its condition first, so `v` is set before it is used.
        expression = f"(d{index} if {wire} is e{index} and (m := m + 1) else empty())"
        if optional:
            expression = f"(None if {wire}.NULL is True else {expression})"
        for letter in reversed(form.types):
            expression = f"({present.format('v')} if (v := {wire}.{letter}) is not UNSET else {expression})"
        return expression

    braces = "1"  # missing ones are counted in m
    for letter in BRACES.keys() & form.types:
        braces = f"({BRACES[letter].format(f'{wire}.{letter}')} if {wire}.{letter} is not UNSET else 1)"
    return Field(
        whichever(form.expression),
        whichever(form.careful or form.expression),
        info.encode_name,
        (f"f{index}", struct, msgspec.field(name=info.encode_name, default=absent)),
        braces,
        {f"e{index}": missing, f"d{index}": _default(info)},
        form.kind,
        tuple(form.types),
        optional,
        required,
        _default(info),
    )


def _default(info: msgspec.structs.FieldInfo) -> Any:
    return None if info.default is msgspec.NODEFAULT else info.default


MISSING = Value()


def _struct(members: Iterable[tuple[Any, ...]]) -> Any:
    return defstruct("Attribute", members, frozen=True, forbid_unknown_fields=True, gc=False)


def empty() -> None:
    """Refuse an attribute that is there, but is an empty object."""
    raise ValueError("has no value of its type")


# -- counting objects --------------------------------------------------------------------------------


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


def objects(raw: msgspec.Raw | UnsetType) -> int:
    """Count the objects that an attribute is spelled with, without reading it; 0 if it is not there."""
    return 0 if isinstance(raw, UnsetType) else bytes(raw).count(b'{"')


BRACES = {"M": "braces_of_members({})", "L": "braces_of_elements({})"}
"""DynamoDB type -> Python source for the number of objects that a value `{}` of it is spelled with, where it is not 1."""

NAMES: dict[str, Any] = {
    **CONVERSIONS, "UNSET": UNSET, "missing": MISSING, "empty": empty, "plain": plain, "objects": objects,
    "braces": braces, "braces_of_members": braces_of_members, "braces_of_elements": braces_of_elements,
}  # fmt: skip
"""What the generated functions may call."""
