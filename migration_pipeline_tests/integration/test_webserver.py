"""What stands where Dagster should: each answer of a web server has its own word, and none tells a password."""

from __future__ import annotations

import inspect
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from click.testing import CliRunner
from rich.console import Console

from migration_pipeline.cli import main
from migration_pipeline.cli import watch as watching
from migration_pipeline.migration.names import PLAN_DIGEST, table_keys
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.operations import client
from migration_pipeline.operations.client import DagsterClient, DagsterClientError
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage

PASSWORD = "s3cr3t-pass"


class Answering(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        server.seen.append(self.headers.get("Authorization"))
        time.sleep(server.seconds)
        body = server.body.encode()
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    made.status, made.body, made.seconds, made.seen = 200, "<html>a page</html>", 0, []
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def url(server: Any) -> str:
    return f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}/dagster/"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            401,
            "answers 401 Unauthorized: it requires a login; put user and password into MIGRATION_DAGSTER_URL",
        ),
        (403, "answers 403 Forbidden: this user has no access"),
        (
            404,
            "answers 404 Not Found: a web server answers, but there is no Dagster at this path; check MIGRATION_DAGSTER_URL",
        ),
        (502, "answers 502 Bad Gateway: a proxy answers, but cannot reach Dagster behind it"),
        (503, "answers 503 Service Unavailable: a proxy answers"),
        (504, "answers 504 Gateway Timeout: a proxy answers"),
        (500, "answers 500 Internal Server Error: check the webserver's log"),
        (200, "answers, but it is not Dagster; check MIGRATION_DAGSTER_URL"),
    ],
)
def test_each_answer_of_another_server_has_its_own_word(server: Any, status: int, words: str) -> None:
    server.status = status
    instance = DagsterClient(url(server))
    calls: list[Callable[[], object]] = [lambda: instance.query("{ version }")]
    if status != 200:
        calls.append(lambda: instance.report_materialization(["a"], None, {}, "d"))
    for call in calls:
        with pytest.raises(DagsterClientError) as told:
            call()
        assert words in str(told.value)
        assert "no Dagster at http" not in str(told.value)
        assert PASSWORD not in str(told.value)
        assert "\n" not in str(told.value)
    assert all(seen and seen.startswith("Basic ") for seen in server.seen), "user and password are sent"
    assert PASSWORD not in instance.url


def test_a_server_that_does_not_answer_in_time_is_there(server: Any) -> None:
    server.seconds = 2
    with pytest.raises(DagsterClientError, match=r"did not answer within 0\.2 s"):
        DagsterClient(url(server), 0.2).query("{ version }")


def test_a_query_that_dagster_refuses_is_told_in_its_words(server: Any) -> None:
    server.status, server.body = 400, json.dumps({"errors": [{"message": "Cannot query field"}]})
    with pytest.raises(DagsterClientError, match="refused: Cannot query field"):
        DagsterClient(url(server)).query("{ no }")


def test_a_dagster_behind_a_password_is_one(server: Any) -> None:
    server.body = json.dumps({"dagster_webserver_version": "1"})
    assert DagsterClient(url(server)).answers()
    assert server.seen[0].startswith("Basic ")
    server.body = json.dumps({"version": "1"})
    assert not DagsterClient(url(server)).answers()


def test_a_launch_waits_for_the_daemon_only_as_long_as_the_code_is_new(
    server: Any, shop_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "DAEMON_CATCHES_UP_SECONDS", 1.0)
    profile = load_profile("shop")
    plan = make_plan(profile, "shop", [read_export(str(shop_export), Storage())])
    node = {"metadataEntries": [{"label": PLAN_DIGEST, "text": plan.digest}]}
    nodes = [node] * (len(table_keys(profile)) + 1)
    for age, for_launch, least, most in (
        (60.0, True, 0.0, 0.4),
        (0.0, False, 0.0, 0.4),
        (0.5, True, 0.3, 0.8),
        (-60.0, True, 0.9, 1.4),  # the server's clock is ahead
    ):
        entry = {"name": "code", "updatedTimestamp": time.time() - age, "locationOrLoadError": None}
        data = {"assetNodes": nodes, "workspaceOrError": {"locationEntries": [entry]}}
        server.body = json.dumps({"data": data})
        began = time.monotonic()
        DagsterClient(url(server)).load_plan(plan, profile, for_launch=for_launch)
        assert least <= time.monotonic() - began < most, age


def test_a_backfill_says_what_it_waits_for(
    server: Any, shop_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(main, ["plan", "--profile", "shop", str(shop_export)]).exit_code == 0
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", url(server))
    server.seconds = 1.5
    result = CliRunner().invoke(main, ["backfill", "shop"])
    said, error = result.output.splitlines()
    assert said.endswith("  waiting for Dagster to load the plan …")
    assert error.startswith("error: ")


def test_nobody_there_is_no_dagster() -> None:
    with pytest.raises(DagsterClientError, match=r"no Dagster at http://127\.0\.0\.1:1; start it"):
        DagsterClient(f"http://me:{PASSWORD}@127.0.0.1:1").query("{ version }")


class Closing(Answering):
    """Keeps connections as the webserver does, and closes one that nobody used for a while just as the next question comes in."""

    protocol_version = "HTTP/1.1"
    answered = 0.0

    def do_POST(self) -> None:
        server: Any = self.server
        if self.answered and time.monotonic() - self.answered > server.kept_seconds:
            self.close_connection = True
            return
        server.connections.add(self.client_address)
        self.rfile.read(int(self.headers["Content-Length"]))
        super().do_POST()
        self.answered = time.monotonic()


def test_a_question_after_a_pause_does_not_meet_a_connection_that_is_being_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "KEPT_SECONDS", 0.6)
    with ThreadingHTTPServer(("127.0.0.1", 0), Closing) as made:
        server: Any = made
        server.status, server.body, server.seconds, server.seen = 200, '{"data": {"version": "1"}}', 0, []
        server.kept_seconds, server.connections = 1.0, set()
        threading.Thread(target=made.serve_forever, daemon=True).start()
        instance = DagsterClient(url(server))
        for pause in (0.0, 0.0, 1.1, 0.0, 1.1):
            time.sleep(pause)
            assert instance.query("{ version }") == {"version": "1"}
        assert len(server.connections) < 5, "without a pause the connection is used again"
        made.shutdown()


def test_a_connection_is_given_up_before_the_webserver_closes_it() -> None:
    """dagster-webserver leaves the time to uvicorn."""
    kept = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert kept - client.KEPT_SECONDS >= 2


def test_a_wait_outlasts_a_dagster_that_is_away_for_a_while_and_no_refusal(
    server: Any, shop_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = load_profile("shop")
    plan = make_plan(profile, "shop", [read_export(str(shop_export), Storage())])
    out = Console(file=io.StringIO())
    monkeypatch.setattr(watching, "FEW_SECONDS", 0.1)
    server.status = 403
    with pytest.raises(DagsterClientError, match="this user has no access"):
        watching.watch(out, DagsterClient(url(server)), plan, profile, "of-nobody", [])
    assert len(server.seen) == 1, "a refusal is no outage"
    monkeypatch.setattr(watching, "OUTLASTED_SECONDS", 0.5)
    server.status = 503
    with pytest.raises(DagsterClientError, match="a proxy answers"):
        watching.watch(out, DagsterClient(url(server)), plan, profile, "of-nobody", [])
    assert len(server.seen) > 3
