"""Reads how sequences stand to the columns that they number, and moves none."""

from __future__ import annotations

from typing import Any

import msgspec
from psycopg2.sql import SQL, Identifier

from migration_pipeline.profile.aggregate import Sequence
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Table, table_of
from migration_pipeline.targets.catalog import identifier, qualified, quote
from migration_pipeline.targets.connection import DatabaseSettings, transaction
from migration_pipeline.targets.finishing import OWN_SEQUENCES

STATE = """
SELECT s.last_value, s.is_called, t.m
  FROM (SELECT {end}({column}) AS m FROM {table}) t, {sequence} s
"""

PATIENCE = DatabaseSettings(statement_timeout_seconds=3600)


class SequenceState(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence, and the last value of its column."""

    name: str
    column: str
    """With its table."""
    last: int | None
    """The last value that it gave; None if it gave none, or is not there."""
    greatest: int | None
    """The column's last value in the sequence's direction; None if it has none."""
    there: bool = True
    up: bool = True

    @property
    def past(self) -> bool:
        """Whether its next value is past all of the column's."""
        if self.greatest is None or self.last is None:
            return self.there and self.greatest is None
        return self.last >= self.greatest if self.up else self.last <= self.greatest


def read_sequences(url: str, profile: Profile) -> list[SequenceState]:
    """Read the sequences of a profile's finishing, and those of its tables' identity and serial columns. Raises `DatabaseError`."""
    states = {}
    with transaction(url, PATIENCE) as cursor:
        for each in profile.finishing:
            if isinstance(each, Sequence):
                name, table = ".".join(map(quote, each.name.split("."))), table_of(each.row_class)
                states[each.name, each.column] = _state(cursor, each.name, name, each.column, table)
        for table in profile.all_tables:
            if not table.landing:
                cursor.execute(OWN_SEQUENCES, (qualified(table), [column.name for column in table.columns]))
                for column, name, up in cursor.fetchall():
                    states[name, column] = _state(cursor, name, name, column, table, up=up)
    return list(states.values())


def _state(
    cursor: Any, shown: str, name: str, column: str, table: Table, *, up: bool = True
) -> SequenceState:
    """Read a sequence; `name` is quoted as SQL has it. A table that is not there has no values."""
    state = SequenceState(
        name=shown, column=f"{table.qualified}.{column}", last=None, greatest=None, there=False, up=up
    )
    cursor.execute(
        "SELECT to_regclass(%s) IS NOT NULL, to_regclass(%s) IS NOT NULL", (name, qualified(table))
    )
    there, has_table = cursor.fetchone()
    if not there or not has_table:
        return msgspec.structs.replace(state, there=there)
    statement = SQL(STATE).format(
        end=SQL("max" if up else "min"),
        column=Identifier(column),
        table=identifier(table),
        sequence=SQL(name),
    )
    cursor.execute(statement)
    last, called, greatest = cursor.fetchone()
    return msgspec.structs.replace(state, last=last if called else None, greatest=greatest, there=True)
