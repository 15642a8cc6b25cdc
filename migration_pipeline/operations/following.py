"""What `follow` does in a round, step by step: what is left to load, in which order, and whether that went well."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.reach import base_of, loaded_until
from migration_pipeline.operations.downstream import AssetStatus
from migration_pipeline.operations.exports import TableExports
from migration_pipeline.operations.files import BUSY, FileStatus
from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted, counted_that

NAMED = 3
"""Failed files that an error names at most."""


def followed_table(plan: Plan, named: str = "") -> TableExports:
    """The table of a plan's base, as it is in DynamoDB now. Raises `UsageError` if it is another one than `named`, or than it was."""
    base = base_of(plan)
    table = TableExports(named or base.table_arn)
    if table.arn != base.table_arn:
        raise UsageError(
            f"{table.arn}: the plan of {plan.profile} is of another table: {base.table_arn}; name that table, or another plan"
        )
    if base.table_id and table.id and base.table_id != table.id:
        raise MigrationError(
            f"{table.arn}: the table was dropped and made anew since the plan's full export (its id was {base.table_id}, and is "
            f"{table.id} now), so that no window follows it; make a full export of it and plan again"
        )
    return table


def next_files(plan: Plan, files: Sequence[FileStatus]) -> list[FileStatus]:
    """The files to load next: those of the first export that has files which are not loaded; none if all are.

    Raises `MigrationError` while the base is not loaded, and if one of these files has failed.
    """
    by_partition = plan.by_partition()
    left = [file for file in files if file.state != "materialized"]
    if not left:
        return []
    export = by_partition[left[0].partition].export_id
    chosen = [file for file in left if by_partition[file.partition].export_id == export]
    _check(plan, export, chosen)
    return chosen


def _check(plan: Plan, export: str, left: Sequence[FileStatus]) -> None:
    if export not in [window.id for window in plan.windows]:
        raise MigrationError(
            f"{plan.profile}: {counted(len(left), 'file')} of the full export {export} {'is' if len(left) == 1 else 'are'} not loaded, and windows wait for that; load the full export "
            f"with migration-pipeline backfill {plan.reference} --wait, then follow"
        )
    if failed := [file for file in left if file.state in ("failed", "stopped")]:
        raise failure(plan, failed)


def failure(plan: Plan, failed: Sequence[FileStatus]) -> MigrationError:
    """Make the error for files of a window that were not loaded."""
    told = "; ".join(f"{file.file.name}: {file.error or file.state}" for file in failed[:NAMED])
    more = f"; and {len(failed) - NAMED:,} more" if len(failed) > NAMED else ""
    return MigrationError(
        f"{plan.profile}: {counted_that(len(failed), 'file', 'was', 'were')} not loaded: {told}{more}; {_way_out(plan)}"
    )


def check_made(plan: Plan, assets: Sequence[AssetStatus], then: Sequence[Sequence[str]]) -> None:
    """Raise `MigrationError` if an asset that follows the files was not made."""
    for asset in assets:
        if asset.key in then and asset.state != "materialized":
            raise MigrationError(
                f"{plan.profile}: {asset.name} was not made: {asset.error or asset.state}; {_way_out(plan)}"
            )


def _way_out(plan: Plan) -> str:
    return f"fix the cause, then migration-pipeline retry-failed {plan.reference} --wait, and follow again"


def busy(files: Sequence[FileStatus]) -> int:
    """How many files are running, queued or launched, by a backfill of somebody else or of a `follow` that was killed."""
    return sum(file.state in BUSY for file in files)


def reached(plan: Plan, files: Sequence[FileStatus]) -> datetime | None:
    """The moment up to which everything is loaded, as Dagster shows it; None while the base is not."""
    done = {file.partition for file in files if file.state == "materialized"}
    return loaded_until(plan, lambda planned: planned.partition in done)


def titled(profile: Profile, files: Sequence[FileStatus], export: str) -> str:
    """The title of a backfill of a window."""
    return f"{profile.name}: window {export}, {counted(len(files), 'file')}"
