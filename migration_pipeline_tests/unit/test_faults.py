"""What a refusal means, and how long to wait after it."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from migration_pipeline.targets.faults import LONGEST_WAIT_SECONDS, advice, wait_seconds, why_bad


@pytest.mark.parametrize("state", [None, "40001", "53300"])
def test_waits_grow_are_bounded_and_never_overflow(state: str | None) -> None:
    chance = random.Random(1)
    waits = [wait_seconds(attempt, state, chance) for attempt in (0, 3, 20, 1_023, 1_024, 10**6)]
    assert 0 < waits[0] <= 2
    assert all(LONGEST_WAIT_SECONDS / 2 <= wait <= LONGEST_WAIT_SECONDS for wait in waits[2:])


@pytest.mark.parametrize(
    "state", ["0A000", "21000", "22P05", "428C9", "42883", "42P10", "55000", "P0001", "3F000", "42501"]
)
def test_each_state_that_a_table_can_cause_has_advice_of_its_own(state: str) -> None:
    assert advice(state)
    assert advice(state) != advice("42000"), "not the one for a class"


def test_a_row_without_a_partition_is_told_from_a_constraint() -> None:
    assert "no partition" in why_bad("23514", named=False)
    assert why_bad("23514", named=True) == ""


def test_nothing_of_the_interpreter_changes_on_import() -> None:
    code = (
        "import sys; before = sys.excepthook, list(sys.path); import migration_pipeline.targets.postgres; "
        "assert (sys.excepthook, sys.path) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
