"""What Dagster shows of a migration: the descriptions of its assets, and the metadata of a loaded file."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from migration_pipeline.engine.report import FileReport
from migration_pipeline.plan import Plan, PlannedFile
from migration_pipeline.profile import Profile
from migration_pipeline.row import Table


def export_spec(plan: Plan) -> dg.AssetSpec:
    """Describe the export, which Dagster knows of and never materializes."""
    return dg.AssetSpec(
        key=[plan.profile, "dynamodb_export"],
        group_name=plan.profile,
        kinds={"dynamodb", "s3"},
        description="The DynamoDB table as it was exported. Dagster only knows of it; nothing here changes it.",
        metadata={
            "exports": dg.MetadataValue.md(
                "\n".join(f"- `{e.uri}` of {e.export_time}" for e in plan.exports)
            ),
            "dynamodb_table": ", ".join(sorted({e.table_arn for e in plan.exports})),
            "files": len(plan.files),
            "items": plan.items,
            "bytes": plan.bytes,
        },
    )


def table_spec(plan: Plan, profile: Profile, table: Table, export: dg.AssetSpec) -> dg.AssetSpec:
    """Describe a table that files are loaded into, downstream of the export."""
    columns = [
        dg.TableColumn(
            name=column.name,
            type=column.pg_type,
            constraints=dg.TableColumnConstraints(
                nullable=column.nullable, unique=table.key == (column.name,)
            ),
        )
        for column in table.columns
    ]
    return dg.AssetSpec(
        key=[plan.profile, table.name],
        deps=[export],
        group_name=plan.profile,
        kinds={"postgres"},
        description=table.comment,
        code_version=profile.version,
        metadata={
            "dagster/table_name": table.qualified,
            "dagster/column_schema": dg.TableSchema(columns=columns),
        },
    )


def file_metadata(planned: PlannedFile, report: FileReport, table: Table) -> Mapping[str, Any]:
    """What a materialization says of its file. Numbers are plain, so that the UI plots them over partitions."""
    rows = report.rows.get(table.qualified, 0)
    return {
        "dagster/partition_row_count": rows,
        "file": planned.file.uri,
        "md5": report.md5,
        "bytes": report.bytes,
        "items": report.items,
        "loaded": report.loaded,
        "skipped": sum(report.skipped.values()),
        "quarantined": report.quarantined,
        "unrouted": sum(report.unrouted.values()),
        "collisions": sum(report.collisions.values()),
        "changed": report.changed,
        "nul": report.nul,
        "retries": report.retries,
        "rows": rows,
        "rows_by_table": report.rows,
        "skipped_by_reason": report.skipped,
        "unrouted_by_keys": report.unrouted,
        "quarantined_by_reason": report.quarantined_by_reason,
        "seconds": round(report.seconds, 2),
        "items_per_second": round(report.items_per_second),
    }
