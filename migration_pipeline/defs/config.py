"""Run config of a load, as Dagster's launchpad shows it.

The settings, their limits and descriptions come from the structs that the engine and the connection take, and from
the profile's options.
"""

from typing import Any

import dagster as dg
import msgspec
from pydantic import Field, create_model

from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.load import described
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseSettings


class _Config(dg.Config):
    """Run config of a load. Except for the dry run, nothing here changes what is loaded."""

    dry_run: bool = Field(
        default=False,
        description="Only report what a load would do: new, changed and unchanged rows, bad items. Nothing is "
        "written or materialized.",
    )

    @property
    def load(self) -> LoadSettings:
        """The settings of the engine."""
        return msgspec.convert(self.model_dump(), LoadSettings)

    @property
    def database(self) -> DatabaseSettings:
        """The settings of the connection."""
        return msgspec.convert(self.model_dump(), DatabaseSettings)


def load_config(plan: Plan, profile: Profile) -> type[Any]:
    """Make the config class of a plan's loads; the profile's options, if it has any, are its member ``options``.

    Their defaults are the plan's.
    """
    fields = {**_fields(LoadSettings()), **_fields(DatabaseSettings())}
    planned = profile.options(plan.options)
    if planned is not None:
        options: Any = create_model(f"{profile.name}_options", __base__=dg.Config, **_fields(planned))
        description = f"Options of the profile {profile.name}. They decide what is loaded."
        fields["options"] = (options, Field(default=options(), description=description))
    return create_model(f"{profile.name}_LoadConfig", __base__=_Config, **fields)


def options_of(config: Any, profile: Profile) -> Options | None:
    """Make the profile's options from a run's config. Raises `UsageError` for values outside their limits."""
    return profile.options(config.options.model_dump() if profile.options_class else {})


def _fields(defaults: msgspec.Struct) -> dict[str, Any]:
    """Make config fields from a struct's."""
    limits = ("gt", "ge", "lt", "le", "description")
    return {
        name: (
            annotation,
            Field(default=getattr(defaults, name), **{limit: getattr(meta, limit) for limit in limits}),
        )
        for name, annotation, meta in described(defaults)
    }
