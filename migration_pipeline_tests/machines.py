"""Machines that execute runs: each a folder of its own and, where root runs the tests, names and a network of its own.

Such a machine sees this one's services by a cable alone, no other machine, and no process but its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

SCRIPT = Path(sys.executable).parent / "migration-pipeline"


def can_isolate() -> bool:
    """Whether namespaces can be made here."""
    if os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    name = f"mp-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode == 0
    return made and subprocess.run(["ip", "netns", "delete", name], capture_output=True).returncode == 0


class Machine:
    """A machine, and the one process on it: a Celery worker and what that starts."""

    def __init__(self, name: str, folder: Path, prefix: list[str]) -> None:
        self.name = name
        self.folder = folder
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    def start(self, environment: Mapping[str, str], *, runs: int = 1) -> None:
        """Start a worker; it has its own DAGSTER_HOME and MIGRATION_HOME."""
        own = {"DAGSTER_HOME": str(self.folder / "dagster"), "MIGRATION_HOME": str(self.folder / "state")}
        command = [*self._prefix, str(SCRIPT), "worker", "--runs", str(runs), "--name", self.name]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, **environment, **own}, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def worker(self) -> psutil.Process:
        """The worker's main process, which answers questions and starts another for each run."""
        return next(p for p in self._processes() if "worker" in p.cmdline() and _is_main(p))

    def kill(self) -> None:
        """Kill the worker and all that it started, as a power cut does."""
        if not self._process:
            return
        processes = self._processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        self._process.wait()
        self._process = None

    def _processes(self) -> list[psutil.Process]:
        assert self._process
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self._process.pid)
            return [first, *first.children(recursive=True)]
        return []


def _is_main(process: psutil.Process) -> bool:
    """Whether it is the worker itself, and neither what made its namespaces nor a process of a run."""
    command = process.cmdline()
    parent = process.parent()
    return (
        str(SCRIPT) in command
        and "unshare" not in command[0]
        and not (parent and parent.cmdline()[:2] == command[:2])
    )


@contextmanager
def machines(folder: Path, count: int) -> Iterator[tuple[list[Machine], str]]:
    """Make machines until the end of the block; gives the address, too, under which they see this one."""
    with ExitStack() as ends:
        net = f"10.{random.randrange(64, 250)}.{random.randrange(250)}"
        isolated = can_isolate()
        made = []
        for number in range(count):
            name = f"worker-{number}"
            prefix = ends.enter_context(_network(name, f"{net}.{number * 4}")) if isolated else []
            made.append(Machine(name, folder / name, prefix))
            ends.callback(made[-1].kill)
        yield made, f"{net}.1" if isolated else "127.0.0.1"


@contextmanager
def _network(name: str, net: str) -> Iterator[list[str]]:
    """Make a network of two addresses; gives what to put before a command that is to run there."""
    base, _, last = net.rpartition(".")
    here, there = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"
    space, cable = f"mp-{os.getpid()}-{name}", f"mp{os.getpid() % 100_000}-{name[-1]}"
    _ip("netns", "add", space)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
        _ip("address", "add", f"{here}/30", "dev", cable)
        _ip("link", "set", cable, "up")
        for each in ("lo", "eth0"):
            _ip("-n", space, "link", "set", each, "up")
        _ip("-n", space, "address", "add", f"{there}/30", "dev", "eth0")
        _ip("-n", space, "route", "add", "default", "via", here)
        yield [
            "ip", "netns", "exec", space, "unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc",
            "sh", "-c", f'hostname {name} && exec "$@"', "sh",
        ]  # fmt: skip
    finally:
        _ip("netns", "delete", space)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
