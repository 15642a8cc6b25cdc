"""What a report tells: gathered from the plan, the database's receipts and Dagster, and judged.

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
import yaml

from migration_pipeline.defs.migration import LoadConfig
from migration_pipeline.instance import Backfill, FileStatus, Instance, InstanceError
from migration_pipeline.plan import Plan, PlannedFile
from migration_pipeline.profile import Profile
from migration_pipeline.runs import Run, backfills, run_configs, runs
from migration_pipeline.targets.receipts import (
    Bad,
    Receipt,
    Verification,
    count_quarantined,
    count_rows,
    quarantined_by_reason,
    read_aggregates,
    read_receipts,
    read_verifications,
    server,
)

PACKAGES = ("migration-pipeline", "dagster", "psycopg2-binary", "msgspec", "isal", "boto3", "smart-open")

SHOWN = 10
"""Files that a verdict names; their number is always told in full."""

Outcome = Literal["passed", "failed", "warning", "unknown"]


class Verdict(msgspec.Struct, frozen=True):
    """One thing that was held against another."""

    name: str
    outcome: Outcome
    text: str


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


class TableAccount(msgspec.Struct, frozen=True, kw_only=True):
    """A table, and what was written into it."""

    name: str
    written: int
    """Rows that the receipts tell of."""
    collisions: int
    """Rows left out because another item of the same batch made the same key."""
    there: int
    """Rows in the table now."""
    version: str | None
    """The column that decides between two items of one key, if the profile names one."""
    kind: Literal["keyed", "merged", "landing", "aggregate"] = "keyed"
    """Rows of a key that merges hold several items; a landing table may have been dropped by finishing; an
    aggregate is made of all files, and `written` are the rows of its receipt."""
    made: bool = True
    """Whether an aggregate has a receipt."""
    verification: Verification | None = None
    """What `verify` found when it last compared the table with the export; None if it never did."""


class Account(msgspec.Struct, kw_only=True):
    """All that a report tells."""

    plan: Plan
    profile: Profile
    made: datetime
    files: list[FileAccount]
    tables: list[TableAccount]
    bad: list[Bad]
    verdicts: list[Verdict]
    backfills: list[Backfill]
    settings: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    without_dagster: str
    """Why Dagster could not be asked; "" when it could."""

    @property
    def receipts(self) -> list[Receipt]:
        """Receipts of the plan's files, in load order."""
        return [file.receipt for file in self.files if file.receipt]

    @property
    def complete(self) -> bool:
        """Whether every item of the plan is accounted for; a warning does not speak against it."""
        return not any(verdict.outcome == "failed" for verdict in self.verdicts)

    def sum_of(self, count: Callable[[Receipt], int]) -> int:
        """Add up a number over the loaded files."""
        return sum(map(count, self.receipts))

    @property
    def skipped(self) -> dict[str, int]:
        """Skipped items by reason, the commonest first."""
        return _added(receipt.skipped for receipt in self.receipts)

    @property
    def unrouted(self) -> dict[str, int]:
        """Items that no rule took, by the pattern of their keys."""
        return _added(receipt.unrouted for receipt in self.receipts)


def gather(plan: Plan, profile: Profile, instance: Instance, database_url: str) -> Account:
    """Ask the database and Dagster. Raises `DatabaseError`; a Dagster that does not answer is told in the account."""
    exports = [export.id for export in plan.exports]
    receipts = read_receipts(database_url, plan.profile)
    dagster = _ask_dagster(plan, profile, instance)
    files = [_file(planned, receipts, dagster) for planned in plan.files]
    verified = {one.table_name: one for one in read_verifications(database_url, plan.profile)}
    tables = [
        TableAccount(
            name=table.qualified,
            written=sum(receipt.rows.get(table.qualified, 0) for receipt in receipts.values()),
            collisions=sum(receipt.collisions.get(table.qualified, 0) for receipt in receipts.values()),
            there=count_rows(database_url, table),
            version=table.version,
            kind="landing" if table.landing else "merged" if table.merges else "keyed",
            verification=verified.get(table.qualified),
        )
        for table in profile.tables.values()
    ]
    made = read_aggregates(database_url, plan.profile)
    tables += [
        TableAccount(
            name=table.qualified,
            written=made[table.qualified].rows if table.qualified in made else 0,
            collisions=0,
            there=count_rows(database_url, table),
            version=None,
            kind="aggregate",
            made=table.qualified in made,
            verification=verified.get(table.qualified),
        )
        for table in (aggregate.table for aggregate in profile.aggregates)
    ]
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
    )  # fmt: skip
    account.verdicts = list(_verdicts(account, kept))
    return account


class _Dagster(msgspec.Struct, kw_only=True):
    """What Dagster answered."""

    fault: str = ""
    files: dict[str, FileStatus] = {}
    attempts: Counter[str] = msgspec.field(default_factory=Counter)
    backfills: list[Backfill] = []
    settings: list[tuple[str, str]] = []


def _ask_dagster(plan: Plan, profile: Profile, instance: Instance) -> _Dagster:
    try:
        files = {file.partition: file for file in instance.files(plan, profile)}
        tried = runs(instance, plan, ())
        configs = run_configs(instance, sorted({f.run_id for f in files.values() if f.run_id}))
        return _Dagster(
            files=files,
            attempts=Counter(partition for run in tried for partition in run.partitions),
            backfills=backfills(instance, plan),
            settings=_run_settings(configs, tried),
        )
    except InstanceError as error:
        return _Dagster(fault=str(error))


def _run_settings(configs: Mapping[str, str], tried: Sequence[Run]) -> list[tuple[str, str]]:
    """The run config of the loads, by names that are ours: anything else in it may be a secret."""
    defaults = LoadConfig().model_dump()
    used: dict[str, Counter[str]] = {name: Counter() for name in defaults}
    for text in configs.values():
        config = yaml.safe_load(text) or {}
        ops = (config.get("ops") or {}).values() if isinstance(config, dict) else ()
        given: dict[str, Any] = {}
        for op in ops:
            given |= (op or {}).get("config") or {}
        for name, default in defaults.items():
            value = given.get(name, default)
            told = (
                str(value)
                if isinstance(value, bool)
                else f"{value:,}"
                if isinstance(value, int | float)
                else "?"
            )
            used[name][told] += 1
    if not configs:
        return []
    settings = [
        (name, ", ".join(f"{value} ({n} runs)" if len(values) > 1 else value for value, n in values.items()))
        for name, values in used.items()
    ]
    by_status = Counter(run.status.lower() for run in tried)
    settings.append(
        ("runs that Dagster knows", ", ".join(f"{n} {status}" for status, n in by_status.items()))
    )
    return settings


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


def _verdicts(account: Account, kept: Mapping[tuple[str, str], int]) -> Iterable[Verdict]:
    """Judge what was gathered; `kept` counts the items in the quarantine by file."""
    loaded = [(file.planned, file.receipt) for file in account.files if file.receipt]
    yield _all(
        "every file is loaded", "files have a receipt in the database", len(account.files),
        [file.planned for file in account.files if not file.receipt],
    )  # fmt: skip
    yield _all(
        "the bytes are the export's", "loaded files were read with the MD5 of their manifest", len(loaded),
        [planned for planned, receipt in loaded if receipt.md5 != planned.file.md5],
    )  # fmt: skip
    yield _all(
        "items are conserved",
        "loaded files: items in the manifest = items read = loaded + skipped + quarantined", len(loaded),
        [p for p, receipt in loaded if not receipt.conserved or receipt.items != p.file.items],
    )  # fmt: skip
    yield _all(
        "the quarantine is exact", "loaded files have as many items in the quarantine as their receipt says", len(loaded),
        [p for p, receipt in loaded if receipt.quarantined != kept.get((p.export_id, p.file.name), 0)],
    )  # fmt: skip
    for table in account.tables:
        yield _table_verdict(table)
        yield _verification_verdict(account, table)
    bad = sum(one.items for one in account.bad)
    yield Verdict(
        "nothing is in the quarantine", "warning" if bad else "passed",
        f"{bad:,} items are in the quarantine; they are kept there with their raw lines" if bad else "it is empty",
    )  # fmt: skip
    unrouted = sum(account.unrouted.values())
    yield Verdict(
        "a rule took every item", "warning" if unrouted else "passed",
        f"{unrouted:,} items were skipped because no rule of the profile took them" if unrouted else "none was left",
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
    name = f"every row is in {table.name}"
    missing = table.written - table.there
    if table.version is not None:
        text = f"{table.written:,} rows written, {table.there:,} there: of one key the greater {table.version} stays"
        return Verdict(name, "passed", text)
    if table.kind == "merged":
        text = f"{table.written:,} rows written, {table.there:,} there: rows of one key are merged"
        return Verdict(name, "passed", text)
    if table.kind == "landing" and not table.there:
        return Verdict(
            name, "passed", f"{table.written:,} rows were landed; finishing has dropped them since"
        )
    if not table.made:
        return Verdict(name, "failed", "it was not made yet, which waits for all files")
    if missing > 0 or table.collisions:
        return Verdict(
            name, "failed",
            f"{max(missing, 0):,} of {table.written:,} rows written are not in the table, and {table.collisions:,} met "
            "another of their key in one batch",
        )  # fmt: skip
    more = f", and {-missing:,} that were there before or came from elsewhere" if missing < 0 else ""
    return Verdict(name, "passed", f"{table.written:,} rows written, all are there{more}")


def _verification_verdict(account: Account, table: TableAccount) -> Verdict:
    name, found = f"the rows of {table.name} are the export's", table.verification
    if found is None or found.verified_at is None:
        return Verdict(
            name, "unknown",
            f"nobody has compared them yet; migration-pipeline verify {account.plan.profile} reads the export again, and does",
        )  # fmt: skip
    faults = found.missing + found.different + found.extra
    text = (
        f"{found.same:,} of {found.compared:,} rows of the export are the table's, {found.missing:,} are missing, "
        f"{found.different:,} different, {found.extra:,} extra; compared {found.verified_at:%Y-%m-%d %H:%M:%S %Z}"
    )
    if found.files < len(account.files):
        text += f", with {found.files:,} of {len(account.files):,} files: verify again"
    elif any(receipt.loaded_at > found.verified_at for receipt in account.receipts):
        text += ", and files were loaded since: verify again"
    else:
        return Verdict(name, "failed" if faults else "passed", text)
    return Verdict(name, "failed" if faults else "warning", text)


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for one in counts:
        total.update(one)
    return dict(total.most_common())
