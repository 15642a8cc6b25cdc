"""Writes the changes of a window into the tables: rows that have to go, and rows that are new or different.

A row goes if its item gave it up, and no other item took it in the same window: the keys that items of a window give up or take are
noted (``migration.claim``), each by the first who does, and whoever comes next waits for that one. So it does not matter which of two
items, in two files that are loaded at once, comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import psycopg2.errorcodes
import psycopg2.errors
from psycopg2.sql import SQL, Composed, Identifier, Literal

from migration_pipeline.engine.batch import Written
from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets import ledger_sql
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.change_encoder import EncodedChanges
from migration_pipeline.targets.connection import DatabaseError, copy_in
from migration_pipeline.targets.expressions import name_list, names_of, same_key
from migration_pipeline.targets.faults import Fault, fault_of
from migration_pipeline.targets.halving import Refused, Writer
from migration_pipeline.targets.landed_changes import LandedChanges
from migration_pipeline.targets.ledger import Ledger, staged_key_document
from migration_pipeline.targets.sql import Statements
from migration_pipeline.targets.upsert import upsert

Result = TypeVar("Result")

NO_LINE = -(1 << 62)
"""Less than the number of any record, of those that stand in no line as well, which count down from -1."""


class ChangeWriter(Writer):
    """Writes encoded changes into their tables; the records must be in the ledger by then."""

    def __init__(
        self,
        targets: Mapping[type[Row], TargetTable],
        sql_of: Mapping[type[Row], Statements],
        ledger: Ledger,
        token: str,
        landed: Mapping[type[Row], LandedChanges],
    ) -> None:
        super().__init__(targets, sql_of)
        self._ledger = ledger
        self._moves = {
            row_class: _Moves(target, ledger, Identifier("pg_temp", f"migration_{token}_moves_{number}"))
            for number, (row_class, target) in enumerate(targets.items())
            if not target.table.landing
        }
        self._landed = landed

    def expect_triggers(self, tables: Collection[Table]) -> None:
        """As `Writer` does."""
        super().expect_triggers(tables)
        for row_class, moves in self._moves.items():
            moves.target = self.targets[row_class]

    def write(self, cursor: Any, encoded: EncodedChanges) -> Written:
        """Write changes. Raises `psycopg2.Error`, and `Refused` for what a table would not hold as it is."""
        written, rows = encoded.account.copy(), dict(encoded.parts)
        numbers = [number for number, _, _ in encoded.records]
        first, last = min(numbers, default=NO_LINE), max(numbers, default=-1)
        for row_class, target in self.targets.items():
            self.table = target.table.qualified
            if row_class in self._landed:
                self._land(cursor, row_class, encoded, (first, last), written)
                continue
            moves = self._moves[row_class]
            if self._claim(cursor, moves, encoded, row_class, (first, last)):
                written.deleted[self.table] += moves.take_away(cursor)
            if row_class in rows:
                claims = self._ledger.claims if self._ledger.guarded else None
                upsert(cursor, target, self.sql_of[row_class], rows[row_class], written, claims)
        return written

    def _claim(
        self,
        cursor: Any,
        moves: _Moves,
        encoded: EncodedChanges,
        row_class: type[Row],
        lines: tuple[int, int],
    ) -> bool:
        gone, taken = encoded.moves.get(row_class, (b"", b""))
        writes = row_class in dict(encoded.parts)
        return _without_what_never_was(
            cursor,
            encoded,
            lambda: moves.claim(cursor, gone + taken, *lines, writes=writes),
            lambda: moves.claim(cursor, taken, *lines, writes=writes),
        )

    def _land(
        self,
        cursor: Any,
        row_class: type[Row],
        encoded: EncodedChanges,
        lines: tuple[int, int],
        written: Written,
    ) -> None:
        rows, before = dict(encoded.parts).get(row_class, b""), encoded.landed_before.get(row_class, b"")
        name = self.targets[row_class].table.qualified
        landed = self._landed[row_class]
        gone = _without_what_never_was(
            cursor,
            encoded,
            lambda: landed.take_away(cursor, self._ledger, before, *lines),
            lambda: landed.take_away(cursor, self._ledger, b"", *lines),
        )
        written.deleted[name] += gone
        if landed.put(cursor, rows) != written.rows[name]:
            raise Refused("the table did not store the row, and gave no reason")


def _without_what_never_was(
    cursor: Any, encoded: EncodedChanges, work: Callable[[], Result], otherwise: Callable[[], Result]
) -> Result:
    """Look for a state before, which the table may refuse, as it did when it was loaded: then there is nothing of it to take away.

    Of several records halving finds the one. `work` must not change tables of the profile that have triggers.
    """
    if len(encoded.records) != 1:
        return work()
    cursor.execute("SAVEPOINT before")
    try:
        return work()
    except psycopg2.Error as error:
        if fault_of(error) is not Fault.DATA:
            raise
        cursor.execute("ROLLBACK TO SAVEPOINT before")
        return otherwise()


class _Moves:
    """The keys of a table's rows that a batch's items give up or take: a temporary table."""

    def __init__(self, target: TargetTable, ledger: Ledger, name: Identifier) -> None:
        self.target = target
        self._ledger = ledger
        fits = target.key_fits
        self._parts = {
            "moves": name,
            "name": Identifier(name.strings[-1]),
            "table": Literal(target.table.qualified),
            "target": target.identifier,
            "columns": name_list(names_of(fits)),
            "definitions": SQL(", ").join(
                SQL("{} {}").format(Identifier(fit.column.name), SQL(fit.exact or fit.staged)) for fit in fits
            ),
            "values": SQL(", ").join(
                SQL("(had ->> {})::{}").format(Literal(place), SQL(fit.exact or fit.staged))
                for place, fit in enumerate(fits)
            ),
            "key": staged_key_document(target, "k"),
            "same_key": same_key(target, "t", "k"),
        }

    def _sql(self, text: str, **more: Any) -> Composed:
        return self._ledger.sql(text, **self._parts, **more)

    def claim(self, cursor: Any, data: bytes, first: int, last: int, *, writes: bool) -> bool:
        """Note the keys, and those that the ledger says items of these records owned; returns whether there are any.

        With `writes` rows are written, and the keys of these are noted that the ledger did not have.

        Raises `psycopg2.Error` for a key that the table cannot have.
        """
        if not (data or self._ledger.known):
            return False
        cursor.execute(self._sql(STAGE))
        cursor.execute(self._sql("DELETE FROM {moves}"))
        if data:
            copy_in(cursor, self._sql(COPY), data)
        if self._ledger.repeats:
            cursor.execute(self._sql(ledger_sql.NOT_GIVEN_UP))
        if self._ledger.known:
            lines = {"first": Literal(first), "last": Literal(last)}
            cursor.execute(self._sql(ledger_sql.OWNED_BEFORE, **lines))
            if writes:
                cursor.execute(self._sql(ledger_sql.OWNED_NOW, **lines))
        cursor.execute(self._sql(ledger_sql.CLAIM_KEYS))
        return True

    def take_away(self, cursor: Any) -> int:
        """Delete the rows that were given up, and that nobody took; returns how many."""
        try:
            cursor.execute(self._sql(TAKE_AWAY))
        except psycopg2.errors.IntegrityError as error:
            if error.pgcode != psycopg2.errorcodes.FOREIGN_KEY_VIOLATION:
                raise
            raise DatabaseError(
                f"{self.target.table.qualified}: rows that have to go are referred to (constraint "
                f"{error.diag.constraint_name}); drop that constraint until the last window is loaded, or declare it ON DELETE CASCADE",
                sqlstate=error.pgcode,
            ) from None
        gone = int(cursor.rowcount)
        if self.target.triggers:
            self._expect_gone(cursor)
        return gone

    def _expect_gone(self, cursor: Any) -> None:
        cursor.execute(self._sql(KEPT))
        if cursor.fetchone() == (True,):
            raise DatabaseError(
                f"{self.target.table.qualified}: a trigger kept a row that has to go; disable it until the last window is loaded, "
                "then load the file again"
            )


STAGE = """
CREATE TEMP TABLE IF NOT EXISTS {name} (migration_number bigint, migration_taken boolean, {definitions}) ON COMMIT DROP
"""

COPY = "COPY {moves} (migration_number, migration_taken, {columns}) FROM STDIN WITH ({options})"

GIVEN_UP = """
  {same_key} AND NOT k.migration_taken
   AND (SELECT c.taken AND c.taker IS DISTINCT FROM (SELECT r.item FROM {records} r WHERE r.number = k.migration_number)
          FROM migration.claim c
         WHERE (c.profile, c.window_id, c.table_name, c.key) = ({profile}, {window}, {table}, {key})) IS NOT TRUE
"""

TAKE_AWAY = f"DELETE FROM {{target}} t USING {{moves}} k WHERE {GIVEN_UP}"

KEPT = f"SELECT EXISTS (SELECT FROM {{target}} t JOIN {{moves}} k ON {GIVEN_UP})"
