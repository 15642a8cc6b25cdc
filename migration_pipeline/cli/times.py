"""Times on the command line, as types of options: moments and lengths."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

import click

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def length(text: str) -> timedelta:
    """Read a length of time: ``90s``, ``15m``, ``1h30m``."""
    if not re.fullmatch(r"(\d{1,6}[smhd])+", text):
        raise click.BadParameter(f"{text!r}: expected a length of time, such as 15m or 1h30m")
    parts = re.findall(r"(\d+)([smhd])", text)
    return sum((timedelta(**{UNITS[unit]: int(number)}) for number, unit in parts), timedelta())


def moment(text: str) -> datetime:
    """Read a moment in ISO 8601; without a zone it is UTC, as all times are that commands print."""
    try:
        read = datetime.fromisoformat(re.sub(r"(?i) ?(?:z|utc)$", "+00:00", text.strip()))
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: expected a time as in ISO 8601, such as 2026-01-31T22:00 (UTC, unless a zone is given)"
        ) from None
    return read.astimezone(timezone.utc) if read.tzinfo else read.replace(tzinfo=timezone.utc)
