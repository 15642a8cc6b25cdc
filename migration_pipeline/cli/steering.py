"""The command that steers a running migration: pause, limits, and items a second."""

from __future__ import annotations

import getpass
import re
import socket
from typing import Any

import click
import msgspec

from migration_pipeline import settings
from migration_pipeline.cli.arguments import PROFILE, open_plan
from migration_pipeline.errors import UsageError
from migration_pipeline.migration.plan import throttle_of
from migration_pipeline.targets.records import Steering
from migration_pipeline.targets.steering import look, steer
from migration_pipeline.targets.throttle import Reading

PER_UNIT = {"ms": 0.001, "s": 1.0, "min": 60.0, "": 1.0}
"""Seconds."""


class _Limit(click.ParamType[Any]):
    """A number; ``off`` for no limit, ``default`` for that of the run config."""

    name = "limit"

    def __init__(self, *, seconds: bool = False) -> None:
        self._seconds = seconds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number, 0 for ``off``, and -1 for ``default``."""
        if value in ("off", "default"):
            return 0 if value == "off" else -1
        units = "|".join(PER_UNIT) if self._seconds else ""
        found = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?) ?({units})" if self._seconds else r"([0-9]+)()", value)
        if not found:
            form = "5s, 500ms" if self._seconds else "a whole number"
            self.fail(f"{value!r}: expected {form}, off or default", param, ctx)
        return float(found[1]) * PER_UNIT[found[2]] if self._seconds else int(found[1])


@click.command()
@PROFILE
@click.option("--pause", is_flag=True, help="Pause all files, aggregates and finishing until --resume.")
@click.option("--resume", is_flag=True, help="Go on, within the limits.")
@click.option(
    "--max-lag",
    type=_Limit(seconds=True),
    metavar="TIME",
    help="Pause while a replica is further behind: 5s.",
)
@click.option(
    "--max-active", type=_Limit(), metavar="N", help="Pause while more backends are active beside ours: 20."
)
@click.option("--rate", type=_Limit(), metavar="N", help="Items a second, all files together: 20000.")
def throttle(
    reference: str, pause: bool, resume: bool, max_lag: float | None, max_active: int | None, rate: int | None
) -> None:
    """Show what a load's pace depends on, or change it: running files follow within two seconds.

    A limit is off, default (that of the run config), or a number. What is set holds until it is changed, for later runs
    as well, and stands in the report with who and when.
    """
    if pause and resume:
        raise UsageError("--pause and --resume cannot be combined")
    plan, profile, _ = open_plan(reference)
    url, defaults = settings.database_url(), throttle_of(plan)
    limits = {"max_lag_seconds": max_lag, "max_active": max_active, "items_per_second": rate}
    given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}

    def change(before: Steering) -> Steering:
        new = {name: None if value == -1 else value for name, value in given.items()}
        paused = pause or (before.paused and not resume)
        return msgspec.structs.replace(before, paused=paused, changed_by=_who(), **new)

    changes = pause or resume or given
    reading = steer(url, profile.name, defaults, change) if changes else look(url, profile.name, defaults)
    for line in _told(reading):
        click.echo(line)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def _told(reading: Reading) -> list[str]:
    now, set_by = reading.settings, reading.steering
    lag = (
        "" if reading.lag_seconds is None else f"; the slowest replica is {reading.lag_seconds:,.1f} s behind"
    )
    active = "" if reading.active is None else f"; {reading.active:,} are active"
    lines = [
        f"now: {reading.why or 'nothing is in the way'}",
        f"replica lag: {f'at most {now.max_lag_seconds:g} s' if now.max_lag_seconds else 'no limit'}{lag}",
        f"active backends: {f'at most {now.max_active:,}' if now.max_active else 'no limit'}{active}",
        f"items a second: {f'at most {now.items_per_second:,}' if now.items_per_second else 'no limit'}",
        f"query: {'yes' if now.throttle_query else 'none'}",
    ]
    if set_by.changed_at:
        lines.append(f"last changed by {set_by.changed_by} at {set_by.changed_at:%Y-%m-%d %H:%M:%S %Z}")
    return lines
