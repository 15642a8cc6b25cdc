"""Decides whether a migration is complete.

One set of rules for the commands, the checks, the report and the metrics: they bring the facts, and have no rules of
their own.
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
from migration_pipeline.units import counted, counted_that, some_of

PATTERNS_SHOWN = 10
"""Key patterns that are shown at most; the number of items is always complete."""


# -- files -------------------------------------------------------------------------------------------

Found = TypeVar("Found", Receipt, ReceiptSummary)


def loaded_files(plan: Plan, receipts: Mapping[FileKey, Found]) -> list[tuple[PlannedFile, Found]]:
    """The plan's files that have a receipt, with it, in load order; receipts of other exports are ignored."""
    return [(p, r) for p in plan.files if (r := receipts.get((p.export_id, p.file.name))) is not None]


def receipts_of(plan: Plan, receipts: Mapping[FileKey, Found]) -> list[Found]:
    """The receipts of the plan's files, in load order."""
    return [receipt for _, receipt in loaded_files(plan, receipts)]


def matches(planned: PlannedFile, receipt: Receipt | ReceiptSummary) -> bool:
    """Whether a file's bytes had the MD5 that its manifest names."""
    return receipt.md5 == planned.file.md5


def conserved(planned: PlannedFile, receipt: Receipt | ReceiptSummary) -> bool:
    """Whether a file has as many items as its manifest says, and each is loaded, superseded, skipped or quarantined."""
    return receipt.conserved and receipt.items == planned.file.items


def kept_as_counted(plan: Plan, receipt: Receipt, kept: int) -> bool:
    """Whether the quarantine holds the items of a file that its receipt counts; `kept` are those that it holds.

    It may hold fewer of a file that a window follows or overlaps: a newer state of an item ends the quarantine of older ones.
    """
    return kept == receipt.quarantined or (kept < receipt.quarantined and _may_end(plan, receipt.export_id))


def _may_end(plan: Plan, export_id: str) -> bool:
    """Whether another window may have a newer state, or the same, of the items of an export."""
    windows = [(each.id, each.window) for each in plan.windows if each.window]
    if not windows or (last := windows[-1])[0] != export_id:
        return bool(windows)
    return any(window.end > last[1].start for _, window in windows[:-1])


# -- items -------------------------------------------------------------------------------------------


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """Items that became no row without a rule saying so: quarantined and unrouted ones."""

    quarantined: int
    unrouted: Mapping[str, int]
    """Items that no rule takes, by the pattern of their keys."""
    may_quarantine: int
    """As the profile has it."""

    @property
    def too_many_quarantined(self) -> bool:
        """Whether the quarantine holds more items than the profile allows."""
        return self.quarantined > self.may_quarantine

    @property
    def faults(self) -> bool:
        """Whether they keep the migration from being complete."""
        return self.too_many_quarantined or bool(self.unrouted)

    def lines(self, reference: str = "") -> list[str]:
        """Lines that count these items and say what to do.

        `reference` names the profile in the next step; without it nothing is loaded yet.
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
        """The number of items that no rule takes, and the patterns of their keys, the commonest first."""
        ordered = sorted(self.unrouted.items(), key=lambda pair: (-pair[1], pair[0]))
        shown = "; ".join(f"{pattern} ({count:,})" for pattern, count in ordered[:PATTERNS_SHOWN])
        more = (
            f"; and {counted(len(ordered) - PATTERNS_SHOWN, 'more pattern')}"
            if len(ordered) > PATTERNS_SHOWN
            else ""
        )
        return f"no rule takes {counted(sum(self.unrouted.values()), 'item')}, with keys {shown}{more}"

    def quarantined_text(self, loaded: bool = True) -> str:
        """The number of items that are in the quarantine, or would be, and how many the profile allows."""
        allowed = f", and the profile allows {self.may_quarantine:,}" if self.may_quarantine else ""
        are = ("is in", "are in") if loaded else ("would go to", "would go to")
        return f"{counted_that(self.quarantined, 'item', *are)} the quarantine{allowed}"


UNROUTED_WAY_OUT = (
    'give them a route, or end the profile with profile.ignore(because="…"), which skips all other items'
)

QUARANTINE_WAY_OUT = "fix the profile or the table, or allow that many in the profile (may_quarantine=…)"


def left_of(profile: Profile, files: Iterable[Any]) -> Left:
    """Sum up the quarantined and unrouted items of files, from their reports or receipts."""
    quarantined, unrouted = 0, Counter[str]()
    for file in files:
        quarantined += file.quarantined
        unrouted.update(file.unrouted)
    return Left(quarantined=quarantined, unrouted=unrouted, may_quarantine=profile.may_quarantine)


def left_now(plan: Plan, profile: Profile, kept: Mapping[FileKey, int], receipts: Iterable[Receipt]) -> Left:
    """Sum up the quarantined and unrouted items of a plan now. `kept` counts the quarantine by file, failed ones included."""
    quarantined = sum(kept.get((p.export_id, p.file.name), 0) for p in plan.files)
    return msgspec.structs.replace(left_of(profile, receipts), quarantined=quarantined)


# -- rows --------------------------------------------------------------------------------------------


def exports_before(plan: Plan, receipts: Iterable[FileKey]) -> list[str]:
    """Exports that were loaded and are not in the plan."""
    return sorted({export for export, _ in receipts} - {export.id for export in plan.exports})


def extra_text(rows: int, before: Sequence[str], reference: str) -> str:
    """Explain rows that no item makes, and what to do with them."""
    loaded = f"; exports loaded before: {', '.join(before)}" if before else ""
    return (
        f"{counted_that(rows, 'row', 'in the tables comes', 'in the tables come')} from no item of this plan{loaded}; no command deletes such rows: see their keys with "
        f"migration-pipeline verify {reference} --extra --keys, then delete them, or empty the tables and load again "
        "(docs/verification.md has the SQL)"
    )


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """A table's rows: how many the receipts of the plan's files say were written, and how many it has."""

    written: int
    """Rows."""
    within_batches: int
    """Rows left out because another item of the same batch made the same key."""
    there: int
    """Rows in the table now."""
    decides: str = ""
    """What decides which rows stay (version, merge, windows); "" where each row that was written must be there."""

    @property
    def replaced(self) -> int:
        """Rows written that are not in the table, at least: another replaced them, or they were deleted."""
        return max(self.written - self.there, 0)

    @property
    def passed(self) -> bool:
        """Whether no item lost its row to another."""
        return bool(self.decides) or not (self.replaced or self.within_batches)

    @property
    def text(self) -> str:
        """What was found."""
        if self.decides:
            return f"{counted(self.written, 'row')} written, {self.there:,} in the table: {self.decides}"
        if not self.passed:
            return (
                f"{some_of(self.replaced, self.written, 'row')} written {'is' if self.replaced == 1 else 'are'} not in the table, and {self.within_batches:,} "
                f"{'has' if self.within_batches == 1 else 'have'} the key of another in the same batch"
            )
        return f"{counted(self.written, 'row')} written, {self.there:,} in the table"


def rows_of(table: Table, receipts: Sequence[Receipt], there: int, *, windows: bool = False) -> Rows:
    """Compare the rows that the plan's receipts count with the number of rows in a table; `windows`: whether the plan has some.

    Windows change and delete rows that other files wrote, so the sum of these says nothing: `verify` compares the rows.
    """
    decides = ""
    if table.version is not None:
        decides = f"of rows with one key, the greatest {table.version} stays"
    elif table.merges:
        decides = "rows with one key are merged"
    elif table.landing and not there:
        decides = "finishing has dropped them since"
    elif windows:
        gone = sum(receipt.deleted_rows.get(table.qualified, 0) for receipt in receipts)
        decides = f"windows changed rows and deleted {gone:,}, and verify compares what is there"
    return Rows(
        written=sum(receipt.rows.get(table.qualified, 0) for receipt in receipts),
        within_batches=sum(receipt.collisions.get(table.qualified, 0) for receipt in receipts),
        there=there,
        decides=decides,
    )


# -- what is made of all files -----------------------------------------------------------------------


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an aggregate is up to date: made by the profile's SQL from all files of the plan."""

    receipt: AggregateReceipt | None
    waits: int = 0
    """Files of the plan that are not loaded. While there are some, nothing is wrong with the aggregate."""
    fault: str = ""
    """Why it is not up to date; "" if it is, or waits."""

    @property
    def text(self) -> str:
        """What was found."""
        if self.waits:
            return f"waits for {counted_that(self.waits, 'file', 'that is', 'that are')} not loaded"
        return (
            self.fault or f"each of {counted(self.receipt.groups if self.receipt else 0, 'group')} is a row"
        )


def made_of_all(
    plan: Plan,
    aggregate: Aggregate,
    receipt: AggregateReceipt | None,
    loaded: Sequence[Receipt | ReceiptSummary],
    rows: int | None = None,
) -> Made:
    """Judge an aggregate by its receipt and those of the plan's files; `rows` counts the table now, None if unknown."""
    if waits := len(plan.files) - len(loaded):
        return Made(receipt=receipt, waits=waits)
    fault = aggregate_fault(aggregate, receipt, loaded, rows) if receipt else "it has not been made yet"
    return Made(receipt=receipt, fault=fault)


def aggregate_fault(
    aggregate: Aggregate,
    made: AggregateReceipt,
    files: Sequence[Receipt | ReceiptSummary],
    rows: int | None = None,
) -> str:
    """Say why an aggregate is not up to date with these files; "" if it is."""
    if later := sum(file.loaded_at > made.made_at for file in files):
        return f"{counted_that(later, 'file', 'was', 'were')} loaded after it was made"
    if made.files != len(files):
        return f"it was made of {counted(made.files, 'file')}, but the plan has {len(files):,}"
    if made.files_md5 != md5_of_files((file.export_id, file.file) for file in files):
        return "it was made of other files than the plan has"
    if made.sql_md5 != aggregate.sql_md5:
        return "the profile's SQL has changed since it was made"
    if made.groups != made.rows:
        return f"{counted(made.groups, 'group')} of landed rows became {counted(made.rows, 'row')}"
    if rows is not None and rows < made.rows:
        return f"{counted_that(made.rows, 'row', 'was', 'were')} made, but the table has {rows:,}"
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

    A verification counts if it compared the plan's files by the current profile, began after the last load, replay
    and making of the table, and the table has not changed since, row for row.
    """
    if found is None or found.began_at is None or found.state is None:
        return "they have not been compared yet"
    began: datetime = found.began_at
    if found.files_md5 != md5_of_files((planned.export_id, planned.file.name) for planned in plan.files):
        return "they were compared with other files than the plan has"
    if found.profile_version != profile.version:
        return "they were compared by another version of the profile"
    if later := sum(receipt.loaded_at > began for receipt in receipts):
        return f"{counted_that(later, 'file', 'was', 'were')} loaded or replayed since"
    if made is not None and made.made_at > began:
        return "they were made again since"
    if table.landing and state.oid == found.state.oid and not state.rows:
        return ""  # finishing drops what is landed, once it is of no more use
    return state.change_since(found.state)
