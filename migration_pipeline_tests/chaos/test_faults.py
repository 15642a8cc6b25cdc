"""A short sweep over all faults; `make chaos SEEDS=20` runs the long one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from migration_pipeline_tests.chaos.faults import BAD_ITEMS, FAULTS
from migration_pipeline_tests.chaos.lab import BAD, Case, Lab, lab

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "1").split(",")]
"""Which seeds to run: CHAOS_SEEDS=7 replays those cases."""


@pytest.fixture(scope="module")
def a_lab() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", FAULTS)
def test_the_end_state_is_that_of_a_faultless_load(a_lab: Lab, name: str, seed: int) -> None:
    case = Case(a_lab, seed, BAD if name in BAD_ITEMS else 0)
    sys.stdout.write(f"{name}: CHAOS_SEEDS={seed} replays it\n")
    try:
        FAULTS[name](case)
        verdict = case.verdict()
        assert verdict.right, verdict
    finally:
        case.close()
