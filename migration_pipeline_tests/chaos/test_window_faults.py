"""A short sweep over the faults that matter most to windows; `make chaos SEEDS=20` runs all of them, and long."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from migration_pipeline_tests.chaos.faults import FAULTS
from migration_pipeline_tests.chaos.lab import Lab, lab
from migration_pipeline_tests.chaos.window_faults import WINDOW_FAULTS, case_of, strike
from migration_pipeline_tests.chaos.window_lab import WindowCase

SEEDS = [int(seed) for seed in os.environ.get("CHAOS_SEEDS", "1,2").split(",")]
"""Which seeds to run: CHAOS_SEEDS=7 replays those cases. By default one for faults that full exports are put through, too."""

OF_ALL_LOADS = (
    "backend_terminated", "server_restarted", "serialization_failures", "deadlocks", "cut_while_commit_is_in_flight",
    "cut_at_the_receipt", "table_renamed", "killed_before_commit", "killed_at_the_receipt", "four_loaders_of_the_same_files",
    "bad_items_and_lost_commits",
)  # fmt: skip
CHOSEN = [
    *((f"windows_{name}", seed) for name in OF_ALL_LOADS for seed in (SEEDS if "CHAOS_SEEDS" in os.environ else SEEDS[:1])),
    *((name, seed) for name in WINDOW_FAULTS if name.removeprefix("windows_") not in FAULTS for seed in SEEDS),
]  # fmt: skip


@pytest.fixture(scope="module")
def a_lab() -> Iterator[Lab]:
    with lab() as made:
        yield made


@pytest.mark.parametrize(("name", "seed"), CHOSEN)
def test_the_tables_end_as_the_last_full_export_has_them(a_lab: Lab, name: str, seed: int) -> None:
    case = case_of(a_lab, name, seed)
    sys.stdout.write(f"{name}: CHAOS_SEEDS={seed} replays it\n")
    try:
        strike(name, case)
        verdict = case.verdict()
        assert verdict.right, verdict
    finally:
        case.close()


def test_a_worker_that_is_killed_between_any_two_transactions_of_a_window(a_lab: Lab) -> None:
    for number in itertools.count(1):
        case = WindowCase(a_lab, 1)
        try:
            case.batch_items, case.die_after = 150, number
            every, case.files = case.files, case.groups[0]
            with case.process(case.url()) as process:
                ended = process.wait()
            case.files = every
            if ended == 0:
                break
            assert ended == -signal.SIGKILL
            verdict = case.verdict()
            assert verdict.right, f"killed after transaction {number}: {verdict}"
        finally:
            case.close()
    assert number > 8, "there were so few transactions that nothing was tried"


def test_row_keys_go_from_one_file_of_a_window_to_another(a_lab: Lab) -> None:
    """What two loaders at once can get wrong is in the history: an order that one customer had, and another has then."""
    case = WindowCase(a_lab, 1)
    try:
        for window in case.groups:
            holders = defaultdict[str, set[tuple[str, str]]](set)
            for file in window:
                with gzip.open(file.uri) as lines:
                    for line in lines:
                        for order, customer in _orders(json.loads(line)):
                            holders[order].add((file.name, customer))
            handed = [each for each in holders.values() if len({customer for _, customer in each}) > 1]
            assert [each for each in handed if len({file for file, _ in each}) > 1]
    finally:
        case.close()


def _orders(record: dict[str, Any]) -> list[tuple[str, str]]:
    images = (record.get(name) for name in ("OldImage", "NewImage"))
    keys = [(image["SK"]["S"], image["PK"]["S"]) for image in images if image]
    return [(sort_key, key) for sort_key, key in keys if sort_key.startswith("ORDER#")]
