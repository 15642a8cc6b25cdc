"""Spells values whose JSON form PostgreSQL would not read as the column's type."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timezone, tzinfo
from decimal import Decimal
from typing import Any, get_origin

import msgspec

from migration_pipeline.errors import BadRow
from migration_pipeline.profile.row import Column, Table, element_type
from migration_pipeline.targets.fits import Fit

Spell = Callable[[Any], Any]
"""Turns a value, which is not None, to what the JSON encoder is given."""

_document = msgspec.json.Encoder(decimal_format="number")


def bytea(value: bytes) -> str:
    r"""Spell bytes as PostgreSQL's hex format: ``\x00ff``."""
    return "\\x" + value.hex()


def array(element: Callable[[Any], str]) -> Callable[[Any], str]:
    """Make a function that spells an array literal; a set is sorted, so that equal sets are equal rows."""

    def spell(values: Any) -> str:
        ordered = sorted(values) if isinstance(values, (set, frozenset)) else values
        return "{" + ",".join("NULL" if v is None else _quoted(element(v)) for v in ordered) + "}"

    return spell


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def document(value: Any) -> str:
    """Spell a document as JSON text, numbers with all their digits. Raises ValueError for NaN and infinity."""
    text = _document.encode(value).decode()
    # JSON has neither: the encoder makes null of a float's, and a bare word of a Decimal's.
    if ("null" in text or "NaN" in text or "Infinity" in text) and not _finite(value):
        raise ValueError("a document holds NaN or infinity, which JSON has not")
    return text


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, (list, tuple, set, frozenset)) else True


def scalar(value: Any) -> str:
    """Spell a number, text, time or UUID as PostgreSQL reads it inside an array."""
    return value if isinstance(value, str) else str(value)


def utc(value: Any) -> Any:
    """Spell a time in UTC and without an offset, which a column without time zone would ignore.

    One with a time zone reads it as UTC, too, as all our transactions do.
    """
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc).replace(tzinfo=None).isoformat()
    return value


def whole_minutes(zone: tzinfo | None) -> bool:
    """Whether the JSON encoder spells each offset of a zone: it knows hours and minutes, and old local times have seconds."""
    return zone is None or (isinstance(zone, timezone) and zone.utcoffset(None).seconds % 60 == 0)


def spelling_of(column: Column, fit: Fit | None = None) -> Callable[[Any], Any] | None:
    """The function that turns a column's values to text; None where their JSON form will do."""
    bare = column.python_type
    staged = fit.staged if fit else column.pg_type
    if staged in ("json", "jsonb"):
        return document
    if get_origin(bare) in (frozenset, set, list):
        if element_type(bare) is bytes:
            return array(bytea)
        return array((lambda value: scalar(utc(value))) if fit and fit.utc else scalar)
    if bare is bytes:
        return bytea
    # JSON has no NaN or infinity, and no integers beyond 64 bits in this encoder; text has.
    if bare is float or (bare is int and staged.startswith("numeric")):
        return scalar
    return utc if fit and fit.utc else None


def spellings_of(table: Table, fits: Mapping[str, Fit], time: Spell | None = None) -> dict[str, Spell | None]:
    """The functions that spell a table's columns, by field; `time` spells times that need no other spelling."""
    return {
        column.field: _named(spelling_of(column, fits.get(column.name)), column, table)
        or (time if column.python_type is datetime else None)
        for column in table.columns
    }


def _named(spell: Spell | None, column: Column, table: Table) -> Spell | None:
    """Let a document's fault name its column."""
    if spell is not document:
        return spell

    def named(value: Any) -> str:
        try:
            return document(value)
        except ValueError as error:
            raise BadRow(f"column {column.name}: {error}", table.qualified) from None

    return named
