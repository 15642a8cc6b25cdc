"""A night with the commands: a careful first step, a slow file, a failure, a stop; the metrics, and the report."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.stack import CODE_MODULE, Stack, running
from migration_pipeline.migration.plan import planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.metrics import MigrationCollector
from migration_pipeline.operations.runs import run_status
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import run_workers, without_waits
from migration_pipeline_tests.s3 import s3_server
from migration_pipeline_tests.unit.test_monitoring import documented_metrics

SCRIPT = Path(sys.executable).parent / "migration-pipeline"
BUCKET = "exports-of-a-night"
SECONDS = 180

NIGHT = """
import time
from pathlib import Path
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("night")
slowly = Path(__file__).parent / "slowly"

class Session(Item):
    PK: str
    ip: str

class Visit(Row, table="visits", key="session_id"):
    session_id: str
    ip: str

@profile.route(PK=prefix("SESSION#"))
def visit(item: Session) -> Visit:
    if slowly.exists():
        time.sleep(0.1)
    return Visit(item.PK, item.ip)

profile.ignore(PK=prefix("CUSTOMER#"), because="<script>alert(1)</script> & \\"quotes\\"")
profile.ignore(because="not asked for")
"""
"""While the file `slowly` is there, a file takes more than a minute."""

TAKES_THE_REST = 'profile.ignore(because="not asked for")'

SOME_FAIL = ("    return Visit", '    assert not item.PK.endswith("7")\n    return Visit')
"""What to change so that sessions go to the quarantine."""


@dataclass
class Night:
    """The stack, the export, and an operator at a terminal."""

    home: Path
    environment: dict[str, str]
    stack: Stack
    files: list[str]
    """Names of the files with items, in load order."""
    uri: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    """All that were started, to end what a failed test leaves."""

    def popen(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        given: dict[str, Any] = {
            "env": self.environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **more
        }  # fmt: skip
        process = subprocess.Popen(
            [SCRIPT, *arguments], cwd=self.home, text=True, start_new_session=True, **given
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.popen(*arguments)
        output, _ = process.communicate(timeout=SECONDS)
        assert "Traceback" not in output, output
        return process.returncode, without_waits(output)

    def json(self) -> dict[str, Any]:
        status, output = self.run("status", "night", "--json")
        document: dict[str, Any] = json.loads(output)
        loaded = document["files_by_state"]["materialized"] == document["files"]
        left = document["items_quarantined"] + document["items_unrouted"]
        finished = all(each["state"] == "materialized" for each in document["then"])
        assert document["complete"] == (loaded and finished and not left)
        assert status == (0 if document["complete"] else 1)
        return document

    def of(self, document: dict[str, Any], state: str) -> list[dict[str, Any]]:
        return [file for file in document["by_file"] if file["state"] == state]

    @property
    def slowly(self) -> Path:
        return self.home / "slowly"

    def spoil(self, file: str) -> Callable[[], None]:
        """Cut a file in the middle; gives what makes it whole again."""
        s3 = boto3.Session().client("s3")
        key = f"night/AWSDynamoDB/{self.uri.rpartition('/')[2]}/data/{file}"
        whole = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        s3.put_object(Bucket=BUCKET, Key=key, Body=whole[: len(whole) // 2])
        return lambda: s3.put_object(Bucket=BUCKET, Key=key, Body=whole) and None


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    home = tmp_path_factory.mktemp("a night")
    (home / "night.py").write_text(NIGHT)
    with contextlib.ExitStack() as ends:
        path = os.pathsep.join(filter(None, (str(home), os.environ.get("PYTHONPATH"))))
        settings = {"MIGRATION_HOME": str(home), "PYTHONPATH": path}
        patch = ends.enter_context(pytest.MonkeyPatch.context())
        for name, value in (settings | ends.enter_context(s3_server())).items():
            patch.setenv(name, value)
        export = write_sample(home / "export", items=12_000, files=5, seed=5, bad=0)
        uri = _upload(export)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PG", "DAGSTER_"))
        }
        planned = [str(SCRIPT), "plan", "--profile", "night:profile", uri]
        assert subprocess.run(planned, env=environment, cwd=home, timeout=SECONDS).returncode == 0
        ends.callback(EmbeddedPostgres(home).remove)
        stack = ends.enter_context(running())  # after the plan, so that it knows the plan from the beginning
        names = sorted(path.name for path in (export / "data").iterdir() if path.stat().st_size > 100)
        made = Night(home, environment, stack, names, uri)
        assert made.run("ddl", "night:profile", "--apply")[0] == 0
        yield made


def _upload(export: Path) -> str:
    s3 = boto3.Session().client("s3")
    s3.create_bucket(Bucket=BUCKET)
    for path in export.rglob("*"):
        if path.is_file():
            key = f"night/AWSDynamoDB/{export.name}/{path.relative_to(export)}"
            s3.upload_file(str(path), BUCKET, key)
    return f"s3://{BUCKET}/night/AWSDynamoDB/{export.name}"


@pytest.fixture(autouse=True)
def _settings(night: Night, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in night.environment.items():
        if name.startswith(("MIGRATION_", "AWS_")):
            monkeypatch.setenv(name, value)
    yield
    night.slowly.unlink(missing_ok=True)
    for process in night.processes:
        process.kill()
        process.communicate()
    night.processes.clear()


def eventually(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.3)
    return found


# -- metrics -----------------------------------------------------------------------------------------


class Metrics:
    """A server of metrics, and what it said."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def text(self) -> str:
        response = requests.get(self.url, timeout=60)
        assert response.status_code == 200, response.text
        return response.text

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Give samples by name and label values; the label of the profile is left out."""
        return {
            (
                sample.name,
                *(value for name, value in sample.labels.items() if name != "profile"),
            ): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }


@pytest.fixture
def metrics(night: Night) -> Iterator[Metrics]:
    with _metrics(night) as serving:
        yield serving


@contextlib.contextmanager
def _metrics(night: Night, **environment: str) -> Iterator[Metrics]:
    process = night.popen("metrics", "--port", "0", env=night.environment | environment)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.match(r"serving (http://127\.0\.0\.1:\d+/metrics) of night; Ctrl-C ends it", line)
        assert found, line
        yield Metrics(process, found[1])
        assert process.poll() is None, "it serves whatever happens"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert "Traceback" not in output, output
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


# -- the night, in order -----------------------------------------------------------------------------


def test_before_the_first_file(night: Night, metrics: Metrics) -> None:
    document = night.json()
    assert document["files_by_state"] == {
        "materialized": 0, "failed": 0, "stopped": 0, "running": 0, "queued": 0, "launched": 0, "missing": 5
    }  # fmt: skip
    assert document["newest_backfill"] is None
    assert night.run("stop", "night")[1].startswith("nothing to stop: ")
    status, output = night.run("logs", "night", night.files[0])
    assert (status, "no run has tried it yet" in output) == (1, True)
    scrape = metrics.scrape()
    assert scrape["migration_files", "missing"] == 5
    assert scrape["migration_loaded_files",] == scrape["migration_items", "loaded"] == 0
    status, output = night.run("report", "night", "-o", "before.html")
    assert (status, output.splitlines()[-1]) == (1, "not complete: before.html")
    assert "0 of 5 files have a receipt" in output


def test_a_careful_first_step(night: Night) -> None:
    status, output = night.run("backfill", "night", "--files", "1", "--wait")
    assert (status, output.splitlines()[-1]) == (0, "1 of 1 file materialized")
    (first,) = night.of(night.json(), "materialized")
    assert first == night.json()["by_file"][0]
    name = night.files[2]
    status, output = night.run("backfill", "night", "--only", name[:8], "--wait")
    assert status == 0, output
    assert {f["file"] for f in night.of(night.json(), "materialized")} == {first["file"], name}
    status, output = night.run("backfill", "night", "--only", name)
    assert (status, output) == (0, "1 of 1 file materialized: nothing to launch (--all loads them again)\n")
    status, output = night.run("backfill", "night", "--only", "no-such-file")
    assert (status, "no file in the plan of night is named like no-such-file" in output) == (2, True)


def test_a_slow_file_is_seen_from_everywhere_and_stopped(night: Night, metrics: Metrics) -> None:
    night.slowly.touch()
    terminal, shown = _on_a_terminal(night, "backfill", "night", "--all", "--wait")
    document = eventually(
        lambda: (
            (d := night.json()) and any(f["progress"] and f["progress"]["items"] for f in d["by_file"]) and d
        )
    )
    # status, as a table and as JSON
    (loading,) = night.of(document, "running")
    assert 0 < loading["progress"]["items"] < loading["items"]
    assert loading["progress"]["items_per_second"] > 0
    assert night.of(document, "queued")
    assert document["newest_backfill"]["status"] == "REQUESTED"
    line = next(line for line in night.run("status", "night")[1].splitlines() if loading["file"] in line)
    assert re.search(r"running .* \d+%, [\d,]+ items/s, [\d:]+ left$", line), line
    watched = night.popen("status", "night", "--watch")
    assert watched.stdout
    assert "1 running" in watched.stdout.readline()
    _end(watched)

    # its log, by a part of its name, and on
    status, output = night.run("logs", "night", loading["file"][3:12])
    assert status == 0
    assert re.search(rf"{loading['file']}: \d+%, [\d,]+ of {loading['items']:,} items", output)
    followed = night.popen("logs", "night", loading["file"], "--follow")

    # the metrics
    scrape = eventually(lambda: (s := metrics.scrape())["migration_running_items",] and s)
    assert scrape["migration_files", "running"] == 1
    assert scrape["migration_running_items_per_second",] > 0
    assert (
        scrape["migration_oldest_running_file_age_seconds",]
        > scrape["migration_longest_silence_seconds",]
        > 0
    )
    assert scrape["migration_newest_backfill", "REQUESTED"] == scrape["migration_active_backfills",] == 1
    assert scrape["migration_up", "dagster"] == scrape["migration_up", "database"] == 1
    text = metrics.text()
    assert set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)) == set(documented_metrics())
    for name, labels in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE):
        assert set(re.findall(r"(\w+)=\"", labels)) == documented_metrics()[name]
    if promtool := shutil.which("promtool"):
        linted = subprocess.run(
            [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
        )
        assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")

    # --all loads nothing that is being loaded
    status, output = night.run("backfill", "night", "--all", "--only", loading["file"])
    assert status == 0, output
    assert "left out, as they are running, queued or launched: 1 file\n" in output
    assert "nothing to launch" in output

    # Ctrl-C leaves the backfill
    os.write(terminal, b"\x03")
    screen = shown()
    assert re.search(rf"{loading['file'][:20]}.*\d+%.*items/s", screen), screen[-2000:]
    assert re.search(r"backfill \w+ goes on; follow it with .*status.*, stop it with .*stop", screen)
    assert night.json()["newest_backfill"]["status"] == "REQUESTED"

    # stop ends it
    status, output = night.run("stop", "night")
    assert status == 0, output
    assert "cancelled 1 backfill, terminated " in output
    assert re.search(r"^next: to go on, migration-pipeline backfill night:profile", output, re.MULTILINE)
    log, _ = followed.communicate(timeout=SECONDS)
    assert log.rstrip().endswith("run terminated"), log
    document = night.json()
    assert document["newest_backfill"]["status"] == "CANCELED"
    assert not night.of(document, "running")
    assert not night.of(document, "queued")
    scrape = metrics.scrape()
    assert scrape["migration_active_backfills",] == scrape["migration_files", "running"] == 0
    assert scrape["migration_files", "stopped"] == document["files_by_state"]["stopped"] > 0


LAUNCH_RUN = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { id } } }
}"""


def test_a_run_of_no_backfill_is_stopped_too(night: Night) -> None:
    """As somebody launches it in the UI, for one partition."""
    night.slowly.touch()
    partition = next(f["partition"] for f in night.json()["by_file"] if f["file"] == night.files[0])
    selector = {
        "repositoryLocationName": CODE_MODULE, "repositoryName": "__repository__", "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": ["night", "visits"]}],
    }  # fmt: skip
    tags = {"tags": [{"key": "dagster/partition", "value": partition}]}
    instance = DagsterClient(night.stack.webserver_url)
    launched = instance.query(
        LAUNCH_RUN, params={"selector": selector, "runConfigData": {}, "executionMetadata": tags}
    )["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess"
    eventually(lambda: night.of(night.json(), "running"))
    status, output = night.run("stop", "night")
    assert (status, "cancelled 0 backfills, terminated 1 run" in output) == (0, True), output
    assert run_status(instance, launched["run"]["id"]) == "CANCELED"


def test_a_worker_that_hangs_cannot_hide(night: Night, metrics: Metrics) -> None:
    night.slowly.touch()
    launched = night.run("backfill", "night", "--all", "--only", night.files[0])
    assert launched[0] == 0, launched
    eventually(lambda: metrics.scrape()["migration_running_items",])
    (worker,) = run_workers(night.home)
    worker.suspend()
    try:
        silent = eventually(lambda: (s := metrics.scrape())["migration_longest_silence_seconds",] > 12 and s)
        assert silent["migration_files", "running"] == 1
        assert (
            metrics.scrape()["migration_longest_silence_seconds",]
            >= silent["migration_longest_silence_seconds",]
        )
    finally:
        worker.resume()
    night.slowly.unlink()
    eventually(lambda: night.json()["newest_backfill"]["status"] == "COMPLETED_SUCCESS")


def test_a_failed_file_is_told_and_retried(night: Night, metrics: Metrics) -> None:
    victim = night.files[1]
    mend = night.spoil(victim)
    status, output = night.run("backfill", "night", "--wait", "--all")
    assert status == 1
    assert f"failed: {victim}" in output
    (failed,) = night.of(night.json(), "failed")
    assert "the file is truncated" in failed["error"]
    status, log = night.run("logs", "night", victim)
    assert status == 0
    assert "the file is truncated" in log
    scrape = metrics.scrape()
    assert scrape["migration_files", "failed"] == 1
    assert scrape["migration_newest_backfill", "COMPLETED_FAILED"] == 1

    status, output = night.run("report", "night", "-o", "failed.html")
    assert (status, output.splitlines()[-1]) == (1, "not complete: failed.html")
    assert "the file is truncated" in (night.home / "failed.html").read_text()

    mend()
    status, output = night.run("retry-failed", "night", "--wait")
    assert (status, output.splitlines()[-1]) == (0, "1 of 1 file materialized")

    status, log = night.run("logs", "night", victim)
    assert (status, "the file is truncated" in log) == (0, False)
    assert re.search(r"try (\d+) of \1 \(--all prints the others, too\), success", log), log
    status, log = night.run("logs", "night", victim, "--all")
    assert status == 0
    tries = list(re.finditer(r"try (\d+) of \d+, (\w+)", log))
    assert [int(each[1]) for each in tries] == list(range(1, len(tries) + 1))
    assert [each[2] for each in tries[-2:]] == ["failure", "success"]
    assert tries[-2].start() < log.index("the file is truncated") < tries[-1].start()
    alone, _ = night.popen("logs", "night", victim, "--all", stderr=subprocess.DEVNULL).communicate(
        timeout=SECONDS
    )
    assert alone.count(", try ") == len(tries), "told apart in a file, too"


def test_it_is_over(night: Night, metrics: Metrics) -> None:
    """The numbers of the metrics and of the report are the database's."""
    rows = query(night.stack.database_url, "SELECT count(*) FROM visits")[0][0]
    assert rows == 3_120
    scrape = metrics.scrape()
    assert scrape["migration_files", "materialized"] == scrape["migration_loaded_files",] == 5
    assert scrape["migration_rows", "visits"] == scrape["migration_items", "loaded"] == rows
    assert sum(scrape["migration_items", what] for what in ("loaded", "skipped", "quarantined")) == 12_000
    assert scrape["migration_skipped_items", "not asked for"] > 0
    assert scrape["migration_unrouted_items",] == scrape["migration_quarantine_items",] == 0
    assert scrape["migration_unproven_files",] == scrape["migration_unconserved_files",] == 0
    status, output = night.run("status", "night", "--watch")
    assert (status, output.splitlines()[-1]) == (0, "5 of 5 files materialized")

    status, output = night.run("report", "night", "-o", "unproven.html")
    assert (status, "next: migration-pipeline verify night:profile" in output) == (1, True), output
    assert "Not verified." in Page(night.home / "unproven.html").text
    status, output = night.run("verify", "night")
    assert (status, f"all {rows:,} rows of the export are in the tables, and no others" in output) == (
        0,
        True,
    )
    status, output = night.run("report", "night", "-o", "done.html")
    assert (status, output.splitlines()[-1]) == (0, "complete: done.html")
    page = Page(night.home / "done.html")
    assert page.external == []
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4
    assert '<script>alert(1)</script> & "quotes"' in page.text
    assert re.search(r"= accounted for\s+12,000", page.text)
    assert re.search(r"visits\s+3,120\s+3,120\s+0", page.text)
    assert "batch_items" in page.text
    assert all(name.removesuffix(".json.gz") in page.text for name in night.files)

    # No value of an item, and no secret, is anywhere.
    told = page.text + metrics.text() + night.run("status", "night", "--json")[1]
    for key, ip in query(night.stack.database_url, "SELECT session_id, ip FROM visits LIMIT 200"):
        assert key not in told
        assert ip not in told
    assert "a-s3cret" not in told


def test_a_scrape_costs_a_fixed_number_of_queries(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(night.home))
    path = Path(plan_path(night.home / "plans", "night"))
    plan = read_plan(path)
    asked: list[str] = []

    class Counting(DagsterClient):
        def query(self, text: str, **variables: Any) -> dict[str, Any]:
            asked.append(text)
            return super().query(text, **variables)

    instance = Counting(night.stack.webserver_url)
    collector = MigrationCollector(plan, planned_profile(plan, path), instance, night.stack.database_url)
    names = {metric.name for metric in collector.collect()}
    assert "migration_unproven_files" in names
    assert len(asked) == 5, "one of them for what open backfills are still to load"
    assert {metric.name for metric in collector.collect()} == names
    assert len(asked) == 5, "at once again: the same numbers"


def test_without_dagster_and_without_the_database(night: Night) -> None:
    nowhere = {"MIGRATION_DAGSTER_URL": "http://127.0.0.1:1"}
    with _metrics(night, **nowhere) as metrics:
        scrape = metrics.scrape()
        assert (scrape["migration_up", "dagster"], scrape["migration_up", "database"]) == (0, 1)
        assert scrape["migration_loaded_files",] == 5
        assert scrape["migration_scrape_errors_total", "dagster"] >= 1
        assert ("migration_files", "failed") not in scrape
    night.environment |= nowhere
    try:
        status, output = night.run("report", "night", "-o", "alone.html")
    finally:
        del night.environment["MIGRATION_DAGSTER_URL"]
    assert (status, output.splitlines()[-1]) == (0, "complete: alone.html")
    assert "Without Dagster." in Page(night.home / "alone.html").text

    password = "hunter2hunter2"
    with _metrics(night, MIGRATION_DATABASE_URL=f"postgresql://me:{password}@127.0.0.1:1/x") as metrics:
        scrape = metrics.scrape()
        assert (scrape["migration_up", "dagster"], scrape["migration_up", "database"]) == (1, 0)
        assert scrape["migration_files", "materialized"] == 5
        assert ("migration_loaded_files",) not in scrape
        assert password not in metrics.text()


def test_items_that_are_left_over_are_no_success(night: Night, metrics: Metrics) -> None:
    module, file = night.home / "night.py", night.files[2]
    mended = NIGHT.replace(TAKES_THE_REST, "")
    module.write_text(mended.replace(*SOME_FAIL))
    loading = ("backfill", "night", "--all", "--only", file, "--wait")
    status, output = night.run(*loading)
    (left,) = (f for f in night.json()["by_file"] if f["file"] == file)
    assert left["quarantined"] > 5
    assert left["unrouted"] > 100
    unrouted = f"not complete: no rule takes {left['unrouted']:,} items, with keys PK=ORDER#… ({left['unrouted']:,}); "
    bad = f"not complete: {left['quarantined']:,} items are in the quarantine; "
    assert (status, "1 of 1 file materialized" in output) == (1, True), output
    assert (unrouted in output, bad in output) == (True, True), output
    for words in (("status", "night"), ("status", "night", "--watch"), ("backfill", "night", "--wait")):
        status, output = night.run(*words)
        assert (status, unrouted in output, bad in output) == (1, True, True), output
    document = night.json()
    assert (document["items_unrouted"], document["unrouted_by_keys"]) == (
        left["unrouted"], {"PK=ORDER#…": left["unrouted"]}
    )  # fmt: skip
    assert (document["items_quarantined"], document["complete"]) == (left["quarantined"], False)
    scrape = metrics.scrape()
    assert scrape["migration_unrouted_items",] == left["unrouted"]
    assert scrape["migration_quarantine_items",] == left["quarantined"]

    # A replay takes the bad ones out, though the file's materialization still tells of them.
    module.write_text(mended)
    assert night.run("replay", "night")[0] == 0
    status, output = night.run("status", "night")
    assert (status, unrouted in output, "quarantine" in output) == (1, True, False), output
    nowhere = {"MIGRATION_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    process = night.popen("status", "night", env=night.environment | nowhere)
    assert bad in process.communicate(timeout=SECONDS)[0], (
        "without the database only the materialization tells"
    )

    module.write_text(NIGHT)
    assert night.run(*loading)[0] == 0
    assert night.json()["complete"]


def test_a_receipt_that_is_gone_is_told(night: Night, metrics: Metrics) -> None:
    execute(night.stack.database_url, f"DELETE FROM migration.loaded_file WHERE file = '{night.files[0]}'")
    scrape = metrics.scrape()
    assert scrape["migration_unproven_files",] == 1
    assert scrape["migration_files", "materialized"] == 5
    status, output = night.run("report", "night")
    assert status == 1
    assert f"4 of 5 files have a receipt in the database; not: {night.files[0]}" in output


class Page(HTMLParser):
    """A report, as a browser would take it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.external: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.external += [v for n, v in attributes if n in ("src", "href", "xlink:href", "srcset") and v]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def _on_a_terminal(night: Night, *arguments: str) -> tuple[int, Callable[[], str]]:
    """Run a command on a terminal; gives where to type, and what waits for its end and tells what was shown."""
    ours, theirs = pty.openpty()
    process = night.popen(
        *arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=night.environment | {"COLUMNS": "100", "TERM": "xterm"},
        preexec_fn=lambda: _take_terminal(theirs),
    )  # fmt: skip
    os.close(theirs)

    screen = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while chunk := os.read(ours, 65536):
                screen.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()

    def shown() -> str:
        assert process.wait(SECONDS) == 1
        reader.join()
        os.close(ours)
        # What waits to be shown is thrown away by Ctrl-C, perhaps in the middle of a character.
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode(errors="replace")).replace("\r", "")

    return ours, shown


def _take_terminal(terminal: int) -> None:
    """Make it the process's own, so that Ctrl-C reaches it."""
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
