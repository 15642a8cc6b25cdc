"""The whole path as an operator walks it: S3, the command line, and a real Dagster with its queue and daemon."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest

from migration_pipeline.defs.metadata import FILE_TAG
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.stack import Stack, running
from migration_pipeline.migration.plan import planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.backfills import read_backfill
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.operations.runs import log_lines
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import without_waits
from migration_pipeline_tests.oracle import activities, actual, checksum, data_lines, expected
from migration_pipeline_tests.oracle_pictures import SELECT, pictures
from migration_pipeline_tests.s3 import s3_server

Command = Callable[..., tuple[int, str]]

BUCKET = "exports-to-migrate"
SCRIPT = Path(sys.executable).parent / "migration-pipeline"

VISITS_PROFILE = """
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("visits")

class Session(Item):
    PK: str
    ip: str

class Visit(Row, table="visits", key="session_id"):
    session_id: str
    ip: str

@profile.route(PK=prefix("SESSION#"))
def visit(item: Session) -> Visit:
    return Visit(item.PK, item.ip)

profile.ignore(PK=prefix("CUSTOMER#"), because="not asked for")
profile.ignore(PK=prefix("ORDER#"), because="not asked for")
"""


SECOND_TABLE = """
class Line(Item):
    PK: str
    SK: str
    quantity: int

class Count(Row, table="order_counts", key=("order_id", "line")):
    order_id: str
    line: str
    quantity: int

profile.rules.pop()

@profile.route(PK=prefix("ORDER#"))
def count(item: Line) -> Count:
    return Count(item.PK, item.SK, item.quantity)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a state folder")


@pytest.fixture(scope="module")
def environment(home: Path) -> Iterator[dict[str, str]]:
    """What an operator would export, for the stack and for every command."""
    with s3_server() as aws:
        path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
        yield {"MIGRATION_HOME": str(home), "PYTHONPATH": path, **aws}


@pytest.fixture(scope="module")
def stack(home: Path, environment: dict[str, str]) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with running() as started:
            yield started
        EmbeddedPostgres(home).remove()


@pytest.fixture
def command(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, home: Path) -> Command:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [SCRIPT, *arguments], env=dict(os.environ), cwd=home, capture_output=True, text=True, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout + without_waits(done.stderr)

    return run


@contextmanager
def held_for(seconds: float, url: str, lock: str) -> Iterator[None]:
    """Hold a lock until somebody has waited for it for some seconds."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(lock)

        def release() -> None:
            while not query(url, "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'relation'"):
                time.sleep(0.1)
            time.sleep(seconds)
            connection.rollback()

        releasing = threading.Thread(target=release, daemon=True)
        releasing.start()
        yield
        releasing.join(seconds)
        assert not releasing.is_alive(), "nobody waited for it"


def upload(export: Path, prefix: str) -> str:
    s3 = boto3.Session().client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for path in export.rglob("*"):
        if path.is_file():
            s3.upload_file(
                str(path), BUCKET, f"{prefix}/AWSDynamoDB/{export.name}/{path.relative_to(export)}"
            )
    return f"s3://{BUCKET}/{prefix}/AWSDynamoDB/{export.name}"


def statuses(stack: Stack, home: Path, name: str) -> list[FileStatus]:
    path = Path(plan_path(home / "plans", name))
    plan = read_plan(path)
    return read_files(DagsterClient(stack.webserver_url), plan, planned_profile(plan, path))


def test_a_migration_from_plan_to_mended_failure(
    stack: Stack, command: Command, home: Path, tmp_path: Path
) -> None:
    export = write_sample(tmp_path, items=8_000, files=5, seed=11)
    location = upload(export, "backup")
    s3 = boto3.Session().client("s3")

    # Plan, and create the tables.
    status, output = command("plan", "--profile", "shop", location)
    assert status == 0
    assert re.match(r"planned 5 files, 8,000 items, 4\d\d\.\d kB compressed: ", output), output
    assert command("plan", "--profile", "shop", location)[1].startswith("unchanged: 5 files")
    status, ddl = command("ddl", "shop")
    assert status == 0
    execute(stack.database_url, ddl)

    # One file breaks: it fails alone, and the command says which and why.
    victim = sorted(p.name for p in (export / "data").iterdir())[1]
    key = f"backup/AWSDynamoDB/{export.name}/data/{victim}"
    whole = (export / "data" / victim).read_bytes()
    s3.put_object(Bucket=BUCKET, Key=key, Body=whole[: len(whole) // 2])
    status, output = command("backfill", "shop", "--wait")
    assert status == 1
    assert f"failed: {victim}" in output
    assert "the file is truncated" in output
    assert "4 of 5 files materialized, 1 failed" in output
    files = statuses(stack, home, "shop")
    assert {f.file.name: f.state for f in files} == {
        f.file.name: "failed" if f.file.name == victim else "materialized" for f in files
    }
    status, output = command("status", "shop")
    assert status == 1
    line = next(line for line in output.splitlines() if line.startswith(victim))
    assert "failed" in line
    assert "truncated: copy it again" in line
    assert query(stack.database_url, f"SELECT * FROM migration.loaded_file WHERE file = '{victim}'") == []

    # Mended, only that file loads again.
    before = {f.file.name: f.run_id for f in files}
    s3.put_object(Bucket=BUCKET, Key=key, Body=whole)
    status, output = command("retry-failed", "shop", "--wait")
    assert status == 0, output
    assert "of 1 file" in output
    files = statuses(stack, home, "shop")
    assert {f.state for f in files} == {"materialized"}
    assert {f.file.name for f in files if before[f.file.name] != f.run_id} == {victim}
    status, output = command("status", "shop")
    assert (status, output.splitlines()[-1]) == (0, "5 of 5 files materialized")

    # The tables hold what the export says; so does the metadata.
    rows, counts = expected(export)
    connection = psycopg2.connect(stack.database_url)
    assert actual(connection) == rows
    activity = query(stack.database_url, "SELECT * FROM customer_activity ORDER BY customer_id")
    assert activity == activities(rows)
    assert sum(f.metadata["items"] for f in files) == counts["items"] == 8_000
    assert sum(f.metadata["rows_by_table"].get("orders", 0) for f in files) == len(rows["orders"])
    assert all(
        f.metadata["items"] == f.metadata["loaded"] + f.metadata["skipped"] + f.metadata["quarantined"]
        for f in files
    )
    receipts = query(
        stack.database_url, "SELECT file, run_id FROM migration.loaded_file WHERE profile = 'shop'"
    )
    assert dict(receipts) == {f.file.name: f.run_id for f in files}

    # Everything is there: nothing to do. From the beginning once more: nothing changes.
    assert command("backfill", "shop") == (
        0, "5 of 5 files materialized: nothing to launch (--all loads them again)\n",
    )  # fmt: skip
    assert command("retry-failed", "shop")[1] == "5 of 5 files materialized: nothing to retry\n"
    # Unless items were replayed meanwhile, of which Dagster knows nothing.
    replayed = "UPDATE migration.loaded_file SET loaded_at = clock_timestamp() WHERE profile = 'shop'"
    execute(stack.database_url, replayed)
    status, output = command("backfill", "shop", "--wait")
    assert (status, "customer_activity materialized" in output) == (0, True), output
    assert "nothing to launch" in command("backfill", "shop")[1]
    once = checksum(connection)
    status, output = command("backfill", "shop", "--all", "--wait")
    assert status == 0, output
    assert checksum(connection) == once
    connection.close()


def test_a_profile_of_ones_own_is_found_by_a_running_dagster(
    stack: Stack, command: Command, home: Path, tmp_path: Path
) -> None:
    """A new plan of a module outside the package: the command reloads the code, and Dagster loads the files."""
    package = home / "my_package"
    package.mkdir()
    (package / "visits.py").write_text(VISITS_PROFILE)
    export = write_sample(tmp_path, items=500, files=2, seed=2)
    copy = tmp_path / "an export copied elsewhere"
    shutil.copytree(export, copy)
    reference = "my_package.visits:profile"
    assert command("plan", "--profile", reference, str(copy))[0] == 0
    assert command("ddl", reference, "--apply")[0] == 0
    status, output = command("backfill", reference, "--wait")
    assert status == 0, output
    assert output.splitlines()[-1] == "2 of 2 files materialized"
    assert query(stack.database_url, "SELECT count(*) FROM visits") == [(130,)]
    assert command("status", "visits")[0] == 0

    # A table added to a planned profile is not passed over: no file has it yet.
    (package / "visits.py").write_text(VISITS_PROFILE + SECOND_TABLE)
    status, output = command("status", reference)
    assert (status, "does not have all tables of visits yet" in output) == (1, True)
    assert "-- applied" in command("ddl", reference, "--apply")[1]
    status, output = command("backfill", reference, "--wait")
    assert (status, output.splitlines()[-1]) == (0, "2 of 2 files materialized")
    assert query(stack.database_url, "SELECT count(*) > 0 FROM order_counts") == [(True,)]


def test_many_small_files_share_a_run_and_fail_alone(
    stack: Stack, command: Command, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(home))
    (home / "small.py").write_text(VISITS_PROFILE.replace('"visits"', '"small"'))
    export = write_sample(tmp_path, items=1_200, files=13, seed=4)
    assert command("plan", "--profile", "small:profile", "--files-per-run", "5", str(export))[0] == 0
    execute(stack.database_url, command("ddl", "small:profile")[1])
    victim = sorted(export.glob("data/*.json.gz"))[2]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-20])
    status, output = command("backfill", "small", "--wait")
    assert status == 1
    assert "12 of 13 files materialized, 1 failed" in output
    assert f"failed: {victim.name}" in output
    files = statuses(stack, home, "small")
    assert len({file.run_id for file in files}) == 3
    # The list of runs says which files are in which.
    for run in {file.run_id for file in files}:
        tags = DagsterClient(stack.webserver_url).query(TAGS, run=run)["runOrError"]["tags"]
        keys = [file.partition for file in files if file.run_id == run]
        assert {"key": FILE_TAG, "value": f"{keys[0]}..{keys[-1]}"} in tags
    # What the run has recorded tells which of its files are over, and so which one it is loading.
    lines, _ = log_lines(DagsterClient(stack.webserver_url), files[0].run_id)
    assert {line.partition for line in lines if line.partition} == {
        file.partition for file in files if file.run_id == files[0].run_id and file.state == "materialized"
    }
    # Of a run that it shares, a file's log has its own lines and the run's.
    status, output = command("logs", "small", victim.name)
    assert status == 0
    assert f"{victim.name}: start" in output
    assert "run started" in output
    assert all(file.file.name not in output for file in files if file.file.name != victim.name)
    assert all(f.metadata["items"] == f.file.items for f in files if f.state == "materialized")
    victim.write_bytes(whole)
    assert command("retry-failed", "small", "--wait")[0] == 0
    assert sum(file.metadata["items"] for file in statuses(stack, home, "small")) == 1_200
    assert query(stack.database_url, "SELECT count(*) FROM small") == [(312,)]


TAGS = "query Tags($run: ID!) { runOrError(runId: $run) { ... on Run { tags { key value } } } }"

RUNS = """query Runs($backfill: String!) {
  runsOrError(filter: {tags: [{key: "dagster/backfill", value: $backfill}]}) {
    ... on Runs { results { runId status startTime endTime assetSelection { path } } }
  }
}"""


def launch_all(stack: Stack, profile: str, config: Any) -> str:
    """Materialize all, as the UI does it: all assets of the group, all partitions."""
    instance = DagsterClient(stack.webserver_url)
    nodes = instance.query("{ assetNodes { assetKey { path } groupName isMaterializable } }")["assetNodes"]
    keys = [n["assetKey"] for n in nodes if n["groupName"] == profile and n["isMaterializable"]]
    parameters = {"assetSelection": keys, "allPartitions": True, "runConfigData": config}
    launched = instance.query(
        "mutation L($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) "
        "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on Error { message } } }",
        p=parameters,
    )["launchPartitionBackfill"]
    backfill_id = str(launched["backfillId"])
    deadline = time.monotonic() + 300
    while not read_backfill(instance, backfill_id).over:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return backfill_id


def test_a_backfill_of_the_whole_group_makes_files_then_aggregates_then_finishes(
    stack: Stack, command: Command, tmp_path: Path
) -> None:
    export = write_sample(tmp_path, items=1_200, files=3, seed=6, profile="pictures")
    assert command("plan", "--profile", "pictures", "--option", "max_id=350", str(export))[0] == 0
    assert command("ddl", "pictures", "--apply")[0] == 0
    instance = DagsterClient(stack.webserver_url)
    plan = read_plan(plan_path(Path(os.environ["MIGRATION_HOME"]) / "plans", "pictures"))
    profile = planned_profile(plan, Path("pictures.json"))
    instance.load_plan(plan, profile)
    # This run is to have another option than the plan.
    options = {"ops": {"pictures_load": {"config": {"options": {"max_id": 300}}}}}
    backfill_id = launch_all(stack, "pictures", options)
    assert read_backfill(instance, backfill_id).status == "COMPLETED_SUCCESS"
    runs = instance.query(RUNS, backfill=backfill_id)["runsOrError"]["results"]
    made = {key["path"][1]: run for run in runs for key in run["assetSelection"]}
    files = [
        run for run in runs if ["pictures", "picture_items"] in [k["path"] for k in run["assetSelection"]]
    ]
    assert len(files) == 3
    assert max(run["endTime"] for run in files) <= made["picture"]["startTime"]
    assert made["picture"]["startTime"] <= made["finishing"]["startTime"]
    items = [json.loads(line)["Item"] for _, _, line in data_lines(export)]
    exported = datetime.fromisoformat(plan.exports[0].export_time.replace("Z", "+00:00"))
    rows = pictures(items, exported, max_id=300)
    assert query(stack.database_url, SELECT) == rows
    assert query(stack.database_url, "SELECT nextval('picture_id_seq')") == [(rows[-1][0] + 1,)]
    skipped = "SELECT sum((skipped ->> 'picture_item: no row')::int) FROM migration.loaded_file WHERE profile = 'pictures'"
    assert query(stack.database_url, skipped)[0][0] > 0
    # The commands see the same, and go on from there.
    status, output = command("status", "pictures")
    assert status == 0, output
    line = next(line for line in output.splitlines() if line.startswith("picture "))
    assert "materialized" in line
    assert f"{len(rows)}" in line
    assert "nothing to launch" in command("backfill", "pictures")[1]

    # A file that fails keeps back what is made of all files, which retry-failed makes then.
    victim = max(export.glob("data/*.json.gz"), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-20])
    status, output = command("backfill", "pictures", "--all", "--wait")
    assert status == 1
    assert "then: picture, finishing" in output
    assert "picture missing, finishing missing" in output
    assert query(stack.database_url, SELECT) == rows, "the file's slice of before is still there"
    victim.write_bytes(whole)
    with held_for(
        6, stack.database_url, "LOCK TABLE picture IN SHARE MODE"
    ):  # else it is made between two looks
        status, output = command("retry-failed", "pictures", "--wait")
    assert status == 0, output
    assert "picture materialized, finishing materialized" in output
    assert re.search(r"^\d\d:\d\d:\d\d  picture: ", output, re.MULTILINE), "it tells what it makes"
    rows = pictures(items, exported, max_id=350)
    assert query(stack.database_url, SELECT) == rows, "the plan's option, as no run had another"
    status, output = command("verify", "pictures", "--extra")
    assert (status, f"{len(rows)}" in output) == (0, True), output


def test_calls_that_cannot_work_say_why(
    command: Command, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, output = command("status", "nothing_planned")
    assert status == 2
    assert "no plan; make one with: migration-pipeline plan --profile nothing_planned" in output
    (home / "other.py").write_text(VISITS_PROFILE)
    status, output = command("status", "other:profile")
    assert status == 2
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    status, output = command("status", "shop")
    assert (status, output) == (
        1, "error: no Dagster at http://127.0.0.1:1; start it with `migration-pipeline dev`, or set MIGRATION_DAGSTER_URL\n",
    )  # fmt: skip
