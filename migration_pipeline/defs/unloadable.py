"""Shows a plan that does not load, such as one whose profile has an error; the other plans are not affected."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from migration_pipeline.defs.failures import Failed
from migration_pipeline.defs.metadata import PROFILE_TAG
from migration_pipeline.migration.names import EXPORT, FINISHING, UNLOADABLE
from migration_pipeline.migration.plan import Plan


class Whatever(dg.PermissiveConfig):
    """The configuration that a run in the queue was given."""


def unloadable_plan(name: str, fault: str, plan: Plan | None = None) -> list[dg.AssetsDefinition]:
    """Build the asset ``[profile, plan_does_not_load]``, which says why; materializing it fails with the same text.

    Where the `plan` itself can be read, its assets stand beside it, with their files: Dagster fails a backfill, and cancels its
    runs, when an asset or partition of it is gone. What is loading then goes on, and what is started fails with that text.
    """
    why = f"the plan of {name} does not load: {fault}"
    dg.get_dagster_logger().error(why)
    told = f"The plan of {name} does not load: {fault}"

    @dg.asset(
        key=[name, UNLOADABLE],
        group_name=name,
        kinds={"error"},
        tags={PROFILE_TAG: name},
        description=f"{told}\n\nUntil it does, none of its assets can be made. "
        "Fix this, then reload the code location. Materialized partitions stay materialized.",
    )
    def plan_does_not_load() -> None:
        raise Failed(why)

    return [plan_does_not_load, *(_stand_ins(plan, why, told) if plan and plan.tables else [])]


def _stand_ins(plan: Plan, why: str, told: str) -> list[dg.AssetsDefinition]:
    """Build what stands for the assets of a plan meanwhile, one after another as they are."""
    after = [*plan.tables, *plan.aggregates]
    files = dg.StaticPartitionsDefinition([planned.partition for planned in plan.files])
    return [
        _stand_in(plan, f"{plan.profile}_load", {name: [EXPORT] for name in plan.tables}, why, told, files),
        *(
            _stand_in(plan, f"{plan.profile}_{name}", {name: list(sources)}, why, told)
            for name, sources in plan.aggregates.items()
        ),
        _stand_in(plan, f"{plan.profile}__{FINISHING}", {FINISHING: after}, why, told),
    ]


def _stand_in(
    plan: Plan,
    step: str,
    assets: dict[str, list[str]],
    why: str,
    told: str,
    files: dg.StaticPartitionsDefinition | None = None,
) -> dg.AssetsDefinition:
    """Build a step whose assets are made of others, by their names, and that fails."""
    specs = [
        dg.AssetSpec(
            key=[plan.profile, name],
            deps=[dg.AssetKey([plan.profile, source]) for source in sources],
            group_name=plan.profile,
            kinds={"error"},
            tags={PROFILE_TAG: plan.profile},
            description=told,
        )
        for name, sources in assets.items()
    ]
    runs = dg.BackfillPolicy.multi_run(max_partitions_per_run=plan.files_per_run) if files else None

    @dg.multi_asset(
        name=step,
        specs=specs,
        partitions_def=files,
        backfill_policy=runs,
    )
    def fails(config: Whatever) -> Iterator[dg.MaterializeResult[Any]]:
        yield from ()
        raise Failed(why)

    return fails
