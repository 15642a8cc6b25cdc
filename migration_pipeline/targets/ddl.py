"""The SQL that makes a profile's tables and our bookkeeping, and the check of what is there against it."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import psycopg2

from migration_pipeline.errors import UsageError
from migration_pipeline.row import Column, Table
from migration_pipeline.targets.connection import DatabaseError, connect, explain

BOOKKEEPING = files("migration_pipeline.targets").joinpath("bookkeeping.sql").read_text()
"""Schema ``migration`` and its tables; safe to run again."""


class SchemaError(UsageError):
    """The tables in the database are not those that the profile's Row classes describe."""


def quote(identifier: str) -> str:
    """Quote an identifier as `quote_ident` does, always; for DDL that is printed, not run through psycopg2."""
    return '"' + identifier.replace('"', '""') + '"'


def qualified(table: Table) -> str:
    """A table's quoted name, with its schema if it has one."""
    return ".".join(quote(part) for part in (table.schema, table.name) if part)


def ddl(tables: Iterable[Table]) -> str:
    """Write the SQL for the bookkeeping and all `tables`; running it again changes nothing."""
    return "\n".join([BOOKKEEPING, *map(_create, tables)])


def create_tables(url: str, tables: Iterable[Table]) -> None:
    """Run the DDL; what is there already stays as it is. Raises `DatabaseError`."""
    connection = connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(ddl(tables))
    except psycopg2.Error as error:
        raise DatabaseError(explain(error)) from error
    finally:
        connection.close()


def _create(table: Table) -> str:
    lines = [f"    {quote(c.name)} {c.pg_type}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
    if not table.landing:
        lines.append(f"    PRIMARY KEY ({', '.join(map(quote, table.key))})")
    schema = f"CREATE SCHEMA IF NOT EXISTS {quote(table.schema)};\n" if table.schema else ""
    body = ",\n".join(lines)
    comments = [f"COMMENT ON TABLE {qualified(table)} IS {_literal(table.comment)};\n"]
    comments += [
        f"COMMENT ON COLUMN {qualified(table)}.{quote(c.name)} IS {_literal(c.comment)};\n"
        for c in table.columns
        if c.comment
    ]
    return f"{schema}CREATE TABLE IF NOT EXISTS {qualified(table)} (\n{body}\n);\n{''.join(comments)}"


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# -- checking against the catalog --------------------------------------------------------------------

COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
       a.atthasdef OR a.attidentity <> '', a.attgenerated <> ''
  FROM pg_attribute a
 WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attnum
"""

UNIQUE_KEYS = """
SELECT array_agg(a.attname ORDER BY a.attname)
  FROM pg_index i
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
 WHERE i.indrelid = to_regclass(%s) AND i.indisunique AND i.indimmediate AND i.indisvalid
   AND i.indpred IS NULL AND i.indexprs IS NULL
 GROUP BY i.indexrelid
"""

BOOKKEEPING_COLUMNS = """
SELECT count(*)
  FROM pg_attribute
 WHERE attrelid = to_regclass('migration.loaded_file') AND attname = 'export_time'
    OR attrelid = to_regclass('migration.quarantine') AND attname = 'raw'
    OR attrelid = to_regclass('migration.collision') AND attname = 'key'
    OR attrelid = to_regclass('migration.verification') AND attname = 'extra'
    OR attrelid = to_regclass('migration.difference') AND attname = 'key'
    OR attrelid = to_regclass('migration.slice') AND attname = 'landed_at'
    OR attrelid = to_regclass('migration.aggregate') AND attname = 'files_md5'
"""
"""The newest column of each of our tables."""

ALSO_FITS: dict[str, tuple[str, ...]] = {
    "smallint": ("integer", "bigint", "numeric"),
    "integer": ("smallint", "bigint", "numeric"),
    "bigint": ("smallint", "integer", "numeric"),
    "numeric": (),
    "double precision": ("real",),
}
"""Our type -> other column types that take its values; PostgreSQL refuses single values that do not fit."""


def check_bookkeeping(cursor: Any) -> None:
    """See whether all of the bookkeeping is there, in its newest form. Raises `SchemaError`."""
    cursor.execute(BOOKKEEPING_COLUMNS)
    if cursor.fetchone() != (7,):
        raise SchemaError(
            "the database has no bookkeeping (schema migration), or that of an older version; create or "
            "complete it with: migration-pipeline ddl <profile> --apply"
        )


def check_table(table: Table, cursor: Any) -> None:
    """Compare a `Row` with the catalog. Raises `SchemaError` naming the first difference and the way out."""
    where = f"table {table.qualified}"
    cursor.execute(COLUMNS, (qualified(table),))
    actual = {name: tuple(rest) for name, *rest in cursor.fetchall()}
    if not actual:
        raise SchemaError(f"{where} does not exist; create it with: migration-pipeline ddl <profile> --apply")
    for column in table.columns:
        _check_column(where, column, actual.get(column.name))
    ours = {column.name for column in table.columns}
    for name, (_, not_null, has_default, generated) in actual.items():
        if name not in ours and not_null and not has_default and not generated:
            raise SchemaError(
                f"{where}: column {name!r} is NOT NULL without a default, and the Row has no such field; "
                "add it to the Row, or give the column a default"
            )
    cursor.execute(UNIQUE_KEYS, (qualified(table),))
    if not table.landing and not any(sorted(table.key) == columns for (columns,) in cursor.fetchall()):
        raise SchemaError(
            f"{where}: no primary key or unique index on exactly ({', '.join(table.key)}), the Row's key; "
            "an upsert needs one: add it, or change the key"
        )


def _check_column(where: str, column: Column, actual: tuple[Any, ...] | None) -> None:
    if actual is None:
        raise SchemaError(
            f"{where} has no column {column.name!r}, which the Row has; add it: ALTER TABLE … ADD COLUMN "
            f"{quote(column.name)} {column.pg_type}"
        )
    pg_type, not_null, _, generated = actual
    if generated:
        raise SchemaError(f"{where}: column {column.name!r} is generated, so the Row cannot write it")
    # Text fits any column whose input function reads it (varchar, uuid, citext, an enum).
    if column.pg_type != "text" and not _fits(column.pg_type, pg_type):
        raise SchemaError(
            f"{where}: column {column.name!r} is {pg_type}, but the Row makes {column.pg_type}; "
            "change the annotation in the profile, or the column"
        )
    if not_null and column.nullable:
        raise SchemaError(
            f"{where}: column {column.name!r} is NOT NULL, but the Row allows None; drop `| None` in the "
            "profile, or NOT NULL in the table"
        )


def _fits(ours: str, actual: str) -> bool:
    bare = actual.partition("(")[0] + (actual.rpartition(")")[2] if "(" in actual else "")
    if ours.endswith("[]"):
        element = ours.removesuffix("[]")
        return bare.endswith("[]") and (element == "text" or _fits(element, bare.removesuffix("[]")))
    return bare in (ours, *ALSO_FITS.get(ours, ()))
