"""Writes a batch and, where it holds bad items, its halves, until these stand alone: within one transaction.

What the rows are written to is the caller's business: tables, or the temporary ones of a comparison.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any

import msgspec
import psycopg2

from migration_pipeline.engine.batch import Batch, TooManyBad, Written
from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.connection import reason_of_refusal, table_of_error
from migration_pipeline.targets.faults import Fault, fault_of
from migration_pipeline.targets.sql import Statements


class Refused(Exception):  # noqa: N818  # a verdict on rows
    """A table would not hold some rows as they are; the text says why, in words that hold no values."""


class Writer(ABC):
    """Writes encoded rows."""

    def __init__(
        self, targets: Mapping[type[Row], TargetTable], sql_of: Mapping[type[Row], Statements]
    ) -> None:
        self.targets = targets
        self.sql_of = sql_of
        self.table: str | None = None
        """The table that is written now."""
        self.columns = {fit.column.name for target in targets.values() for fit in target.fits}
        """Columns that a reason may name."""

    @abstractmethod
    def write(self, cursor: Any, encoded: Any) -> Written:
        """Write the rows of a batch, and say what became of them. Raises `psycopg2.Error` and `Refused`."""

    def expect_triggers(self, tables: Collection[Table]) -> None:
        """Take it from now on that triggers of these tables may change what is written."""
        self.targets = {
            row_class: msgspec.structs.replace(target, triggers=target.triggers or target.table in tables)
            for row_class, target in self.targets.items()
        }

    def again(self, error: psycopg2.Error) -> bool:
        """Whether to write the same rows once more, in another way, after this refusal."""
        return False

    def name_of(self, table: str) -> str | None:
        """The table that a refusal names, as the profile names it: partitions, slices and staging tables have names of their own."""
        names = {target.table.name: target.table.qualified for target in self.targets.values()}
        return table if table in names.values() else names.get(table.rpartition(".")[2], self.table)


def write_batch(
    cursor: Any, batch: Batch, writer: Writer, written: Written, expect_answer: Callable[[], None], room: int
) -> None:
    """Write a batch whole or by halves. Raises `TooManyBad` beyond `room` refused items, and `psycopg2.Error`."""
    expect_answer()
    cursor.execute("SAVEPOINT batch")
    try:
        made = writer.write(cursor, batch.encoded)
    except (psycopg2.Error, Refused) as error:
        refusal = error if isinstance(error, psycopg2.Error) else None
        if refusal is not None and fault_of(refusal) is not Fault.DATA:
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT batch")
        if refusal is not None and writer.again(refusal):
            write_batch(cursor, batch, writer, written, expect_answer, room)
        elif len(batch.lines) > 1:
            for half in batch.halves():
                for bad in half.bad:
                    written.refuse(bad)
                write_batch(cursor, half, writer, written, expect_answer, room)
        else:
            reason = str(error) if refusal is None else reason_of_refusal(refusal, writer.columns)
            named = table_of_error(refusal) if refusal is not None else None
            table = (writer.name_of(named) if named else None) or writer.table
            written.refuse(batch.refused(reason, table, refusal.pgcode if refusal is not None else None))
            if len(written.refused) > room:
                raise TooManyBad(written.refused) from None
            # Of a window's record there is something left to do: the item has no row any more.
            if (rest := batch.without_rows()).lines:
                written.add(writer.write(cursor, rest.encoded))
    else:
        written.add(made)
    cursor.execute("RELEASE SAVEPOINT batch")
