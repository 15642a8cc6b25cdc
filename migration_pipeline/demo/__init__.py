"""What `make demo` and `make dev` run on one machine: a database and Dagster's services.

A deployment uses nothing of this: it has a PostgreSQL of its own and starts Dagster's services itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from migration_pipeline.errors import MigrationError

CLONE = (Path(__file__).parents[2] / "Makefile").exists()
"""Whether this runs from a clone of the project, which has `make`; else it was installed by pip."""

LOG_LINES = 15  # of a log, for a message: enough for the end of a traceback


class LocalError(MigrationError):
    """A part of the local stack cannot start, or has ended; str() is the message for the user."""

    @classmethod
    def with_log(cls, what: str, log: Path) -> LocalError:
        """The error that something failed and wrote the reason to the end of a log."""
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()  # Dagster's logs are coloured
        return cls("\n".join([f"{what}. The end of {log}:", *lines[-LOG_LINES:]]))
