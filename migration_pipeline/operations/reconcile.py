"""Tells Dagster again what it lost: files that are loaded and aggregates that are made, as their receipts prove.

Deleting a run deletes its materializations, and a new Dagster instance knows none. The receipt of a file lies in
the target database and was committed with the file's last batch, so it is still there; that of an aggregate, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import msgspec

from migration_pipeline.defs.aggregates import aggregate_metadata
from migration_pipeline.defs.metadata import file_metadata
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.client import FileStatus, Instance
from migration_pipeline.operations.downstream import AssetStatus, downstream
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Table
from migration_pipeline.targets.receipts import read_aggregates, read_receipts
from migration_pipeline.targets.records import AggregateReceipt, AggregateReport, FileKey, Receipt


class Reconciled(msgspec.Struct, kw_only=True):
    """What was done, by file, and what was not."""

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


def reconcile(plan: Plan, profile: Profile, instance: Instance, database_url: str) -> Reconciled:
    """Report a materialization without a run for each file and table that Dagster lost.

    Reported are files of the plan whose receipt has the same export, file and MD5, that no run is loading or has
    begun to load since, and whose every table the receipt speaks of. Then, if all files are there, each aggregate
    that was made of them by the SQL that it has now. Raises `InstanceError` when Dagster cannot
    be reached, and `DatabaseError` when the receipts cannot be read.
    """
    receipts = read_receipts(database_url, plan.profile)
    planned = plan.by_partition()
    done = Reconciled()
    for status in instance.files(plan, profile):
        file = planned[status.partition]
        receipt = receipts.get((file.export_id, file.file.name))
        if receipt is None or receipt.md5 != file.file.md5:
            if status.state == "materialized":
                done.unproven.append(status)
            continue
        if status.state in ("materialized", "running"):
            continue
        if reason := _reason_against(status, receipt, receipts, profile, instance):
            done.refused.append((status, reason))
            continue
        for table in profile.tables.values():
            instance.report_materialization(
                [plan.profile, table.name],
                file.partition,
                file_metadata(file, _report(receipt), table),
                f"reported by `migration-pipeline reconcile` from the receipt of {receipt.loaded_at:%Y-%m-%d %H:%M:%S %Z}, "
                f"run {receipt.run_id}",
            )
        done.reported.append((status, receipt))
        if receipt.profile_version != profile.version:
            done.other_version.append(status)
    if all(file.state == "materialized" for file in instance.files(plan, profile)):
        loaded = [receipts.get((file.export_id, file.file.name)) for file in plan.files]
        if all(loaded):
            _report_aggregates(profile, instance, database_url, [file for file in loaded if file], done)
    return done


def _report_aggregates(
    profile: Profile, instance: Instance, database_url: str, loaded: Sequence[Receipt], done: Reconciled
) -> None:
    """Report the aggregates that Dagster does not show as made of all files, and that are."""
    made = read_aggregates(database_url, profile.name)
    aggregates = {aggregate.table.name: aggregate for aggregate in profile.aggregates}
    for status in downstream(instance, profile):
        aggregate = aggregates.get(status.name)
        receipt = made.get(aggregate.table.qualified) if aggregate else None
        if aggregate is None or receipt is None or status.state in ("materialized", "running"):
            continue
        if fault := receipt.fault(aggregate.sql_md5, loaded):
            done.refused_aggregates.append((status, fault))
            continue
        instance.report_materialization(
            status.key,
            None,
            aggregate_metadata(msgspec.convert(receipt, AggregateReport, from_attributes=True)),
            f"reported by `migration-pipeline reconcile` from the receipt of {receipt.made_at:%Y-%m-%d %H:%M:%S %Z}, "
            f"run {receipt.run_id}",
        )
        done.aggregates.append((status, receipt))


def _reason_against(
    status: FileStatus,
    receipt: Receipt,
    receipts: Mapping[FileKey, Receipt],
    profile: Profile,
    instance: Instance,
) -> str:
    """Say why a file is not as its receipt says; "" when nothing speaks against it."""
    if status.run_id and status.run_id != receipt.run_id:
        started = datetime.fromtimestamp(instance.run_start(status.run_id), timezone.utc)
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
