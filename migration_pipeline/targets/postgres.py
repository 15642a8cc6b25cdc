"""The PostgreSQL target: one connection; one transaction a batch, tried again after transient faults.

A transaction writes the rows of a batch, the items of it that cannot be loaded to the quarantine, and with
the last batch the file's receipt. What PostgreSQL refuses as data is halved within the transaction, behind
savepoints, until the bad items stand alone.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import psycopg2
import psycopg2.errorcodes
import psycopg2.errors
from psycopg2 import sql
from typing_extensions import Self

from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.transform import Bad
from migration_pipeline.profile.profile import NulPolicy
from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets.bookkeeping import (
    CLEAR,
    CLEAR_OTHERS,
    KEEP_BAD,
    KEEP_RECEIPT,
    OTHER_VERSIONS,
    QUARANTINED_LINES,
    RECEIPT_OF,
)
from migration_pipeline.targets.catalog import Target, try_statements
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings, transaction
from migration_pipeline.targets.copy_csv import EncodedRows, RowEncoder
from migration_pipeline.targets.ddl import read_targets
from migration_pipeline.targets.halving import Outcome, Refused, write_batch
from migration_pipeline.targets.landing import Slice
from migration_pipeline.targets.session import Session
from migration_pipeline.targets.sql import EXAMPLES, Statements, statements


class Encoded(msgspec.Struct, frozen=True):
    """A batch's rows as COPY input, by table."""

    parts: list[tuple[type[Row], bytes]]
    rows: dict[str, int]
    collisions: dict[str, int]
    rounded: dict[str, int]
    """Values that columns change, as the Row allows, by table and column."""
    nul: int

    @property
    def size(self) -> int:
        """Bytes of COPY input."""
        return sum(len(data) for _, data in self.parts)


Piece = dict[type[Row], EncodedRows]
"""Some rows of a batch, by table."""


class FileIdentity(msgspec.Struct, frozen=True):
    """What a receipt is filed under, and who loaded it."""

    profile: str
    profile_version: str
    export_id: str
    file: str
    run_id: str
    export_time: str | None = None
    """When the table was exported, in ISO 8601; None where nobody said."""


def encode(coders: Mapping[type[Row], RowEncoder], rows: Mapping[type[Row], list[Row]]) -> Piece:
    """Encode some rows, by table."""
    return {row_class: coders[row_class].encode(some) for row_class, some in rows.items() if some}


def join(coders: Mapping[type[Row], RowEncoder], pieces: Sequence[Piece]) -> Encoded:
    """Make a batch's COPY input of its pieces, each table's sorted by key."""
    parts, counts, collisions, rounded, nul = [], {}, {}, Counter[str](), 0
    for row_class, coder in coders.items():
        some = [piece[row_class] for piece in pieces if row_class in piece]
        if some:
            joined = coder.join(some)
            parts.append((row_class, joined.data))
            name = coder.table.qualified
            counts[name] = joined.rows
            if left_out := sum(each.rows for each in some) - joined.rows:
                collisions[name] = left_out
            nul += sum(each.nul for each in some)
            for each in some:
                rounded.update(each.rounded)
    return Encoded(parts, counts, collisions, rounded, nul)


def quarantined_lines(cursor: Any, file: FileIdentity) -> list[tuple[int, bytes]]:
    """Give a file's quarantined items: line number and line."""
    cursor.execute(QUARANTINED_LINES, msgspec.to_builtins(file))
    return [(line, bytes(raw)) for line, raw in cursor.fetchall()]


HASTE = DatabaseSettings(lock_timeout_seconds=1, statement_timeout_seconds=2)
"""For what may be left undone."""


class PostgresTarget:
    """Writes the rows of one file to PostgreSQL. Use as a context manager: it holds one connection.

    `url` is anything libpq takes (a URL or ``host=… dbname=…``); the usual PG* variables and ~/.pgpass
    fill in what it leaves out. Transient faults are retried; each is told to `on_retry`. Raises
    `DatabaseError` when the database cannot be reached or refuses for good, and `SchemaError` when the
    tables are not the profile's.
    """

    def __init__(
        self,
        url: str,
        tables: Mapping[type[Row], Table],
        file: FileIdentity,
        settings: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
        nul: NulPolicy = "quarantine",
        on_retry: Callable[[str], None] = lambda _: None,
        *,
        session: Session | None = None,
    ) -> None:
        self._url = url
        self._file = file
        self._tables = dict(tables)
        self._nul = nul
        self._coders: dict[type[Row], RowEncoder] = {}
        landing = [table for table in self._tables.values() if table.landing]
        self._slice = Slice(landing, msgspec.to_builtins(file), settings) if landing else None
        self._own = session is None
        self._session = session or Session(url, settings, on_retry)
        self._writer: TableWriter
        self._began = False
        self._quarantined: set[int] = set()

    def __enter__(self) -> Self:
        if self._own:
            self._session.open()
        try:
            # A trigger of the table may take its time, even for no row, and whoever waits may be told to end.
            self._session.interruptibly(self._check)
        except BaseException:
            if self._own:
                self._session.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._own:
            self._session.close(failed=error is not None)
            if self._slice is not None and self._slice.unlanded:
                # A load that is killed cannot say so: its slice is given up after a while.
                with contextlib.suppress(DatabaseError), transaction(self._url, HASTE) as cursor:
                    self._slice.give_up(cursor)

    @property
    def retries(self) -> int:
        """Transactions that ran again so far."""
        return self._session.retries

    def cancel(self) -> None:
        """Make a `write` in another thread fail soon."""
        self._session.cancel()

    def _check(self, cursor: Any) -> None:
        """Compare tables and bookkeeping with the catalog, before any work."""
        targets = read_targets(cursor, self._tables)
        cursor.execute(OTHER_VERSIONS, msgspec.to_builtins(self._file))
        receipts, other_versions = cursor.fetchone()
        self._coders = {
            row_class: RowEncoder(target.table, self._nul, target.fits)
            for row_class, target in targets.items()
        }
        file = (self._file.profile, self._file.export_id, self._file.file)
        self._writer = TableWriter(
            targets,
            {
                row_class: statements(
                    target,
                    sql.Identifier("pg_temp", f"migration_{self._session.token}_{number}"),
                    file,
                    # After a change of the profile rows change without any collision.
                    0 if other_versions else EXAMPLES,
                )
                for number, (row_class, target) in enumerate(targets.items())
            },
            self._slice or Slice([], {}, self._session.settings),
            # A file with a receipt has its rows in the tables: no batch need find that out.
            rows_are_new=not receipts,
        )
        for row_class, target in targets.items():
            if not target.table.landing:
                try_statements(target, self._writer.sql_of[row_class].trial, cursor)

    def encode(self, rows: dict[type[Row], list[Row]]) -> Piece:
        """Encode some of a batch's rows for COPY."""
        return encode(self._coders, rows)

    def join(self, pieces: Sequence[Piece]) -> Encoded:
        """Make a batch's COPY input of its pieces, each table's sorted by key."""
        return join(self._coders, pieces)

    def write(self, batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        """Write a batch in one transaction, as `engine.load.Target` has it. Raises `DatabaseError`.

        While a file's rows are new they are copied straight into the tables. The first row that is there
        already (a unique violation) undoes its batch; that batch and the rest of the file go by a staging
        table, which writes only the rows that are new or different.
        """

        def work(cursor: Any) -> Written:
            if self._slice is not None and not self._slice.batch(cursor):
                return self._write_again(cursor, batch, close)
            written = self._write(cursor, batch)
            if close is not None:
                report = close(written)
                self._keep_receipt(cursor, report, self._file)
                if self._slice is not None:
                    self._slice.land(cursor, report.rows)
                lines = self._quarantined.union(_lines(batch.bad), _lines(written.refused))
                cursor.execute(CLEAR_OTHERS, msgspec.to_builtins(self._file) | {"lines": list(lines)})
            return written

        if self._slice is not None and not self._began:
            self._session.persistently(self._slice.begin)
            self._began = True
        written = self._session.persistently(work)
        if self._slice is not None:
            self._slice.committed(last=close is not None)
        self._quarantined.update(_lines(batch.bad), _lines(written.refused))
        return written

    def _write_again(
        self, cursor: Any, batch: Batch, close: Callable[[Written], FileReport] | None
    ) -> Written:
        """Write a batch that is committed already, to learn what became of it, and take it back."""
        cursor.execute("SAVEPOINT again")
        written = self._write(cursor, batch)
        if close is not None:
            close(written)
        cursor.execute("ROLLBACK TO SAVEPOINT again")
        return written

    def quarantined(self) -> list[tuple[int, bytes]]:
        """Give the file's quarantined items: line number and line. Their number is bounded by the load's limit."""
        return self._session.persistently(lambda cursor: quarantined_lines(cursor, self._file))

    def replay(
        self, batch: Batch, numbers: Iterable[int], adjust: Callable[[FileReport, Written], FileReport]
    ) -> Written:
        """Write items that were in the file's quarantine, and leave there only those that are bad still.

        `numbers` are the line numbers of all of them; `adjust` makes the file's new receipt of the old one.
        Raises `DatabaseError` when there is none.
        """

        def work(cursor: Any) -> Written:
            cursor.execute(RECEIPT_OF, msgspec.to_builtins(self._file))
            found = cursor.fetchone()
            if found is None:
                raise DatabaseError(
                    f"{self._file.file}: it has no receipt, so it is not loaded; load it first"
                )
            receipt = dict(zip([column.name for column in cursor.description], found, strict=True))
            if self._slice is not None:
                self._slice.resume(cursor)
            written = self._write(cursor, batch)
            if self._slice is not None:
                self._slice.add(cursor, written.rows)
            bad = {*_lines(batch.bad), *_lines(written.refused)}
            gone = [number for number in numbers if number not in bad]
            cursor.execute(CLEAR, msgspec.to_builtins(self._file) | {"lines": gone})
            if cursor.rowcount != len(gone):
                raise DatabaseError(f"{self._file.file}: its quarantine changed meanwhile; replay it again")
            version = receipt.pop("profile_version")
            report = adjust(msgspec.convert(receipt, FileReport), written)
            # The other rows of the file are still those of the version that loaded it.
            self._keep_receipt(cursor, report, msgspec.structs.replace(self._file, profile_version=version))
            return written

        return self._session.persistently(work)

    def _write(self, cursor: Any, batch: Batch) -> Written:
        # Deferred constraints would refuse the whole transaction at its end instead of a row.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        written = Written()
        if self._slice is not None:
            for row_class, _ in batch.encoded.parts:
                if self._tables[row_class].landing:
                    self._slice.prepare(cursor, self._tables[row_class])
        write_batch(cursor, batch, self._writer, written, self._session.expect_answer, batch.room)
        for bad in [*batch.bad, *written.refused]:
            self._keep_bad(cursor, bad)
        return written

    def _keep_bad(self, cursor: Any, bad: Bad) -> None:
        values = {
            "line": bad.number,
            "raw": psycopg2.Binary(bad.line),
            "table": bad.table,
            "sqlstate": bad.sqlstate,
            "reason": bad.reason,
        }
        cursor.execute(KEEP_BAD, msgspec.to_builtins(self._file) | values)

    def _keep_receipt(self, cursor: Any, report: FileReport, file: FileIdentity) -> None:
        values: dict[str, Any] = msgspec.to_builtins(report) | msgspec.to_builtins(file)
        documents = {
            name: msgspec.json.encode(values[name]).decode()
            for name in ("skipped", "unrouted", "rows", "collisions", "changed_rows", "rounded")
        }
        cursor.execute(KEEP_RECEIPT, values | documents | {"changed": report.changed})


def _lines(bad: Iterable[Bad]) -> list[int]:
    return [one.number for one in bad]


class TableWriter:
    """Writes encoded rows into their tables: straight, or by a staging table."""

    def __init__(
        self,
        targets: Mapping[type[Row], Target],
        sql_of: Mapping[type[Row], Statements],
        slice_: Slice,
        *,
        rows_are_new: bool,
    ) -> None:
        self._targets = targets
        self.sql_of = sql_of
        self._slice = slice_
        self._rows_are_new = rows_are_new
        self.table: str | None = None
        self.columns = {fit.column.name for target in targets.values() for fit in target.fits}

    def name_of(self, table: str) -> str | None:
        """Partitions and slices have names of their own."""
        names = {target.table.name: target.table.qualified for target in self._targets.values()}
        return table if table in names.values() else names.get(table.rpartition(".")[2], self.table)

    def again(self, error: psycopg2.Error) -> bool:
        """After the first row that is there already, that batch and the rest of the file go by the staging table."""
        if self._rows_are_new and error.pgcode == psycopg2.errorcodes.UNIQUE_VIOLATION:
            self._rows_are_new = False
            return True
        return False

    def write(self, cursor: Any, encoded: Encoded) -> Outcome:
        """Write rows into their tables. Raises `psycopg2.Error`, and `Refused` for what a table would not hold as it is."""
        outcome = Outcome()
        for row_class, data in encoded.parts:
            target = self._targets[row_class]
            self.table = target.table.qualified
            rows = encoded.rows[self.table]
            if target.table.landing:
                self._took(self._slice.copy(cursor, target.table, data), rows)
            elif self._rows_are_new and target.straight:
                # The whole batch in one call: between two calls this thread would wait for Python's lock.
                cursor.copy_expert(self.sql_of[row_class].copy, io.BytesIO(data), len(data))
                self._took(cursor.rowcount, rows)
            else:
                self._upsert(cursor, target, self.sql_of[row_class], data, rows, outcome)
        return outcome

    def _took(self, taken: int, rows: int) -> None:
        if taken != rows:
            raise Refused("the table did not take the row, and did not say why")

    def _upsert(
        self, cursor: Any, target: Target, statements: Statements, data: bytes, rows: int, outcome: Outcome
    ) -> None:
        """Write the rows that are new or different, and leave the others alone."""
        name = target.table.qualified
        cursor.execute(statements.stage)
        stage_rows(cursor, target, statements, data, outcome)
        changes = write_staged(cursor, target, statements)
        outcome.changed[name] += changes.changed
        outcome.newer[name] += changes.newer
        outcome.unchanged[name] += (
            rows - outcome.collisions[name] - changes.new - changes.changed - changes.newer
        )


class Changes(NamedTuple):
    """What became of staged rows; the others are there unchanged."""

    new: int
    changed: int
    newer: int
    """Rows that gave way to one of a greater version."""


TRIES = 3
"""How often rows are written that are not as they should be afterwards."""


def write_staged(cursor: Any, target: Target, statements: Statements) -> Changes:
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
        # Somebody else wrote rows of these keys in between, or a trigger had its way with ours.
        new, changed, _ = classify(cursor, statements)
    else:
        if new or changed:
            raise Refused("a trigger of the table changed or dropped the row")
    return Changes(inserted, updated, newer)


def _change(cursor: Any, target: Target, statements: Statements, new: int, changed: int) -> tuple[int, int]:
    """Update and insert; gives the numbers of rows inserted and updated."""
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


def stage_rows(cursor: Any, target: Target, statements: Statements, data: bytes, outcome: Outcome) -> None:
    """Copy rows into the staging table, which is there, each key once. Raises `Refused` if a column would change a value."""
    cursor.execute(statements.empty)
    cursor.copy_expert(statements.copy_to_staging, io.BytesIO(data), len(data))
    twins = statements.fold is not None
    while twins:
        cursor.execute(statements.fold)
        (twins,) = cursor.fetchone()
    if statements.twins is not None:
        cursor.execute(statements.twins)
        outcome.collisions[target.table.qualified] += cursor.rowcount
    if statements.round_trips is not None:
        cursor.execute(statements.round_trips)
        for fit, count in zip(statements.round_trip_fits, cursor.fetchone(), strict=True):
            if count and not fit.fitted:
                raise Refused(fit.reason)
            outcome.rounded[f"{target.table.qualified}.{fit.column.name}"] += count
