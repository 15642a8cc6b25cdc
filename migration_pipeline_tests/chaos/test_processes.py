"""Kills of processes in mid-file, on a real local stack: what happens by itself, and what the documented next step mends.

"Mid-file" is no matter of luck: a trigger makes the load of one file wait at one row for a lock that the test
holds, with some batches committed and some not even read.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.backfills import open_backfills
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.downstream import downstream
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.operations.runs import run_error
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_load import load_all
from migration_pipeline_tests.operating import run_workers, without_waits
from migration_pipeline_tests.oracle import actual, checksum, data_lines, expected

PROJECT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).parent / "migration-pipeline"
POLL_SECONDS = 4
"""Between two looks of the run monitoring; 15 by default. Much less, and a busy machine misses two in a row."""

# The stack as `make dev` runs it, but for one thing: it does not end when one of its services does.
RUN = """
import signal
from migration_pipeline.demo.stack import running
with running() as stack:
    print(stack.webserver_url, flush=True)
    while True:
        signal.pause()
"""

TRIGGERS = """
CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(TG_ARGV[0]::int); RETURN NEW; END';
CREATE TRIGGER wait_in_the_middle BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.order_id = '{middle}')
    EXECUTE FUNCTION wait_here({MIDDLE});
CREATE TRIGGER wait_in_the_last_batch BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.order_id = '{last}')
    EXECUTE FUNCTION wait_here({LAST});
"""
MIDDLE, LAST = 1, 2

RUNS = "{ runsOrError { ... on Runs { results { runId status tags { key value } } } } }"
WIPE = (
    "mutation Wipe($ranges: [PartitionsByAssetSelector!]!) "
    "{ wipeAssets(assetPartitionRanges: $ranges) { __typename } }"
)
TERMINATE = "mutation Terminate($run: String!) { terminateRun(runId: $run) { __typename } }"
DELETE_RUN = "mutation Delete($run: String!) { deleteRun(runId: $run) { __typename } }"
LOG = """query Log($run: ID!) { logsForRun(runId: $run) {
    ... on EventConnection { events { ... on MessageEvent { message } } } } }"""
LAUNCH = """mutation Launch($params: ExecutionParams!) {
    launchRun(executionParams: $params) { ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""
CHECKS = """query Checks($keys: [AssetKeyInput!]!) { assetNodes(assetKeys: $keys) { assetChecksOrError {
    ... on AssetChecks { checks { name executionForLatestMaterialization { status } } } } } }"""
RELOAD = (
    'mutation { reloadRepositoryLocation(repositoryLocationName: "migration_pipeline.definitions") '
    "{ __typename } }"
)


def eventually(condition: Callable[[], Any], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


class Local:
    """A local stack that can be killed, in whole and in part, and started again."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "state"
        self.home.mkdir()
        self.postgres = EmbeddedPostgres(self.home)
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("MIGRATION_", "DAGSTER_", "PG"))},
            "MIGRATION_HOME": str(self.home),
            "DAGSTER_HOME": str(self.home / "dagster"),
        }
        settings = (PROJECT / "dagster.yaml").read_text()
        assert "poll_interval_seconds: 15" in settings
        (self.home / "dagster").mkdir()
        assert "cancel_timeout_seconds: 60" in settings
        (self.home / "dagster" / "dagster.yaml").write_text(
            settings.replace("poll_interval_seconds: 15", f"poll_interval_seconds: {POLL_SECONDS}").replace(
                "cancel_timeout_seconds: 60", "cancel_timeout_seconds: 10"
            )
        )
        self.victim = ""
        self.checksum = ""
        self._stack: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._url = ""

    # -- its life --------------------------------------------------------------------------------

    def start(self) -> None:
        self._stack = subprocess.Popen(
            [sys.executable, "-c", RUN], env=self.environment, stdout=subprocess.PIPE, text=True
        )
        assert self._stack.stdout
        self._url = self._stack.stdout.readline().strip()
        assert self._url.startswith("http://"), (self.home / "log" / "daemon.log").read_text()

    def kill_everything(self) -> None:
        """Kill all at once, as a power cut does; PostgreSQL has its own method."""
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        for started in (self._stack, self._daemon):
            if started:
                with started:  # closes its output, and reaps it
                    started.kill()
        self._stack = self._daemon = None

    def kill_postgres(self) -> None:
        server = psutil.Process(int((self.postgres.data_dir / "postmaster.pid").read_text().split()[0]))
        processes = [server, *server.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # its parent has gone, so it goes by itself
                process.kill()
        psutil.wait_procs(processes, timeout=10)

    def restart_postgres(self) -> None:
        """The same as `pg_ctl restart -m immediate`."""
        pid = int((self.postgres.data_dir / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGQUIT)
        eventually(lambda: not psutil.pid_exists(pid))
        self.postgres.start()

    def kill_run_worker(self) -> None:
        (worker,) = self.run_workers()
        worker.kill()

    @contextmanager
    def without_daemon(self) -> Iterator[Path]:
        """Kill the daemon, and start another after the context; gives the new one's log."""
        daemon = self._daemon or psutil.Process(int((self.home / "log" / "daemon.pid").read_text()))
        killed = psutil.Process(daemon.pid)
        command, environment = killed.cmdline(), killed.environ()
        killed.kill()
        if self._daemon:
            self._daemon.wait()
        log = self.home / "log" / "second-daemon.log"
        yield log
        with log.open("wb") as output:
            self._daemon = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output
            )
        assert self._daemon.stdin
        self._daemon.stdin.write(b"go\n")
        self._daemon.stdin.close()

    def run_workers(self) -> list[psutil.Process]:
        return run_workers(self.home)

    def _processes(self) -> list[psutil.Process]:
        """All processes of this stack, but PostgreSQL's."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("MIGRATION_HOME") == str(self.home):
                    found.append(process)
        return found

    def end(self) -> None:
        self.kill_everything()
        self.postgres.remove()

    # -- what one asks of it ---------------------------------------------------------------------

    @property
    def plan(self) -> Plan:
        return read_plan(plan_path(self.home / "plans", "shop"))

    @property
    def dagster(self) -> DagsterClient:
        return DagsterClient(self._url)

    def command(self, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [SCRIPT, *arguments], env=self.environment, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + without_waits(done.stderr)

    def files(self) -> dict[str, FileStatus]:
        return {f.partition: f for f in read_files(self.dagster, self.plan, load_profile("shop"))}

    def state(self) -> str:
        return self.files()[self.victim].state

    def all_materialized(self) -> bool:
        return {f.state for f in self.files().values()} == {"materialized"}

    def runs(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self.dagster.query(RUNS)["runsOrError"]["results"]
        return results

    def runs_of_files(self) -> list[dict[str, Any]]:
        """The runs that load files: others make what follows from these."""
        return [run for run in self.runs() if "migration/file" in {tag["key"] for tag in run["tags"]}]

    def run_of_victim(self) -> dict[str, Any]:
        """The latest run of the file that is cut."""
        return next(
            run
            for run in self.runs()
            if {"key": "dagster/asset_partition_range_start", "value": self.victim} in run["tags"]
        )

    def receipts(self) -> set[str]:
        return {name for (name,) in query(self.postgres.url, "SELECT file FROM migration.loaded_file")}

    def has_receipt(self) -> bool:
        return self.plan.by_partition()[self.victim].file.name in self.receipts()

    def loaded_rows(self) -> int:
        return int(query(self.postgres.url, "SELECT count(*) FROM order_lines")[0][0])

    def rows_with_receipt(self) -> int:
        rows = "SELECT coalesce(sum((rows->>'order_lines')::int), 0) FROM migration.loaded_file"
        return int(query(self.postgres.url, rows)[0][0])

    def waits(self) -> bool:
        return query(
            self.postgres.url,
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted",
        ) == [(1,)]

    @contextmanager
    def mid_file(self, place: int = MIDDLE) -> Iterator[None]:
        """Launch a backfill; in the context, a run waits in the middle of its file, or in its last batch."""
        with contextlib.closing(psycopg2.connect(self.postgres.url)) as session:
            session.autocommit = True
            session.cursor().execute(f"SELECT pg_advisory_lock({place})")
            status, output = self.command("backfill", "shop")
            assert status == 0, output
            eventually(self.waits)
            yield
            with contextlib.suppress(psycopg2.Error):  # PostgreSQL was killed, and the lock with it
                session.cursor().execute("SELECT pg_advisory_unlock_all()")

    def assert_whole(self) -> None:
        """Everything is there, in Dagster's eyes and in the database, as after a load without faults."""
        output = self.command("status", "shop")[1]  # its exit status tells of what is made of the files, too
        assert output.splitlines()[-1] == "3 of 3 files materialized", output
        assert self.receipts() == {file.file.name for file in self.plan.files}
        with contextlib.closing(psycopg2.connect(self.postgres.url)) as connection:
            assert checksum(connection) == self.checksum
        assert query(self.postgres.url, "SELECT count(*) FROM migration.quarantine") == [(0,)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    folder = tmp_path_factory.mktemp("processes")
    local = Local(folder)
    tables = ddl(load_profile("shop").all_tables)
    export = write_sample(folder, items=320_000, files=3, seed=23)
    try:
        local.postgres.start()
        execute(local.postgres.url, "CREATE DATABASE faultless")
        faultless = local.postgres.url.replace("/postgres?", "/faultless?")
        execute(faultless, tables)
        load_all(faultless, read_export(str(export), Storage()))
        with contextlib.closing(psycopg2.connect(faultless)) as connection:
            assert actual(connection) == expected(export)[0]
            local.checksum = checksum(connection)

        status, output = local.command("plan", "--profile", "shop", str(export))
        assert status == 0, output
        victim = max(local.plan.files[1:], key=lambda planned: planned.file.items)  # one is empty
        local.victim = victim.partition
        middle, last = (order_within(export, victim.file.name, share) for share in (0.9, 0.995))
        execute(
            local.postgres.url,
            tables + TRIGGERS.format(middle=middle, MIDDLE=MIDDLE, last=last, LAST=LAST),
        )
        local.start()
        yield local
    finally:
        local.end()


def order_within(export: Path, file: str, share: float) -> str:
    """Id of an order that lies behind a share of a file's items."""
    lines = [line for name, _, line in data_lines(export) if name == file]
    found = next(line for line in lines[int(len(lines) * share) :] if b'"SK":{"S":"ORDER#' in line)
    return found.split(b'"ORDER#')[1].split(b'"')[0].decode()


@pytest.fixture
def local(shared: Local) -> Local:
    """The stack with nothing loaded, and nothing to be done of what was launched before.

    Old runs stay: SQLite would give their events' numbers to new ones, and the daemon would pass over those
    when it looks for runs to start again.
    """
    keys = [["shop", table.name] for table in load_profile("shop").tables.values()]
    eventually(lambda: not open_backfills(shared.dagster, shared.plan))
    shared.dagster.query(WIPE, ranges=[{"assetKey": {"path": key}} for key in keys])
    execute(
        shared.postgres.url,
        "TRUNCATE customers, orders, order_lines, landing.shop_events, migration.loaded_file, migration.quarantine, "
        "migration.collision",
    )
    assert "materialized" not in {file.state for file in shared.files().values()}
    return shared


def test_a_killed_run_worker_is_replaced(local: Local) -> None:
    with local.mid_file():
        assert local.loaded_rows() > local.rows_with_receipt(), "some of the file is committed"
        first = local.run_of_victim()
        local.kill_run_worker()
        eventually(lambda: local.run_of_victim()["status"] != "STARTED")
        assert local.state() != "materialized"
        assert not local.has_receipt()
    eventually(local.all_materialized)
    second = local.run_of_victim()
    assert second["runId"] != first["runId"]
    ahead = {"key": "dagster/priority", "value": "1"}
    assert (ahead in first["tags"], ahead in second["tags"]) == (False, True), (
        "what waits for the file has waited enough"
    )
    local.assert_whole()


def test_a_run_that_is_killed_with_its_receipt_written_and_nothing_recorded_is_loaded_again(
    local: Local,
) -> None:
    history = sqlite3.connect(local.home / "dagster" / "history" / "runs" / "index.db", isolation_level=None)
    with contextlib.closing(history):
        with local.mid_file(LAST):
            assert not local.has_receipt()
            # The run cannot record a materialization as long as somebody else writes there.
            history.execute("BEGIN IMMEDIATE")
        eventually(local.has_receipt)
        local.kill_run_worker()
        history.execute("ROLLBACK")
    assert local.state() != "materialized"
    eventually(local.all_materialized)
    local.assert_whole()


def test_a_crash_that_dagster_overlooks_is_told_to_it_again(local: Local) -> None:
    with local.mid_file():
        first = local.run_of_victim()
        with local.without_daemon():
            local.kill_run_worker()
            eventually(lambda: local.run_of_victim()["status"] == "FAILURE")
            # Its daemon has read the event before the status was written.
            history = local.home / "dagster" / "history"
            with contextlib.closing(sqlite3.connect(history / "runs" / "index.db")) as events:
                ((newest,),) = events.execute("SELECT max(id) FROM event_logs").fetchall()
            with contextlib.closing(sqlite3.connect(history / "runs.db")) as runs:
                read = "UPDATE kvs SET value = ? WHERE key = 'EVENT_LOG_CONSUMER_CURSOR-PIPELINE_FAILURE'"
                assert runs.execute(read, [str(newest)]).rowcount == 1
                runs.commit()
    eventually(local.all_materialized)
    told = local.dagster.query(LOG, run=first["runId"])["logsForRun"]["events"]
    assert sum("has overlooked" in event["message"] for event in told) == 1
    assert local.run_of_victim()["runId"] != first["runId"]
    local.assert_whole()


def test_a_daemon_that_is_killed_or_a_reload_of_the_code_leaves_a_live_run_alone(local: Local) -> None:
    earlier = len(local.runs_of_files())
    with local.mid_file():
        run = local.run_of_victim()
        (worker,) = local.run_workers()
        with local.without_daemon() as log:
            pass
        looks = f"Checking run {run['runId']}"
        eventually(lambda: log.read_text().count(looks) >= 3)
        local.dagster.query(RELOAD)
        before = log.read_text().count(looks)
        eventually(lambda: log.read_text().count(looks) >= before + 3)
        assert worker.is_running()
        assert local.run_of_victim() == run
        assert run["status"] == "STARTED"
    eventually(local.all_materialized)
    assert len(local.runs_of_files()) == earlier + len(local.plan.files)
    local.assert_whole()


@pytest.mark.parametrize("what", ["all of Dagster", "the machine"])
def test_after_a_kill_of_everything_a_start_is_enough(local: Local, what: str) -> None:
    with local.mid_file():
        stale = local.run_of_victim()
        assert stale["status"] == "STARTED"
        local.kill_everything()
        assert not local.has_receipt()
        if what == "the machine":
            local.kill_postgres()
    local.start()
    assert local.state() != "materialized"
    eventually(local.all_materialized)
    (found,) = (run for run in local.runs() if run["runId"] == stale["runId"])
    assert found["status"] == "FAILURE"
    assert "its code server does not have it" in run_error(local.dagster, stale["runId"])
    local.assert_whole()


@pytest.mark.parametrize("place", [MIDDLE, LAST])
def test_a_terminated_run_stops_its_file_until_it_is_retried(local: Local, place: int) -> None:
    with local.mid_file(place):
        run = local.run_of_victim()
        assert local.dagster.query(TERMINATE, run=run["runId"])["terminateRun"] == {
            "__typename": "TerminateRunSuccess"
        }
        eventually(lambda: local.run_of_victim()["status"] == "CANCELED")
    eventually(
        lambda: (
            [f.state for f in local.files().values() if f.partition != local.victim] == ["materialized"] * 2
        )
    )
    eventually(lambda: not local.run_workers())
    assert local.state() == "stopped"
    assert not local.has_receipt()
    status, output = local.command("retry-failed", "shop", "--wait")
    assert status == 0, output
    local.assert_whole()


def test_a_restart_of_postgresql_in_mid_file_costs_no_item(local: Local) -> None:
    # As if the crash came right after the file's first batch: a commit with synchronous_commit = off is on the
    # disk only when the WAL writer has been round, which by default takes up to 0.6 seconds.
    for setting in ("wal_writer_delay = '10s'", "wal_writer_flush_after = '1GB'"):
        execute(local.postgres.url, f"ALTER SYSTEM SET {setting}")
    query(local.postgres.url, "SELECT pg_reload_conf()")
    with local.mid_file():
        local.restart_postgres()
    # The run survives it by itself, or fails and says so.
    eventually(lambda: {f.state for f in local.files().values()} <= {"materialized", "failed"})
    if not local.all_materialized():
        assert local.state() == "failed"
        assert not local.has_receipt()
        status, output = local.command("retry-failed", "shop", "--wait")
        assert status == 0, output
    local.assert_whole()


@pytest.fixture
def whole(shared: Local) -> Local:
    """The stack with everything loaded, and made of it."""
    status, output = shared.command("backfill", "shop", "--wait")
    assert status == 0, output
    # It has nothing to launch, and does not wait, while a backfill of the test before is at what comes after the files.
    assets = partial(downstream, shared.dagster, load_profile("shop"))
    eventually(lambda: {asset.state for asset in assets()} == {"materialized"})
    return shared


def test_reconcile_tells_dagster_what_it_lost_and_nothing_else(whole: Local) -> None:
    local = whole
    assert local.command("reconcile", "shop") == (
        0, "nothing to do: Dagster shows everything that has a receipt\n3 of 3 files materialized\n",
    )  # fmt: skip
    before = local.files()
    one, other, third = before

    # What was made of all files: its history is wiped.
    activity = {"path": ["shop", "customer_activity"]}

    def made() -> Any:
        return next(
            a for a in downstream(local.dagster, load_profile("shop")) if a.name == "customer_activity"
        )

    lost = made()
    assert lost.state == "materialized"
    local.dagster.query(WIPE, ranges=[{"assetKey": activity}])
    assert made().state == "missing"
    status, output = local.command("reconcile", "shop")
    assert status == 0, output
    assert "reported as materialized: customer_activity: made 2" in output
    assert f"run {lost.run_id[:8]}" in output
    assert (made().state, made().rows) == ("materialized", lost.rows)
    # A receipt of a time before a file was loaded proves nothing.
    local.dagster.query(WIPE, ranges=[{"assetKey": activity}])
    execute(local.postgres.url, "UPDATE migration.aggregate SET made_at = made_at - interval '1 day'")
    assert made().state == "missing"
    status, output = local.command("reconcile", "shop")
    assert "not reported: customer_activity: 3 files were loaded after it was made" in output
    assert made().state == "missing"

    # Two runs are deleted; of one of their files the database knows nothing either.
    for partition in (one, other):
        local.dagster.query(DELETE_RUN, run=before[partition].run_id)
    execute(local.postgres.url, f"DELETE FROM migration.loaded_file WHERE file = '{before[other].file.name}'")
    assert [f.state for f in local.files().values()] == ["missing", "missing", "materialized"]
    status, output = local.command("reconcile", "shop")
    assert status == 0, output
    assert f"reported as materialized: {before[one].file.name}: loaded 2" in output
    assert before[one].run_id[:8] in output
    after = local.files()
    assert [f.state for f in after.values()] == ["materialized", "missing", "materialized"]
    # Tables for people are made of more than the receipt keeps, and its times are rounded otherwise.
    others = ("account", "quarantine_examples", "seconds", "items_per_second")
    assert set(before[one].metadata) - set(after[one].metadata) <= {*others[:2]}
    assert {k: v for k, v in after[one].metadata.items() if k not in others} == {
        k: v for k, v in before[one].metadata.items() if k not in others
    }
    assert local.command("reconcile", "shop")[1].startswith("nothing to do")

    # A receipt of other bytes, or of a time before the profile had one of its tables, proves nothing.
    local.dagster.query(DELETE_RUN, run=before[third].run_id)
    file = before[third].file
    execute(local.postgres.url, f"UPDATE migration.loaded_file SET md5 = 'x' WHERE file = '{file.name}'")
    assert local.command("reconcile", "shop")[1].startswith("nothing to do")
    execute(
        local.postgres.url,
        f"UPDATE migration.loaded_file SET md5 = '{file.md5}' WHERE file = '{file.name}';"
        "UPDATE migration.loaded_file SET rows = rows - 'orders'",
    )
    status, output = local.command("reconcile", "shop")
    assert "before the profile had the table orders" in output
    assert local.files()[third].state == "missing"

    # The other way about: Dagster says that it is loaded, and the database does not.
    execute(local.postgres.url, "TRUNCATE migration.loaded_file")
    status, output = local.command("reconcile", "shop")
    assert status == 1
    assert f"warning: {before[one].file.name}: Dagster shows it as materialized" in output
    assert "backfill shop --all" in output

    status, output = local.command("backfill", "shop", "--all", "--wait")
    assert status == 0, output
    local.assert_whole()


def test_the_checks_run_from_the_ui_and_as_a_job(whole: Local) -> None:
    local = whole
    export = {"path": ["shop", "dynamodb_export"]}
    one = {"assetKey": export, "name": "items_conserved"}
    for target in (
        {"pipelineName": "__ASSET_JOB", "assetSelection": [], "assetCheckSelection": [one]},
        {"pipelineName": "shop_check"},
    ):
        selector = {
            "repositoryName": "__repository__",
            "repositoryLocationName": "migration_pipeline.definitions",
            **target,
        }
        launched = local.dagster.query(LAUNCH, params={"selector": selector})["launchRun"]
        launched_id = launched["run"]["runId"]
        eventually(lambda: local.runs()[0]["status"] in ("SUCCESS", "FAILURE"))
        assert (local.runs()[0]["runId"], local.runs()[0]["status"]) == (launched_id, "SUCCESS")
    (node,) = local.dagster.query(CHECKS, keys=[export])["assetNodes"]
    results = {
        check["name"]: check["executionForLatestMaterialization"]
        for check in node["assetChecksOrError"]["checks"]
    }
    assert results.pop("rows_match_export") is None, "it reads the whole export, and has a job of its own"
    assert {name: check["status"] for name, check in results.items()} == dict.fromkeys(
        [
            "tables_fit", "all_files_loaded", "items_conserved", "md5_matches", "nothing_quarantined", "nothing_unrouted",
            "no_key_collisions_customers", "no_key_collisions_orders", "no_key_collisions_order_lines",
            "made_of_all_files_customer_activity",
        ],
        "SUCCEEDED",
    )  # fmt: skip
