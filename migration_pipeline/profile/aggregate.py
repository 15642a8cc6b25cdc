"""Declarations in a profile for rows that many items make (aggregates), and for steps after the load (finishing)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import msgspec
from typing_extensions import dataclass_transform

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.row import Row, Table, table_of
from migration_pipeline.units import counted


@dataclass_transform(frozen_default=True)
class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of a profile's own options: fields with defaults, given to the routes that ask for them.

    In Dagster they are the run config ``options`` of a load. `msgspec.Meta` adds limits and a description.
    """


@dataclass(frozen=True)
class Aggregate:
    """A table whose rows are each made of many rows of landing tables, by one SELECT."""

    row_class: type[Row]
    of: tuple[type[Row], ...]
    """The landing Rows that the SELECT reads."""
    by: tuple[str, ...]
    """Columns of each of them, in the order of the table's key: each distinct value of them is a group, and makes a row."""
    sql: str
    """The SELECT, as it stands in its file, without a semicolon at its end."""
    path: Path

    @property
    def sql_md5(self) -> str:
        """MD5 of the SELECT, in hex."""
        return hashlib.md5(self.sql.encode(), usedforsecurity=False).hexdigest()

    @property
    def table(self) -> Table:
        """The table that it makes."""
        return table_of(self.row_class)

    @property
    def sources(self) -> tuple[Table, ...]:
        """The landing tables that it reads."""
        return tuple(map(table_of, self.of))


def make_aggregate(
    row_class: type[Row], of: tuple[type[Row], ...], by: tuple[str, ...], path: Path
) -> Aggregate:
    """Read an aggregate's SQL, and check what the profile says of it. Raises `UsageError`."""
    where = f"aggregate {row_class.__name__}"
    table = table_of(row_class)
    if table.landing or table.version or table.merges:
        raise UsageError(f"{where}: an aggregate's Row must have a key and must not use version= or Merge")
    if len(by) != len(table.key):
        raise UsageError(
            f"{where}: by={', '.join(by)} must name {counted(len(table.key), 'column')}, one for each key column ({', '.join(table.key)})"
        )
    for source in map(table_of, of):
        columns = {column.name: column for column in source.columns}
        for name in by:
            if not source.landing or name not in columns or columns[name].nullable:
                raise UsageError(
                    f"{where}: by= names {name!r}, which must be a column, never None, of the landing table "
                    f"{source.qualified}"
                )
    try:
        sql = path.read_text(encoding="utf-8").strip().removesuffix(";").rstrip()
    except OSError as error:
        raise UsageError(f"{where}: cannot read its SQL: {path}: {error.strerror}") from None
    if not sql:
        raise UsageError(f"{where}: {path} is empty; write a SELECT into it")
    return Aggregate(row_class, of, by, sql, path)


@dataclass(frozen=True)
class Sequence:
    """A sequence that is set past the greatest value of a column, never back."""

    name: str
    row_class: type[Row]
    column: str


@dataclass(frozen=True)
class Index:
    """An index that is made after the load."""

    name: str
    row_class: type[Row]
    columns: tuple[str, ...]
    unique: bool


@dataclass(frozen=True)
class Constraint:
    """A constraint that is made after the load."""

    name: str
    row_class: type[Row]
    definition: str
    """As ``ALTER TABLE … ADD CONSTRAINT name`` takes it: ``FOREIGN KEY (order_id) REFERENCES orders``."""


FinishingStep = Union[Sequence, Index, Constraint]  # noqa: UP007  # an alias that Python 3.10 can evaluate
