"""Names under which Dagster keeps a migration, for those who tell it (`defs/`) and those who ask it. Free of Dagster.

The key of an asset is ``[profile, name]``.
"""

from __future__ import annotations

from migration_pipeline.profile.profile import Profile

EXPORT = "dynamodb_export"
"""The export, which no run materializes; checks and observations are its own."""

FINISHING = "finishing"
"""What finishes a profile's tables."""


def table_keys(profile: Profile) -> list[list[str]]:
    """The keys of the tables that files are loaded into."""
    return [[profile.name, table.name] for table in profile.tables.values()]


def downstream_keys(profile: Profile) -> list[list[str]]:
    """The keys of what is made of all files, in the order in which it is made."""
    names = [aggregate.table.name for aggregate in profile.aggregates]
    return [[profile.name, name] for name in (*names, FINISHING)]
