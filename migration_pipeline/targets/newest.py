"""The newest state of each item that windows have touched, as the windows themselves say: what a verification compares.

The ledger (``migration.item``) is not asked: it is part of what is to be proved, and may be wrong. All records stand in a temporary
table of the verification's transaction, which spills to the server's disk, so memory does not grow with the windows.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psycopg2.sql import SQL, Composed, Identifier, Literal

from migration_pipeline.engine.batch import Batch
from migration_pipeline.targets.connection import copy_in
from migration_pipeline.targets.copy_csv import COPY_OPTIONS, csv_lines
from migration_pipeline.targets.ledger import digest_of


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
    """The newest record of each item. Its methods run in one transaction, the caller's; `add` and `settle` before it is read-only.

    `digest` gives the digest of the item on a line of a full export; None if no window has a record.
    """

    def __init__(self, digest: Callable[[bytes], str] | None) -> None:
        self._digest = digest
        self.file: int | None = None
        """Number of the window's file that batches are of; None for one of a full export."""
        token = secrets.token_hex(6)
        names = {name: f"migration_{token}_{name}" for name in ("records", "newest", "lines")}
        self._parts = {
            "options": SQL(COPY_OPTIONS),
            **{name: Identifier("pg_temp", text) for name, text in names.items()},
            **{f"bare_{name}": Identifier(text) for name, text in names.items()},
        }

    def _sql(self, text: str, **more: Any) -> Composed:
        return SQL(text).format(**self._parts, **{name: Literal(value) for name, value in more.items()})

    def add(self, cursor: Any, records: Sequence[Seen]) -> None:
        """Take note of records."""
        cursor.execute(self._sql(STAGE_RECORDS))
        copy_in(cursor, self._sql(COPY_RECORDS), b"\n".join([*csv_lines(records), b""]))

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

    def superseded(self, cursor: Any, batch: Batch) -> set[int]:
        """The numbers of a batch's lines that say nothing of what the tables hold: a newer record of their item is there."""
        if not batch.numbers and not batch.bad:
            return set()
        return self._touched(cursor, batch) if self.file is None else self._older(cursor, batch, self.file)

    def _older(self, cursor: Any, batch: Batch, file: int) -> set[int]:
        # What is no record, and so has no item, is among the bad ones alone.
        first, last = min(batch.numbers, default=0), max(batch.numbers, default=0)
        cursor.execute(self._sql(CURRENT_LINES, file=file, first=first, last=last))
        return set(batch.numbers).difference(line for (line,) in cursor.fetchall())

    def _touched(self, cursor: Any, batch: Batch) -> set[int]:
        lines = [
            *zip(batch.numbers, batch.lines, strict=True),
            *((bad.number, bad.line) for bad in batch.bad),
        ]
        items = [(number, item) for number, line in lines if (item := digest_of(self._digest, line))]
        cursor.execute(self._sql("DELETE FROM {lines}"))
        copy_in(cursor, self._sql(COPY_LINES), b"\n".join([*csv_lines(items), b""]))
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
