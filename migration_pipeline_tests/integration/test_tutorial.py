"""The tutorial holds: each of its commands is run, in its order, and says what the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.stack import Stack, running
from migration_pipeline_tests.conftest import query
from migration_pipeline_tests.s3 import s3_server

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

BUCKET = "my-bucket"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "project"


@pytest.fixture
def stack(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    """What `make dev` starts, and an S3."""
    home.mkdir()
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MIGRATION_HOME", str(home / ".local"))
        monkeypatch.setenv(
            "PYTHONPATH", f"{home}:{PAGE.parents[1]}"
        )  # from the project's folder `make dev` runs
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        with running() as started:
            yield started
        EmbeddedPostgres(home / ".local").remove()


def sync(home: Path) -> str:
    """What `aws s3 sync my-export s3://my-bucket/backup` does."""
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket=BUCKET)
    for path in (home / "my-export").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"backup/{path.relative_to(home / 'my-export')}")
    return ""


def command(line: str, home: Path) -> str:
    done = subprocess.run(line, shell=True, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def plainly(line: str) -> str:
    return re.sub(r"\s+", " ", line).strip()


def assert_shown(shown: list[str], output: str) -> None:
    """Each line of the page is one of the output, in this order; … stands for anything."""
    lines = iter(map(plainly, output.splitlines()))
    for wanted in filter(None, map(plainly, shown)):
        pattern = re.escape(wanted).replace("…", ".*")
        assert any(re.fullmatch(pattern, line) for line in lines), f"{wanted!r} is not in {output}"


def steps(console: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of a block, each with what it shows."""
    for part in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
        line, *shown = part.splitlines()
        yield line, shown


def ignore_sessions(home: Path, line: str) -> None:
    """The change that the tutorial asks for, as a reader makes it in an editor."""
    module, test = home / "my_shop.py", home / "test_my_shop.py"
    source = module.read_text()
    kept, dropped = re.subn(r"class SessionItem\(Item\):.*?(?=^class )", "", source, flags=re.M | re.S)
    kept = re.sub(
        r"# Key: PK; SK is always SESSION\.\n|class Session\(Row.*?(?=^class )", "", kept, flags=re.M | re.S
    )
    commented = re.sub(r'because=".*?"', 'because="…"', line)
    assert (dropped, f"# {commented}\n" in kept) == (1, True)
    module.write_text(kept.replace(f"# {commented}\n", f"{line}\n"))
    cases, tests = re.subn(r"^def test_session_\d.*?(?=^def )", "", test.read_text(), flags=re.M | re.S)
    assert tests == 3
    test.write_text(re.sub(r"\n    Session,", "", cases))


def test_the_tutorial_does_what_it_says(stack: Stack, home: Path) -> None:
    instead = {"make dev": "", ". .venv/bin/activate": ""}
    ran = 0
    for language, block in FENCE.findall(PAGE.read_text()):
        if language == "console":
            for line, shown in steps(block):
                output = (
                    instead[line] if line in instead
                    else sync(home) if line == f"aws s3 sync my-export s3://{BUCKET}/backup"
                    else command(line, home)
                )  # fmt: skip
                assert_shown(shown, output)
                ran += 1
        elif language == "python" and block.startswith("profile.ignore("):
            ignore_sessions(home, block.strip())
        elif language == "python":
            assert block in (home / "my_shop.py").read_text()
        elif language == "sql":
            for statement, number in re.findall(r"^(SELECT .*?);\s+-- ([\d,]+)$", block, re.MULTILINE):
                assert query(stack.database_url, statement) == [(int(number.replace(",", "")),)], statement
                ran += 1
    assert ran > 15
    assert "<title>Export 01713035654959-73dbf946</title>" in (home / "inspect.html").read_text()
