"""Which windows of a table can be exported next: arithmetic of times, by DynamoDB's rules.

The rules, of "DynamoDB data export to Amazon S3" in its developer guide: a window is 15 minutes to 24 hours long, begins and
ends at whole seconds, and lies in the time that point in time recovery covers, at most 35 days back. All times are in UTC.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

import msgspec

from migration_pipeline.errors import MigrationError

SHORTEST = timedelta(minutes=15)

LONGEST = timedelta(hours=24)

RECOVERED_DAYS = 35
"""Days that point in time recovery reaches back at most."""


class BrokenChainError(MigrationError):
    """The next window would begin before the time that can still be exported: what was written in between is lost to the plan."""


class Span(NamedTuple):
    """The times of a window."""

    start: datetime
    """Inclusive."""
    end: datetime
    """Exclusive."""


class Recovery(msgspec.Struct, frozen=True):
    """The time that point in time recovery covers now."""

    earliest: datetime
    latest: datetime
    """Some minutes before now."""


def next_windows(start: datetime, recovery: Recovery, until: datetime | None = None) -> list[Span]:
    """The windows from `start`, a whole second, to the latest time that can be exported, or to `until`.

    None if that is less than `SHORTEST`. A window that must end at `until` and would be too short goes on to `SHORTEST`; and while
    `until` cannot be exported yet, as much is left to it. Raises `BrokenChainError` if `start` cannot be exported any more.
    """
    if start < whole_second(recovery.earliest):
        raise BrokenChainError(
            f"the next window begins at {spelled(start)}, but the table's recovery reaches back to {spelled(recovery.earliest)} "
            "only (35 days at most, and not beyond the time when it was turned on)"
        )
    end = whole_second(recovery.latest)
    if until is not None:
        goal = last_end(start, until)
        end = goal if end >= goal else min(end, goal - SHORTEST)
    return _cut(start, end) if end - start >= SHORTEST else []


def _cut(start: datetime, end: datetime) -> list[Span]:
    """Cut a time into windows of `LONGEST`, so that what is left for the last is not less than `SHORTEST`."""
    spans = []
    while end - start > LONGEST:
        cut = min(start + LONGEST, end - SHORTEST)
        spans.append(Span(start, cut))
        start = cut
    return [*spans, Span(start, end)]


def due(start: datetime, every: timedelta, until: datetime | None = None) -> datetime:
    """The moment that must be recoverable before the window that begins at `start` is exported.

    That is `every` later, or `until` where the window would leave less than `SHORTEST` to it.
    """
    soonest = start + max(every, SHORTEST)
    if until is None:
        return soonest
    last = last_end(start, until)
    return last if last - soonest < SHORTEST else soonest


def last_end(start: datetime, until: datetime) -> datetime:
    """Where the last window ends that is to reach `until`, if one begins at `start`: no window is shorter than `SHORTEST`."""
    whole = whole_second(until)
    return max(whole if whole == until else whole + timedelta(seconds=1), start + SHORTEST)


def whole_second(moment: datetime) -> datetime:
    """The second that a moment is in."""
    return moment.replace(microsecond=0)


def spelled(moment: datetime) -> str:
    """Write a moment in UTC, for people."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
