"""Finds the lines of a full export whose items windows have touched: nothing that the full export says of them counts any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from psycopg2.sql import SQL, Identifier, Literal

from migration_pipeline.engine.batch import Batch
from migration_pipeline.errors import MigrationError
from migration_pipeline.targets import ledger_sql
from migration_pipeline.targets.connection import copy_in
from migration_pipeline.targets.copy_csv import COPY_OPTIONS, csv_lines
from migration_pipeline.targets.ledger import Claims, Place, digest_of, window_number

MOST_IN_MEMORY = 1_000_000
"""Items of a ledger that are kept in memory, of about 100 bytes each; of a larger one, each batch asks the database."""


class _Digests:
    """Takes the digests of a COPY, which come in pieces of any size."""

    def __init__(self) -> None:
        self.found: set[bytes] = set()
        self._rest = ""

    def write(self, text: bytes | str) -> None:
        lines = (self._rest + (text if isinstance(text, str) else text.decode())).split("\n")
        self._rest = lines.pop()
        self.found.update(map(bytes.fromhex, lines))


class Touched:
    """Finds the items of a full export's lines that windows have touched. Its methods run in the caller's transactions."""

    def __init__(self, profile: str, place: Place, token: str) -> None:
        self._digest = place.digest
        self._windows = place.later
        self._known = False
        """Whether the plan has all windows of the ledger."""
        self.claims = Claims(profile, place)
        self.guarded = False
        """Whether rows must be held against what windows have taken."""
        self._version: tuple[int | None] | None = None
        name = f"migration_{token}_lines"
        self._parts = {
            "lines": Identifier("pg_temp", name),
            "bare": Identifier(name),
            "profile": Literal(profile),
            "options": SQL(COPY_OPTIONS),
        }

    def matter(self, cursor: Any, file: Mapping[str, Any], last: bool) -> bool:
        """Whether windows may have come while a first load of a file runs: another load of it has ended meanwhile.

        None ends until this transaction does, unless it is the `last` one, which waits for the others' to end.
        """
        name = "migration {profile} {export_id} {file}".format_map(file)
        cursor.execute(ledger_sql.END_FILE if last else ledger_sql.HOLD_FILE, (name,))
        cursor.execute(ledger_sql.FILE_LOADED, file)
        return bool(cursor.fetchone()[0])

    def read(self, cursor: Any) -> Callable[[bytes], bytes | None] | None:
        """Read the ledger, if it is not too large; returns what gives the digest of a line's item if windows have touched it.

        Whoever asks leaves these lines out, so `numbers` looks only for what is touched later. Raises `MigrationError` if the
        plan does not know the windows that the tables hold.
        """
        cursor.execute(ledger_sql.HOLD_ITEMS)
        cursor.execute(SQL(ledger_sql.ITEMS_OF).format(**self._parts, most=Literal(MOST_IN_MEMORY + 1)))
        items, version = cursor.fetchone()
        if items:
            self._expect_windows(cursor)
        if items > MOST_IN_MEMORY:
            return None
        self._version = (version,)
        if not items:
            return None
        digests = _Digests()
        cursor.copy_expert(SQL(ledger_sql.COPY_ITEMS).format(**self._parts), digests)
        known, digest = digests.found, self._digest

        def newer(line: bytes) -> bytes | None:
            try:
                found = digest(line) if digest else None
            except (ValueError, ArithmeticError):
                return None  # such a line is no item
            return found if found in known else None

        return newer

    def numbers(self, cursor: Any, batch: Batch) -> set[int]:
        """Lock the ledger against windows, and return the numbers of a batch's lines that windows have touched since it was read.

        Whoever enters items later takes their ids behind the lock, so the greatest one tells whether there are new ones.
        """
        cursor.execute(ledger_sql.HOLD_ITEMS)
        self.guarded = self.claims.matter(cursor)
        cursor.execute(ledger_sql.VERSION)
        if cursor.fetchone() in (self._version, (None,)):
            return set()
        cursor.execute(SQL(ledger_sql.ITEMS_OF).format(**self._parts, most=Literal(1)))
        items, version = cursor.fetchone()
        if not items:  # they are of other profiles: to look through them takes as long as they are many
            self._version = (version,)
            return set()
        self._expect_windows(cursor)
        self._stage(cursor, self._items(batch))
        cursor.execute(SQL(ledger_sql.TOUCHED_LINES).format(**self._parts))
        return {number for (number,) in cursor.fetchall()}

    def _expect_windows(self, cursor: Any) -> None:
        """See that the plan has the windows that the ledger has items of. Raises `MigrationError`."""
        if self._known:
            return
        windows = Literal([window_number(each) for each in self._windows])
        cursor.execute(SQL(ledger_sql.OTHER_WINDOWS).format(**self._parts, windows=windows))
        if cursor.fetchone() == (True,) or self._digest is None:
            raise MigrationError(
                "windows were loaded into the tables, and the plan has not all of them; add them to it (migration-pipeline plan "
                "PROFILE --add WINDOW), or empty the tables and migration.item"
            )
        self._known = True

    def _stage(self, cursor: Any, data: bytes) -> None:
        cursor.execute(SQL(ledger_sql.STAGE_LINES).format(**self._parts))
        cursor.execute(SQL("DELETE FROM {lines}").format(**self._parts))
        copy_in(cursor, SQL(ledger_sql.COPY_LINES).format(**self._parts), data)

    def leave_out_before(self, cursor: Any, batch: Batch, slice_id: int) -> None:
        """Take note that a slice is made without the items that were left out of a batch when it was made."""
        if batch.counts.superseded:
            items = [(0, digest.hex()) for digest in batch.counts.superseded]
            self._stage(cursor, b"\n".join([*csv_lines(items), b""]))
            self.leave_out(cursor, slice_id)

    def leave_out(self, cursor: Any, slice_id: int) -> None:
        """Take note that a slice is made without the items of the lines that were looked at last."""
        cursor.execute(SQL(ledger_sql.BACK_BY).format(**self._parts, slice=Literal(slice_id)))

    def _items(self, batch: Batch) -> bytes:
        lines = [
            *zip(batch.numbers, batch.lines, strict=True),
            *((bad.number, bad.line) for bad in batch.bad),
        ]
        pairs = [(number, digest_of(self._digest, line)) for number, line in lines]
        return b"\n".join([*csv_lines([pair for pair in pairs if pair[1]]), b""])
