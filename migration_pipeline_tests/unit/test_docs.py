"""The documents hold: the commands, links, settings, names of code and examples in them are there and work."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from operator import attrgetter
from pathlib import Path
from threading import Thread
from typing import Any

import click
import pytest

from migration_pipeline import settings
from migration_pipeline.cli import _Lazy, main
from migration_pipeline.defs.config import aggregate_config, finishing_config, load_config
from migration_pipeline.defs.notify import BackfillReport
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.transform import Transform
from migration_pipeline.migration.plan import FORMAT, Plan
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.ddl import ddl

TOP = Path(__file__).parents[2]
README = TOP / "README.md"
DOCUMENTS = sorted([*TOP.glob("*.md"), *TOP.glob("docs/**/*.md")])

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SETTING = re.compile(r"(?:MIGRATION|DAGSTER)_[A-Z_]+")


def name_of(document: Path) -> str:
    return str(document.relative_to(TOP))


def blocks(document: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(document.read_text()) if found == language]


def prose(document: Path) -> str:
    return FENCE.sub("", document.read_text())


# -- commands --------------------------------------------------------------------------------------


def calls(document: Path, program: str) -> Iterator[list[str]]:
    """Yield the arguments of each call of a program, in blocks and in code spans."""
    lines = [line for _, text in FENCE.findall(document.read_text()) for line in text.splitlines()]
    typed = [line.removeprefix("$ ") for line in lines if line.startswith(("$ ", program))]
    for line in [*typed, *CODE_SPAN.findall(prose(document))]:
        if program in line:
            yield from _calls(line, program)


def _calls(line: str, program: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("|&;<>()"):
            # Before the program: settings of its environment.
            if words or not re.match(r"[A-Z_]+=", word):
                words.append(word)
            continue
        if words and words[0].rpartition("/")[2] == program and words[1:]:
            yield words[1:]
        words = []


def every_call(program: str) -> list[object]:
    found = {
        f"{name_of(document)}: {' '.join(words)}": words
        for document in DOCUMENTS
        for words in calls(document, program)
    }
    return [pytest.param(words, id=name) for name, words in found.items()]


@pytest.mark.parametrize("words", every_call("migration-pipeline"))
def test_a_command_is_one_that_the_command_line_takes(words: list[str]) -> None:
    name, *arguments = words
    with contextlib.suppress(click.exceptions.Exit):  # where --help ends
        if name.startswith("-"):
            main.make_context("migration-pipeline", words)
        else:
            main.commands[name].make_context(name, arguments)


@pytest.mark.parametrize("words", every_call("make"))
def test_a_make_command_names_targets_and_variables_of_the_makefile(words: list[str]) -> None:
    makefile = (TOP / "Makefile").read_text()
    variables = re.findall(r"^(\w+) \?=", makefile, re.MULTILINE)
    targets = re.findall(r"^(\w+):", makefile, re.MULTILINE)
    for word in words:
        variable, assigns, _ = word.partition("=")
        assert variable in (variables if assigns else targets)


def test_every_command_is_in_the_readme() -> None:
    assert {words[0] for words in calls(README, "migration-pipeline")} >= set(main.commands)


# -- links and names -------------------------------------------------------------------------------


def every_link() -> list[object]:
    return [
        pytest.param(document, target, id=f"{name_of(document)}: {target}")
        for document in DOCUMENTS
        for target in dict.fromkeys(LINK.findall(prose(document)))
        if not re.match(r"\w+:", target)
    ]


@pytest.mark.parametrize(("document", "target"), every_link())
def test_a_link_leads_to_a_file_and_a_heading(document: Path, target: str) -> None:
    path, _, heading = target.partition("#")
    file = document.parent / path if path else document
    assert file.exists()
    if heading:
        titles = re.findall(r"^#+ (.+)$", prose(file), re.MULTILINE)
        assert heading in [re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles]


def every_code_name() -> list[object]:
    pattern = re.compile(r"`([\w/]+)\.py: ([\w.]+)`")
    return [
        pytest.param(path, name, id=f"{name_of(document)}: {path}.py: {name}")
        for document in DOCUMENTS
        for path, name in dict.fromkeys(pattern.findall(prose(document)))
        if path != "file"  # how CONTRIBUTING.md describes the form
    ]


@pytest.mark.parametrize(("path", "name"), every_code_name())
def test_code_that_is_named_is_there(path: str, name: str) -> None:
    module = importlib.import_module("migration_pipeline." + path.replace("/", "."))
    assert attrgetter(name)(module) is not None


# -- settings --------------------------------------------------------------------------------------


def test_the_readme_lists_the_settings() -> None:
    ours = {value for value in vars(settings).values() if isinstance(value, str) and SETTING.fullmatch(value)}
    assert len(ours) > 3
    section = prose(README).partition("\n## Settings\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)
    assert sorted(listed) == sorted(ours)
    for document in DOCUMENTS:
        named = {name for name in SETTING.findall(document.read_text()) if name.startswith("MIGRATION_")}
        assert named <= {*ours, "MIGRATION_"}, name_of(document)


# -- the profile -----------------------------------------------------------------------------------


@pytest.fixture
def readme_profile(monkeypatch: pytest.MonkeyPatch) -> Profile:
    (source,) = blocks(README, "python")
    module = types.ModuleType("my_migration")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where annotations are looked up
    exec(compile(source, "README.md", "exec"), module.__dict__)
    profile: Profile = module.__dict__["profile"]
    return profile


def test_the_profile_in_the_readme_takes_every_item_of_the_sample(
    readme_profile: Profile, tmp_path: Path
) -> None:
    export = read_export(str(write_sample(tmp_path, items=500, files=1)), Storage())
    lines = [line for some in FileStream(export.files[0], Storage()) for line in some]
    outcome = Transform(readme_profile, dynamodb_json)(lines).counts
    assert outcome.loaded == 130  # 26 of 100 items are sessions
    assert not outcome.unrouted
    assert outcome.loaded + sum(outcome.ignored.values()) == 500


def test_the_sql_in_the_readme_is_what_ddl_prints(readme_profile: Profile) -> None:
    (shown,) = [text for text in blocks(README, "sql") if "CREATE TABLE" in text]
    assert ddl(readme_profile.tables.values()).endswith(shown)


def test_the_function_in_the_documents_sends_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    class Slack(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    (source,) = blocks(TOP / "docs" / "ui.md", "python")
    names: dict[str, Any] = {}
    exec(compile(source, "ui.md", "exec"), names)
    report = BackfillReport(
        profile="shop", backfill_id="b", status="failed", files=2, materialized=1, failed=1, missing=0
    )
    with HTTPServer(("127.0.0.1", 0), Slack) as slack:
        monkeypatch.setenv("SLACK_WEBHOOK_URL", f"http://127.0.0.1:{slack.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        answering = Thread(target=slack.handle_request)
        answering.start()
        names["tell"](report)
        answering.join()
    assert json.loads(received[0]) == {"text": report.text}


# -- the site ----------------------------------------------------------------------------------------


def test_the_reference_has_every_command_and_key(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "docs/site/pages.py"), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = {page.name: page.read_text() for page in (tmp_path / "pages/docs/reference").iterdir()}
    commands = pages["commands.md"]
    for name, command in main.commands.items():
        assert f"\n## {name}\n" in commands
        assert isinstance(command, _Lazy)
        for option in command.load().params:
            assert (
                option.opts[0] if isinstance(option, click.Option) else option.human_readable_name
            ) in commands
    profile = load_profile("shop")
    plan = Plan(format=FORMAT, profile="shop", reference="shop", exports=(), files=())
    for config in (load_config(plan, profile), aggregate_config(plan), finishing_config(plan)):
        for key, field in config.model_fields.items():
            assert f"| `{key}` | `{field.default!r}` | " in pages["configuration.md"], key
            assert field.description, key
    named = (tmp_path / "mkdocs.yml").read_text()
    assert [d.name for d in DOCUMENTS if d.relative_to(TOP).as_posix() not in named] == []
