"""Names items that no rule takes by the pattern of their keys, which holds no values, and says which rules can never match."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted_that

MAX_PATTERNS = 50
"""Distinct key patterns kept of unrouted items; the rest is counted under one."""


def key_pattern(
    attributes: Sequence[str], values: Sequence[Any], types: Mapping[str, str] | None = None
) -> str:
    """Describe an item's keys without their values: ``PK=CUSTOMER#…, SK=…``; `types` are those of attributes that are no texts.

    Only upper-case words before a ``#`` survive, as single-table designs use them to name entity types. A
    key that is one word may do so, too (``SK=PROFILE``), but nothing tells it from a name (``PK=ALICE``). An attribute
    that is there as another type is shown as that: ``kind=(N)``.
    """
    return ", ".join(
        f"{name}={_shape(value, (types or {}).get(name, 'none'))}"
        for name, value in zip(attributes, values, strict=False)
    )


def _shape(value: Any, wire: str) -> str:
    if isinstance(value, (bool, Decimal)):
        return "(BOOL)" if isinstance(value, bool) else "(N)"
    if not value:
        return f"({wire})" if wire != "S" else "…"  # an empty text
    head, separator, _ = value.partition("#")
    named = separator and len(head) <= 32 and head.replace("_", "").isalpha()
    return f"{head}#…" if named and head.isupper() and head.isascii() else "…"


def rules_that_cannot_hold(profile: Profile, unrouted: Mapping[str, int]) -> list[str]:
    """Warn of attributes whose type in this export matches no rule's condition, by the key patterns of unrouted items."""
    said = []
    for name in profile.routing_attributes:
        wanted = profile.wire_types(name)
        counts = Counter[str]()
        for pattern, count in unrouted.items():
            for wire in WAYS_OUT:
                if f"{name}=({wire})" in pattern and wire not in wanted:
                    counts[wire] += count
        said += [
            f"{counted_that(count, 'item', 'that no rule takes has', 'that no rule takes have')} {name!r} as {wire}, but the profile's rules compare it with "
            f"{' or '.join(sorted(wanted))}, so none of them can match; {WAYS_OUT[wire].format(name=name)}"
            for wire, count in counts.items()
        ]
    return said


WAYS_OUT = {
    "N": "write a number: {name}=1",
    "BOOL": "write a boolean: {name}=True",
    **dict.fromkeys(("B", "NULL", "M", "L", "SS", "NS", "BS"), "name another attribute"),
}
"""What a rule says of an attribute of a type."""


def count_pattern(patterns: Counter[str], pattern: str, count: int = 1) -> None:
    """Count a key pattern, keeping at most `MAX_PATTERNS` distinct ones."""
    if pattern not in patterns and len(patterns) >= MAX_PATTERNS:
        pattern = "other patterns"
    patterns[pattern] += count
