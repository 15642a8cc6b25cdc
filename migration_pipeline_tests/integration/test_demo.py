"""`make demo`: a full export, two windows after it, and the cut-over, by the calls that a user makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migration_pipeline.cli import main

SCRIPT = Path(sys.executable).parent / "migration-pipeline"

Demo = Callable[..., tuple[int, str]]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """Calls the demo with a state folder of its own."""
    environment = dict(os.environ) | {"MIGRATION_HOME": str(tmp_path / "state")}

    def call(*arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [SCRIPT, *arguments], env=environment, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout + done.stderr

    yield call
    call("clean")


def test_the_demo_follows_a_table_through_two_windows(demo: Demo) -> None:
    status, output = demo("demo", "--items", "2000", "--files", "1")
    assert status == 0, output
    assert "1 of 1 file materialized" in output
    assert len(re.findall(r"^\$ migration-pipeline plan shop --add \S+$", output, re.MULTILINE)) == 2
    assert (
        output.count("\ncustomer_activity materialized, finishing materialized\n2 of 2 files materialized\n")
        == 2
    )
    told = re.findall(
        r"^\d+ records of the window; rows: (\d+) inserted, (\d+) updated, (\d+) deleted",
        output,
        re.MULTILINE,
    )
    assert len(told) == 2
    assert all(int(number) for numbers in told for number in numbers)
    if "cutover" in main.commands:
        assert "\nyes: the application can switch\n" in output

    # Called again it loads nothing; and with another sample it would bring back what is older.
    status, output = demo("demo", "--items", "2000", "--files", "1")
    assert status == 0, output
    assert output.count("5 of 5 files materialized: nothing to") == 3
    status, output = demo("demo", "--items", "2001", "--files", "1")
    assert (status, "make clean first" in output) == (1, True), output
