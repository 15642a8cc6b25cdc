#!/usr/bin/env bash
# dagster 1.13.27: the daemon puts old code back, and keeps it for a minute, if new code comes while it reads all of it.
#
# The daemon has a copy of each code location. A thread asks the code server for its id every second, and has the copy replaced when
# that changes. Beside it, the daemon's main thread reads all locations anew once a minute (`refresh_workspace`).
#
# Guess: a second or two after a code server has reloaded its code, the daemon has it.
# Seen:  the read of each minute takes what the server has when it begins, and puts it into place when it ends, with a new thread that
#        asks for the id. Code that is reloaded in between is seen by the old thread and put into place; then the older one replaces
#        it. The new thread has not known another id than the new one, so it reports nothing. The daemon has old code until the
#        next minute; a backfill of a partition that is new fails at once. The larger the location, the longer is the moment.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27
mkdir "$work/home"
cd "$work"
printf 'telemetry: {enabled: false}\n' > home/dagster.yaml
cat > location.py <<'PYTHON'
"""A location of some size, whose partitions stand in a file."""

import pathlib

import dagster as dg

files = dg.StaticPartitionsDefinition(pathlib.Path("files").read_text().split())


def asset(number):
    @dg.asset(name=f"table_{number}", partitions_def=files, description="A table. " * 50)
    def table() -> None: ...

    return table


defs = dg.Definitions([asset(number) for number in range(800)])
PYTHON
echo one > files
export DAGSTER_HOME="$work/home"
"$work/venv/bin/python" -W ignore - "$work/venv/bin/dagster" <<'PYTHON'
import pathlib
import socket
import subprocess
import sys
import threading
import time

from dagster import AssetKey, DagsterInstance
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import GrpcServerTarget
from dagster._grpc.client import DagsterGrpcClient

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.argv[1], "code-server", "start", "-f", "location.py", "--host", "127.0.0.1", "--port", str(port)]
server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
client = DagsterGrpcClient(port=port, host="127.0.0.1")


def known(context):
    """The files that the copy of the code has."""
    graph = context.create_request_context().asset_graph
    return graph.get(AssetKey("table_0")).partitions_def.get_partition_keys()


def reload(*files):
    """Have the code server read its code anew; gives the time that takes."""
    pathlib.Path("files").write_text(" ".join(files))
    began = time.monotonic()
    client.reload_code(60)
    return time.monotonic() - began


try:
    deadline = time.monotonic() + 60
    while True:
        try:
            client.get_server_id()
            break
        except Exception:
            assert server.poll() is None and time.monotonic() < deadline, "the code server does not start"
            time.sleep(0.2)
    with WorkspaceProcessContext(DagsterInstance.get(), GrpcServerTarget("127.0.0.1", port, None, "location")) as context:
        time.sleep(2)
        began = time.monotonic()
        context.refresh_workspace()
        reading = time.monotonic() - began
        time.sleep(2)
        reloading = reload("one", "two")
        time.sleep(5)
        print("beside no read:    ", known(context))
        assert known(context) == ["one", "two"], "the thread has seen it"
        for wait in (0.5, 0.3, 0.7, 0.1, 0.9) * 2:
            at_once = threading.Thread(target=reload, args=["one", "two", "three"])
            at_once.start()
            time.sleep(max(0, reloading - wait * reading))  # so that it ends in the middle of the read
            context.refresh_workspace()
            at_once.join()
            time.sleep(8)
            if known(context) != ["one", "two", "three"]:
                break
            reload("one", "two")
            time.sleep(8)
        print("in the middle of it:", known(context), "after eight seconds")
        assert known(context) == ["one", "two"]
        context.refresh_workspace()
        print("after the next read:", known(context))
        assert known(context) == ["one", "two", "three"]
finally:
    server.terminate()
    server.wait()
PYTHON
