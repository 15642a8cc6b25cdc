"""The errors that a user sees: one line that says what happened, to what, and what to do next."""

from __future__ import annotations

from typing_extensions import Self


class MigrationError(Exception):
    """A fault that the user or the operator can mend; its text is the whole message.

    The command line prints it without a traceback and exits with 1; in Dagster it is the failure's
    description. It never holds a value of an item, and never a password.
    """

    def __init__(
        self, message: str, *, sqlstate: str | None = None, file: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        """PostgreSQL's code, where it refused something."""
        self.file = file
        """The name of the export file, where there is one."""
        self.line = line
        """Its line, from 1, where one is to blame."""

    def reworded(self, message: str) -> Self:
        """The same error with another text."""
        return type(self)(message, sqlstate=self.sqlstate, file=self.file, line=self.line)


class UsageError(MigrationError):
    """The call itself was wrong (a bad profile, plan or export location); the command line exits with 2."""


class BadItem(Exception):  # noqa: N818  # a verdict on an item, not a failure of ours
    """One item cannot become rows: its line is malformed, an attribute has another type, the profile failed.

    The text is the reason, without any value of the item. Whoever knows the file and line adds them.
    """


class BadRow(BadItem):
    """One row of an item cannot be written as it is."""

    def __init__(self, reason: str, table: str) -> None:
        super().__init__(reason)
        self.table = table
        """The table's qualified name."""
