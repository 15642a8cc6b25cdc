"""The code location: every plan found becomes a group of assets. Loaded again in each run worker."""

import os

import dagster as dg

from migration_pipeline import settings
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.plan import read_plans


def _database_url() -> str:
    """Read the URL from the environment when the run needs it, so that it shows nowhere; else the embedded one."""
    variable = "MIGRATION_DATABASE_URL"
    return dg.EnvVar(variable) if os.environ.get(variable) else settings.database_url()


defs = dg.Definitions(
    assets=[
        asset
        for plan, profile in read_plans(settings.plans_dir())
        for asset in migration_assets(plan, profile)
    ],
    resources={"database": Database(url=_database_url())},
    # A file is one step: another process for it would only cost its start.
    executor=dg.in_process_executor,
)
