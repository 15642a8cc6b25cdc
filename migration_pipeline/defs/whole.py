"""All definitions of one migration, as a code location takes them in, be it ours or one that has other things, too."""

import dagster as dg

from migration_pipeline.defs.aggregates import downstream_assets
from migration_pipeline.defs.checks import check_job, migration_checks
from migration_pipeline.defs.hosting import OURS, Hosting
from migration_pipeline.defs.jobs import migrate_job
from migration_pipeline.defs.migration import migration_assets, replay_job
from migration_pipeline.defs.verify_job import verify_check, verify_job
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.profile import Profile


def migration_definitions(plan: Plan, profile: Profile, hosting: Hosting = OURS) -> dg.Definitions:
    """Build the assets, checks and jobs of a plan; the resource that `hosting` names is the location's to bring."""
    checks, verification = migration_checks(plan, profile, hosting), verify_check(plan, profile, hosting)
    return dg.Definitions(
        assets=[*migration_assets(plan, profile, hosting), *downstream_assets(plan, profile, hosting)],
        asset_checks=[*checks, verification],
        jobs=[
            migrate_job(plan, profile),
            check_job(plan, checks),
            verify_job(plan, verification),
            replay_job(plan, profile, hosting),
        ],
    )
