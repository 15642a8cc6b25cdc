"""Queues runs as Dagster does by default, and tags each with the profile of its assets, and with its files.

A run that materializes assets gets the tags of the backfill or the dialog that launched it, and none of the assets'
own. With the tags, `tag_concurrency_limits` can hold a migration to so many files at once, and the list of runs can be
read and filtered. It also sees to it that crashed runs which Dagster overlooks are started again.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol, runtime_checkable

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from dagster._core.storage.tags import RETRY_NUMBER_TAG, WILL_RETRY_TAG

from migration_pipeline.defs.metadata import AHEAD_OF_FILES, FILE_TAG, PROFILE_TAG, file_tag
from migration_pipeline.defs.turns import ends_of

OVERLOOKED_SECONDS = 30.0
"""After which a crashed run is overlooked that the daemon, which looks every five seconds, has not started again."""

OVERLOOKED_HOURS = 24


@runtime_checkable
class Slotted(Protocol):
    """A launcher whose workers have a limited number of places."""

    def slots(self) -> int | None:
        """Give the number of runs that they can execute at once; None when it is not known."""


class TaggingRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, which gives a run the tag `PROFILE_TAG` of its assets if they all have the same, and then `FILE_TAG`.

    A run that is started again after a crash is the next to leave the queue. No more leave it than workers have places:
    here a run can wait as long as it takes, and be canceled.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._reported: set[str] = set()
        self._next_look = 0.0

    def get_run_queue_config(self) -> RunQueueConfig:
        """Give the limits of the queue, as the daemon asks before each look at it."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + OVERLOOKED_SECONDS
            report_overlooked(self._instance, self._reported)
        config = super().get_run_queue_config()
        launcher = self._instance.run_launcher
        slots = launcher.slots() if isinstance(launcher, Slotted) else None
        if slots is None:
            return config
        limit = config.max_concurrent_runs
        return config._replace(max_concurrent_runs=slots if limit < 0 else min(limit, slots))

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run, and put it into the queue."""
        graph = context.workspace.asset_graph
        nodes = [graph.get(key) for key in context.dagster_run.asset_selection or () if graph.has(key)]
        profiles = {node.tags.get(PROFILE_TAG) for node in nodes} - {None}
        tags = {PROFILE_TAG: str(profiles.pop())} if len(profiles) == 1 else {}
        first, last = ends_of(context.dagster_run.tags)
        if tags and first:
            tags[FILE_TAG] = file_tag(first, last)
        if RETRY_NUMBER_TAG in context.dagster_run.tags:
            tags |= AHEAD_OF_FILES  # its worker crashed, and files of windows may wait for its own
        if tags:
            self._instance.add_run_tags(context.dagster_run.run_id, tags)
        return super().submit_run(context)


def report_overlooked(instance: DagsterInstance, reported: set[str]) -> None:
    """Report the end of crashed runs once more that Dagster is to start again, and has overlooked; `reported` are those of before.

    Its daemon reads that a run has failed from the event log, and passes over a run whose status is not yet FAILURE. That is
    written after the event, by another process: a daemon that looks in between never starts the run again, and its backfill waits
    for that for ever (read from `dagster._daemon.auto_run_reexecution` at 1.13.27, and seen: ``findings/dagster-overlooks-a-crash.sh``).
    """
    now = datetime.now(timezone.utc)
    waiting = RunsFilter(
        statuses=[DagsterRunStatus.FAILURE],
        tags={WILL_RETRY_TAG: "true"},
        updated_after=now - timedelta(hours=OVERLOOKED_HOURS),
        updated_before=now - timedelta(seconds=OVERLOOKED_SECONDS),
    )
    for run in instance.get_runs(waiting):
        if run.is_complete_and_waiting_to_retry and PROFILE_TAG in run.tags and run.run_id not in reported:
            reported.add(run.run_id)  # one whose backfill was canceled is never started again
            instance.report_run_failed(
                run, "Dagster has overlooked that this run has crashed; reported again."
            )
