"""Decides whether an application can switch to PostgreSQL: a checklist over facts, each line with its way out.

The rules of a complete migration are those of `migration/verdicts.py`. Here are those that windows add, and the order in which
all of them are read on the evening of the switch. What Dagster says comes as plain facts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone

import msgspec

from migration_pipeline.migration.chain import holes, overlap_seconds
from migration_pipeline.migration.names import FINISHING
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.reach import loaded_until, planned_until, time_of
from migration_pipeline.migration.verdicts import (
    QUARANTINE_WAY_OUT,
    UNROUTED_WAY_OUT,
    Found,
    Made,
    conserved,
    left_now,
    loaded_files,
    made_of_all,
    matches,
    not_verified,
    receipts_of,
)
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.window_times import spelled
from migration_pipeline.targets.receipts import (
    count_quarantined,
    read_aggregates,
    read_receipts,
    read_verifications,
)
from migration_pipeline.targets.records import FileKey, Receipt, Verification
from migration_pipeline.targets.sequences import SequenceState, read_sequences
from migration_pipeline.targets.states import read_states
from migration_pipeline.units import counted, counted_that, readable_time, some_of

NAMED = 5
"""Files, tables or holes that a line names at most; their number is always complete."""


class Check(msgspec.Struct, frozen=True):
    """A line of the checklist."""

    name: str
    """What must hold."""
    passed: bool
    text: str
    """What was found."""
    way_out: str = ""
    """What to do, if it does not hold."""


class FromDagster(msgspec.Struct, frozen=True):
    """What Dagster shows."""

    files: Mapping[str, str]
    """State of each file, by partition."""
    then: Mapping[str, str]
    """State of each asset that is made of all files, by name; *materialized* only if it is newer than they are."""
    fault: str = ""
    """Why it could not be asked; "" if it could."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the checklist is made of."""

    plan: Plan
    profile: Profile
    dagster: FromDagster
    receipts: Mapping[FileKey, Receipt]
    kept: Mapping[FileKey, int]
    """Items in the quarantine, by file."""
    made: Mapping[str, Made]
    """Aggregates, by their table's qualified name."""
    unproven: Mapping[str, str]
    """Why the last `verify` does not prove that a table is as the export has it, by the table's name; "" if it does."""
    sequences: Sequence[SequenceState]
    now: datetime
    max_lag: timedelta | None = None
    """None where the lag does not decide."""

    @property
    def reached(self) -> datetime | None:
        """The moment up to which everything is loaded; None while the base is not."""
        return reached(self.plan, self.receipts)

    @property
    def lag(self) -> timedelta | None:
        """What is not loaded yet, in time."""
        return None if self.reached is None else self.now - self.reached


def read_facts(
    plan: Plan, profile: Profile, url: str, dagster: FromDagster, max_lag: timedelta | None = None
) -> Facts:
    """Read the facts. Every table is read once, as `verify` does to see whether it has changed. Raises `DatabaseError`."""
    receipts = read_receipts(url, plan.profile)
    ours, made = receipts_of(plan, receipts), read_aggregates(url, plan.profile)
    verified = {one.table_name: one for one in read_verifications(url, plan.profile)}
    _, states = read_states(url, profile.all_tables)
    unproven = {}
    for table in profile.all_tables:
        name = table.qualified
        why = not_verified(plan, profile, table, verified.get(name), states[name], ours, made.get(name))
        unproven[name] = not_proven(why, verified.get(name))
    return Facts(
        plan=plan,
        profile=profile,
        dagster=dagster,
        receipts=receipts,
        kept=count_quarantined(url, plan.profile),
        made={
            name: made_of_all(plan, each, made.get(name), ours, states[name].rows)
            for each in profile.aggregates
            for name in (each.table.qualified,)
        },
        unproven=unproven,
        sequences=read_sequences(url, profile),
        now=datetime.now(timezone.utc),
        max_lag=max_lag,
    )


def reached(plan: Plan, receipts: Mapping[FileKey, Found]) -> datetime | None:
    """The moment up to which everything is loaded, as the receipts say; None while the base is not."""
    done = {
        planned.partition for planned, receipt in loaded_files(plan, receipts) if matches(planned, receipt)
    }
    return loaded_until(plan, lambda planned: planned.partition in done)


def not_proven(unverified: str, found: Verification | None) -> str:
    """Say why a verification does not prove a table: it is none of the table now, or found differences; "" if it does."""
    if unverified or found is None:
        return unverified or "they have not been compared yet"
    differing = found.missing + found.different + found.extra
    return f"{counted_that(differing, 'row', 'differs', 'differ')} from the export" if differing else ""


def checklist(facts: Facts) -> list[Check]:
    """Judge the facts, in the order in which their faults are mended."""
    return [
        chain_check(facts.plan),
        _loaded(facts),
        _materialized(facts),
        _quarantine(facts),
        _unrouted(facts),
        *_aggregates(facts),
        _finished(facts),
        _verified(facts),
        _sequences(facts),
        _lag(facts),
    ]


def ready(checks: Iterable[Check]) -> bool:
    """Whether the application can switch."""
    return all(check.passed for check in checks)


def chain_check(plan: Plan) -> Check:
    """Whether the windows follow the base without a hole; one that was allowed counts, for good."""
    name, found = "the chain has no hole", holes(plan)
    first = plan.exports[0]
    way_out = (
        f"nothing fills it for sure: make a new full export (migration-pipeline export {first.table_arn} s3://…), plan it, and "
        "load it"
    )
    if found:
        told = [
            f"{spelled(hole.start)} to {spelled(hole.end)} ({readable_time(hole.length.total_seconds())}), between {hole.after} "
            f"and {hole.before}"
            for hole in found
        ]
        return Check(name, False, f"no window covers {_named(told, '; ')}", way_out)
    if plan.allow_gap:
        return Check(name, False, "windows were planned with --allow-gap", way_out)
    windows = len(plan.windows)
    if not windows:
        return Check(name, True, "the plan has no windows")
    seconds = overlap_seconds(plan.exports)
    early = (
        f"; the first begins {seconds:g} s before the base: docs/windows.md says what that may hide"
        if seconds
        else ""
    )
    told_of = f"{counted(windows, 'window')} from {spelled(time_of(first))} to {spelled(planned_until(plan))}"
    return Check(name, True, told_of + early)


def _loaded(facts: Facts) -> Check:
    """A receipt for each file, of these bytes, with every item accounted for."""
    sound = {
        planned.partition
        for planned, receipt in loaded_files(facts.plan, facts.receipts)
        if matches(planned, receipt) and conserved(planned, receipt)
    }
    wrong = [planned.file.name for planned in facts.plan.files if planned.partition not in sound]
    return _of_files(
        facts,
        "every file is loaded",
        wrong,
        "have a receipt for the bytes of the manifest, with every record accounted for",
        f"migration-pipeline backfill {facts.plan.reference} --wait",
    )


def _materialized(facts: Facts) -> Check:
    name, reference = "Dagster shows every file as materialized", facts.plan.reference
    if facts.dagster.fault:
        return Check(name, False, f"not known: {facts.dagster.fault}", "start Dagster, and try again")
    wrong = [p.file.name for p in facts.plan.files if facts.dagster.files.get(p.partition) != "materialized"]
    way_out = (
        f"migration-pipeline reconcile {reference}, or for files without a receipt: migration-pipeline backfill "
        f"{reference} --wait"
    )
    return _of_files(facts, name, wrong, "are materialized", way_out)


def _of_files(facts: Facts, name: str, wrong: Sequence[str], text: str, way_out: str) -> Check:
    total = len(facts.plan.files)
    but = f"; not: {_named(wrong)}" if wrong else ""
    found = f"{some_of(total - len(wrong), total, 'file')} {text}{but}"
    return Check(name, not wrong, found, way_out if wrong else "")


def _quarantine(facts: Facts) -> Check:
    left = left_now(facts.plan, facts.profile, facts.kept, ())
    text = left.quarantined_text() if left.quarantined else "it is empty"
    way_out = f"{QUARANTINE_WAY_OUT}, then migration-pipeline replay {facts.plan.reference}"
    return _check("nothing is in the quarantine", not left.too_many_quarantined, text, way_out)


def _unrouted(facts: Facts) -> Check:
    left = left_now(facts.plan, facts.profile, facts.kept, receipts_of(facts.plan, facts.receipts))
    text = left.unrouted_text if left.unrouted else "none was left"
    again = f"{UNROUTED_WAY_OUT}, then migration-pipeline backfill {facts.plan.reference} --all --wait"
    return _check("a rule took every item", not left.unrouted, text, again)


def _aggregates(facts: Facts) -> Iterable[Check]:
    """One line for all aggregates; none where there are no aggregates."""
    if not facts.made:
        return
    wrong = [f"{name}: {made.text}" for name, made in facts.made.items() if made.waits or made.fault]
    text = _named(wrong, "; ") if wrong else f"made of all files: {len(facts.made):,}"
    way_out = f"migration-pipeline backfill {facts.plan.reference} --wait"
    yield _check("aggregates are newer than the last window", not wrong, text, way_out)


def _finished(facts: Facts) -> Check:
    name = "finishing is newer than the last window"
    if facts.dagster.fault:
        return Check(name, False, f"not known: {facts.dagster.fault}", "start Dagster, and try again")
    wrong = [f"{asset} is {state}" for asset, state in facts.dagster.then.items() if state != "materialized"]
    text = _named(wrong) if wrong else "what is made of all files was made after them"
    return _check(name, not wrong, text, f"migration-pipeline backfill {facts.plan.reference} --wait")


def _verified(facts: Facts) -> Check:
    wrong = [f"{name}: {why}" for name, why in facts.unproven.items() if why]
    text = (
        _named(wrong, "; ")
        if wrong
        else f"{counted_that(len(facts.unproven), 'table', 'is', 'are')} as the export and its windows have {'it' if len(facts.unproven) == 1 else 'them'}"
    )
    way_out = f"migration-pipeline verify {facts.plan.reference}"
    return _check("verify has passed since", not wrong, text, way_out)


def _sequences(facts: Facts) -> Check:
    wrong = [_behind(each) for each in facts.sequences if not each.past]
    text = _named(wrong, "; ") if wrong else counted(len(facts.sequences), "sequence")
    way_out = f"materialize the asset [{facts.plan.profile}, {FINISHING}] again in Dagster, which moves them"
    return _check("sequences are past the greatest value", not wrong, text, way_out)


def _behind(each: SequenceState) -> str:
    """Say how a sequence stands; its numbers are values of items, so only their distance is told."""
    if not each.there:
        return f"{each.name} does not exist"
    if each.last is None or each.greatest is None:
        return f"{each.name} has given no value, and {each.column} has some"
    return f"{each.name} is {abs(each.greatest - each.last):,} behind {each.column}"


def _lag(facts: Facts) -> Check:
    """How long ago the last loaded window ended: what was written since is not in PostgreSQL."""
    name, reference = "what is loaded is new enough", facts.plan.reference
    if facts.lag is None or facts.reached is None:
        return Check(name, False, "the base is not loaded", f"migration-pipeline backfill {reference} --wait")
    seconds = max(facts.lag.total_seconds(), 0.0)
    text = f"loaded up to {spelled(facts.reached)}, lag {readable_time(seconds)}: what was written since is not in PostgreSQL"
    if facts.max_lag is None:
        return Check(name, True, text)
    text += f"; --max-lag allows {readable_time(facts.max_lag.total_seconds())}"
    way_out = f"migration-pipeline follow {reference} s3://… --once"
    return _check(name, facts.lag <= facts.max_lag, text, way_out)


def _check(name: str, passed: bool, text: str, way_out: str) -> Check:
    return Check(name, passed, text, "" if passed else way_out)


def _named(all_of_them: Sequence[str], separator: str = ", ") -> str:
    """Name the first `NAMED`, and count the others."""
    more = f" and {len(all_of_them) - NAMED:,} more" if len(all_of_them) > NAMED else ""
    return separator.join(all_of_them[:NAMED]) + more
