"""What befalls the items of a sample after T0, as short stories, and the states that the items get by them.

A story is of one item, or of two that have to do with each other. Its text has a letter for each write, in the order of
their times; what a blank parts falls into different windows (while there are enough of them)::

    U  an update                         L  the item leaves its row (Changes.leave)
    D  a delete                          T  another item takes it (Changes.take)
    I  a put: of a new item, if the      l  the other item leaves it
       story begins so; else again       t  the first one takes it again
    B  an update back to what was at T0  S  two items of the base swap (Changes.swap): two writes
    K  a write that changes nothing

    E  an update, e  an insert, x  a delete, all three in the first window, but before T0: the base has them already
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from random import Random
from typing import NamedTuple

import msgspec

from migration_pipeline.demo.sample_changes import Changes
from migration_pipeline.demo.sample_shop import Attributes

EARLY = "Eex"
"""Writes before T0."""
_DECK = (
    *("U",) * 12, *("I",) * 5, *("D",) * 4, *("D I", "U U U", "LT") * 2,
    "UU UUU", "U D", "U B", "K", "DI", "ID", "IU", "I U D", "I D I", "TL", "L T", "LT lt", "S",
)  # fmt: skip
"""The stories in their shares."""

_EARLY_DECK = ("E", "E U", "E D", "e", "x")
"""Comes with the first of ten decks. The first hundred writes have all stories.

What is written before T0 is not written again in the same window: the window would not tell what the base has of it.
"""

_OF_NEW_ITEMS = tuple(story for story in _DECK if story[0] == "I")


def writes_of(ops: str) -> int:
    """Writes after T0."""
    return sum(2 if op == "S" else op not in EARLY for op in ops if op != " ")


def of_the_base(story: str) -> int:
    """How many items of the base a story is of: 0, 1 or 2."""
    return 2 if story == "S" else story[0] not in "Ix"


class Dealt(NamedTuple):
    """The stories of a history."""

    stories: list[str]
    windows: list[list[tuple[int, str]]]
    """For each window, which story has which writes in it."""


def deal(changes: int, windows: int, base: int, random: Random) -> Dealt:
    """Deal stories of `changes` writes after T0 to the windows. They are of at most `base` items of the base."""
    dealt = Dealt([], [[] for _ in range(windows)])
    for story in _stories(changes, windows, base, random):
        number = len(dealt.stories)
        dealt.stories.append(story)
        parts = story.split()
        chosen = _some(windows, len(parts), story[0] in EARLY, random)
        for window in dict.fromkeys(chosen):
            ops = "".join(part for part, into in zip(parts, chosen, strict=True) if into == window)
            dealt.windows[window].append((number, ops))
    return dealt


def _stories(changes: int, windows: int, base: int, random: Random) -> Iterator[str]:
    """Shuffle the deck again and again, until the stories have all writes."""
    for turn in count():
        deck = _DECK if turn % 10 else _DECK + _EARLY_DECK
        for story in random.sample(deck, len(deck)):
            if windows == 1 and story[0] in EARLY:
                story = story[0]
            if base < of_the_base(story):
                story = random.choice(_OF_NEW_ITEMS)
            if writes_of(story) > changes:
                story = "U" if base else "I"
            if not changes:
                return
            changes -= writes_of(story)
            base -= of_the_base(story)
            yield story


def _some(windows: int, parts: int, first: bool, random: Random) -> list[int]:
    """A window for each part of a story, in ascending order; the last one is for all parts that are too many."""
    if parts == 1:
        return [0 if first else int(random.random() * windows)]
    different = min(parts, windows)
    chosen = (
        [0, *random.sample(range(1, windows), different - 1)]
        if first
        else random.sample(range(windows), different)
    )
    chosen.sort()
    return chosen + chosen[-1:] * (parts - different)


class Change(NamedTuple):
    """What a window tells of an item: JSON of all attributes right before the window, and of the last write in it."""

    before: bytes | None
    after: bytes | None
    write: int
    """Which of the story's writes in the window was the item's last, from 0."""


class Items:
    """The items that stories are of: each has the number 2 × its story, or one more for the second item."""

    def __init__(self, changes: Changes) -> None:
        self.now: dict[int, bytes] = {}
        """The state of each, in JSON; those that are not there do not exist."""
        self.changes = changes
        self._first: dict[int, bytes] = {}
        self._before: dict[int, bytes | None] = {}

    def add(self, item: int, state: bytes, story: str) -> None:
        """Take an item of the base, for a story. What it is at first is kept only if a write goes back to that."""
        self.now[item] = state
        if not set(story).isdisjoint("BITt"):
            self._first[item] = state

    def play(self, story: int, ops: str) -> Iterator[Change]:
        """Apply a story's writes in one window; give the changes of both items, if they have any."""
        one, other = 2 * story, 2 * story + 1
        self._before = {one: self.now.get(one), other: self.now.get(other)}
        last: dict[int, int] = {}
        for turn, op in enumerate(ops):
            for item in self._write(op, one, other):
                last[item] = turn + (item == other and op == "S")
        for item, write in last.items():
            before, after = self._before[item], self.now.get(item)
            if before is not None or after is not None:
                yield Change(before, after, write)

    def _write(self, op: str, one: int, other: int) -> tuple[int, ...]:
        """Apply one write, or the two of a swap; return the items written."""
        if op in EARLY:
            self._early(op, one)
        elif op == "S":
            states = self.changes.swap(_decoded(self.now[one]), _decoded(self.now[other]))
            self.now[one], self.now[other] = map(msgspec.json.encode, states)
            return one, other
        elif op in "Tl":
            self._set(
                other, self.changes.take(_decoded(self._first[one])) if op == "T" else self._left(other)
            )
            return (other,)
        else:
            self._set(one, self._written(op, one))
        return (one,)

    def _written(self, op: str, item: int) -> Attributes | bytes | None:
        """The state of an item after a write to it alone."""
        if op == "D":
            return None
        if op in "BK":
            return self._first[item] if op == "B" else self.now[item]
        if op == "L":
            return self._left(item)
        if op == "I" and item not in self._first:
            self._first[item] = msgspec.json.encode(self.changes.new())
            return self._first[item]
        return self.changes.update(_decoded(self.now[item] if op == "U" else self._first[item]))

    def _left(self, item: int) -> Attributes | None:
        return self.changes.leave(_decoded(self.now[item]))

    def _early(self, op: str, item: int) -> None:
        """Find what was right before the window, while the base has what came of it."""
        older = None
        if op != "e":
            older = self.changes.new() if op == "x" else self.changes.update(_decoded(self.now[item]))
        self._before[item] = None if older is None else msgspec.json.encode(older)

    def _set(self, item: int, state: Attributes | bytes | None) -> None:
        if state is None:
            self.now.pop(item, None)
        else:
            self.now[item] = state if isinstance(state, bytes) else msgspec.json.encode(state)


def _decoded(state: bytes) -> Attributes:
    return _decoder.decode(state)


_decoder = msgspec.json.Decoder(dict[str, dict[str, object]])
