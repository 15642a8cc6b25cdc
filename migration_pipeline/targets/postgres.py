"""The PostgreSQL target: one connection, COPY to staging, upsert, one transaction a batch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import msgspec
import psycopg2
from psycopg2 import sql

from migration_pipeline.engine.report import FileReport
from migration_pipeline.errors import MigrationError
from migration_pipeline.row import Row, Table
from migration_pipeline.targets.copy_csv import COPY_OPTIONS, RowEncoder
from migration_pipeline.targets.ddl import SchemaError, check_table

COPY_READ_BYTES = 1 << 18
"""Bytes handed to libpq at a time; below this size the calls cost more than the copying."""


class DatabaseError(MigrationError):
    """PostgreSQL refused something; the text holds SQLSTATE and names, never values."""


class Encoded(msgspec.Struct, frozen=True):
    """A batch as COPY input, by table."""

    parts: list[tuple[type[Row], bytes]]
    rows: dict[str, int]
    collisions: int


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

    stage: sql.Composed
    copy: sql.Composed
    upsert: sql.Composed


class PostgresTarget:
    """Writes a profile's rows to PostgreSQL. Use as a context manager: it holds one connection.

    `url` is anything libpq takes (a URL or ``host=… dbname=…``); the usual PG* variables and ~/.pgpass
    fill in what it leaves out. Raises `DatabaseError` when the database cannot be reached or refuses, and
    `SchemaError` when the tables are not the profile's.
    """

    def __init__(self, url: str, tables: Mapping[type[Row], Table]) -> None:
        self._url = url
        self._tables = dict(tables)
        self._encoders = {row_class: RowEncoder(table) for row_class, table in self._tables.items()}
        self._statements = {
            row_class: _statements(number, table)
            for number, (row_class, table) in enumerate(self._tables.items())
        }
        self._connection: Any = None
        self.file: FileIdentity | None = None
        """Whose batches are written; set before a file's first batch."""

    def __enter__(self) -> PostgresTarget:
        self._connection = connect(self._url)
        try:
            with self._transaction() as cursor:
                self._check(cursor)
                for statements in self._statements.values():
                    cursor.execute(statements.stage)
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
        self._connection.close()

    def _check(self, cursor: Any) -> None:
        """Compare tables and bookkeeping with the catalog, before any work."""
        cursor.execute("SELECT to_regclass('migration.loaded_file')")
        if cursor.fetchone()[0] is None:
            raise SchemaError(
                "the database has no migration.loaded_file; create the bookkeeping with: "
                'migration-pipeline ddl <profile> | psql "$MIGRATION_DATABASE_URL"'
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
        """Upsert a batch, and record `receipt` with it, in one transaction. Raises `DatabaseError`."""
        with self._transaction() as cursor:
            for row_class, data in encoded.parts:
                statements = self._statements[row_class]
                cursor.copy_expert(statements.copy, io.BytesIO(data), COPY_READ_BYTES)
                cursor.execute(statements.upsert)
            if receipt is not None:
                cursor.execute(RECEIPT, self._receipt(receipt))

    def _receipt(self, report: FileReport) -> dict[str, Any]:
        assert self.file is not None, "set `file` before its last batch"  # noqa: S101
        values: dict[str, Any] = msgspec.to_builtins(report) | msgspec.to_builtins(self.file)
        return values | {name: msgspec.json.encode(values[name]).decode() for name in ("skipped", "rows")}

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """One transaction: committed if the block ends well, rolled back if not."""
        try:
            with self._connection, self._connection.cursor() as cursor:
                yield cursor
        except psycopg2.Error as error:
            raise DatabaseError(explain(error)) from error


def connect(url: str) -> Any:
    """Connect, with what makes results the same everywhere: UTF-8 and the time zone UTC. Raises `DatabaseError`."""
    try:
        connection = psycopg2.connect(url, application_name="migration_pipeline", client_encoding="UTF8")
        with connection, connection.cursor() as cursor:
            # Times without an offset mean UTC whatever the server's or the operator's zone is.
            cursor.execute("SET SESSION TIME ZONE 'UTC'")
    except psycopg2.Error as error:
        raise DatabaseError(
            f"no database: {str(error).strip().splitlines()[0]}; check MIGRATION_DATABASE_URL, and that the "
            "server runs (the embedded one runs under `make dev`)"
        ) from error
    return connection


def explain(error: psycopg2.Error) -> str:
    """Say what PostgreSQL refused by its SQLSTATE and names; its own text may echo values."""
    detail = error.diag
    names = [
        f"{label} {value}"
        for label, value in (
            ("table", detail.table_name),
            ("column", detail.column_name),
            ("constraint", detail.constraint_name),
            ("type", detail.datatype_name),
        )
        if value
    ]
    kind = type(error).__name__
    return f"PostgreSQL: {kind} (SQLSTATE {error.pgcode or 'none'}){': ' if names else ''}{', '.join(names)}"


def _statements(number: int, table: Table) -> _Statements:
    """Compose one table's SQL. Identifiers are quoted by psycopg2, never pasted."""
    target = sql.Identifier(*(part for part in (table.schema, table.name) if part))
    staging = sql.Identifier("pg_temp", f"staging_{number}")
    columns = sql.SQL(", ").join(sql.Identifier(c.name) for c in table.columns)
    key = sql.SQL(", ").join(map(sql.Identifier, table.key))
    others = [c.name for c in table.columns if c.name not in table.key]
    action: sql.Composable = sql.SQL("DO NOTHING")
    if others:
        action = sql.SQL("DO UPDATE SET {}").format(
            sql.SQL(", ").join(sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in others)
        )
    return _Statements(
        stage=sql.SQL("CREATE TEMP TABLE {} ON COMMIT DELETE ROWS AS SELECT {} FROM {} WITH NO DATA").format(
            sql.Identifier(f"staging_{number}"), columns, target
        ),
        copy=sql.SQL("COPY {} ({}) FROM STDIN WITH ({})").format(staging, columns, sql.SQL(COPY_OPTIONS)),
        upsert=sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT ({}) {}").format(
            target, columns, columns, staging, key, action
        ),
    )
