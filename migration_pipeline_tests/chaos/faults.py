"""The faults that loads are put through; each leaves the rest to the oracle.

A fault takes a case, loads its files while it strikes, and returns. What happened to the load does not
matter here: `Case.verdict` takes the next step and compares the end state.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import time
from collections.abc import Callable

import boto3
import msgspec
import psycopg2
import pytest

from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.replay import replay
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import ExportFile
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.chaos.lab import BUCKET, Case
from migration_pipeline_tests.chaos.proxy import Fault, Proxy
from migration_pipeline_tests.chaos.s3_faults import Answer

FAULTS: dict[str, Callable[[Case], None]] = {}
BAD_ITEMS: set[str] = set()
"""Faults whose export has bad items, too."""


def fault(function: Callable[[Case], None]) -> Callable[[Case], None]:
    """Register a fault under its function's name."""
    FAULTS[function.__name__] = function
    return function


def with_bad_items(function: Callable[[Case], None]) -> Callable[[Case], None]:
    """Give a fault's export bad items."""
    BAD_ITEMS.add(function.__name__)
    return function


def survive(case: Case, url: str) -> None:
    """Load all files; the fault is one that a load must outlast by itself."""
    errors = case.load_all(url)
    assert not errors, errors


def through_proxy(case: Case, *faults: Fault) -> None:
    """Load through a proxy with faults, all of which must have struck."""
    with Proxy(case.lab.socket) as proxy:
        for one in faults:
            proxy.inject(one)
        survive(case, case.url(proxy))
        assert all(one.struck for one in faults), faults


def others(case: Case, function: str) -> None:
    """Call a function on all backends of the case's database but this one."""
    case.execute(
        f"SELECT {function}(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


# -- the server ---------------------------------------------------------------------------------------


@fault
def backend_terminated(case: Case) -> None:
    """`pg_terminate_backend`, three times."""

    def terminate() -> None:
        for _ in range(3):
            case.pause()
            others(case, "pg_terminate_backend")

    with case.meanwhile(terminate):
        survive(case, case.url())


@fault
def statement_cancelled(case: Case) -> None:
    """`pg_cancel_backend` by somebody, once."""

    def cancel() -> None:
        case.pause()
        others(case, "pg_cancel_backend")

    with case.meanwhile(cancel):
        survive(case, case.url())


@fault
def server_restarted(case: Case) -> None:
    """An immediate restart, as after a crash, in mid-batch."""

    def restart() -> None:
        case.pause()
        case.lab.server._run("pg_ctl", "stop", "-D", "data", "-m", "immediate", "-w")
        case.lab.server.start()

    with case.meanwhile(restart):
        survive(case, case.url())


@fault
def connections_used_up(case: Case) -> None:
    """The connection is lost, and the role has no other left for a while (53300)."""
    case.lab.execute("ALTER ROLE loader CONNECTION LIMIT 1")

    def occupy() -> None:
        others(case, "pg_terminate_backend")
        held = []
        for _ in range(50):
            with contextlib.suppress(psycopg2.Error):
                held.append(psycopg2.connect(case.url()))
                break
            time.sleep(0.005)
        case.pause(0.5)
        for connection in held:
            connection.close()

    try:
        with case.meanwhile(occupy):
            survive(case, case.url())
    finally:
        case.lab.execute("ALTER ROLE loader CONNECTION LIMIT -1")


@fault
def server_turns_read_only(case: Case) -> None:
    """The writer becomes a reader, as in a failover, and is one again a little later (25006)."""
    name = "default_transaction_read_only"

    def flip() -> None:
        case.pause(0.2)
        case.lab.execute(f"ALTER SYSTEM SET {name} = on")
        case.lab.execute("SELECT pg_reload_conf()")
        time.sleep(case.chance.uniform(0.1, 0.5))
        connection = psycopg2.connect(case.lab.server.url)
        connection.autocommit = True
        connection.cursor().execute(f"SET {name} = off")
        connection.cursor().execute(f"ALTER SYSTEM RESET {name}")
        connection.cursor().execute("SELECT pg_reload_conf()")
        connection.close()

    with case.meanwhile(flip):
        survive(case, case.url())


def raising(case: Case, state: str, times: int, first: int = 3) -> None:
    """Make the server raise an SQLSTATE for some statements on a table; a sequence counts, which no rollback undoes."""
    case.batch_items = 20
    case.execute(
        f"""
        CREATE SEQUENCE strikes; GRANT USAGE ON strikes TO loader;
        CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE number bigint := nextval('strikes');
        BEGIN
            IF number BETWEEN {first} AND {first + times - 1} THEN RAISE 'struck' USING ERRCODE = '{state}'; END IF;
            RETURN NULL;
        END $$;
        CREATE TRIGGER strike BEFORE INSERT ON orders FOR EACH STATEMENT EXECUTE FUNCTION strike()
        """
    )


@fault
def serialization_failures(case: Case) -> None:
    """40001, some times in a row."""
    raising(case, "40001", case.chance.randint(1, 5))
    survive(case, case.url())
    assert len(case.told) >= 1


@fault
def object_in_use(case: Case) -> None:
    """55006, some times in a row."""
    raising(case, "55006", case.chance.randint(1, 5))
    survive(case, case.url())


def fails_at_once(case: Case, state: str, advice: str) -> None:
    """A fault that no waiting mends: the files it meets fail, without a retry and without a quarantined item."""
    raising(case, state, 1)
    (error,) = case.load_all(case.url())
    assert state in error
    assert advice in error
    assert not case.told
    assert not case.execute("SELECT 1 FROM migration.quarantine")


@fault
def disk_full(case: Case) -> None:
    """53100."""
    fails_at_once(case, "53100", "make room, then rerun the file")


@fault
def last_batch_fails(case: Case) -> None:
    """53100 in the transaction that would hold the receipt."""
    raising(case, "53100", 1, first=2)
    case.batch_items = 10_000
    (error,) = case.load_all(case.url())
    assert "53100" in error
    assert case.without_receipt()


@fault
def out_of_memory(case: Case) -> None:
    """53200."""
    fails_at_once(case, "53200", "free some, then rerun the file")


@fault
def input_output_error(case: Case) -> None:
    """58030."""
    fails_at_once(case, "58030", "check its log")


@fault
def privilege_taken(case: Case) -> None:
    """42501 in mid-load: an operator's mistake, not a bad item."""
    fails_at_once(case, "42501", "docs/security.md")


@fault
def table_renamed(case: Case) -> None:
    """A table is gone in mid-load (42P01), and comes back."""
    with case.process(case.url()) as process:
        case.pause(0.1)
        with contextlib.suppress(psycopg2.Error):
            case.execute("SET lock_timeout = '1s'; ALTER TABLE orders RENAME TO orders_elsewhere")
        process.wait()
    case.execute("ALTER TABLE IF EXISTS orders_elsewhere RENAME TO orders")


@fault
def lock_timeout(case: Case) -> None:
    """Somebody holds a lock for longer than a statement waits (55P03)."""
    holding_lock(case, more_seconds=case.chance.uniform(0, 0.7))


@fault
def statement_timeout(case: Case) -> None:
    """Somebody holds a lock for longer than a statement may take (57014)."""
    case.settings = msgspec.structs.replace(
        case.settings, lock_timeout_seconds=9, statement_timeout_seconds=0.5
    )
    holding_lock(case, more_seconds=case.chance.uniform(0, 0.3))


def holding_lock(case: Case, more_seconds: float) -> None:
    """Load while a lock is held on a table, until the load has felt it and for some time more."""
    held = threading.Event()

    def hold() -> None:
        connection = psycopg2.connect(case.lab.server.url.replace("/postgres?", f"/{case.database}?"))
        connection.cursor().execute("LOCK TABLE order_lines IN SHARE MODE")
        held.set()
        deadline = time.monotonic() + 60
        while not case.told and time.monotonic() < deadline:  # however slow the machine is
            time.sleep(0.02)
        time.sleep(more_seconds)
        connection.close()

    with case.meanwhile(hold):
        held.wait(10)
        survive(case, case.url())
    assert case.told


@fault
def deadlocks(case: Case) -> None:
    """Somebody locks the tables in the other order, and is more patient (40P01)."""
    over = threading.Event()

    def lock() -> None:
        connection = psycopg2.connect(case.lab.server.url.replace("/postgres?", f"/{case.database}?"))
        cursor = connection.cursor()
        while not over.is_set():
            cursor.execute("SET LOCAL deadlock_timeout = '5s'; LOCK TABLE order_lines IN SHARE MODE")
            time.sleep(0.02)
            cursor.execute("LOCK TABLE customers IN SHARE MODE")
            connection.rollback()
            time.sleep(0.05)
        connection.close()

    with case.meanwhile(lock):
        try:
            survive(case, case.url())
        finally:
            over.set()


# -- the network --------------------------------------------------------------------------------------


@fault
def cut_before_commit(case: Case) -> None:
    """The connection is cut before a COMMIT gets through, twice."""
    through_proxy(case, Fault("cut", towards="server", pattern=b"COMMIT", times=2))


@fault
def cut_while_commit_is_in_flight(case: Case) -> None:
    """The server commits, and its answer is lost: the outcome is unknown to the loader. Three times."""
    through_proxy(case, Fault("cut", towards="server", pattern=b"COMMIT", forward=True, times=3))


@fault
def cut_at_the_receipt(case: Case) -> None:
    """The transaction that holds the receipt is cut, before or after it is committed."""
    through_proxy(case, Fault("cut", towards="server", pattern=b"INSERT INTO migration.loaded_file", times=1,
                              forward=case.chance.random() < 0.5))  # fmt: skip


@fault
def cut_after_bytes(case: Case) -> None:
    """The first connections are cut somewhere in the middle."""
    through_proxy(case, Fault("cut", towards="server", after_bytes=case.chance.randint(1, 50_000), times=2))


@fault
def reset_after_bytes(case: Case) -> None:
    """The same with an RST."""
    through_proxy(case, Fault("reset", towards="server", after_bytes=case.chance.randint(1, 50_000), times=2))


@fault
def answers_cut(case: Case) -> None:
    """The connection is cut in the middle of an answer."""
    through_proxy(case, Fault("cut", towards="client", after_bytes=case.chance.randint(1, 4_000), times=2))


@fault
def answers_stalled(case: Case) -> None:
    """The network drops silently: no answer comes through, nothing is closed."""
    case.settings = msgspec.structs.replace(case.settings, statement_timeout_seconds=0.5)
    case.batch_items = 20  # more answers
    through_proxy(
        case, Fault("stall", towards="client", after_bytes=case.chance.randint(3_000, 6_000), times=1)
    )


@fault
def copy_stalled(case: Case) -> None:
    """The same while the server waits for the rest of a COPY, with locks held."""
    case.settings = msgspec.structs.replace(case.settings, statement_timeout_seconds=0.5)
    case.batch_items = 150
    through_proxy(
        case, Fault("stall", towards="server", after_bytes=case.chance.randint(15_000, 50_000), times=1)
    )


@fault
def slow_network(case: Case) -> None:
    """Each chunk is late."""
    through_proxy(case, Fault("delay", towards="client", seconds=case.chance.uniform(0.001, 0.01)))


@fault
def sliced_packets(case: Case) -> None:
    """Bytes come in small pieces."""
    through_proxy(case, Fault("slice", towards="server", size=case.chance.randint(20, 400)))


@fault
def connections_refused(case: Case) -> None:
    """A cut, and nobody listens for a while."""
    with Proxy(case.lab.socket) as proxy:
        proxy.inject(Fault("cut", towards="server", after_bytes=case.chance.randint(1, 100_000), times=1))
        refusing = proxy.inject(Fault("refuse", times=case.chance.randint(1, 4)))
        survive(case, case.url(proxy))
        assert refusing.struck


# -- the loader's process -----------------------------------------------------------------------------


@fault
def killed_at_random(case: Case) -> None:
    """SIGKILL at a random moment."""
    with case.process(case.url()):
        case.pause(0.6)


@fault
def terminated_at_random(case: Case) -> None:
    """SIGTERM at a random moment."""
    with case.process(case.url()) as process:
        case.pause(0.6)
        process.send_signal(signal.SIGTERM)
        process.wait()


def killed_at(case: Case, pattern: bytes, forward: bool) -> None:
    """SIGKILL when some bytes are on their way to the server, before or after it gets them."""
    with Proxy(case.lab.socket) as proxy, case.process(case.url(proxy)) as process:
        # Let some batches pass; after so many bytes the next match counts.
        case.pause(0.2)
        point = proxy.inject(Fault("stall", towards="server", pattern=pattern, forward=forward, times=1))
        deadline = time.monotonic() + 20
        while not point.struck and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)


@fault
def killed_after_copy(case: Case) -> None:
    """SIGKILL between a COPY and the rest of its transaction."""
    killed_at(case, b"RELEASE SAVEPOINT", forward=False)


@fault
def killed_before_commit(case: Case) -> None:
    """SIGKILL when the COMMIT is sent but has not arrived."""
    killed_at(case, b"COMMIT", forward=False)


@fault
def killed_after_commit(case: Case) -> None:
    """SIGKILL after the server has got the COMMIT."""
    killed_at(case, b"COMMIT", forward=True)


@fault
def killed_at_the_receipt(case: Case) -> None:
    """SIGKILL with the receipt on its way."""
    killed_at(case, b"INSERT INTO migration.loaded_file", forward=case.chance.random() < 0.5)


# -- loaders side by side -----------------------------------------------------------------------------


def side_by_side(case: Case, loaders: int, copies: int) -> None:
    """Load each file some times, by several loaders at once, in random order."""
    for group in case.groups:
        _together(case, group * copies, loaders)


def _together(case: Case, work: list[ExportFile], loaders: int) -> None:
    case.chance.shuffle(work)
    errors: list[BaseException] = []

    def load(mine: list[int]) -> None:
        for index in mine:
            try:
                case.load(case.url(), work[index])
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=load, args=(range(n, len(work), loaders),)) for n in range(loaders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@fault
def two_loaders(case: Case) -> None:
    """Two at once, files in random order."""
    side_by_side(case, 2, 1)


@fault
@with_bad_items
def four_loaders_of_the_same_files(case: Case) -> None:
    """Four at once, each file four times: the same file runs several times at once, bad items included."""
    side_by_side(case, 4, 4)


# -- S3 -----------------------------------------------------------------------------------------------


def through_s3(case: Case, *answers: Answer) -> None:
    """Load from an S3 that answers the first requests for data wrongly."""
    server = case.move_to_s3()
    server.plan(answers)
    survive(case, case.url())
    assert not server.answers, "all of them struck"


@fault
def s3_slow_down(case: Case) -> None:
    """503, some times in a row."""
    through_s3(case, *[Answer("error", "SlowDown")] * case.chance.randint(1, 5))


@fault
def s3_body_truncated(case: Case) -> None:
    """The connection ends in mid-body, and once more where it was reopened."""
    through_s3(case, *(Answer("truncate", after_bytes=case.chance.randint(0, 9_000)) for _ in range(3)))


@fault
def s3_body_reset(case: Case) -> None:
    """A reset in mid-body."""
    through_s3(case, *(Answer("reset", after_bytes=case.chance.randint(0, 9_000)) for _ in range(2)))


@fault
def s3_body_stalled(case: Case) -> None:
    """No more bytes come, and nothing is closed."""
    through_s3(case, Answer("stall", after_bytes=case.chance.randint(0, 9_000)))


@fault
def s3_object_changed(case: Case) -> None:
    """Another object takes the file's place while it is read: the file fails; put back, it loads."""
    server = case.move_to_s3()
    file = max(case.groups[0], key=lambda each: each.items)
    key, client = file.uri.removeprefix(f"s3://{BUCKET}/"), boto3.client("s3")
    content = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def change() -> None:
        client.put_object(Bucket=BUCKET, Key=key, Body=content[::-1])

    server.plan([Answer("truncate", after_bytes=case.chance.randint(100, 9_000)), Answer(first=change)])
    with pytest.raises(MigrationError, match="changed while it was read"):
        case.load(case.url(), file)
    client.put_object(Bucket=BUCKET, Key=key, Body=content)
    assert file in case.without_receipt()


# -- data ---------------------------------------------------------------------------------------------


@fault
@with_bad_items
def bad_items(case: Case) -> None:
    """Items of every bad kind."""
    survive(case, case.url())


@fault
@with_bad_items
def bad_items_and_lost_commits(case: Case) -> None:
    """Batches that have to be halved, and answers to COMMIT that are lost."""
    through_proxy(case, Fault("cut", towards="server", pattern=b"COMMIT", forward=True, times=4))


@fault
def every_item_bad(case: Case) -> None:
    """The tables refuse all rows: a limit stops each file; mended, it loads."""
    tables = ("customers", "orders", "order_lines")
    for table in tables:
        case.execute(f"ALTER TABLE {table} ADD CONSTRAINT never CHECK (false) NOT VALID")
    errors = case.load_all(case.url())
    assert len(errors) == sum(1 for file in case.groups[0] if file.items)
    assert all(re.search("more than .* items are bad.*Fix the profile or the table", e) for e in errors)
    for table in tables:
        case.execute(f"ALTER TABLE {table} DROP CONSTRAINT never")


@fault
def profile_raises(case: Case) -> None:
    """The profile's own code fails on some items; mended, a replay loads them."""
    sound, letter = case.profile, case.chance.choice("0123456789abcdef")
    broken = Profile("shop", rules=list(sound.rules), row_classes=list(sound.row_classes))
    for number, rule in enumerate(broken.rules):
        if rule.function and rule.function.__name__ == "order_line":
            broken.rules[number] = type(rule)(
                rule.conditions, rule.reason, _failing(rule.function, f"ORDER#{letter}"), rule.item_class
            )
    case.profile = broken
    survive(case, case.url())
    assert case.execute("SELECT 1 FROM migration.quarantine")
    case.profile = sound
    for file in case.files:
        identity = FileIdentity("shop", "1", case.sample.export.id, file.name, "replay")
        with PostgresTarget(case.url(), sound.tables, identity, case.settings) as target:
            report = replay(
                Transform(sound, dynamodb_json), target, LoadSettings(batch_items=case.batch_items)
            )
        assert not report.quarantined


def _failing(function: Callable[..., object], start: str) -> Callable[..., object]:
    def order_line(item: object) -> object:
        if getattr(item, "PK", "").startswith(start):
            raise LookupError(start)
        return function(item)

    return order_line


@fault
def truncated_file(case: Case) -> None:
    """A file ends in the middle: it fails, and nothing of it is recorded."""
    file = max(case.groups[0], key=lambda each: each.items)
    path = case.lab.folder / case.database / file.name
    path.parent.mkdir()
    with open(file.uri, "rb") as whole:
        path.write_bytes(whole.read()[: file.size - case.chance.randint(1, file.size - 1)])
    broken = msgspec.structs.replace(file, uri=str(path))
    with pytest.raises(MigrationError, match=re.escape(file.name)):
        case.load(case.url(), broken)
    assert file in case.without_receipt()
