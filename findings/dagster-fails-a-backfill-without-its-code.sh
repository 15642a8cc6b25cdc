#!/usr/bin/env bash
# dagster 1.13.27: a backfill in progress is failed, and its runs are ended, when the daemon cannot load the code for a while.
#
# An asset with the partitions a, b and c, and a backfill of them: a runs, b and c are queued. Then the code server stops answering (it is
# sent SIGSTOP), as it does while it is put into operation anew; the run goes on in a process of its own. The daemon gives a server up
# after ten attempts.
#
# Guess: the backfill waits until the code server is back, and what runs goes on.
# Seen:  at its next look, the daemon takes the asset for one that "existed at storage-time, but no longer does": the backfill becomes
#        FAILING with DagsterAssetBackfillDataLoadError, and stays so with the code server back a second later. b and c are CANCELED, and
#        so is a. If the code server is still away then, a is left CANCELING and goes on to its end, which is SUCCESS. The backfill is
#        FAILED either way. With DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR=1 in the daemon's environment, it waits and completes.
#
# Takes about three minutes, as the daemon looks at backfills every 30 seconds.
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
"$work/venv/bin/python" - <<'PYTHON'
import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
LAUNCH = """mutation { launchPartitionBackfill(backfillParams: {
    assetSelection: [{path: ["loaded"]}], partitionNames: ["a", "b", "c"]
}) { ... on LaunchBackfillSuccess { backfillId } } }"""
BACKFILL = """query($id: String!) {
    partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
    runsOrError(filter: {tags: [{key: "dagster/backfill", value: $id}]}) { ... on Runs { results { status tags { key value } } } }
}"""
over = threading.Event()


def free_ports(count):
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


class Installation:
    """A code server, a webserver and a daemon, with a folder of their own and a backfill in progress."""

    def __init__(self, name, code_port, web_port, **for_the_daemon):
        self.name, self.home, self.web_port, self.began = name, Path(name.replace(" ", "-")).absolute(), web_port, time.monotonic()
        self.home.mkdir()
        (self.home / "dagster.yaml").write_text("telemetry: {enabled: false}\nconcurrency: {runs: {max_concurrent_runs: 1}}\n")
        workspace = self.home / "workspace.yaml"
        workspace.write_text(f"load_from: [grpc_server: {{host: 127.0.0.1, port: {code_port}, location_name: code}}]\n")
        self.started = []
        try:
            at = ["--host", "127.0.0.1", "--port"]
            self.server = self.start("server", ["dagster", "api", "grpc", "--python-file", "assets.py", *at, code_port])
            check = ["dagster", "api", "grpc-health-check", *at, code_port]
            self.until("a code server", lambda: subprocess.run(check, capture_output=True).returncode == 0)
            self.start("webserver", ["dagster-webserver", "--workspace", str(workspace), *at, web_port])
            self.until("a webserver", self.knows_the_code)
            self.backfill = self.ask(LAUNCH)["launchPartitionBackfill"]["backfillId"]
            self.start("daemon", ["dagster-daemon", "run", "--workspace", str(workspace)], **for_the_daemon)
            self.until("a run in progress", lambda: self.state() == ("REQUESTED", "a STARTED, b QUEUED, c QUEUED"))
            self.say("in progress:")
        except BaseException:
            self.end()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def start(self, name, command, **more):
        environment = {**os.environ, "DAGSTER_HOME": str(self.home), **more}
        with open(self.home / f"{name}.log", "w") as log:
            self.started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))
        return self.started[-1]

    def end(self):
        self.go()
        for sign in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            for process in self.started:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, sign)
            for process in self.started:
                if sign != signal.SIGCONT:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(20)

    def ask(self, query, **variables):
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.web_port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=100) as answer:
            return json.load(answer)["data"]

    def knows_the_code(self):
        try:
            entries = self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
        except OSError:
            return False
        return [entry["locationOrLoadError"]["__typename"] for entry in entries] == ["RepositoryLocation"]

    def state(self):
        """The backfill's status, and those of its runs by partition."""
        answer = self.ask(BACKFILL, id=self.backfill)
        runs = []
        for run in answer["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            runs.append(f"{tags['dagster/partition']} {run['status']}")
        return answer["partitionBackfillOrError"]["status"], ", ".join(sorted(runs))

    def error(self):
        found = self.ask(BACKFILL, id=self.backfill)["partitionBackfillOrError"]["error"]
        return found["message"].strip() if found else ""

    def away(self):
        self.server.send_signal(signal.SIGSTOP)

    def back(self):
        self.server.send_signal(signal.SIGCONT)

    def go(self):
        (self.home / "go").touch()

    def until(self, what, reached):
        deadline = time.monotonic() + 240
        while not reached():
            assert time.monotonic() < deadline, f"{self.name}: waited in vain for {what}"
            assert not over.wait(1), "another part has failed"

    def say(self, *words):
        print(f"{self.name:12} {time.monotonic() - self.began:4.0f} s ", *words, *self.state(), flush=True)


def fail(place):
    """Take the code server away until the daemon fails the backfill."""
    place.away()
    place.until("an end", lambda: place.state()[0] != "REQUESTED")
    place.say("code away:  ")
    print(f"    {place.error()}", flush=True)
    assert place.state() == ("FAILING", "a STARTED, b QUEUED, c QUEUED"), "this has changed"
    error = "DagsterAssetBackfillDataLoadError: Asset AssetKey(['loaded']) existed at storage-time, but no longer does."
    assert error in place.error() and "inside a code location that's failing to load: ['code']" in place.error(), "this has changed"


def back_at_once(*ports):
    with Installation("back at once", *ports) as place:
        fail(place)
        place.back()
        place.until("the end", lambda: place.state()[0] != "FAILING")
        place.say("code back:  ")
        assert place.state() == ("FAILED", "a CANCELED, b CANCELED, c CANCELED"), "this has changed"


def back_later(*ports):
    with Installation("back later", *ports) as place:
        fail(place)
        place.until("an attempt to end what runs", lambda: "DagsterUserCodeUnreachableError" in place.error())
        place.say("code away:  ")
        assert place.state() == ("FAILING", "a CANCELING, b CANCELED, c CANCELED"), "this has changed"
        place.back()
        place.go()
        place.until("the end", lambda: place.state()[0] != "FAILING")
        place.say("code back:  ")
        assert place.state() == ("FAILED", "a SUCCESS, b CANCELED, c CANCELED"), "this has changed"


def with_the_setting(*ports):
    with Installation("the setting", *ports, DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR="1") as place:
        place.away()
        log = place.home / "daemon.log"
        place.until("a look without the code", lambda: f"Backfill {place.backfill} was unable to continue" in log.read_text())
        place.say("code away:  ")
        assert place.state() == ("REQUESTED", "a STARTED, b QUEUED, c QUEUED"), "this has changed"
        place.back()
        place.go()
        place.until("the end", lambda: place.state()[0] != "REQUESTED")
        place.say("code back:  ")
        assert place.state() == ("COMPLETED_SUCCESS", "a SUCCESS, b SUCCESS, c SUCCESS"), "this has changed"


ports = free_ports(6)
with ThreadPoolExecutor(3) as pool:
    try:
        parts = [pool.submit(part, ports.pop(), ports.pop()) for part in (back_at_once, back_later, with_the_setting)]
        done, _ = wait(parts, return_when=FIRST_EXCEPTION)
        for part in done:
            part.result()
    finally:
        over.set()
PYTHON
