"""Asset checks: compare what the database says was loaded with the plan. None of them reads S3.

They belong to the export, which no run materializes, so they run only on request (in the UI, or as the
job ``<profile>_check``) and not with every file. Their metadata holds names and numbers, never values.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg

from migration_pipeline.defs.failures import failing
from migration_pipeline.defs.hosting import OURS, Hosting
from migration_pipeline.defs.metadata import AHEAD_OF_FILES, PROFILE_TAG
from migration_pipeline.migration.cutover import chain_check
from migration_pipeline.migration.names import EXPORT
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.verdicts import (
    conserved,
    kept_as_counted,
    left_now,
    left_of,
    loaded_files,
    made_of_all,
    matches,
    receipts_of,
    rows_of,
)
from migration_pipeline.profile.aggregate import Aggregate
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Table
from migration_pipeline.targets import bookkeeping as sql
from migration_pipeline.targets.catalog import SchemaError, qualified
from migration_pipeline.targets.ddl import check_tables, literal
from migration_pipeline.targets.receipts import (
    count_quarantined,
    count_rows,
    other_writers,
    read_aggregates,
    read_receipts,
    rows_statement,
)
from migration_pipeline.units import all_that, some_of, some_that

SHOWN = 20
"""Files that a check lists at most; their number is always complete."""

COLUMNS = """
SELECT attrelid::regclass AS table_name, attname, format_type(atttypid, atttypmod), attnotnull
  FROM pg_attribute
 WHERE attrelid IN ({tables}) AND attnum > 0 AND NOT attisdropped
 ORDER BY attrelid, attnum
""".strip()

Evaluate = Callable[[Plan, Profile, str], dg.AssetCheckResult]
"""Takes the database's URL last."""


def migration_checks(plan: Plan, profile: Profile, hosting: Hosting = OURS) -> list[dg.AssetChecksDefinition]:
    """Build the checks of a plan, on the asset ``[profile, dynamodb_export]``. They raise `DatabaseError`."""

    def make(name: str, description: str, evaluate: Evaluate) -> dg.AssetChecksDefinition:
        @dg.asset_check(
            asset=dg.AssetKey([plan.profile, EXPORT]),
            name=name,
            description=description,
            required_resource_keys=hosting.keys,
        )
        def check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
            with failing():
                return evaluate(plan, profile, hosting.url(context))

        return check

    return [
        *(make(*each) for each in CHECKS),
        *(
            make(
                f"no_key_collisions_{table.qualified.replace('.', '_')}",
                f"No two items have the same key: {table.qualified} has as many rows as were loaded.",
                partial(_no_key_collisions, table),
            )
            for table in profile.tables.values()
            if not table.landing  # it has no key
        ),
        *(
            make(
                f"made_of_all_files_{aggregate.table.qualified.replace('.', '_')}",
                f"The aggregate {aggregate.table.qualified} was made after the last file was loaded, with a row for each group, and still has these rows.",
                partial(_made_of_all_files, aggregate),
            )
            for aggregate in profile.aggregates
        ),
        *(
            make(
                "windows_without_hole",
                "The windows follow the full export without a hole; one that was allowed fails it for good.",
                _windows_without_hole,
            )
            for _ in plan.windows[:1]
        ),
    ]


def check_job(plan: Plan, checks: Sequence[dg.AssetChecksDefinition]) -> Any:
    """Build the job ``<profile>_check``, which runs all of them."""
    return dg.define_asset_job(
        f"{plan.profile}_check",
        selection=dg.AssetSelection.checks(*checks),
        description=f"Tells whether {plan.profile} is loaded completely: compares the receipts in the database with the plan, and "
        "tables with the profile. Takes seconds and reads no export. Run it before a load, and after.",
        tags={PROFILE_TAG: plan.profile, **AHEAD_OF_FILES},
    )


def _windows_without_hole(plan: Plan, _profile: Profile, _url: str) -> dg.AssetCheckResult:
    found = chain_check(plan)
    metadata = {"next": dg.MetadataValue.md(found.way_out)} if not found.passed else {}
    return dg.AssetCheckResult(
        passed=found.passed, description=found.text, metadata={"windows": len(plan.windows), **metadata}
    )


def _tables_fit(plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    tables = profile.all_tables
    names = ", ".join(f"to_regclass({literal(qualified(table))})" for table in tables)
    metadata: dict[str, Any] = {"tables": len(tables), "sql": _code(f"{COLUMNS.format(tables=names)};")}
    try:
        check_tables(url, tables)
    except SchemaError as error:
        wrong = str(error).splitlines()
        metadata["concerned"] = dg.MetadataValue.md("\n".join(f"- {line}" for line in wrong))
        metadata["next"] = dg.MetadataValue.md(
            "fix them before you load: until then each file fails, in a run of its own. Tables that are not there are "
            f"created by `migration-pipeline ddl {profile.name} --apply`."
        )
        return dg.AssetCheckResult(passed=False, description="; ".join(wrong), metadata=metadata)
    if others := other_writers(url, profile.name, tables):
        metadata["concerned"] = _table(("profile", "table"), others)
        metadata["next"] = dg.MetadataValue.md(
            "name another table in one of the profiles: each overwrites the other's rows, and the counts here include "
            "the rows of both. If one migration is over, remove its receipts (`DELETE FROM migration.loaded_file "
            "WHERE profile = …`, and of `migration.aggregate`)."
        )
        told = "; ".join(f"the profile {other} has loaded rows into {table}, too" for other, table in others)
        return dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.WARN, description=told, metadata=metadata
        )
    return dg.AssetCheckResult(
        passed=True,
        description=f"{all_that(len(tables), 'table', 'fits', 'fit')} the profile",
        metadata=metadata,
    )


def _all_files_loaded(plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    receipts = read_receipts(url, plan.profile)
    missing = [p for p in plan.files if (p.export_id, p.file.name) not in receipts]
    return _result(
        plan,
        [(p, {"items": p.file.items}) for p in missing],
        f"{some_that(len(plan.files) - len(missing), len(plan.files), 'file', 'is', 'are')} loaded",
        next_step=f"load them: `migration-pipeline backfill {plan.profile} --wait`. Files that Dagster shows as "
        f"materialized although they are listed here: `migration-pipeline reconcile {plan.profile}` names them.",
        statement=sql.RECEIPTS,
        numbers={"files": len(plan.files), "files_loaded": len(plan.files) - len(missing)},
    )


def _items_conserved(plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    loaded = loaded_files(plan, read_receipts(url, plan.profile))
    kept = count_quarantined(url, plan.profile)
    wrong = []
    for planned, receipt in loaded:
        in_quarantine = kept.get((receipt.export_id, receipt.file), 0)
        if not (conserved(planned, receipt) and kept_as_counted(plan, receipt, in_quarantine)):
            numbers = {
                "items in manifest": planned.file.items,
                "read": receipt.items,
                "loaded": receipt.loaded,
                **({"superseded": receipt.superseded} if plan.windows else {}),
                "skipped": sum(receipt.skipped.values()),
                "quarantined": receipt.quarantined,
                "in quarantine": in_quarantine,
            }
            wrong.append((planned, numbers))
    receipts = [receipt for _, receipt in loaded]
    return _result(
        plan,
        wrong,
        f"items are accounted for in {some_of(len(loaded) - len(wrong), len(loaded), 'loaded file')}",
        next_step="materialize these partitions again. If the numbers still differ, the export is damaged (compare it "
        "with its manifest), or this is a defect of the pipeline: please report it with this table.",
        statement=sql.RECEIPTS,
        numbers={
            "files_loaded": len(loaded),
            "items": sum(receipt.items for receipt in receipts),
            "loaded": sum(receipt.loaded for receipt in receipts),
            **({"superseded": sum(receipt.superseded for receipt in receipts)} if plan.windows else {}),
            "skipped": sum(sum(receipt.skipped.values()) for receipt in receipts),
            "quarantined": sum(receipt.quarantined for receipt in receipts),
        },
    )


def _md5_matches(plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    loaded = loaded_files(plan, read_receipts(url, plan.profile))
    wrong = [
        (planned, {"manifest": planned.file.md5, "read": receipt.md5})
        for planned, receipt in loaded
        if not matches(planned, receipt)
    ]
    return _result(
        plan,
        wrong,
        f"the checksum matches the manifest in {some_of(len(loaded) - len(wrong), len(loaded), 'loaded file')}",
        next_step="the plan was made again after they were loaded, and the files have changed: materialize "
        "these partitions again.",
        statement=sql.RECEIPTS,
        numbers={"files_loaded": len(loaded)},
    )


def _nothing_quarantined(plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    kept = count_quarantined(url, plan.profile)
    found = [
        (p, {"items": p.file.items, "quarantined": kept[p.export_id, p.file.name]})
        for p in plan.files
        if kept.get((p.export_id, p.file.name))
    ]
    total = sum(numbers["quarantined"] for _, numbers in found)
    left = left_now(plan, profile, kept, ())
    return _result(
        plan,
        found,
        left.quarantined_text() if total else "the quarantine is empty",
        next_step="see why with the statement below, fix the profile or the table, and load the items again: launch the "
        f"job `{plan.profile}_replay`. If they may stay there, say so in the profile: `may_quarantine={total}`. "
        "The raw lines are kept in `migration.quarantine`.",
        statement=sql.QUARANTINED_ITEMS,
        numbers={"items": plan.items, "quarantined": total, "may_quarantine": profile.may_quarantine},
        passed=not left.faults,
    )


def _nothing_unrouted(plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    loaded = loaded_files(plan, read_receipts(url, plan.profile))
    found = [
        (planned, {"items": planned.file.items, "unrouted": sum(receipt.unrouted.values())})
        for planned, receipt in loaded
        if receipt.unrouted
    ]
    left = left_of(profile, [receipt for _, receipt in loaded])
    by_count = sorted(left.unrouted.items(), key=lambda pair: (-pair[1], pair[0]))
    return _result(
        plan,
        found,
        left.unrouted_text if left.unrouted else "a rule took every item",
        next_step="add a route for these keys to the profile, or an `ignore` that says why they are not wanted (as "
        "the last rule and without conditions, it takes all other items), and materialize these partitions again.",
        statement=sql.RECEIPTS,
        numbers={"items": plan.items, "unrouted": sum(left.unrouted.values())},
        more={"patterns": _table(("keys", "items"), by_count)} if found else {},
    )


CHECKS: tuple[tuple[str, str, Evaluate], ...] = (
    ("tables_fit", "Bookkeeping and tables exist and fit the profile, and no other profile has loaded rows into them.",
     _tables_fit),
    ("all_files_loaded", "Each file of the plan has a receipt in the database.", _all_files_loaded),
    ("items_conserved", "In each loaded file: items in the manifest = items read = loaded + superseded + skipped + quarantined, "
     "and the quarantine holds the quarantined ones, or those of them that no window has touched since.", _items_conserved),
    ("md5_matches", "The bytes of each loaded file have the MD5 in the manifest.", _md5_matches),
    ("nothing_quarantined", "No item of the plan's files is in the quarantine, or no more than the profile allows.",
     _nothing_quarantined),
    ("nothing_unrouted", "Each item of the loaded files was taken by a route, or ignored by a rule.", _nothing_unrouted),
)  # fmt: skip
"""The checks that every plan has: name, description, function."""


def _no_key_collisions(table: Table, plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    receipts, there = receipts_of(plan, read_receipts(url, plan.profile)), count_rows(url, table)
    rows = rows_of(table, receipts, there, windows=bool(plan.windows))
    parameters = {
        "profile": plan.profile,
        "table": table.qualified,
        "exports": [export.id for export in plan.exports],
    }
    metadata: dict[str, Any] = {
        "rows_loaded": rows.written,
        "rows_in_table": rows.there,
        "rows_replaced": rows.replaced,
        "collisions_within_batches": rows.within_batches,
    }
    if not rows.passed:
        metadata["next"] = dg.MetadataValue.md(
            "see keys with the first statement below (not all are kept). Then choose a key that tells such items apart, or "
            f"name a `version` in the Row of {table.qualified}, and load all files again. Rows that were deleted from "
            "the table since are counted here, too."
        )
    metadata["sql"] = _code(sql.pasteable(sql.COLLISIONS, parameters) + "\n\n" + rows_statement(table) + ";")
    return dg.AssetCheckResult(passed=rows.passed, description=rows.text, metadata=metadata)


def _made_of_all_files(aggregate: Aggregate, plan: Plan, profile: Profile, url: str) -> dg.AssetCheckResult:
    table = aggregate.table
    loaded = receipts_of(plan, read_receipts(url, plan.profile))
    receipt = read_aggregates(url, plan.profile).get(table.qualified)
    there = count_rows(url, table) if receipt else None
    made = made_of_all(plan, aggregate, receipt, loaded, there)
    numbers: dict[str, Any] = {"files_loaded": len(loaded)}
    if receipt:
        numbers |= {"groups": receipt.groups, "rows_made": receipt.rows, "rows_in_table": there}
    if made.fault:
        numbers["next"] = dg.MetadataValue.md(
            f"materialize the asset `{table.name}` again, or `migration-pipeline backfill {plan.profile} --wait`"
        )
    numbers["sql"] = _code(
        sql.pasteable(sql.AGGREGATES, {"profile": plan.profile}) + "\n\n" + rows_statement(table) + ";"
    )
    return dg.AssetCheckResult(passed=not made.fault, description=made.text, metadata=numbers)


def _result(
    plan: Plan,
    concerned: Sequence[tuple[PlannedFile, Mapping[str, Any]]],
    description: str,
    *,
    next_step: str,
    statement: str,
    numbers: Mapping[str, int],
    passed: bool | None = None,
    more: Mapping[str, dg.MetadataValue[Any]] | None = None,
) -> dg.AssetCheckResult:
    """Build a result that lists the `concerned` files and the next step; it passes if there are none, or as `passed` says."""
    metadata: dict[str, Any] = {**numbers, "files_concerned": len(concerned), **(more or {})}
    if concerned:
        columns = ("partition", *concerned[0][1])
        rows = [(planned.partition, *values.values()) for planned, values in concerned]
        metadata |= {"concerned": _table(columns, rows), "next": dg.MetadataValue.md(next_step)}
    metadata["sql"] = _code(sql.pasteable(statement, {"profile": plan.profile}))
    return dg.AssetCheckResult(
        passed=not concerned if passed is None else passed, description=description, metadata=metadata
    )


def _table(columns: Sequence[str], rows: Sequence[Iterable[Any]]) -> dg.MarkdownMetadataValue:
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows[:SHOWN]]
    if len(rows) > SHOWN:
        lines.append(f"\n… and {len(rows) - SHOWN:,} more")
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "`" + str(value).replace("|", "\\|") + "`"


def _code(statement: str) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(f"```sql\n{statement}\n```")
