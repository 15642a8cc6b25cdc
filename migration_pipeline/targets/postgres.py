"""The PostgreSQL target: one connection; one transaction a batch, tried again after transient faults.

A transaction writes the rows of a batch, the items of it that cannot be loaded to the quarantine, and with
the last batch the file's receipt. What PostgreSQL refuses as data is halved within the transaction, behind
savepoints, until the bad items stand alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import msgspec
import psycopg2
import psycopg2.errorcodes
import psycopg2.errors
from msgspec.structs import asdict
from psycopg2.sql import SQL, Identifier
from typing_extensions import Self

from migration_pipeline.engine.batch import Batch, Encoder, TooManyBad, Written
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.transform import Bad
from migration_pipeline.errors import MigrationError
from migration_pipeline.profile.profile import NulPolicy
from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.bookkeeping import parameters
from migration_pipeline.targets.catalog import try_statements
from migration_pipeline.targets.change_encoder import NO_CHANGES, ChangesEncoder
from migration_pipeline.targets.changes import ChangeWriter
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings, read_as, transaction
from migration_pipeline.targets.copy_csv import BatchEncoder
from migration_pipeline.targets.halving import Writer, write_batch
from migration_pipeline.targets.known_tables import KnownTables
from migration_pipeline.targets.landed_changes import LandedChanges, landed_changes
from migration_pipeline.targets.landing import Slice
from migration_pipeline.targets.ledger import (
    Ledger,
    Place,
    digest_of,
    expect_landed,
    expect_loaded,
    name_quarantined,
    without,
)
from migration_pipeline.targets.records import Receipt
from migration_pipeline.targets.session import Session
from migration_pipeline.targets.shape import FirstTrigger, Shape
from migration_pipeline.targets.sql import EXAMPLES, Composing, statements
from migration_pipeline.targets.touched import Touched
from migration_pipeline.targets.upsert import TableWriter


class FileIdentity(msgspec.Struct, frozen=True):
    """What a receipt is filed under, and who loaded it."""

    profile: str
    profile_version: str
    export_id: str
    file: str
    run_id: str
    export_time: str | None = None
    """When the table was exported, in ISO 8601; None if unknown."""
    doubt: str = ""
    """Why nothing vouches for the completeness of the export; "" where its manifest does."""


def quarantined_lines(cursor: Any, file: FileIdentity) -> list[tuple[int, bytes]]:
    """Return a file's quarantined items: line number and line."""
    cursor.execute(bookkeeping.QUARANTINED_LINES, asdict(file))
    return [(line, bytes(raw)) for line, raw in cursor.fetchall()]


HASTE = DatabaseSettings(lock_timeout_seconds=1, statement_timeout_seconds=2)
"""For what may be left undone."""


class PostgresTarget:
    """Writes the rows of one file to PostgreSQL. Use as a context manager: it holds one connection.

    `url` is anything libpq takes (a URL or ``host=… dbname=…``); the usual PG* variables and ~/.pgpass
    fill in what it leaves out. Transient faults are retried; each is reported to `on_retry`. Raises
    `DatabaseError` when the database cannot be reached or refuses for good, and `SchemaError` when the
    tables are not the profile's. `known` is what files of the same run before it knew of the tables. A `session` that is open
    stays so, unless the load fails.
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
        known: KnownTables | None = None,
        place: Place = Place(),  # noqa: B008  # frozen
    ) -> None:
        self._url = url
        self._place = place
        self._file = file
        self._tables = dict(tables)
        self._nul = nul
        self._known = known or KnownTables(tables)
        self.encoder: Encoder = BatchEncoder({}, nul)
        """Of the tables, once they were read."""
        landing = [table for table in self._tables.values() if table.landing and not place.window]
        self._slice = Slice(landing, asdict(file), settings)
        self._own = session is None
        self._session = session or Session(url, settings, on_retry, chain=True)
        self._retried_before = self._session.retries
        self._shape: Shape
        self._writer: TableWriter | ChangeWriter
        self._ledger = Ledger(file.profile, place, self._session.token) if place.window else None
        """Of a window."""
        self._landed: dict[type[Row], LandedChanges] = {}
        self._touched: Touched | None = None
        """Of a full export."""
        self._again = False
        """Whether its items may be some that windows have touched: the file was loaded before, or another load of it has ended.

        Until all files of the full export have a receipt, no window is let through.
        """
        self._moved = False
        """Whether windows had touched any of the profile's items when the tables were compared with the catalog."""
        self._quarantined: set[int] = set()

    def __enter__(self) -> Self:
        if self._own:
            self._session.open()
        try:
            # A trigger of the table may take its time, even for no row, and whoever waits may be told to end.
            self._session.interruptibly(self._check)
            if self._ledger:
                self._index_landed()
        except BaseException as error:
            self._session.close()
            if isinstance(error, MigrationError):
                error.file = self._file.file
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._own or error is not None:
            self._session.close(failed=error is not None)
            if self._slice.unlanded:
                # A load that is killed cannot say so: its slice is given up after a while.
                with contextlib.suppress(DatabaseError), transaction(self._url, HASTE) as cursor:
                    self._slice.give_up(cursor)

    @property
    def retries(self) -> int:
        """Transactions that ran again so far."""
        return self._session.retries - self._retried_before

    def newer(self) -> Callable[[bytes], bytes | None] | None:
        """Of a full export: what gives the digest of a line's item if a window has touched it, for a transform that leaves such lines out.

        None where that is left to `write`. Raises `DatabaseError`.
        """
        return self._session.interruptibly(self._touched.read) if self._touched and self._moved else None

    def stay_alive(self) -> None:
        """Keep what is landed so far from being taken for that of a dead load. Raises `DatabaseError`."""
        if self._slice.unlanded:
            self._session.persistently(self._slice.stay_alive)

    def cancel(self) -> None:
        """Make a `write` in another thread fail soon."""
        self._session.cancel()

    def _check(self, cursor: Any) -> None:
        """Compare tables and bookkeeping with the catalog, before any work."""
        self._shape = self._known.read(cursor)
        targets = self._known.targets
        expect_loaded(cursor, self._file.profile, self._place)
        cursor.execute(bookkeeping.OTHER_VERSIONS, asdict(self._file))
        receipts, other_versions, touched = cursor.fetchone()
        file = (self._file.profile, self._file.export_id, self._file.file)
        tokens = {row_class: f"migration_{self._session.token}_{n}" for n, row_class in enumerate(targets)}
        # After a change of the profile rows change without any collision, and by a window as well.
        examples = 0 if other_versions or self._ledger else EXAMPLES
        sql_of = Composing(
            lambda each: statements(targets[each], Identifier("pg_temp", tokens[each]), file, examples)
        )
        self._landed = landed_changes(targets, self._file.profile, self._session.token)
        if self._ledger:
            name_quarantined(cursor, self._file.profile, self._place)
            if self._landed:
                expect_landed(cursor, self._file.profile, self._place, self._place.windows)
            changed = bool(other_versions)
            self.encoder = ChangesEncoder(targets, self._nul, self._file.file, self._place, changed=changed)
            self._writer = ChangeWriter(targets, sql_of, self._ledger, self._session.token, self._landed)
        else:
            self.encoder = BatchEncoder(targets, self._nul)
            self._touched = Touched(self._file.profile, self._place, self._session.token)
            self._again, self._moved = bool(receipts or touched), touched
            # A file with a receipt has its rows in the tables: no batch need find that out.
            known = self._known.batches
            known.read(cursor, asdict(self._file))
            self._writer = TableWriter(
                targets, sql_of, self._slice, rows_are_new=not self._again, touched=self._touched, known=known
            )
        for row_class, target in targets.items():
            if not target.table.landing and self._ledger:
                try_statements(target, [SQL("DELETE FROM {} WHERE false").format(target.identifier)], cursor)
            if not target.table.landing and target not in self._known.tried:
                try_statements(target, self._writer.sql_of[row_class].trial, cursor)
                self._known.tried.add(target)

    def write(self, batch: Batch, close: Callable[[Written], FileReport] | None = None) -> Written:
        """Write a batch in one transaction, as `engine.load.Target` has it. Raises `DatabaseError`.

        While a file's rows are new they are copied straight into the tables. The first row that is there
        already (a unique violation) undoes its batch; that batch and the rest of the file go by a staging
        table, which writes only the rows that are new or different.
        """

        def work(cursor: Any) -> Written:
            if not self._slice.batch(cursor):
                return self._write_again(cursor, batch, close)
            if self._touched and not self._again:
                self._again = self._touched.matter(cursor, asdict(self._file), last=close is not None)
            written = self._write(cursor, batch)
            if close is not None:
                self._end_window(cursor, written)
                report = close(written)
                self._keep_receipt(cursor, report)
                self._land(cursor, report)
                lines = self._quarantined | _bad_lines(batch, written)
                cursor.execute(bookkeeping.CLEAR_OTHERS, asdict(self._file) | {"lines": list(lines)})
            self._shape.check(cursor)
            return written

        if self._slice.to_begin:
            self._session.persistently(self._slice.begin)
        written = self._persistently(work)
        self._slice.committed(last=close is not None)
        self._quarantined |= _bad_lines(batch, written)
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
        """Return the file's quarantined items: line number and line. Their number is bounded by the load's limit."""
        return self._session.persistently(lambda cursor: quarantined_lines(cursor, self._file))

    def replay(self, batch: Batch, numbers: Iterable[int]) -> Written:
        """Write items that were in the file's quarantine, and leave there only those that are bad still.

        `numbers` are the line numbers of all of them. The file's receipt counts them again. Raises `DatabaseError`
        when there is none.
        """

        def work(cursor: Any) -> Written:
            receipts = read_as(Receipt, cursor, bookkeeping.RECEIPT_OF, asdict(self._file))
            if not receipts:
                raise DatabaseError(
                    f"{self._file.file}: it has no receipt, so it is not loaded; load it first",
                    file=self._file.file,
                )
            self._slice.resume(cursor)
            written = self._write(cursor, batch)
            self._slice.add(cursor, written.rows)
            bad = _bad_lines(batch, written)
            gone = [number for number in numbers if number not in bad]
            cursor.execute(bookkeeping.CLEAR, asdict(self._file) | {"lines": gone})
            if cursor.rowcount != len(gone):
                raise DatabaseError(
                    f"{self._file.file}: its quarantine changed during the replay; replay it again",
                    file=self._file.file,
                )
            receipt = _replayed(receipts[0], batch, written)
            # The other rows of the file are still those of the version that loaded it.
            self._keep_receipt(cursor, receipt, profile_version=receipt.profile_version)
            self._shape.check(cursor)
            return written

        return self._persistently(work)

    def _persistently(self, work: Callable[[Any], Written]) -> Written:
        """Write in a transaction, in one more if a table has got its first trigger. Raises `DatabaseError` and `SchemaError`."""
        while True:
            try:
                return self._session.persistently(work)
            except FirstTrigger as found:
                self._writer.expect_triggers(found.tables)
                self._shape = self._shape.with_triggers(found.tables)

    def _write(self, cursor: Any, batch: Batch) -> Written:
        # Deferred constraints would refuse the whole transaction at its end instead of a row.
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        batch, written = self._current(cursor, batch)
        for row_class, _ in batch.encoded.parts:
            if self._tables[row_class].landing and not self._ledger:
                self._slice.prepare(cursor, self._tables[row_class])
        try:
            write_batch(cursor, batch, self._writer, written, self._session.expect_answer, batch.room)
        except TooManyBad:
            self._shape.check(cursor)  # if that has changed, it is no fault of theirs
            raise
        except psycopg2.Error:
            with contextlib.suppress(psycopg2.Error):  # the connection may be gone
                cursor.execute("ROLLBACK TO SAVEPOINT batch")
                self._shape.check(cursor)
            raise
        if self._ledger:
            self._ledger.disown(cursor, _lines(written.refused))
            cursor.execute(self._ledger.end_quarantine(self._file.export_id, self._file.file))
        for bad in [*batch.bad, *written.refused]:
            self._keep_bad(cursor, bad, self._item_of(batch, bad))
        return written

    def _current(self, cursor: Any, batch: Batch) -> tuple[Batch, Written]:
        """Leave those items out of which a newer state is there."""
        if self._ledger:
            return self._ledger.admit(cursor, batch)
        if self._touched and self._again:
            if self._landed:
                self._touched.leave_out_before(cursor, batch, self._slice.id)
            if numbers := self._touched.numbers(cursor, batch):
                if self._landed:
                    self._touched.leave_out(cursor, self._slice.id)
                return without(batch, numbers)
        return batch, Written()

    def _land(self, cursor: Any, report: FileReport) -> None:
        if self._ledger and self._landed:
            self._slice.note(cursor, report.rows, (self._tables[each] for each in self._landed))
            return
        slice_id, replaced = self._slice.land(cursor, report.rows)
        if self._again and slice_id:
            for each in self._landed.values():
                each.replace(cursor, slice_id, replaced)

    def _index_landed(self) -> None:
        """Make indexes that find landed rows, each in a transaction of its own."""
        for each in self._landed.values():
            for part in self._session.interruptibly(each.slices_to_index):
                self._session.interruptibly(partial(each.index, part=part))

    def _end_window(self, cursor: Any, written: Written) -> None:
        """With a window's last file, take away the rows of items that were deleted without a record."""
        if self._ledger and self._ledger.enter_gone(cursor):
            writer: Writer = self._writer
            written.add(writer.write(cursor, NO_CHANGES))
            cursor.execute(self._ledger.end_quarantine("", ""))

    def _item_of(self, batch: Batch, bad: Bad) -> str | None:
        if self._ledger:
            return next((item for number, item, _ in batch.encoded.records if number == bad.number), None)
        return digest_of(self._place.digest, bad.line)

    def _keep_bad(self, cursor: Any, bad: Bad, item: str | None) -> None:
        raw = psycopg2.Binary(bad.line)
        cursor.execute(
            bookkeeping.KEEP_BAD,
            parameters(self._file, bad, line=bad.number, raw=raw, table_name=bad.table, item=item),
        )

    def _keep_receipt(self, cursor: Any, account: FileReport | Receipt, **more: Any) -> None:
        values = parameters(account, self._file, changed=account.changed, **more)
        cursor.execute(bookkeeping.KEEP_RECEIPT, values)


def _replayed(receipt: Receipt, batch: Batch, written: Written) -> Receipt:
    """Count items that were in the quarantine again."""
    loaded = batch.counts.loaded - written.superseded - len(written.refused)
    superseded, skipped = written.superseded + len(written.forgiven), batch.counts.skipped
    return msgspec.structs.replace(
        receipt,
        loaded=receipt.loaded + loaded,
        superseded=receipt.superseded + superseded,
        quarantined=receipt.quarantined - loaded - superseded - sum(skipped.values()),
        skipped=_sum(receipt.skipped, skipped),
        unrouted=_sum(receipt.unrouted, batch.counts.unrouted),
        rows=_sum(receipt.rows, written.rows),
        deleted_rows=_sum(receipt.deleted_rows, written.deleted),
        collisions=_sum(receipt.collisions, written.collisions),
        changed=receipt.changed + sum(written.changed.values()),
        changed_rows=_sum(receipt.changed_rows, written.changed),
        unchanged_rows=_sum(receipt.unchanged_rows, written.unchanged),
        rounded=_sum(receipt.rounded, written.rounded),
        nul=receipt.nul + written.nul,
    )


def _sum(one: dict[str, int], other: dict[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


def _bad_lines(batch: Batch, written: Written) -> set[int]:
    return {*_lines(batch.bad), *_lines(written.refused)}.difference(_lines(written.forgiven))


def _lines(bad: Iterable[Bad]) -> list[int]:
    return [one.number for one in bad]
