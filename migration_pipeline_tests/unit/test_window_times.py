"""Which windows come next: pure arithmetic of times, by DynamoDB's rules."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from itertools import pairwise
from math import ceil

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration_pipeline.cli.times import length, moment
from migration_pipeline.sources.window_times import (
    LONGEST,
    SHORTEST,
    BrokenChainError,
    Recovery,
    due,
    last_end,
    next_windows,
)

NOON = datetime(2026, 1, 10, 12, tzinfo=timezone.utc)
OLD = NOON - timedelta(days=30)


def minutes(*spans: float) -> timedelta:
    return timedelta(minutes=sum(spans))


def asked(length: timedelta, until: datetime | None = None) -> list[timedelta]:
    """Lengths of the windows that follow noon, when so much can be exported."""
    spans = next_windows(NOON, Recovery(OLD, NOON + length), until)
    assert [one.end for one in spans[:-1]] == [other.start for other in spans[1:]]
    assert not spans or spans[0].start == NOON
    return [span.end - span.start for span in spans]


def test_a_window_is_not_shorter_than_a_quarter_of_an_hour() -> None:
    assert asked(minutes(14.99)) == []
    assert asked(minutes(15)) == [minutes(15)]


def test_it_ends_at_the_whole_second_that_can_be_exported() -> None:
    assert asked(timedelta(minutes=20, seconds=3, microseconds=999_999)) == [timedelta(minutes=20, seconds=3)]
    assert asked(timedelta(seconds=15 * 60 - 1, microseconds=999_999)) == []


@pytest.mark.parametrize(
    ("hours", "expected"),
    [
        (24, [24]),
        (24 + 1 / 60, [23 + 46 / 60, 0.25]),  # the rest would be a minute: the one before gives way
        (24.25, [24, 0.25]),
        (48, [24, 24]),
        (60, [24, 24, 12]),
    ],
)
def test_a_long_time_is_cut_into_windows_of_a_day(hours: float, expected: list[float]) -> None:
    assert asked(timedelta(hours=hours)) == [timedelta(hours=each) for each in expected]


def test_until_ends_the_last_window_or_as_soon_after_as_a_window_can() -> None:
    assert asked(minutes(60), NOON + minutes(40)) == [minutes(40)]
    assert asked(minutes(60), NOON + minutes(5)) == [minutes(15)]
    assert asked(minutes(60), NOON + minutes(90)) == [minutes(60)]
    # A window to now would leave less than a window to the end.
    assert asked(minutes(60), NOON + minutes(61)) == [minutes(46)]
    assert asked(minutes(20), NOON + minutes(29)) == []
    assert last_end(NOON, NOON + timedelta(minutes=40, microseconds=1)) == NOON + timedelta(
        minutes=40, seconds=1
    )


def test_a_start_that_cannot_be_exported_any_more_breaks_the_chain() -> None:
    with pytest.raises(
        BrokenChainError, match=r"begins at 2026-01-10 12:00:00 UTC.*back to 2026-01-10 12:00:01"
    ):
        next_windows(NOON, Recovery(NOON + timedelta(seconds=1), NOON + minutes(60)))
    # The base's time is floored: recovery that was turned on in the same second covers it.
    assert next_windows(NOON, Recovery(NOON + timedelta(milliseconds=300), NOON + minutes(60)))


def test_the_next_window_is_due_after_its_length_or_waits_for_the_end() -> None:
    every = minutes(15)
    assert due(NOON, every) == NOON + minutes(15)
    assert due(NOON, minutes(60)) == NOON + minutes(60)
    assert due(NOON, every, NOON + minutes(45)) == NOON + minutes(15)
    # What would be left is too short for a window: so this one goes on to the end.
    assert due(NOON, every, NOON + minutes(29)) == NOON + minutes(29)
    assert due(NOON, every, NOON + minutes(3)) == NOON + minutes(15)


seconds = st.integers(0, 40 * 24 * 3600)


@given(seconds, st.one_of(st.none(), st.integers(0, 41 * 24 * 3600_000)), st.integers(0, 999_999))
def test_windows_are_a_chain_of_allowed_ones_and_as_few_as_can_be(
    total: int, until: int | None, micros: int
) -> None:
    latest = NOON + timedelta(seconds=total, microseconds=micros)
    end = None if until is None else NOON + timedelta(milliseconds=until)
    spans = next_windows(NOON, Recovery(OLD, latest), end)
    goal = latest.replace(microsecond=0)
    if end is not None and goal < (last := last_end(NOON, end)):
        goal = min(goal, last - SHORTEST)
    elif end is not None:
        goal = last
    if goal - NOON < SHORTEST:
        assert spans == []
        return
    assert (spans[0].start, spans[-1].end) == (NOON, goal)
    assert all(one.end == other.start for one, other in pairwise(spans))
    assert all(SHORTEST <= span.end - span.start <= LONGEST for span in spans)
    assert all(not time.microsecond for span in spans for time in span)
    assert len(spans) == ceil((goal - NOON) / LONGEST)


def test_times_on_the_command_line() -> None:
    assert length("1h30m") == timedelta(minutes=90)
    assert length("90s") == timedelta(seconds=90)
    assert (
        moment("2026-01-10T12:00Z") == moment("2026-01-10 12:00") == moment("2026-01-10T13:00+01:00") == NOON
    )
    for wrong in ("15", "m", "1.5h", "-3m", "15 m"):
        with pytest.raises(click.BadParameter, match="expected a length of time"):
            length(wrong)
    with pytest.raises(click.BadParameter, match="ISO 8601"):
        moment("tomorrow")
