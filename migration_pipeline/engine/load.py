"""Loads one export file: lines → rows → batches → target, and the account of it.

The promises rest on the order of steps: every batch is one transaction, and the items that cannot be
loaded go to the quarantine in it; the last batch is held back until the file is verified against its
manifest and every item is accounted for; it commits together with the file's receipt. So a receipt is
there exactly if the whole file is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from migration_pipeline.engine.batch import AnyTransform, Batch, Encoder, TooManyBad, Written, encode
from migration_pipeline.engine.file_report import BadExample, FileReport, Progress
from migration_pipeline.engine.memory import accustomed_to_loads
from migration_pipeline.engine.pace import Pace, Unpaced
from migration_pipeline.engine.patterns import count_pattern
from migration_pipeline.engine.threads import Ahead, Behind
from migration_pipeline.engine.transform import Bad, Counts, Outcome
from migration_pipeline.errors import MigrationError
from migration_pipeline.units import counted

PROGRESS_SECONDS = 5.0
"""Seconds before the first call of the progress hook."""

PROGRESS_GROWTH = 1.1
"""Each wait for a call is so many times the one before: 8 calls in the first minute, 45 in the first hour, 78 in a
day. So a log shows life, and stays short."""

READ_AHEAD = 8
"""Lists of lines read ahead, of 256 KB each: one is enough to overlap, more even out a slow network."""

WRITE_BEHIND_BYTES = 32 << 20
"""Bytes of batches that may wait for the database: some batches of small rows, one of the largest."""

BATCH_BYTES = 16 << 20
"""Bytes of lines in a batch, whatever its number of items: an item may have 400 KB."""

FIRST_SLICE = 10
"""Items that are transformed first, to see how long they take."""

SLICE_SECONDS = 1.0
"""Seconds that transforming some items may take before they are fewer."""

FEW = 10
"""Bad items that no file fails for, however small it is."""

EXAMPLES = 10
"""Bad items of a file that its report names; the quarantine has them all."""


class LoadSettings(msgspec.Struct, frozen=True):
    """Settings that an operator may tune. None of them changes the result of a load that succeeds."""

    batch_items: Annotated[
        int,
        Meta(
            gt=0,
            description="Items per transaction, at most. Larger batches are written in less time; smaller ones need less memory.",
        ),
    ] = 50_000
    max_bad_items: Annotated[
        int,
        Meta(ge=0, description="Items of one file that may go to the quarantine before the file fails."),
    ] = 1_000
    max_bad_share: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description=f"The same as a share of the file's items; the first {FEW} do not count.",
        ),
    ] = 0.1

    def bad_items_allowed(self, items: int) -> int:
        """Return the number of bad items that a file of so many items may have."""
        return min(self.max_bad_items, max(FEW, int(self.max_bad_share * items)))


class Source(Protocol):
    """One file: lines, some at a time, then the check that they were all there."""

    @property
    def bytes_read(self) -> int:
        """Compressed bytes read so far."""

    @property
    def md5(self) -> str:
        """base64(MD5) of the compressed bytes read so far."""

    def __iter__(self) -> Iterator[Sequence[bytes]]:
        """Yield the file's lines, some at a time. Called, and iterated over, in a thread of its own."""

    def verify(self) -> None:
        """Raise `MigrationError` unless the file was complete and is the one that was promised."""


class Target(Protocol):
    """Where rows go. `write` is one transaction, called in a thread of its own."""

    @property
    def encoder(self) -> Encoder:
        """Encodes rows for this target."""

    @property
    def retries(self) -> int:
        """Transactions that ran again so far."""

    def write(self, batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        """Write a batch and its bad items in one transaction; items that the database refuses are isolated by halving.

        With the last batch `close` gives the file's receipt, which is written in the same transaction. It
        may be called again if the transaction has to be.
        """

    def stay_alive(self) -> None:
        """Tell others that this load only waits. Called now and then between two writes, in their thread."""

    def cancel(self) -> None:
        """Make a `write` that is under way in another thread fail soon."""


Part = tuple[Batch, Callable[[Written], FileReport] | None]
"""A batch, and with the last one what makes the file's receipt."""


def read_ahead(source: Source) -> Ahead[Sequence[bytes]]:
    """Begin to read a file."""
    return Ahead(source, READ_AHEAD)


class FileLoad:
    """One file on its way into the target; `run` does it all and returns the account."""

    def __init__(
        self,
        name: str,
        items: int,
        source: Source,
        transform: AnyTransform,
        target: Target,
        settings: LoadSettings = LoadSettings(),  # noqa: B008  # frozen
        on_progress: Callable[[Progress], None] = lambda _: None,
        progress_seconds: float = PROGRESS_SECONDS,
        pace: Pace = Unpaced(),  # noqa: B008  # has no state
        lists: Ahead[Sequence[bytes]] | None = None,
        on_read: Callable[[], None] = lambda: None,
    ) -> None:
        """`lists` are the source's, where somebody has begun to read them: `run` closes them. `on_read` is called when all are read."""
        self.name = name
        self.items = items
        self._source = source
        self._transform = transform
        self._target = target
        self._pace = pace
        self._lists = lists
        self._on_read = on_read
        self._settings = settings
        self._on_progress = on_progress
        self._progress_seconds = progress_seconds
        self._read = 0
        self._slice = FIRST_SLICE
        self._counts = Counts()
        self._superseded = 0
        self._written = Written()
        self._reasons = Counter[str]()
        self._examples: list[BadExample] = []
        self._allowed = settings.bad_items_allowed(items)
        self._started = time.monotonic()
        self._due = self._started + progress_seconds

    def run(self) -> FileReport:
        """Load the file. Raises `MigrationError`, whose `file` is set; nothing is recorded then."""
        try:
            with accustomed_to_loads():
                return self._run()
        except MigrationError as error:
            error.file = error.file or self.name
            raise

    def _run(self) -> FileReport:
        writer = Behind[Part](self._write, WRITE_BEHIND_BYTES)
        reports: list[FileReport] = []
        try:
            last = self._load(writer)
            self._on_read()
            writer.flush()
            # Everything before is committed. What follows is done in the order that the receipt relies on.
            self._source.verify()

            def close(written: Written) -> FileReport:
                reports.append(self._settled(last, written))
                return reports[-1]

            # In the writer's thread like all others: this one waits, and can be interrupted in it.
            writer.put((last, close), last.size)
            writer.finish()
        except BaseException as error:
            earlier = writer.abandon(self._cancel)
            if earlier is not None and earlier is not error:
                raise earlier from error
            raise
        # All else is as in the receipt, its seconds, too: so log, metadata, receipt and report tell one speed.
        return msgspec.structs.replace(reports[-1], retries=self._target.retries)

    def _cancel(self) -> None:
        self._pace.cancel()
        self._target.cancel()

    def _load(self, writer: Behind[Part]) -> Batch:
        """Write all batches but the last; returns that one."""
        outcome, pieces, size = Outcome([]), list[Any](), 0
        lists = self._lists or read_ahead(self._source)
        try:
            for lines in lists:
                for some in self._slices(lines):
                    began = time.monotonic()
                    found, piece = encode(
                        self._transform, self._target.encoder, self._transform(some, self._read + 1)
                    )
                    self._read += len(some)
                    self._measure(len(some), time.monotonic() - began)
                    weight = found.lines.size + sum(len(bad.line) for bad in found.bad)
                    full = len(outcome.lines) + len(found.lines) > self._most
                    if (outcome.lines or outcome.bad) and (full or size + weight > BATCH_BYTES):
                        batch = self._batch(outcome, pieces)
                        writer.put((batch, None), batch.size)
                        outcome, pieces, size = Outcome([]), [], 0
                    outcome.add(found)
                    pieces.append(piece)
                    size += weight
                    self._tell_progress()
        finally:
            lists.close()
        return self._batch(outcome, pieces)

    @property
    def _most(self) -> int:
        """Items of a batch."""
        return self._pace.most(self._settings.batch_items)

    def _slices(self, lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
        """Cut a list so that no part can overfill a batch, nor takes so long that nobody hears how far the file is."""
        start = 0
        while start < len(lines):
            some = lines if self._step >= len(lines) and not start else lines[start : start + self._step]
            yield some
            start += len(some)

    @property
    def _step(self) -> int:
        return min(self._slice, self._most)

    def _measure(self, items: int, seconds: float) -> None:
        """Let parts grow while they take little time, and shrink where a profile's functions take long."""
        if seconds > SLICE_SECONDS:
            self._slice = max(1, int(items * SLICE_SECONDS / seconds))
        elif items >= self._slice and seconds < SLICE_SECONDS / 2:
            self._slice *= 2

    def _batch(self, outcome: Outcome, pieces: list[Any]) -> Batch:
        """Make a batch of what lines became, and take its items into the account."""
        batch = Batch(self._transform, self._target.encoder, outcome, pieces)
        self._counts.add(batch.counts)
        self._note(batch.bad)
        self._superseded += len(batch.counts.superseded)
        self._counts.superseded.clear()  # their digests are of use to the batch alone
        batch.room = self._room()
        if batch.room < 0:
            raise self._too_many(batch.bad)
        return batch

    def _room(self) -> int:
        """How many more bad items the file may have."""
        return self._allowed - self._reasons.total()

    def _write(self, part: Part) -> None:
        """Write a batch, in the writer's thread, and take what the database refused into the account."""
        batch, close = part
        self._pace.wait(batch.items, self._target.stay_alive)
        try:
            written = self._target.write(batch, close)
        except TooManyBad as error:
            raise self._too_many(error.bad) from None
        if close is not None:
            return
        self._written.add(written)
        self._note(written.refused)
        self._reasons -= Counter(map(reason_of, written.forgiven))
        if self._room() < 0:
            raise self._too_many(written.refused)

    def _note(self, bad: Iterable[Bad]) -> None:
        for one in bad:
            count_pattern(self._reasons, reason_of(one))
            if len(self._examples) < EXAMPLES:
                self._examples.append(_example(one))

    def _too_many(self, bad: list[Bad]) -> MigrationError:
        """Make the error for too many bad items: then the profile is wrong, not the items."""
        reasons = Counter(map(reason_of, bad)).most_common(3)
        told = "; ".join(f"{reason} ({count:,} ×)" for reason, count in reasons)
        line = max(one.number for one in bad)
        return MigrationError(
            f"{self.name}: more than {self._allowed:,} of its {counted(self.items, 'item')} are bad, the last one in line "
            f"{line:,}: {told}. Fix the profile or the table and rerun the file, or allow more with max_bad_items and "
            "max_bad_share",
            line=line,
        )

    def _tell_progress(self) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._progress_seconds *= PROGRESS_GROWTH
            self._due = now + self._progress_seconds
            bad = self._reasons.total()
            self._on_progress(
                Progress(self._read, self.items, self._source.bytes_read, now - self._started, bad)
            )

    def _settled(self, last: Batch, written: Written) -> FileReport:
        """Complete the account, with the last batch as it was written, and check promise P1."""
        total = Written()
        total.add(self._written)
        total.add(written)
        reasons = self._reasons + Counter(map(reason_of, written.refused))
        reasons -= Counter(map(reason_of, written.forgiven))
        report = FileReport(
            items=self._read,
            loaded=self._counts.loaded - total.items_refused - total.superseded,
            superseded=total.superseded + total.items_forgiven + self._superseded,
            skipped=self._counts.skipped,
            unrouted=dict(sorted(self._counts.unrouted.items())),
            quarantined=reasons.total(),
            quarantined_by_reason=dict(reasons.most_common()),
            quarantined_examples=[*self._examples, *map(_example, written.refused)][:EXAMPLES],
            rows=dict(total.rows),
            collisions=dict(+total.collisions),
            changed_rows=dict(+total.changed),
            deleted_rows=dict(+total.deleted),
            unchanged_rows=dict(+total.unchanged),
            newer_rows=dict(+total.newer),
            rounded=dict(+total.rounded),
            nul=total.nul,
            accelerated=self._counts.accelerated,
            not_accelerated=dict(self._counts.odd.most_common()),
            retries=self._target.retries,
            throttled={kind: round(seconds, 3) for kind, seconds in self._pace.throttled.items()},
            bytes=self._source.bytes_read,
            md5=self._source.md5,
            seconds=time.monotonic() - self._started,
        )
        if not report.conserved or report.items != self.items:
            raise MigrationError(
                f"{self.name}: items are not conserved: manifest {self.items:,}, read {report.items:,}, "
                f"loaded {report.loaded:,}, skipped {sum(report.skipped.values()):,}, "
                f"quarantined {report.quarantined:,}; this is a defect of the pipeline: please report it"
            )
        return report


def reason_of(bad: Bad) -> str:
    """Say why an item is bad, with the table that refused it, if any; equal for items with the same fault."""
    return f"{bad.table}: {bad.reason}" if bad.table else bad.reason


def _example(bad: Bad) -> BadExample:
    return BadExample(bad.number, bad.reason, bad.table, bad.sqlstate)
