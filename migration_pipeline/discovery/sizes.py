"""Estimates the size of an export in PostgreSQL, if each entity type becomes a table as `scaffold` writes it.

From PostgreSQL's documentation (Database Page Layout, and TOAST): a row takes 4 bytes for its pointer and 24 for its header, rounded
up to 8, a text or document one byte more than its length up to 126, four beyond. Values above 2 kB are compressed or
moved out of the row, which is not looked at here: of long texts, the estimate is the most they take.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from migration_pipeline.discovery.attributes import Attribute
from migration_pipeline.discovery.survey import EntityType

POINTER, HEADER, ALIGNED = 4, 23, 8
"""Bytes of a row beside its columns; the header, with a bit for each column that may be NULL, is rounded up."""

FIXED = {"bigint": 8, "timestamptz": 8, "date": 4, "boolean": 1, "uuid": 16}
"""Bytes of a value, whatever it is."""

KEYS = ("bigint", "uuid")
"""Those that a key keeps; times stay texts in it, in which different keys stay different."""

SHORT = 126
"""Bytes of a value of variable length up to which its length takes one byte."""

SCALAR = 10
"""Bytes more that a number or text takes which is alone in a jsonb, as of an attribute whose type differs."""

PADDING = 3.5
"""Bytes that are left free, on average, before a number or time that follows a text: it begins at a multiple of 8."""

ENTRY = 12
"""Bytes of a key in an index beside the key: its pointer and its header."""

FULL = 0.7
"""Share of an index's pages that is full, when its keys come in any order."""


class Estimate(msgspec.Struct, frozen=True):
    """Bytes in PostgreSQL."""

    rows: float = 0.0
    keys: float = 0.0
    """The index of the primary key."""

    @property
    def total(self) -> int:
        """Of table and index."""
        return round(self.rows + self.keys)


def estimate(found: EntityType) -> Estimate:
    """Estimate the table of an entity type, for all items that the export is taken to have of it."""
    constant = {name for name in found.attributes if (mark := found.mark_of(name)) and mark[1]}
    names = [name for name in found.attributes if name not in constant]
    columns = sum(_column(found, found.attributes[name]) for name in names)
    key = sum(_column(found, found.attributes[name]) for name in found.key if name in found.attributes)
    header = _aligned(HEADER + len(names) / 8)
    return Estimate(
        found.estimate * (POINTER + _aligned(header + columns)),
        found.estimate * (ENTRY + _aligned(key)) / FULL,
    )


def together(estimates: Iterable[Estimate]) -> Estimate:
    """Add estimates up."""
    made = list(estimates)
    return Estimate(sum(each.rows for each in made), sum(each.keys for each in made))


def _column(found: EntityType, attribute: Attribute) -> float:
    """Bytes of an attribute's column, on average over all rows; a NULL takes none."""
    if not attribute.present:
        return 0.0
    share = attribute.present / found.items
    column = attribute.fit.column
    if column in FIXED and (attribute.name not in found.key or column in KEYS):
        return share * (FIXED[column] + (PADDING if FIXED[column] == ALIGNED else 0.0))
    prefix = found.mark_of(attribute.name)
    length = attribute.stored / attribute.present - (
        len(prefix[0].encode()) if prefix and not prefix[1] else 0
    )
    if column == "jsonb" and not {"M", "L"} & attribute.types.keys():
        length += SCALAR
    return share * (length + (1 if length <= SHORT else 4))


def _aligned(size: float) -> float:
    return -(-size // ALIGNED) * ALIGNED
