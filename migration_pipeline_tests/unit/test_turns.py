"""Which files of windows wait for which runs, and when they give up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from migration_pipeline.defs import turns
from migration_pipeline.defs.turns import Turns
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.ledger import TooEarlyError
from migration_pipeline_tests.histories import plan_of, write_files

STARTED, WAITING, SUCCESS = (
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.SUCCESS,
)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Two files of a base, one each of two windows."""
    base = write_files(tmp_path, "base", [[], []])
    one, two = (write_files(tmp_path, name, [[]]) for name in ("one", "two"))
    return plan_of(Profile("chain"), base, [(0, 10, one), (10, 20, two)])


class World:
    """An instance of Dagster, a clock that goes when somebody sleeps, and files that get loaded meanwhile."""

    def __init__(self, plan: Plan, instance: dg.DagsterInstance) -> None:
        self.plan, self.instance = plan, instance
        self.now, self.looks = 0.0, 0
        self.loaded: set[str] = set()
        self.told: list[str] = []
        self.events: list[tuple[float, object]] = []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for when, event in list(self.events):
            if when <= self.now:
                self.events.remove((when, event))
                event()  # type: ignore[operator]

    def run(
        self,
        first: int,
        last: int | None = None,
        status: dg.DagsterRunStatus = STARTED,
        profile: str = "chain",
    ) -> dg.DagsterRun:
        """Make a run of some files."""
        keys = [self.plan.files[each].partition for each in (first, first if last is None else last)]
        tags = dict(zip(("start", "end"), keys, strict=True))
        made: dg.DagsterRun = create_run_for_test(
            self.instance,
            status=status,
            asset_selection=frozenset([dg.AssetKey([profile, "a"])]),
            tags={f"dagster/asset_partition_range_{name}": key for name, key in tags.items()},
        )
        return made

    def end(self, run: dg.DagsterRun, *loaded: int) -> None:
        self.loaded |= {self.plan.files[each].file.name for each in loaded}
        self.instance.delete_run(run.run_id)

    def load(self, planned: PlannedFile) -> str:
        self.looks += 1
        missing = [f.file.name for f in self.plan.before(planned) if f.file.name not in self.loaded]
        if missing:
            error = TooEarlyError("too early")
            error.missing = tuple(missing)
            raise error
        return "loaded"

    def in_turn(self, number: int, failed: tuple[int, ...] = (), run_id: str = "mine") -> str:
        planned = self.plan.files[number]
        return Turns(self.instance, self.plan, run_id).in_turn(
            planned,
            lambda: self.load(planned),
            self.told.append,
            {self.plan.files[each].partition for each in failed},
        )


@pytest.fixture
def world(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        made = World(plan, instance)
        clock = SimpleNamespace(monotonic=lambda: 1_000 + made.now, sleep=made.sleep)
        monkeypatch.setattr(turns, "time", clock)
        yield made


def test_it_waits_while_another_run_loads_what_is_missing(world: World) -> None:
    one, other = world.run(0), world.run(1)
    world.events = [(10, lambda: world.end(one, 0)), (20, lambda: world.end(other, 1))]
    assert world.in_turn(2) == "loaded"
    assert 20 <= world.now < 20 + 2 * turns.POLL_SECONDS
    names = [planned.file.name for planned in world.plan.files]
    assert world.told[0] == (
        "waits for 2 files that must be loaded before this window; loading now: "
        f"{names[0]} (run {one.run_id[:8]}), {names[1]} (run {other.run_id[:8]})"
    )
    assert world.told[-1].startswith("waits for 1 file that")


@pytest.mark.parametrize(
    ("status", "profile"), [(WAITING, "chain"), (SUCCESS, "chain"), (STARTED, "another")]
)
def test_it_does_not_wait_for_what_is_not_loading(
    world: World, status: dg.DagsterRunStatus, profile: str
) -> None:
    world.run(0, 1, status, profile)
    with pytest.raises(TooEarlyError):
        world.in_turn(2)
    assert (world.now, world.told) == (0, [])


def test_it_does_not_wait_for_itself_or_for_files_that_are_loaded(world: World) -> None:
    world.loaded = {world.plan.files[0].file.name}
    world.run(0)
    mine = world.run(1, 2)
    with pytest.raises(TooEarlyError):
        world.in_turn(2, run_id=mine.run_id)
    assert world.now == 0


def test_a_file_that_fails_elsewhere_ends_the_wait_after_a_while(world: World) -> None:
    run = world.run(0, 1)
    world.events = [(9, lambda: world.end(run, 0))]
    with pytest.raises(TooEarlyError):
        world.in_turn(2)
    assert 9 + turns.GRACE_SECONDS <= world.now + turns.POLL_SECONDS <= 9 + turns.GRACE_SECONDS + 6
    assert world.told[-1].endswith("none of them is loading now, and it gives up soon")


def test_a_run_that_crashed_and_is_started_again_is_waited_for(world: World) -> None:
    run = world.run(0, 1)

    def again() -> None:
        later = world.run(0, 1)
        world.events.append((40, lambda: world.end(later, 0, 1)))

    world.events = [(9, lambda: world.end(run)), (20, again)]
    assert world.in_turn(2) == "loaded"


def test_two_runs_do_not_wait_for_each_other(world: World) -> None:
    """A run has failed to load a base file, and goes on to the last window; another has the window before that."""
    world.loaded = {world.plan.files[0].file.name}
    world.run(2)
    mine = world.run(1, 3)
    with pytest.raises(TooEarlyError):
        world.in_turn(3, failed=(1,), run_id=mine.run_id)
    assert world.now == 0


def test_a_file_of_a_full_export_asks_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turns, "_loading", lambda _: pytest.fail("it asked"))
    assert world.in_turn(0) == "loaded"
