"""The faults that are planted in a sample: each breaks one item in one known way."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from heapq import nsmallest
from random import Random
from typing import NamedTuple

from migration_pipeline.errors import UsageError
from migration_pipeline.units import counted

_WANTED = {"customer", "order", "line"}
"""Kinds of items that become rows: a broken one of another kind would be missed by nobody."""


class Fault(NamedTuple):
    """One way to break an item: where a loader must notice, why, and what of a good line becomes what."""

    kind: str
    stage: str
    reason: str
    pattern: str
    replacement: str

    def line(self, position: int) -> bytes:
        """The broken line, under a key that nothing else has."""
        good = _GOOD_LINE.replace("#broken", f"#broken-{position}")
        bad = re.sub(self.pattern, lambda match: self.replacement.replace("&", match[0]), good, count=1)
        return bad.encode("utf-8", "surrogateescape") + b"\n"

    def image(self, position: int) -> bytes:
        """The attributes of the broken item alone, as a window has them; for faults of items, not of lines."""
        return self.line(position)[len(_OPEN) : -len("}\n")]


_GOOD_LINE = (
    '{"Item":{"PK":{"S":"CUSTOMER#broken"},"SK":{"S":"PROFILE"},"name":{"S":"Mallory"},'
    '"createdAt":{"S":"2023-02-28T12:00:00Z"},"newsletter":{"BOOL":true},"balance":{"N":"12.5"},'
    '"loyaltyPoints":{"N":"7"},"fingerprint":{"B":"q83vEjRWeJA="}}}'
)
_OPEN = '{"Item":'
GOOD_IMAGE = _GOOD_LINE[len(_OPEN) : -1]
"""The attributes of the item that faults break, with nothing broken."""

_NAME = '"name":{"S":"Mallory"}'
# In a replacement, & is what the pattern matched, and a lone surrogate the byte that no UTF-8 has.
FAULTS = (
    Fault("malformed_json", "line", "a comma is missing between attributes", ',"SK"', '"SK"'),
    Fault("truncated_line", "line", "the line ends in the middle of the item", '"createdAt".*', '"crea'),
    Fault("not_an_object", "line", "the line is an array", ".*", "[&]"),
    Fault("no_item", "line", "the object has an 'item', but no 'Item'", "Item", "item"),
    Fault("invalid_utf8", "line", "the name holds a byte of Latin-1", "Mallory", "Mallor\udcfd"),
    Fault("lone_surrogate", "decode", "the name holds half an emoji", "Mallory", "& \\ud83d"),
    Fault("duplicate_attribute", "decode", "there are two names", _NAME, '&,"name":{"S":"M."}'),
    Fault("wrong_type", "decode", "the name is a number", _NAME, '"name":{"N":"42"}'),
    Fault("not_a_number", "decode", "the balance has a decimal comma", "12.5", "12,5"),
    Fault("missing_required", "decode", "the name is missing", _NAME + ",", ""),
    Fault("bad_base64", "decode", "the fingerprint is not base64", "q83vEjRWeJA=", "not*base64!"),
    Fault("bad_datetime", "decode", "createdAt is the 30th of February", "02-28", "02-30"),
    Fault("null_required", "decode", "the name is NULL", _NAME, '"name":{"NULL":true}'),
    Fault("nul_character", "database", "the name holds U+0000", "Mallory", "&\\u0000"),
    Fault("integer_out_of_range", "database", "loyaltyPoints is 2^63", '"7"', f'"{2**63}"'),
)

BY_KIND = {fault.kind: fault for fault in FAULTS}


def plant(mix: Iterable[tuple[str, int]], items: int, bad: int, seed: int) -> dict[int, Fault]:
    """The faults by position, in ascending order; each kind comes once before any comes again."""
    random = Random(f"faults {seed}").random
    wanted = (position for position, (kind, _) in enumerate(mix) if kind in _WANTED)
    chosen = nsmallest(bad, wanted, key=lambda _: random()) if bad else []
    if bad != len(chosen):
        raise UsageError(
            f"{counted(items, 'item')} can hold at most {counted(len(chosen), 'bad one')}, not {bad:,}."
        )
    return dict(sorted((position, FAULTS[turn % len(FAULTS)]) for turn, position in enumerate(chosen)))


def listed(faults: dict[int, Fault], names: list[str], ranges: list[range]) -> Iterator[dict[str, object]]:
    """What bad-items.jsonl says of each fault, in the order of the files and their lines."""
    ends = [positions.stop for positions in ranges]
    for position, fault in faults.items():
        index = bisect_right(ends, position)
        place = {"file": names[index], "line": position - ranges[index].start + 1}
        yield {**place, "kind": fault.kind, "reason": fault.reason, "stage": fault.stage}
