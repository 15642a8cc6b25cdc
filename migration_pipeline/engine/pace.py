"""The pace of writing: what a load asks before each transaction. Who says it, and why, the engine does not know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec


class Pause(msgspec.Struct, frozen=True):
    """What a load hears of its pauses."""

    why: str
    """What it waits for; "" when it goes on."""
    seconds: float
    """Seconds that it has waited so far, all its pauses added up."""


class Pace(Protocol):
    """Says when a load may write."""

    @property
    def throttled(self) -> Mapping[str, float]:
        """Seconds waited so far, by the kind of the reason."""

    def most(self, items: int) -> int:
        """How many items a transaction may have, at most so many."""

    def wait(self, items: int, meanwhile: Callable[[], None]) -> None:
        """Return once so many items may be written; until then call `meanwhile` now and then.

        No transaction is open meanwhile. Raises `MigrationError` if the load has to fail instead, or after `cancel`.
        """

    def cancel(self) -> None:
        """Make a `wait` in another thread fail soon, for good."""


class Unpaced:
    """Nobody is in the way."""

    throttled: Mapping[str, float] = {}

    def most(self, items: int) -> int:
        """All of them."""
        return items

    def wait(self, items: int, meanwhile: Callable[[], None]) -> None:
        """Return at once."""

    def cancel(self) -> None:
        """There is nothing to cancel."""
