"""The faults that windows are put through: those of a full load, and some that only windows can have."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from migration_pipeline.targets.ledger import TooEarlyError
from migration_pipeline_tests.chaos import faults
from migration_pipeline_tests.chaos.faults import BAD_ITEMS, FAULTS, killed_at, survive, through_proxy
from migration_pipeline_tests.chaos.lab import BAD, Case, Lab
from migration_pipeline_tests.chaos.proxy import Fault
from migration_pipeline_tests.chaos.window_lab import WindowCase

NOT_OF_WINDOWS = {
    "profile_raises": "it replays the quarantine of full exports",
}
"""Faults that windows are not put through, and why."""

WINDOW_FAULTS: dict[str, Callable[[WindowCase], None]] = {
    f"windows_{name}": function for name, function in FAULTS.items() if name not in NOT_OF_WINDOWS
}
WITH_BAD_ITEMS = {f"windows_{name}" for name in BAD_ITEMS}


def case_of(lab: Lab, name: str, seed: int) -> Case:
    """Make the case of a fault, by its name in `FAULTS` or `WINDOW_FAULTS`."""
    if name in FAULTS:
        return Case(lab, seed, BAD if name in BAD_ITEMS else 0)
    return WindowCase(lab, seed, BAD if name in WITH_BAD_ITEMS else 0)


def strike(name: str, case: Case) -> None:
    """Load a case's files under the fault."""
    if isinstance(case, WindowCase):
        WINDOW_FAULTS[name](case)
    else:
        FAULTS[name](case)


def of_windows(function: Callable[[WindowCase], None]) -> Callable[[WindowCase], None]:
    """Register a fault that only windows can have."""
    WINDOW_FAULTS[f"windows_{function.__name__}"] = function
    return function


# -- other files at the same time ---------------------------------------------------------------------


@of_windows
def base_files_again_beside_them(case: WindowCase) -> None:
    """All files of the base are loaded again, while the windows are."""

    def again() -> None:
        for file in case.base * 2:
            case.load(case.url(), file)

    with case.meanwhile(again):
        survive(case, case.url())


@of_windows
def earlier_window_again_beside_a_later_one(case: WindowCase) -> None:
    """The files of the first window are loaded again, while those of the second are."""
    first, second = case.groups
    for file in first:
        case.load(case.url(), file)

    def again() -> None:
        for file in first * 2:
            case.load(case.url(), file)

    with case.meanwhile(again):
        for file in second:
            case.load(case.url(), file)


@of_windows
def files_that_come_too_early(case: WindowCase) -> None:
    """Three loaders take all files in random order; one that comes too early is tried again."""
    work, lock = list(case.files), threading.Lock()
    case.chance.shuffle(work)

    def load_some() -> None:
        while True:
            with lock:
                if not work:
                    return
                file = work.pop()
            try:
                case.load(case.url(), file)
            except TooEarlyError:
                time.sleep(0.01)
                with lock:
                    work.insert(0, file)

    with ExitStack() as threads:
        for _ in range(3):
            threads.enter_context(case.meanwhile(load_some))


# -- processes -----------------------------------------------------------------------------------------


@of_windows
def two_processes(case: WindowCase) -> None:
    """Two processes share the files of each window; row keys go from one item to another across them."""
    processes(case, killed=False)


@of_windows
def two_processes_one_killed(case: WindowCase) -> None:
    """The same, and one of them is killed at a random moment."""
    processes(case, killed=True)


def processes(case: WindowCase, *, killed: bool) -> None:
    """Load each window by two processes at once."""
    every = case.files
    for group in case.groups:
        with ExitStack() as ends:
            started = []
            for half in (group[::2], group[1::2]):
                case.files = half
                started.append(ends.enter_context(case.process(case.url())))
            case.files = every
            if killed:
                case.pause(0.5)
                started.pop().kill()
            for process in started:
                process.wait()
                assert killed or process.returncode == 0
        for file in group:  # the next window waits for all of them
            if file in case.without_receipt():
                case.load(case.url(), file)


@of_windows
def killed_between_transactions(case: WindowCase) -> None:
    """SIGKILL right after a transaction, whichever, and once more later on."""
    for _ in range(2):
        case.die_after = case.chance.randint(1, 40)
        with case.process(case.url()) as process:
            process.wait()


def killed_in(name: str, pattern: bytes, doc: str) -> None:
    """Register a fault: SIGKILL within a transaction, when a statement is on its way or has just arrived."""

    def function(case: WindowCase) -> None:
        killed_at(case, pattern, forward=case.chance.random() < 0.5)

    function.__name__, function.__doc__ = name, doc
    of_windows(function)


killed_in("killed_at_the_ledger", b"INSERT INTO migration.item", "SIGKILL while items enter the ledger.")
killed_in("killed_at_the_claims", b"INSERT INTO migration.claim", "SIGKILL while keys of rows are claimed.")
killed_in("killed_at_a_deletion", b'DELETE FROM "public"', "SIGKILL while rows are taken away.")


@of_windows
def cut_at_the_ledger(case: WindowCase) -> None:
    """The connection is cut while items enter the ledger, or right after."""
    forward = case.chance.random() < 0.5
    through_proxy(
        case, Fault("cut", towards="server", pattern=b"UPDATE migration.item i", times=2, forward=forward)
    )


@of_windows
def bad_records_by_four_loaders(case: WindowCase) -> None:
    """Bad items and bad records, each file twice, by four loaders at once."""
    faults.side_by_side(case, 4, 2)


WITH_BAD_ITEMS.add("windows_bad_records_by_four_loaders")
