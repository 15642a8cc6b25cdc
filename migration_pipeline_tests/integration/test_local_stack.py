"""The local stack: what it serves, what it refuses, and that nothing of it is left, however it ends."""

import contextlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from dagster import DagsterInstance
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

from migration_pipeline.demo.__main__ import Interval
from migration_pipeline.demo.folders import KEPT, SHORT_LIVED, short_name
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.service import signals_held_back
from migration_pipeline_tests.servers import free_port

PROJECT = Path(__file__).parents[2]

# The stack in a process of its own, as a command would run it: it says where it is, and waits.
RUN = """
import sys
from migration_pipeline.demo import LocalError
from migration_pipeline.demo.stack import running
try:
    with running(int(sys.argv[1]) or None, module=sys.argv[2]) as stack:
        print(stack.webserver_url, flush=True)
        stack.wait()
except LocalError as error:
    print(error, flush=True)
    sys.exit(1)
"""

REMOVE = "from migration_pipeline.demo import stack; stack.remove()"

DEFINITIONS = """
import time
import dagster as dg

@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
def slow() -> None:
    time.sleep(SECONDS)

defs = dg.Definitions([slow], executor=dg.in_process_executor)
"""

TELLING = """
import sys
AHEAD = set(sys.modules)  # what there is before the definitions are loaded

import json, os
import dagster as dg
import psutil
import migration_pipeline.defs.whole

@dg.asset(name="slow", partitions_def=dg.StaticPartitionsDefinition(["a", "b"]))
def slow() -> None:
    imported = [name for name in sys.modules if name.startswith(("migration_pipeline", "dagster")) and name not in AHEAD]
    parent = " ".join(psutil.Process().parent().cmdline())
    with open(TOLD, "a") as file:
        print(json.dumps({"pid": os.getpid(), "parent": parent, "imported": len(imported), "s3": "boto3" in AHEAD}), file=file)

defs = dg.Definitions([slow], executor=dg.in_process_executor)
"""

MAIN = 'from migration_pipeline.cli import main; main(prog_name="migration-pipeline")'
# Somebody who presses Ctrl-C as soon as the words are on the screen, before the call that shows them is over.
AT_ONCE = (
    """import io, os, signal, sys
class Screen(io.TextIOWrapper):
    def write(self, text):
        pressed = "Ctrl-C ends it" in text
        super().write(text.replace("ends it", "ends it^C"))  # as a terminal shows it, and so nobody else presses
        if pressed:
            self.flush()
            os.kill(os.getpid(), signal.SIGINT)
sys.stdout = Screen(sys.stdout.buffer, sys.stdout.encoding, line_buffering=True)
"""
    + MAIN
)

LAUNCH = """mutation($parameters: LaunchBackfillParams!) {
    launchPartitionBackfill(backfillParams: $parameters) { __typename } }"""
RUNS = "{ runsOrError { ... on Runs { results { status tags { key value } } } } }"


class Runner:
    """Starts stacks on one state folder, each in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.state_dir = folder / "state"
        self._modules = folder / "modules"
        self._modules.mkdir()
        self._started: list[subprocess.Popen[str]] = []
        long = folder / ("long" * 30)
        long.mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MIGRATION_")},
            "MIGRATION_HOME": str(self.state_dir),
            "PYTHONPATH": f"{self._modules}:{PROJECT}",
            "TMPDIR": str(long),  # too long for sockets
            "HTTP_PROXY": "http://127.0.0.1:9",  # where nobody answers: nothing local may go there
        }
        self._environment.pop("DAGSTER_HOME", None)

    def write_module(self, name: str, text: str) -> None:
        (self._modules / f"{name}.py").write_text(text)

    def start(self, module: str = "tiny", port: int = 0) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, str(port), module],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def url(self, stack: subprocess.Popen[str]) -> str:
        """The webserver's URL, once all is up."""
        assert stack.stdout
        line = stack.stdout.readline().strip()
        assert line.startswith("http://"), line + stack.stdout.read()
        return line

    def message(self, stack: subprocess.Popen[str]) -> str:
        """What a stack said that did not start."""
        said, _ = stack.communicate(timeout=60)
        assert stack.returncode == 1, said
        return said

    def in_a_terminal(self, *command: str) -> tuple[int, str]:
        """Run a command in a terminal of its own, press Ctrl-C once it is up; gives its exit status, and what it said."""
        child, terminal = pty.fork()
        if child == 0:
            os.environ.clear()
            os.environ.update(self._environment)
            os.execvp(command[0], command)
        said = b""
        with (
            os.fdopen(terminal, "r+b", buffering=0) as screen,
            contextlib.suppress(OSError),
        ):  # the terminal is closed
            while shown := screen.read(4096):
                if b"Ctrl-C ends it" in (said := said + shown) and b"^C" not in said:
                    screen.write(b"\x03")
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status), said.decode()

    def services(self) -> list[psutil.Process]:
        """All processes that run for this state folder, but PostgreSQL's."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def is_empty(self) -> bool:
        """Whether no process is left, PostgreSQL's included."""
        return not self.services() and not EmbeddedPostgres(self.state_dir).running

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            state_dir: str | None = process.environ().get("MIGRATION_HOME")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        return state_dir == str(self.state_dir)

    def end(self) -> None:
        for process in self._started:
            with process:  # closes its output, and reaps it
                process.kill()
        subprocess.run([sys.executable, "-c", REMOVE], env=self._environment, check=True)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path)
    runner.write_module("tiny", DEFINITIONS.replace("SECONDS", "0"))
    runner.write_module("slow", DEFINITIONS.replace("SECONDS", "300"))
    runner.write_module("broken", "import a_module_that_is_missing")
    yield runner
    runner.end()


def ask(url: str, query: str, variables: Any = None) -> Any:
    with requests.Session() as session:
        session.trust_env = False
        return session.post(
            f"{url}/graphql", json={"query": query, "variables": variables}, timeout=30
        ).json()


def runs(url: str) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = ask(url, RUNS)["data"]["runsOrError"]["results"]
    return results


def launch(url: str, *partitions: str) -> None:
    selected = {"assetSelection": [{"path": ["slow"]}], "partitionNames": partitions}
    reply = ask(url, LAUNCH, {"parameters": selected})
    assert reply["data"]["launchPartitionBackfill"]["__typename"] == "LaunchBackfillSuccess", reply


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.1)


def test_the_instance_takes_our_settings_without_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(PROJECT / "dagster.yaml", tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.get() as instance:
        assert isinstance(instance.compute_log_manager, NoOpComputeLogManager)
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert instance.run_coordinator.dequeue_interval_seconds == 1
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 1
        assert not instance.telemetry_enabled
    assert caplog.records == []


def test_runs_a_backfill_and_ends_with_its_run_workers(runner: Runner) -> None:
    stack = runner.start("slow")
    url = runner.url(stack)
    assert (runner.state_dir / "webserver-url").read_text() == url
    launch(url, "a", "b")
    eventually(lambda: any(run["status"] == "STARTED" for run in runs(url)), seconds=20)  # by default: 40

    stack.send_signal(signal.SIGINT)
    stack.wait(timeout=30)
    assert runner.is_empty()
    assert not (runner.state_dir / "webserver-url").exists()

    # The file that was interrupted starts again, with no word from anybody.
    runner.write_module("slow", DEFINITIONS.replace("SECONDS", "0"))
    url = runner.url(runner.start("slow"))
    eventually(lambda: [run["status"] for run in runs(url)].count("SUCCESS") == 2)


@pytest.mark.skipif(sys.platform != "linux", reason="runs are no forks there")
@pytest.mark.parametrize("s3", [False, True])
def test_a_run_is_a_fork_that_has_imported_all_but_the_definitions(runner: Runner, s3: bool) -> None:
    told = runner.state_dir / "told"
    if s3:
        (runner.state_dir / "plans").mkdir(parents=True)
        (runner.state_dir / "plans" / "some.json").write_text('{"exports": [{"uri": "s3://bucket/export"}]}')
    runner.write_module("telling", TELLING.replace("TOLD", repr(str(told))))
    url = runner.url(runner.start("telling"))
    launch(url, "a", "b")
    eventually(lambda: [run["status"] for run in runs(url)].count("SUCCESS") == 2)
    first, second = (json.loads(line) for line in told.read_text().splitlines())
    assert "multiprocessing.forkserver" in first["parent"]
    assert first["pid"] != second["pid"]
    for run in (first, second):
        assert run["imported"] < 50, "of Dagster and this package: without forks some hundreds"
        assert run["s3"] is s3, "S3's client, which a run keeps in memory"


def test_the_daemon_pauses_as_long_as_its_looks_are_long() -> None:
    assert Interval(1) - 0.1 == pytest.approx(0.9)
    assert Interval(1) - 3.0 == pytest.approx(12.0)


@pytest.mark.parametrize("program", [MAIN, AT_ONCE], ids=["up", "at_once"])
def test_ctrl_c_in_a_terminal_ends_dev_and_leaves_nothing(runner: Runner, program: str) -> None:
    status, said = runner.in_a_terminal(sys.executable, "-c", program, "dev", "--port", str(free_port()))
    assert (status, "ending" in said, "Traceback" in said) == (0, True, False), said
    assert runner.is_empty()


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("seconds", [0.5, 2.0, 4.0])
def test_a_signal_in_the_middle_of_the_start_leaves_nothing(
    runner: Runner, sign: signal.Signals, seconds: float
) -> None:
    stack = runner.start()
    time.sleep(seconds)
    stack.send_signal(sign)
    stack.wait(timeout=30)
    assert runner.is_empty()


def test_a_process_is_started_whole_or_not_at_all() -> None:
    started = []

    def start() -> None:
        with signals_held_back():
            os.kill(os.getpid(), signal.SIGINT)
            started.append("process")

    with pytest.raises(KeyboardInterrupt):
        start()
    assert started == ["process"]


def test_starts_where_another_was_killed(runner: Runner) -> None:
    stack = runner.start("slow")
    url = runner.url(stack)
    launch(url, "a")
    eventually(lambda: any(run["status"] == "STARTED" for run in runs(url)))
    stack.kill()
    left = {process.pid for process in runner.services()}
    assert left

    stack = runner.start("tiny", port=int(url.rpartition(":")[2]))
    assert runner.url(stack) == url
    assert left.isdisjoint(process.pid for process in runner.services())


def test_remove_ends_and_deletes_what_a_killed_stack_left(runner: Runner) -> None:
    stack = runner.start()
    runner.url(stack)
    stack.kill()
    runner.end()
    assert runner.is_empty()
    for shared in (KEPT, SHORT_LIVED):
        assert not (shared / short_name(runner.state_dir)).exists()


def test_refuses_a_second_stack_in_the_same_folder(runner: Runner) -> None:
    url = runner.url(runner.start())
    message = runner.message(runner.start())
    assert str(runner.state_dir) in message
    assert url in message


def test_names_a_port_that_is_taken(runner: Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = runner.message(runner.start(port=port))
    assert f"port {port}" in message
    assert f"make dev PORT={port + 1}" in message
    assert runner.is_empty()


def test_says_why_the_code_does_not_load(runner: Runner) -> None:
    message = runner.message(runner.start("broken"))
    assert "a_module_that_is_missing" in message
    assert "code-server.log" in message
    assert runner.is_empty()


@pytest.mark.parametrize("name", ["daemon", "webserver", "code-server"])
def test_ends_when_a_service_dies(runner: Runner, name: str) -> None:
    stack = runner.start()
    runner.url(stack)
    os.kill(int((runner.state_dir / "log" / f"{name}.pid").read_text()), signal.SIGKILL)
    message = runner.message(stack)
    assert f"{name} has ended" in message
    assert f"{name}.log" in message
    assert runner.is_empty()
