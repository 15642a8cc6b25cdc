"""Restores in Dagster what it lost: files that are loaded and aggregates that are made, as their receipts prove.

Deleting a run deletes its materializations, and a new Dagster instance knows none. The receipt of a file lies in
the target database and was committed with the file's last batch, so it is still there; that of an aggregate, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

import msgspec

from migration_pipeline.defs.aggregates import aggregate_metadata
from migration_pipeline.defs.metadata import file_metadata
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.verdicts import Made, matches
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.downstream import AssetStatus, downstream, read_made
from migration_pipeline.operations.files import BUSY, FileStatus, read_files
from migration_pipeline.operations.runs import run_start
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Table
from migration_pipeline.targets.receipts import read_receipts
from migration_pipeline.targets.records import AggregateReceipt, AggregateReport, FileKey, Receipt


class Reconciled(msgspec.Struct, kw_only=True):
    """The result of a reconciliation: what was reported to Dagster, and what was not."""

    reported: list[tuple[FileStatus, Receipt]] = []
    """Reported as materialized."""
    other_version: list[FileStatus] = []
    """Of those, the ones that another version of the profile loaded."""
    refused: list[tuple[FileStatus, str]] = []
    """Files with a receipt that were not reported, and why."""
    aggregates: list[tuple[AssetStatus, AggregateReceipt]] = []
    """Reported as materialized."""
    refused_aggregates: list[tuple[AssetStatus, str]] = []
    """Aggregates with a receipt that were not reported, and why."""
    unproven: list[FileStatus] = []
    """Files that Dagster shows as materialized, without a receipt of the same contents."""
    outdated: list[tuple[AssetStatus, str]] = []
    """Aggregates that Dagster shows as materialized, and that are not made of all files as they are now, and why."""


def reconcile(plan: Plan, profile: Profile, client: DagsterClient, database_url: str) -> Reconciled:
    """Report a materialization without a run for each file and table that Dagster lost.

    Reported are files of the plan whose receipt has the same export, file and MD5, that no run is loading or has
    begun to load since, and whose every table the receipt speaks of. Then, if all files are there, each aggregate
    that was made of them by the SQL that it has now. Raises `DagsterClientError` when Dagster cannot
    be reached, and `DatabaseError` when the receipts cannot be read.
    """
    receipts = read_receipts(database_url, plan.profile)
    planned = plan.by_partition()
    done = Reconciled()
    for status in read_files(client, plan, profile):
        file = planned[status.partition]
        receipt = receipts.get((file.export_id, file.file.name))
        if receipt is None or not matches(file, receipt):
            if status.state == "materialized":
                done.unproven.append(status)
            continue
        if status.state in ("materialized", *BUSY):
            continue
        if reason := _reason_against(status, receipt, receipts, profile, client):
            done.refused.append((status, reason))
            continue
        for table in profile.tables.values():
            client.report_materialization(
                [plan.profile, table.name],
                file.partition,
                file_metadata(file, _report(receipt), table, plan.window_of(file)),
                f"reported by `migration-pipeline reconcile` from the receipt of {receipt.loaded_at:%Y-%m-%d %H:%M:%S %Z}, "
                f"run {receipt.run_id}",
            )
        done.reported.append((status, receipt))
        if receipt.profile_version != profile.version:
            done.other_version.append(status)
    if profile.aggregates:
        whole = all(file.state == "materialized" for file in read_files(client, plan, profile))
        made = read_made(plan, profile, database_url, receipts)
        for asset in downstream(client, profile):
            if asset.name in made and not made[asset.name].waits:
                _reconcile_aggregate(client, asset, made[asset.name], whole, done)
    return done


def _reconcile_aggregate(
    client: DagsterClient, asset: AssetStatus, made: Made, whole: bool, done: Reconciled
) -> None:
    """Report an aggregate that Dagster does not show as made of all files, and that is, once it shows all files."""
    receipt = made.receipt
    if asset.state == "materialized":
        if made.fault:
            done.outdated.append((asset, made.fault))
    elif receipt is None or not whole or asset.state == "running":
        return
    elif made.fault:
        done.refused_aggregates.append((asset, made.fault))
    else:
        client.report_materialization(
            asset.key,
            None,
            aggregate_metadata(msgspec.convert(receipt, AggregateReport, from_attributes=True)),
            f"reported by `migration-pipeline reconcile` from the receipt of {receipt.made_at:%Y-%m-%d %H:%M:%S %Z}, "
            f"run {receipt.run_id}",
        )
        done.aggregates.append((asset, receipt))


def _reason_against(
    status: FileStatus,
    receipt: Receipt,
    receipts: Mapping[FileKey, Receipt],
    profile: Profile,
    client: DagsterClient,
) -> str:
    """Say why a receipt does not prove that its file is loaded; "" if it does."""
    if status.run_id and status.run_id != receipt.run_id:
        started = datetime.fromtimestamp(run_start(client, status.run_id), timezone.utc)
        if started > receipt.loaded_at:
            return f"run {status.run_id[:8]} began to load it again and {status.state}; see retry-failed"
    for table in profile.tables.values():
        if not _speaks_of(receipt, table, receipts):
            return f"it may have been loaded before the profile had the table {table.qualified}; see backfill"
    return ""


def _speaks_of(receipt: Receipt, table: Table, receipts: Mapping[FileKey, Receipt]) -> bool:
    """Whether a file was loaded by a profile that had the table; a receipt does not name tables without rows."""
    return table.qualified in receipt.rows or any(
        table.qualified in other.rows and other.loaded_at <= receipt.loaded_at for other in receipts.values()
    )


def _report(receipt: Receipt) -> FileReport:
    """The account of the file as it was when it was loaded."""
    return msgspec.convert(receipt, FileReport, from_attributes=True)
