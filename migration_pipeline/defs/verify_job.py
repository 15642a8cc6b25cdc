"""The check ``rows_match_export`` and its job.

It reads the whole export again, which takes about as long as loading it, so it is not part of the job
``<profile>_check``.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from migration_pipeline.defs.failures import failing
from migration_pipeline.defs.hosting import OURS, Hosting
from migration_pipeline.defs.metadata import PROFILE_TAG
from migration_pipeline.migration import verification
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.verdicts import exports_before, extra_text, left_of
from migration_pipeline.migration.verification import Compared, now_and_then
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.bookkeeping import DIFFERENCES, pasteable
from migration_pipeline.targets.receipts import read_receipts
from migration_pipeline.units import counted


class VerifyConfig(dg.Config):
    """Run config of a verification."""

    extra: bool = Field(
        default=False,
        description="Also find each row that no item makes, key by key; otherwise such rows are only counted.",
    )


def verify_check(plan: Plan, profile: Profile, hosting: Hosting = OURS) -> dg.AssetChecksDefinition:
    """Build the check ``rows_match_export`` on the asset ``[profile, dynamodb_export]``."""

    @dg.asset_check(
        asset=dg.AssetKey([plan.profile, "dynamodb_export"]),
        name="rows_match_export",
        required_resource_keys=hosting.keys,
        description="The export is read again, and each row that it makes is in its table, with the same values in "
        "all columns; no table has more rows. Nothing is written to the tables. Takes about as long as a load.",
    )
    def rows_match_export(
        context: dg.AssetCheckExecutionContext, config: VerifyConfig
    ) -> dg.AssetCheckResult:
        url = hosting.url(context)
        with failing():
            compared = verification.verify(
                plan,
                profile,
                url,
                context.run.run_id,
                extra=config.extra,
                say=context.log.warning,
                on_progress=now_and_then(context.log.info),
            )
            return _verdict(plan, profile, compared, exports_before(plan, read_receipts(url, plan.profile)))

    return rows_match_export


def verify_job(plan: Plan, check: dg.AssetChecksDefinition) -> Any:
    """Build the job ``<profile>_verify``, which runs it."""
    return dg.define_asset_job(
        f"{plan.profile}_verify",
        selection=dg.AssetSelection.checks(check),
        description=f"Proves that the tables hold what the exports of {plan.profile} do: reads all files again, and compares each row. "
        "Takes about as long as a load, and writes to no table.",
        tags={PROFILE_TAG: plan.profile},
    )


def _verdict(plan: Plan, profile: Profile, compared: Compared, before: Sequence[str]) -> dg.AssetCheckResult:
    tables = compared.names
    faults = sum(map(compared.faults, tables))
    rows = sum(compared.table(name).compared for name in tables)
    found = f"{faults:,} differ from the export" if faults else "all are in the tables as the export has them"
    if compared.takes_nothing:
        found = "no route of the profile takes any item"
    left = left_of(profile, [file.report for file in compared.files])
    passed = not (faults or compared.unaccounted or compared.takes_nothing or left.faults)
    extra = sum(compared.table(name).count("extra") for name in tables)
    told = [
        f"of {counted(rows, 'row')} in {counted(len(compared.files), 'file')}, {found}",
        *left.lines(plan.reference),
    ]
    metadata: dict[str, Any] = {
        "rows_compared": rows,
        "rows_at_fault": faults,
        "items_unaccounted": compared.unaccounted,
        "items_quarantined": left.quarantined,
        "items_unrouted": sum(left.unrouted.values()),
        "tables": dg.MetadataValue.md(_table_of_tables(compared, tables)),
    }
    if compared.notes:
        metadata["not_compared"] = dg.MetadataValue.md("\n".join(f"- {note}" for note in compared.notes))
    if faults or compared.unaccounted:
        metadata["next"] = dg.MetadataValue.md(
            "see keys of such rows with the statement below. Load the files concerned again: materialize their "
            "partitions; this overwrites later changes in the tables."
            + (f"\n\n{extra_text(extra, before, plan.reference)}" if extra else "")
        )
        metadata["sql"] = dg.MetadataValue.md(
            f"```sql\n{pasteable(DIFFERENCES, {'profile': plan.profile})}\n```"
        )
        metadata["files"] = dg.MetadataValue.md(_table_of_files(compared))
    return dg.AssetCheckResult(
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(told),
        metadata=metadata,
    )


def _table_of_tables(compared: Compared, tables: Sequence[str]) -> str:
    kinds = ("missing", "different", "newer", "extra")
    lines = [
        "| table | rows of the export | same | " + " | ".join(kinds) + " | columns that differ |",
        "|---" * 8 + "|",
    ]
    for name in tables:
        total = compared.table(name)
        counts = " | ".join(f"{total.count(kind):,}" for kind in kinds)
        columns = ", ".join(f"`{column}` ({rows:,})" for column, rows in total.columns.items())
        lines.append(f"| {name} | {total.compared:,} | {total.same:,} | {counts} | {columns} |")
    return "\n".join(lines)


FILES_SHOWN = 20


def _table_of_files(compared: Compared) -> str:
    concerned = [
        (file.planned.partition, faults, file.unaccounted)
        for file in compared.files
        if (
            faults := sum(found.count("missing") + found.count("different") for found in file.tables.values())
        )
        or file.unaccounted
    ]
    lines = ["| partition | rows at fault | items unaccounted for |", "|---|---|---|"]
    lines += [
        f"| `{partition}` | {rows:,} | {items:,} |" for partition, rows, items in concerned[:FILES_SHOWN]
    ]
    if len(concerned) > FILES_SHOWN:
        lines.append(f"\n… and {len(concerned) - FILES_SHOWN:,} more")
    return "\n".join(lines)
