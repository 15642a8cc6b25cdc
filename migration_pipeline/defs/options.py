"""Run config of a load for profiles that have options of their own."""

from typing import Any, get_type_hints

import dagster as dg
import msgspec
from pydantic import Field, create_model

from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile


def with_options(base: type[dg.Config], plan: Plan, profile: Profile) -> type[Any]:
    """Add the profile's options to a config class, as the member ``options``; `base` itself if it has none.

    Their defaults are the plan's.
    """
    if profile.options_class is None:
        return base
    planned = profile.options(plan.options)
    hints = get_type_hints(profile.options_class)
    described = get_type_hints(profile.options_class, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (
            hints[field.name],
            Field(default=getattr(planned, field.name), description=_description(described[field.name])),
        )
        for field in msgspec.structs.fields(profile.options_class)
    }
    options: Any = create_model(f"{profile.name}_options", __base__=dg.Config, **fields)
    description = f"Options of the profile {profile.name}. They decide what is loaded."
    more: dict[str, Any] = {"options": (options, Field(default=options(), description=description))}
    return create_model(f"{profile.name}_{base.__name__}", __base__=base, **more)


def options_of(config: Any, profile: Profile) -> Options | None:
    """Make the profile's options of a run's config. Raises `UsageError` for values outside their limits."""
    return profile.options(config.options.model_dump() if profile.options_class else {})


def _description(annotation: Any) -> str | None:
    metas = (m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, msgspec.Meta))
    return next((meta.description for meta in metas), None)
