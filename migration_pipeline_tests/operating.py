"""A migration in operation, for tests: a sample export in S3, a real stack, and the calls that its UI makes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.service import Service
from migration_pipeline.demo.stack import Stack, running
from migration_pipeline.migration.plan import Plan, planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.backfills import read_backfill
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.s3 import s3_server

LOCATION = "migration_pipeline.definitions"
SCRIPT = Path(sys.executable).parent / "migration-pipeline"
PATIENCE_SECONDS = 120

HOLD = """
CREATE TABLE IF NOT EXISTS hold (reason text);
CREATE OR REPLACE FUNCTION wait_while_held() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN WHILE EXISTS (SELECT FROM hold) LOOP PERFORM pg_sleep(0.1); END LOOP; RETURN NEW; END $$;
CREATE OR REPLACE TRIGGER held BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION wait_while_held();
INSERT INTO hold VALUES ('a test')
"""

WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()"
)

RELEASE = "DELETE FROM hold"


class Bucket:
    """A bucket of its own."""

    def __init__(self, name: str, client: Any) -> None:
        self.name = name
        self.client = client
        client.create_bucket(Bucket=name)

    def upload(self, export: Path) -> str:
        """Copy an export; gives its address."""
        for path in export.rglob("*"):
            if path.is_file():
                self.put(f"AWSDynamoDB/{export.name}/{path.relative_to(export)}", path.read_bytes())
        return f"s3://{self.name}/AWSDynamoDB/{export.name}"

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=body)

    def get(self, key: str) -> bytes:
        body: bytes = self.client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix)
        return [each["Key"] for each in found.get("Contents", [])]

    @contextmanager
    def truncated(self, key: str) -> Iterator[None]:
        """Cut an object in half for as long as the context lasts."""
        whole = self.get(key)
        self.put(key, whole[: len(whole) // 2])
        try:
            yield
        finally:
            self.put(key, whole)


def without_waits(output: str) -> str:
    """What a command says, but for what it waits for: on a busy machine it waits longer, and tells it."""
    return re.sub(r"^[\d:]{8}  .* …\n", "", output, flags=re.MULTILINE)


def run_workers(home: Path) -> list[psutil.Process]:
    """The processes of a local stack that execute runs: forks of the one for that, or processes of their own where there is none."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("MIGRATION_HOME") == str(home):
                parent = process.parent()
                forked = parent is not None and "multiprocessing.forkserver" in " ".join(parent.cmdline())
                if forked or "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
    return found


class Operation:
    """A running stack, with what an operator does to it."""

    def __init__(self, stack: Stack, home: Path, environment: dict[str, str]) -> None:
        self.url = stack.webserver_url
        self.database_url = stack.database_url
        self.home = home
        self.environment = environment
        self.plans = environment.get("MIGRATION_PLANS") or str(home / "plans")
        self._instance = DagsterClient(self.url)
        self.query = self._instance.query
        self._others: list[Service] = []

    def command(self, *arguments: str, seconds: float = PATIENCE_SECONDS) -> str:
        """Run a command as on a terminal; it must succeed."""
        done = subprocess.run(
            [SCRIPT, *arguments],
            cwd=self.home,
            env=dict(os.environ) | self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def plan(self, profile: str, location: str, name: str) -> Plan:
        """Plan an export, create its tables, and have Dagster load the plan."""
        self.command("plan", "--profile", profile, location)
        self.command("ddl", profile, "--apply")
        path = plan_path(self.plans, name)
        plan = read_plan(path)
        self._instance.load_plan(plan, planned_profile(plan, path))
        return plan

    def files(self, plan: Plan) -> list[FileStatus]:
        profile = planned_profile(plan, plan_path(self.plans, plan.profile))
        return read_files(self._instance, plan, profile)

    def states(self, plan: Plan) -> list[str]:
        return [file.state for file in self.files(plan)]

    def launch(self, plan: Plan, *, tables: tuple[str, ...], partitions: list[str]) -> str:
        """Launch a backfill, as the dialog of the UI does; gives its id."""
        parameters = {
            "assetSelection": [{"path": [plan.profile, table]} for table in tables],
            "partitionNames": partitions,
        }
        reply = self.query(LAUNCH, parameters=parameters)["launchPartitionBackfill"]
        assert reply["__typename"] == "LaunchBackfillSuccess", reply
        return str(reply["backfillId"])

    def backfill_status(self, backfill: str) -> str:
        return read_backfill(self._instance, backfill).status

    def runs(self, backfill: str | None = None) -> list[dict[str, Any]]:
        """Give the runs, the newest first, each with its tags as a dict."""
        tags = [{"key": "dagster/backfill", "value": backfill}] if backfill else []
        results = self.query(RUNS, filter={"tags": tags})["runsOrError"]["results"]
        return [run | {"tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in results]

    def terminate(self, run_id: str) -> None:
        reply = self.query(TERMINATE, run=run_id)["terminateRun"]
        assert reply["__typename"] == "TerminateRunSuccess", reply

    def hold(self, table: str) -> None:
        """Make files wait in the middle of their load, at the first row that is new in a table, until `release`."""
        execute(self.database_url, HOLD.format(table=table))

    def held(self) -> list[str]:
        """Give the runs of the files that wait."""
        ((waiting,),) = query(self.database_url, WAITING)
        started = [run["id"] for run in self.runs() if run["status"] == "STARTED"]
        return started if len(started) == waiting else []

    def release(self) -> None:
        execute(self.database_url, RELEASE)

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Kill a service of the stack, and all that it started, as a power cut does; start another after the context.

        It ends with the stack.
        """
        killed = psutil.Process(int((self.home / "log" / f"{name}.pid").read_text()))
        command, environment = killed.cmdline(), killed.environ()
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        yield
        if "--socket" in command:
            Path(command[command.index("--socket") + 1]).unlink()
        another = Service(f"second-{name}", self.home / "log")
        self._others.append(another)
        another.start(command, environment)
        another.go()

    def end(self) -> None:
        """End what the stack does not."""
        for service in self._others:
            service.stop()


@contextmanager
def operation(
    home: Path, bucket: str, address: str = "127.0.0.1", **settings: str
) -> Iterator[tuple[Operation, Bucket]]:
    """Run S3, at an address of this machine, and a stack; more settings of the environment may be given."""
    with s3_server(address) as aws, pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join(filter(None, [str(home), os.environ.get("PYTHONPATH")]))
        environment = {"MIGRATION_HOME": str(home), "PYTHONPATH": path, **aws, **settings}
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(home))
        made = Bucket(bucket, boto3.Session().client("s3"))  # plans may be in it
        with running() as stack:
            operator = Operation(stack, home, environment)
            try:
                yield operator, made
            finally:
                operator.end()
        if "MIGRATION_DATABASE_URL" not in settings:
            EmbeddedPostgres(home).remove()


def eventually(condition: Callable[[], object], what: str, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come true: {what}"
        time.sleep(0.3)


LAUNCH = """
mutation Launch($parameters: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $parameters) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}"""

RUNS = """
query Runs($filter: RunsFilter) {
  runsOrError(filter: $filter) { ... on Runs { results { id status jobName tags { key value } } } }
}"""

TERMINATE = """
mutation Terminate($run: String!) {
  terminateRun(runId: $run) { __typename ... on Error { message } }
}"""
