"""Names of a migration in Dagster, for the code that defines it (`defs/`) and that queries it. Imports no Dagster.

The key of an asset is ``[profile, name]``.
"""

from __future__ import annotations

import msgspec

from migration_pipeline.profile.profile import Profile

EXPORT = "dynamodb_export"
"""The export, which no run materializes; checks and observations are its own."""

PLAN_DIGEST = "plan"
"""Label of the export's metadata that says which plan Dagster has loaded."""

FINISHING = "finishing"
"""What finishes a profile's tables."""

UNLOADABLE = "plan_does_not_load"
"""Is there while the plan does not load; its description says why."""


def table_keys(profile: Profile) -> list[list[str]]:
    """The keys of the tables that files are loaded into."""
    return [[profile.name, table.name] for table in profile.tables.values()]


def downstream_keys(profile: Profile) -> list[list[str]]:
    """The keys of what is made of all files, in the order in which it is made."""
    names = [aggregate.table.name for aggregate in profile.aggregates]
    return [[profile.name, name] for name in (*names, FINISHING)]


class FileProgress(msgspec.Struct, frozen=True, kw_only=True):
    """What an observation of the export says of a file that is being loaded. Its fields are the labels of the metadata."""

    file: str
    percent: float
    """Of the file's items, 0 to 100."""
    items_read: int
    items: int = 0
    """In the file, by the manifest."""
    items_per_second: int
    seconds_left: int
    """0 where that is not known yet."""
    quarantined: int = 0
    """Items that something is wrong with, so far."""
    retries: int = 0
    """Transactions that ran again so far, after transient faults of the database."""
    throttled: str = ""
    """What the load waits for; "" while it writes."""
    throttled_seconds: float = 0.0
    """Seconds that it has waited so far."""
