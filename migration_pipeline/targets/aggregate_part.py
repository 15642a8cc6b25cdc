"""Splits an aggregate's key into ranges, and makes the rows of each range."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Optional

import psycopg2
import psycopg2.errorcodes
import psycopg2.errors
from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from migration_pipeline.errors import MigrationError
from migration_pipeline.profile.aggregate import Aggregate
from migration_pipeline.targets import sql
from migration_pipeline.targets.catalog import TargetTable, qualified
from migration_pipeline.targets.expressions import (
    as_key,
    exactly,
    keyed,
    name_list,
    names_of,
    same_key,
    written,
)
from migration_pipeline.targets.fits import Fit
from migration_pipeline.targets.halving import Refused
from migration_pipeline.targets.upsert import write_staged
from migration_pipeline.units import counted

Bounds = tuple[Optional[str], Optional[str]]  # noqa: UP045  # an alias that Python 3.10 can evaluate
"""A range of the key's first column, as text: from the first on, up to but not including the second; None is no bound."""


class PartReport(NamedTuple):
    """The result of making a range, in rows."""

    rows: int
    new: int
    changed: int
    deleted: int
    rounded: dict[str, int]
    """Values that columns changed, as the Row allows, by table and column."""


class PartMaker:
    """Makes the rows of an aggregate, range by range, each in a transaction of the caller's. Raises `MigrationError`."""

    def __init__(self, aggregate: Aggregate, target: TargetTable, *, delete_rows: bool) -> None:
        self._aggregate = aggregate
        self._target = target
        self._delete_rows = delete_rows
        self._checked = [fit for fit in target.fits if fit.round_trip or fit.changes is not None]

    def split(self, cursor: Any, wanted: int) -> list[Bounds]:
        """Split the key's first column into ranges of about as many landed rows each, by its histogram."""
        bounds: list[str] = []
        if wanted > 1:
            source, by = self._aggregate.sources[0], self._aggregate.by[0]
            statement = SQL(sql.HISTOGRAM).format(bound=self._bound(Identifier("b")))
            cursor.execute(statement, (qualified(source), by))
            histogram = [bound for (bound,) in cursor.fetchall()]
            step = max(1.0, len(histogram) / wanted)
            bounds = [histogram[int(step * n)] for n in range(1, wanted) if step * n < len(histogram)]
        edges: list[str | None] = [None, *bounds, None]
        return list(pairwise(edges))

    def make(self, cursor: Any, bounds: Bounds, token: str) -> PartReport:
        """Make the rows of a range; `token` is in the names of what that takes."""
        target, fits = self._target, self._target.fits
        staging = Identifier("pg_temp", f"migration_{token}")
        parts = {
            "target": target.identifier,
            "staging": staging,
            "select": SQL(self._aggregate.sql),
            "exactly": exactly(fits, "q"),
            "values": SQL(", ").join(written(fit, "s") for fit in fits),
            "overriding": SQL("OVERRIDING SYSTEM VALUE " if target.overriding else ""),
            "range_of_query": self._within("q", bounds),
            "range_of_target": self._within("t", bounds),
            "columns": name_list(names_of(fits)),
            "staged_key": SQL(", ").join(as_key(fit, "s") for fit in target.key_fits),
            "same_key": same_key(target, "t", "s"),
        }
        if target.straight and not self._checked:
            inserted = self._insert(cursor, parts)
            if inserted is not None:
                return PartReport(inserted, inserted, 0, 0, {})
        return self._upsert(cursor, parts, staging)

    def _insert(self, cursor: Any, parts: dict[str, Composable]) -> int | None:
        """Insert the rows of a range that has none yet; None if it has, or gets some meanwhile."""
        # Of a table that was never analyzed, or grows just now, the planner would rather read all than use the key.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(SQL(sql.OCCUPIED).format(**parts))
        (occupied,) = cursor.fetchone()
        cursor.execute("SET LOCAL enable_seqscan TO DEFAULT")
        if occupied:
            return None
        cursor.execute("SAVEPOINT empty")
        try:
            return self._select(cursor, SQL(sql.INSERT_PART).format(**parts))
        except psycopg2.errors.UniqueViolation:
            # Somebody else's row came in between, or the SELECT has two rows of a key: the upsert will tell.
            cursor.execute("ROLLBACK TO SAVEPOINT empty")
            return None

    def _upsert(self, cursor: Any, parts: dict[str, Composable], staging: Identifier) -> PartReport:
        """Stage the rows of a range, and write those that are new or different."""
        cursor.execute(sql.stage(self._target.fits, staging, exact=True))
        rows = self._select(cursor, SQL(sql.STAGE_PART).format(**parts))
        rounded = self._rounded(cursor, staging) if self._checked else {}
        cursor.execute(SQL(sql.COUNT_TWINS).format(**parts))
        if (twins := cursor.fetchone()[0]) > 0:
            raise MigrationError(
                f"its SQL ({self._aggregate.path.name}) returns {counted(twins, 'row')} more than there are keys; GROUP BY "
                f"{', '.join(self._aggregate.by)}"
            )
        try:
            texts = sql.statements(self._target, staging, within=parts["range_of_target"])
            changes = write_staged(cursor, self._target, texts)
        except Refused as error:
            raise MigrationError(str(error)) from None
        deleted = 0
        if self._delete_rows:
            cursor.execute(SQL(sql.DELETE_OTHERS).format(**parts))
            deleted = cursor.rowcount
        return PartReport(rows, changes.new, changes.changed, deleted, rounded)

    def _rounded(self, cursor: Any, staging: Identifier) -> dict[str, int]:
        """Count the values that columns would change. Raises `MigrationError` where the Row does not allow it."""
        cursor.execute(sql.round_trips(self._checked, staging))
        counts: Sequence[tuple[Fit, int]] = list(zip(self._checked, cursor.fetchone(), strict=True))
        for fit, count in counts:
            if count and not fit.fitted:
                raise MigrationError(f"in {counted(count, 'row')}, {fit.reason}; or round it in the SQL")
        return {f"{self._target.table.qualified}.{fit.column.name}": count for fit, count in counts if count}

    def _select(self, cursor: Any, statement: Composed) -> int:
        """Run a statement that holds the profile's SELECT. Raises `MigrationError` if that is at fault, with its line."""
        try:
            cursor.execute(statement)
        except psycopg2.Error as error:
            state = error.pgcode or ""
            if not state.startswith("42") or state == psycopg2.errorcodes.INSUFFICIENT_PRIVILEGE:
                raise
            own, text = self._aggregate.sql, statement.as_string(cursor)
            place = int(error.diag.statement_position or 0) - 1 - text.index(own)
            line = f", line {own.count(chr(10), 0, place) + 1}" if 0 <= place < len(own) else ""
            raise MigrationError(
                f"PostgreSQL refuses its SQL, {self._aggregate.path.name}{line}: {type(error).__name__} (SQLSTATE {state}); "
                "fix it, or the tables, then run it again",
                sqlstate=state,
            ) from None
        return int(cursor.rowcount)

    def _within(self, alias: str, bounds: Bounds) -> Composable:
        """The condition of a range."""
        # Its index finds the table's own; what the query gives is compared as the table compares its key.
        column: Composable = Identifier(alias, self._target.table.key[0])
        if alias == "q":
            column = self._bound(column)
        conditions = [
            SQL("{} {} {}").format(column, SQL(operator), self._bound(Literal(bound)))
            for operator, bound in zip((">=", "<"), bounds, strict=True)
            if bound is not None
        ]
        return SQL(" AND ").join(conditions) if conditions else SQL("true")

    def _bound(self, value: Composable) -> Composable:
        """A value as the table compares the first column of its key."""
        fit = next(fit for fit in self._target.fits if fit.column.name == self._target.table.key[0])
        return keyed(fit, SQL("{}::{}").format(value, SQL(fit.staged)))
