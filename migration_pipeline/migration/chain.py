"""The chain of a plan: one full export, the base, and the windows that follow it without a hole.

Every write to the table after the base must be in a window, or rows would keep values that nothing corrects. Windows
may overlap: a record is applied by the time it was written, so what stands in two windows counts once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import Protocol

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.sources.export import Window, utc


class Link(Protocol):
    """An export as a chain sees it: read just now, or planned."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def uri(self) -> str: ...  # noqa: D102
    @property
    def table_arn(self) -> str: ...  # noqa: D102
    @property
    def table_id(self) -> str: ...  # noqa: D102
    @property
    def export_time(self) -> str: ...  # noqa: D102
    @property
    def window(self) -> Window | None: ...  # noqa: D102


class Chained(Protocol):
    """A plan as a chain sees it."""

    @property
    def exports(self) -> Sequence[Link]: ...  # noqa: D102


class Hole(msgspec.Struct, frozen=True):
    """A time between two exports of a chain: whatever was written in it is in neither."""

    start: datetime
    """In UTC."""
    end: datetime
    after: str
    """Id of the export that reaches furthest before it."""
    before: str
    """Id of the window that begins at its end."""

    @property
    def length(self) -> timedelta:
        """How long it is."""
        return self.end - self.start

    def lies_in(self, other: Hole) -> bool:
        """Whether the other hole is as long on both sides, or longer."""
        return other.start <= self.start and self.end <= other.end

    def __str__(self) -> str:
        return (
            f"{self.after} reaches to {utc(self.start)}, but {self.before}, the next window, begins at {utc(self.end)}: "
            f"what was written in the {self.length} between them is in neither"
        )


def holes(plan: Chained) -> list[Hole]:
    """Return the holes in a plan's chain, in the order of time; none for a plan without windows."""
    return _holes(plan.exports)


def check_chain(exports: Sequence[Link], allow_gap: bool = False, known: Sequence[Hole] = ()) -> list[str]:
    """See that the windows among `exports` follow their one full export, and return what is to be told of them.

    Holes are refused, unless `allow_gap` is set or they are in those `known`: in a plan, they were allowed before. Without
    windows, nothing is checked. Raises `UsageError`.
    """
    windows = _windows(exports)
    if not windows:
        return []
    base = _base(exports)
    if not base.table_arn:
        raise UsageError(
            f"{base.uri}: it has no manifest, so nothing tells of which table and time it is, and which windows follow it; "
            "plan a full export that has one"
        )
    _check_one_table(base, windows)
    for link, window in windows:
        _check_after(base, link, window)
    found = _holes(exports)
    for hole in found:
        if not allow_gap and not any(hole.lies_in(other) for other in known):
            raise UsageError(
                f"a hole in the chain: {hole}; export a window (of 15 minutes to 24 hours) that begins at "
                f"{utc(hole.start.replace(microsecond=0))} or before and ends at {utc(hole.end)} or after, and plan it, too, "
                "or accept the hole with --allow-gap"
            )
    told = [f"a hole in the chain, which is allowed: {hole}" for hole in found] + list(_overlaps(windows))
    if seconds := overlap_seconds(exports):
        told.append(
            f"the first window begins {seconds:g} s before the base was taken, at {utc(_time(base))}: what was written in this time "
            "and again later in the window may leave a row, which verify finds, and of an item made in this time and deleted later in "
            "the window nothing tells; a base taken at a whole second, as migration-pipeline export takes it, has no such time"
        )
    return told


def overlap_seconds(exports: Sequence[Link]) -> float:
    """How many seconds before the base the first window begins; 0 without windows, or if it does not."""
    windows = _windows(exports)
    return max(0.0, (_time(_base(exports)) - windows[0][1].start).total_seconds()) if windows else 0.0


def _windows(exports: Sequence[Link]) -> list[tuple[Link, Window]]:
    """The windows, in the order of time."""
    windows = [(link, link.window) for link in exports if link.window is not None]
    return sorted(windows, key=lambda each: (each[1].start, each[1].end, each[0].id))


def _base(exports: Sequence[Link]) -> Link:
    """The one full export. Raises `UsageError` if there is none, or more."""
    full = [link for link in exports if link.window is None]
    if not full:
        first = _windows(exports)[0]
        raise UsageError(
            f"{first[0].uri}: a window needs a base, and no full export is named; name the full export that the windows follow, "
            f"one taken at {utc(first[1].start)} or later and before {utc(first[1].end)}"
        )
    if len(full) > 1:
        raise UsageError(
            f"windows follow one full export, but these are {len(full):,}: {full[0].id}, of {full[0].export_time}, and "
            f"{full[1].id}, of {full[1].export_time}; plan one of them with the windows"
        )
    return full[0]


def _check_one_table(base: Link, windows: Sequence[tuple[Link, Window]]) -> None:
    for link, _ in windows:
        if link.table_arn != base.table_arn:
            raise UsageError(
                f"{link.uri}: the window is one of {link.table_arn}, but the base {base.id} is of {base.table_arn}; "
                "give windows of the base's table"
            )
        if link.table_id and base.table_id and link.table_id != base.table_id:
            raise UsageError(
                f"{link.uri}: the table of the window (tableId {link.table_id}) is not that of the base {base.id} ({base.table_id}): "
                f"{link.table_arn} was dropped and made anew; export it in full again and plan that"
            )
    keyed = [(link, window.keys) for link, window in windows if window.keys]
    for (one, keys), (other, others) in pairwise(keyed):
        if keys != others:
            raise UsageError(
                f"{other.uri}: the key of its table is {', '.join(others)}, but in the window {one.id} it is {', '.join(keys)}: "
                "the table was dropped and made anew; export it in full again and plan that"
            )


def _check_after(base: Link, link: Link, window: Window) -> None:
    if window.end <= (taken := _time(base)):
        raise UsageError(
            f"{link.uri}: the window ends at {utc(window.end)}, and the base {base.id} was taken at {utc(taken)}, "
            f"{taken - window.end} later, so it adds nothing; leave it out"
        )


def _time(base: Link) -> datetime:
    """The moment of a full export. Raises `UsageError` if its manifest tells none, as one made by hand may."""
    try:
        moment = datetime.fromisoformat(base.export_time.replace("Z", "+00:00"))
    except ValueError:
        raise UsageError(
            f"{base.uri}: its manifest has no valid exportTime ({base.export_time!r}), so nothing tells which windows follow "
            "it; copy the manifest again, or export the table in full again"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def _holes(exports: Sequence[Link]) -> list[Hole]:
    windows = _windows(exports)
    if not windows:
        return []
    base = _base(exports)
    after, reached, found = base.id, _time(base), []
    for link, window in windows:
        if window.start > reached:
            found.append(Hole(reached, window.start, after, link.id))
        if window.end > reached:
            after, reached = link.id, window.end
    return found


def _overlaps(windows: Sequence[tuple[Link, Window]]) -> Iterator[str]:
    """Tell of windows that begin before the end of an earlier one: harmless, but perhaps not meant."""
    furthest, reached = windows[0]
    for link, window in windows[1:]:
        if window.start < reached.end:
            until = min(window.end, reached.end)
            yield (
                f"the windows {furthest.id} and {link.id} both have {utc(window.start)} to {utc(until)}; that does no harm"
            )
        if window.end > reached.end:
            furthest, reached = link, window
