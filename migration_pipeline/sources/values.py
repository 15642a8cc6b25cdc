"""What DynamoDB's values are in Python: numbers, times, binaries, sets and documents, however a dialect spells them.

The types and their edges: "Data type descriptors" in the DynamoDB API reference.
"""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args, get_origin
from uuid import UUID

import msgspec
from msgspec import UNSET, UnsetType

from migration_pipeline.profile.item import Digits, Epoch

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
NUMBER_CHARACTERS = "0123456789+-.eE"

MAX_DIGITS = 126
"""Of a whole number in DynamoDB, whose greatest is 9.99…E+125. Of 1E+999999999 an int would have a gigabyte."""


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
    if value.adjusted() >= MAX_DIGITS or value != value.to_integral_value():
        raise ValueError
    return int(value)


def real(text: str) -> float:
    """Read an N as a float, rounding where 53 bits do not hold it."""
    return float(number(text))


def instant(text: str, per_second: int) -> datetime:
    """Read a count of ticks since 1970-01-01 UTC. Raises ValueError outside the years 1 to 9999."""
    exact = number(text)
    try:
        return EPOCH + timedelta(microseconds=int(exact * 1_000_000 // per_second))
    except ArithmeticError:
        raise ValueError("is a time outside the years 1 to 9999") from None


def aware(value: datetime) -> datetime:
    """Take a time without an offset as UTC."""
    return value if value.tzinfo is not None else value.replace(tzinfo=timezone.utc)


# -- any value ---------------------------------------------------------------------------------------


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


def letter_of(value: Value) -> str:
    """The DynamoDB type of a value. Raises ValueError when it has none."""
    for letter in Value.__struct_fields__:
        if getattr(value, letter) is not UNSET:
            return letter
    raise ValueError("has no type that DynamoDB knows")


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
    plainly: dict[str, Any] = {}
    for name, value in members.items():
        # Most members are texts and numbers; they are spared a call.
        if (text := value.S) is not UNSET:
            plainly[name] = text
        elif (digits := value.N) is not UNSET:
            plainly[name] = number(digits)
        else:
            plainly[name] = plain(value)
    return plainly


def listing(elements: list[Value]) -> list[Any]:
    """Make a plain list of an L."""
    return [plain(element) for element in elements]


# -- the form of one annotation --------------------------------------------------------------------


class Form(msgspec.Struct, frozen=True):
    """How an annotation is read: of which DynamoDB types, and by which expression over the value."""

    types: dict[str, Any]
    """DynamoDB type -> Python type of the value `{}` in it; an item has one of them."""
    expression: str = "{}"
    careful: str = ""
    """An expression that raises ValueError with the reason where `expression` raises anything; "" for itself."""
    kind: str = ""
    """What the accelerator calls it; "" where it has no code of its own for it."""


NUMBERS: dict[Any, tuple[str, str, str]] = {
    int: ("(int(n) if (n := {}).isdecimal() and n.isascii() else integer(n))", "integer({})", "integer"),
    Decimal: ("(number(n) if (n := {}).strip(NUMBER_CHARACTERS) else Decimal(n))", "number({})", "decimal"),
    float: ("real({})", "", ""),
}
"""The usual spelling of a number is read inline: calling a function costs as much as reading it."""

SETS: dict[Any, Form] = {
    str: Form({"SS": list[str]}, "frozenset({})", kind="set"),
    bytes: Form({"BS": list[bytes]}, "frozenset({})", kind="set"),
    int: Form({"NS": list[str]}, "frozenset(map(integer, {}))", kind="integers"),
    Decimal: Form({"NS": list[str]}, "frozenset(map(number, {}))", kind="set"),
}

CONVERSIONS: dict[str, Any] = {
    "number": number, "integer": integer, "real": real, "instant": instant, "aware": aware, "EPOCH": EPOCH,
    "second": timedelta(seconds=1), "millisecond": timedelta(milliseconds=1), "Decimal": Decimal,
    "NUMBER_CHARACTERS": NUMBER_CHARACTERS, "document": document, "listing": listing,
}  # fmt: skip
"""What the expressions may call."""


def form_of(bare: Any, markers: tuple[Any, ...]) -> Form | None:
    """Look up how a bare annotation is read; None when nothing reads as it."""
    origin, arguments = get_origin(bare), get_args(bare)
    epoch = next((marker for marker in markers if isinstance(marker, Epoch)), None)
    if epoch:
        return _epoch(epoch.per_second)
    if bare in NUMBERS:
        digits = any(isinstance(marker, Digits) for marker in markers)
        return Form({"N": str, "S": str} if digits else {"N": str}, *NUMBERS[bare])
    if bare in (str, UUID, date) or origin is Literal:
        return Form({"S": bare}, kind="text" if bare is str else "")
    if bare is datetime:
        return Form({"S": datetime}, "(n if (n := {}).tzinfo is not None else aware(n))", "aware({})", "time")
    if bare is bool:
        return Form({"BOOL": bool}, kind="bool")
    if bare is bytes:
        return Form({"B": bytes}, kind="bytes")
    if origin in (frozenset, set):
        return SETS.get(arguments[0])
    if bare is dict or (origin is dict and arguments == (str, Any)):
        return Form({"M": dict[str, Value]}, "document({})", kind="document")
    if bare is list or (origin is list and arguments == (Any,)):
        return Form({"L": list[Value]}, "listing({})", kind="list")
    return None


def _epoch(per_second: int) -> Form:
    tick = "second" if per_second == 1 else "millisecond"
    careful = f"instant({{}}, {per_second})"
    usual = f"EPOCH + {tick} * int(n) if (n := {{}}).isdecimal() and n.isascii() else {careful.format('n')}"
    return Form({"N": str, "S": str}, f"({usual})", careful, f"{tick}s")
