"""How a step fails: the reason comes first, in the UI, in logs and for the commands, without the traceback of a user's mistake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from migration_pipeline.errors import MigrationError


class Failed(dg.Failure):
    """A step has failed for a reason that its text says. Dagster does not try it again."""

    __module__ = "builtins"
    """The UI shows an exception as Python prints it: with the name of its module before its text, except for built-in ones."""

    def __init__(self, reason: str, metadata: dict[str, str] | None = None) -> None:
        super().__init__(description=reason, metadata=metadata, allow_retries=False)


@contextmanager
def failing() -> Iterator[None]:
    """Turn a `MigrationError` into the step's failure. Else the UI shows Dagster's own error first, and the reason behind it."""
    try:
        yield
    except MigrationError as error:
        raise Failed(str(error)) from None
