#!/usr/bin/env bash
# dagster 1.13.27: a code server whose machine pauses for half a minute has no code any more, and its health check says that all is well.
#
# `dagster code-server start` answers for a second process behind it, which has the code. A machine pauses when a laptop sleeps, when a
# virtual machine is moved or backed up, or when its memory runs out. Here both processes are stopped and continued by signals.
#
# Guess: afterwards they go on where they were; and if not, the health check says so, and whatever looks at it starts the server anew.
# Seen:  the process behind hears no heartbeat for 30 seconds, as the one before was stopped, too, and ends. The one before goes
#        on, never starts another, and fails every question for the code, until somebody reloads the code. `dagster api
#        grpc-health-check` finds it healthy. With DAGSTER_GRPC_PROXY_HEARTBEAT_TTL_SECONDS longer than the pause it goes on.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27
mkdir "$work/home"
cd "$work"
printf 'telemetry: {enabled: false}\n' > home/dagster.yaml
cat > location.py <<'PYTHON'
import dagster as dg


@dg.asset
def table() -> None: ...


defs = dg.Definitions([table])
PYTHON
export DAGSTER_HOME="$work/home"
"$work/venv/bin/python" -W ignore - "$work/venv/bin/dagster" <<'PYTHON'
import os
import signal
import socket
import subprocess
import sys
import time

from dagster._grpc.client import DagsterGrpcClient

dagster = sys.argv[1]


def answers(client):
    """Whether the server knows its code."""
    try:
        return "repository_symbols" in client.list_repositories()
    except Exception:
        return False


def after_a_pause(seconds, **settings):
    """Whether a server that is paused for so long answers for its code within a minute, and whether its health check succeeds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [dagster, "code-server", "start", "-f", "location.py", "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        client = DagsterGrpcClient(port=port, host="127.0.0.1")
        deadline = time.monotonic() + 60
        while not answers(client):
            assert server.poll() is None and time.monotonic() < deadline, "the code server does not start"
            time.sleep(0.2)
        os.killpg(server.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.killpg(server.pid, signal.SIGCONT)
        time.sleep(5)
        deadline = time.monotonic() + 60
        while not (there := answers(client)) and time.monotonic() < deadline:
            time.sleep(2)
        check = [dagster, "api", "grpc-health-check", "-p", str(port)]
        healthy = subprocess.run(check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        return there, healthy
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


for seconds, settings, expected in (
    (10, {}, (True, True)),
    (45, {}, (False, True)),
    (45, {"DAGSTER_GRPC_PROXY_HEARTBEAT_TTL_SECONDS": "3600"}, (True, True)),
):
    there, healthy = after_a_pause(seconds, **settings)
    print(f"{seconds} s {'with the setting' if settings else 'as it is':17}: answers for its code: {there}, healthy: {healthy}")
    assert (there, healthy) == expected
PYTHON
