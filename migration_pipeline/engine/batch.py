"""A batch: items on their way into the target in one transaction, and what became of them there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from migration_pipeline.engine.transform import Bad, Counts, Outcome, Transform
from migration_pipeline.errors import BadRow, MigrationError
from migration_pipeline.profile.row import Row


class Encoder(Protocol):
    """Makes rows ready to be written, piece by piece, as computation: a batch is many times what the CPU's cache holds."""

    def encode(self, rows: dict[type[Row], list[Row]]) -> Any:
        """Encode some of a batch's rows. Raises any exception for one that cannot be."""

    def join(self, pieces: Sequence[Any]) -> Any:
        """Make what the target writes of pieces that `encode` gave; its `size` is in bytes."""


def encode(transform: Transform, encoder: Encoder, outcome: Outcome) -> tuple[Outcome, Any]:
    """Encode what lines became; gives it without the rows, which are in the piece.

    A row that cannot be encoded makes its item a bad one.
    """
    try:
        piece = encoder.encode(outcome.rows)
    except Exception:  # which row it was is found below
        good = Outcome(transform.row_classes)
        good.bad, good.counts = outcome.bad, outcome.counts
        for line, number in zip(outcome.lines, outcome.numbers, strict=True):
            one = transform.numbered([line], [number])
            try:
                encoder.encode(one.rows)
            except Exception as error:
                good.bad.append(_not_encoded(number, line, error))
                good.counts.loaded -= 1
            else:
                one.counts = Counts()  # they are in the outcome's counts already
                good.add(one)
        outcome, piece = good, encoder.encode(good.rows)
    outcome.rows = {}
    return outcome, piece


def _not_encoded(number: int, line: bytes, error: Exception) -> Bad:
    if isinstance(error, BadRow):
        return Bad(number, line, str(error), error.table)
    return Bad(number, line, f"its row cannot be encoded: {type(error).__name__}")


class TooManyBad(MigrationError):  # noqa: N818  # a verdict on a file
    """A batch holds more bad items than its file may have; they are in `bad`."""

    def __init__(self, bad: list[Bad]) -> None:
        super().__init__("too many bad items")
        self.bad = bad


class Batch:
    """Items that became rows, encoded, with the lines they came from.

    The lines are kept until the rows are committed: of a batch that the database refuses, each half is made
    anew from them.
    """

    def __init__(
        self, transform: Transform, encoder: Encoder, outcome: Outcome, pieces: Sequence[Any]
    ) -> None:
        self._transform = transform
        self._encoder = encoder
        self.encoded: Any = encoder.join(pieces)
        self.numbers = outcome.numbers
        self.lines = outcome.lines
        self.bad = outcome.bad
        """Items found bad before the database saw them."""
        self.counts = outcome.counts
        self.room = 0
        """How many bad items more the file may have."""

    @classmethod
    def of(cls, transform: Transform, encoder: Encoder, lines: list[bytes], numbers: Sequence[int]) -> Batch:
        """Make a batch of lines, all at once."""
        outcome, piece = encode(transform, encoder, transform.numbered(lines, numbers))
        return cls(transform, encoder, outcome, [piece])

    @property
    def size(self) -> int:
        """Bytes that the batch holds in memory, about."""
        encoded: int = self.encoded.size
        return encoded + sum(map(len, self.lines)) + sum(len(bad.line) for bad in self.bad)

    def halves(self) -> list[Batch]:
        """Make the batch anew in two parts of as many items each, or one more. It must have two items or more."""
        middle = len(self.lines) // 2
        parts = [slice(None, middle), slice(middle, None)]
        return [self.anew(self.lines[part], self.numbers[part]) for part in parts]

    def anew(self, lines: list[bytes], numbers: list[int]) -> Batch:
        """Make a batch of some of its items."""
        return Batch.of(self._transform, self._encoder, lines, numbers)

    def refused(self, reason: str, table: str | None, sqlstate: str | None) -> Bad:
        """Make the only item of a batch of one a bad one."""
        (number,), (line,) = self.numbers, self.lines
        return Bad(number, line, reason, table, sqlstate)


class Written:
    """What became of batches in the target."""

    def __init__(self) -> None:
        self.rows = Counter[str]()
        """Rows by table."""
        self.collisions = Counter[str]()
        """Rows left out, by table, because another item of the same batch made the same key."""
        self.changed = Counter[str]()
        """Rows that were there with other values, by table, …"""
        self.unchanged = Counter[str]()
        """… that were there as they are, …"""
        self.newer = Counter[str]()
        """… and that gave way to one of a greater version."""
        self.rounded = Counter[str]()
        """Values that a column changed, as the Row allows, by table and column."""
        self.nul = 0
        self.items_refused = 0
        self.refused: list[Bad] = []
        """Items that the database refused, in this one transaction: not summed up."""

    def refuse(self, bad: Bad) -> None:
        """Count an item that the database refused."""
        self.refused.append(bad)
        self.items_refused += 1

    def copy(self) -> Written:
        """The same once more, to go on with."""
        copy = Written()
        copy.add(self)
        return copy

    def add(self, other: Written) -> None:
        """Sum up."""
        self.rows.update(other.rows)
        self.collisions.update(other.collisions)
        self.changed.update(other.changed)
        self.unchanged.update(other.unchanged)
        self.newer.update(other.newer)
        self.rounded.update(other.rounded)
        self.nul += other.nul
        self.items_refused += other.items_refused
