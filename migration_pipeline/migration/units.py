"""Formats sizes and times for people: the same in the terminal, in Dagster and in the report."""

from __future__ import annotations

from datetime import datetime, timezone


def counted(number: int, noun: str) -> str:
    """Write a number of things: ``1 file``, ``1,200 files``. Only for nouns whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def counted_that(number: int, noun: str, singular: str, plural: str) -> str:
    """Write a number of things with their verb: ``1 file was``, ``2 files were``."""
    return f"{counted(number, noun)} {singular if number == 1 else plural}"


def readable_size(size: int) -> str:
    """Write a number of bytes as people do: ``1.2 MB``; decimal units, as S3's console has them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:,} bytes"


def readable_time(seconds: float) -> str:
    """Write a time as people do: ``12 s``, ``3 min 20 s``, ``1 h 05 min``, ``4 days``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 72 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400:,} days"


def duration(seconds: float | None) -> str:
    """Write a time as a clock does: ``1:02:03`` or ``2:03``; a dash when it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def moment(value: float | datetime) -> str:
    """Write a moment, of seconds of the epoch or with its zone, in UTC: ``2026-01-31 23:59:00``."""
    when = value if isinstance(value, datetime) else datetime.fromtimestamp(value, timezone.utc)
    return when.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
