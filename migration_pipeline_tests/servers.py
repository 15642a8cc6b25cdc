"""Servers of the operating system's packages: another PostgreSQL, poolers in front of one or two, and Redis."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres

REQUIRED = "REQUIRE_POSTGRESQL"
"""With this in the environment a test that lacks one of them fails."""


def need(found: object, what: str, package: str) -> None:
    """Skip the test, or fail it, where a program is not there."""
    if not found:
        assert REQUIRED not in os.environ, f"no {what}: install Debian's package {package}"
        pytest.skip(f"the operating system has no {what}; install its package (Debian: {package})")


class InstalledPostgres(EmbeddedPostgres):
    """The PostgreSQL of the operating system's packages, run like the embedded one."""

    @staticmethod
    def binaries() -> Path | None:
        """Folder of the newest server there is."""
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: int(p.parts[-3]))
        other = shutil.which("postgres")
        return found[-1].parent if found else Path(other).resolve().parent if other else None

    def _binaries(self) -> Path:
        folder = self.binaries()
        assert folder
        return folder

    def _run(self, program: str, *arguments: str) -> None:
        if program == "initdb":  # locales of PostgreSQL's own are new in its version 17
            arguments = (*(each for each in arguments if "locale" not in each), "--locale=C")
        super()._run(program, *arguments)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PGBOUNCER = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
admin_users = postgres
logfile = {folder}/pgbouncer.log
pidfile =
"""


def pgbouncer() -> str | None:
    """The program, where it is installed."""
    return shutil.which("pgbouncer", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")


@contextmanager
def pooled(server: EmbeddedPostgres, folder: Path, mode: str, size: int = 2) -> Iterator[str]:
    """Run PgBouncer in front of a server until the end of the block; gives the URL of its database ``postgres``."""
    program = pgbouncer()
    need(program, "PgBouncer", "pgbouncer")
    assert program
    names, port = parse_qs(urlsplit(server.url).query), free_port()
    folder.mkdir(exist_ok=True)
    options: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        user = pwd.getpwnam("postgres")
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        os.chown(folder, user.pw_uid, user.pw_gid)
    # It looks for its files from the root folder, where it may not have got down to the test's.
    settings = PGBOUNCER.format(
        host=names["host"][0], port=names["port"][0], listen=port, mode=mode, size=size, folder="/dev/null"
    ).replace("logfile = /dev/null/pgbouncer.log\n", "")
    (folder / "pgbouncer.ini").write_text(settings)
    descriptor = os.open(folder / "pgbouncer.ini", os.O_RDONLY)
    process = subprocess.Popen(
        [program, "-q", f"/dev/fd/{descriptor}"], pass_fds=[descriptor], stderr=subprocess.DEVNULL, **options
    )
    os.close(descriptor)
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"
    try:
        _wait_for(url, process, "PgBouncer")
        yield url
    finally:
        process.terminate()
        process.wait()


PGPOOL = """
backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = {listen}
socket_dir = '{folder}'
unix_socket_directories = '{folder}'
pcp_port = {pcp}
pcp_socket_dir = '{folder}'
pid_file_name = '{folder}/pgpool.pid'
logdir = '{folder}'
backend_hostname0 = '{writer[0]}'
backend_port0 = {writer[1]}
backend_weight0 = 0
backend_flag0 = 'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'
backend_hostname1 = '{replica[0]}'
backend_port1 = {replica[1]}
backend_weight1 = 1
backend_flag1 = 'DISALLOW_TO_FAILOVER'
load_balance_mode = on
sr_check_user = 'postgres'
sr_check_database = 'postgres'
num_init_children = 8
max_pool = 1
"""


@contextmanager
def balanced(writer: EmbeddedPostgres, replica: EmbeddedPostgres, *settings: str) -> Iterator[str]:
    """Run pgpool-II in front of two servers until the end of the block; gives the URL of their database ``postgres``.

    All reads that it may balance go to the replica. `settings` are lines of its configuration.
    """
    program = shutil.which("pgpool", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
    need(program, "pgpool-II", "pgpool2")
    assert program
    user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None  # root is not for servers
    # Not in the test's folder, which that user may not enter.
    with tempfile.TemporaryDirectory(prefix="pgpool-", dir="/tmp") as name:  # a short path for a socket
        folder, port = Path(name), free_port()
        at = [parse_qs(urlsplit(server.url).query) for server in (writer, replica)]
        writer_at, replica_at = ((each["host"][0], each["port"][0]) for each in at)
        text = PGPOOL.format(
            listen=port, pcp=free_port(), folder=folder, writer=writer_at, replica=replica_at
        )
        (folder / "pgpool.conf").write_text("\n".join([text, *settings]))
        (folder / "none").touch()
        if user:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)
        options: dict[str, Any] = (
            {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
        )
        none = str(folder / "none")
        process = subprocess.Popen(
            [program, "-n", "-f", str(folder / "pgpool.conf"), "-F", none, "-a", none],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options,
        )  # fmt: skip
        url = f"postgresql://postgres@127.0.0.1:{port}/postgres?sslmode=disable&gssencmode=disable"
        try:
            _wait_for(url, process, "pgpool-II")
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # it does not wait for its clients
            process.wait()


def _wait_for(url: str, process: subprocess.Popen[bytes], name: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        assert process.poll() is None, f"{name} has ended"
        assert time.monotonic() < deadline, f"{name} does not answer"
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(url).close()
            return
        time.sleep(0.05)


class Redis:
    """A Redis that keeps nothing on disk."""

    def __init__(self, folder: Path, address: str) -> None:
        program = shutil.which("redis-server")
        need(program, "Redis", "redis-server")
        self._at = address, free_port()
        self.url = f"redis://{address}:{self._at[1]}/0"
        folder.mkdir(exist_ok=True)
        options = f"--port {self._at[1]} --bind {address} --protected-mode no --appendonly no --dir {folder}"
        self._command = [str(program), *options.split(), "--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while True:
            assert self._process.poll() is None, "Redis has ended"
            assert time.monotonic() < deadline, "Redis does not answer"
            with contextlib.suppress(OSError):
                socket.create_connection(self._at, 1).close()
                break
            time.sleep(0.05)

    def kill(self) -> None:
        """End it; it has forgotten everything when it is started again."""
        if self._process:
            self._process.kill()
            self._process.wait()


@contextmanager
def redis(folder: Path, address: str = "127.0.0.1") -> Iterator[Redis]:
    """Run Redis until the end of the block."""
    made = Redis(folder, address)
    try:
        made.start()
        yield made
    finally:
        made.kill()
