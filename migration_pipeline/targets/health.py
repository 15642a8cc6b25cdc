"""What kind of server a URL leads to, and what the role may do there, for a check before any work."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import msgspec
import psycopg2

from migration_pipeline.targets.address import Address
from migration_pipeline.targets.connection import begin, no_database, open_connection, refused
from migration_pipeline.targets.ddl import PATIENCE


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What a connection found."""

    address: Address
    """Of the connection that was made."""
    version: str
    version_number: int
    """As libpq has it: 180001 is 18.1."""
    aurora: bool
    encoding: str
    protocol: str
    """TLS's, such as ``TLSv1.3``; "" without TLS."""
    mode: str
    """The connection's sslmode; "" for libpq's default."""
    pooled: bool
    """Whether something between hands the connection to a server process of its choice."""
    temporary: bool
    """Whether the role may make temporary tables."""
    may_create: bool
    """Whether the role may create schemas, and tables in ``public``."""
    bookkeeping: bool
    """Whether there is a schema ``migration``."""
    unsafe: tuple[str, ...]
    """Settings of the server that are off, and without which its crash may lose or spoil what it has committed."""


HEALTH = """
SELECT current_database(), current_user, current_setting('server_version'), current_setting('server_encoding'),
       pg_backend_pid(), has_database_privilege(current_database(), 'TEMPORARY'),
       has_database_privilege(current_database(), 'CREATE')
           AND coalesce(has_schema_privilege(to_regnamespace('public')::oid, 'CREATE'), false),
       to_regnamespace('migration') IS NOT NULL,
       EXISTS (SELECT FROM pg_proc WHERE proname = 'aurora_replica_status'),
       ARRAY(SELECT name FROM unnest(ARRAY['fsync', 'full_page_writes']) AS name WHERE current_setting(name) = 'off')
"""


def read_health(url: str) -> Health:
    """Connect once and look. Raises `DatabaseError`."""
    try:
        connection = open_connection(url)
    except psycopg2.Error as error:
        raise no_database(error, url) from None
    with closing(connection):
        try:
            with connection, connection.cursor() as cursor:
                begin(cursor, PATIENCE)
                cursor.execute(HEALTH)
                return _health(connection.info, cursor.fetchone())
        except psycopg2.Error as error:
            raise refused(error) from None


def _health(info: Any, row: tuple[Any, ...]) -> Health:
    database, role, version, encoding, process, temporary, may_create, bookkeeping, aurora, unsafe = row
    return Health(
        address=Address(info.host or "", str(info.port or ""), database, role),
        version=version,
        version_number=info.server_version,
        aurora=aurora,
        encoding=encoding,
        protocol=(info.ssl_attribute("protocol") or "TLS") if info.ssl_in_use else "",
        mode=info.dsn_parameters.get("sslmode", ""),
        # A pooler answers a new client with a process number of its own.
        pooled=info.backend_pid != process,
        temporary=temporary,
        may_create=may_create,
        bookkeeping=bookkeeping,
        unsafe=tuple(unsafe),
    )
