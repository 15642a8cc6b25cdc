"""Numbers as people read them: sizes and times with their units."""

from __future__ import annotations


def readable_size(size: int) -> str:
    """Write a number of bytes as people do: ``1.2 MB``; decimal units, as S3's console has them."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def readable_time(seconds: float) -> str:
    """Write a time as people do: ``12 s``, ``3 min 20 s``, ``1 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def duration(seconds: float | None) -> str:
    """Write seconds as ``1:02:03`` or ``2:03``; a dash when they are not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
