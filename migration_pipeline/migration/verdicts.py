"""What may be called complete, and what may not.

One set of rules for all who judge: the commands, the checks, the report and the metrics. Each brings what it knows; none
has a rule of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.profile.aggregate import Aggregate
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Table
from migration_pipeline.targets.receipts import ReceiptSummary
from migration_pipeline.targets.records import AggregateReceipt, FileKey, Receipt, Verification, md5_of_files
from migration_pipeline.targets.states import TableState

PATTERNS_SHOWN = 10
"""Patterns of keys that are told; the number of items is always told in full."""


# -- files -------------------------------------------------------------------------------------------

Found = TypeVar("Found", Receipt, ReceiptSummary)


def loaded_files(plan: Plan, receipts: Mapping[FileKey, Found]) -> list[tuple[PlannedFile, Found]]:
    """The plan's files that have a receipt, in load order; those of other exports tell nothing of this plan."""
    return [(p, r) for p in plan.files if (r := receipts.get((p.export_id, p.file.name))) is not None]


def receipts_of(plan: Plan, receipts: Mapping[FileKey, Found]) -> list[Found]:
    """The receipts of the plan's files, in load order."""
    return [receipt for _, receipt in loaded_files(plan, receipts)]


def matches(planned: PlannedFile, receipt: Receipt | ReceiptSummary) -> bool:
    """Whether a file was read with the bytes that its manifest promises."""
    return receipt.md5 == planned.file.md5


def conserved(planned: PlannedFile, receipt: Receipt | ReceiptSummary) -> bool:
    """Whether a file has as many items as its manifest says, and each is loaded, skipped or quarantined."""
    return receipt.conserved and receipt.items == planned.file.items


# -- items -------------------------------------------------------------------------------------------


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """Items of files that became no row although nobody said that they should not."""

    quarantined: int
    unrouted: Mapping[str, int]
    """Items that no rule takes, by the pattern of their keys."""
    may_quarantine: int
    """As the profile has it."""

    @property
    def too_many_quarantined(self) -> bool:
        """Whether more are in the quarantine than the profile says may be there."""
        return self.quarantined > self.may_quarantine

    @property
    def faults(self) -> bool:
        """Whether they speak against calling the migration complete."""
        return self.too_many_quarantined or bool(self.unrouted)

    def lines(self, reference: str = "") -> list[str]:
        """Name them with their numbers, and say what to do.

        `reference` is how the profile of files that were loaded is called; without it nothing is loaded yet.
        """
        lines = []
        if self.unrouted:
            again = f", then migration-pipeline backfill {reference} --all --wait" if reference else ""
            lines.append(f"not complete: {self.unrouted_text}; {UNROUTED_WAY_OUT}{again}")
        if self.too_many_quarantined:
            again = f", then migration-pipeline replay {reference}" if reference else ""
            lines.append(
                f"not complete: {self.quarantined_text(bool(reference))}; {QUARANTINE_WAY_OUT}{again}"
            )
        elif self.quarantined:
            lines.append(self.quarantined_text(bool(reference)))
        return lines

    @property
    def unrouted_text(self) -> str:
        """Say how many items no rule takes, and the patterns of their keys, the commonest first."""
        ordered = sorted(self.unrouted.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = "; ".join(f"{pattern} ({count:,})" for pattern, count in ordered[:PATTERNS_SHOWN])
        more = (
            f"; and {len(ordered) - PATTERNS_SHOWN:,} more patterns" if len(ordered) > PATTERNS_SHOWN else ""
        )
        return f"no rule takes {sum(self.unrouted.values()):,} items, with keys {shown}{more}"

    def quarantined_text(self, loaded: bool = True) -> str:
        """Say how many items are in the quarantine, or would be, and how many the profile says may be there."""
        allowed = f", of {self.may_quarantine:,} that the profile allows" if self.may_quarantine else ""
        return f"{self.quarantined:,} items {'are in' if loaded else 'would go to'} the quarantine{allowed}"


UNROUTED_WAY_OUT = (
    'give them a route, or end the profile with profile.ignore(because="…"), which takes all that is left'
)

QUARANTINE_WAY_OUT = (
    "mend the profile or the table, or say in the profile how many may stay there (may_quarantine=…)"
)


def left_of(profile: Profile, files: Iterable[Any]) -> Left:
    """Sum up what is left of files: of anything with `quarantined` and `unrouted`, as reports and receipts have them."""
    quarantined, unrouted = 0, Counter[str]()
    for file in files:
        quarantined += file.quarantined
        unrouted.update(file.unrouted)
    return Left(quarantined=quarantined, unrouted=unrouted, may_quarantine=profile.may_quarantine)


def left_now(plan: Plan, profile: Profile, kept: Mapping[FileKey, int], receipts: Iterable[Receipt]) -> Left:
    """Sum up what is left of a plan now. `kept` counts the items in the quarantine by file, those of failed ones, too."""
    quarantined = sum(kept.get((p.export_id, p.file.name), 0) for p in plan.files)
    return msgspec.structs.replace(left_of(profile, receipts), quarantined=quarantined)


# -- rows --------------------------------------------------------------------------------------------


def exports_before(plan: Plan, receipts: Iterable[FileKey]) -> list[str]:
    """Exports that were loaded and are not in the plan."""
    return sorted({export for export, _ in receipts} - {export.id for export in plan.exports})


def extra_text(rows: int, before: Sequence[str], reference: str) -> str:
    """Say whose the rows may be that no item makes, and what to do with them."""
    loaded = f"; exports loaded before: {', '.join(before)}" if before else ""
    return (
        f"{rows:,} rows are there that no item of this plan makes{loaded}; nothing here deletes a row: see their keys with "
        f"migration-pipeline verify {reference} --extra --keys, then delete them, or empty the tables and load again "
        "(docs/verification.md has the SQL)"
    )


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """What the receipts of the plan's files say of a table, and how many rows it has."""

    written: int
    """Rows."""
    within_batches: int
    """Rows left out because another item of the same batch made the same key."""
    there: int
    """Rows in the table now."""
    decides: str = ""
    """What the profile has decide between two rows of a key; "" where there must be one only."""

    @property
    def replaced(self) -> int:
        """Rows that are not there, because another took their place or somebody deleted them. At least so many."""
        return max(self.written - self.there, 0)

    @property
    def passed(self) -> bool:
        """Whether no item lost its row to another."""
        return bool(self.decides) or not (self.replaced or self.within_batches)

    @property
    def text(self) -> str:
        """What was found."""
        if self.decides:
            return f"{self.written:,} rows written, {self.there:,} there: {self.decides}"
        if not self.passed:
            return (
                f"{self.replaced:,} of {self.written:,} rows written are not in the table, and {self.within_batches:,} "
                "met another of their key in one batch"
            )
        return f"{self.written:,} rows written, {self.there:,} there"


def rows_of(table: Table, receipts: Sequence[Receipt], there: int) -> Rows:
    """Hold the receipts of the plan's files against the number of rows in a table."""
    decides = ""
    if table.version is not None:
        decides = f"of one key the greater {table.version} stays"
    elif table.merges:
        decides = "rows of one key are merged"
    elif table.landing and not there:
        decides = "finishing has dropped them since"
    return Rows(
        written=sum(receipt.rows.get(table.qualified, 0) for receipt in receipts),
        within_batches=sum(receipt.collisions.get(table.qualified, 0) for receipt in receipts),
        there=there,
        decides=decides,
    )


# -- what is made of all files -----------------------------------------------------------------------


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an aggregate is what its SQL makes of all files of the plan."""

    receipt: AggregateReceipt | None
    waits: int = 0
    """Files of the plan that are not loaded. While there are some, nothing is wrong with the aggregate."""
    fault: str = ""
    """Why it is not; "" if it is, or waits."""

    @property
    def text(self) -> str:
        """What was found."""
        if self.waits:
            return f"waits for {self.waits:,} files that are not loaded"
        return self.fault or f"each of {self.receipt.groups if self.receipt else 0:,} groups is a row"


def made_of_all(
    plan: Plan,
    aggregate: Aggregate,
    receipt: AggregateReceipt | None,
    loaded: Sequence[Receipt | ReceiptSummary],
    rows: int | None = None,
) -> Made:
    """Judge an aggregate by its receipt and those of the plan's files; `rows` are the table's now, None if unknown."""
    if waits := len(plan.files) - len(loaded):
        return Made(receipt=receipt, waits=waits)
    fault = aggregate_fault(aggregate, receipt, loaded, rows) if receipt else "it was not made yet"
    return Made(receipt=receipt, fault=fault)


def aggregate_fault(
    aggregate: Aggregate,
    made: AggregateReceipt,
    files: Sequence[Receipt | ReceiptSummary],
    rows: int | None = None,
) -> str:
    """Say why an aggregate is not what its SQL makes of those files; "" if it is."""
    if later := sum(file.loaded_at > made.made_at for file in files):
        return f"{later:,} files were loaded after it was made"
    if made.files != len(files):
        return f"it was made of {made.files:,} files, and the plan has {len(files):,}"
    if made.files_md5 != md5_of_files((file.export_id, file.file) for file in files):
        return "it was made of other files than the plan has"
    if made.sql_md5 != aggregate.sql_md5:
        return "it was made by another SQL than the profile has now"
    if made.groups != made.rows:
        return f"{made.groups:,} groups of landed rows became {made.rows:,} rows"
    if rows is not None and rows < made.rows:
        return f"{made.rows:,} rows were made, {rows:,} are in the table"
    return ""


# -- what was compared -------------------------------------------------------------------------------


def not_verified(
    plan: Plan,
    profile: Profile,
    table: Table,
    found: Verification | None,
    state: TableState,
    receipts: Sequence[Receipt],
    made: AggregateReceipt | None = None,
) -> str:
    """Say why the last verification does not prove what a table holds now; "" if it does.

    It has to be of the plan's files and the profile as it is, begun after the last load, replay and making of the
    table, and the table has to be the one that it saw, row for row.
    """
    if found is None or found.began_at is None or found.state is None:
        return "nobody has compared them yet"
    began: datetime = found.began_at
    if found.files_md5 != md5_of_files((planned.export_id, planned.file.name) for planned in plan.files):
        return "they were compared with other files than the plan has"
    if found.profile_version != profile.version:
        return "they were compared with what another version of the profile makes"
    if later := sum(receipt.loaded_at > began for receipt in receipts):
        return f"{later:,} files were loaded or replayed since"
    if made is not None and made.made_at > began:
        return "they were made again since"
    if table.landing and state.oid == found.state.oid and not state.rows:
        return ""  # finishing drops what is landed, once it is of no more use
    return state.change_since(found.state)
