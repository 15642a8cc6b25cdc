"""The PostgreSQL target: one connection, COPY to staging, upsert, one transaction a batch."""

from __future__ import annotations

import contextlib
import io
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgspec
import psycopg2
import psycopg2.errors
from psycopg2 import sql

from migration_pipeline.engine.report import FileReport
from migration_pipeline.row import Row, Table
from migration_pipeline.targets.connection import DatabaseError, connect, explain
from migration_pipeline.targets.copy_csv import COPY_OPTIONS, RowEncoder
from migration_pipeline.targets.ddl import SchemaError, check_table


class Encoded(msgspec.Struct, frozen=True):
    """A batch as COPY input, by table."""

    parts: list[tuple[type[Row], bytes]]
    rows: dict[str, int]
    collisions: int

    @property
    def size(self) -> int:
        """Bytes of COPY input."""
        return sum(len(data) for _, data in self.parts)


class FileIdentity(msgspec.Struct, frozen=True):
    """What a receipt is filed under, and who loaded it."""

    profile: str
    profile_version: str
    export_id: str
    file: str
    run_id: str


RECEIPT = """
INSERT INTO migration.loaded_file
       (profile, export_id, file, profile_version, md5, bytes, items, loaded, skipped, quarantined, rows,
        seconds, run_id)
VALUES (%(profile)s, %(export_id)s, %(file)s, %(profile_version)s, %(md5)s, %(bytes)s, %(items)s, %(loaded)s,
        %(skipped)s, %(quarantined)s, %(rows)s, %(seconds)s, %(run_id)s)
ON CONFLICT (profile, export_id, file) DO UPDATE
   SET profile_version = EXCLUDED.profile_version, md5 = EXCLUDED.md5, bytes = EXCLUDED.bytes,
       items = EXCLUDED.items, loaded = EXCLUDED.loaded, skipped = EXCLUDED.skipped,
       quarantined = EXCLUDED.quarantined, rows = EXCLUDED.rows, seconds = EXCLUDED.seconds,
       run_id = EXCLUDED.run_id, loaded_at = now()
"""


class _Statements(msgspec.Struct, frozen=True):
    """The SQL of one table, composed once."""

    copy: sql.Composed
    stage: sql.Composed
    copy_to_staging: sql.Composed
    upsert: sql.Composed


LOADED = "SELECT FROM migration.loaded_file WHERE (profile, export_id, file) = (%s, %s, %s)"


class PostgresTarget:
    """Writes the rows of one file to PostgreSQL. Use as a context manager: it holds one connection.

    `url` is anything libpq takes (a URL or ``host=… dbname=…``); the usual PG* variables and ~/.pgpass
    fill in what it leaves out. Raises `DatabaseError` when the database cannot be reached or refuses, and
    `SchemaError` when the tables are not the profile's.
    """

    def __init__(self, url: str, tables: Mapping[type[Row], Table], file: FileIdentity) -> None:
        self._url = url
        self._file = file
        self._tables = dict(tables)
        self._encoders = {row_class: RowEncoder(table) for row_class, table in self._tables.items()}
        self._statements = {
            row_class: _statements(number, table)
            for number, (row_class, table) in enumerate(self._tables.items())
        }
        self._connection: Any = None
        self._rows_are_new = False

    def __enter__(self) -> PostgresTarget:
        self._connection = connect(self._url)
        try:
            with self._transaction() as cursor:
                self._check(cursor)
                cursor.execute(LOADED, (self._file.profile, self._file.export_id, self._file.file))
                # A file with a receipt has its rows in the tables: no batch need find that out.
                self._rows_are_new = cursor.fetchone() is None
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            # A write that could not be cancelled would hold the connection, and close() waits for it.
            with (
                contextlib.suppress(OSError, psycopg2.Error),
                socket.socket(fileno=os.dup(self._connection.fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _check(self, cursor: Any) -> None:
        """Compare tables and bookkeeping with the catalog, before any work."""
        cursor.execute("SELECT to_regclass('migration.loaded_file')")
        if cursor.fetchone()[0] is None:
            raise SchemaError(
                "the database has no migration.loaded_file; create the bookkeeping with: "
                "migration-pipeline ddl <profile> --apply"
            )
        for table in self._tables.values():
            check_table(table, cursor)

    def encode(self, rows: dict[type[Row], list[Row]]) -> Encoded:
        """Encode a batch for COPY, each table's rows sorted by key."""
        parts, counts, collisions = [], {}, 0
        for row_class, batch in rows.items():
            if batch:
                data, count = self._encoders[row_class].encode(batch)
                parts.append((row_class, data))
                counts[self._tables[row_class].qualified] = count
                collisions += len(batch) - count
        return Encoded(parts, counts, collisions)

    def write(self, encoded: Encoded, receipt: FileReport | None = None) -> None:
        """Upsert a batch, and record `receipt` with it, in one transaction. Raises `DatabaseError`.

        While a file's rows are new they are copied straight into the tables. The first row that is there
        already (a unique violation) undoes its batch; that batch and the rest of the file go by a staging
        table, which writes only the rows that are new or different.
        """
        if self._rows_are_new:
            try:
                self._write(encoded, receipt, self._copy)
                return
            except psycopg2.errors.UniqueViolation:
                self._rows_are_new = False
            except psycopg2.Error as error:
                raise DatabaseError(explain(error)) from error
        try:
            self._write(encoded, receipt, self._upsert)
        except psycopg2.Error as error:
            raise DatabaseError(explain(error)) from error

    def _write(self, encoded: Encoded, receipt: FileReport | None, load: Callable[..., None]) -> None:
        with self._connection, self._connection.cursor() as cursor:
            if receipt is None:
                # The file's last commit waits for the disk, and for all before it: WAL is written in order.
                cursor.execute("SET LOCAL synchronous_commit = off")
            for row_class, data in encoded.parts:
                load(cursor, self._statements[row_class], data)
            if receipt is not None:
                cursor.execute(RECEIPT, self._receipt(receipt))

    @staticmethod
    def _copy(cursor: Any, statements: _Statements, data: bytes) -> None:
        # The whole batch in one call: between two calls this thread would wait for Python's lock.
        cursor.copy_expert(statements.copy, io.BytesIO(data), len(data))

    @staticmethod
    def _upsert(cursor: Any, statements: _Statements, data: bytes) -> None:
        cursor.execute(statements.stage)
        cursor.copy_expert(statements.copy_to_staging, io.BytesIO(data), len(data))
        cursor.execute(statements.upsert)

    def cancel(self) -> None:
        """Make a `write` in another thread fail soon."""
        with contextlib.suppress(psycopg2.Error):
            self._connection.cancel()

    def _receipt(self, report: FileReport) -> dict[str, Any]:
        values: dict[str, Any] = msgspec.to_builtins(report) | msgspec.to_builtins(self._file)
        return values | {name: msgspec.json.encode(values[name]).decode() for name in ("skipped", "rows")}

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """One transaction: committed if the block ends well, rolled back if not."""
        try:
            with self._connection, self._connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            raise DatabaseError(explain(error)) from error


def _statements(number: int, table: Table) -> _Statements:
    """Compose one table's SQL. Identifiers are quoted by psycopg2, never pasted."""
    target = sql.Identifier(*(part for part in (table.schema, table.name) if part))
    staging = sql.Identifier("pg_temp", f"staging_{number}")
    names = [column.name for column in table.columns]
    others = [name for name in names if name not in table.key]
    columns, key = _list(names), _list(table.key)
    parts = {
        "target": target,
        "staging": staging,
        "new_table": sql.Identifier(f"staging_{number}"),
        "columns": columns,
        "staged": _list(names, "s"),
        "key": key,
        "same_key": sql.SQL(" AND ").join(
            sql.SQL("t.{0} = s.{0}").format(sql.Identifier(name)) for name in table.key
        ),
        "first_key": sql.Identifier(table.key[0]),
        "theirs": _list(others, "t"),
        "ours": _list(others, "s"),
        "changes": sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in others
        ),
        "options": sql.SQL(COPY_OPTIONS),
    }
    upsert = UPSERT if others else INSERT_KEYS
    return _Statements(
        copy=sql.SQL("COPY {target} ({columns}) FROM STDIN WITH ({options})").format(**parts),
        stage=sql.SQL(
            "CREATE TEMP TABLE IF NOT EXISTS {new_table} ON COMMIT DELETE ROWS AS SELECT {columns} FROM {target} WITH NO DATA"
        ).format(**parts),
        copy_to_staging=sql.SQL("COPY {staging} ({columns}) FROM STDIN WITH ({options})").format(**parts),
        upsert=sql.SQL(upsert).format(**parts),
    )


UPSERT = """
INSERT INTO {target} ({columns})
SELECT {staged}
  FROM {staging} s
  LEFT JOIN {target} t ON {same_key}
 WHERE t.{first_key} IS NULL OR ({theirs}) IS DISTINCT FROM ({ours})
    ON CONFLICT ({key}) DO UPDATE SET {changes}
"""
"""Rows that are there unchanged stay out of the INSERT: ON CONFLICT would lock and log each of them."""

INSERT_KEYS = (
    "INSERT INTO {target} ({columns}) SELECT {staged} FROM {staging} s ON CONFLICT ({key}) DO NOTHING"
)
"""For a table that is all key."""


def _list(names: Iterable[str], alias: str | None = None) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(*filter(None, (alias, name))) for name in names)
