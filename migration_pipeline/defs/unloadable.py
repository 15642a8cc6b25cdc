"""Shows a plan that does not load, such as one whose profile has an error; the other plans are not affected."""

import dagster as dg

from migration_pipeline.defs.failures import Failed
from migration_pipeline.defs.metadata import PROFILE_TAG


def unloadable_plan(name: str, fault: str) -> dg.AssetsDefinition:
    """Build the asset ``[profile, plan_does_not_load]``, which stands in for all assets of such a plan.

    Its description says why the plan does not load; materializing it fails with the same text.
    """
    dg.get_dagster_logger().error(f"the plan of {name} does not load: {fault}")

    @dg.asset(
        key=[name, "plan_does_not_load"],
        group_name=name,
        kinds={"error"},
        tags={PROFILE_TAG: name},
        description=f"The plan of {name} does not load, so none of its assets are here: {fault}\n\n"
        "Fix this, then reload the code location. Materialized partitions stay materialized.",
    )
    def plan_does_not_load() -> None:
        raise Failed(f"the plan of {name} does not load: {fault}")

    return plan_does_not_load
