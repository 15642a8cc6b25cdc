"""Connections to PostgreSQL, and its refusals in words that hold no values."""

from __future__ import annotations

import re
from typing import Any

import psycopg2

from migration_pipeline.errors import MigrationError

SESSION = """
SET SESSION TIME ZONE 'UTC';
SET SESSION enable_hashjoin = off;
SET SESSION enable_mergejoin = off
"""
"""Times without an offset mean UTC whatever the server's or the operator's zone is. And a batch is joined
to its table by the key's index, however large the table and whatever its statistics say: the staging
table has none, and a plan that reads the whole target once a batch would be a disaster."""


class DatabaseError(MigrationError):
    """PostgreSQL refused something; the text holds SQLSTATE and names, never values."""


def connect(url: str) -> Any:
    """Connect, with what makes results the same everywhere: UTF-8 and `SESSION`. Raises `DatabaseError`."""
    try:
        connection = psycopg2.connect(url, application_name="migration_pipeline", client_encoding="UTF8")
        with connection, connection.cursor() as cursor:
            cursor.execute(SESSION)
    except psycopg2.ProgrammingError:
        # Its text quotes the URL, and a URL may hold a password; so would a chained exception's.
        raise DatabaseError(
            "no database: MIGRATION_DATABASE_URL is no connection URL; write it as "
            "postgresql://user@host:port/database, with %-escapes for special characters in a password"
        ) from None
    except psycopg2.Error as error:
        # libpq quotes parts of the URL, and of a mistyped one any part may be of the password.
        reason = re.sub(r'"[^"]*"', '"…"', str(error).strip().splitlines()[0])
        raise DatabaseError(
            f"no database: {reason}; check MIGRATION_DATABASE_URL, and that the server runs (the embedded one "
            "runs under `make dev`)"
        ) from None
    return connection


def explain(error: psycopg2.Error) -> str:
    """Say what PostgreSQL refused by its SQLSTATE and names; its own text may echo values."""
    detail = error.diag
    names = [
        f"{label} {value}"
        for label, value in (
            ("table", detail.table_name),
            ("column", detail.column_name),
            ("constraint", detail.constraint_name),
            ("type", detail.datatype_name),
        )
        if value
    ]
    kind = type(error).__name__
    return f"PostgreSQL: {kind} (SQLSTATE {error.pgcode or 'none'}){': ' if names else ''}{', '.join(names)}"
