"""What a profile reads: typed classes for the attributes of a DynamoDB item.

An ``Item`` class names the attributes that a route needs and their Python types. It says nothing of
how an export spells them; `migration_pipeline.sources.dynamodb_json` compiles it to a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
from typing_extensions import dataclass_transform

T = TypeVar("T")


@dataclass(frozen=True)
class Epoch:
    """Marks a ``datetime`` that the item keeps as a number of `per_second` ticks since 1970-01-01 UTC."""

    per_second: int


EpochSeconds = Annotated[datetime, Epoch(1)]
"""A `datetime` from a number of seconds since 1970 (N, or digits in S); a fraction is kept to the microsecond."""

EpochMillis = Annotated[datetime, Epoch(1000)]
"""A `datetime` from a number of milliseconds since 1970."""


class Digits:
    """Marks an ``int`` that the item keeps as N, or as digits in S."""


AnyInt = Annotated[int, Digits()]
"""An `int` from N, or from digits in S."""


class Whole:
    """Marks the field that holds the whole item."""


WholeItem = Annotated[dict[str, Any], Whole()]
"""All attributes of the item by name, as plain Python values: a document. Each item is read a second time for it."""


class Rest:
    """Marks the field that holds what no other field reads."""


RestOfItem = Annotated[dict[str, Any], Rest()]
"""All attributes of the item that no other field names, as `WholeItem` has them; ``{}`` where there are none.

An item without such attributes is not read a second time.
"""


def attribute(name: str | None = None, *, default: Any = msgspec.NODEFAULT) -> Any:
    """Name the DynamoDB attribute that a field is read from, if the field has another name.

    ``created_at: datetime = attribute("createdAt")`` reads the attribute ``createdAt``. With `default`,
    an item that lacks the attribute gets that value.
    """
    return msgspec.field(name=name, default=default)


@dataclass_transform(field_specifiers=(attribute,), frozen_default=True)
class Item(msgspec.Struct, frozen=True, gc=False):
    """Base of the typed items that routes take. Only the attributes named are decoded.

    ======================================  =========================================================
    annotation                              DynamoDB type it accepts
    ======================================  =========================================================
    ``str``, ``Literal["a", "b"]``, UUID    S
    ``int``, ``Decimal``, ``float``         N (``Decimal`` is exact to all 38 digits; ``float`` is not)
    ``AnyInt``                              N, or digits in S
    ``bool``                                BOOL
    ``bytes``                               B
    ``datetime``, ``date``                  S in ISO 8601 (a time without an offset is taken as UTC; digits beyond the
                                            microsecond are rounded)
    ``EpochSeconds``, ``EpochMillis``       N, or digits in S
    ``frozenset[str]`` (int, Decimal, ...)  SS, NS, BS
    ``dict[str, Any]``, ``list[Any]``       M, L, as plain Python values: N as Decimal, sets as sorted lists
    ``Any``                                 any type, as a plain Python value
    ``X | None``                            X or NULL; a missing attribute is None too
    ``WholeItem``                           no attribute, but all of them: the item as a document
    ``RestOfItem``                          all attributes that no other field names, as a document
    ======================================  =========================================================

    A field without a default that is not optional must be there: an item that lacks it, or has it as
    another type, is a bad item.
    """
