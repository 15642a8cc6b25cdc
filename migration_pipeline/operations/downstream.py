"""What comes after a profile's files, as Dagster knows it: its aggregates, and its finishing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from migration_pipeline.migration.names import downstream_keys, table_keys
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.verdicts import Made, made_of_all, receipts_of
from migration_pipeline.operations.client import ENTRIES, DagsterClient, metadata_of
from migration_pipeline.operations.files import FileStatus, State
from migration_pipeline.operations.runs import run_error
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.receipts import empty_tables, read_aggregates
from migration_pipeline.targets.records import FileKey, Receipt


class AssetStatus(msgspec.Struct, kw_only=True):
    """An asset without partitions."""

    name: str
    key: list[str]
    state: State
    """*materialized* only if it is newer than all files."""
    rows: int | None = None
    run_id: str = ""
    error: str = ""


def downstream(client: DagsterClient, profile: Profile) -> list[AssetStatus]:
    """Tell the state of each asset that is made of all files. Raises `DagsterClientError`."""
    keys = downstream_keys(profile)
    tables = table_keys(profile)
    found = client.query(LATEST, keys=[{"path": key} for key in [*keys, *tables]])
    nodes = {tuple(node["assetKey"]["path"]): node for node in found["assetNodes"]}
    runs = {tuple(info["assetKey"]["path"]): info for info in found["assetsLatestInfo"]}
    newest = max((_time(nodes.get(tuple(key))) for key in tables), default=0)
    return [_status(client, key, nodes.get(tuple(key)), runs.get(tuple(key)), newest) for key in keys]


def to_launch(
    assets: Sequence[AssetStatus], files: Sequence[FileStatus], wanted: Sequence[FileStatus]
) -> list[list[str]]:
    """The keys to launch together with `wanted`: all of them, where that completes the files and anything is left to do."""
    launched = {file.partition for file in wanted}
    if not all(file.state == "materialized" or file.partition in launched for file in files):
        return []
    left = wanted or {asset.state for asset in assets} - {"materialized", "running"}
    return [asset.key for asset in assets] if left else []


def read_made(plan: Plan, profile: Profile, url: str, receipts: Mapping[FileKey, Receipt]) -> dict[str, Made]:
    """Judge each aggregate, by its asset's name, as its receipt and its table are now. Raises `DatabaseError`.

    Dagster knows nothing of a replay, or of SQL that has changed since.
    """
    if not profile.aggregates:
        return {}
    found = read_aggregates(url, plan.profile)
    empty = empty_tables(url, (each.table for each in profile.aggregates))
    loaded = receipts_of(plan, receipts)
    return {
        each.table.name: made_of_all(plan, each, found.get(name), loaded, 0 if name in empty else None)
        for each in profile.aggregates
        for name in (each.table.qualified,)
    }


def _status(client: DagsterClient, key: list[str], node: Any, info: Any, newest: int) -> AssetStatus:
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
        status.error = run_error(client, latest["id"])
    elif events and _time(node) >= newest:
        status.state, status.run_id = "materialized", events[0]["runId"]
        status.rows = metadata_of(events[0]).get("rows")
    return status


def _time(node: Any) -> int:
    """When an asset was last materialized, in milliseconds of the epoch; 0 when never."""
    events = node["assetMaterializations"] if node else []
    return int(events[0]["timestamp"]) if events else 0


LATEST = (
    """
query Latest($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetKey { path }
    assetMaterializations(limit: 1) {
      runId timestamp
      metadataEntries { ...Entries }
    }
  }
  assetsLatestInfo(assetKeys: $keys) {
    assetKey { path } unstartedRunIds inProgressRunIds latestRun { id status }
  }
}"""
    + ENTRIES
)
