"""Mends what Dagster keeps of the files' statuses, where it has lost one that is materialized.

Dagster keeps the statuses of an asset's partitions as one value, up to the id of an event, and adds to it what comes later. It
reads the newest materialization and the newest planned one by one: where a file is materialized and another is planned between
the two, the first is behind the id and in no later addition. So it stays missing, or failed, until somebody wipes the value
(read from `dagster._core.storage.partition_status_cache` at 1.13.27, and seen: ``findings/dagster-forgets-a-partition.sh``).
"""

from __future__ import annotations

from collections.abc import Collection

import dagster as dg
from dagster import DagsterEventType


def mend_statuses(
    instance: dg.DagsterInstance, keys: Collection[dg.AssetKey], partitions: dg.StaticPartitionsDefinition
) -> set[str]:
    """Have Dagster make the statuses of assets anew where one of a materialized partition is lost; give those partitions.

    Looked at is what is kept, and the log up to there: a look that Dagster itself takes might lose one. Each asset takes a query
    of its materialized partitions. Raises what the storage raises.
    """
    names, mended = set(partitions.get_partition_keys()), set[str]()
    for record in instance.get_asset_records(list(keys)):
        key, kept = record.asset_entry.asset_key, record.asset_entry.cached_status
        if kept is None or kept.partitions_def_id != partitions.get_serializable_unique_identifier():
            continue  # made anew at the next look
        found = instance.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
        done = {
            name: event for name, event in found.items() if name in names and event <= kept.latest_storage_id
        }
        failed = done.keys() & kept.deserialize_failed_partition_subsets(partitions).get_partition_keys()
        planned = (
            instance.get_latest_storage_id_by_partition(
                key, DagsterEventType.ASSET_MATERIALIZATION_PLANNED, failed
            )
            if failed
            else {}
        )
        lost = done.keys() - kept.deserialize_materialized_partition_subsets(partitions).get_partition_keys()
        lost |= {name for name in failed if done[name] > planned.get(name, 0)}
        if lost:
            instance.wipe_asset_cached_status([key])
            mended |= lost
    return mended
