"""Dagster's SQLite storage for the local stack, with fewer waits for the disk and without writes that are cut off.

Dagster keeps a database for the log of each run, and makes it statement by statement, each in a transaction of its own that waits
for the disk. Creating a run takes most of a second that way. Here a new log is a copy of an empty one, events that belong
together are written in one transaction, and the database that all runs share stays open.

Files are as Dagster's own storage makes them: either can go on with those of the other. After a power cut the last events may be
missing, as SQLite documents for ``synchronous=NORMAL``; the receipts in the target database are not touched by that.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from dagster import EventLogEntry
from dagster._core.events import ASSET_EVENTS
from dagster._core.storage.event_log import SqliteEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.runs import SqliteRunStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy import create_engine, event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool, QueuePool

ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals by which a run is terminated, or its worker ends. Their handlers may raise."""


class LocalStorage(DagsterSqliteStorage):
    """Dagster's SQLite storage of one folder, for the processes of one machine."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        self._run_storage = LocalRuns.from_local(os.path.join(base_dir, "history"))
        self._event_log_storage = LocalEventLog(os.path.join(base_dir, "history", "runs", ""))

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> LocalStorage:
        """Make it from dagster.yaml."""
        return cls.from_local(inst_data=inst_data, **config_value)


class LocalRuns(SqliteRunStorage):
    """The runs and backfills. Its connections stay open."""

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Yield a connection with a transaction, which no signal cuts off."""
        engine = _kept_open(self, self._conn_string)
        with signals_put_off(), engine.connect() as connection, connection.begin():
            yield connection


class LocalEventLog(SqliteEventLogStorage):
    """The events: a database for each run, and the index that all of them share."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        self._tables: set[str] = set()
        self._template = b""
        self._last: tuple[str, Engine] | None = None
        super().__init__(base_dir, inst_data)

    def has_table(self, table_name: str) -> bool:
        """Whether the index has a table. Asked for each event; a table that is there stays."""
        if table_name not in self._tables and super().has_table(table_name):
            self._tables.add(table_name)
        return table_name in self._tables

    @contextmanager
    def _connect(self, shard: str) -> Iterator[Connection]:
        # The lock is Dagster's. It is taken after signals are put off: an exception between them would keep it for ever.
        with signals_put_off(), self._db_lock:
            if shard not in self._initialized_dbs:
                self._begin(shard)
                self._initialized_dbs.add(shard)
            with self._engine_of(shard).connect() as connection, connection.begin():
                yield connection

    def _engine_of(self, shard: str) -> Engine:
        """The engine of the index, or of the run that was asked for last: a worker writes thousands of events of one run."""
        conn_string = self.conn_string_for_shard(shard)
        if shard == INDEX_SHARD_NAME:
            return _kept_open(self, conn_string)
        if self._last is None or self._last[0] != shard:
            if self._last:
                self._last[1].dispose()
            self._last = shard, _engine(conn_string, QueuePool)
        return self._last[1]

    def store_event(self, event: EventLogEntry) -> None:
        """Store an event, and tell who follows the run: they look at the time of the file, and not of the log beside it."""
        super().store_event(event)
        with suppress(FileNotFoundError):  # all logs were wiped
            os.utime(self.path_for_shard(event.run_id))

    def _begin(self, shard: str) -> None:
        """Make a database if it is not there: all at once, as a copy, so that nobody ever sees a part of it."""
        path = Path(self.path_for_shard(shard))
        if path.exists():
            engine = _engine(self.conn_string_for_shard(shard), NullPool)
            self._initdb(engine)
            return
        fresh = path.with_name(f".{shard}-{os.getpid()}.new")
        fresh.write_bytes(self._empty())
        try:
            os.link(fresh, path)  # unlike a renaming, it fails where another process was faster
        except FileExistsError:
            pass
        finally:
            fresh.unlink()

    def _empty(self) -> bytes:
        """A database without events, as its file; made once by a process."""
        if not self._template:
            with tempfile.TemporaryDirectory(prefix="event-log-") as folder:
                SqliteEventLogStorage(folder)  # makes the index, which has the same tables
                self._template = Path(folder, f"{INDEX_SHARD_NAME}.db").read_bytes()
        return self._template

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store events in one transaction of each database, if they are of one run and of assets; else one by one."""
        run_ids = {each.run_id for each in events}
        if len(run_ids) != 1 or not all(
            each.is_dagster_event and each.dagster_event_type in ASSET_EVENTS for each in events
        ):
            for each in events:
                self.store_event(each)
            return
        statements = [self.prepare_insert_event(each) for each in events]
        with self.run_connection(run_ids.pop()) as connection:
            for statement in statements:
                connection.execute(statement)
        with self.index_transaction() as connection:
            for each, statement in zip(events, statements, strict=True):
                event_id = cast("Any", connection.execute(statement).inserted_primary_key)[0]
                self._store_asset_event_tags(connection, [each], [event_id])
                self._store_asset_event(connection, each, event_id)


@contextmanager
def signals_put_off() -> Iterator[None]:
    """Put off Terminate and the end of a worker until the context ends.

    Their handlers raise. In the middle of a write the exception kept the transaction, and with it SQLite's lock, for as long as
    somebody held the traceback: all others waited for 30 seconds, and failed.
    """
    held: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # no other thread gets their exceptions
        for sign in ENDING:
            if callable(handler := signal.getsignal(sign)):
                before[sign] = handler
                signal.signal(sign, lambda number, _frame: held.append(number))
    try:
        yield
    finally:
        for put_off, handler in before.items():
            signal.signal(put_off, handler)
        if held:
            signal.raise_signal(held[0])


def _kept_open(owner: Any, conn_string: str) -> Engine:
    """The engine of a storage whose connections stay open: with the last one, SQLite would copy its log and wait for the disk."""
    engine: Engine | None = getattr(owner, "_kept", None)
    if engine is None:
        engine = owner._kept = _engine(conn_string, QueuePool)
    return engine


def _engine(conn_string: str, pool: Any) -> Engine:
    """Make an engine whose commits do not each wait for the disk. SQLite stays consistent, whatever happens."""
    # No limit to connections: Dagster has none, and its webserver asks from many threads.
    limits = {"max_overflow": -1} if pool is QueuePool else {}
    engine = create_engine(
        conn_string, poolclass=pool, connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS}, **limits
    )
    event.listen(
        engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=NORMAL")
    )
    return engine
