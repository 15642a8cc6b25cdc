"""The newest state of each item that windows have touched, as the windows themselves say: what a verification compares.

The ledger (``migration.item``) is not asked: it is part of what is to be proved, and may be wrong. All records stand in a temporary
table of the verification's transaction, which spills to the server's disk; in memory there is a Bloom filter of their items, whose
size is bounded. So the lines of which there may be a newer record are set aside before any work, and the table is asked for these
alone.
"""

from __future__ import annotations

import copy
import secrets
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from psycopg2.sql import SQL, Composed, Identifier, Literal

from migration_pipeline.block import Lines
from migration_pipeline.engine.batch import Batch, Written
from migration_pipeline.targets.connection import copy_in
from migration_pipeline.targets.copy_csv import COPY_OPTIONS, csv_lines

FEWEST_BITS, MOST_BITS = 1 << 16, 1 << 28
BITS_A_RECORD = 64
"""Of the filter: one of a thousand other items passes for a touched one then, and of 30 million records and more one of twenty.
Each of these costs a look-up. At most it takes 32 MB."""

LINES = 50_000
"""Lines whose state is fetched at a time."""


class Seen(NamedTuple):
    """A record of a window."""

    item: str
    """Digest of the item's key, in hex."""
    written: int
    """In microseconds of the epoch."""
    window: int
    """Number of the window, in the plan's order."""
    file: int
    """Number of the file."""
    line: int


class Newest:
    """The newest record of each item, of at most so many `records`.

    Methods that take a cursor run in one transaction, the caller's; `add` and `settle` come before it is read-only.
    """

    def __init__(self, records: int) -> None:
        wanted = min(max(records * BITS_A_RECORD, FEWEST_BITS), MOST_BITS)
        self._bits = bytearray((1 << (wanted - 1).bit_length()) >> 3)
        self._mask = len(self._bits) * 8 - 1
        self._current: bytearray | None = None
        """Of a window's file, by line: 1 for the newest record of an item that is there. None for a file of a full export."""
        self.aside: dict[int, str] = {}
        """Lines that were set aside, by number, and of a full export their items: until their batch is written."""
        self._passed: set[int] = set()
        """Of these, lines of which there is no newer record after all."""
        token = secrets.token_hex(6)
        names = {name: f"migration_{token}_{name}" for name in ("records", "newest", "lines")}
        self._parts = {
            "options": SQL(COPY_OPTIONS),
            **{name: Identifier("pg_temp", text) for name, text in names.items()},
            **{f"bare_{name}": Identifier(text) for name, text in names.items()},
        }

    def _sql(self, text: str, **more: Any) -> Composed:
        return SQL(text).format(**self._parts, **{name: Literal(value) for name, value in more.items()})

    # -- pass 1: the windows -------------------------------------------------------------------------

    def add(self, cursor: Any, records: Sequence[Seen]) -> None:
        """Take note of records."""
        cursor.execute(self._sql(STAGE_RECORDS))
        copy_in(cursor, self._sql(COPY_RECORDS), b"\n".join([*csv_lines(records), b""]))
        bits, mask = self._bits, self._mask
        for record in records:
            number = int(record.item, 16)
            for bit in (number & mask, number >> 64 & mask):
                bits[bit >> 3] |= 1 << (bit & 7)

    def settle(self, cursor: Any, windows: Sequence[tuple[int, int]]) -> None:
        """Keep the newest record of each item; `windows` are start and end of each, in microseconds, in the plan's order."""
        overlaps = [
            (earlier, start, end)
            for later, (start, end) in enumerate(windows)
            for earlier in range(later)
            if windows[earlier][1] > start
        ]
        earlier, starts, ends = ([each[place] for each in overlaps] for place in range(3))
        cursor.execute(self._sql(STAGE_RECORDS))
        cursor.execute(self._sql(KEEP_NEWEST, earlier=earlier, starts=starts, ends=ends))

    # -- pass 2: each file ---------------------------------------------------------------------------

    def turn_to(self, cursor: Any, file: int | None, lines: int) -> None:
        """Begin with another file of so many lines; `file` is the number of a window's, None for one of a full export."""
        self.aside.clear()
        self._passed.clear()
        self._current = None if file is None else self._current_lines(cursor, file, lines)

    def _current_lines(self, cursor: Any, file: int, lines: int) -> bytearray:
        current = bytearray(lines + 1)
        for first in range(1, lines + 1, LINES):
            last = min(first + LINES - 1, lines)
            cursor.execute(self._sql(CURRENT_LINES, file=file, first=first, last=last))
            for (line,) in cursor.fetchall():
                current[line] = 1
        return current

    def is_current(self, number: int) -> bool:
        """Whether a line of a window's file is the newest record of its item."""
        return self._current is not None and number < len(self._current) and self._current[number] == 1

    def may_be_touched(self, number: int, item: str) -> bool:
        """Whether there may be a newer record of a full export's line: there is none if this says so."""
        bits, mask, key = self._bits, self._mask, int(item, 16)
        one, other = key & mask, key >> 64 & mask
        if not (bits[one >> 3] >> (one & 7) & bits[other >> 3] >> (other & 7) & 1):
            return False
        return number not in self._passed

    def sift(self, cursor: Any, batch: Batch) -> tuple[list[Batch], Written]:
        """Take from a batch the lines that were set aside, and count those that are superseded.

        Returns what is left of it, and a batch of the lines that were set aside although there is no newer record, if any.
        """
        written, aside = Written(), self.aside
        held = {n: aside[n] for n in (*batch.numbers, *(bad.number for bad in batch.bad)) if n in aside}
        if not held:
            return [batch], written
        over = held.keys() if self._current is not None else self._touched(cursor, held)
        written.superseded = sum(number in over for number in batch.numbers)
        for bad in batch.bad:
            if bad.number in over:
                written.forgive(bad)
        kept = copy.copy(batch)
        kept.bad = [bad for bad in batch.bad if bad.number not in over]
        pairs = list(zip(batch.lines, batch.numbers, strict=True))
        kept.lines = Lines(line for line, number in pairs if number not in held)
        kept.numbers = array("q", (number for _, number in pairs if number not in held))
        spared = [(line, number) for line, number in pairs if number in held and number not in over]
        return [kept, *self._spared(batch, spared, written)], written

    def _spared(self, batch: Batch, pairs: Sequence[tuple[bytes, int]], written: Written) -> list[Batch]:
        """Make a batch of lines whose rows were left out although there is no newer record."""
        if not pairs:
            return []
        self._passed.update(number for _, number in pairs)
        made = batch.anew([line for line, _ in pairs], [number for _, number in pairs])
        for bad in made.bad:
            written.refuse(bad)  # it was counted as good
        made.bad = []
        return [made]

    def done(self, batch: Batch) -> None:
        """Forget the lines of a batch that is written."""
        for number in (*batch.numbers, *(bad.number for bad in batch.bad)):
            self.aside.pop(number, None)
            self._passed.discard(number)

    def _touched(self, cursor: Any, held: dict[int, str]) -> set[int]:
        cursor.execute(self._sql("DELETE FROM {lines}"))
        copy_in(cursor, self._sql(COPY_LINES), b"\n".join([*csv_lines(list(held.items())), b""]))
        cursor.execute(self._sql(TOUCHED_LINES))
        return {line for (line,) in cursor.fetchall()}


STAGE_RECORDS = """
CREATE TEMP TABLE IF NOT EXISTS {bare_records} (item uuid, written bigint, win int, file int, line bigint) ON COMMIT DROP
"""

COPY_RECORDS = "COPY {records} (item, written, win, file, line) FROM STDIN WITH ({options})"

KEEP_NEWEST = """
CREATE TEMP TABLE {bare_newest} ON COMMIT DROP AS
SELECT item, file, line,
       EXISTS (SELECT
                 FROM unnest({earlier}::int[], {starts}::bigint[], {ends}::bigint[]) AS later (earlier, starts, ends)
                WHERE later.earlier = win AND written >= starts AND written < ends) AS gone
  FROM (SELECT DISTINCT ON (item) item, written, win, file, line
          FROM {records}
         ORDER BY item, written DESC, win DESC) AS last;
CREATE INDEX ON {newest} (item);
CREATE INDEX ON {newest} (file, line) WHERE NOT gone;
ANALYZE {newest};
DROP TABLE {records};
CREATE TEMP TABLE {bare_lines} (line bigint, item uuid) ON COMMIT DROP
"""
"""An item is gone if a later window has the time of its last write, and no record of it: it was made and deleted in that window,
which leaves none. Had the later window one, that would be the last: of two of one time, the later window's is."""

CURRENT_LINES = (
    "SELECT line FROM {newest} WHERE file = {file} AND line BETWEEN {first} AND {last} AND NOT gone"
)

COPY_LINES = "COPY {lines} (line, item) FROM STDIN WITH ({options})"

TOUCHED_LINES = "SELECT line FROM {lines} l WHERE EXISTS (SELECT FROM {newest} n WHERE n.item = l.item)"
