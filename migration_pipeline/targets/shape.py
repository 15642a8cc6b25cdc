"""Tells whether tables still are what the catalog said when a load or an aggregate was begun.

How rows are written rests on that: how a value is spelled, whether its type or a trigger changes it, whether a key stands once. A transaction that
has written to a table holds a lock that no new type, no new trigger and no lost index passes. So what is found behind its last write is what was written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from typing import Any, NamedTuple

from migration_pipeline.profile.row import Table
from migration_pipeline.targets.catalog import SchemaError, qualified

SHAPE = """
SELECT to_regclass(name)::oid::bigint,
       EXISTS (SELECT
                 FROM pg_trigger
                WHERE tgrelid IN (SELECT to_regclass(name) UNION ALL SELECT relid FROM pg_partition_tree(to_regclass(name)))
                  AND NOT tgisinternal AND tgenabled IN ('O', 'A')),
       (SELECT coalesce(array_agg(DISTINCT indkey::text), '{}')
          FROM pg_index
         WHERE indrelid = to_regclass(name) AND indisunique AND indisvalid AND indpred IS NULL),
       (SELECT jsonb_object_agg(attname, ARRAY[attnum::bigint, atttypid::bigint, atttypmod, attcollation::bigint])
          FROM pg_attribute
         WHERE attrelid = to_regclass(name) AND attnum > 0 AND NOT attisdropped)
  FROM unnest(%s::text[]) WITH ORDINALITY AS w (name, number)
 ORDER BY number
"""
"""By table, so that each is looked up by its oid: 0.2 ms for three tables. A database may have columns by the hundred thousand."""


class FirstTrigger(Exception):  # noqa: N818  # no fault: the load goes on in another way
    """Tables have got their first trigger, which may change what is written."""

    def __init__(self, tables: Sequence[Table]) -> None:
        super().__init__(tables)
        self.tables = tables


class Shape:
    """What a load rests on, of some tables: which one bears the name, whether it has triggers, its unique indexes, and the types of the Row's columns."""

    def __init__(self, cursor: Any, tables: Iterable[Table]) -> None:
        # Of a landing table each file has a slice of its own, which nobody else knows.
        self._tables = [table for table in tables if not table.landing]
        self._found = self._read(cursor)

    def check(self, cursor: Any) -> None:
        """Raise `SchemaError` if that is not so any more, and `FirstTrigger`. Whatever else has come to a table is no matter."""
        with_triggers = []
        for table, before, now in zip(self._tables, self._found, self._read(cursor), strict=True):
            changed = next((part for part in before.parts if before.parts[part] != now.parts.get(part)), None)
            if changed:
                raise SchemaError(
                    f"table {table.qualified} was changed while its rows were written: {changed}; run it again"
                )
            if now.triggers and not before.triggers:
                with_triggers.append(table)
        if with_triggers:
            raise FirstTrigger(with_triggers)

    def with_triggers(self, tables: Sequence[Table]) -> Shape:
        """The same, but that these tables have triggers."""
        made = copy(self)
        made._found = [
            found._replace(triggers=found.triggers or table in tables)
            for table, found in zip(self._tables, self._found, strict=True)
        ]
        return made

    def _read(self, cursor: Any) -> list[_Found]:
        if not self._tables:
            return []
        cursor.execute(SHAPE, ([qualified(table) for table in self._tables],))
        return [
            _Found(
                triggers,
                {"it is another table": oid}
                | {
                    f"column {column.name!r} or its type": (columns or {}).get(column.name)
                    for column in table.columns
                }
                | {
                    f"it has lost a unique index (column {numbers.replace(' ', ', ')})": True
                    for numbers in indexes
                },
            )
            for table, (oid, triggers, indexes, columns) in zip(self._tables, cursor.fetchall(), strict=True)
        ]


class _Found(NamedTuple):
    triggers: bool
    parts: dict[str, Any]
    """By what is told if it is not the same."""
