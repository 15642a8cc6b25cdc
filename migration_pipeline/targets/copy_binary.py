"""Sends COPY input in PostgreSQL's binary format where that means the same rows: the server then has no texts to read.

`copy_csv` stays what a row's values are; a C extension makes binary of its CSV. Without it, and for what it does not know, the
CSV is sent.
"""

from __future__ import annotations

from psycopg2.sql import Composed

from migration_pipeline import accelerator
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.sql import copy_rows

TYPES = {
    "text": b"t",
    "character varying": b"t",
    "json": b"t",
    "jsonb": b"j",
    "boolean": b"b",
    "smallint": b"2",
    "integer": b"4",
    "bigint": b"8",
    "numeric": b"n",
    "timestamp with time zone": b"z",
    "date": b"d",
    "uuid": b"u",
}
"""The types whose values are sent so, below any domain, as `_rows_binary.h` names them."""

FEWEST = 1000
"""A COPY of fewer rows is CSV: there is little to win, and items that PostgreSQL refused stand alone with the reason that it has for CSV."""


def copy_input(target: TargetTable, data: bytes, rows: int) -> tuple[Composed, bytes]:
    """Give the statement that copies so many rows, which are CSV, straight into their table, and what to send it."""
    in_c, types = accelerator.extension(accelerator.ROWS), types_of(target)
    if in_c is not None and types is not None and rows >= FEWEST:
        binary = in_c.binary(data, rows, types)
        if binary is not None:
            return copy_rows(target, target.identifier, "FORMAT binary"), binary
    return copy_rows(target, target.identifier), data


def types_of(target: TargetTable) -> bytes | None:
    """The types of a table's columns, a byte each; None if there is another one among them."""
    actual = [fit.actual for fit in target.fits]
    types = [TYPES.get(each.element) if each.builtin and not each.array else None for each in actual]
    return None if None in types else b"".join(type_ for type_ in types if type_)
