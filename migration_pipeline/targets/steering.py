"""How an operator steers a running migration: rows of ``migration.throttle``, which all its loads follow on every machine."""

from __future__ import annotations

from collections.abc import Callable

from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.bookkeeping import parameters
from migration_pipeline.targets.connection import DatabaseSettings, read_as, transaction
from migration_pipeline.targets.ddl import check_bookkeeping
from migration_pipeline.targets.records import Steering
from migration_pipeline.targets.throttle import Reading, ThrottleSettings, read_throttle, steering_of

QUICKLY = DatabaseSettings(lock_timeout_seconds=5, statement_timeout_seconds=10)
"""For a command that somebody waits for."""


def read_steerings(url: str, profile: str) -> list[Steering]:
    """Read all that was set, the oldest first. Raises `DatabaseError`."""
    with transaction(url, QUICKLY) as cursor:
        return read_as(Steering, cursor, bookkeeping.STEERINGS, {"profile": profile})


def look(url: str, profile: str, settings: ThrottleSettings) -> Reading:
    """Read the throttle once, as a load with these settings does. Raises `DatabaseError`."""
    with transaction(url, QUICKLY) as cursor:
        check_bookkeeping(cursor)
        return read_throttle(cursor, settings, steering_of(cursor, profile))


def steer(
    url: str, profile: str, settings: ThrottleSettings, change: Callable[[Steering], Steering]
) -> Reading:
    """Keep what `change` makes of what holds now, and read the throttle with it.

    Raises `DatabaseError`, and keeps nothing then: also for a limit that cannot be read.
    """
    with transaction(url, QUICKLY) as cursor:
        check_bookkeeping(cursor)
        cursor.execute(
            bookkeeping.HOLD_STEERING
        )  # two commands at once: the second changes what the first has set
        changed = change(steering_of(cursor, profile))
        cursor.execute(bookkeeping.KEEP_STEERING, parameters(changed, profile=profile))
        cursor.execute(bookkeeping.PACE_ANEW, {"profile": profile})
        return read_throttle(cursor, settings, steering_of(cursor, profile))
