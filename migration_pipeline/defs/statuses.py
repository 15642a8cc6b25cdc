"""Mends what Dagster keeps of the files' statuses, where it has lost one that is materialized.

Dagster keeps the statuses of an asset's partitions as one value, up to the id of an event, and adds to it what comes later. It
reads the newest materialization and the newest planned one by one: where a file is materialized and another is planned between
the two, the first is behind the id and in no later addition. So it stays missing, or failed, until somebody wipes the value
(read from `dagster._core.storage.partition_status_cache` at 1.13.27, and seen: ``findings/dagster-forgets-a-partition.sh``).
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg
from dagster import AssetPartitionStatus, DagsterEventType


def mend_statuses(
    instance: dg.DagsterInstance, keys: Iterable[dg.AssetKey], partitions: dg.StaticPartitionsDefinition
) -> set[str]:
    """Have Dagster make the statuses of assets anew where one of a materialized partition is lost; give those partitions.

    Run it after what may be lost is recorded. Each asset takes two queries, and a microsecond or two a materialized partition.
    """
    names = partitions.get_partition_keys()
    mended = set[str]()
    for key in keys:
        done = instance.get_latest_storage_id_by_partition(key, DagsterEventType.ASSET_MATERIALIZATION)
        statuses = instance.get_status_by_partition(key, names, partitions) or {}
        lost = {name for name in names if name in done and statuses.get(name) is None}
        failed = {
            name for name in names if name in done and statuses.get(name) is AssetPartitionStatus.FAILED
        }
        if failed:
            planned = instance.get_latest_storage_id_by_partition(
                key, DagsterEventType.ASSET_MATERIALIZATION_PLANNED, failed
            )
            lost |= {name for name in failed if done[name] > planned.get(name, 0)}
        if lost:
            instance.wipe_asset_cached_status([key])
            mended |= lost
    return mended
