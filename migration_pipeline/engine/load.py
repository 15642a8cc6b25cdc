"""Loads one export file: lines → rows → batches → target, and the account of it.

The order of steps is what the promises rest on: every batch is one transaction; the last batch is held
back until the file is verified against its manifest and every item is accounted for; it commits together
with the file's receipt. So a receipt is there exactly if the whole file is.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec

from migration_pipeline.engine.report import FileReport, Progress
from migration_pipeline.engine.threads import Behind, ahead
from migration_pipeline.engine.transform import UNROUTED, Outcome, Transform
from migration_pipeline.errors import BadItem, MigrationError
from migration_pipeline.row import Row

PROGRESS_SECONDS = 5.0
"""Seconds between two calls of the progress hook: often enough to see life, seldom enough to keep logs short."""


READ_AHEAD = 32
"""Lists of lines read ahead, of 64 KB each: one is enough to overlap, more even out a slow network."""

WRITE_BEHIND_BYTES = 32 << 20
"""Encoded bytes that may wait for the database: some batches of small rows, one of the largest."""

BATCH_BYTES = 16 << 20
"""Bytes of lines in a batch, whatever its number of items: an item may have 400 KB."""

CANCEL_SECONDS = 10.0
"""How long a cancelled write may take to come back before the file's failure is reported without it."""


class LoadSettings(msgspec.Struct, frozen=True):
    """What an operator may tune. None of it changes the result."""

    batch_items: int = 10_000
    """Items a transaction, at most. Larger batches commit less often; smaller ones need less memory."""


class Source(Protocol):
    """One file: lists of lines, then the check that they were all there."""

    @property
    def bytes_read(self) -> int:
        """Compressed bytes read so far."""

    @property
    def md5(self) -> str:
        """base64(MD5) of the compressed bytes read so far."""

    def __iter__(self) -> Iterator[list[bytes]]:
        """Yield the file's lines in lists. Called, and iterated over, in a thread of its own."""

    def verify(self) -> None:
        """Raise `MigrationError` unless the file was complete and is the one that was promised."""


class Encoded(Protocol):
    """A batch, ready to be written."""

    @property
    def rows(self) -> dict[str, int]:
        """Rows in it, by table."""

    @property
    def collisions(self) -> int:
        """Rows left out because another row of the batch has their key."""

    @property
    def size(self) -> int:
        """Bytes."""


class Target(Protocol):
    """Where rows go. `encode` is computation; `write` is one transaction, called in a thread of its own."""

    def encode(self, rows: dict[type[Row], list[Row]]) -> Any:
        """Make a batch ready to be written; gives an `Encoded`."""

    def write(self, encoded: Any, receipt: FileReport | None = None) -> None:
        """Write a batch, and with the last one the file's receipt, in one transaction."""

    def cancel(self) -> None:
        """Make a `write` that is under way in another thread fail soon."""


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Let Python look for reference cycles less often.

    Decoding makes millions of short-lived objects without cycles, and each look visits all of them, and
    all that Dagster keeps: a third of a file's time. The look comes less often, so that a profile whose own
    objects do form cycles still does not leak.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


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
        self._total = Outcome(())
        self._started = time.monotonic()
        self._due = self._started + progress_seconds

    def run(self) -> FileReport:
        """Load the file. Raises `MigrationError` with the file's name; nothing is recorded then."""
        with _seldom_collected():
            return self._run()

    def _run(self) -> FileReport:
        writer = Behind[Any](self._target.write, WRITE_BEHIND_BYTES)
        try:
            last = self._load(writer)
            writer.finish()
        except BaseException as error:
            earlier = writer.abandon(self._target.cancel, CANCEL_SECONDS)
            if earlier is not None and earlier is not error:
                raise earlier from error
            raise
        # Everything before is committed. What follows is done here, in the order that the receipt relies on.
        self._source.verify()
        self._settle()
        self._target.write(last, self._report)
        self._report.seconds = time.monotonic() - self._started
        return self._report

    def _load(self, writer: Behind[Any]) -> Any:
        """Write all batches but the last; gives that one, encoded."""
        batch, size = Outcome(self._transform.row_classes), 0
        lists = ahead(self._source, READ_AHEAD)
        try:
            for lines in lists:
                for some in self._slices(lines):
                    outcome = self._transformed(some)
                    weight = sum(map(len, some)) if outcome.loaded else 0
                    full = batch.loaded + outcome.loaded > self._settings.batch_items
                    if batch.loaded and (full or size + weight > BATCH_BYTES):
                        encoded = self._encoded(batch)
                        writer.put(encoded, encoded.size)
                        batch, size = Outcome(self._transform.row_classes), 0
                    batch.add(outcome)
                    size += weight
                self._tell_progress()
        finally:
            lists.close()
        return self._encoded(batch)

    def _slices(self, lines: list[bytes]) -> Iterator[list[bytes]]:
        """Cut a list so that no part can overfill a batch."""
        step = self._settings.batch_items
        if len(lines) <= step:
            yield lines
        else:
            for start in range(0, len(lines), step):
                yield lines[start : start + step]

    def _transformed(self, lines: list[bytes]) -> Outcome:
        """Turn lines into rows: all at once, or one by one where that fails, to find the line and the reason."""
        first = self._report.items + 1
        self._report.items += len(lines)
        try:
            return self._transform(lines)
        except Exception:  # what it was is found below, with its line
            outcome = Outcome(self._transform.row_classes)
            for number, line in enumerate(lines, first):
                try:
                    outcome.add(self._transform.one(line))
                except BadItem as error:
                    raise MigrationError(
                        f"{self.name}, line {number:,}: {error}; mend the item or the profile, then rerun the file"
                    ) from error
            return outcome

    def _encoded(self, batch: Outcome) -> Any:
        encoded: Encoded = self._target.encode(batch.rows)
        batch.rows = {}
        self._total.add(batch)
        for table, count in encoded.rows.items():
            self._report.rows[table] = self._report.rows.get(table, 0) + count
        self._report.collisions += encoded.collisions
        return encoded

    def _tell_progress(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + self._progress_seconds
            report = self._report
            self._on_progress(
                Progress(report.items, self.items, self._source.bytes_read, now - self._started)
            )

    def _settle(self) -> None:
        """Complete the account and hold it against promise P1."""
        report, total = self._report, self._total
        skipped = Counter(total.ignored)
        for route, count in total.empty.items():
            skipped[f"{route}: no row"] += count
        if total.unrouted:
            skipped[UNROUTED] = sum(total.unrouted.values())
        report.loaded = total.loaded
        report.skipped = dict(sorted(skipped.items()))
        report.unrouted = dict(sorted(total.unrouted.items()))
        report.bytes, report.md5 = self._source.bytes_read, self._source.md5
        report.seconds = time.monotonic() - self._started
        if not report.conserved or report.items != self.items:
            raise MigrationError(
                f"{self.name}: items are not conserved: manifest {self.items:,}, read {report.items:,}, "
                f"loaded {report.loaded:,}, skipped {sum(report.skipped.values()):,}, "
                f"quarantined {report.quarantined:,}; this is a defect of the pipeline: please report it"
            )
