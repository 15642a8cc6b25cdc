"""The order of files: one of a window that is run too early waits while other runs load what must be there before.

A run waits for what is loading, never for what is only queued: with one place in the queue it may hold that place itself.
Nor for what it has failed to load itself. So runs wait for files of strictly earlier exports, and never for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.targets.ledger import TooEarlyError
from migration_pipeline.units import counted

POLL_SECONDS = 3.0
"""Between two looks."""

GRACE_SECONDS = 15.0
"""How long a run goes on looking once nothing that it has waited for is loading: a run that crashed is started again."""

LOADING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]

NAMED = 3
"""Files that a text names."""

Result = TypeVar("Result")


class Turns:
    """Lets a run load the files of a plan in their turn."""

    def __init__(self, instance: dg.DagsterInstance, plan: Plan, run_id: str) -> None:
        self._instance = instance
        self._plan = plan
        self._run_id = run_id
        self._places = {partition: place for place, partition in enumerate(plan.by_partition())}

    def in_turn(
        self,
        planned: PlannedFile,
        load: Callable[[], Result],
        tell: Callable[[str], None],
        failed: Collection[str] = (),
    ) -> Result:
        """Call `load`, and again for as long as it comes too early for files that other runs are loading.

        `tell` hears of what it waits for, at each look. `failed` are partitions that this run has tried. Raises what `load`
        raises: `TooEarlyError` once nothing that is missing is loading.
        """
        before = {each.file.name: each.partition for each in self._plan.before(planned)}
        until = 0.0
        while True:
            # Before the load looks for receipts: what ends in between has its receipt by then.
            loading = self._loading() if before else {}
            try:
                return load()
            except TooEarlyError as error:
                missing = {before[name]: name for name in error.missing if name in before}
                waited_for = {name: loading[each] for each, name in missing.items() if each in loading}
                if waited_for and not missing.keys() & set(failed):
                    until = time.monotonic() + GRACE_SECONDS
                elif time.monotonic() >= until:
                    raise
            tell(_waits(len(missing), waited_for))
            time.sleep(POLL_SECONDS)

    def _loading(self) -> dict[str, str]:
        """The partitions of files that other runs of the profile are to load now, and the id of the run."""
        return {
            partition: run.run_id
            for run in self._instance.get_runs(dg.RunsFilter(statuses=LOADING))
            if run.run_id != self._run_id and self._is_ours(run)
            for partition in self._partitions(run)
        }

    def _is_ours(self, run: dg.DagsterRun) -> bool:
        if keys := run.asset_selection:
            return any(key.path[0] == self._plan.profile for key in keys)
        return run.job_name == f"{self._plan.profile}_migrate"

    def _partitions(self, run: dg.DagsterRun) -> list[str]:
        first, last = ends_of(run.tags)
        if first not in self._places or last not in self._places:
            return []
        return list(self._places)[self._places[first] : self._places[last] + 1]


def ends_of(tags: Mapping[str, str]) -> tuple[str, str]:
    """Give the first and the last partition that a run is to load, by its tags; "" for one that loads none."""
    first = tags.get(ASSET_PARTITION_RANGE_START_TAG, tags.get(PARTITION_NAME_TAG, ""))
    return first, tags.get(ASSET_PARTITION_RANGE_END_TAG, first)


def _waits(missing: int, waited_for: Mapping[str, str]) -> str:
    """Say what a file waits for: files that are loading, by name, each with its run."""
    text = f"waits for {counted(missing, 'file')} that must be loaded before this window"
    if not waited_for:
        return f"{text}; none of them is loading now, and it gives up soon"
    named = [f"{name} (run {run[:8]})" for name, run in list(waited_for.items())[:NAMED]]
    more = f" and {len(waited_for) - NAMED:,} more" if len(waited_for) > NAMED else ""
    return f"{text}; loading now: {', '.join(named)}{more}"
