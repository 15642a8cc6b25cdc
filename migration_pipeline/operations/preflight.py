"""Checks the database before a backfill launches anything, and for `status`.

Do the tables fit? If not, each of thousands of files would fail in a run of its own. And does the database hold what
Dagster shows as materialized? A table may have been created again, landed rows of a plan are dropped once an aggregate
is made of another plan's, and Dagster does not know of replays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from migration_pipeline import settings
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.verdicts import conserved, matches
from migration_pipeline.operations.downstream import AssetStatus, read_made
from migration_pipeline.operations.files import FileStatus
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.ddl import check_tables
from migration_pipeline.targets.receipts import empty_tables, read_landed, read_receipts
from migration_pipeline.targets.records import FileKey, Receipt
from migration_pipeline.units import counted_that

UNLANDED = "without the landed rows that an aggregate needs"


def tables_fit(profile: Profile) -> str:
    """Compare all tables with the profile; returns why that is impossible from here, or "". Raises `SchemaError`."""
    url = settings.known_database_url()
    if url is None:
        return f"cannot check the tables from here: {settings.DATABASE_URL} is not set"
    try:
        check_tables(url, profile.all_tables)
    except DatabaseError as error:
        return f"cannot check the tables from here: {error}"
    return ""


def mark_lost(
    plan: Plan, profile: Profile, files: Sequence[FileStatus], assets: Sequence[AssetStatus]
) -> list[str]:
    """Mark as *missing* what Dagster shows as materialized but the database does not have; returns lines that say why.

    So are aggregates that are not made of all files as they are now. Missing landed rows count only if an aggregate
    still has to be made of them: once all are made, the rows may be dropped. Where the database cannot be
    reached from here, Dagster's states stay.
    """
    url = settings.known_database_url()
    if url is None:
        return []
    sources = {source.qualified: source for each in profile.aggregates for source in each.sources}
    try:
        receipts = read_receipts(url, profile.name)
        empty = empty_tables(url, (table for table in profile.tables.values() if not table.landing))
        landed = read_landed(url, profile.name, sources.values()) if sources else {}
        made = read_made(plan, profile, url, receipts)
    except DatabaseError:
        return []
    lost = _mark(plan, files, lambda file: _fault(file, receipts, empty))
    for asset in assets:
        if asset.state == "materialized" and asset.name in made and (fault := made[asset.name].fault):
            asset.state, asset.rows, asset.error = "missing", None, f"materialized in Dagster, but {fault}"
    states = {file.state for file in files} | {asset.state for asset in assets}
    if sources and states - {"materialized", "running"}:
        # What windows land lies in a part of the table that is common to all of them.
        lost += _mark(
            plan,
            files,
            lambda file: (
                "" if plan.window_of(file) or sources.keys() <= landed.get(_key(file), set()) else UNLANDED
            ),
        )
    return [
        f"{counted_that(count, 'file', 'is', 'are')} materialized in Dagster, but {reason}: {'it counts' if count == 1 else 'they count'} as missing"
        for reason, count in lost.items()
    ]


def _mark(plan: Plan, files: Iterable[FileStatus], fault: Callable[[PlannedFile], str]) -> Counter[str]:
    """Mark materialized files with a fault as missing; returns how many, by fault."""
    planned = plan.by_partition()
    found = Counter[str]()
    for file in files:
        if file.state == "materialized" and (reason := fault(planned[file.partition])):
            file.state, file.metadata, file.error = "missing", {}, f"materialized in Dagster, but {reason}"
            found[reason] += 1
    return found


def _fault(file: PlannedFile, receipts: Mapping[FileKey, Receipt], empty: set[str]) -> str:
    """Say why the database does not have a file as loaded; "" if it does."""
    receipt = receipts.get(_key(file))
    if receipt is None or not matches(file, receipt):
        return "without a receipt in the database"
    if not conserved(file, receipt):
        return "with items that are not accounted for"
    without = sorted(table for table in empty if receipt.rows.get(table))
    return f"without rows in {', '.join(without)}, which is empty" if without else ""


def _key(file: PlannedFile) -> FileKey:
    return file.export_id, file.file.name
