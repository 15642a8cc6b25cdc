"""The slice that a file has of the landing tables: filled beside the tables, and put in place with the receipt.

A load makes a slice of its own: for each landing table a fresh table without a key, which nobody reads. In
the transaction of the file's receipt the fresh tables become children of the landing tables, and those of the
file's former slice are dropped. So the rows of a file are there once, or not at all, however often it is
loaded, by how many loads at once, and wherever one of them is killed. What a killed load leaves is dropped
by a later load of the profile: a live one says with each batch how long it will be alive at least.

Without a key nothing finds a row that is there already. Therefore the slice counts its batches: a batch
whose COMMIT was not answered is recognized when it comes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from psycopg2.sql import SQL, Identifier

from migration_pipeline.profile.row import Table
from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.catalog import identifier
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings, copy_in
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.session import STALLED_SECONDS

SILENCE_SECONDS = 300.0
"""How long a live load may read without a batch, as from an S3 that does not answer; the database's own patience comes on top."""


WINDOWS = 0
"""The number of a landing table's part that has the rows of windows; slices of files count from 1."""


class Slice:
    """One load's slice of a profile's landing tables. Its methods run in the caller's transactions."""

    def __init__(self, tables: Iterable[Table], file: Mapping[str, Any], patience: DatabaseSettings) -> None:
        self._tables = list(tables)
        self._file = dict(file)
        self._alive = (
            SILENCE_SECONDS
            + patience.retry_seconds
            + 2 * (patience.statement_timeout_seconds + STALLED_SECONDS)
        )
        self._id: int | None = None
        self._batches = 0
        """Batches of which it is known that they are committed."""
        self._made: set[str] = set()
        self._there: set[str] = set()
        """Tables made in the transaction that runs, and in those before."""
        self._rows: dict[str, int] = {}
        self.unlanded = False
        """Whether there is a slice that is not in its place yet."""

    @property
    def id(self) -> int:
        """The slice's number; 0 before it is begun."""
        return self._id or 0

    @property
    def to_begin(self) -> bool:
        """Whether `begin` comes next. Without tables there is nothing to do, then or later."""
        return bool(self._tables) and self._id is None

    def begin(self, cursor: Any) -> None:
        """Drop what killed loads of the profile left, and begin a slice."""
        cursor.execute(bookkeeping.LEFTOVERS, self._file)
        self._drop(cursor, cursor.fetchall())
        cursor.execute(bookkeeping.NEW_SLICE, self._file | {"alive": self._alive})
        (self._id,) = cursor.fetchone()
        self.unlanded = True

    def give_up(self, cursor: Any) -> None:
        """Mark this load as no longer alive."""
        cursor.execute(bookkeeping.GIVEN_UP, (self._id,))

    def stay_alive(self, cursor: Any) -> None:
        """Say that this load is alive, though it writes no batch."""
        cursor.execute(bookkeeping.STILL_ALIVE, (self._alive, self._id))

    def batch(self, cursor: Any) -> bool:
        """Count a batch, in its transaction; returns False if it is committed already and only the answer was lost."""
        if not self._tables:
            return True
        self._made.clear()  # of a transaction that was rolled back nothing is there
        cursor.execute(bookkeeping.NEXT_BATCH, (self._alive, self._id, self._batches))
        if cursor.rowcount:
            return True
        cursor.execute(bookkeeping.BATCHES, (self._id,))
        if cursor.fetchone() != (self._batches + 1,):
            raise DatabaseError(
                f"{self._file['file']}: its landed rows are gone: another load took this one for dead, or "
                "replaced it; load it again",
                file=self._file["file"],
            )
        return False

    def committed(self, last: bool) -> None:
        """Take note that a batch is committed; with the last one the slice is landed."""
        self._batches += 1
        self._there |= self._made
        self.unlanded = bool(self._tables) and not last

    def prepare(self, cursor: Any, table: Table) -> None:
        """Make the slice's own table, unless it is there."""
        if table.qualified not in self._there:
            cursor.execute(
                # Nothing of it ever changes: autovacuum would only get in the way of those that read it.
                SQL(
                    "CREATE TABLE IF NOT EXISTS {} (LIKE {} INCLUDING ALL EXCLUDING INDEXES) "
                    "WITH (autovacuum_enabled = off)"
                ).format(part_of(table.qualified, self._id), identifier(table))
            )
            self._made.add(table.qualified)

    def copy(self, cursor: Any, table: Table, data: bytes) -> int:
        """Copy rows into it; returns how many it took."""
        statement = SQL("COPY {} ({}) FROM STDIN WITH ({})").format(
            part_of(table.qualified, self._id),
            SQL(", ").join(Identifier(column.name) for column in table.columns),
            SQL(COPY_OPTIONS),
        )
        return copy_in(cursor, statement, data)

    def land(self, cursor: Any, rows: Mapping[str, int]) -> tuple[int, list[int]]:
        """Put the slice in the place of the file's former one; returns its id, and the ids of those it replaced.

        The file's receipt must be written before: it locks.
        """
        if not self._tables:
            return 0, []
        cursor.execute(bookkeeping.REPLACED, self._file | {"id": self._id})
        replaced = cursor.fetchall()
        self._drop(cursor, replaced)
        self._place(cursor, bookkeeping.LAND, {}, rows)
        return self._id or 0, [number for (number,) in replaced]

    def note(self, cursor: Any, rows: Mapping[str, int], tables: Iterable[Table]) -> None:
        """Take note that a window's file is landed: its rows lie among those of all windows, in no slice of their own."""
        counts = {table.qualified: rows.get(table.qualified, 0) for table in tables}
        cursor.execute(bookkeeping.NEW_SLICE, self._file | {"alive": self._alive})
        (number,) = cursor.fetchone()
        cursor.execute(bookkeeping.REPLACED, self._file | {"id": number})
        cursor.execute(bookkeeping.LAND, (msgspec.json.encode(counts).decode(), number))

    def resume(self, cursor: Any) -> None:
        """Take up the file's landed slice, to add rows to it. The file's receipt must be locked before."""
        if not self._tables:
            return
        cursor.execute(bookkeeping.LANDED_SLICE, self._file)
        found = cursor.fetchone()
        if found is None:
            file = self._file["file"]
            raise DatabaseError(f"{file}: its landed rows are missing; load it again", file=file)
        self._id, self._rows = found

    def add(self, cursor: Any, rows: Mapping[str, int]) -> None:
        """Take rows that were copied into a landed slice into its account."""
        if self._tables:
            self._place(cursor, bookkeeping.MORE, self._rows, rows)

    def _place(self, cursor: Any, statement: str, before: Mapping[str, int], more: Mapping[str, int]) -> None:
        """Put the first rows of each table into their place, and drop tables that were made for rows which were all refused."""
        counts = {}
        for table in self._tables:
            name, part = table.qualified, part_of(table.qualified, self._id)
            counts[name] = before.get(name, 0) + more.get(name, 0)
            if not counts[name]:
                cursor.execute(SQL("DROP TABLE IF EXISTS {}").format(part))
            elif not before.get(name):
                cursor.execute(SQL("ALTER TABLE {} INHERIT {}").format(part, identifier(table)))
        cursor.execute(statement, (msgspec.json.encode(counts).decode(), self._id))

    def _drop(self, cursor: Any, ids: Iterable[tuple[int]]) -> None:
        for (number,) in ids:
            for table in self._tables:
                cursor.execute(SQL("DROP TABLE IF EXISTS {}").format(part_of(table.qualified, number)))


def part_of(table: str, number: int | None) -> Identifier:
    """The quoted name of a landing table's slice; `table` is its qualified name."""
    schema, _, name = table.rpartition(".")
    return Identifier(*filter(None, (schema, f"{name}_{number}")))
