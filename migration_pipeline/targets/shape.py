"""Tells whether tables still are what the catalog said when a file was begun.

What a batch is encoded as rests on that: how a value is spelled, whether a type changes it, whether a trigger does. A transaction that has
written to a table holds a lock that no ALTER TABLE and no CREATE TRIGGER passes, so what is asked for behind its last write is what was written to.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from migration_pipeline.profile.row import Table
from migration_pipeline.targets.catalog import SchemaError, qualified

SHAPE = """
WITH wanted AS MATERIALIZED (
    SELECT name, to_regclass(name) AS id FROM (SELECT DISTINCT unnest(%(tables)s::text[])) AS each (name)
), found AS MATERIALIZED (
    SELECT name, id, (SELECT count(*)
                        FROM pg_trigger
                       WHERE tgrelid IN (SELECT id UNION ALL SELECT relid FROM pg_partition_tree(id))
                         AND NOT tgisinternal AND tgenabled IN ('O', 'A')) AS triggers
      FROM wanted
)
SELECT array_agg(concat_ws(' ', a.attrelid, a.attnum, a.atttypid, a.atttypmod, triggers) ORDER BY number)
  FROM unnest(%(tables)s::text[], %(columns)s::text[]) WITH ORDINALITY AS w (name, part, number)
  JOIN found USING (name)
  LEFT JOIN pg_attribute a ON attrelid = id AND attname = part AND NOT attisdropped
"""


class Shape:
    """The columns that some tables have now: which table it is, the number and type of each column, how many triggers there are."""

    def __init__(self, cursor: Any, tables: Collection[Table]) -> None:
        # Of a landing table each file has a slice of its own, which nobody else knows.
        self._columns = [
            (table, column.name) for table in tables if not table.landing for column in table.columns
        ]
        self._found = self._read(cursor)

    def check(self, cursor: Any) -> None:
        """Raise `SchemaError` if they are others now."""
        for (table, column), before, now in zip(self._columns, self._found, self._read(cursor), strict=True):
            if before != now:
                raise SchemaError(
                    f"table {table.qualified} was changed while the file was loaded: column {column!r} or its type, or the table's "
                    "triggers; run the file again"
                )

    def _read(self, cursor: Any) -> list[str]:
        if not self._columns:
            return []
        tables, columns = (
            [qualified(table) for table, _ in self._columns],
            [column for _, column in self._columns],
        )
        cursor.execute(SHAPE, {"tables": tables, "columns": columns})
        (found,) = cursor.fetchone()
        return list(found)
