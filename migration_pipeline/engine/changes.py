"""Compiles a profile to a function from the records of a window to changes of rows. Nothing here does I/O.

A record has an item's state before the window and at its end. Both become rows as an item of a full export does: those of the
state before have to go, unless those of the state at the end are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import msgspec

from migration_pipeline.engine.transform import Bad, Counts, Dialect, Outcome, Transform
from migration_pipeline.errors import BadItem
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Row

NO_ROW = "deleted: it had no row"
"""The reason under which records of deleted items that had no row are counted."""


class Change(Protocol):
    """What a record says of its item."""

    @property
    def item(self) -> str:
        """Digest of the item's primary key."""

    @property
    def written(self) -> int:
        """When it was written last."""

    @property
    def old(self) -> bytes | None:
        """Its state before the window, as a line of a full export."""

    @property
    def new(self) -> bytes | None:
        """Its state at the end of the window."""


class Record(msgspec.Struct):
    """A record of a batch, with the rows that its item had and has."""

    number: int
    """Its line in the file, from 1."""
    item: str
    written: int
    old: list[Row] = []
    new: list[Row] = []
    idle: bool = False
    """Whether there is nothing to do: neither state makes a row, and nothing is wrong with them."""


class ChangeOutcome(Outcome):
    """The result of transforming records. `rows` are those of the states at the end."""

    def __init__(self, row_classes: Iterable[type[Row]]) -> None:
        super().__init__(row_classes)
        self.records: list[Record] = []

    def add(self, other: Outcome) -> None:
        """Add the outcome of other records."""
        super().add(other)
        if isinstance(other, ChangeOutcome):
            self.records += other.records


class _Made(Outcome):
    """An outcome that knows which item made which rows."""

    def __init__(self, row_classes: Iterable[type[Row]]) -> None:
        super().__init__(row_classes)
        self.made: dict[int, list[Row]] = {}
        """By line number; items that made none are left out."""

    def add(self, other: Outcome) -> None:
        super().add(other)
        if isinstance(other, _Made):
            self.made.update(other.made)


class _Images(Transform):
    """Turns images into rows."""

    outcome_class = _Made

    def _collect(self, route: int, results: list[Any], outcome: Outcome, numbers: Sequence[int]) -> None:
        super()._collect(route, results, outcome, numbers)
        if isinstance(outcome, _Made):
            for number, result in zip(numbers, results, strict=True):
                if result is not None:
                    outcome.made[number] = list(result) if isinstance(result, (list, tuple)) else [result]

    def rows(self, images: Sequence[tuple[int, bytes]]) -> _Made:
        """Turn images into rows."""
        outcome = self.numbered([line for _, line in images], [number for number, _ in images])
        assert isinstance(outcome, _Made)  # noqa: S101  # for the type checker
        return outcome


class ChangeTransform:
    """A compiled profile: a function from records to a `ChangeOutcome`, in place of a `Transform`."""

    def __init__(
        self,
        profile: Profile,
        dialect: Dialect,
        read: Callable[[bytes], Change],
        options: Options | None = None,
    ) -> None:
        self._images = _Images(profile, dialect, options)
        self._read = read
        self.row_classes = self._images.row_classes

    def __call__(self, lines: Sequence[bytes], first: int = 1) -> ChangeOutcome:
        """Turn records, numbered from `first`, into changes, whatever is wrong with some of them."""
        return self.numbered(lines, range(first, first + len(lines)))

    def numbered(self, lines: Sequence[bytes], numbers: Sequence[int]) -> ChangeOutcome:
        """Turn records of any numbers into changes."""
        outcome, changes = ChangeOutcome(self.row_classes), []
        for line, number in zip(lines, numbers, strict=True):
            try:
                changes.append((number, line, self._read(line)))
            except BadItem as error:
                outcome.bad.append(Bad(number, line, str(error)))
        self._change(changes, outcome)
        return outcome

    def without_rows(self, line: bytes, number: int) -> ChangeOutcome:
        """Turn a record whose rows cannot be written into one whose item has none any more."""
        outcome = self.numbered([line], [number])
        outcome.rows = {row_class: [] for row_class in self.row_classes}
        outcome.bad, outcome.counts = [], Counts()
        for record in outcome.records:
            record.new, record.idle = [], False
        return outcome

    def _change(self, changes: Sequence[tuple[int, bytes, Change]], outcome: ChangeOutcome) -> None:
        olds = [(number, change.old) for number, _, change in changes if change.old is not None]
        news = [(number, change.new) for number, _, change in changes if change.new is not None]
        # What cannot be read of the state before the window never was a row.
        before, made = self._images.rows(olds), self._images.rows(news)
        lines = {number: line for number, line, _ in changes}
        outcome.bad += [msgspec.structs.replace(bad, line=lines[bad.number]) for bad in made.bad]
        outcome.rows, outcome.counts = made.rows, made.counts
        wrong = {bad.number for bad in [*before.bad, *made.bad]}
        for number, line, change in changes:
            old, new = before.made.get(number, []), made.made.get(number, [])
            if change.new is None and old:
                outcome.counts.loaded += 1
            elif change.new is None:
                outcome.counts.ignored[NO_ROW] += 1
            idle = not (old or new or number in wrong)
            outcome.records.append(Record(number, change.item, change.written, old, new, idle))
            outcome.lines.append(line)
            outcome.numbers.append(number)
