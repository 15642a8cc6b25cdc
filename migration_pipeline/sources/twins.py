"""Finds two members of one name in an object of JSON, of which decoders keep the last, silently."""

from __future__ import annotations

from typing import Any


class TwinsError(ValueError):
    """An object has two members of one name."""


class Pairs(list):  # type: ignore[type-arg]
    """The members of an object, names and values, twins included."""


def passes_over(value: Any) -> bool:
    """Whether a decoder that keeps the last of two members of one name passes over an object in the first."""
    if isinstance(value, Pairs):
        last: dict[str, Any] = {}
        for name, member in value:
            if name in last and _holds_object(last[name]):
                return True
            last[name] = member
        return any(map(passes_over, last.values()))
    return isinstance(value, list) and any(map(passes_over, value))


def _holds_object(value: Any) -> bool:
    """Whether a value is an object, or has one inside; empty ones do not count."""
    if isinstance(value, Pairs):
        return bool(value)
    return isinstance(value, list) and any(map(_holds_object, value))


def refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the members of an object. Raises `TwinsError`."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise TwinsError
    return members
