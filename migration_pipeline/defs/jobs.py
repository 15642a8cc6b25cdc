"""The job ``<profile>_migrate``: loads all files of a migration, for those who look for it under Jobs."""

from typing import Any

import dagster as dg

from migration_pipeline.defs.metadata import PROFILE_TAG
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.profile import Profile


def migrate_job(plan: Plan, profile: Profile) -> Any:
    """Build the job ``<profile>_migrate``, which materializes the tables that files are loaded into.

    It selects these tables, not the group: assets without partitions would run again with each file.
    """
    tables = [dg.AssetKey([plan.profile, table.name]) for table in profile.tables.values()]
    return dg.define_asset_job(
        f"{plan.profile}_migrate",
        selection=dg.AssetSelection.assets(*tables),
        description=f"Loads the export files of {plan.profile}, a partition each: all, or those that failed or are missing. Aggregates and "
        "finishing are not part of it: Materialize all in the asset group makes those, too.",
        tags={PROFILE_TAG: plan.profile},
    )
