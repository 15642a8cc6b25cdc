"""Queues runs as Dagster does by default, and tags each with the profile of its assets, and with its files.

A run that materializes assets gets the tags of the backfill or the dialog that launched it, and none of the assets'
own. With the tags, `tag_concurrency_limits` can hold a migration to so many files at once, and the list of runs can be
read and filtered. It also sees to it that crashed runs which Dagster overlooks are started again, and that backfills and runs
outlast a code server that is away, or code that does not load: they wait for it.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Protocol, runtime_checkable

from dagster import DagsterEventType, DagsterInstance, DagsterRun, DagsterRunStatus, RunsFilter
from dagster._core.events import RunFailureReason
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    RETRY_NUMBER_TAG,
    RUN_FAILURE_REASON_TAG,
    WILL_RETRY_TAG,
)

from migration_pipeline.defs.metadata import AHEAD_OF_FILES, FILE_TAG, PROFILE_TAG, file_tag
from migration_pipeline.defs.turns import ends_of

CODE_RETRIES = 10_000
"""How often a run goes back into the queue because its code cannot be loaded: by default once a minute, and so for a week."""

os.environ.setdefault("DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR", "yes")
# The daemon imports this before it looks at a backfill. Without it, a code server that restarts for longer than a daemon tries
# to reach it, some 30 seconds, fails each backfill and cancels its runs, those that load a file as well.

LOOK_SECONDS = 10.0
"""Between two looks for crashed runs that Dagster has overlooked."""

OVERLOOKED_SECONDS = 30.0
"""How long a run waits to be started again before it counts as overlooked: the daemon looks every five seconds."""

PATIENCE_SECONDS = 300.0
"""How long, at most, until Dagster is told of a run once more: the code may be away for hours."""

OVERLOOKED = "Dagster has overlooked that this run has crashed; reported again."

GIVEN_UP = "Failed to retry run"
"""Dagster's message where it could not start a run again; its event has the error."""

CRASHES = 500
"""Failed runs that are looked at, newest first: what has just crashed is among them."""

RETRIES = "max_user_code_failure_retries"

WANT_OF_CODE = ("DagsterUserCodeUnreachableError", "DagsterCodeLocationLoadError")
"""Dagster's errors where code cannot be loaded now. With any other, starting a run again fails each time."""


@runtime_checkable
class Slotted(Protocol):
    """A launcher whose workers have a limited number of places."""

    def slots(self) -> int | None:
        """Give the number of runs that they can execute at once; None when it is not known."""


class TaggingRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, which gives a run the tag `PROFILE_TAG` of its assets if they all have the same, and then `FILE_TAG`.

    A run that is started again after a crash is the next to leave the queue. No more leave it than workers have places:
    here a run can wait as long as it takes, and be canceled. So does one whose code cannot be loaded.
    """

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._overlooked = Overlooked()
        data = self.inst_data
        self._retries_configured = data is not None and RETRIES in data.config_dict

    def get_run_queue_config(self) -> RunQueueConfig:
        """Give the limits of the queue. The daemon asks for them before each look at it, others now and then."""
        self._overlooked.look(self._instance)
        config = super().get_run_queue_config()
        if not self._retries_configured:
            config = config._replace(max_user_code_failure_retries=CODE_RETRIES)
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


class Overlooked:
    """Finds crashed runs that Dagster is to start again, and has overlooked, and reports their end once more.

    Its daemon reads that a run has failed from the event log, and passes over a run whose status is not yet FAILURE. That is
    written after the event, by another process: a daemon that looks in between never starts the run again, and its backfill waits
    for that for ever (read from `dagster._daemon.auto_run_reexecution` at 1.13.27, and seen: ``findings/dagster-overlooks-a-crash.sh``).
    And it gives up a run whose code it cannot load at that moment, as where a code server restarts that a run ended with.

    Only a process that goes on looking finds one, as the daemon does: a run worker asks once. Time is this process's own, as
    Dagster's PostgreSQL storage writes its times in the session's time zone.
    """

    def __init__(self) -> None:
        self._next_look = time.monotonic() + LOOK_SECONDS
        self._since: dict[str, float] = {}
        """When each run that waits was first seen."""
        self._hopeless: set[str] = set()
        """Runs that Dagster has given up for good."""

    def look(self, instance: DagsterInstance) -> None:
        """Look for such runs, if it is time to. Raises nothing: the queue goes on whatever becomes of it."""
        if (now := time.monotonic()) < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        try:
            self._look(instance, now)
        except Exception as error:  # whatever a storage raises; the next look comes soon
            logging.getLogger(__name__).warning(
                f"looking for crashed runs that are not started again: {type(error).__name__}"
            )

    def _look(self, instance: DagsterInstance, now: float) -> None:
        crashed = [run for run in _failed(instance, "true") if run.is_complete_and_waiting_to_retry]
        given_up = [run for run in _failed(instance, "false") if run.run_id not in self._hopeless]
        given_up = [run for run in given_up if _may_start(run)]
        started = _open_backfills(instance) if crashed or given_up else set()
        waiting = {run.run_id: run for run in crashed if run.tags.get(BACKFILL_ID_TAG, "") in started | {""}}
        for run in given_up:
            if run.tags[BACKFILL_ID_TAG] in started and _lacked_code(instance, run):
                instance.add_run_tags(run.run_id, {WILL_RETRY_TAG: "true"})  # its backfill waits for it
                waiting[run.run_id] = run
            else:
                self._hopeless.add(run.run_id)
        self._since = {run_id: self._since.get(run_id, now) for run_id in waiting}
        for run_id, since in self._since.items():
            waited = now - since
            if waited >= OVERLOOKED_SECONDS and waited >= self._patience(instance, run_id):
                instance.report_run_failed(waiting[run_id], OVERLOOKED)
                self._since[run_id] = now

    def _patience(self, instance: DagsterInstance, run_id: str) -> float:
        """Seconds from one report of a run to the next: they double."""
        ends = instance.all_logs(run_id, of_type=DagsterEventType.RUN_FAILURE)
        told = sum(entry.get_dagster_event().message == OVERLOOKED for entry in ends)
        return min(OVERLOOKED_SECONDS * 2.0**told, PATIENCE_SECONDS)


def _failed(instance: DagsterInstance, will_retry: str) -> list[DagsterRun]:
    """The newest runs of migrations that failed, of those that Dagster says it will start again, or that it will not."""
    found = RunsFilter(statuses=[DagsterRunStatus.FAILURE], tags={WILL_RETRY_TAG: will_retry})
    return [run for run in instance.get_runs(found, limit=CRASHES) if PROFILE_TAG in run.tags]


def _open_backfills(instance: DagsterInstance) -> set[str]:
    """The backfills whose crashed runs Dagster starts again."""
    states = [status for status in BulkActionStatus if status not in BULK_ACTION_TERMINAL_STATUSES]
    return {each.backfill_id for each in instance.get_backfills(filters=BulkActionsFilter(statuses=states))}


def _may_start(run: DagsterRun) -> bool:
    """Whether a run's tags allow that Dagster meant to start it again: it is of a backfill, and crashed."""
    failed_itself = run.tags.get(RUN_FAILURE_REASON_TAG) == RunFailureReason.STEP_FAILURE.value
    return BACKFILL_ID_TAG in run.tags and AUTO_RETRY_RUN_ID_TAG not in run.tags and not failed_itself


def _lacked_code(instance: DagsterInstance, run: DagsterRun) -> bool:
    """Whether Dagster tried to start a run again, by its rules, and could not load its code; and nobody has done so since."""
    events = [
        log.get_dagster_event()
        for log in instance.all_logs(run.run_id, of_type=DagsterEventType.ENGINE_EVENT)
    ]
    errors = [event.engine_event_data.error for event in events if event.message == GIVEN_UP]
    if not errors or errors[-1] is None or errors[-1].cls_name not in WANT_OF_CODE:
        return False
    group = instance.get_run_group(run.run_id)
    if group is None or any(other.parent_run_id == run.run_id for other in group[1]):
        return False
    reason = run.tags.get(RUN_FAILURE_REASON_TAG)
    known = RunFailureReason(reason) if reason else None
    return bool(auto_reexecution_should_retry_run(instance, run, known))
