"""The content of a report: gathered from the plan, the database's receipts and Dagster, and judged.

The receipts are the proof, so without the database there is no report. Without Dagster there is one, which says
what is missing. Nothing here holds a value of an item, a password, or a URL that might hold one.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any, Literal

import msgspec

from migration_pipeline.migration.cutover import Check, FromDagster, chain_check, checklist
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.verdicts import (
    Made,
    Rows,
    conserved,
    exports_before,
    extra_text,
    kept_as_counted,
    left_now,
    made_of_all,
    matches,
    not_verified,
    receipts_of,
    rows_of,
)
from migration_pipeline.operations.backfills import Backfill, backfills
from migration_pipeline.operations.client import DagsterClient, DagsterClientError
from migration_pipeline.operations.cutover import ask_dagster
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.operations.report.run_settings import run_settings
from migration_pipeline.operations.report.windows import Link, facts_of, links
from migration_pipeline.operations.runs import run_configs, runs
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.receipts import (
    QuarantineReason,
    count_quarantined,
    quarantined_by_reason,
    read_aggregates,
    read_receipts,
    read_verifications,
    server,
)
from migration_pipeline.targets.records import FileKey, Receipt, Steering, Verification
from migration_pipeline.targets.states import read_states
from migration_pipeline.targets.steering import read_steerings
from migration_pipeline.units import some_that

PACKAGES = ("migration-pipeline", "dagster", "psycopg2-binary", "msgspec", "isal", "boto3", "smart-open")

SHOWN = 10
"""Files that a verdict names at most; their number is always complete."""

Outcome = Literal["passed", "failed", "unverified", "warning", "unknown"]


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of one comparison, for people."""

    name: str
    outcome: Outcome
    text: str


QUARANTINE_IS_EMPTY = "nothing is in the quarantine"
"""What the report calls that."""


class FileAccount(msgspec.Struct, frozen=True, kw_only=True):
    """A planned file, its receipt, and what Dagster says of it."""

    planned: PlannedFile
    receipt: Receipt | None
    """None unless the file is loaded, with the contents that the manifest promises."""
    state: str
    """Its state in Dagster; "" where that is not known."""
    error: str
    attempts: int | None
    """Runs that Dagster knows of; None where that is not known."""


class TableAccount(msgspec.Struct, frozen=True):
    """A table, and what was written into it."""

    name: str
    rows: Rows
    """Of an aggregate, `written` are those of its receipt."""
    made: Made | None = None
    """Of an aggregate: whether it is made of all files."""
    verification: Verification | None = None
    """What `verify` found when it last compared the table with the export; None if it never did."""
    unverified: str = ""
    """Why that does not prove what the table holds now; "" if it does."""


class Account(msgspec.Struct, kw_only=True):
    """Everything in a report."""

    plan: Plan
    profile: Profile
    made: datetime
    files: list[FileAccount]
    tables: list[TableAccount]
    bad: list[QuarantineReason]
    verdicts: list[Verdict]
    backfills: list[Backfill]
    settings: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    without_dagster: str
    """Why Dagster could not be asked; "" when it could."""
    steerings: list[Steering] = []
    """What operators set for running loads, the oldest first."""
    chain: list[Link] = []
    """Of a plan with windows; empty for one without."""
    cutover: list[Check] = []
    """The checklist of a cut-over, of a plan with windows."""

    @property
    def receipts(self) -> list[Receipt]:
        """Receipts of the plan's files, in load order."""
        return [file.receipt for file in self.files if file.receipt]

    @property
    def verdict(self) -> Literal["complete", "not complete", "not verified"]:
        """Whether every item of the plan is accounted for, and every row compared; a warning does not speak against it."""
        outcomes = {verdict.outcome for verdict in self.verdicts}
        if "failed" in outcomes:
            return "not complete"
        return "not verified" if "unverified" in outcomes else "complete"

    @property
    def complete(self) -> bool:
        """Whether nothing speaks against it."""
        return self.verdict == "complete"

    @property
    def next_command(self) -> str:
        """What most likely brings it on; "" where only somebody who has read the proof can tell."""
        missing = [file for file in self.files if file.receipt is None]
        if any(file.state in ("failed", "stopped") for file in missing):
            return f"migration-pipeline retry-failed {self.plan.reference} --wait"
        if missing:
            return f"migration-pipeline backfill {self.plan.reference} --wait"
        failed = {verdict.name for verdict in self.verdicts if verdict.outcome == "failed"}
        if self.bad and failed == {QUARANTINE_IS_EMPTY}:
            return f"migration-pipeline replay {self.plan.reference}"
        return ""

    def sum_of(self, count: Callable[[Receipt], int]) -> int:
        """Add up a number over the loaded files."""
        return sum(map(count, self.receipts))

    @property
    def skipped(self) -> dict[str, int]:
        """Skipped items by reason, the commonest first."""
        return _added(receipt.skipped for receipt in self.receipts)

    @property
    def throttled(self) -> dict[str, float]:
        """Seconds that loads waited for the throttle, by the kind of the reason."""
        return _added(receipt.throttled for receipt in self.receipts)

    @property
    def accelerated(self) -> int:
        """Lines that were read in C."""
        return self.sum_of(lambda receipt: receipt.accelerated)

    @property
    def not_accelerated(self) -> dict[str, int]:
        """Lines that C handed to Python, by reason, the commonest first."""
        return _added(receipt.not_accelerated for receipt in self.receipts)

    @property
    def unrouted(self) -> dict[str, int]:
        """Items that no rule took, by the pattern of their keys."""
        return _added(receipt.unrouted for receipt in self.receipts)


def gather(plan: Plan, profile: Profile, client: DagsterClient, database_url: str) -> Account:
    """Ask the database and Dagster. Raises `DatabaseError`; a Dagster that does not answer is told in the account."""
    exports = [export.id for export in plan.exports]
    receipts = read_receipts(database_url, plan.profile)
    dagster = _ask_dagster(plan, profile, client)
    files = [_file(planned, receipts, dagster) for planned in plan.files]
    tables = _tables(plan, profile, receipts, database_url)
    kept = count_quarantined(database_url, plan.profile)
    server_version, database, role = server(database_url)
    account = Account(
        plan=plan,
        profile=profile,
        made=datetime.now(timezone.utc),
        files=files,
        tables=tables,
        bad=quarantined_by_reason(database_url, plan.profile, exports),
        verdicts=[],
        backfills=dagster.backfills,
        settings=[
            ("profile", f"{plan.reference}, version {profile.version}"),
            ("loaded by versions of it", ", ".join(sorted({r.profile_version for r in receipts.values()})) or "none"),
            ("SHA-256 of the plan", hashlib.sha256(msgspec.json.encode(plan)).hexdigest()),
            ("files in a run", str(plan.files_per_run)),
            ("database", f"{database}, as role {role}"),
            *dagster.settings,
        ],
        versions=[
            *((name, version(name)) for name in PACKAGES),
            ("PostgreSQL", server_version),
            ("Python", platform.python_version()),
            ("system of this report", f"{platform.system()} {platform.machine()}"),
        ],
        without_dagster=dagster.fault,
        steerings=read_steerings(database_url, plan.profile),
    )  # fmt: skip
    if plan.windows:
        account.chain = links(plan, receipts)
        account.cutover = _cutover(account, client, database_url, dagster, receipts, kept)
    account.verdicts = list(_verdicts(account, kept, exports_before(plan, receipts)))
    return account


def _cutover(
    account: Account,
    client: DagsterClient,
    url: str,
    dagster: _Dagster,
    receipts: Mapping[FileKey, Receipt],
    kept: Mapping[FileKey, int],
) -> list[Check]:
    """The checklist of a cut-over, of what was read for the report, and of the sequences."""
    plan, profile = account.plan, account.profile
    told = FromDagster({}, {}, dagster.fault)
    if not dagster.fault:
        told = ask_dagster(plan, profile, client, dagster.files.values())
    aggregates = {table.name: table.made for table in account.tables if table.made}
    verified = {table.name: (table.unverified, table.verification) for table in account.tables}
    return checklist(facts_of(plan, profile, url, account.made, told, receipts, kept, aggregates, verified))


def _tables(
    plan: Plan, profile: Profile, receipts: Mapping[FileKey, Receipt], url: str
) -> list[TableAccount]:
    """What is known of each table; only receipts of the plan's files count."""
    made, ours = read_aggregates(url, plan.profile), receipts_of(plan, receipts)
    verified = {one.table_name: one for one in read_verifications(url, plan.profile)}
    _, states = read_states(url, profile.all_tables)
    aggregates = {each.table.qualified: each for each in profile.aggregates}
    tables = []
    for table in profile.all_tables:
        name, state = table.qualified, states[table.qualified]
        aggregate, receipt = aggregates.get(name), made.get(name)
        rows = rows_of(table, ours, state.rows, windows=bool(plan.windows))
        unverified = not_verified(plan, profile, table, verified.get(name), state, ours, receipt)
        verdict = None
        if aggregate:
            verdict = made_of_all(plan, aggregate, receipt, ours, state.rows)
            rows = Rows(written=receipt.rows if receipt else 0, within_batches=0, there=state.rows)
            if unverified and not any(states[each.qualified].rows for each in aggregate.sources):
                unverified += ", and what files had landed was dropped: load all of them again first"
        tables.append(TableAccount(name, rows, verdict, verified.get(name), unverified))
    return tables


class _Dagster(msgspec.Struct, kw_only=True):
    """What Dagster answered."""

    fault: str = ""
    files: dict[str, FileStatus] = {}
    attempts: Counter[str] = msgspec.field(default_factory=Counter)
    backfills: list[Backfill] = []
    settings: list[tuple[str, str]] = []


def _ask_dagster(plan: Plan, profile: Profile, client: DagsterClient) -> _Dagster:
    try:
        files = {file.partition: file for file in read_files(client, plan, profile)}
        tried = runs(client, plan, ())
        configs = run_configs(client, sorted({f.run_id for f in files.values() if f.run_id}))
        return _Dagster(
            files=files,
            attempts=Counter(partition for run in tried for partition in run.partitions),
            backfills=backfills(client, plan),
            settings=run_settings(configs, tried),
        )
    except DagsterClientError as error:
        return _Dagster(fault=str(error))


def _file(
    planned: PlannedFile, receipts: Mapping[tuple[str, str], Receipt], dagster: _Dagster
) -> FileAccount:
    receipt = receipts.get((planned.export_id, planned.file.name))
    status = dagster.files.get(planned.partition)
    return FileAccount(
        planned=planned,
        receipt=receipt,
        state=status.state if status else "",
        error=status.error if status else "",
        attempts=None if dagster.fault else dagster.attempts[planned.partition],
    )


# -- the judgement -----------------------------------------------------------------------------------


def _verdicts(
    account: Account, kept: Mapping[tuple[str, str], int], before: Sequence[str] = ()
) -> Iterable[Verdict]:
    """Judge what was gathered; `kept` counts the items in the quarantine by file, `before` are exports loaded before."""
    loaded = [(file.planned, file.receipt) for file in account.files if file.receipt]
    windows = bool(account.plan.windows)
    superseded, but = (
        ("+ superseded ", ", but those that a window has touched since") if windows else ("", "")
    )
    yield _all(
        "every file is loaded", "files have a receipt in the database", len(account.files),
        [file.planned for file in account.files if not file.receipt],
    )  # fmt: skip
    yield _all(
        "the bytes match the manifest", "loaded files were read with the MD5 of their manifest", len(loaded),
        [planned for planned, receipt in loaded if not matches(planned, receipt)],
    )  # fmt: skip
    yield _all(
        "items are conserved",
        f"loaded files: items in the manifest = items read = loaded {superseded}+ skipped + quarantined", len(loaded),
        [p for p, receipt in loaded if not conserved(p, receipt)],
    )  # fmt: skip
    yield _all(
        "the quarantine matches the receipts", f"loaded files have as many items in the quarantine as their receipt says{but}", len(loaded),
        [p for p, receipt in loaded if not kept_as_counted(account.plan, receipt, kept.get((p.export_id, p.file.name), 0))],
    )  # fmt: skip
    yield Verdict(
        "a manifest vouches for the exports",
        "warning" if account.plan.doubts else "passed",
        "nothing vouches that the exports are complete: " + "; ".join(account.plan.doubts)
        if account.plan.doubts
        else "its counts and checksums were checked when they were planned",
    )
    if account.plan.windows:
        chain = chain_check(account.plan)
        text = chain.text + (f"; {chain.way_out}" if chain.way_out else "")
        yield Verdict(chain.name, "passed" if chain.passed else "failed", text)
    for table in account.tables:
        yield _table_verdict(table)
        yield _verification_verdict(account, table, before)
    left = left_now(account.plan, account.profile, kept, account.receipts)
    yield Verdict(
        QUARANTINE_IS_EMPTY,
        "failed" if left.too_many_quarantined else "warning" if left.quarantined else "passed",
        f"{left.quarantined_text()}; they are kept there with their raw lines" if left.quarantined else "it is empty",
    )  # fmt: skip
    yield Verdict(
        "a rule took every item", "failed" if left.unrouted else "passed",
        left.unrouted_text if left.unrouted else "none was left",
    )  # fmt: skip
    if account.without_dagster:
        yield Verdict("Dagster shows every file as materialized", "unknown", account.without_dagster)
    else:
        shown = _all(
            "Dagster shows every file as materialized", "files are materialized", len(account.files),
            [file.planned for file in account.files if file.state != "materialized"],
        )  # fmt: skip
        # The receipts are the proof; `reconcile` tells Dagster of what it lost.
        yield shown if shown.outcome == "passed" else msgspec.structs.replace(shown, outcome="warning")


def _all(name: str, text: str, total: int, wrong: Sequence[PlannedFile]) -> Verdict:
    names = ", ".join(planned.file.name for planned in wrong[:SHOWN])
    more = f" and {len(wrong) - SHOWN:,} more" if len(wrong) > SHOWN else ""
    but = f"; not: {names}{more}" if wrong else ""
    return Verdict(name, "failed" if wrong else "passed", f"{total - len(wrong):,} of {total:,} {text}{but}")


def _table_verdict(table: TableAccount) -> Verdict:
    if made := table.made:
        outcome: Outcome = "unknown" if made.waits else "failed" if made.fault else "passed"
        return Verdict(f"{table.name} is made of all files", outcome, made.text)
    outcome = "passed" if table.rows.passed else "failed"
    return Verdict(f"{table.name} has as many rows as were written", outcome, table.rows.text)


def _verification_verdict(account: Account, table: TableAccount, before: Sequence[str]) -> Verdict:
    name, reference = f"the rows of {table.name} match the export", account.plan.reference
    found = table.verification
    if table.unverified or found is None:
        text = f"not verified: {table.unverified}; migration-pipeline verify {reference} reads the export again, and compares them"
        return Verdict(name, "unverified", text)
    text = (
        f"{some_that(found.same, found.compared, 'row', 'of the export matches', 'of the export match')} the table, {found.missing:,} missing, "
        f"{found.different:,} different, {found.extra:,} extra; compared {found.verified_at:%Y-%m-%d %H:%M:%S %Z}"
    )
    if found.extra:
        text += f"; {extra_text(found.extra, before, reference)}"
    return Verdict(name, "failed" if found.missing + found.different + found.extra else "passed", text)


def _added(counts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    total = Counter[str]()
    for one in counts:
        total.update(one)
    return dict(total.most_common())
