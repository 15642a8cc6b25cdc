"""Reads a line of an export in DynamoDB JSON: the routing attributes of any item, all of a wanted one.

An `Item` class is compiled once to a typed msgspec decoder for the *wire* form (``{"S": "…"}``,
``{"N": "12"}``) and to a generated function that makes the Item from it. Decoding and type checks run
in C; the generated function holds one expression a field, and no loop over fields.

The types and their edges: "Data type descriptors" in the DynamoDB API reference, and the page on the
export's output format in the DynamoDB developer guide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from operator import attrgetter
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType, defstruct

from migration_pipeline.errors import BadItem, UsageError
from migration_pipeline.item import Epoch, Item
from migration_pipeline.row import unwrap

ItemType = TypeVar("ItemType", bound=Item)

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
NUMBER_CHARACTERS = "0123456789+-.eE"


# -- values -----------------------------------------------------------------------------------------


def number(text: str) -> Decimal:
    """Read an N exactly, up to its 38 digits. Raises ValueError for anything that DynamoDB would not write."""
    # Decimal() also takes "NaN", "1_000", spaces and other scripts' digits. Stripping the legal characters
    # from both ends leaves something exactly if there is another one, and costs less than a regex.
    if text.strip(NUMBER_CHARACTERS):
        raise ValueError("is not a number")
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError("is not a number") from None


def integer(text: str) -> int:
    """Read an N as an int. Raises ValueError when it is no whole number."""
    try:
        return int(text) if not text.strip("-0123456789") else _whole(number(text))
    except ValueError:
        raise ValueError("is not a whole number") from None


def _whole(value: Decimal) -> int:
    if value != value.to_integral_value():
        raise ValueError
    return int(value)


def real(text: str) -> float:
    """Read an N as a float, rounding where 53 bits do not hold it."""
    return float(number(text))


def instant(text: str, per_second: int) -> datetime:
    """Read a count of ticks since 1970-01-01 UTC. Raises ValueError outside the years 1 to 9999."""
    try:
        if text.isdecimal() and per_second == 1000:
            return EPOCH + timedelta(milliseconds=int(text))
        return EPOCH + timedelta(microseconds=int(number(text) * 1_000_000 // per_second))
    except OverflowError:
        raise ValueError("is a time outside the years 1 to 9999") from None


def aware(value: datetime) -> datetime:
    """Take a time without an offset as UTC."""
    return value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """Any attribute value on the wire: an object with one member, named after its type."""

    S: str | UnsetType = UNSET
    N: str | UnsetType = UNSET
    B: bytes | UnsetType = UNSET
    BOOL: bool | UnsetType = UNSET
    NULL: bool | UnsetType = UNSET
    M: dict[str, Value] | UnsetType = UNSET
    L: list[Value] | UnsetType = UNSET
    SS: list[str] | UnsetType = UNSET
    NS: list[str] | UnsetType = UNSET
    BS: list[bytes] | UnsetType = UNSET


def plain(value: Value) -> Any:
    """Make a plain Python value: N as Decimal, B as bytes, sets as sorted lists, M as dict, L as list."""
    if value.S is not UNSET:
        return value.S
    if value.N is not UNSET:
        return number(value.N)
    if value.M is not UNSET:
        return document(value.M)
    if value.L is not UNSET:
        return listing(value.L)
    if value.BOOL is not UNSET:
        return value.BOOL
    if value.NULL is True:
        return None
    if value.B is not UNSET:
        return value.B
    if value.SS is not UNSET:
        return sorted(value.SS)
    if value.NS is not UNSET:
        return sorted(map(number, value.NS))
    if value.BS is not UNSET:
        return sorted(value.BS)
    raise ValueError("has no type that DynamoDB knows")


def document(members: dict[str, Value]) -> dict[str, Any]:
    """Make a plain dict of an M."""
    return {name: plain(value) for name, value in members.items()}


def listing(elements: list[Value]) -> list[Any]:
    """Make a plain list of an L."""
    return [plain(element) for element in elements]


# -- the wire form of one annotation ---------------------------------------------------------------


class Wire(msgspec.Struct, frozen=True):
    """How an annotation looks on the wire, and the expression that makes the Python value of it."""

    members: dict[str, Any]
    """Type letter -> msgspec type; one of them holds the value."""
    expression: str = "{}"


NUMBERS: dict[Any, str] = {int: "integer", Decimal: "number", float: "real"}
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
        return Wire({"N": str, "S": str}, f"instant({{}}, {epoch.per_second})")
    if bare in (str, UUID, date) or origin is Literal:
        return Wire({"S": bare})
    if bare is datetime:
        return Wire({"S": datetime}, "aware({})")
    if bare in NUMBERS:
        return Wire({"N": str}, f"{NUMBERS[bare]}({{}})")
    if bare is bool:
        return Wire({"BOOL": bool})
    if bare is bytes:
        return Wire({"B": bytes})
    if origin in (frozenset, set) and arguments[0] in SETS:
        letter, wire_type, expression = SETS[arguments[0]]
        return Wire({letter: wire_type}, expression)
    if bare is dict or (origin is dict and arguments == (str, Any)):
        return Wire({"M": dict[str, Value]}, "document({})")
    if bare is list or (origin is list and arguments == (Any,)):
        return Wire({"L": list[Value]}, "listing({})")
    return None


class Field(msgspec.Struct, frozen=True):
    """One field of an Item class, compiled: its member of the wire struct and its expression."""

    attribute: str
    member: tuple[Any, ...]
    """As `msgspec.defstruct` takes a field: name, type[, default]."""
    expression: str
    """Python source over `w`, the wire item."""
    constants: dict[str, Any]


def _field(item_class: type[Item], index: int, info: msgspec.structs.FieldInfo, annotation: Any) -> Field:
    bare, markers, optional = unwrap(annotation)
    has_default = info.default is not msgspec.NODEFAULT
    name, slot = info.encode_name, f"f{index}"
    if bare is Any:
        default = info.default if has_default else None
        expression = f"(d{index} if (v := w.{slot}) is missing else plain(v))"
        member = (slot, Value, msgspec.field(name=name, default=MISSING))
        return Field(name, member, expression, {f"d{index}": default, "missing": MISSING})
    wire = wire_of(bare, markers)
    if wire is None:
        raise UsageError(
            f"{item_class.__name__}.{info.name}: no DynamoDB type reads as {annotation!r}; see Item"
        )
    if not optional and not has_default and len(wire.members) == 1:
        (letter, wire_type), *_ = wire.members.items()
        struct = _struct([(letter, wire_type)])
        expression = wire.expression.format(f"w.{slot}.{letter}")
        return Field(name, (slot, struct, msgspec.field(name=name)), expression, {})
    members = [(letter, Union[wire_type, UnsetType], UNSET) for letter, wire_type in wire.members.items()]  # noqa: UP007
    if optional:
        members.append(("NULL", Union[bool, UnsetType], UNSET))  # noqa: UP007
    struct = _struct(members)
    empty = struct()
    required = not optional and not has_default
    default = info.default if has_default else None
    expression = f"absent(w.{slot}, e{index}, d{index})"
    for letter in reversed(wire.members):
        present = wire.expression.format("v")
        expression = f"({present} if (v := w.{slot}.{letter}) is not UNSET else {expression})"
    wire_default = msgspec.field(name=name) if required else msgspec.field(name=name, default=empty)
    return Field(name, (slot, struct, wire_default), expression, {f"e{index}": empty, f"d{index}": default})


MISSING = Value()


def _struct(members: Sequence[tuple[Any, ...]]) -> Any:
    return defstruct("Attribute", members, frozen=True, forbid_unknown_fields=True, gc=False)


def absent(wire: Any, empty: Any, default: Any) -> Any:
    """Tell a missing attribute (the default) from NULL (None) and from an empty object (an error)."""
    if wire is empty:
        return default
    if getattr(wire, "NULL", UNSET) is True:
        return None
    raise ValueError("has no value of its type")


# -- decoders --------------------------------------------------------------------------------------


def item_decoder(item_class: type[ItemType]) -> Callable[[bytes], ItemType]:
    """Compile an `Item` class to a function from a line to an item.

    The function raises `BadItem` with a reason that names the attribute, never its value.
    """
    hints = get_type_hints(item_class, include_extras=True)
    fields = [
        _field(item_class, index, info, hints[info.name])
        for index, info in enumerate(msgspec.structs.fields(item_class))
    ]
    # A conditional expression evaluates its condition first, so `v` is set before it is used.
    source = "def make(w):\n    return Item(" + ", ".join(f"({f.expression})" for f in fields) + ")\n"
    namespace: dict[str, Any] = {
        "Item": item_class, "UNSET": UNSET, "aware": aware, "absent": absent, "plain": plain,
        "number": number, "integer": integer, "real": real, "instant": instant,
        "document": document, "listing": listing,
    }  # fmt: skip
    for compiled in fields:
        namespace.update(compiled.constants)
    exec(compile(source, f"<decoder of {item_class.__name__}>", "exec"), namespace)  # noqa: S102  # built from the class above, no input of a user
    make = namespace["make"]
    envelope = _envelope([f.member for f in fields])
    decode = msgspec.json.Decoder(envelope).decode

    def read(line: bytes) -> ItemType:
        try:
            return make(decode(line).Item)  # type: ignore[no-any-return]
        except (msgspec.MsgspecError, ValueError, ArithmeticError) as error:
            raise BadItem(_reason(error, fields, line, decode, namespace)) from None

    return read


def keys_decoder(attributes: Sequence[str]) -> Callable[[bytes], tuple[str, ...]]:
    """Compile a function from a line to the string values of `attributes`; "" where it has none.

    Everything else on the line is skipped over, not decoded. The function raises `BadItem`.
    """
    key = defstruct("Key", [("S", str, "")], frozen=True, gc=False)
    none = key()
    envelope = _envelope(
        [(f"f{i}", key, msgspec.field(name=name, default=none)) for i, name in enumerate(attributes)]
    )
    decode = msgspec.json.Decoder(envelope).decode
    # The last path is repeated, so that attrgetter makes a tuple of a single attribute, too.
    paths = [f"Item.f{i}.S" for i in range(len(attributes))]
    values = attrgetter(*paths, paths[-1])

    def read(line: bytes) -> tuple[str, ...]:
        try:
            return values(decode(line))
        except (msgspec.MsgspecError, ValueError) as error:
            raise BadItem(_line_reason(error)) from None

    return read


def _envelope(members: Sequence[tuple[Any, ...]]) -> Any:
    item = defstruct("Item", members, frozen=True, gc=False, kw_only=True)
    return defstruct("Line", [("Item", item)], frozen=True, gc=False)


# -- reasons ---------------------------------------------------------------------------------------


def _reason(
    error: Exception, fields: list[Field], line: bytes, decode: Callable[[bytes], Any], names: dict[str, Any]
) -> str:
    """Say which attribute is at fault; conversions in the generated function do not know their field."""
    if isinstance(error, (msgspec.MsgspecError, UnicodeDecodeError)):
        return _line_reason(error)
    wire = decode(line).Item
    for compiled in fields:
        try:
            eval(compiled.expression, dict(names), {"w": wire})  # noqa: S307  # the generated source itself
        except (ValueError, ArithmeticError) as cause:  # noqa: PERF203  # the error path
            return f"attribute {compiled.attribute!r} {cause}"
    return str(error)


def _line_reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "invalid UTF-8"
    text = str(error)
    if "Invalid enum value" in text:
        # msgspec echoes the value here, and only here.
        text = "a value that is none of the allowed" + (
            text[text.rfind(" - at ") :] if " - at " in text else ""
        )
    return text.replace(" - at `$", " at `$").removeprefix("JSON is malformed: ")
