"""Connections to PostgreSQL, and texts for its errors that hold no values of items."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Annotated, Any, TypeVar

import msgspec
import psycopg2
from msgspec import Meta
from psycopg2.extensions import parse_dsn
from psycopg2.sql import Composed

from migration_pipeline.errors import MigrationError
from migration_pipeline.targets.address import NOWHERE, Address, address_of
from migration_pipeline.targets.faults import advice, why_bad
from migration_pipeline.targets.secrets import SecretError, is_reference, resolve, without_source

Record = TypeVar("Record", bound=msgspec.Struct)

APPLICATION = "migration_pipeline"
"""Our name in pg_stat_activity."""

SETTINGS = {
    # What decides results, whatever the server, the database, the role or another client of a pool has set.
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",  # of times without an offset
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "xmloption": "content",
    "standard_conforming_strings": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "array_nulls": "on",  # or NULL in an array is a text of four letters
    "row_security": "off",  # rows that a policy hides are an error then, and not missing
    # A batch is joined to its table by the key's index, however large the table and whatever its statistics say: the
    # staging table has none, and a plan that reads the whole target once a batch would be a disaster.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_nestloop": "on",
    "enable_indexscan": "on",
    "enable_bitmapscan": "on",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}
"""Set for each transaction alone: behind a pooler the next one may have another server process, and others have this one."""

PARAMETERS: dict[str, tuple[str, str | None]] = {
    # After a failover the old writer may answer still, but takes no writes: only the writer will do.
    "target_session_attrs": ("read-write", "PGTARGETSESSIONATTRS"),
    # A server that does not answer within it is tried again; libpq's own default is to wait for ever.
    "connect_timeout": ("10", "PGCONNECT_TIMEOUT"),
    # A peer that disappeared silently (a failover, a firewall) is noticed after 30 + 3 * 10 idle seconds,
    # or 60 seconds after something was sent to it; the kernel's own defaults take hours.
    "keepalives_idle": ("30", None),
    "keepalives_interval": ("10", None),
    "keepalives_count": ("3", None),
    "tcp_user_timeout": ("60000", None),
}
"""libpq's parameters that we set unless the URL or libpq's own environment does: value, variable."""


IDLE_SECONDS = 60.0
"""How long the server waits for us within a transaction. When the network drops silently, it would otherwise
hold the locks of a transaction that was given up long ago, and the next try would wait for them."""


END_SESSION = """
SELECT pg_terminate_backend(pid)
  FROM pg_stat_activity
 WHERE application_name = %s AND usename = current_user AND pid <> pg_backend_pid()
"""
"""Ends a transaction that we lost: in the middle of a COPY the server may wait for its bytes for ever, with its locks
held. It bears our mark; a process and its start would be a pooler's, which others use by now. A role may end its own."""


class DatabaseSettings(msgspec.Struct, frozen=True):
    """How patient a load is with its database."""

    retry_seconds: Annotated[
        float,
        Meta(
            ge=0,
            description="How long a transaction is tried again after transient faults of the database. "
            "An Aurora failover takes up to three minutes.",
        ),
    ] = 300.0
    lock_timeout_seconds: Annotated[
        float,
        Meta(
            gt=0,
            description="How long a statement waits for a lock before its transaction is tried again.",
        ),
    ] = 30.0
    statement_timeout_seconds: Annotated[
        float,
        Meta(
            gt=0,
            description="How long a statement may take. A batch takes less than a second where nothing is wrong.",
        ),
    ] = 300.0
    idle_seconds: float = IDLE_SECONDS
    """How long the server waits for us within a transaction, though no longer than for a statement; 0: for ever."""


ROLE_REFUSED = (
    "authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "not permitted to log in",
    'role "…" does not exist',
)
TLS_REFUSED = (
    "certificate",
    "server does not support SSL",
    "SSL is required",
    "SSL error",
    "does not match host name",
)
"""Parts of libpq's texts, by what is wrong."""


class DatabaseError(MigrationError):
    """PostgreSQL refused something; the text holds its `sqlstate` and names, never values."""


def open_connection(url: str) -> Any:
    """Connect to the writer, in UTF-8; `begin` each transaction. Raises `psycopg2.Error`.

    A password that AWS keeps or makes is asked for here, at each connection.
    """
    url, secret = resolve(url)
    given = parse_dsn(url)
    ours: dict[str, Any] = {
        name: value
        for name, (value, variable) in PARAMETERS.items()
        if name not in given and not (variable and os.environ.get(variable))
    }
    ours |= {"application_name": APPLICATION, "client_encoding": "UTF8", **secret}
    connection = psycopg2.connect(url, **ours)
    if connection.info.parameter_status("standard_conforming_strings") == "off":
        # psycopg2 looks once, when it connects, and libpq each time: a change in between would spoil what they quote.
        connection.close()
        options = given.get("options") or os.environ.get("PGOPTIONS") or ""
        ours["options"] = f"{options} -c standard_conforming_strings=on"
        connection = psycopg2.connect(url, **ours)
    connection.set_session(isolation_level="READ COMMITTED")  # sent with each BEGIN
    return connection


BEGUN = "migration_pipeline.begun"
"""A setting that only a server has on which one of our transactions was begun; behind a pooler it may be empty later."""

SET_BEFORE_17 = (
    "SET LOCAL search_path TO DEFAULT;"
    " SELECT set_config('search_path', current_setting('search_path') || ', pg_temp', true)"
    + "".join(
        f", set_config('{name}', '{value}', true)" for name, value in {**SETTINGS, BEGUN: "yes"}.items()
    )
    + "".join(
        f", set_config('{name}', %({name})s, true)"
        for name in (
            "lock_timeout",
            "statement_timeout",
            "idle_in_transaction_session_timeout",
            "application_name",
        )
    )
    + "; SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
)
"""Sets `SETTINGS` and the limits for a transaction; made once, as to put it together takes longer than the statement does."""

SET = f"{SET_BEFORE_17}; SET LOCAL transaction_timeout = 0"
"""The same where a whole transaction may have a limit: our statements have their own."""

READ_ELSEWHERE = (
    "a pooler sends reads of our transaction to another server, such as a replica that lags: connect to the writer itself, or "
    "switch off what does it (pgpool-II: load_balance_mode = off, or disable_load_balance_on_write = 'transaction')"
)


def begin(cursor: Any, settings: DatabaseSettings, mark: str = APPLICATION) -> None:
    """Set, for the transaction that begins here, what makes results the same everywhere, and the time limits.

    `mark` is the transaction's name in pg_stat_activity. Raises `psycopg2.Error`, and `DatabaseError` if another server answers than
    the one on which that was set: what is read there proves nothing.
    """
    limits = {
        "lock_timeout": settings.lock_timeout_seconds,
        "statement_timeout": settings.statement_timeout_seconds,
        "idle_in_transaction_session_timeout": min(settings.idle_seconds, settings.statement_timeout_seconds),
    }
    # A name is no temporary table's that another client of a pool has left. A commit that does not wait for the disk could
    # lose a batch of a file that is recorded as loaded. All in one: each file has several transactions.
    cursor.execute(
        SET if cursor.connection.server_version >= 170000 else SET_BEFORE_17,
        {name: str(int(seconds * 1000)) for name, seconds in limits.items()} | {"application_name": mark},
    )
    # Each time: pgpool-II takes the writer for as long as a replica lags too far.
    cursor.execute("SELECT current_setting(%s, true)", (BEGUN,))
    if cursor.fetchone() != ("yes",):
        raise DatabaseError(READ_ELSEWHERE)


def connect(url: str) -> Any:
    """Connect once. Raises `DatabaseError`."""
    try:
        return open_connection(url)
    except psycopg2.Error as error:
        raise no_database(error, url) from None


@contextmanager
def transaction(
    url: str,
    settings: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
) -> Iterator[Any]:
    """A cursor in one transaction on a connection of its own, committed if all ends well. Raises `DatabaseError`."""
    connection = connect(url)
    try:
        with connection, connection.cursor() as cursor:
            begin(cursor, settings)
            yield cursor
    except psycopg2.Error as error:
        raise refused(error) from None  # its own text may hold more than names
    finally:
        connection.close()


def read_as(kind: type[Record], cursor: Any, statement: str, parameters: Mapping[str, Any]) -> list[Record]:
    """Run a statement, and read its rows as structs, whose fields are named as its columns. Raises `psycopg2.Error`."""
    cursor.execute(statement, parameters)
    names = [column.name for column in cursor.description]
    return [msgspec.convert(dict(zip(names, row, strict=True)), kind) for row in cursor.fetchall()]


def no_database(error: psycopg2.Error, url: str) -> DatabaseError:
    """Make the error for a failed connection. libpq's own must not be chained: it may quote parts of the URL."""
    if isinstance(error, SecretError):
        return DatabaseError(f"no database: {error}")
    if isinstance(error, psycopg2.ProgrammingError):
        return DatabaseError(
            "no database: MIGRATION_DATABASE_URL is not a valid connection URL; write it as "
            "postgresql://user@host:port/database, with %-escapes for special characters in a password"
        )
    if "unsupported startup parameter: options" in str(error):
        return DatabaseError(
            "no database: the pooler accepts no options; remove them from the URL. If the URL has none, turn on the server's "
            "standard_conforming_strings, which the pooler keeps us from doing: ALTER ROLE … SET standard_conforming_strings = on"
        )
    # libpq may echo the password, so quoted text is redacted. A quote inside the password does not end it.
    reason = re.sub(r'".*?"(?=[\s,:]|$)', '"…"', (str(error).strip().splitlines() or ["connection lost"])[0])
    address = NOWHERE if is_reference(url) else address_of(without_source(url)[0])
    return DatabaseError(_told_of_failure(reason, address))


def _told_of_failure(reason: str, address: Address) -> str:
    """Say what kind of failure a connection met, where, and what to do."""
    where = f" ({address})" if address != NOWHERE else ""
    if any(phrase in reason for phrase in ROLE_REFUSED):
        return (
            f"the server refused the role{where}: {reason}; check role and password in MIGRATION_DATABASE_URL, and the "
            "server's pg_hba.conf"
        )
    if any(phrase in reason for phrase in TLS_REFUSED):
        return (
            f"no TLS connection{where}: {reason}; check sslmode, sslrootcert and the host's name in MIGRATION_DATABASE_URL, "
            "and the server's certificate"
        )
    if "does not exist" in reason:
        return f"no database: the server has no such database{where}: {reason}; check MIGRATION_DATABASE_URL, or create it"
    return (
        f"no database: {reason}{where}; check MIGRATION_DATABASE_URL, and that the server is running "
        "(`migration-pipeline dev` starts the embedded one)"
    )


def refused(error: psycopg2.Error) -> DatabaseError:
    """Make the error that a user sees of PostgreSQL's."""
    return DatabaseError(explain(error), sqlstate=error.pgcode)


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
    if error.pgcode is None:
        return "PostgreSQL: the connection was lost"
    next_step = advice(error.pgcode)
    return (
        f"PostgreSQL: {type(error).__name__} (SQLSTATE {error.pgcode}){': ' if names else ''}{', '.join(names)}"
        f"{'; ' if next_step else ''}{next_step}"
    )


def table_of_error(error: psycopg2.Error) -> str | None:
    """Name the table that refused a row; None where PostgreSQL does not say."""
    schema, name = error.diag.schema_name, error.diag.table_name
    return name if not schema or schema == "public" or not name else f"{schema}.{name}"


def reason_of_refusal(error: psycopg2.Error, columns: Iterable[str]) -> str:
    """Say why a row was refused, in words that hold no values: the kind, SQLSTATE, column and constraint.

    PostgreSQL names the column of a value that it cannot read only in the error's context, ``COPY
    customers, line 3, column created_at: "…"``, which ends in the value, or in the name where input is binary. So only a
    name in `columns` is reported.
    """
    detail = error.diag
    column = detail.column_name
    if column is None and (
        found := re.search(
            rf"^COPY .*, line \d+, column ({'|'.join(map(re.escape, columns))})(?:: |$)",
            detail.context or "",
            re.MULTILINE,
        )
    ):
        column = found[1]
    names = [f"column {column}"] if column else []
    if detail.constraint_name:
        names.append(f"constraint {detail.constraint_name}")
    why = why_bad(error.pgcode or "", named=bool(names))
    return " ".join([f"{type(error).__name__} (SQLSTATE {error.pgcode})", *names]) + (
        f": {why}" if why else ""
    )


COPY_BYTES = 1 << 20
"""Bytes handed to libpq at once: it copies them, and between two of them this thread waits for Python's lock."""


def copy_in(cursor: Any, statement: Composed, data: bytes) -> int:
    """COPY rows in; returns how many were taken. Raises `psycopg2.Error`."""
    with _rows_off_stderr():
        cursor.copy_expert(statement, io.BytesIO(data), COPY_BYTES)
    return int(cursor.rowcount)


_lock = threading.Lock()
_copies = 0
_usual_hook = sys.excepthook


@contextmanager
def _rows_off_stderr() -> Iterator[None]:
    """Keep rows off stderr while COPYs run: if a session is ended, psycopg2 prints an error that may hold a row.

    It prints by `sys.excepthook`. A second error is raised, so nothing is lost.
    """
    global _copies, _usual_hook
    with _lock:
        _copies += 1
        if _copies == 1:
            _usual_hook, sys.excepthook = sys.excepthook, _hook
    try:
        yield
    finally:
        with _lock:
            _copies -= 1
            if not _copies:
                sys.excepthook = _usual_hook


def _hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if not (kind is SystemError and isinstance(error.__cause__, psycopg2.Error)):
        _usual_hook(kind, error, traceback)
