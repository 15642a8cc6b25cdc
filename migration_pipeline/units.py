"""Formats counts, sizes and times for people: the same in the terminal, in Dagster, in errors and in the report."""

from __future__ import annotations

from datetime import datetime, timezone


def counted(number: int, noun: str, plural: str = "") -> str:
    """Write a number of things: ``1 file``, ``1,200 files``; `plural` is that of a noun that takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def counted_that(number: int, noun: str, singular: str, plural: str) -> str:
    """Write a number of things with their verb: ``1 file was``, ``2 files were``."""
    return f"{counted(number, noun)} {singular if number == 1 else plural}"


def some_of(number: int, total: int, noun: str) -> str:
    """Write how many of all: ``1 of 1 file``, ``3 of 1,200 files``."""
    return f"{number:,} of {counted(total, noun)}"


def some_that(number: int, total: int, noun: str, singular: str, plural: str) -> str:
    """Write how many of all, with their verb: ``1 of 4 files is``, ``2 of 4 files are``."""
    return f"{some_of(number, total, noun)} {singular if number == 1 else plural}"


def all_that(number: int, noun: str, singular: str, plural: str) -> str:
    """Write all of some things with their verb: ``all 1,200 rows are``; of a single one ``the 1 row is``."""
    return f"{'the' if number == 1 else 'all'} {counted_that(number, noun, singular, plural)}"


def readable_size(size: int) -> str:
    """Write a number of bytes as people do: ``1.2 MB``; decimal units, as S3's console has them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return counted(size, "byte")


def readable_time(seconds: float) -> str:
    """Write a time as people do: ``12 s``, ``3 min 20 s``, ``1 h 05 min``, ``4 days``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 72 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return counted(whole // 86_400, "day")


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
