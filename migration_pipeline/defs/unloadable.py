"""A plan that does not load, as one whose profile has an error: its own failure, which leaves the other plans alone."""

import dagster as dg

from migration_pipeline.defs.metadata import PROFILE_TAG


def unloadable_plan(name: str, fault: str) -> dg.AssetsDefinition:
    """Build the one asset of such a plan, ``[profile, plan_does_not_load]``, in place of all others.

    Its description says why; who materializes it gets the same as the failure of the run.
    """
    dg.get_dagster_logger().error(f"the plan of {name} does not load: {fault}")

    @dg.asset(
        key=[name, "plan_does_not_load"],
        group_name=name,
        kinds={"error"},
        tags={PROFILE_TAG: name},
        description=f"**The plan of {name} does not load**, so none of its assets are here:\n\n{fault}\n\n"
        "Fix that, then reload this code location. What was materialized stays so.",
    )
    def plan_does_not_load() -> None:
        raise dg.Failure(f"the plan of {name} does not load: {fault}", allow_retries=False)

    return plan_does_not_load
