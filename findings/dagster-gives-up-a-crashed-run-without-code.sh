#!/usr/bin/env bash
# dagster 1.13.27: a crashed run is not started again if its code server is away for the moment in which the daemon would do so.
#
# With `run_retries`, the daemon starts runs again whose worker crashed. It reads the event log every five seconds, from where it has
# been. A code server goes away when it is put into operation anew, or with the machine that took the run's worker along.
#
# Guess: the run is started again when the code server is back.
# Seen:  the daemon tries once. It reports "Failed to retry run", sets the run's tag dagster/will_retry to "false" and goes on behind the
#        event, whether it knows already that the code server is away or not. With the code server back, the run is never started again.
#        Reporting the failure once more sets the tag to "true" again, and the next look starts the run.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27
cd "$work"
export DAGSTER_DISABLE_TELEMETRY=1 PATH="$work/venv/bin:$PATH"
cat >jobs.py <<'PYTHON'
import os
import signal

import dagster as dg


@dg.op
def load(context):
    if "dagster/retry_number" not in context.run.tags:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


@dg.job(executor_def=dg.in_process_executor)
def job():
    load()


definitions = dg.Definitions(jobs=[job])
PYTHON
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import socket
import subprocess
import time

from dagster import DagsterRunStatus, RunsFilter
from dagster._core.test_utils import instance_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon

logging.disable()
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    PORT = probe.getsockname()[1]
AT = ["--port", str(PORT), "--host", "127.0.0.1"]
server = None


def until(what, reached):
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.2)


def start_server():
    global server
    log = open("server.log", "a")
    server = subprocess.Popen(["dagster", "api", "grpc", "--python-file", "jobs.py", *AT], stdout=log, stderr=log)
    until("code server", lambda: subprocess.run(["dagster", "api", "grpc-health-check", *AT], capture_output=True).returncode == 0)


def stop_server():
    if server and server.poll() is None:
        server.terminate()
        server.wait(60)


def crash():
    """Launch a run whose worker is killed; gives its id once the code server has reported that."""
    before = set(instance.get_run_ids())
    at = ["--grpc-host", "127.0.0.1", "--grpc-port", str(PORT)]
    subprocess.run(["dagster", "job", "launch", "--job", "job", *at], check=True, capture_output=True)
    (run_id,) = set(instance.get_run_ids()) - before
    until("crash", lambda: state(run_id)[:2] == ("FAILURE", "true"))
    return run_id


def state(run_id):
    run = instance.get_run_by_id(run_id)
    return run.status.value, run.tags.get("dagster/will_retry"), run.tags.get("dagster/auto_retry_run_id")


def show(when, run_id):
    status, will_retry, follower = state(run_id)
    print(f"{when:34} {status}, will_retry: {will_retry},", "started again" if follower else "not started again", flush=True)


def complaints(run_id):
    """The classes of the errors with which the daemon failed to start the run again."""
    entries = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
    return [event.event_specific_data.error.cls_name for event in entries if event.message == "Failed to retry run"]


overrides = {
    "run_retries": {"enabled": True, "max_retries": 2},
    "run_coordinator": {"module": "dagster.core.run_coordinator", "class": "DefaultRunCoordinator"},
}
with instance_for_test(overrides) as instance:
    try:
        start_server()
        target = GrpcServerTarget(host="127.0.0.1", port=PORT, socket=None, location_name=None)
        with WorkspaceProcessContext(instance, target) as context:
            daemon = EventLogConsumerDaemon()

            def look():
                list(daemon.run_iteration(context))

            look()
            run_id = crash()
            look()
            show("with its code server:", run_id)
            follower = state(run_id)[2]
            assert follower
            until("run started again", lambda: instance.get_run_by_id(follower).status == DagsterRunStatus.SUCCESS)
            look()

            for known in (False, True):
                run_id = crash()
                stop_server()
                if known:
                    context.refresh_workspace()
                look()
                print()
                show(f"without it, {'known' if known else 'not yet known'} to the daemon:", run_id)
                print("    Failed to retry run:", *complaints(run_id))
                assert state(run_id) == ("FAILURE", "false", None) and len(complaints(run_id)) == 1, "this has changed"
                start_server()
                context.refresh_workspace()
                assert not context.has_code_location_error(context.code_location_names[0])
                for _ in range(3):
                    look()
                show("with the code server back:", run_id)
                assert state(run_id) == ("FAILURE", "false", None) and len(complaints(run_id)) == 1, "this has changed"
                assert instance.get_runs_count(RunsFilter(tags={"dagster/parent_run_id": run_id})) == 0
                instance.report_run_failed(instance.get_run_by_id(run_id))
                look()
                show("after another report:", run_id)
                follower = state(run_id)[2]
                assert follower
                until("run started again", lambda: instance.get_run_by_id(follower).status == DagsterRunStatus.SUCCESS)
                look()
    finally:
        stop_server()
PYTHON
