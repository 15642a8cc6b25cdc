"""The PostgreSQL target: one connection; one transaction a batch, tried again after transient faults.

A transaction writes the rows of a batch, the items of it that cannot be loaded to the quarantine, and with
the last batch the file's receipt. What PostgreSQL refuses as data is halved within the transaction, behind
savepoints, until the bad items stand alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec
import psycopg2
import psycopg2.errorcodes
from psycopg2 import sql
from typing_extensions import Self

from migration_pipeline.engine.batch import Batch, TooManyBad, Written
from migration_pipeline.engine.report import FileReport
from migration_pipeline.engine.transform import Bad
from migration_pipeline.profile import NulPolicy
from migration_pipeline.row import Row, Table
from migration_pipeline.targets.connection import (
    DatabaseError,
    DatabaseSettings,
    reason_of_refusal,
    table_of_error,
)
from migration_pipeline.targets.copy_csv import COPY_OPTIONS, EncodedRows, RowEncoder
from migration_pipeline.targets.ddl import check_bookkeeping, check_table
from migration_pipeline.targets.faults import Fault, fault_of
from migration_pipeline.targets.landing import Slice
from migration_pipeline.targets.session import Session


class Encoded(msgspec.Struct, frozen=True):
    """A batch's rows as COPY input, by table."""

    parts: list[tuple[type[Row], bytes]]
    rows: dict[str, int]
    collisions: dict[str, int]
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


RECEIPT = """
INSERT INTO migration.loaded_file
       (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined,
        rows, collisions, changed, nul, retries, seconds, run_id, export_time, loaded_at)
VALUES (%(profile)s, %(export_id)s, %(file)s, %(profile_version)s, %(md5)s, %(bytes)s, %(items)s, %(loaded)s,
        %(skipped)s, %(unrouted)s, %(quarantined)s,
        %(rows)s, %(collisions)s, %(changed)s, %(nul)s, %(retries)s, %(seconds)s, %(run_id)s,
        %(export_time)s, clock_timestamp())
ON CONFLICT (profile, export_id, file) DO UPDATE
   SET profile_version = EXCLUDED.profile_version, md5 = EXCLUDED.md5, bytes = EXCLUDED.bytes,
       items = EXCLUDED.items, loaded = EXCLUDED.loaded, skipped = EXCLUDED.skipped,
       unrouted = EXCLUDED.unrouted, quarantined = EXCLUDED.quarantined, rows = EXCLUDED.rows,
       collisions = EXCLUDED.collisions, changed = EXCLUDED.changed, nul = EXCLUDED.nul,
       retries = EXCLUDED.retries, seconds = EXCLUDED.seconds, run_id = EXCLUDED.run_id,
       loaded_at = EXCLUDED.loaded_at, export_time = coalesce(EXCLUDED.export_time, loaded_file.export_time)
"""

RECEIPT_OF = """
SELECT profile_version, md5, bytes, items, loaded, skipped, unrouted, quarantined, rows, collisions, changed, nul, retries, seconds
  FROM migration.loaded_file
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s)
   FOR UPDATE
"""

OTHER_VERSIONS = """
SELECT count(*) FILTER (WHERE (export_id, file) = (%(export_id)s, %(file)s)),
       count(*) FILTER (WHERE profile_version <> %(profile_version)s)
  FROM migration.loaded_file
 WHERE profile = %(profile)s
"""
"""Whether the file has a receipt, and how many files of the profile were loaded by another version of it."""

QUARANTINE = """
INSERT INTO migration.quarantine
       (profile, export_id, file, line, raw, table_name, sqlstate, reason, profile_version, run_id)
VALUES (%(profile)s, %(export_id)s, %(file)s, %(line)s, %(raw)s, %(table)s, %(sqlstate)s, %(reason)s,
        %(profile_version)s, %(run_id)s)
ON CONFLICT (profile, export_id, file, line) DO UPDATE
   SET raw = EXCLUDED.raw, table_name = EXCLUDED.table_name, sqlstate = EXCLUDED.sqlstate,
       reason = EXCLUDED.reason, profile_version = EXCLUDED.profile_version, run_id = EXCLUDED.run_id,
       quarantined_at = now()
"""

QUARANTINED = """
SELECT line, raw
  FROM migration.quarantine
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s)
 ORDER BY line
"""

CLEAR_OTHERS = """
DELETE FROM migration.quarantine
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND line <> ALL (%(lines)s::bigint[])
"""
"""Once a file is loaded, its quarantine holds just the lines that were bad this time."""

CLEAR = """
DELETE FROM migration.quarantine
 WHERE (profile, export_id, file) = (%(profile)s, %(export_id)s, %(file)s) AND line = ANY (%(lines)s::bigint[])
"""

COLLISIONS_SHOWN = 20
"""Examples of colliding keys that are kept a file."""


class _Statements(msgspec.Struct, frozen=True):
    """The SQL of one table, composed once."""

    copy: sql.Composed
    stage: sql.Composed
    empty: sql.Composed
    copy_to_staging: sql.Composed
    fold: sql.Composed | None
    """Merges rows of one key in the staging table, two by two; gives whether there still are some. None where none merge."""
    upsert: sql.Composed


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
    ) -> None:
        self._file = file
        self._tables = dict(tables)
        self._encoders = {row_class: RowEncoder(table, nul) for row_class, table in self._tables.items()}
        self._columns = {column.name for table in self._tables.values() for column in table.columns}
        self._statements: dict[type[Row], _Statements] = {}
        landing = [table for table in self._tables.values() if table.landing]
        self._slice = Slice(landing, msgspec.to_builtins(file)) if landing else None
        self._session = Session(url, settings, on_retry, self._connected)
        self._rows_are_new = False
        self._began = False
        self._quarantined: set[int] = set()

    def __enter__(self) -> Self:
        self._session.open()
        try:
            self._session.persistently(self._check)
        except BaseException:
            self._session.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.close(failed=error is not None)

    @property
    def retries(self) -> int:
        """Transactions that ran again so far."""
        return self._session.retries

    def cancel(self) -> None:
        """Make a `write` in another thread fail soon."""
        self._session.cancel()

    def _connected(self, cursor: Any) -> None:
        if self._slice is not None:
            self._slice.connected(cursor)

    def _check(self, cursor: Any) -> None:
        """Compare tables and bookkeeping with the catalog, before any work."""
        check_bookkeeping(cursor)
        for table in self._tables.values():
            check_table(table, cursor)
        cursor.execute(OTHER_VERSIONS, msgspec.to_builtins(self._file))
        receipts, other_versions = cursor.fetchone()
        # A file with a receipt has its rows in the tables: no batch need find that out.
        self._rows_are_new = not receipts
        # After a change of the profile rows change without any collision.
        examples = 0 if other_versions else COLLISIONS_SHOWN
        self._statements = {
            row_class: _statements(number, table, self._file, examples)
            for number, (row_class, table) in enumerate(self._tables.items())
            if not table.landing
        }

    def encode(self, rows: dict[type[Row], list[Row]]) -> Piece:
        """Encode some of a batch's rows for COPY."""
        return {row_class: self._encoders[row_class].encode(some) for row_class, some in rows.items() if some}

    def join(self, pieces: Sequence[Piece]) -> Encoded:
        """Make a batch's COPY input of its pieces, each table's sorted by key."""
        parts, counts, collisions, nul = [], {}, {}, 0
        for row_class, encoder in self._encoders.items():
            some = [piece[row_class] for piece in pieces if row_class in piece]
            if some:
                joined = encoder.join(some)
                parts.append((row_class, joined.data))
                name = self._tables[row_class].qualified
                counts[name] = joined.rows
                if left_out := sum(each.rows for each in some) - joined.rows:
                    collisions[name] = left_out
                nul += sum(each.nul for each in some)
        return Encoded(parts, counts, collisions, nul)

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
            self._slice.committed()
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

        def work(cursor: Any) -> list[tuple[int, bytes]]:
            cursor.execute(QUARANTINED, msgspec.to_builtins(self._file))
            return [(line, bytes(raw)) for line, raw in cursor.fetchall()]

        return self._session.persistently(work)

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
        self._load(cursor, batch, batch.room, written)
        for bad in [*batch.bad, *written.refused]:
            self._keep_bad(cursor, bad)
        return written

    def _load(self, cursor: Any, batch: Batch, room: int, written: Written) -> None:
        """Load a batch whole or, where it holds bad items, by halves."""
        self._session.expect_answer()
        cursor.execute("SAVEPOINT batch")
        try:
            changed = self._copy(cursor, batch.encoded)
        except psycopg2.Error as error:
            if fault_of(error) is not Fault.DATA:
                raise
            cursor.execute("ROLLBACK TO SAVEPOINT batch")
            if self._rows_are_new and error.pgcode == psycopg2.errorcodes.UNIQUE_VIOLATION:
                self._rows_are_new = False
                self._load(cursor, batch, room, written)
            elif len(batch.lines) > 1:
                for half in batch.halves():
                    for bad in half.bad:
                        written.refuse(bad)
                    self._load(cursor, half, room, written)
            else:
                written.refuse(
                    batch.refused(
                        reason_of_refusal(error, self._columns), self._table_of(error), error.pgcode
                    )
                )
                if len(written.refused) > room:
                    raise TooManyBad(written.refused) from None
        else:
            written.rows.update(batch.encoded.rows)
            written.collisions.update(batch.encoded.collisions)
            written.nul += batch.encoded.nul
            written.changed += changed
        cursor.execute("RELEASE SAVEPOINT batch")

    def _table_of(self, error: psycopg2.Error) -> str | None:
        """Name the table that refused a row."""
        return table_of_error(error)

    def _copy(self, cursor: Any, encoded: Encoded) -> int:
        """Write rows into their tables; gives the number of those that replaced others."""
        changed = 0
        for row_class, data in encoded.parts:
            table = self._tables[row_class]
            if self._slice is not None and table.landing:
                self._slice.copy(cursor, table, data)
            elif self._rows_are_new:
                # The whole batch in one call: between two calls this thread would wait for Python's lock.
                cursor.copy_expert(self._statements[row_class].copy, io.BytesIO(data), len(data))
            else:
                changed += self._upsert(cursor, self._statements[row_class], data)
        return changed

    def _upsert(self, cursor: Any, statements: _Statements, data: bytes) -> int:
        """Write the rows that are new or different; gives the number of those that replaced others."""
        cursor.execute(statements.stage)
        cursor.execute(statements.empty)
        cursor.copy_expert(statements.copy_to_staging, io.BytesIO(data), len(data))
        if statements.fold is not None:
            twins = True
            while twins:
                cursor.execute(statements.fold)
                (twins,) = cursor.fetchone()
        cursor.execute(statements.upsert)
        (changed,) = cursor.fetchone()
        return int(changed)

    def _keep_bad(self, cursor: Any, bad: Bad) -> None:
        values = {
            "line": bad.number,
            "raw": psycopg2.Binary(bad.line),
            "table": bad.table,
            "sqlstate": bad.sqlstate,
            "reason": bad.reason,
        }
        cursor.execute(QUARANTINE, msgspec.to_builtins(self._file) | values)

    def _keep_receipt(self, cursor: Any, report: FileReport, file: FileIdentity) -> None:
        values: dict[str, Any] = msgspec.to_builtins(report) | msgspec.to_builtins(file)
        documents = {
            name: msgspec.json.encode(values[name]).decode()
            for name in ("skipped", "unrouted", "rows", "collisions")
        }
        cursor.execute(RECEIPT, values | documents)


def _lines(bad: Iterable[Bad]) -> list[int]:
    return [one.number for one in bad]


def _statements(number: int, table: Table, file: FileIdentity, examples: int) -> _Statements:
    """Compose one table's SQL. Identifiers and values are quoted by psycopg2, never pasted.

    The statements take no parameters: with them, psycopg2 would read a % in a name as a placeholder.
    """
    target = sql.Identifier(*(part for part in (table.schema, table.name) if part))
    staging = sql.Identifier("pg_temp", f"staging_{number}")
    names = [column.name for column in table.columns]
    others = [name for name in names if name not in table.key]
    version = sql.Identifier(table.version) if table.version else None
    parts = {
        "target": target,
        "staging": staging,
        "new_table": sql.Identifier(f"staging_{number}"),
        "columns": _list(names),
        "staged": _list(names, "s"),
        "key": _list(table.key),
        "key_document": sql.SQL("jsonb_build_object({})").format(
            sql.SQL(", ").join(
                sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(name)) for name in table.key
            )
        ),
        "same_key": sql.SQL(" AND ").join(
            sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in table.key
        ),
        "first_key": sql.Identifier(table.key[0]),
        "theirs": _list(others, "t"),
        "ours": sql.SQL(", ").join(merged(table, name, "t", "s") for name in others),
        "changes": sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), merged(table, name, "t", "excluded"))
            for name in others
        ),
        # In the join for cheapness; in the update, too, for a row that came in between.
        "not_older": sql.SQL(NOT_OLDER).format(version=version, new=sql.SQL("s"))
        if version
        else sql.SQL("true"),
        "unless_older": sql.SQL("WHERE " + NOT_OLDER).format(version=version, new=sql.SQL("EXCLUDED"))
        if version
        else sql.SQL(""),
        "options": sql.SQL(COPY_OPTIONS),
        "this_file": sql.SQL(", ").join(map(sql.Literal, (file.profile, file.export_id, file.file))),
        "table": sql.Literal(table.qualified),
        "examples": sql.Literal(examples),
    }
    return _Statements(
        copy=sql.SQL("COPY {target} ({columns}) FROM STDIN WITH ({options})").format(**parts),
        stage=sql.SQL(
            "CREATE TEMP TABLE IF NOT EXISTS {new_table} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {target} WITH NO DATA"
        ).format(**parts),
        empty=sql.SQL("DELETE FROM {staging}").format(**parts),
        copy_to_staging=sql.SQL("COPY {staging} ({columns}) FROM STDIN WITH ({options})").format(**parts),
        fold=_fold(table, staging) if table.merges else None,
        upsert=sql.SQL(UPSERT if others else INSERT_KEYS).format(**parts),
    )


def merged(table: Table, name: str, old: str, new: str) -> sql.Composable:
    """The value of a column after an upsert: the new one's or, where the column merges, that of both."""
    merge = next(column.merge for column in table.columns if column.name == name)
    if merge is None:
        return sql.Identifier(new, name)
    both = {"old": sql.Identifier(old, name), "new": sql.Identifier(new, name)}
    return sql.SQL("({})").format(sql.SQL(merge).format(**both))


def _fold(table: Table, staging: sql.Identifier) -> sql.Composed:
    """Compose the statement that merges each row of a staging table with the next one of its key."""
    values, following = [], []
    for number, column in enumerate(table.columns):
        name, next_name = sql.Identifier(column.name), sql.Identifier(f"next {number}")
        if column.merge is None:
            values.append(sql.SQL("{}").format(name))
        else:
            merged = sql.SQL(column.merge).format(old=name, new=next_name)
            values.append(sql.SQL("CASE WHEN {} THEN {} ELSE {} END").format(HAS_NEXT, merged, name))
            following.append(sql.SQL(", lead({}) OVER twins AS {}").format(name, next_name))
    names = [column.name for column in table.columns]
    return sql.SQL(FOLD).format(
        staging=staging,
        columns=_list(names),
        key=_list(table.key),
        following=sql.Composed(following),
        has_next=HAS_NEXT,
        number=NUMBER,
        values=sql.SQL(", ").join(values),
    )


HAS_NEXT = sql.Identifier("has next")
NUMBER = sql.Identifier("number of twin")
"""Names that no column of a profile is likely to have."""

FOLD = """
WITH taken AS (
    DELETE FROM {staging} RETURNING {columns}
), numbered AS (
    SELECT {columns}, row_number() OVER twins AS {number}, lead(true, 1, false) OVER twins AS {has_next}{following}
      FROM taken
    WINDOW twins AS (PARTITION BY {key} ORDER BY {columns})
), folded AS (
    INSERT INTO {staging} ({columns}) SELECT {values} FROM numbered WHERE {number} % 2 = 1 RETURNING {key}
)
SELECT count(*) > count(DISTINCT ({key})) FROM folded
"""
"""Of the rows of one key it leaves half as many. Which are merged first does not matter, by the laws of `Merge`."""


UPSERT = """
WITH upserted AS (
    INSERT INTO {target} AS t ({columns})
    SELECT {staged}
      FROM {staging} s
      LEFT JOIN {target} t ON {same_key}
     WHERE t.{first_key} IS NULL OR (({theirs}) IS DISTINCT FROM ({ours}) AND {not_older})
        ON CONFLICT ({key}) DO UPDATE SET {changes} {unless_older}
    RETURNING {key_document} AS key, xmax <> 0 AS changed
), examples AS (
    INSERT INTO migration.collision (profile, export_id, file, table_name, key)
    SELECT {this_file}, {table}, key
      FROM upserted
     WHERE changed AND {examples} > (SELECT count(*) FROM migration.collision
                                      WHERE (profile, export_id, file) = ({this_file}))
     LIMIT {examples}
        ON CONFLICT DO NOTHING
)
SELECT count(*) FROM upserted WHERE changed
"""
"""Rows that are there unchanged stay out of the INSERT: ON CONFLICT would lock and log each of them.

A row that an INSERT … ON CONFLICT updates comes back with the updating transaction in xmax, a new one with 0.
"""

NOT_OLDER = "(t.{version} IS NULL OR {new}.{version} >= t.{version})"
"""Of one key the greatest version stays; the same version again is the same item, made anew."""

INSERT_KEYS = """
WITH inserted AS (
    INSERT INTO {target} ({columns}) SELECT {staged} FROM {staging} s ON CONFLICT ({key}) DO NOTHING
)
SELECT 0
"""
"""For a table that is all key."""


def _list(names: Iterable[str], alias: str | None = None) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*filter(None, (alias, name))) for name in names)
