#!/usr/bin/env bash
# dagster 1.13.27: 
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27 dagster-webserver==1.13.27
cd "$work"
export DAGSTER_DISABLE_TELEMETRY=1 PATH="$work/venv/bin:$PATH"
unset DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR
cat >assets.py <<'PYTHON'
import os
import time
from pathlib import Path

import dagster as dg

FOLDER = Path(os.environ["DAGSTER_HOME"])


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]))
def loaded():
    while FOLDER.exists() and not (FOLDER / "go").exists():
        time.sleep(0.2)


definitions = dg.Definitions(assets=[loaded], executor=dg.in_process_executor)
PYTHON
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LAUNCH = """mutation { launchPartitionBackfill(backfillParams: {
    assetSelection: [{path: ["loaded"]}], partitionNames: ["a", "b", "c"]
}) { __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
BACKFILL = """query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill {
    status error { message } } } }"""
RUNS = """query($id: String!) { runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) { ... on Runs { results {
    status tags { key value } } } } }"""


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


class Installation:
    """A code server, a webserver and a daemon with a folder of their own."""

    def __init__(self, name, **daemon_environment):
        self.home = Path(name).absolute()
        self.home.mkdir()
        self.began = time.monotonic()
        self.environment = {**os.environ, "DAGSTER_HOME": str(self.home)}
        self.daemon_environment = daemon_environment
        self.code_port, self.web_port = free_ports(2)
        (self.home / "dagster.yaml").write_text("telemetry: {enabled: false}\nconcurrency: {runs: {max_concurrent_runs: 1}}\n")
        (self.home / "workspace.yaml").write_text(
            f"load_from: [{{grpc_server: {{host: 127.0.0.1, port: {self.code_port}, location_name: code}}}}]\n"
        )
        self.started = []

    def start(self, name, *command, **environment):
        log = open(self.home / f"{name}.log", "a")
        process = subprocess.Popen(
            command, cwd=self.home.parent, env={**self.environment, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        self.started.append(process)
        return process

    def end(self):
        (self.home / "go").touch()
        for sign in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            for process in self.started:
                try:
                    os.killpg(process.pid, sign)
                except ProcessLookupError:
                    pass
                if sign == signal.SIGTERM:
                    try:
                        process.wait(10)
                    except subprocess.TimeoutExpired:
                        pass
        for process in self.started:
            process.wait()

    def ask(self, query, **variables):
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=100) as answer:
            data = json.load(answer)
        assert "errors" not in data, data
        return data["data"]

    def code_loaded(self):
        try:
            entries = self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        return [entry["locationOrLoadError"]["__typename"] for entry in entries] == ["RepositoryLocation"]

    def launch(self):
        """Put the backfill in progress: a runs and waits, b and c are queued."""
        self.server = self.start(
            "server", "dagster", "api", "grpc", "--python-file", "assets.py", "--host", "127.0.0.1", "--port", self.code_port
        )
        at = ["--host", "127.0.0.1", "--port", self.code_port]
        self.until("code server", lambda: subprocess.run(["dagster", "api", "grpc-health-check", *at], capture_output=True).returncode == 0)
        workspace = ["--workspace", str(self.home / "workspace.yaml")]
        self.start("webserver", "dagster-webserver", "--host", "127.0.0.1", "--port", self.web_port, *workspace)
        self.until("webserver", self.code_loaded)
        self.backfill = self.ask(LAUNCH)["launchPartitionBackfill"]["backfillId"]
        self.start("daemon", "dagster-daemon", "run", *workspace, **self.daemon_environment)
        self.until("run in progress", lambda: self.runs() == {"a": "STARTED", "b": "QUEUED", "c": "QUEUED"})
        self.say("in progress:", self.status(), self.runs())

    def status(self):
        return self.ask(BACKFILL, id=self.backfill)["partitionBackfillOrError"]["status"]

    def error(self):
        return self.ask(BACKFILL, id=self.backfill)["partitionBackfillOrError"]["error"]

    def runs(self):
        found = {}
        for run in self.ask(RUNS, id=self.backfill)["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            found[tags["dagster/partition"]] = run["status"]
        return dict(sorted(found.items()))

    def until(self, what, reached):
        deadline = time.monotonic() + 240
        while not reached():
            assert time.monotonic() < deadline, f"{self.home.name}: waited in vain: {what}"
            time.sleep(1)

    def say(self, *words):
        print(f"{self.home.name:8} {time.monotonic() - self.began:4.0f} s ", *words, flush=True)


def as_it_is():
    place = Installation("as-it-is")
    try:
        place.launch()
        place.server.send_signal(signal.SIGSTOP)
        place.say("stopped")
        last = None
        t=time.monotonic()
        while time.monotonic()-t < 260:
            now = (place.status(), place.runs(), place.error() and place.error()["message"][:3000])
            if now != last:
                place.say(*now)
                last = now
            if now[0] == "FAILED": break
            time.sleep(1)
        place.server.send_signal(signal.SIGCONT)
        place.say("continued", place.status(), place.runs())
        for _ in range(10):
            time.sleep(3)
            place.say("continued", place.status(), place.runs())
        (place.home / "go").touch()
        for _ in range(5):
            time.sleep(3)
            place.say("go", place.status(), place.runs())
    finally:
        place.end()
        print((place.home/"daemon.log").read_text())


def with_setting():
    place = Installation("setting", DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR="1")
    try:
        place.launch()
        place.server.send_signal(signal.SIGSTOP)
        place.say("stopped")
        place.until("w", lambda: "unable to continue due to" in (place.home/"daemon.log").read_text())
        place.say("seen", place.status(), place.runs())
        place.server.send_signal(signal.SIGCONT)
        (place.home / "go").touch()
        place.until("w", lambda: place.status() != "REQUESTED")
        place.say("end", place.status(), place.runs())
    finally:
        place.end()


with ThreadPoolExecutor(2) as pool:
    for half in [pool.submit(as_it_is), pool.submit(with_setting)]:
        half.result()
PYTHON
