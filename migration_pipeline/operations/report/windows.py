"""The part of a report that is about windows: the chain from the base to the last of them, and the checklist of a cut-over."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from migration_pipeline.migration.chain import Hole, holes
from migration_pipeline.migration.cutover import Facts, FromDagster, not_proven
from migration_pipeline.migration.plan import Plan, PlannedExport
from migration_pipeline.migration.verdicts import Made
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.records import FileKey, Receipt, Verification
from migration_pipeline.targets.sequences import read_sequences


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """An export of the chain: the base, or a window. Counts of records are of its loaded files, but for `records`."""

    export: PlannedExport
    files: int
    loaded_files: int
    records: int
    """As its manifest says."""
    loaded: int
    superseded: int
    """Of which a newer state was loaded."""
    skipped: int
    quarantined: int
    deleted: int
    """Rows that were taken away; the other counts are of records."""
    hole: Hole | None
    """The time that no window covers, right before it."""


def links(plan: Plan, receipts: Mapping[FileKey, Receipt]) -> list[Link]:
    """The chain of a plan with windows; empty for one without."""
    if not plan.windows:
        return []
    before = {hole.before: hole for hole in holes(plan)}
    return [_link(plan, export, receipts, before.get(export.id)) for export in plan.exports]


def _link(plan: Plan, export: PlannedExport, receipts: Mapping[FileKey, Receipt], hole: Hole | None) -> Link:
    files = [planned.file for planned in plan.files if planned.export_id == export.id]
    found = [receipts[export.id, file.name] for file in files if (export.id, file.name) in receipts]
    return Link(
        export=export,
        files=len(files),
        loaded_files=len(found),
        records=sum(file.items for file in files),
        loaded=sum(receipt.loaded for receipt in found),
        superseded=sum(receipt.superseded for receipt in found),
        skipped=sum(sum(receipt.skipped.values()) for receipt in found),
        quarantined=sum(receipt.quarantined for receipt in found),
        deleted=sum(sum(receipt.row_changes["deleted"].values()) for receipt in found),
        hole=hole,
    )


def facts_of(
    plan: Plan,
    profile: Profile,
    url: str,
    made: datetime,
    dagster: FromDagster,
    receipts: Mapping[FileKey, Receipt],
    kept: Mapping[FileKey, int],
    aggregates: Mapping[str, Made],
    verified: Mapping[str, tuple[str, Verification | None]],
) -> Facts:
    """Make the facts of the checklist of what the report has read already. Raises `DatabaseError`.

    `verified` has for each table why its verification proves nothing, and that verification.
    """
    return Facts(
        plan=plan,
        profile=profile,
        dagster=dagster,
        receipts=receipts,
        kept=kept,
        made=aggregates,
        unproven={name: not_proven(*each) for name, each in verified.items()},
        sequences=read_sequences(url, profile),
        now=made,
    )
