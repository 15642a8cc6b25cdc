"""Where a connection URL leads, as far as it may be shown: host, port, database and role, never a password."""

from __future__ import annotations

import os
import re

import msgspec
import psycopg2
from psycopg2.extensions import parse_dsn

PARTS = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER"}
"""libpq's names of what is shown, and the variables that stand in for them."""

PLAIN = {"host": r"[\w.,/:\-]+", "port": r"[\d,]+", "dbname": r"[\w.$\-]+", "user": r"[\w.$\-]+"}
"""What each looks like. A URL with a mistake in it may have a piece of its password in any of them."""


class Address(msgspec.Struct, frozen=True):
    """What may be shown of a URL; a part that neither it nor the environment names is ""."""

    host: str = ""
    port: str = ""
    database: str = ""
    role: str = ""

    def __str__(self) -> str:
        server = self.host + (f":{self.port}" if self.port and not self.host.startswith("/") else "")
        words = [
            f"database {self.database}" if self.database else "",
            f"at {server}" if server else "",
            f"as {self.role}" if self.role else "",
        ]
        return " ".join(filter(None, words))

    @property
    def is_local(self) -> bool:
        """Whether it leads to this machine, as far as the name tells."""
        return not self.host or self.host.startswith("/") or self.host in ("localhost", "127.0.0.1", "::1")


NOWHERE = Address()


def address_of(url: str) -> Address:
    """Read where a URL leads. One that is odd in any part gives `NOWHERE`: what stands there may be a secret."""
    try:
        given = parse_dsn(url)
    except psycopg2.Error:
        return NOWHERE
    # The environment's own are no part of the URL, and are not mistaken for others.
    if any(given.get(name) and not re.fullmatch(pattern, given[name]) for name, pattern in PLAIN.items()):
        return NOWHERE
    host, port, database, role = (given.get(name) or os.environ.get(PARTS[name], "") for name in PARTS)
    return Address(host, port, database, role)
