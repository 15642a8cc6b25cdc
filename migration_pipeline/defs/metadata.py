"""What Dagster shows of a migration: the descriptions of its assets, and the metadata of a loaded file.

Numbers are plain, so that the UI plots them over partitions and time; the same is added for people: tables in
markdown, and sizes and times with their units. Nothing here holds a value of an item.
"""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.migration.names import EXPORT, PLAN_DIGEST
from migration_pipeline.migration.plan import Plan, PlannedExport, PlannedFile
from migration_pipeline.profile.profile import Prefix, Profile, Rule
from migration_pipeline.profile.row import Column, Table
from migration_pipeline.sources.export import Window, utc
from migration_pipeline.units import readable_size

PROFILE_TAG = "migration/profile"
"""Tag of a profile's assets, jobs and runs; its value is the profile's name."""

PLAN_TAG = "migration/plan"
"""Tag of a run that loads files; its value is the digest of the plan that it has read."""

FILE_TAG = "migration/file"
"""Tag of a run that loads files; see `file_tag`. The list of runs shows it, and not the partition."""

TAG_LETTERS = 63
"""Dagster's limit for the value of a tag."""

RULES = "rules"
"""Label of the metadata that lists which items become what."""

AHEAD_OF_FILES = {"dagster/priority": "1"}
"""Tag of short jobs that people wait for: they leave the queue before the files of a backfill."""

NEXT_STEPS = """
- **A file failed:** open its run, whose error says what to fix. Then *Materialize*, and choose *Failed and missing*.
- **A run was terminated:** its partition is *missing*, not failed. *Materialize*, and choose *Failed and missing*.
- **Items are quarantined:** the run's log and the table `migration.quarantine` say why. Fix the profile or the table,
  then launch the job `{profile}_replay`.
- **All files are loaded:** launch the job `{profile}_check`; green means that every item is accounted for.
- **Dagster lost its history:** `migration-pipeline reconcile {profile}`.

Every fault, what happens then and what to do: `docs/reliability.md` of the project.
"""


def export_spec(plan: Plan, profile: Profile) -> dg.AssetSpec:
    """Describe the export, which Dagster knows of and never materializes."""
    uris = [export.uri for export in plan.exports]
    return dg.AssetSpec(
        key=[plan.profile, EXPORT],
        group_name=plan.profile,
        kinds={"dynamodb", "s3" if all(uri.startswith("s3://") for uri in uris) else "file"},
        tags={PROFILE_TAG: plan.profile},
        description="The DynamoDB table as it was exported. Dagster only knows of it; nothing here changes it. "
        "Its observations show the progress of running files.",
        metadata={
            RULES: dg.MetadataValue.md(f"The first rule that matches takes an item:\n\n{_rules(profile)}"),
            "exports": dg.MetadataValue.md("\n".join(f"- `{e.uri}`, {_origin(e)}" for e in plan.exports)),
            PLAN_DIGEST: plan.digest,
            "files": len(plan.files),
            "items": plan.items,
            "size": f"{readable_size(plan.bytes)} compressed",
            "documentation": _documentation(profile),
        },
    )


def _origin(export: PlannedExport) -> str:
    """Tell which table an export is of, and whether anything vouches for that."""
    known = (
        f"of `{export.table_arn}` at {export.export_time}"
        if export.table_arn
        else "of an unknown table and time"
    )
    return f"{known}; **nothing vouches for its completeness:** {export.doubt}" if export.doubt else known


def table_spec(plan: Plan, profile: Profile, table: Table, export: dg.AssetSpec) -> dg.AssetSpec:
    """Describe a table that files are loaded into, downstream of the export."""
    rules = _rules(profile, table)
    return dg.AssetSpec(
        key=[plan.profile, table.name],
        deps=[export],
        group_name=plan.profile,
        kinds={"postgres"},
        tags={PROFILE_TAG: plan.profile},
        description=plain(table.comment or f"Rows of {table.qualified}, made of items of the export."),
        code_version=profile.version,
        skippable=True,  # by a dry run; a load either yields all tables or fails
        metadata={
            **({RULES: dg.MetadataValue.md(f"Items that become rows:\n\n{rules}")} if rules else {}),
            "dagster/table_name": table.qualified,
            "dagster/column_schema": dg.TableSchema(
                columns=[_column(table, column) for column in table.columns],
                constraints=dg.TableConstraints(
                    other=[f"PRIMARY KEY ({', '.join(table.key)})"] if table.key else []
                ),
            ),
            "documentation": _documentation(profile),
        },
    )


def plain(text: str) -> str:
    """Take the backticks out of a description, which the catalog's list shows as it stands; an asset's page renders it."""
    return text.replace("`", "")


def _column(table: Table, column: Column) -> dg.TableColumn:
    return dg.TableColumn(
        name=column.name,
        type=column.pg_type,
        description=column.comment or None,
        constraints=dg.TableColumnConstraints(
            nullable=column.nullable,
            unique=table.key == (column.name,),
            other=["primary key"] if column.name in table.key else [],
        ),
    )


# -- the profile in words ------------------------------------------------------------------------------


def _rules(profile: Profile, table: Table | None = None) -> str:
    """List the profile's rules in their order: all of them, or those that make rows of a table."""
    names = {row_class: each.qualified for row_class, each in profile.tables.items()}
    lines = []
    for rule in profile.rules:
        made = [names[row_class] for row_class in rule.row_classes]
        if table is None:
            lines.append(f"- {_conditions(rule)} → {', '.join(made) or 'skipped'}: {_why(rule)}")
        elif table.qualified in made:
            lines.append(f"- {_conditions(rule)}: {_why(rule)}")
    return "\n".join(lines)


def _conditions(rule: Rule) -> str:
    named = ", ".join(
        f"`{name}` = `{condition.text}…`" if isinstance(condition, Prefix) else f"`{name}` = `{condition}`"
        for name, condition in rule.conditions
    )
    return named or "all other items"


def _why(rule: Rule) -> str:
    doc = inspect.getdoc(rule.function) if rule.function else rule.reason
    return " ".join((doc or f"route `{rule.reason}`").split())


def _documentation(profile: Profile) -> dg.MarkdownMetadataValue:
    """The docstring of the profile's module, and what to do when something fails."""
    route = next(rule.function for rule in profile.rules if rule.function)
    module = inspect.getmodule(route)
    return dg.MetadataValue.md(
        (inspect.getdoc(module) or "" if module else "").replace("::\n", ":\n")
        + f"\n\n## What to do\n{NEXT_STEPS.format(profile=profile.name)}"
    )


# -- the files of a run --------------------------------------------------------------------------------


def file_tag(first: str, last: str) -> str:
    """Name the files of a run in a tag, by their partition keys: ``0001_…``, or of several ``0001_…..0050_…``."""
    keys = [re.sub(r"[^A-Za-z0-9_.-]+", "-", key) for key in dict.fromkeys((first, last))]
    separator = ".."
    room = (TAG_LETTERS - len(separator) * (len(keys) - 1)) // len(keys)
    return separator.join(key[:room] for key in keys)


# -- a loaded file -------------------------------------------------------------------------------------


def file_metadata(
    planned: PlannedFile, report: FileReport, table: Table, window: Window | None = None
) -> Mapping[str, Any]:
    """Make a loaded file's metadata of plain values, which JSON keeps unchanged; `window` is the one that it is of."""
    rows = report.rows.get(table.qualified, 0)
    rounded = rounded_values(report, table)
    return {
        "file": planned.file.uri,
        "size": readable_size(report.bytes),
        "md5": report.md5,
        "items": report.items,
        "loaded": report.loaded,
        "skipped": sum(report.skipped.values()),
        "quarantined": report.quarantined,
        "unrouted": sum(report.unrouted.values()),
        "rows": rows,
        "changed": report.changed_rows.get(table.qualified, 0),
        "collisions": report.collisions.get(table.qualified, 0),
        "rounded": sum(count for _, count in rounded),
        "nul": report.nul,
        "accelerated": report.accelerated,
        "not_accelerated_by_reason": report.not_accelerated,
        "retries": report.retries,
        "throttled_seconds": round(sum(report.throttled.values()), 2),
        "bytes": report.bytes,
        "seconds": round(report.seconds, 2),
        "items_per_second": round(report.items_per_second),
        "rows_by_table": report.rows,
        "skipped_by_reason": report.skipped,
        "unrouted_by_keys": report.unrouted,
        "quarantined_by_reason": report.quarantined_by_reason,
        "throttled_by_reason": report.throttled,
        "rounded_by_column": dict(rounded),
        "dagster/partition_row_count": rows,
        **_changes(report, table, window),
    }


def _changes(report: FileReport, table: Table, window: Window | None) -> dict[str, Any]:
    """The numbers that a window has besides; of a full export, only how many items windows have touched, if any."""
    if window is None:
        return {"superseded": report.superseded} if report.superseded else {}
    return {
        "window": f"{utc(window.start)} to {utc(window.end)}",
        "records": report.items,
        "superseded": report.superseded,
        **{kind: rows.get(table.qualified, 0) for kind, rows in report.row_changes.items()},
        "row_changes": report.row_changes,
    }


def rounded_values(report: FileReport, table: Table) -> list[tuple[str, int]]:
    """Values that a table's columns changed, as its Row allows, by column."""
    names = {f"{table.qualified}.{column.name}": column.name for column in table.columns}
    return [(names[name], count) for name, count in report.rounded.items() if name in names]


def file_tables(
    planned: PlannedFile, report: FileReport, window: Window | None = None
) -> Mapping[str, dg.MarkdownMetadataValue]:
    """Make a loaded file's metadata for people: tables in markdown, with examples of its bad items if it has any."""
    items = "records" if window else "items"
    account = [(report.items, f"{items} read, {readable_size(report.bytes)} compressed")]
    account += [(report.loaded, f"{items} {'applied' if window else 'loaded'}")]
    if window or report.superseded:
        account += [(report.superseded, "superseded: a newer state was there")]
    account += [(count, f"skipped: {reason}") for reason, count in report.skipped.items()]
    account += [(count, f"quarantined: {reason}") for reason, count in report.quarantined_by_reason.items()]
    if window:
        for kind, rows in report.row_changes.items():
            account += [(count, f"rows {kind} in `{name}`") for name, count in rows.items() if count]
    else:
        account += [(count, f"rows of `{name}`") for name, count in report.rows.items()]
    account += [(count, f"values changed to fit column `{name}`") for name, count in report.rounded.items()]
    tables = {"account": _markdown_table(("count", "of"), account)}
    if report.quarantined_examples:
        tables["quarantine_examples"] = _markdown_table(
            ("line", "table", "SQLSTATE", "reason"),
            [
                (f"{bad.line}", bad.table or "–", bad.sqlstate or "–", bad.reason)
                for bad in report.quarantined_examples
            ],
            f"of `{planned.file.name}`; the table `migration.quarantine` has all of them:\n\n",
        )
    return tables


def _markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | int]], title: str = ""
) -> dg.MarkdownMetadataValue:
    """Make a table in markdown. The UI cuts off what is too wide: put what is long last, where it wraps."""
    lines = [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(map(_cell, row)) + " |" for row in rows),
    ]
    return dg.MetadataValue.md(title + "\n".join(lines))


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else value.replace("|", "\\|").replace("\n", " ")
