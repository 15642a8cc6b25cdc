"""The runs of one plan in a running Dagster, and their logs.

A run belongs to a plan when it loads assets of its profile. Its event log is in Dagster's storage, so it can be
read from anywhere, and also after the run's worker has ended.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.migration.names import table_keys
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.operations.client import ENTRIES, DagsterClient, first_line, metadata_of
from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted

EXECUTING = ("STARTING", "STARTED", "CANCELING")
WAITING = ("QUEUED", "NOT_STARTED")
"""Dagster's RunStatus of runs that have a worker, and of those that wait for one."""

PAGE = 500
"""Runs asked about in one query."""

POLL_SECONDS = 1.0

STEP_FAILED, RUN_FAILED = "ExecutionStepFailureEvent", "RunFailureEvent"

SHOWN_EVENTS = {
    "LogMessageEvent": "",
    STEP_FAILED: "",
    RUN_FAILED: "",
    "RunEnqueuedEvent": "run queued",
    "RunStartEvent": "run started",
    "RunCancelingEvent": "run is being terminated",
    "RunCanceledEvent": "run terminated",
    "RunSuccessEvent": "run succeeded",
}
"""GraphQL types of the events that matter to an operator, with our text for those without a useful one; the rest is
Dagster's internals."""


class Run(msgspec.Struct, kw_only=True, frozen=True):
    """A run that loads files of a plan; times are seconds of the epoch."""

    id: str
    status: str
    partitions: tuple[str, ...]
    """Partition keys, in load order."""
    started: float
    """When its worker began; 0.0 before."""
    backfill: str = ""
    """Id of the backfill that made it."""


class LogLine(msgspec.Struct, frozen=True):
    """An event of a run's log."""

    time: float
    """Seconds of the epoch."""
    level: str
    text: str
    kind: str
    """GraphQL type of the event."""
    metadata: dict[str, Any] = {}
    """Of an observation, by label."""
    partition: str = ""
    """Of a materialization or observation of one."""


# -- which runs there are ----------------------------------------------------------------------------


def runs(
    client: DagsterClient,
    plan: Plan,
    statuses: Sequence[str],
    newest: int | None = None,
    backfill: str = "",
) -> list[Run]:
    """Return the plan's runs that have one of Dagster's `statuses` (or any), newest first.

    With `newest`, of that many newest runs of the whole Dagster; with `backfill`, an id, of those that it made.
    """
    found: list[Run] = []
    places = _places(plan)
    tags = [{"key": "dagster/backfill", "value": backfill}] if backfill else None
    cursor = None
    while True:
        page = client.query(
            RUNS, statuses=list(statuses) or None, cursor=cursor, limit=newest or PAGE, tags=tags
        )["runsOrError"]["results"]
        found += (_run(run, places) for run in page if is_of(run, plan.profile))
        if newest or len(page) < PAGE:
            return found
        cursor = page[-1]["id"]


def last_run(client: DagsterClient, plan: Plan, profile: Profile, planned: PlannedFile) -> Run | None:
    """Return the last run that tried a file; None when none did, or it is deleted."""
    key = {"path": table_keys(profile)[0]}
    node = client.query(LAST_RUN, key=key, partition=planned.partition)["assetNodeOrError"]
    run = node.get("latestRunForPartition")
    return _run(run, _places(plan)) if run else None


def runs_of(client: DagsterClient, plan: Plan, planned: PlannedFile) -> list[Run]:
    """Return all runs that tried a file and are not deleted, the oldest first; not those that were canceled while they waited."""
    everything = reversed(runs(client, plan, ()))
    return [
        run
        for run in everything
        if planned.partition in run.partitions and (run.started or run.status != "CANCELED")
    ]


def _places(plan: Plan) -> dict[str, int]:
    return {partition: place for place, partition in enumerate(plan.by_partition())}


def _run(run: Mapping[str, Any], places: Mapping[str, int]) -> Run:
    tags: dict[str, str] = {tag["key"]: tag["value"] for tag in run["tags"]}
    first = tags.get("dagster/asset_partition_range_start", tags.get("dagster/partition", ""))
    last = tags.get("dagster/asset_partition_range_end", first)
    partitions: tuple[str, ...] = ()
    if first in places and last in places:
        partitions = tuple(islice(places, places[first], places[last] + 1))
    return Run(
        id=run["id"],
        status=run["status"],
        partitions=partitions,
        started=run["startTime"] or 0.0,
        backfill=tags.get("dagster/backfill", ""),
    )


def is_of(work: Mapping[str, Any], profile: str) -> bool:
    """Whether a run or backfill loads a profile's assets: by its selection, or as a job ``<profile>_…`` of them."""
    if selection := work["assetSelection"]:
        return any(key["path"][0] == profile for key in selection)
    return str(work["jobName"] or "").rpartition("_")[0] == profile


def run_status(client: DagsterClient, run_id: str) -> str:
    """Dagster's RunStatus of a run; "" when it is deleted."""
    return str(client.query(RUN, run=run_id)["runOrError"].get("status", ""))


def run_start(client: DagsterClient, run_id: str) -> float:
    """When a run started, in seconds of the epoch; 0.0 when it never did, or is deleted."""
    return float(client.query(RUN, run=run_id)["runOrError"].get("startTime") or 0)


def run_configs(client: DagsterClient, run_ids: Sequence[str]) -> dict[str, str]:
    """Return the run config of runs as YAML, by run id. It may hold secrets."""
    found: dict[str, str] = {}
    for start in range(0, len(run_ids), PAGE):
        answer = client.query(CONFIGS, runs=list(run_ids[start : start + PAGE]))["runsOrError"]
        found |= {run["id"]: run["runConfigYaml"] for run in answer["results"]}
    return found


# -- what they say -----------------------------------------------------------------------------------


def log_lines(
    client: DagsterClient, run_id: str, cursor: str | None = None
) -> tuple[list[LogLine], str | None]:
    """Read a run's log from after `cursor` on, oldest first; returns the cursor to go on from, too.

    A deleted run has none.
    """
    lines: list[LogLine] = []
    while True:
        connection = client.query(EVENTS, run=run_id, cursor=cursor)["runOrError"].get("eventConnection")
        if connection is None:
            return lines, cursor
        cursor = str(connection["cursor"])
        lines += (_line(event) for event in connection["events"] if "timestamp" in event)
        if not connection["hasMore"]:
            return lines, cursor


def _line(event: Mapping[str, Any]) -> LogLine:
    kind = event["__typename"]
    text = _failure(event) if kind == STEP_FAILED else str(event["message"] or "")
    return LogLine(
        float(event["timestamp"]) / 1000,
        event["level"],
        SHOWN_EVENTS.get(kind) or text,
        kind,
        metadata_of(event) if "metadataEntries" in event else {},
        event.get("partition") or "",
    )


def _failure(event: Mapping[str, Any]) -> str:
    """Return the first line of what a step failed with."""
    described = (event["failureMetadata"] or {}).get("description")
    if described:
        return str(described).splitlines()[0]
    error = event["error"] or {}
    causes = error.get("causes") or []
    return first_line(causes[-1] if causes else error)


def run_error(client: DagsterClient, run_id: str) -> str:
    """Return the first line of what a run failed with; "" when it did not fail."""
    lines, _ = log_lines(client, run_id)
    told = {line.kind: line.text for line in reversed(lines) if line.kind in (STEP_FAILED, RUN_FAILED)}
    if STEP_FAILED in told:
        return told[STEP_FAILED]
    return (told[RUN_FAILED] or "the run failed").splitlines()[0] if told else ""


def one_file(plan: Plan, text: str) -> PlannedFile:
    """Find one file by its name or a part of it. Raises `UsageError` unless there is exactly one."""
    found = plan.matching(text)
    exact = [planned for planned in found if text in (planned.file.name, planned.partition)]
    if len(exact) == 1:
        return exact[0]
    if len(found) > 1:
        names = ", ".join(planned.file.name for planned in found[:5])
        raise UsageError(
            f"{text} is part of the names of {counted(len(found), 'file')}: {names}{', …' if len(found) > 5 else ''}; "
            "give a longer part of the name"
        )
    return found[0]


def file_log(
    client: DagsterClient, run: Run, planned: PlannedFile, *, follow: bool = False
) -> Iterator[LogLine]:
    """Yield the lines of a run's log about a file, and about the run; with `follow`, until the run is over."""
    cursor: str | None = None
    while True:
        over = not follow or run_status(client, run.id) not in (*WAITING, *EXECUTING)
        lines, cursor = log_lines(client, run.id, cursor)
        for line in lines:
            if line.kind in SHOWN_EVENTS and _concerns(line, planned.file.name):
                yield line
        if over:
            return
        time.sleep(POLL_SECONDS)


def _concerns(line: LogLine, file: str) -> bool:
    """Whether a line is not another file's; one that is a file's begins with the file's name."""
    name, colon, _ = line.text.partition(": ")
    return line.kind != "LogMessageEvent" or not (colon and name.endswith(".gz")) or name == file


RUNS = """
query Runs($statuses: [RunStatus!], $cursor: String, $limit: Int, $tags: [ExecutionTag!]) {
  runsOrError(filter: {statuses: $statuses, tags: $tags}, cursor: $cursor, limit: $limit) {
    ... on Runs {
      results { id status startTime jobName assetSelection { path } tags { key value } }
    }
  }
}"""

LAST_RUN = """
query LastRun($key: AssetKeyInput!, $partition: String!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      latestRunForPartition(partition: $partition) { id status startTime tags { key value } }
    }
  }
}"""

RUN = """
query Run($run: ID!) {
  runOrError(runId: $run) { ... on Run { status startTime } }
}"""

CONFIGS = """
query Configs($runs: [String]) {
  runsOrError(filter: {runIds: $runs}) {
    ... on Runs { results { id runConfigYaml } }
  }
}"""

EVENTS = (
    """
query Events($run: ID!, $cursor: String) {
  runOrError(runId: $run) {
    ... on Run {
      eventConnection(afterCursor: $cursor) {
        cursor hasMore
        events {
          __typename
          ... on MessageEvent { message timestamp level }
          ... on ObservationEvent { partition metadataEntries { ...Entries } }
          ... on MaterializationEvent { partition }
          ... on ExecutionStepFailureEvent {
            error { message causes { message } }
            failureMetadata { description }
          }
        }
      }
    }
  }
}"""
    + ENTRIES
)
