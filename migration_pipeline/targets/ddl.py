"""The SQL that creates a profile's tables and our bookkeeping, and the check of existing ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets.bookkeeping import BOOKKEEPING, COLUMNS, LACKING_COLUMNS, LACKING_PRIVILEGES
from migration_pipeline.targets.catalog import (
    Catalog,
    SchemaError,
    TargetTable,
    qualified,
    quote,
    read_target,
)
from migration_pipeline.targets.connection import DatabaseSettings, transaction

PATIENCE = DatabaseSettings(lock_timeout_seconds=5, statement_timeout_seconds=30)
"""For a check of the tables that a user waits for: short limits."""


def ddl(tables: Iterable[Table]) -> str:
    """Write the SQL for the bookkeeping and all `tables`; running it again changes nothing."""
    return "\n".join([BOOKKEEPING, *map(_create, tables)])


def create_tables(url: str, tables: Iterable[Table]) -> None:
    """Run the DDL; existing tables stay as they are. Raises `DatabaseError`."""
    with transaction(url) as cursor:
        cursor.execute(ddl(tables))


def _create(table: Table) -> str:
    lines = [f"    {quote(c.name)} {c.pg_type}{'' if c.nullable else ' NOT NULL'}" for c in table.columns]
    if not table.landing:
        lines.append(f"    PRIMARY KEY ({', '.join(map(quote, table.key))})")
    schema = f"CREATE SCHEMA IF NOT EXISTS {quote(table.schema)};\n" if table.schema else ""
    body = ",\n".join(lines)
    comments = [f"COMMENT ON TABLE {qualified(table)} IS {literal(table.comment)};\n"]
    comments += [
        f"COMMENT ON COLUMN {qualified(table)}.{quote(c.name)} IS {literal(c.comment)};\n"
        for c in table.columns
        if c.comment
    ]
    return f"{schema}CREATE TABLE IF NOT EXISTS {qualified(table)} (\n{body}\n);\n{''.join(comments)}"


def literal(text: str) -> str:
    """Quote a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


# -- checking against the catalog --------------------------------------------------------------------


def check_bookkeeping(cursor: Any) -> None:
    """Check that all of the bookkeeping exists, in its newest form. Raises `SchemaError`."""
    cursor.execute("SHOW server_encoding")
    if cursor.fetchone() not in (("UTF8",), ("SQL_ASCII",)):
        raise SchemaError(
            "the database's encoding cannot hold most characters that items may have; use a database created "
            "WITH ENCODING 'UTF8'"
        )
    wanted = [(table, column) for table, columns in COLUMNS.items() for column in columns]
    cursor.execute(LACKING_COLUMNS, {"tables": [t for t, _ in wanted], "columns": [c for _, c in wanted]})
    if cursor.fetchone() != (0,):
        raise SchemaError(
            "the database has no bookkeeping (schema migration), or an older version of it; create or "
            "complete it with: migration-pipeline ddl PROFILE --apply"
        )
    cursor.execute(LACKING_PRIVILEGES, {"tables": list(COLUMNS)})
    lacking, role = cursor.fetchone()
    if lacking:
        raise SchemaError(
            f"the role lacks a privilege (SQLSTATE 42501): {role} may not write all of the bookkeeping (schema migration: {lacking}); "
            "see the grants in docs/security.md",
            sqlstate="42501",
        )


def read_targets(cursor: Any, tables: Mapping[type[Row], Table]) -> dict[type[Row], TargetTable]:
    """Compare tables with the catalog, before any work. Raises `SchemaError`."""
    catalog = Catalog(cursor, tables.values())
    return {row_class: read_target(table, cursor, catalog) for row_class, table in tables.items()}


def check_tables(url: str, tables: Iterable[Table]) -> None:
    """Compare bookkeeping and tables with the catalog. Raises `SchemaError` with a line for each that does not fit.

    Raises `DatabaseError` if the catalog cannot be read.
    """
    wrong: list[SchemaError] = []
    checks: list[Callable[[Any], object]] = [
        check_bookkeeping,
        *(partial(read_target, table) for table in tables),
    ]
    with transaction(url, PATIENCE) as cursor:
        for check in checks:
            try:
                check(cursor)
            except SchemaError as error:
                wrong.append(error)
    if wrong:
        states = [error.sqlstate for error in wrong if error.sqlstate]
        raise SchemaError("\n".join(map(str, wrong)), sqlstate=states[0] if states else None)


def misfits(url: str, tables: Iterable[Table]) -> list[str]:
    """Say of each table that is there and does not fit what is wrong. Raises `DatabaseError`."""
    wrong = []
    with transaction(url, PATIENCE) as cursor:
        for table in tables:
            cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (qualified(table),))
            if cursor.fetchone() == (True,):
                try:
                    read_target(table, cursor)
                except SchemaError as error:
                    wrong.append(str(error))
    return wrong
