"""Decides how a column's type takes the values of a Row: once for each table, from the catalog.

A table holds a value exactly, or the change is reported. For each column one of these is true:

- its type holds all values of the Row's type exactly, or refuses them;
- it changes some of them, and Python can tell which: `Fit.changes`, asked of each value before it is sent;
- it changes some, and only the server can say which: the value is staged as it is, written to the column's type and read back.

A value that would be changed makes its item a bad one, unless the Row says that it may be (`Fitted`).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from datetime import date, datetime
from decimal import Context, Decimal
from typing import Any, Literal, get_origin
from uuid import UUID

import msgspec

from migration_pipeline.profile.row import SCALARS, Column, element_type

NAME_BYTES = 63
"""Bytes that the type ``name`` keeps of a text (NAMEDATALEN - 1)."""

EXACT: dict[Any, str] = {**SCALARS, int: "numeric", Any: "jsonb"}
"""A Row's type -> the PostgreSQL type that holds each of its values exactly."""

FAMILIES: dict[Any, tuple[str, ...]] = {
    int: ("smallint", "integer", "bigint", "numeric"),
    Decimal: ("numeric",),
    float: ("double precision", "real"),
    bool: ("boolean",),
    bytes: ("bytea",),
    datetime: ("timestamp with time zone", "timestamp without time zone"),
    date: ("date",),
    UUID: ("uuid",),
    Any: ("jsonb", "json"),
}
"""A Row's type -> the column types that take its values without the Row naming them. Text goes into any type."""

INTEGERS = ("smallint", "integer", "bigint")
TIMES = ("timestamp with time zone", "timestamp without time zone")


class Actual(msgspec.Struct, frozen=True, kw_only=True):
    """A column as the catalog has it."""

    name: str
    type: str
    """As ``format_type()`` spells it, with its modifier; a domain by its own name."""
    element: str
    """The type of its values, or of an array's elements, below all domains and without a modifier."""
    modified: str
    """That type with its modifier."""
    array: bool
    enum: bool
    builtin: bool = True
    """Whether `element` is a type of PostgreSQL's own, and not another one of that name."""
    collation: str = ""
    """Its name in quotes, where that is not the database's default; "" else."""
    not_null: bool = False
    has_default: bool = False
    generated: bool = False
    identity: Literal["", "a", "d"] = ""
    """``a``: GENERATED ALWAYS AS IDENTITY, ``d``: BY DEFAULT."""

    @property
    def args(self) -> tuple[int, ...]:
        """The modifier, as it is written: (10, 2) of ``numeric(10,2)``."""
        found = re.search(r"\(([-\d, ]+)\)", self.modified.removeprefix(self.element) or self.modified)
        return tuple(map(int, found[1].split(","))) if found else ()


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How a column takes the values of a field. The texts are SQL with ``{}`` for the staged value or the column."""

    column: Column
    actual: Actual
    staged: str
    """The type that holds the value exactly, for the staging table; it refuses what the column refuses."""
    exact: str = ""
    """The same for values that no COPY has looked at, where a cast to `staged` would cut them; as `staged` where empty."""
    written: str = "{}"
    """The staged value as the column takes it; the assignment adds the modifier, and refuses what is too long."""
    key: str = ""
    """The staged value as it is compared with the column where that is part of the key; as `written` where empty."""
    theirs: str = "{}"
    """The column's value, and …"""
    ours: str = "{}"
    """… the staged one, as they are compared. Equal is not enough where a type calls different values equal."""
    image: bool = False
    """Whether they are compared by their image in memory."""
    changes: Callable[[Any], bool] | None = None
    """Tells whether the type would change a value that is not None."""
    round_trip: bool = False
    """Whether only the server can tell that."""
    fitted: bool = False
    """Whether the Row allows the type to change values."""
    loose: bool = False
    """Whether the column may call two keys equal that differ in Python."""
    utc: bool = False
    """Whether the column has no time zone, so that times are written in UTC."""

    @property
    def reason(self) -> str:
        """Why an item is bad whose value would be changed."""
        return f"column {self.column.name} is {self.actual.type}, which would change the value; Fitted[…] in the Row allows it"


def python_type(column: Column) -> Any:
    """The type of a column's values, or of an array's elements; ``Any`` for a document, ``str`` for a Literal."""
    bare = column.python_type
    if get_origin(bare) is Literal:
        return str
    if is_array(column):
        return element_type(bare)
    return bare if bare in EXACT else Any


def is_array(column: Column) -> bool:
    """Whether a field makes an array."""
    return get_origin(column.python_type) in (frozenset, set, list) and not column.pg_type.lower().startswith(
        "json"
    )


def fit_of(column: Column, actual: Actual) -> Fit | None:
    """Decide how a column takes a field's values; None where it does not, unless the Row names its type."""
    kind, array = python_type(column), is_array(column)
    made = None
    if kind is str and (not array or actual.array):
        made = _text(column, actual, array)
    elif array == actual.array and actual.element in FAMILIES.get(kind, ()):
        made = _typed(column, actual, kind, array)
    if made is None and (column.declared or kind is str):
        made = _by_round_trip(column, actual, kind, array)
    if made is None:
        return None
    if made.changes is not None and array:
        made = msgspec.structs.replace(made, changes=_of_elements(made.changes))
    # A cast to bits cuts what they refuse, so that they are not allowed to.
    fitted = column.fitted and actual.element not in ("bit", "bit varying")
    return _fitted(made) if fitted else _collated(made)


def _text(column: Column, actual: Actual, array: bool) -> Fit | None:
    """Text into types that keep it, or of which it is another spelling; None for all others."""
    many = "[]" if array else ""
    if actual.array != array:
        return None
    staged, full, length = f"text{many}", actual.type, actual.args[0] if actual.args else None

    def fit(**more: Any) -> Fit:
        return msgspec.structs.replace(Fit(column=column, actual=actual, staged=staged), **more)

    if actual.enum:
        return fit(written=f"{{}}::{full}", ours=f"{{}}::{full}")
    match actual.element:
        case "text":
            return fit()
        case "character varying":
            if length is None:
                return fit(theirs=f"{{}}::text{many}")
            return fit(
                staged=f"character varying({length}){many}", exact=staged, theirs=f"{{}}::text{many}", ours=f"{{}}::text{many}",
                changes=lambda text: len(text) > length and _is_blank(text, length),
            )  # fmt: skip
        case "character":
            own = staged if length is None else f"character({length}){many}"
            check = None if length is None else (lambda text: len(text) != length and _is_blank(text, length))
            return fit(
                staged=own, exact=staged, written="{}" if length else f"{{}}::bpchar{many}", ours=f"{{}}::{full}",
                image=True, changes=check, loose=True,
            )  # fmt: skip
        case "name" if not array:
            return fit(
                written="{}::name",
                theirs="{}::text",
                changes=lambda text: len(str(text).encode()) > NAME_BYTES,
            )
        case "uuid":
            return fit(written=f"{{}}::uuid{many}", ours=f"{{}}::uuid{many}", loose=True)
        case "json" if not array:
            return fit(written="{}::json", theirs="{}::text")
        case "jsonb" if not array:
            return fit(written="{}::jsonb", ours="{}::jsonb", changes=_has_twins)
        case element if element.rpartition(".")[2] == "citext":
            return fit(written=f"{{}}::{element}{many}", theirs=f"{{}}::text{many}", loose=True)
    return None


def _typed(column: Column, actual: Actual, kind: Any, array: bool) -> Fit:
    """Numbers, times and the like into the types of their family."""
    many = "[]" if array else ""
    element, args = actual.element, actual.args
    staged = f"{element}{many}"

    def fit(**more: Any) -> Fit:
        return Fit(column=column, actual=actual, staged=staged, **more)

    if element == "numeric":
        scale = (args[1] if len(args) > 1 else 0) if args else None
        whole = kind is int and scale is not None and scale >= 0
        # Python calls no NaN equal to another.
        return fit(changes=None if scale is None or whole else _scale(scale), loose=kind is Decimal)
    if element == "double precision":
        # NaN is equal to itself there; and -0 is no other number than 0, but is told apart.
        image = {"image": True} if array else {"theirs": "float8send({})", "ours": "float8send({})"}
        return fit(loose=True, **image)
    if element == "real":
        staged = f"double precision{many}"
        if array:
            return fit(
                written="{}::real[]", ours="{}::real[]", image=True, changes=_needs_more_than_real, loose=True
            )
        return fit(
            written="{}::real", theirs="float8send({}::text::float8)", ours="float8send({})",
            changes=_needs_more_than_real, loose=True,
        )  # fmt: skip
    if element in TIMES:
        ticks = 10 ** (6 - args[0]) if args else 1
        check = (lambda when: getattr(when, "microsecond", 0) % ticks != 0) if ticks > 1 else None
        return fit(changes=check, loose=True, utc=element == TIMES[1])
    if element == "json":
        return fit(theirs="{}::text", ours="{}::text")
    return fit()


def _by_round_trip(column: Column, actual: Actual, kind: Any, array: bool) -> Fit | None:
    """Any other pair: the server says whether it reads back what was written."""
    if kind is Any or column.merge is not None:
        return None
    staged = EXACT[kind] + ("[]" if array else "")
    # Text is the one way between any two types.
    written = f"{{}}::text::{actual.type}" if staged != "text" else f"{{}}::{actual.type}"
    return Fit(
        column=column,
        actual=actual,
        staged=staged,
        written=written,
        ours=written,
        image=True,
        round_trip=True,
        loose=True,
    )


def _fitted(fit: Fit) -> Fit:
    """The same, where the type may change values: what it makes of them is what is compared."""
    if fit.changes is None and not fit.round_trip:
        return _collated(fit)
    fit = _collated(fit)
    full = f"{{}}::{fit.actual.type}" if not fit.round_trip else fit.written
    return msgspec.structs.replace(fit, key=full, theirs="{}", ours=full, image=True, loose=True, fitted=True)


def _collated(fit: Fit) -> Fit:
    """The same, compared byte by byte where the column has a collation of its own, which may call other texts equal."""
    if not fit.actual.collation:
        return fit
    bytewise = (
        f'({fit.theirs}) COLLATE "C"' if not fit.image and "text" in (fit.exact or fit.staged) else fit.theirs
    )
    return msgspec.structs.replace(fit, theirs=bytewise, loose=True)


# -- values that a type would change ------------------------------------------------------------------


def _of_elements(changes: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: any(value is not None and changes(value) for value in values)


def _is_blank(text: str, length: int) -> bool:
    """Whether nothing but blanks is left beyond a length: these are cut off silently, and all else is refused."""
    return not text[length:].strip(" ")


_DIGITS = Context(prec=200_000, Emax=999_999, Emin=-999_999, traps=[])
"""More digits than a numeric has: nothing is rounded here by accident."""


def _scale(scale: int) -> Callable[[Any], bool]:
    """Tell numbers with more than so many decimal places; a negative scale is of zeros before the point."""
    unit = Decimal((0, (1,), -scale))

    def changes(value: Any) -> bool:
        exact = value if isinstance(value, Decimal) else Decimal(str(value))
        return exact.is_finite() and exact.quantize(unit, context=_DIGITS) != exact

    return changes


_single = struct.Struct("<f")


def _needs_more_than_real(value: Any) -> bool:
    """Tell numbers that a real does not give back: it has 24 bits, and is spelled with the fewest digits that name it."""
    if value != value or value in (float("inf"), float("-inf")):  # NaN
        return False
    try:
        packed = _single.pack(value)
    except OverflowError:
        return False  # the server refuses it
    (kept,) = _single.unpack(packed)
    for digits in range(1, 10):
        shortest = float(f"{kept:.{digits}g}")
        try:
            if _single.pack(shortest) == packed:
                return bool(shortest != value)
        except OverflowError:
            continue
    return bool(kept != value)


def _has_twins(text: Any) -> bool:
    """Tell JSON in which an object has two members of one name: jsonb keeps the last."""
    found = False

    def members(pairs: list[tuple[str, Any]]) -> None:
        nonlocal found
        found = found or len({name for name, _ in pairs}) != len(pairs)

    try:
        json.loads(text, object_pairs_hook=members, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False  # the server refuses it
    return found
