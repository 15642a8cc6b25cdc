"""A connection that lasts: transactions that run again after transient faults, and can be cancelled.

SQLSTATE decides what is a transient fault (`migration_pipeline.targets.faults`), never the driver's
exception classes.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import psycopg2
from typing_extensions import Self

from migration_pipeline.engine.threads import together
from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.connection import (
    APPLICATION,
    END_SESSION,
    DatabaseError,
    DatabaseSettings,
    begin,
    no_database,
    open_connection,
    refused,
)
from migration_pipeline.targets.faults import FEW_TRIES, Fault, fault_of, wait_seconds
from migration_pipeline.units import counted

Result = TypeVar("Result")

STALLED_SECONDS = 15.0
"""How much longer than the server's own time limit a batch may take before its connection is given up: the
limit is the server's, and when the network drops silently, it never reaches us."""

WATCH_SECONDS = 1.0
"""Seconds between two checks of the running statement's time."""


class LostCommitsError(DatabaseError):
    """The server that answers lacks what a session has committed."""

    there = 0
    """Number of the last of its transactions that is left."""


class Session:
    """One connection at a time to PostgreSQL, opened when it is needed. A context manager, or `open` before and `close` after.

    Each transient fault is reported to `on_retry`. Nothing of it outlasts a transaction: behind a pooler each may have
    another server process.

    A session with `hold` has one transaction, which `close` rolls back. A fault in it costs the work that met it, which runs
    again; a lost connection costs all.

    One with `chain` counts its transactions in the database, and goes on only where all of them still are. After a failover another
    server may answer, which never had the last ones, and behind a pooler without any fault that we would see.
    """

    def __init__(
        self,
        url: str,
        settings: DatabaseSettings,
        on_retry: Callable[[str], None] = lambda _: None,
        *,
        hold: bool = False,
        chain: bool = False,
    ) -> None:
        self._url = url
        self._settings = settings
        self.on_retry = on_retry
        self._hold = hold
        self._chain = chain
        self.committed = 0
        """Number of the last transaction of which it is known that it was committed."""
        self._connection: Any = None
        self._cancelled = threading.Event()
        self._left = threading.Event()
        self._deadline = math.inf
        self.token = secrets.token_hex(6)
        """Part of the names of temporary objects, which makes them unique."""
        self._mark = f"{APPLICATION} {self.token}"
        self._lost = False
        self._chance = random.Random()  # spreads retries, keeps no secret
        self.retries = 0
        """Transactions that ran again so far."""

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def open(self) -> None:
        """Begin to watch over the connection's time."""
        threading.Thread(target=self._watch, name="watch the database", daemon=True).start()

    def close(self, failed: bool = False) -> None:
        """Drop the connection; with `failed`, even one that a statement in another thread still holds."""
        self._left.set()
        if failed:
            # A write that could not be cancelled would hold the connection, and close() waits for it.
            self._hang_up()
        self._drop()

    def cancel(self) -> None:
        """Make a transaction in another thread fail soon, for good."""
        self._cancelled.set()
        with contextlib.suppress(psycopg2.Error, AttributeError):
            self._connection.cancel()

    def expect_answer(self) -> None:
        """Begin to count the time of a statement again."""
        self._deadline = time.monotonic() + self._settings.statement_timeout_seconds + STALLED_SECONDS

    def persistently(self, work: Callable[[Any], Result]) -> Result:
        """Do `work` in a transaction, and again after each transient fault. Raises `DatabaseError`.

        A connection that is lost during COMMIT leaves open whether the transaction is there. It runs again:
        `work` has to see for itself, such as by finding rows that are there already.
        """
        began, attempt = time.monotonic(), 0
        while True:
            try:
                return self._transaction(work)
            except psycopg2.Error as error:
                told, again = self._told(error)
                if not again:
                    raise told from None
                wait = wait_seconds(attempt, error.pgcode, self._chance)
                attempt += 1
                spent = time.monotonic() - began
                few = FEW_TRIES.get(error.pgcode or "", attempt + 1)
                if attempt >= few or spent + wait > self._settings.retry_seconds:
                    raise told.reworded(
                        f"{told}; gave up after {counted(attempt, 'try', 'tries')} in {spent:,.0f} s: once the database works "
                        "again, rerun the file"
                    ) from None
                self.retries += 1
                self.on_retry(f"{told}; try {attempt + 1} in {wait:.1f} s")
                if self._cancelled.wait(wait):
                    raise told from None

    def _told(self, error: psycopg2.Error) -> tuple[DatabaseError, bool]:
        """Make the error that a user sees, and say whether to try again, over a new connection where that is lost."""
        connected = self._connection is not None
        fault = fault_of(error, connected=connected)
        told = refused(error) if connected or error.pgcode else no_database(error, self._url)
        if fault is Fault.RECONNECT:
            self._lost = self._lost or connected
            self._drop()
            if self._hold and connected:
                return told.reworded(f"{told}, and its transaction with it; start again"), False
        return told, fault in (Fault.AGAIN, Fault.RECONNECT) and not self._cancelled.is_set()

    def expect_commits(self, cursor: Any) -> None:
        """Raise `LostCommitsError` unless all that this session has committed is in the database that `cursor` is of."""
        if (there := self._there(cursor)) < self.committed:
            raise self._lost_but(there)

    def _there(self, cursor: Any) -> int:
        cursor.execute(bookkeeping.SESSION_THERE, (self.token,))
        found = cursor.fetchone()
        return int(found[0]) if found else 0

    def _lost_but(self, there: int) -> LostCommitsError:
        lost = LostCommitsError(
            "the database no longer has what was committed here: the server that answers now lacks "
            f"{counted(self.committed - there, 'transaction')}, as a replica does that was promoted before it had all of the writer, or "
            "a restored backup; run it again"
        )
        lost.there = there
        return lost

    def interruptibly(self, work: Callable[[Any], Result]) -> Result:
        """Do `work` as `persistently` does, in a thread: an interruption of this one cancels it. Raises `DatabaseError`."""
        results: list[Result] = []
        together([lambda: results.append(self.persistently(work))], self.cancel, "transaction")
        return results[0]

    def _transaction(self, work: Callable[[Any], Result]) -> Result:
        """Do `work` in one transaction: committed if it ends well, rolled back if not."""
        if fresh := self._connection is None:
            self._connection = open_connection(self._url)
        self.expect_answer()
        try:
            with self._connection.cursor() as cursor:
                if fresh or not self._hold:
                    begin(cursor, self._patience, self._mark)
                if self._lost:
                    cursor.execute(END_SESSION, (self._mark,))
                    self._lost = False
                if not self._hold:
                    result, number = self._linked(cursor, work) if self._chain else (work(cursor), 0)
                    self._connection.commit()
                    self.committed = number
                else:
                    cursor.execute("SAVEPOINT held")
                    result = work(cursor)
                    cursor.execute("RELEASE SAVEPOINT held")
        except BaseException:
            self._roll_back(fresh)
            raise
        finally:
            self._deadline = math.inf
        return result

    def _linked(self, cursor: Any, work: Callable[[Any], Result]) -> tuple[Result, int]:
        """Do `work` behind all that was committed before; returns the number of its transaction as well."""
        if self.committed:
            cursor.execute(bookkeeping.SESSION_GOES_ON, (self.token, self.committed))
            found = cursor.fetchone()
            if found is None:
                raise self._lost_but(self._there(cursor))
            return work(cursor), found[0]
        result = work(cursor)  # it looks whether there is a bookkeeping at all
        cursor.execute(bookkeeping.NEW_SESSION, (self.token,))
        (number,) = cursor.fetchone()
        return result, number

    @property
    def _patience(self) -> DatabaseSettings:
        """Of a transaction that is held, the server waits for as long as reading takes."""
        return msgspec.structs.replace(self._settings, idle_seconds=0) if self._hold else self._settings

    def _roll_back(self, fresh: bool) -> None:
        # Somebody who gave up on this thread may have dropped the connection.
        with contextlib.suppress(psycopg2.Error, AttributeError):
            if self._hold and not fresh:
                with self._connection.cursor() as cursor:
                    cursor.execute("ROLLBACK TO SAVEPOINT held")
            else:
                self._connection.rollback()
                if self._hold:
                    self._drop()  # its settings are gone with it

    def _watch(self) -> None:
        """Hang up on a server that does not answer in time, so that the transaction runs again."""
        while not self._left.wait(WATCH_SECONDS):
            if time.monotonic() > self._deadline:
                self._hang_up()

    def _hang_up(self) -> None:
        """Make whatever waits for the server fail, in whatever thread."""
        connection = self._connection
        if connection is not None:
            with (
                contextlib.suppress(OSError, psycopg2.Error),
                socket.socket(fileno=os.dup(connection.fileno())) as wire,
            ):
                wire.shutdown(socket.SHUT_RDWR)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg2.Error):
                connection.close()
