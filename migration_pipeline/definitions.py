"""The code location: every plan found becomes a group of assets. Loaded again in each run worker."""

import os

import dagster as dg

from migration_pipeline import settings
from migration_pipeline.defs.aggregates import downstream_assets
from migration_pipeline.defs.checks import check_job, migration_checks
from migration_pipeline.defs.jobs import migrate_job
from migration_pipeline.defs.migration import Database, migration_assets, replay_job
from migration_pipeline.defs.notify import backfill_sensor
from migration_pipeline.defs.unloadable import unloadable_plan
from migration_pipeline.defs.verify_job import verify_check, verify_job
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
checks = {plan.profile: migration_checks(plan, profile) for plan, profile in plans}
verifications = {plan.profile: verify_check(plan, profile) for plan, profile in plans}

defs = dg.Definitions(
    assets=[
        asset
        for plan, profile in plans
        for asset in (*migration_assets(plan, profile), *downstream_assets(plan, profile))
    ]
    + [unloadable_plan(name, fault) for name, fault in faults.items()],
    asset_checks=[check for made in checks.values() for check in made] + list(verifications.values()),
    jobs=[
        job
        for plan, profile in plans
        for job in (
            migrate_job(plan, profile),
            check_job(plan, checks[plan.profile]),
            verify_job(plan, verifications[plan.profile]),
            replay_job(plan, profile),
        )
    ],
    sensors=[backfill_sensor(plans)],
    resources={"database": Database(url=_database_url())},
    # A file is one step: another process for it would only cost its start.
    executor=dg.in_process_executor,
)
