"""What DynamoDB's values are in Python: numbers, times, binaries, sets and documents, however a dialect spells them.

The types and their edges: "Data type descriptors" in the DynamoDB API reference.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

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
