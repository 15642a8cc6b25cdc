"""What tells that a table is no longer as it was: its identity, its columns, and the transactions that wrote its rows.

A row that is inserted or updated bears the id of a new transaction (``xmin``), and one that is deleted is missing from its
transaction's. So a table whose rows are counted by transaction, with the same counts as before, has the very rows
that it had: exactly, whatever became of the server's statistics. It takes a scan of the table, as ``count(*)`` does.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec
from psycopg2.sql import SQL

from migration_pipeline.profile.row import Table
from migration_pipeline.targets.catalog import identifier, qualified
from migration_pipeline.targets.connection import DatabaseSettings, transaction

IDENTITY = """
SELECT to_regclass(%(table)s)::oid::bigint,
       (SELECT md5(string_agg(format('%%s %%I %%s', attnum, attname, format_type(atttypid, atttypmod)), ',' ORDER BY attnum))
          FROM pg_attribute
         WHERE attrelid = to_regclass(%(table)s) AND attname = ANY(%(columns)s))
"""

ROWS_BY_TRANSACTION = """
SELECT coalesce(sum(n), 0)::bigint, coalesce(sum(hashtextextended(writer || ':' || n, 0)), 0)::text
  FROM (SELECT xmin::text AS writer, count(*) AS n FROM {table} GROUP BY xmin) AS counted
"""

PATIENCE = DatabaseSettings(statement_timeout_seconds=3600)


class TableState(msgspec.Struct, frozen=True, kw_only=True):
    """A table at a moment."""

    oid: int = 0
    """0 where there is none."""
    columns: str = ""
    """Digest of the Row's columns: place, name and type."""
    rows: int = 0
    writers: str = ""
    """Digest of the transactions that wrote the rows, with how many each."""

    def change_since(self, then: TableState) -> str:
        """Say in what it is no longer the table of `then`; "" if it is."""
        if not self.oid:
            return "it is not there"
        if self.oid != then.oid:
            return "the table was made anew since"
        if self.columns != then.columns:
            return "its columns were changed since"
        if (self.rows, self.writers) != (then.rows, then.writers):
            return "its rows were changed since"
        return ""


def read_states(url: str, tables: Iterable[Table]) -> tuple[datetime, dict[str, TableState]]:
    """Read the states of tables, by their qualified names, and a moment that is before all of them. Raises `DatabaseError`."""
    states = {}
    with transaction(url, PATIENCE) as cursor:
        cursor.execute("SELECT now()")
        (began,) = cursor.fetchone()
        for table in tables:
            names = [column.name for column in table.columns]
            cursor.execute(IDENTITY, {"table": qualified(table), "columns": names})
            oid, columns = cursor.fetchone()
            rows, writers = 0, ""
            if oid:
                cursor.execute(SQL(ROWS_BY_TRANSACTION).format(table=identifier(table)))
                rows, writers = cursor.fetchone()
            states[table.qualified] = TableState(
                oid=oid or 0, columns=columns or "", rows=rows, writers=writers
            )
    return began, states
