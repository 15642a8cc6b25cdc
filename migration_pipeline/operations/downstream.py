"""What comes after a profile's files, as Dagster knows it: its aggregates, and its finishing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from migration_pipeline.migration.names import downstream_keys
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.client import FileStatus, Instance, State
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.receipts import empty_tables, read_aggregates, read_receipts


class AssetStatus(msgspec.Struct, kw_only=True):
    """An asset without partitions."""

    name: str
    key: list[str]
    state: State
    """*materialized* only if it is newer than all files."""
    rows: int | None = None
    run_id: str = ""
    error: str = ""


def downstream(instance: Instance, profile: Profile) -> list[AssetStatus]:
    """Tell the state of each asset that is made of all files. Raises `InstanceError`."""
    keys = downstream_keys(profile)
    tables = [[profile.name, table.name] for table in profile.tables.values()]
    found = instance.query(LATEST, keys=[{"path": key} for key in [*keys, *tables]])
    nodes = {tuple(node["assetKey"]["path"]): node for node in found["assetNodes"]}
    runs = {tuple(info["assetKey"]["path"]): info for info in found["assetsLatestInfo"]}
    newest = max((_time(nodes.get(tuple(key))) for key in tables), default=0)
    return [_status(instance, key, nodes.get(tuple(key)), runs.get(tuple(key)), newest) for key in keys]


def to_launch(
    assets: Sequence[AssetStatus],
    files: Sequence[FileStatus],
    wanted: Sequence[FileStatus],
    outdated: Callable[[], bool] = lambda: False,
) -> list[list[str]]:
    """The keys to launch together with `wanted`: all of them, where that completes the files and anything is left to do.

    `outdated` is asked last: whether more is left to do than Dagster knows of.
    """
    launched = {file.partition for file in wanted}
    if not all(file.state == "materialized" or file.partition in launched for file in files):
        return []
    states = {asset.state for asset in assets}
    left = wanted or states - {"materialized", "running"} or ("running" not in states and outdated())
    return [asset.key for asset in assets] if left else []


def outdated(plan: Plan, profile: Profile, url: str | None) -> bool:
    """Whether an aggregate is not made of what is landed now, as its receipt says after a replay, or is empty again.

    Where the database is not known, or cannot be reached from here, only Dagster knows: then it is not.
    """
    if url is None:
        return False
    try:
        receipts, made = read_receipts(url, plan.profile), read_aggregates(url, plan.profile)
        empty = empty_tables(url, (each.table for each in profile.aggregates))
    except DatabaseError:
        return False
    files = [r for p in plan.files if (r := receipts.get((p.export_id, p.file.name)))]
    return any(
        receipt.fault(aggregate.sql_md5, files) or (receipt.rows and receipt.table_name in empty)
        for aggregate in profile.aggregates
        if (receipt := made.get(aggregate.table.qualified))
    )


def _status(instance: Instance, key: list[str], node: Any, info: Any, newest: int) -> AssetStatus:
    status = AssetStatus(name=key[-1], key=key, state="missing")
    events = node["assetMaterializations"] if node else []
    latest = (info or {}).get("latestRun") or {}
    if info and (info["inProgressRunIds"] or info["unstartedRunIds"]):
        status.state = "running"
        status.run_id = [*info["inProgressRunIds"], *info["unstartedRunIds"]][0]
    elif latest.get("status") in ("FAILURE", "CANCELED") and not (
        events and events[0]["runId"] == latest["id"]
    ):
        status.state = "failed" if latest["status"] == "FAILURE" else "stopped"
        status.run_id = latest["id"]
        status.error = instance.run_error(latest["id"])
    elif events and _time(node) >= newest:
        status.state, status.run_id = "materialized", events[0]["runId"]
        entries = {entry["label"]: entry for entry in events[0]["metadataEntries"]}
        if "rows" in entries:
            status.rows = int(entries["rows"]["intRepr"])
    return status


def _time(node: Any) -> int:
    """When an asset was last materialized, in milliseconds of the epoch; 0 when never."""
    events = node["assetMaterializations"] if node else []
    return int(events[0]["timestamp"]) if events else 0


LATEST = """
query Latest($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetKey { path }
    assetMaterializations(limit: 1) {
      runId timestamp
      metadataEntries { label ... on IntMetadataEntry { intRepr } }
    }
  }
  assetsLatestInfo(assetKeys: $keys) {
    assetKey { path } unstartedRunIds inProgressRunIds latestRun { id status }
  }
}"""
