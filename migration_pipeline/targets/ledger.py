"""The ledger: which items windows have touched, when these were written last, and which rows they own.

What a window says of an item holds until a later write of it is known, whatever the order and however often files are loaded:

- a record that is older than the ledger's is superseded, and changes nothing;
- a record that is the ledger's own is applied again: its rows are written, and none is taken away but what it owned by other rules;
- a newer one takes away the rows of the state before and those that the ledger says the item owns, and writes its own.

A full export says nothing of items in the ledger. While a batch of one is written the ledger is locked against windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from psycopg2.sql import SQL, Composed, Identifier, Literal

from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.errors import MigrationError
from migration_pipeline.targets import ledger_sql
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.connection import DatabaseError, copy_in
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.expressions import as_key
from migration_pipeline.targets.fits import Fit
from migration_pipeline.units import some_that

TRIES = 5
"""Tries to lock items that another load of the same file touches meanwhile."""


class Place(msgspec.Struct, frozen=True):
    """The place of a file in the plan's chain of a full export and windows."""

    window: str = ""
    """Id of the window's export; "" for a file of a full export."""
    before: tuple[tuple[str, str, str], ...] = ()
    """The files that must be loaded before: export, name and MD5."""
    digest: Callable[[bytes], bytes] | None = None
    """Gives the digest of the item on a line of a full export; None where the plan has no windows."""
    beside: tuple[tuple[str, str, str], ...] = ()
    """The window's other files."""
    windows: tuple[str, ...] = ()
    """Earlier windows."""
    overlapped: tuple[str, ...] = ()
    """Earlier windows that end after this one begins."""
    later: tuple[str, ...] = ()
    """Later windows; of a full export, all."""
    later_files: int = 0
    """How many files these have."""
    broken: bool = False
    """Whether windows overlap, or there is a hole between them: then a state before is not always the one that was loaded."""
    start: int = 0
    """When the window begins, in microseconds of the epoch."""
    end: int = 0
    base_time: int = 0
    """When the full export was taken, in the same unit; 0 if unknown."""

    @property
    def window_id(self) -> int:
        """A number for the window."""
        return window_number(self.window)


def window_number(export_id: str) -> int:
    """A number for a window, by its export's id."""
    return int.from_bytes(hashlib.blake2b(export_id.encode(), digest_size=7).digest(), "big")


class Ledger:
    """The ledger of one profile, as one window's file sees it. Its methods run in the caller's transactions."""

    def __init__(self, profile: str, place: Place, token: str) -> None:
        self._place = place
        self._profile = profile
        self.records = Identifier("pg_temp", f"migration_{token}_records")
        """The records of a batch that are not superseded, and what the ledger said of their items before: a temporary table."""
        self.claims = Claims(profile, place)
        self.guarded = False
        """Whether rows must be held against what later windows have taken."""
        self.repeats = 0
        """How many of them are the ledger's own."""
        self.known = 0
        """How many of their items were in the ledger before, with another record."""
        self._parts = {
            "records": self.records,
            "bare": Identifier(self.records.strings[-1]),
            "profile": Literal(profile),
            "window": Literal(place.window_id),
            "later": Literal([window_number(each) for each in place.later]),
            "options": SQL(COPY_OPTIONS),
        }

    def sql(self, text: str, **more: Any) -> Composed:
        """Compose a statement about the records."""
        return SQL(text).format(**self._parts, **more)

    def admit(self, cursor: Any, batch: Batch) -> tuple[Batch, Written]:
        """Enter the records of a batch, and lock their items; returns what is left of the batch, and counts what is not.

        Raises `MigrationError` if an item stands twice in the window.
        """
        cursor.execute(self.sql(ledger_sql.STAGE_RECORDS))
        cursor.execute(self.sql("DELETE FROM {records}"))
        _refuse_twins(batch)
        copy_in(cursor, self.sql(ledger_sql.COPY_RECORDS), batch.encoded.data)
        for _ in range(TRIES):
            cursor.execute(self.sql(ledger_sql.LOCK_ITEMS))
            cursor.execute(self.sql(ledger_sql.ENTER_ITEMS))
            cursor.execute(self.sql(ledger_sql.ITEMS_LEFT))
            if cursor.fetchone() == (0,):
                break
        else:
            raise DatabaseError("another load of the same window does not end; load the file again")
        cursor.execute(self.sql(ledger_sql.RANK_RECORDS))
        twins, older, self.repeats, self.known = cursor.fetchone()
        if twins:
            cursor.execute(self.sql(ledger_sql.TWIN))
            raise _twice(cursor.fetchone()[0])
        if older:
            batch, written = self._without_older(cursor, batch)
        else:
            written = Written()
        cursor.execute(self.sql(ledger_sql.RENEW_ITEMS))
        self.guarded = self.repeats > 0 and self.claims.matter(cursor)
        return batch, written

    def _without_older(self, cursor: Any, batch: Batch) -> tuple[Batch, Written]:
        cursor.execute(self.sql(ledger_sql.DROP_OLDER))
        return without(batch, {number for (number,) in cursor.fetchall()})

    def end_quarantine(self, export_id: str, file: str) -> Composed:
        """The statement that ends the quarantine of earlier states of the records' items."""
        return self.sql(ledger_sql.END_QUARANTINE, export=Literal(export_id), file=Literal(file))

    def enter_gone(self, cursor: Any) -> bool:
        """With a window's last file, enter items that were deleted without a record; returns whether there are any.

        An item that an earlier window has with a write in this one's time, and that this one has no record of, was not there when
        it began, and is not there when it ends.
        """
        if not self._place.overlapped:
            return False
        # The files of a window end one after another, so that one of them is the last.
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (self._place.window_id,))
        if missing_of(cursor, self._profile, self._place.beside):
            return False
        cursor.execute(self.sql(ledger_sql.STAGE_RECORDS))
        cursor.execute(self.sql("DELETE FROM {records}"))
        earlier = Literal([window_number(each) for each in self._place.overlapped])
        place = {"start": Literal(self._place.start), "end": Literal(self._place.end), "earlier": earlier}
        cursor.execute(self.sql(ledger_sql.ENTER_GONE, **place))
        self.known, self.repeats = cursor.rowcount, 0
        cursor.execute(self.sql(ledger_sql.RENEW_ITEMS))
        return self.known > 0

    def disown(self, cursor: Any, numbers: Collection[int]) -> None:
        """Take note that some records' items have no rows, because the database refused them."""
        if numbers:
            cursor.execute(self.sql(ledger_sql.DISOWN, numbers=Literal(list(numbers))))


def without(batch: Batch, numbers: Collection[int]) -> tuple[Batch, Written]:
    """Leave some items out of a batch, which are superseded, and count them."""
    written = Written()
    for bad in batch.bad:
        if bad.number in numbers:
            written.forgive(bad)
    pairs = [
        (line, n) for line, n in zip(batch.lines, batch.numbers, strict=True) if n not in numbers
    ]  # fmt: skip
    kept = batch.anew([line for line, _ in pairs], [number for _, number in pairs])
    kept.room = batch.room
    kept.bad = [bad for bad in batch.bad if bad.number not in numbers]
    written.superseded = batch.counts.loaded - kept.counts.loaded
    return kept, written


def _refuse_twins(batch: Batch) -> None:
    """See that each item stands once in a batch. Raises `MigrationError`."""
    items: dict[str, int] = {}
    for number, item, _ in batch.encoded.records:
        if items.setdefault(item, number) != number:
            raise _twice(number)


def _twice(line: int) -> MigrationError:
    return MigrationError(
        f"the item in line {line:,} stands twice in its window, so the window is damaged; export it again",
        line=line,
    )


class TooEarlyError(DatabaseError):
    """A window's file was to be loaded before files that must be loaded first."""

    missing: tuple[str, ...] = ()
    """Names of the files that are not loaded."""


FILES_SHOWN = 5


class Claims:
    """Keeps what a later window has taken, while that window is loaded in part, from being overwritten by an older state.

    Once a window is loaded whole, the ledger says of all items that gave up a row's key that they are its.
    """

    def __init__(self, profile: str, place: Place) -> None:
        self._profile = profile
        self._place = place
        self._windows = Literal([window_number(each) for each in place.later])

    def matter(self, cursor: Any) -> bool:
        """Whether a later window is not loaded whole."""
        if not self._place.later:
            return False
        cursor.execute(ledger_sql.LOADED_OF, (self._profile, list(self._place.later)))
        return bool(cursor.fetchone()[0] < self._place.later_files)

    def drop_taken(self, cursor: Any, target: TargetTable, staging: Identifier) -> int:
        """Delete the staged rows whose keys later windows have taken; returns how many."""
        cursor.execute(
            SQL(ledger_sql.DROP_TAKEN).format(
                staging=staging,
                profile=Literal(self._profile),
                windows=self._windows,
                table=Literal(target.table.qualified),
                key=staged_key_document(target, "s"),
            )
        )
        return int(cursor.rowcount)


def staged_key_document(target: TargetTable, alias: str) -> Composed:
    """A staged key as JSON, its values as the columns take them: the same for keys that the table calls equal."""
    return SQL("jsonb_build_object({})").format(
        SQL(", ").join(
            SQL("{}, {}").format(Literal(fit.column.name), _one_spelling(fit, alias))
            for fit in target.key_fits
        )
    )


def _one_spelling(fit: Fit, alias: str) -> Composed:
    key = as_key(fit, alias)
    many = fit.actual.collation or fit.actual.element.rpartition(".")[2] in ("citext", "interval")
    return SQL("hash_record_extended(ROW({}), 0)").format(key) if many else key


def missing_of(cursor: Any, profile: str, files: Sequence[tuple[str, str, str]]) -> list[str]:
    """Name those of some files (export, name, MD5) that have no receipt."""
    if not files:
        return []
    exports, names, md5s = (list(each) for each in zip(*files, strict=True))
    of = {"profile": profile, "exports": exports, "files": names, "md5s": md5s}
    cursor.execute(ledger_sql.NOT_LOADED, of)
    return [name for (name,) in cursor.fetchall()]


def expect_loaded(cursor: Any, profile: str, place: Place) -> None:
    """See that the files before one of a window are loaded. Raises `TooEarlyError`."""
    if missing := missing_of(cursor, profile, place.before):
        more = f" and {len(missing) - FILES_SHOWN:,} more" if len(missing) > FILES_SHOWN else ""
        error = TooEarlyError(
            f"the window waits for {some_that(len(missing), len(place.before), 'file', 'before it, which is', 'before it, which are')} not loaded: "
            f"{', '.join(missing[:FILES_SHOWN])}{more}; load them, then this one: nothing of it was loaded"
        )
        error.missing = tuple(missing)
        raise error


def expect_landed(cursor: Any, profile: str, place: Place, windows: Collection[str]) -> None:
    """See that the landed rows of full exports are there, before a window changes them. Raises `DatabaseError`."""
    files = [(export, file) for export, file, _ in place.before if export not in windows]
    if not files:
        return
    exports, names = (list(each) for each in zip(*files, strict=True))
    cursor.execute(ledger_sql.NOT_LANDED, {"profile": profile, "exports": exports, "files": names})
    if missing := cursor.fetchall():
        raise DatabaseError(
            f"{some_that(len(missing), len(files), 'file', 'has', 'have')} no landed rows any more ({missing[0][0]}), which finishing drops where it "
            "is told to; load these files again, then the window: nothing of it was loaded"
        )


def name_quarantined(cursor: Any, profile: str, place: Place) -> None:
    """Find out which items lines of full exports in the quarantine are, for those that were put there before there were windows."""
    exports = sorted({export for export, _, _ in place.before})
    cursor.execute(ledger_sql.QUARANTINED_ITEMS_UNKNOWN, {"profile": profile, "exports": exports})
    for export_id, file, line, raw in cursor.fetchall() if place.digest else ():
        if item := digest_of(place.digest, bytes(raw)):
            cursor.execute(
                ledger_sql.NAME_QUARANTINED,
                {"profile": profile, "export_id": export_id, "file": file, "line": line, "item": item},
            )


def digest_of(digest: Callable[[bytes], bytes] | None, line: bytes) -> str | None:
    """The digest of a line's item; None if it has none, as a line that is no item."""
    try:
        return digest(line).hex() if digest else None
    except (ValueError, ArithmeticError):
        return None
