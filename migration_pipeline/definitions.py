"""The code location: every plan found becomes a group of assets. Loaded again in each run worker."""

import os

import dagster as dg

from migration_pipeline import settings
from migration_pipeline.defs.hosting import DATABASE
from migration_pipeline.defs.migration import Database
from migration_pipeline.defs.notify import backfill_sensor
from migration_pipeline.defs.unloadable import unloadable_plan
from migration_pipeline.defs.whole import migration_definitions
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plans import read_plans


def _database_url() -> str:
    """Read the URL from the environment when the run needs it, so that it shows nowhere; else the local stack's.

    Without either the code loads, and a run fails at its start, naming the variable.
    """
    named = os.environ.get(settings.DATABASE_URL)
    return (
        dg.EnvVar(settings.DATABASE_URL)
        if named
        else settings.known_database_url() or dg.EnvVar(settings.DATABASE_URL)
    )


plans, faults = read_plans(settings.plans_dir())
if passing := [fault.why for fault in faults.values() if fault.passing]:
    # Backfills outlast code that does not load. They do not outlast assets that are gone.
    raise MigrationError(passing[0])

defs = dg.Definitions.merge(
    *(migration_definitions(plan, profile) for plan, profile in plans),
    dg.Definitions(
        assets=[
            asset for name, fault in faults.items() for asset in unloadable_plan(name, fault.why, fault.plan)
        ],
        sensors=[backfill_sensor(plans)],
        resources={DATABASE: Database(url=_database_url())},
        # A file is one step: another process for it would only cost its start.
        executor=dg.in_process_executor,
    ),
)
