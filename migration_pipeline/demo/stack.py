"""The local stack: embedded PostgreSQL, one code server, the Dagster webserver and the daemon.

It does what `dagster dev` does, with an order that is safe for SQLite storage (the webserver has made the
tables before the daemon looks for them), with one code server for both, so that a reload in the UI counts for
runs as well, and with an end that leaves no process behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import requests

from migration_pipeline import settings
from migration_pipeline.demo import CLONE, LocalError
from migration_pipeline.demo.folders import SHORT_LIVED, claim, short_name
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.service import Service

HOST = "127.0.0.1"
CODE_MODULE = "migration_pipeline.definitions"
PAUSE_SECONDS = 604_800
"""A laptop may sleep for so long: where the code server was paused for longer than its time to live, Dagster never has code again."""
START_SECONDS = 180  # for one service on a busy machine; five seconds for all of them are usual
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

DAEMONS = "{ instance { daemonHealth { allDaemonStatuses { required lastHeartbeatTime } } } }"
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError {
    ... on PythonError { message } } } } } }"""


@dataclass(frozen=True)
class Stack:
    """A running local stack."""

    webserver_url: str
    database_url: str
    services: tuple[Service, ...]

    def check(self) -> None:
        """Raise `LocalError`, with the end of its log, if a service has ended."""
        for service in self.services:
            service.check()

    def wait(self) -> NoReturn:
        """Wait for a signal, as from Ctrl-C; raise `LocalError` if a service ends before."""
        while True:
            self.check()
            time.sleep(1)


@contextmanager
def running(port: int | None = None, module: str = CODE_MODULE) -> Iterator[Stack]:
    """Run the stack of `settings.state_dir()` for as long as the context lasts.

    The webserver gets `port`, or a free one. `module` holds the definitions, and names the code location. In
    the context SIGTERM and SIGHUP raise `SystemExit`, as Ctrl-C raises `KeyboardInterrupt`; during its end,
    which takes some seconds, they are ignored. Raises `LocalError` when a part does not start, or when
    another stack has the folder.
    """
    with _ending_signals() as ignore_signals, ExitStack() as ends:
        try:
            yield _start(ends, port, module)
        finally:
            ignore_signals()


def remove() -> None:
    """Delete the embedded database, and end and delete all else that lies outside the state folder.

    Raises `LocalError` while a stack runs. The state folder itself stays, with Dagster's history and the logs.
    """
    state_dir = settings.state_dir()
    services = _services(state_dir)
    with _only_stack(state_dir), _run_folder(state_dir):
        for service in reversed(services):
            service.stop()
        EmbeddedPostgres(state_dir).remove()


def _start(ends: ExitStack, port: int | None, module: str) -> Stack:
    """Take the folder and start all parts; `ends` gets what ends each of them, in the reverse order."""
    state_dir = settings.state_dir()
    services = _services(state_dir)
    ends.enter_context(_only_stack(state_dir))
    settings.webserver_url_file().unlink(missing_ok=True)  # of a stack that was killed
    run_folder = ends.enter_context(_run_folder(state_dir))
    postgres = None if os.environ.get(settings.DATABASE_URL) else EmbeddedPostgres(state_dir)
    if postgres:
        ends.callback(postgres.stop)
    for service in services:
        ends.callback(service.stop)
    for service in reversed(services):
        service.stop()  # what a stack that was killed left of it

    database_url = postgres.url if postgres else settings.database_url()
    stack = Stack(f"http://{HOST}:{_free_port(port)}", database_url, services)
    code_socket = run_folder / "code-server.sock"
    _prepare_dagster_home()
    _load(stack, code_socket, module)
    if postgres:
        postgres.start()
    _take_turns(stack, code_socket, module)
    _note(ends, settings.webserver_url_file(), stack.webserver_url)
    if postgres:
        _note(ends, settings.database_url_file(), postgres.url)
    return stack


def _note(ends: ExitStack, file: Path, url: str) -> None:
    """Write the URL of a part to a file for as long as it runs."""
    ends.callback(file.unlink, missing_ok=True)
    file.write_text(url)


def _load(stack: Stack, code_socket: Path, module: str) -> None:
    """Start all processes. The code server goes ahead; the webserver and the daemon load and await their turn."""
    code_socket.unlink(missing_ok=True)
    workspace = _workspace_file(code_socket, module)
    port = stack.webserver_url.rpartition(":")[2]
    ahead = [sys.executable, "-m", "migration_pipeline.demo"]
    commands = (
        [*ahead, "code-server", "start", "-m", module, "--socket", str(code_socket)],
        [*ahead, "webserver", "--workspace", str(workspace), "--host", HOST, "--port", port],
        [*ahead, "daemon", "run", "--workspace", str(workspace)],
    )
    environment = _environment(stack, code_socket.parent)
    for service, command in zip(stack.services, commands, strict=True):
        service.start(command, environment)
    stack.services[0].go()


def _take_turns(stack: Stack, code_socket: Path, module: str) -> None:
    """Start the services one after another, each when the previous one answers."""
    code_server, webserver, daemon = stack.services
    _await(code_server, lambda: _accepts(code_socket))
    webserver.go()
    _await(webserver, lambda: _answers(stack.webserver_url))
    _check_code(stack.webserver_url, module, code_server)
    since = time.time()
    daemon.go()
    _await(daemon, lambda: _beats(stack.webserver_url, since))


def _services(state_dir: Path) -> tuple[Service, ...]:
    """The services, in the order of their start."""
    log_dir = state_dir / "log"
    log_dir.mkdir(parents=True, exist_ok=True)
    return tuple(Service(name, log_dir) for name in ("code-server", "webserver", "daemon"))


def _environment(stack: Stack, run_folder: Path) -> dict[str, str]:
    """What the services and their run workers see: the settings, with no default left to find."""
    return {
        **os.environ,
        settings.STATE_DIR: str(settings.state_dir()),
        settings.PLANS_DIR: settings.plans_dir(),
        settings.DAGSTER_HOME: str(settings.dagster_home()),
        settings.DATABASE_URL: stack.database_url,
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DAGSTER_GRPC_PROXY_HEARTBEAT_TTL_SECONDS": str(PAUSE_SECONDS),
        "TMPDIR": str(run_folder),
    }


def _workspace_file(code_socket: Path, module: str) -> Path:
    """Write where the services find the code server. The location has the name that workspace.yaml gives it."""
    file = settings.state_dir() / "workspace.yaml"
    server = {"socket": str(code_socket), "location_name": module}
    file.write_text(json.dumps({"load_from": [{"grpc_server": server}]}))  # JSON is YAML too
    return file


def _prepare_dagster_home() -> None:
    """Put a dagster.yaml into DAGSTER_HOME: that of the project's folder, else the one that is installed.

    That of an instance of the user's own stays.
    """
    file = settings.dagster_home() / "dagster.yaml"
    if file.exists() and settings.DAGSTER_HOME in os.environ:
        return
    here = Path.cwd()
    ours = (here / "workspace.yaml").exists() and (here / "dagster.yaml").exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(here / "dagster.yaml" if ours else Path(__file__).with_name("dagster.yaml"), file)


@contextmanager
def _only_stack(state_dir: Path) -> Iterator[None]:
    with (state_dir / "stack.lock").open("a") as lock:  # the kernel drops it, however this process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Not by MIGRATION_DAGSTER_URL, which may be another Dagster's.
            noted = settings.webserver_url_file()
            at = f", at {noted.read_text().strip()}" if noted.exists() else " (it is starting)"
            raise LocalError(
                f"a local stack is already running in {state_dir}{at}; "
                "stop it first, with Ctrl-C in the terminal that started it"
            ) from None
        yield


@contextmanager
def _run_folder(state_dir: Path) -> Iterator[Path]:
    """A folder with a short path for the sockets of Dagster, which makes its own in TMPDIR, however long.

    A socket in a folder of ours, unlike a TCP port, lets no other user have code run.
    """
    parent = claim(SHORT_LIVED / short_name(state_dir), 0o700)
    folder = parent / "dagster"
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # the embedded server may have its socket beside it
            parent.rmdir()


@contextmanager
def _ending_signals() -> Iterator[Callable[[], None]]:
    """Have all ending signals raise an exception; yield the call that makes them ignored instead."""
    before = {sign: signal.getsignal(sign) for sign in ENDING_SIGNALS}

    def exit_by(sign: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + sign)

    def ignore() -> None:
        for sign in ENDING_SIGNALS:
            signal.signal(sign, signal.SIG_IGN)

    for sign in (signal.SIGTERM, signal.SIGHUP):
        if before[sign] is not signal.SIG_IGN:  # `nohup` has its reasons
            signal.signal(sign, exit_by)
    try:
        yield ignore
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def _free_port(wanted: int | None) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, wanted or 0))
        except OSError as error:
            other = (
                f"make dev PORT={(wanted or 0) + 1}"
                if CLONE
                else f"migration-pipeline dev --port {(wanted or 0) + 1}"
            )
            raise LocalError(f"port {wanted}: {error.strerror}; choose another, as in `{other}`") from None
        return int(probe.getsockname()[1])


def _await(service: Service, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        service.check()
        if time.monotonic() > deadline:
            raise LocalError.with_log(
                f"no answer from {service.name} in {START_SECONDS} seconds", service.log
            )
        time.sleep(0.05)


def _accepts(code_socket: Path) -> bool:
    """Whether the code server listens, which it does once it has tried to load the code."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(code_socket)) == 0


def _answers(url: str) -> bool:
    with _session() as session:
        try:
            return session.get(f"{url}/server_info", timeout=5).ok
        except requests.RequestException:
            return False


def _beats(url: str, since: float) -> bool:
    """Whether every daemon thread has sent a heartbeat since a time in seconds of the epoch."""
    statuses = _ask(url, DAEMONS)["instance"]["daemonHealth"]["allDaemonStatuses"]
    return all((status["lastHeartbeatTime"] or 0) >= since for status in statuses if status["required"])


def _check_code(url: str, module: str, code_server: Service) -> None:
    for entry in _ask(url, LOCATIONS)["workspaceOrError"]["locationEntries"]:
        if message := entry["locationOrLoadError"].get("message"):
            raise LocalError(f"{module} cannot be loaded: {message}\nSee the log {code_server.log}")


def _ask(url: str, query: str) -> Any:
    with _session() as session:
        reply = session.post(f"{url}/graphql", json={"query": query}, timeout=60)
        reply.raise_for_status()
        return reply.json()["data"]


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy of the environment is not for this machine
    return session
