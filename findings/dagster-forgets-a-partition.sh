#!/usr/bin/env bash
# dagster 1.13.27: a partition that is materialized while somebody looks at the asset stays missing for ever.
#
# For each asset, Dagster keeps which of its partitions are materialized, up to the id of an event, and adds to it what came later.
# The UI, GraphQL and get_status_by_partition all show that. Two processes write here, as run workers and the daemon do: one records
# a materialization of b, then the other that c is to be materialized, both while a third looks at the asset.
#
# Guess: the third sees b materialized at that look, or at the next one.
# Seen:  the look reads the newest materialization first and the newest planned one after it. b is in neither, and the id that is
#        kept is c's, which is greater. b is shown as missing from then on, also when c is materialized; its event is in the log,
#        and get_materialized_partitions has it. `dagster asset wipe-cache` mends it, or a further materialization of b.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27
cd "$work"
export DAGSTER_DISABLE_TELEMETRY=1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import dagster as dg
from dagster._core.events import AssetMaterializationPlannedData
from dagster._core.test_utils import create_run_for_test, instance_for_test

TABLE, FILES = dg.AssetKey("table"), dg.StaticPartitionsDefinition(["a", "b", "c"])


def materialize(instance, partition):
    instance.report_runless_asset_event(dg.AssetMaterialization(TABLE, partition=partition))


def plan(instance, partition):
    """Make a run for a partition, as a backfill or the UI does."""
    planned = dg.DagsterEvent("ASSET_MATERIALIZATION_PLANNED", "job", event_specific_data=AssetMaterializationPlannedData(TABLE, partition))
    instance.report_dagster_event(planned, create_run_for_test(instance, job_name="job").run_id)


def look(instance):
    return {name: status and status.value for name, status in instance.get_status_by_partition(TABLE, ["a", "b", "c"], FILES).items()}


with instance_for_test() as instance:
    plan(instance, "a")
    materialize(instance, "a")
    plan(instance, "b")
    print("before:           ", look(instance))
    second_read = instance.get_latest_planned_materialization_info

    def meanwhile(key):
        """Stand between the two reads of a look, where other processes may write."""
        instance.get_latest_planned_materialization_info = second_read
        materialize(instance, "b")
        plan(instance, "c")
        return second_read(key)

    instance.get_latest_planned_materialization_info = meanwhile
    look(instance)
    lost = look(instance)
    print("after:            ", lost)
    assert lost == {"a": "MATERIALIZED", "b": None, "c": "IN_PROGRESS"}, lost
    assert set(instance.get_materialized_partitions(TABLE)) == {"a", "b"}
    materialize(instance, "c")
    lost = look(instance)
    print("c is materialized:", lost)
    assert lost == {"a": "MATERIALIZED", "b": None, "c": "MATERIALIZED"}, lost
    instance.wipe_asset_cached_status([TABLE])
    found = look(instance)
    print("cache wiped:      ", found)
    assert set(found.values()) == {"MATERIALIZED"}, found
PYTHON
