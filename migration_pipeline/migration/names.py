"""The keys of Dagster's assets, for who builds them and for who asks a running Dagster about them."""

from __future__ import annotations

from migration_pipeline.profile.profile import Profile

FINISHING = "finishing"
"""The last part of the key of the asset that finishes a profile's tables."""


def downstream_keys(profile: Profile) -> list[list[str]]:
    """The keys of what is made of all files, in the order in which it is made: the aggregates, then the finishing."""
    names = [*(aggregate.table.name for aggregate in profile.aggregates), FINISHING]
    return [[profile.name, name] for name in names]
