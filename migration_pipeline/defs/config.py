"""Run config of loads, aggregates and the finishing, as Dagster's launchpad shows it.

The settings, their limits and descriptions come from the structs that the engine and the connection take, and from
the profile's options.
"""

from typing import Any

import dagster as dg
import msgspec
from pydantic import Field, create_model

from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.load import described
from migration_pipeline.migration.plan import Plan, throttle_of
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.aggregation import AggregateSettings
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.throttle import ThrottleSettings


class _Config(dg.Config):
    """Run config of what talks to the database."""

    @property
    def database(self) -> DatabaseSettings:
        """The settings of the connection."""
        return msgspec.convert(self.model_dump(), DatabaseSettings)

    @property
    def throttle(self) -> ThrottleSettings:
        """When to wait for the target."""
        return msgspec.convert(self.model_dump(), ThrottleSettings)


class _LoadConfig(_Config):
    """Run config of a load. Nothing here changes the result of one that is no dry run."""

    dry_run: bool = Field(
        default=False,
        description="Only tell what a load would do: new, changed and unchanged rows, bad items. Nothing is "
        "written or materialized.",
    )

    @property
    def load(self) -> LoadSettings:
        """The settings of the engine."""
        return msgspec.convert(self.model_dump(), LoadSettings)


class _AggregateConfig(_Config):
    """Run config of an aggregate. Only `delete_rows` changes the result."""

    @property
    def aggregate(self) -> AggregateSettings:
        """The settings of the aggregate."""
        return msgspec.convert(self.model_dump(), AggregateSettings)


class _FinishingConfig(_Config):
    """Run config of the finishing."""

    drop_landing: bool = Field(
        default=False,
        description="Drop the landed rows. To make an aggregate again, all files must then be loaded again. "
        "With windows it takes last_window, too.",
    )
    last_window: bool = Field(
        default=False,
        description="No other window will follow: lets drop_landing drop the landed rows of a plan that has windows.",
    )


def load_config(plan: Plan, profile: Profile) -> type[Any]:
    """Make the config class of a plan's loads; the profile's options, if it has any, are its member ``options``.

    Their defaults are the plan's, and so are those of the throttle.
    """
    fields = {**_fields(LoadSettings()), **_fields(DatabaseSettings()), **_fields(throttle_of(plan))}
    planned = profile.options(plan.options)
    if planned is not None:
        options: Any = create_model(f"{profile.name}_options", __base__=dg.Config, **_fields(planned))
        description = f"Options of the profile {profile.name}. They decide what is loaded."
        fields["options"] = (options, Field(default=options(), description=description))
    return create_model(f"{profile.name}_LoadConfig", __base__=_LoadConfig, **fields)


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


LONG_STATEMENTS = DatabaseSettings(statement_timeout_seconds=3600)
"""A statement over many landed rows takes longer than one over a batch."""


def aggregate_config(plan: Plan) -> type[Any]:
    """Make the config class of a plan's aggregates."""
    fields = {**_fields(LONG_STATEMENTS), **_fields(AggregateSettings()), **_fields(throttle_of(plan))}
    return create_model("AggregateConfig", __base__=_AggregateConfig, **fields)


def finishing_config(plan: Plan) -> type[Any]:
    """Make the config class of a plan's finishing."""
    fields = {**_fields(LONG_STATEMENTS), **_fields(throttle_of(plan))}
    return create_model("FinishingConfig", __base__=_FinishingConfig, **fields)
