"""The throttle: what the target says of its load, and an operator of the migration, decides when a load may write.

As in gh-ost a single reason is enough, and the first one is shown. A thread asks the target each second, on a connection of
its own: how far replicas are behind, how many backends are active beside ours, what a query of the user's own returns, and
what the newest row of ``migration.throttle`` says.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from migration_pipeline.engine.pace import Pause
from migration_pipeline.errors import MigrationError
from migration_pipeline.targets import bookkeeping
from migration_pipeline.targets.connection import APPLICATION, DatabaseError, DatabaseSettings, read_as
from migration_pipeline.targets.ddl import check_bookkeeping
from migration_pipeline.targets.records import Steering
from migration_pipeline.targets.session import Session
from migration_pipeline.units import counted

CHECK_SECONDS = 1.0
"""Seconds between two checks."""

POLL_SECONDS = 0.2
"""How often a load that waits looks whether to go on waiting."""

BLIND_SECONDS = 10.0
"""Seconds without an answer after which a load with limits pauses: it can no longer know that they are kept."""

STAY_ALIVE_SECONDS = 20.0
"""How often a load that waits tells others that it is alive."""

SECONDS_OF_A_BATCH = 10.0
"""With a rate, a batch has the items of so many seconds at most: it is written at once, and so in between nothing is."""

GAP_SECONDS, GAP_GROWTH, LONGEST_GAP_SECONDS = 5.0, 1.1, 300.0
"""Pauses are told at once, and then after growing gaps, so that a log shows life, and stays short."""

ASKING = DatabaseSettings(retry_seconds=0, lock_timeout_seconds=5, statement_timeout_seconds=5)
"""A check that takes longer is given up, and made again."""

PAUSED, LAG, ACTIVE, QUERY, RATE, UNKNOWN = (
    "paused",
    "replica lag",
    "active backends",
    "query",
    "rate",
    "unknown",
)
"""The kinds of reasons."""

IS_AURORA = """
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'aurora_replica_status' AND pronamespace = 'pg_catalog'::regnamespace)
"""

MAY_SEE_OTHERS = "SELECT pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'), current_user"
"""Otherwise columns of other roles' backends are NULL, and everything would seem to be at rest."""

LAG_OF_AURORA = """
SELECT coalesce(max(replica_lag_in_msec) / 1000.0, 0)::float8
  FROM pg_catalog.aurora_replica_status()
 WHERE session_id <> 'MASTER_SESSION_ID' AND last_update_timestamp > now() - interval '300 seconds'
"""
"""A replica that was removed stays listed; its row is no longer updated."""

LAG_OF_REPLICAS = """
SELECT coalesce(extract(epoch FROM max(replay_lag)), 0)::float8
  FROM pg_stat_replication
 WHERE replay_lsn IS DISTINCT FROM pg_current_wal_lsn()
"""
"""On an idle system `replay_lag` is NULL, or for some seconds the last one: a replica that has replayed all has no lag."""

ACTIVE_BACKENDS = f"""
SELECT count(*)
  FROM pg_stat_activity
 WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
   AND NOT starts_with(application_name, '{APPLICATION}')
"""
"""Those that wait for a lock or the disk are active, too."""


class ThrottleSettings(msgspec.Struct, frozen=True):
    """When a load waits for its target. By default it never does. None of it changes the result."""

    max_lag_seconds: Annotated[
        float,
        Meta(ge=0, description="Pause while a replica is further behind than so many seconds; 0: no limit."),
    ] = 0.0
    critical_lag_seconds: Annotated[
        float,
        Meta(ge=0, description="Fail the file when a replica is further behind than that; 0: never."),
    ] = 0.0
    max_active: Annotated[
        int,
        Meta(ge=0, description="Pause while more backends than these are active beside ours; 0: no limit."),
    ] = 0
    critical_active: Annotated[
        int,
        Meta(ge=0, description="Fail the file when more backends than these are active; 0: never."),
    ] = 0
    throttle_query: Annotated[
        str,
        Meta(description="Pause while this query returns another number than 0; empty: no query."),
    ] = ""
    items_per_second: Annotated[
        int,
        Meta(ge=0, description="Items a second that all files together write at most; 0: no limit."),
    ] = 0

    def steered(self, steering: Steering) -> ThrottleSettings:
        """These settings, with what an operator has set in their place."""
        return msgspec.structs.replace(
            self,
            max_lag_seconds=_first(steering.max_lag_seconds, self.max_lag_seconds),
            max_active=_first(steering.max_active, self.max_active),
            items_per_second=_first(steering.items_per_second, self.items_per_second),
        )

    @property
    def asks_for_lag(self) -> bool:
        """Whether the lag of replicas matters."""
        return bool(self.max_lag_seconds or self.critical_lag_seconds)

    @property
    def asks_for_active(self) -> bool:
        """Whether other backends matter."""
        return bool(self.max_active or self.critical_active)

    @property
    def asks(self) -> bool:
        """Whether anything depends on what the target says."""
        return bool(self.asks_for_lag or self.asks_for_active or self.throttle_query)


def _first(steered: Any, configured: Any) -> Any:
    return configured if steered is None else steered


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found."""

    settings: ThrottleSettings
    """As they are steered."""
    steering: Steering
    lag_seconds: float | None = None
    """Of the slowest replica; None where it was not asked for."""
    active: int | None = None
    """Backends beside ours; None where they were not asked for."""
    kind: str = ""
    """Of the reason to pause; "" without one."""
    why: str = ""
    critical: str = ""
    """Why a file has to fail; "" where it need not."""


def steering_of(cursor: Any, profile: str) -> Steering:
    """Read how a profile is steered now. Raises `psycopg2.Error`."""
    found = read_as(Steering, cursor, bookkeeping.STEERING, {"profile": profile})
    return found[0] if found else Steering()


def read_throttle(cursor: Any, settings: ThrottleSettings, steering: Steering) -> Reading:
    """Check everything once; nothing can be written in the transaction any more.

    Raises `psycopg2.Error`, and `DatabaseError` for what the role may not see or a query that returns no number.
    """
    cursor.execute("SET TRANSACTION READ ONLY")  # whatever the user's query calls
    now = settings.steered(steering)
    lag = _lag(cursor) if now.asks_for_lag else None
    active = _active(cursor) if now.asks_for_active else None
    kind, why, critical = "", "", ""
    if now.throttle_query and not _query_is_0(cursor, now.throttle_query):
        kind, why = QUERY, "throttle_query does not return 0"
    if active is not None:
        if now.max_active and active > now.max_active:
            kind, why = ACTIVE, f"{counted(active, 'active backend')}, more than {now.max_active:,}"
        if now.critical_active and active > now.critical_active:
            critical = (
                f"{counted(active, 'active backend')}, more than critical_active = {now.critical_active:,}"
            )
    if lag is not None:
        if now.max_lag_seconds and lag > now.max_lag_seconds:
            kind, why = LAG, f"a replica is {lag:,.1f} s behind, more than {now.max_lag_seconds:g} s"
        if now.critical_lag_seconds and lag > now.critical_lag_seconds:
            critical = f"a replica is {lag:,.1f} s behind, more than critical_lag_seconds = {now.critical_lag_seconds:g}"
    if steering.paused:
        kind, why = PAUSED, f"paused by {steering.changed_by} at {steering.changed_at:%Y-%m-%d %H:%M:%S %Z}"
    return Reading(
        settings=now,
        steering=steering,
        lag_seconds=lag,
        active=active,
        kind=kind,
        why=why,
        critical=critical,
    )


def _lag(cursor: Any) -> float:
    cursor.execute(IS_AURORA)
    if cursor.fetchone() == (True,):
        cursor.execute(LAG_OF_AURORA)
    else:
        _check_privilege(cursor, "max_lag_seconds and critical_lag_seconds")
        cursor.execute(LAG_OF_REPLICAS)
    return float(cursor.fetchone()[0])


def _active(cursor: Any) -> int:
    _check_privilege(cursor, "max_active and critical_active")
    cursor.execute(ACTIVE_BACKENDS)
    return int(cursor.fetchone()[0])


def _check_privilege(cursor: Any, what: str) -> None:
    cursor.execute(MAY_SEE_OTHERS)
    may, role = cursor.fetchone()
    if not may:
        raise DatabaseError(
            f"the throttle cannot be read: for {what} the role {role} must see other roles' sessions "
            f"(SQLSTATE 42501): GRANT pg_monitor TO {role}, or set no such limit",
            sqlstate="42501",
        )


def _query_is_0(cursor: Any, query: str) -> bool:
    cursor.execute(query)
    rows = cursor.fetchmany(2) if cursor.description else []
    try:
        ((number,),) = rows
        return float(number) == 0
    except (TypeError, ValueError):  # its text may hold a value
        raise DatabaseError("the throttle cannot be read: throttle_query must return one number") from None


class Throttle:
    """Asks the target each second, from `open` to `close`. One for a run; each of its files waits by a `FilePace`."""

    def __init__(
        self,
        url: str,
        profile: str,
        settings: ThrottleSettings = ThrottleSettings(),  # noqa: B008  # frozen
        database: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
    ) -> None:
        self._url = url
        self._profile = profile
        self._settings = settings
        self._database = database
        self._session: Session | None = None
        self._one = threading.Lock()
        self._closed = threading.Event()
        self._answered = 0.0
        self._wanted = settings
        """As they are steered, even if the target cannot say what they need."""
        self.reading = Reading(settings=settings, steering=Steering())
        """The newest one."""

    def open(self, on_retry: Callable[[str], None] = lambda _: None) -> None:
        """Check once, and begin to check each second; nothing if it has begun. Raises `MigrationError` if it cannot be read."""
        if self._session:
            return

        def first(cursor: Any) -> Reading:
            check_bookkeeping(cursor)
            return self._read(cursor)

        with Session(self._url, self._database, on_retry) as session:
            self.reading = session.interruptibly(first)
        self._answered = time.monotonic()
        self._session = Session(self._url, ASKING)
        self._session.open()
        threading.Thread(target=self._watch, name="watch the target's load", daemon=True).start()

    def close(self) -> None:
        """Stop checking."""
        self._closed.set()
        if self._session:
            self._session.cancel()
            with self._one:
                self._session.close()

    def reserve(self, items: int) -> float:
        """Reserve the time of some items; returns the seconds until then. Raises `DatabaseError`."""
        values = {"profile": self._profile, "seconds": items / self.reading.settings.items_per_second}

        def work(cursor: Any) -> float:
            cursor.execute(bookkeeping.RESERVE, values)
            return float(cursor.fetchone()[0])

        seconds: float = self._ask(work)
        return seconds

    def _read(self, cursor: Any) -> Reading:
        steering = steering_of(cursor, self._profile)
        self._wanted = self._settings.steered(steering)
        return read_throttle(cursor, self._settings, steering)

    def _ask(self, work: Callable[[Any], Any]) -> Any:
        session = self._session
        if session is None:
            raise DatabaseError(
                "the throttle is not open; this is a defect of the pipeline: please report it"
            )
        with self._one:
            return session.persistently(work)

    def _watch(self) -> None:
        while not self._closed.wait(CHECK_SECONDS):
            try:
                self.reading = self._ask(self._read)
                self._answered = time.monotonic()
            except MigrationError as error:
                self._be_blind(str(error))

    def _be_blind(self, fault: str) -> None:
        """Without an answer what was said last holds for a moment; then loads with limits pause, and at last they fail."""
        silent = time.monotonic() - self._answered
        now = self.reading
        if self._wanted.asks and silent > BLIND_SECONDS:
            critical = (
                f"no answer for {silent:,.0f} s: {fault}" if silent > self._database.retry_seconds else ""
            )
            self.reading = msgspec.structs.replace(
                now, kind=now.kind or UNKNOWN, why=now.why or fault, critical=critical
            )


class FilePace:
    """How one file, or one aggregate, waits for a throttle that is open. Pauses are told to `tell`, from the writer's thread."""

    def __init__(self, throttle: Throttle, tell: Callable[[Pause], None] = lambda _: None) -> None:
        self._throttle = throttle
        self._tell = tell
        self._cancelled = threading.Event()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._told = ""
        self._due = 0.0
        self._gap = GAP_SECONDS

    @property
    def throttled(self) -> Mapping[str, float]:
        """Seconds waited so far, by the kind of the reason."""
        return dict(self._seconds)

    def cancel(self) -> None:
        """Make a `wait` in another thread fail soon, for good."""
        self._cancelled.set()

    def most(self, items: int) -> int:
        """How many items a transaction may have, at most so many: with a rate, those of a few seconds."""
        rate = self._throttle.reading.settings.items_per_second
        return min(items, max(1, int(rate * SECONDS_OF_A_BATCH))) if rate else items

    def wait(self, items: int, meanwhile: Callable[[], None]) -> None:
        """Return once so many items may be written, as `engine.pace.Pace` has it."""
        turn: tuple[Any, float] | None = None
        alive = time.monotonic() + STAY_ALIVE_SECONDS
        while True:
            now, reading = time.monotonic(), self._throttle.reading
            if reading.critical:
                raise MigrationError(
                    f"the target is overloaded: {reading.critical}; nothing is lost: run it again when the target has recovered"
                )
            kind, why, left = reading.kind, reading.why, POLL_SECONDS
            rate = reading.settings.items_per_second
            if not kind and rate and items:
                if turn is None or turn[0] != (rate, reading.steering.changed_at):
                    turn = (rate, reading.steering.changed_at), now + self._reserve(items)
                left = min(left, turn[1] - now)
                if left > 0:
                    kind, why = RATE, f"at most {counted(rate, 'item')} a second"
            if not kind:
                break
            self._pause(kind, why, left)
            if time.monotonic() > alive:
                meanwhile()
                alive = time.monotonic() + STAY_ALIVE_SECONDS
        if self._told and self._told != RATE:
            self._say("", "")

    def _reserve(self, items: int) -> float:
        try:
            return self._throttle.reserve(items)
        except DatabaseError:
            return 0.0  # the writer meets the fault itself, and retries

    def _pause(self, kind: str, why: str, seconds: float) -> None:
        if kind != self._told or time.monotonic() > self._due:
            self._say(kind, why)
        began = time.monotonic()
        cancelled = self._cancelled.wait(seconds)
        self._seconds[kind] += time.monotonic() - began
        if cancelled:
            raise MigrationError("stopped while it waited for the throttle")

    def _say(self, kind: str, why: str) -> None:
        if kind == self._told:  # again
            self._gap = min(self._gap * GAP_GROWTH, LONGEST_GAP_SECONDS)
        self._told, self._due = kind, time.monotonic() + self._gap
        self._tell(Pause(why, sum(self._seconds.values())))
