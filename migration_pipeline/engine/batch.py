"""A batch: items that are written to the target in one transaction, and the result of that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from migration_pipeline.engine.changes import ChangeTransform
from migration_pipeline.engine.transform import Bad, Counts, Outcome, Transform
from migration_pipeline.errors import BadRow, MigrationError

AnyTransform = Transform | ChangeTransform


class Encoder(Protocol):
    """Encodes rows for writing, without I/O and piece by piece, because a batch is far larger than the CPU's cache."""

    def encode(self, outcome: Outcome) -> Any:
        """Encode the rows of some of a batch's items. Raises any exception for one that cannot be."""

    def join(self, pieces: Sequence[Any]) -> Any:
        """Join pieces that `encode` returned into what the target writes; its `size` is in bytes."""


def encode(transform: AnyTransform, encoder: Encoder, outcome: Outcome) -> tuple[Outcome, Any]:
    """Encode the rows of an outcome; returns the outcome without its rows, and the encoded piece.

    A row that cannot be encoded makes its item a bad one.
    """
    try:
        piece = encoder.encode(outcome)
    except Exception:  # which row it was is found below
        good = type(outcome)(transform.row_classes)
        good.bad, good.counts = outcome.bad, outcome.counts
        for line, number in zip(outcome.lines, outcome.numbers, strict=True):
            one = transform.numbered([line], [number])
            try:
                encoder.encode(one)
            except Exception as error:
                good.bad.append(_not_encoded(number, line, error))
                good.counts.loaded -= 1
                good.add(transform.without_rows(line, number))
            else:
                one.counts, one.bad = Counts(), []  # they are in the outcome's already
                good.add(one)
        outcome, piece = good, encoder.encode(good)
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

    The lines are kept until the rows are committed: if the database refuses a batch, each half is made again
    from them.
    """

    def __init__(
        self,
        transform: AnyTransform,
        encoder: Encoder,
        outcome: Outcome,
        pieces: Sequence[Any],
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
        self.known_bad = {bad.number for bad in outcome.bad}
        """Line numbers of items that are counted as bad already."""

    @classmethod
    def of(
        cls, transform: AnyTransform, encoder: Encoder, lines: Sequence[bytes], numbers: Sequence[int]
    ) -> Batch:
        """Make a batch of lines, all at once."""
        outcome, piece = encode(transform, encoder, transform.numbered(lines, numbers))
        return cls(transform, encoder, outcome, [piece])

    @property
    def items(self) -> int:
        """Items in it, bad ones as well."""
        return len(self.lines) + len(self.bad)

    @property
    def size(self) -> int:
        """Bytes that the batch holds in memory, about."""
        encoded: int = self.encoded.size
        return encoded + self.lines.size + sum(len(bad.line) for bad in self.bad)

    def halves(self) -> list[Batch]:
        """Make two batches of half of the items each. It must have at least two items."""
        middle = len(self.lines) // 2
        parts = [slice(None, middle), slice(middle, None)]
        return [self.anew(self.lines[part], self.numbers[part]) for part in parts]

    def anew(self, lines: Sequence[bytes], numbers: Sequence[int]) -> Batch:
        """Make a batch of some of its items."""
        batch = Batch.of(self._transform, self._encoder, lines, numbers)
        batch.bad = [bad for bad in batch.bad if bad.number not in self.known_bad]
        batch.known_bad |= self.known_bad
        return batch

    def without_rows(self) -> Batch:
        """Make a batch of the same items as having no rows any more."""
        outcome = Outcome(self._transform.row_classes)
        pieces = []
        for line, number in zip(self.lines, self.numbers, strict=True):
            rest = self._transform.without_rows(line, number)
            outcome.add(rest)
            pieces.append(self._encoder.encode(rest))
        return Batch(self._transform, self._encoder, outcome, pieces)

    def refused(self, reason: str, table: str | None, sqlstate: str | None) -> Bad:
        """Make the only item of a batch of one a bad one."""
        (number,), (line,) = self.numbers, self.lines
        return Bad(number, line, reason, table, sqlstate)


class Written:
    """The result of writing batches to the target."""

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
        self.deleted = Counter[str]()
        """Rows that had to go, by table."""
        self.nul = 0
        self.superseded = 0
        """Items that were counted as loaded, and for which a newer state is there."""
        self.forgiven: list[Bad] = []
        """Items that were counted as bad, and for which a newer state is there: not summed up."""
        self.items_forgiven = 0
        self.items_refused = 0
        self.refused: list[Bad] = []
        """Items that the database refused, in this one transaction: not summed up."""

    def refuse(self, bad: Bad) -> None:
        """Count an item that the database refused."""
        self.refused.append(bad)
        self.items_refused += 1

    def forgive(self, bad: Bad) -> None:
        """Count an item that is bad, but no longer of interest."""
        self.forgiven.append(bad)
        self.items_forgiven += 1

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
        self.deleted.update(other.deleted)
        self.nul += other.nul
        self.superseded += other.superseded
        self.items_forgiven += other.items_forgiven
        self.items_refused += other.items_refused
