"""The faults that are planted in windows, and what becomes of broken items in the course of a history.

A broken record is about an item that is nowhere else: a right loader sets it aside, and nothing is missing. A broken
item in a NewImage is in the final export, too, unless a later window mends or deletes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import cycle, islice
from random import Random
from typing import Any, NamedTuple

from migration_pipeline.demo.sample_faults import BY_KIND, FAULTS, GOOD_IMAGE, Fault

_DAY = 86_400_000_000  # microseconds

RECORD_FAULTS = (
    Fault("no_keys", "line", "the record has no Keys", r'"Keys":.*?\}\},', ""),
    Fault("no_images", "line", "the record has no image, in a view with both", ',"NewImage":.*', "}"),
    Fault("no_metadata", "line", "the record does not say when it was written", '"Metadata":.*?}},', ""),
    Fault("before_window", "line", "the record was written before the window", r"\d{16}", ""),
    Fault("after_window", "line", "the record was written after the window", r"\d{16}", ""),
    Fault("malformed_record", "line", "a comma is missing between members", ',"NewImage"', '"NewImage"'),
)
ITEM_FAULTS = tuple(fault for fault in FAULTS if fault.stage != "line")


class Planted(NamedTuple):
    """A record of a window about an item that is broken, was broken, or will be."""

    keys: bytes
    before: bytes | None
    """JSON of the item's attributes right before the window, and at its end."""
    after: bytes | None
    fault: Fault | None
    """What is wrong with the record; None if it is right: it mends a broken item, say."""

    def planted_in(self, record: bytes, micros: int) -> bytes:
        """The record as it is planted, from a right one that was written at `micros`."""
        if self.fault not in RECORD_FAULTS:
            return record
        times = {"before_window": str(micros - _DAY), "after_window": str(micros + _DAY)}
        replacement = times.get(self.fault.kind, self.fault.replacement)
        return re.sub(self.fault.pattern, replacement, record.decode(), count=1).encode()


class Broken:
    """The broken items of a history: what each window has of them, and what they are in the end."""

    def __init__(self, windows: int, seed: int) -> None:
        self.windows: list[list[Planted]] = [[] for _ in range(windows)]
        self.base: dict[int, bytes | None] = {}
        """By position in the base: those that a window mended or deleted (None)."""
        self.new: list[tuple[bytes, Fault | None]] = []
        """Those of the final export that no base has, with what is wrong with them."""
        self._random = Random(f"broken {seed}")

    def heal(self, kinds: Mapping[int, str]) -> None:
        """Have windows mend a third of the base's broken items, by position, and delete a third.

        An item whose line is broken stays: no window can say that it is another one.
        """
        for turn, (position, kind) in enumerate(kinds.items()):
            fault = BY_KIND[kind]
            if fault.stage != "line" and turn % 3:
                after = _good(position) if turn % 3 == 1 else None
                window = self._random.choice(self.windows)
                window.append(Planted(_keys(position), fault.image(position), after, None))
                self.base[position] = after

    def plant(self, bad: int, view: str, first: int) -> None:
        """Plant `bad` faults, of each kind one before any comes again, in items with numbers from `first`."""
        for number, fault in enumerate(islice(cycle(window_faults(view)), bad), first):
            if fault in RECORD_FAULTS:
                self._random.choice(self.windows).append(Planted(_keys(number), None, _good(number), fault))
            else:
                self._live(number, fault)

    def _live(self, number: int, fault: Fault) -> None:
        """Give a broken item a life: it comes broken, or breaks, or is mended or deleted after that."""
        good, broken = _good(number), fault.image(number)
        lives: tuple[list[tuple[bytes | None, Fault | None]], ...] = (
            [(broken, fault)],
            [(good, None), (broken, fault)],
            [(broken, fault), (good, None)],
            [(broken, fault), (None, None)],
        )
        life = lives[number % len(lives) if len(self.windows) > 1 else 0]
        before, wrong = None, None
        for window, (after, wrong) in zip(self._some(len(life)), life, strict=True):
            self.windows[window].append(Planted(_keys(number), before, after, wrong))
            before = after
        if before is not None:
            self.new.append((before, wrong))

    def _some(self, number: int) -> Iterable[int]:
        return sorted(self._random.sample(range(len(self.windows)), number))


def window_faults(view: str) -> list[Fault]:
    """All faults of windows with a view; in NEW_IMAGE a record without images is right: that of a delete."""
    other = "no_metadata" if view != "NEW_IMAGE" else "no_images"
    return [*(fault for fault in RECORD_FAULTS if fault.kind != other), *ITEM_FAULTS]


def _keys(number: int) -> bytes:
    return b'{"PK":{"S":"CUSTOMER#broken-%d"},"SK":{"S":"PROFILE"}}' % number


def _good(number: int) -> bytes:
    return GOOD_IMAGE.replace("#broken", f"#broken-{number}").encode()


def entry(file: str, line: int, fault: Fault | Mapping[str, Any]) -> dict[str, object]:
    """What the list of planted faults says of one, as for those of the base."""
    told = fault if isinstance(fault, Mapping) else fault._asdict()
    return {"file": file, "line": line, **{name: told[name] for name in ("kind", "reason", "stage")}}
