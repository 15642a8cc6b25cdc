"""Writes encoded rows into their tables: straight, or by a staging table, those that are new or different."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import psycopg2
import psycopg2.errorcodes
import psycopg2.errors

from migration_pipeline.engine.batch import Written
from migration_pipeline.profile.row import Row
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.connection import copy_in
from migration_pipeline.targets.copy_binary import copy_input
from migration_pipeline.targets.copy_csv import Encoded
from migration_pipeline.targets.halving import Refused, Writer
from migration_pipeline.targets.known_batches import KnownBatches
from migration_pipeline.targets.landing import Slice
from migration_pipeline.targets.ledger import Claims
from migration_pipeline.targets.sql import Statements
from migration_pipeline.targets.touched import Touched


class TableWriter(Writer):
    """Writes encoded rows into their tables: straight, or by a staging table."""

    def __init__(
        self,
        targets: Mapping[type[Row], TargetTable],
        sql_of: Mapping[type[Row], Statements],
        slice_: Slice,
        *,
        rows_are_new: bool,
        touched: Touched | None = None,
        known: KnownBatches | None = None,
    ) -> None:
        super().__init__(targets, sql_of)
        self._known = known
        self._touched = touched
        self._slice = slice_
        self._rows_are_new = rows_are_new

    def again(self, error: psycopg2.Error) -> bool:
        """After the first row that is there already, that batch and the rest of the file go by the staging table."""
        if self._rows_are_new and error.pgcode == psycopg2.errorcodes.UNIQUE_VIOLATION:
            self._rows_are_new = False
            return True
        return False

    def write(self, cursor: Any, encoded: Encoded) -> Written:
        """Write rows into their tables. Raises `psycopg2.Error`, and `Refused` for what a table would not hold as it is."""
        written = encoded.account.copy()
        for row_class, data in encoded.parts:
            target = self.targets[row_class]
            self.table = target.table.qualified
            rows = written.rows[self.table]
            if target.table.landing:
                self._took(self._slice.copy(cursor, target.table, data), rows)
            elif self._rows_are_new and target.straight:
                if self._known:
                    self._known.before_copy(cursor, target)
                self._took(copy_in(cursor, *copy_input(target, data, rows)), rows)
                if self._known:
                    self._known.keep(cursor, target, data, rows)
            else:
                claims = self._touched.claims if self._touched and self._touched.guarded else None
                left = self._known.left(cursor, target, data, rows) if self._known and not claims else data
                if left:
                    upsert(cursor, target, self.sql_of[row_class], left, written, claims)
                else:
                    written.unchanged[self.table] += rows
        return written

    def _took(self, taken: int, rows: int) -> None:
        if taken != rows:
            raise Refused("the table did not store the row, and gave no reason")


def upsert(
    cursor: Any,
    target: TargetTable,
    statements: Statements,
    data: bytes,
    written: Written,
    claims: Claims | None = None,
) -> None:
    """Write the rows that are new or different, and leave the others alone, and those with keys that `claims` names taken."""
    name = target.table.qualified
    cursor.execute(statements.stage)
    stage_rows(cursor, target, statements, data, written)
    if claims:
        written.rows[name] -= claims.drop_taken(cursor, target, statements.staging)
    changes = write_staged(cursor, target, statements)
    written.changed[name] += changes.changed
    written.newer[name] += changes.newer
    written.unchanged[name] += written.rows[name] - sum(changes)


class Changes(NamedTuple):
    """Counts of what was done with staged rows; the others existed unchanged."""

    new: int
    changed: int
    newer: int
    """Rows that gave way to one of a greater version."""


TRIES = 3
"""Tries to write rows that another session or a trigger changes meanwhile."""


def write_staged(cursor: Any, target: TargetTable, statements: Statements) -> Changes:
    """Write the staged rows that are new or different. Raises `Refused` if the table does not hold them then."""
    new, changed, newer = classify(cursor, statements)
    inserted = updated = 0
    for _ in range(TRIES):
        if not (new or changed):
            break
        done = _change(cursor, target, statements, new, changed)
        inserted, updated = inserted + done[0], updated + done[1]
        if done == (new, changed) and not target.triggers:
            break
        # Another session wrote rows with these keys in between, or a trigger changed ours.
        new, changed, _ = classify(cursor, statements)
    else:
        if new or changed:
            raise Refused("a trigger of the table changed or dropped the row")
    return Changes(inserted, updated, newer)


def _change(
    cursor: Any, target: TargetTable, statements: Statements, new: int, changed: int
) -> tuple[int, int]:
    """Update and insert; returns the numbers of rows inserted and updated."""
    cursor.execute("SAVEPOINT change")
    inserted = updated = 0
    try:
        if changed and statements.update is not None:
            cursor.execute(statements.update)
            (updated,) = cursor.fetchone()
        if new:
            cursor.execute(statements.insert)
            inserted = cursor.rowcount
    except psycopg2.errors.UniqueViolation:
        if target.arbiter:
            raise
        # Without an arbiter, a row that came in between is met here. Then it is there now, and no longer new.
        cursor.execute("ROLLBACK TO SAVEPOINT change")
        if classify(cursor, statements)[:2] == (new, changed):
            raise
        inserted = updated = 0
    cursor.execute("RELEASE SAVEPOINT change")
    return inserted, updated


def classify(cursor: Any, statements: Statements) -> tuple[int, int, int]:
    """Count the staged rows that are new, different, and older than the table's."""
    cursor.execute(statements.classify)
    new, changed, newer = cursor.fetchone()
    return new, changed if statements.update is not None else 0, newer


def stage_rows(
    cursor: Any, target: TargetTable, statements: Statements, data: bytes, written: Written
) -> None:
    """Copy rows into the staging table, which is there, each key once. Raises `Refused` if a column would change a value."""
    cursor.execute(statements.empty)
    copy_in(cursor, statements.copy_to_staging, data)
    twins = statements.fold is not None
    while twins:
        cursor.execute(statements.fold)
        (twins,) = cursor.fetchone()
    if statements.twins is not None:
        cursor.execute(statements.twins)
        written.rows[target.table.qualified] -= cursor.rowcount
        written.collisions[target.table.qualified] += cursor.rowcount
    if statements.round_trips is not None:
        cursor.execute(statements.round_trips)
        for fit, count in zip(statements.round_trip_fits, cursor.fetchone(), strict=True):
            if count and not fit.fitted:
                raise Refused(fit.reason)
            written.rounded[f"{target.table.qualified}.{fit.column.name}"] += count
