"""Loads one export file: lines → rows → batches → target, and the account of it.

The order of steps is what the promises rest on: every batch is one transaction; the last batch is held
back until the file is verified against its manifest and every item is accounted for; it commits together
with the file's receipt. So a receipt is there exactly if the whole file is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec

from migration_pipeline.engine.report import FileReport, Progress
from migration_pipeline.engine.transform import UNROUTED, Transform, count_pattern, key_pattern
from migration_pipeline.errors import BadItem, MigrationError
from migration_pipeline.row import Row

PROGRESS_SECONDS = 5.0
"""Seconds between two calls of the progress hook: often enough to see life, seldom enough to keep logs short."""


class LoadSettings(msgspec.Struct, frozen=True):
    """What an operator may tune. None of it changes the result."""

    batch_items: int = 10_000
    """Items a transaction. Larger batches commit less often; smaller ones need less memory."""


class Source(Protocol):
    """One file: lists of lines, then the check that they were all there."""

    @property
    def bytes_read(self) -> int:
        """Compressed bytes read so far."""

    @property
    def md5(self) -> str:
        """base64(MD5) of the compressed bytes read so far."""

    def __iter__(self) -> Iterator[list[bytes]]:
        """Yield the file's lines in lists."""

    def verify(self) -> None:
        """Raise `MigrationError` unless the file was complete and is the one that was promised."""


class Target(Protocol):
    """Where rows go. `encode` is computation, `write` is one transaction."""

    def encode(self, rows: dict[type[Row], list[Row]]) -> Any:
        """Make a batch ready to be written; the answer has `rows` (by table) and `collisions`."""

    def write(self, encoded: Any, receipt: FileReport | None = None) -> None:
        """Write a batch, and with the last one the file's receipt, in one transaction."""


class Batch:
    """Items on their way to one transaction."""

    def __init__(self, row_classes: Iterable[type[Row]]) -> None:
        self.rows: dict[type[Row], list[Row]] = {row_class: [] for row_class in row_classes}
        self.items = 0

    def add(self, rows: Iterable[Row]) -> None:
        """Add the rows of one item."""
        for row in rows:
            self.rows[row.__class__].append(row)
        self.items += 1


class FileLoad:
    """One file on its way into the target; `run` does it all and returns the account."""

    def __init__(
        self,
        name: str,
        items: int,
        source: Source,
        transform: Transform,
        target: Target,
        settings: LoadSettings = LoadSettings(),  # noqa: B008  # frozen
        on_progress: Callable[[Progress], None] = lambda _: None,
        progress_seconds: float = PROGRESS_SECONDS,
    ) -> None:
        self.name = name
        self.items = items
        self._source = source
        self._transform = transform
        self._target = target
        self._settings = settings
        self._on_progress = on_progress
        self._progress_seconds = progress_seconds
        self._report = FileReport()
        self._taken = Counter[int]()
        self._patterns = Counter[str]()
        self._empty = Counter[int]()

    def run(self) -> FileReport:
        """Load the file. Raises `MigrationError` with the file's name; nothing is recorded then."""
        started = time.monotonic()
        due = started + self._progress_seconds
        batch = Batch(self._transform.row_classes)
        for lines in self._source:
            # A megabyte of small items may fill several batches.
            for line in lines:
                self._take(line, batch)
                if batch.items >= self._settings.batch_items:
                    self._write(batch)
                    batch = Batch(self._transform.row_classes)
            now = time.monotonic()
            if now >= due:
                due = now + self._progress_seconds
                self._on_progress(
                    Progress(self._report.items, self.items, self._source.bytes_read, now - started)
                )
        self._source.verify()
        self._settle(time.monotonic() - started)
        self._write(batch, last=True)
        self._report.seconds = time.monotonic() - started
        return self._report

    def _take(self, line: bytes, batch: Batch) -> None:
        """Bring one line to its end: rows in the batch, or a count of why not."""
        self._report.items += 1
        transform = self._transform
        try:
            keys = transform.read_keys(line)
            rule = transform.classify(keys)
            if rule < 0:
                count_pattern(self._patterns, key_pattern(transform.profile.routing_attributes, keys))
                return
            if transform.functions[rule] is None:
                self._taken[rule] += 1
                return
            result = transform.convert(rule, line)
            rows = transform.rows_of(rule, result) if result is not None else []
        except BadItem as error:
            raise MigrationError(
                f"{self.name}, line {self._report.items:,}: {error}; mend the item or the profile, then rerun the file"
            ) from error
        if rows:
            batch.add(rows)
            self._report.loaded += 1
        else:
            self._empty[rule] += 1

    def _write(self, batch: Batch, last: bool = False) -> None:
        encoded = self._target.encode(batch.rows)
        for table, count in encoded.rows.items():
            self._report.rows[table] = self._report.rows.get(table, 0) + count
        self._report.collisions += encoded.collisions
        self._target.write(encoded, self._report if last else None)

    def _settle(self, seconds: float) -> None:
        """Complete the account and hold it against promise P1."""
        report, rules = self._report, self._transform.rules
        skipped = Counter[str]()
        for rule, count in self._taken.items():
            skipped[rules[rule].reason] += count
        for rule, count in self._empty.items():
            skipped[f"{rules[rule].reason}: no row"] += count
        if self._patterns:
            skipped[UNROUTED] = self._patterns.total()
        report.skipped = dict(sorted(skipped.items()))
        report.unrouted = dict(sorted(self._patterns.items()))
        report.bytes, report.md5, report.seconds = self._source.bytes_read, self._source.md5, seconds
        if not report.conserved or report.items != self.items:
            raise MigrationError(
                f"{self.name}: items are not conserved: manifest {self.items:,}, read {report.items:,}, "
                f"loaded {report.loaded:,}, skipped {sum(report.skipped.values()):,}, "
                f"quarantined {report.quarantined:,}; this is a defect of the pipeline: please report it"
            )
