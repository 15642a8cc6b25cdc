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
       (SELECT jsonb_object_agg(attname, ARRAY[attnum::bigint, atttypid::bigint, atttypmod, attcollation::bigint, xmin::text::bigint])
          FROM pg_attribute
         WHERE attrelid = to_regclass(name) AND attnum > 0 AND NOT attisdropped),
       (SELECT format('%%s %%s', relnamespace::regnamespace, xmin)
          FROM pg_class
         WHERE oid = to_regclass(name) AND relkind = 'r'
           AND NOT EXISTS (SELECT
                             FROM pg_attribute JOIN pg_type t ON t.oid = atttypid
                            WHERE attrelid = to_regclass(name) AND attnum > 0 AND NOT attisdropped
                              AND (typtype <> 'b' OR typnamespace <> 'pg_catalog'::regnamespace))),
       (SELECT string_agg(format('%%s %%s', indexrelid, xmin), ',' ORDER BY indexrelid) FROM pg_index WHERE indrelid = to_regclass(name)),
       EXISTS (SELECT FROM pg_rewrite WHERE ev_class = to_regclass(name)),
       EXISTS (SELECT FROM pg_inherits WHERE inhparent = to_regclass(name))
  FROM unnest(%s::text[]) WITH ORDINALITY AS w (name, number)
 ORDER BY number
"""
"""By table, so that each is looked up by its oid: half a millisecond for three tables. A database may have columns by the hundred thousand.

The id of the transaction that wrote a row of the catalog (``xmin``) tells whether anybody has changed it. `VACUUM` and `ANALYZE` leave it. So does
whoever makes a trigger, a rule or a child where the table had one before: these are looked for. What a domain is stands elsewhere, so who has one is looked at anew.
"""

TOLD = 4
"""So much of a column must not change while a table is written to: its number, type, modifier and collation."""


class FirstTrigger(Exception):  # noqa: N818  # no fault: the load goes on in another way
    """Tables have got their first trigger, which may change what is written."""

    def __init__(self, tables: Sequence[Table]) -> None:
        super().__init__(tables)
        self.tables = tables


class Shape:
    """What a load rests on, of some tables: which one bears the name, whether it has triggers, its unique indexes, and the types of the Row's columns.

    It also knows who changed what the catalog has of them last.
    """

    def __init__(self, cursor: Any, tables: Iterable[Table]) -> None:
        self._tables = list(tables)
        self._found = _read(cursor, self._tables)

    def is_as(self, other: Shape) -> bool:
        """Whether all that the catalog has of the tables is as it was, for certain: not of partitioned ones, or with columns of others' types."""
        return self._found == other._found and all(found.state for found in self._found.values())

    def check(self, cursor: Any) -> None:
        """Raise `SchemaError` if that is not so any more, and `FirstTrigger`. Whatever else has come to a table is no matter."""
        # Of a landing table each file has a slice of its own, which nobody else knows.
        tables = [table for table in self._tables if not table.landing]
        found, with_triggers = _read(cursor, tables), []
        for table in tables:
            before, now = self._found[table.qualified], found[table.qualified]
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
        names = {table.qualified for table in tables}
        made._found = {
            name: found._replace(triggers=found.triggers or name in names)
            for name, found in self._found.items()
        }
        return made


class _Found(NamedTuple):
    triggers: bool
    parts: dict[str, Any]
    """By what is told if it is not the same."""
    state: tuple[Any, ...]
    """Where it lies, and who wrote the catalog's rows of it last; empty where they are not all that there is to know."""


def _read(cursor: Any, tables: Sequence[Table]) -> dict[str, _Found]:
    if not tables:
        return {}
    cursor.execute(SHAPE, ([qualified(table) for table in tables],))
    return {
        table.qualified: _Found(
            triggers,
            {"it is another table": oid}
            | {
                f"column {column.name!r} or its type": (columns or {}).get(column.name, [])[:TOLD]
                for column in table.columns
            }
            | {
                f"it has lost a unique index (column {numbers.replace(' ', ', ')})": True
                for numbers in indexes
            },
            (where, columns, *others) if where else (),
        )
        for table, (oid, triggers, indexes, columns, where, *others) in zip(
            tables, cursor.fetchall(), strict=True
        )
    }
