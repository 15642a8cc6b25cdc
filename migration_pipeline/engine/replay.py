"""Runs the quarantined items of a file through the profile again, after it or the table was mended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from migration_pipeline.engine.batch import Batch, Encoder, Written
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import BATCH_BYTES, LoadSettings, reason_of
from migration_pipeline.engine.transform import Transform


class ReplayTarget(Encoder, Protocol):
    """A target that keeps a quarantine."""

    def quarantined(self) -> Iterable[tuple[int, bytes]]:
        """Give the file's quarantined items in order: line number and line."""

    def replay(
        self, batch: Batch, numbers: Iterable[int], adjust: Callable[[FileReport, Written], FileReport]
    ) -> Written:
        """Write items and take those of `numbers` that are no longer bad out of the quarantine, in one transaction."""


class ReplayReport(msgspec.Struct, kw_only=True):
    """What became of quarantined items. Counts are of items."""

    items: int = 0
    """Items that were in quarantine."""
    loaded: int = 0
    """Items that became rows now."""
    skipped: int = 0
    """Items that the profile skips now."""
    quarantined: int = 0
    """Items that are still bad."""
    quarantined_by_reason: dict[str, int] = {}

    def add(self, other: ReplayReport) -> None:
        """Sum up."""
        for name in ("items", "loaded", "skipped", "quarantined"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for reason, count in other.quarantined_by_reason.items():
            self.quarantined_by_reason[reason] = self.quarantined_by_reason.get(reason, 0) + count


def replay(transform: Transform, target: ReplayTarget, settings: LoadSettings) -> ReplayReport:
    """Replay a file's quarantined items. Raises `MigrationError`; each batch that was written stays so.

    There is no limit to how many may still be bad: they are in quarantine already.
    """
    total = ReplayReport()
    numbers: list[int] = []
    lines: list[bytes] = []
    for number, line in target.quarantined():
        if lines and (len(lines) >= settings.batch_items or sum(map(len, lines)) + len(line) > BATCH_BYTES):
            total.add(_replay(transform, target, lines, numbers))
            numbers, lines = [], []
        numbers.append(number)
        lines.append(line)
    if lines:
        total.add(_replay(transform, target, lines, numbers))
    return total


def _replay(
    transform: Transform, target: ReplayTarget, lines: list[bytes], numbers: list[int]
) -> ReplayReport:
    batch = Batch.of(transform, target, lines, numbers)
    batch.room = len(lines)
    report = ReplayReport()

    def adjust(receipt: FileReport, written: Written) -> FileReport:
        nonlocal report
        bad = [*batch.bad, *written.refused]
        skipped = batch.counts.skipped
        report = ReplayReport(
            items=len(lines),
            loaded=batch.counts.loaded - len(written.refused),
            skipped=sum(skipped.values()),
            quarantined=len(bad),
        )
        for one in bad:
            reason = reason_of(one)
            report.quarantined_by_reason[reason] = report.quarantined_by_reason.get(reason, 0) + 1
        return msgspec.structs.replace(
            receipt,
            loaded=receipt.loaded + report.loaded,
            quarantined=receipt.quarantined - report.loaded - report.skipped,
            skipped=_sum(receipt.skipped, skipped),
            unrouted=_sum(receipt.unrouted, batch.counts.unrouted),
            rows=_sum(receipt.rows, written.rows),
            collisions=_sum(receipt.collisions, written.collisions),
            changed_rows=_sum(receipt.changed_rows, written.changed),
            rounded=_sum(receipt.rounded, written.rounded),
            nul=receipt.nul + written.nul,
        )

    target.replay(batch, numbers, adjust)
    return report


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}
