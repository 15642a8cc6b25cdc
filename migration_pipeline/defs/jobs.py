"""The job of a migration for those who look for jobs: all of it, by one name."""

from typing import Any

import dagster as dg

from migration_pipeline.defs.metadata import PROFILE_TAG
from migration_pipeline.plan import Plan


def migrate_job(plan: Plan) -> Any:
    """Build the job ``<profile>_migrate``: the assets of the profile's group, which is what a backfill loads."""
    return dg.define_asset_job(
        f"{plan.profile}_migrate",
        selection=dg.AssetSelection.groups(plan.profile),
        description=f"Loads the export files of {plan.profile}: choose all partitions, or those that failed and are "
        "missing. It does what Materialize does for the group of assets.",
        tags={PROFILE_TAG: plan.profile},
    )
