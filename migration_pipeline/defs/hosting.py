"""How the assets of a migration live in a code location: which resource is their database, and how much of it runs at once."""

from __future__ import annotations

from typing import Any

import msgspec

DATABASE = "database"
"""The key of the resource, where the location is ours alone."""


class Hosting(msgspec.Struct, frozen=True):
    """What a code location that is not ours alone has otherwise."""

    resource: str = DATABASE
    """Key of the resource that holds the database's URL, as its `url`."""
    pool: str | None = None
    """Pool of Dagster that loads, aggregates and finishing take a slot of; its limit is set in Dagster."""
    files_per_run: int | None = None
    """Files that a backfill loads in one run; None for what the plan says."""

    @property
    def keys(self) -> set[str]:
        """The resources that are needed."""
        return {self.resource}

    def url(self, context: Any) -> str:
        """The database's URL, of a context of Dagster."""
        return str(getattr(context.resources, self.resource).url)


OURS = Hosting()
