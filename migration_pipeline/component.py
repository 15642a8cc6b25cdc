"""A migration in a Dagster project that a team has: one ``defs.yaml`` adds its assets, checks, jobs and sensor.

.. code-block:: yaml

    type: migration_pipeline.component.MigrationComponent
    attributes:
      profile: my_project.migrations.shop:profile

The plan is what ``migration-pipeline plan`` wrote; both sides find it by `MIGRATION_PLANS`, or by `plan` here.
"""

from contextlib import suppress
from functools import cache
from pathlib import Path

import dagster as dg
import msgspec
from pydantic import Field

from migration_pipeline import settings
from migration_pipeline.defs.hosting import Hosting
from migration_pipeline.defs.migration import Database
from migration_pipeline.defs.notify import SENSOR, backfill_sensor
from migration_pipeline.defs.unloadable import unloadable_plan
from migration_pipeline.defs.whole import migration_definitions
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import Plan, planned_profile
from migration_pipeline.migration.plans import is_passing, plan_of, plan_path, read_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.storage import is_s3

RESOURCE = "migration_database"
"""Key of the resource that components bring themselves: a location may have a `database` of its own."""


class MigrationComponent(dg.Component, dg.Model, dg.Resolvable):
    """Moves a DynamoDB table's export into PostgreSQL: an asset for each table, with a partition for each file."""

    profile: str = Field(
        description="The profile: a shipped one's name (shop), or a path (my_package.my_module:profile)."
    )
    plan: str | None = Field(
        default=None,
        description="Its plan: a file, relative to the folder of this component, or s3://bucket/key. By default the one in MIGRATION_PLANS.",
    )
    resource: str | None = Field(
        default=None,
        description="Key of a resource of the location whose `url` is the database's URL. By default the component brings one, "
        "which reads MIGRATION_DATABASE_URL.",
    )
    pool: str | None = Field(
        default=None,
        description="Pool that each run of a file takes a slot of. Its limit, set in Dagster, is how many files load at once.",
    )
    files_per_run: int | None = Field(
        default=None,
        ge=1,
        description="Files that a backfill loads in one run. By default what the plan says.",
    )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Build all definitions. A plan that does not load is an asset that says why, and the rest of the location loads."""
        name = _asset_name(self.profile.partition(":")[0].rpartition(".")[2])  # until it is imported
        try:
            name = load_profile(self.profile).name
            path = self._path(context, name)
            plan = self._checked(read_plan(path), path)
            profile = planned_profile(plan, path)
        except MigrationError as error:
            if is_passing(error):  # backfills outlast code that does not load, and not assets that are gone
                raise
            known = self._known_plan(context)
            return dg.Definitions(assets=unloadable_plan(known.profile if known else name, str(error), known))
        hosting = Hosting(self.resource or RESOURCE, self.pool, self.files_per_run)
        return dg.Definitions.merge(
            migration_definitions(plan, profile, hosting),
            dg.Definitions(
                sensors=[backfill_sensor([(plan, profile)], f"{plan.profile}_{SENSOR}")],
                resources={} if self.resource else {RESOURCE: _database()},
            ),
        )

    def _path(self, context: dg.ComponentLoadContext, name: str) -> str:
        """Where the plan lies."""
        if self.plan is None:
            return plan_path(settings.plans_dir(), name)
        if is_s3(self.plan):
            return self.plan
        here = Path(context.path)
        return str((here if here.is_dir() else here.parent) / self.plan)

    def _checked(self, plan: Plan, path: str) -> Plan:
        """See that a plan is of the profile. Raises `UsageError`."""
        if plan.reference != self.profile:
            raise UsageError(
                f"{path}: this plan was made for the profile {plan.reference}; plan again with --profile {self.profile}"
            )
        return plan

    def _known_plan(self, context: dg.ComponentLoadContext) -> Plan | None:
        """The plan of a profile that does not load, as this component runs it; None where it cannot be read."""
        plan = None
        if self.plan is None:
            plan = plan_of(settings.plans_dir(), self.profile)
        else:
            path = self._path(context, "")
            with suppress(UsageError):
                plan = self._checked(read_plan(path), path)
        if plan and self.files_per_run:
            return msgspec.structs.replace(plan, files_per_run=self.files_per_run)
        return plan


def _asset_name(name: str) -> str:
    """Keep of a name what an asset's key may hold."""
    return "".join(letter if letter.isalnum() else "_" for letter in name)


@cache
def _database() -> Database:
    """The one resource of all components of a location: Dagster refuses two of one key."""
    return Database(url=dg.EnvVar(settings.DATABASE_URL))
