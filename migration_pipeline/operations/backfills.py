"""The backfills of a plan in a running Dagster: how one is launched, how it stands, and how all of them are stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from migration_pipeline.migration.names import table_keys
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.client import DagsterClient, DagsterClientError, first_line
from migration_pipeline.operations.runs import EXECUTING, POLL_SECONDS, WAITING, Run, is_of, runs
from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted

NEWEST_BACKFILLS = 50
"""Backfills looked at, newest first, to find those of a profile."""

WITHOUT_CODE = "DagsterAssetBackfillDataLoadError"
"""Dagster's error for a backfill of assets or partitions that are not in the code."""

STOP_SECONDS = 180.0
"""How long `stop` waits: a terminated run ends at its next batch, and the daemon looks every few seconds."""


class Backfill(msgspec.Struct, kw_only=True):
    """A backfill's state; `status` is Dagster's BulkActionStatus."""

    id: str
    status: str
    error: str = ""
    without_code: bool = False
    """Whether it failed because Dagster's daemon did not find what it loads in the code that it had."""
    created: float = 0.0
    """Seconds of the epoch."""
    files: int = 0
    partitions: frozenset[str] = frozenset()
    """Keys of its files; asked only by `open_backfills`."""
    unmade: int = 0
    """How many of its files have no run yet, a moment ago; asked only by `open_backfills`."""

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.startswith("COMPLETED") or self.status in ("FAILED", "CANCELED")


def launch(
    client: DagsterClient,
    profile: Profile,
    partitions: Sequence[str],
    title: str,
    then: Sequence[Sequence[str]] = (),
) -> str:
    """Launch a backfill of some files through Dagster's queue; returns its id.

    `then` are keys of assets without partitions, which Dagster makes once all these files are loaded.
    """
    keys = [*(table_keys(profile) if partitions else []), *then]
    params = {
        "assetSelection": [{"path": list(key)} for key in keys],
        **({"partitionNames": list(partitions)} if partitions else {"allPartitions": True}),
        "title": title,
    }
    return _id(client.query(LAUNCH, params=params)["launchPartitionBackfill"])


def relaunch(client: DagsterClient, backfill_id: str) -> str:
    """Launch what a backfill has not loaded again, as the UI's re-execution does; returns the new one's id."""
    return _id(client.query(RELAUNCH, id=backfill_id)["reexecutePartitionBackfill"])


def _id(result: dict[str, Any]) -> str:
    if "backfillId" not in result:
        raise DagsterClientError(
            f"Dagster refused the backfill: {result.get('message', result['__typename'])}"
        )
    return str(result["backfillId"])


def read_backfill(client: DagsterClient, backfill_id: str) -> Backfill:
    """Ask for a backfill's state."""
    result = client.query(BACKFILL, id=backfill_id)["partitionBackfillOrError"]
    if "status" not in result:
        raise DagsterClientError(f"backfill {backfill_id}: {result.get('message', 'not found')}")
    return _backfill(result)


def backfills(client: DagsterClient, plan: Plan) -> list[Backfill]:
    """Return the profile's backfills among Dagster's newest `NEWEST_BACKFILLS`, newest first."""
    answer = client.query(BACKFILLS, limit=NEWEST_BACKFILLS)["partitionBackfillsOrError"]
    return [_backfill(one) for one in answer.get("results", []) if is_of(one, plan.profile)]


def open_backfills(client: DagsterClient, plan: Plan) -> list[Backfill]:
    """Return the profile's backfills that are not over, with their files, newest first."""
    answer = client.query(OPEN_BACKFILLS)["partitionBackfillsOrError"]
    return [_backfill(one) for one in answer.get("results", []) if is_of(one, plan.profile)]


def _backfill(one: dict[str, Any]) -> Backfill:
    return Backfill(
        id=one["id"],
        status=one["status"],
        error=first_line(one["error"]) if one.get("error") else "",
        without_code=one["status"] == "FAILED" and (one.get("error") or {}).get("className") == WITHOUT_CODE,
        created=one["timestamp"],
        files=one.get("numPartitions") or 0,
        partitions=frozenset(one.get("partitionNames") or ()),
        unmade=_unmade(one),
    )


def _unmade(one: dict[str, Any]) -> int:
    """Count the files that Dagster has yet to make a run for: of the tables, which each have all files; or of a job."""
    tables = (one.get("assetBackfillData") or {}).get("assetBackfillStatuses", [])
    left = [
        table["targeted"] - table["running"] - table["materialized"] - table["failed"]
        for table in tables
        if table  # what follows the files has no partitions
    ]
    return max(left, default=one.get("numCancelable") or 0)


class Stopped(msgspec.Struct, kw_only=True):
    """What `stop` did."""

    backfills: list[str] = []
    """Backfills that were cancelled."""
    runs: list[str] = []
    """Runs that were terminated, or taken out of the queue."""
    left: list[Run] = []
    """Runs that did not end in time."""
    open_backfills: list[str] = []
    """Backfills that did not end in time."""


def stop(
    client: DagsterClient, plan: Plan, say: Callable[[str], None], seconds: float = STOP_SECONDS
) -> Stopped:
    """Cancel the plan's backfills and terminate its runs, and wait until they have ended, `seconds` at most.

    Backfills go first. Until one is cancelled it makes new runs, so the queue is emptied after that, in one call. What runs
    already is terminated at once. Raises `DagsterClientError` when Dagster refuses.
    """
    done = Stopped()
    deadline = time.monotonic() + seconds
    said = ""
    while True:
        open_now = open_backfills(client, plan)
        for one in open_now:
            if one.status == "REQUESTED" and one.id not in done.backfills:
                _cancel(client, one.id)
                done.backfills.append(one.id)
        # Once it is asked, the daemon makes no more than it has begun, and may go on to terminate runs one by one.
        making = any(one.status == "REQUESTED" for one in open_now)
        alive = runs(client, plan, EXECUTING if making else (*WAITING, *EXECUTING))
        if ending := [run.id for run in alive if run.status != "CANCELING" and run.id not in done.runs]:
            done.runs += _terminate(client, ending)
        if not (open_now or alive):
            return done
        if time.monotonic() > deadline:
            done.left, done.open_backfills = alive, [one.id for one in open_now]
            return done
        line = f"waiting for {counted(len(alive), 'run')} and {counted(len(open_now), 'backfill')} to end"
        if line != said:
            say(line)
            said = line
        time.sleep(POLL_SECONDS)


def _cancel(client: DagsterClient, backfill_id: str) -> None:
    """Ask for a backfill to end: it makes no more runs, and the daemon terminates those it made."""
    result = client.query(CANCEL, id=backfill_id)["cancelPartitionBackfill"]
    if result["__typename"] != "CancelBackfillSuccess":
        raise DagsterClientError(
            f"Dagster did not cancel backfill {backfill_id}: {result.get('message', '')}"
        )


def _terminate(client: DagsterClient, run_ids: Sequence[str]) -> list[str]:
    """Ask for runs to end, as the UI's Terminate does; returns those that will.

    One that has ended in between will not, nor one that is just being started: ask again for that.
    """
    result = client.query(TERMINATE, runs=list(run_ids))["terminateRuns"]
    if "terminateRunResults" not in result:
        raise DagsterClientError(f"Dagster did not terminate: {result.get('message', result['__typename'])}")
    return [one["run"]["id"] for one in result["terminateRunResults"] if "run" in one]


LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}"""

RELAUNCH = """
mutation Relaunch($id: String!) {
  reexecutePartitionBackfill(reexecutionParams: {parentRunId: $id, strategy: FROM_FAILURE}) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}"""

BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { id status timestamp error { className message } }
    ... on Error { message }
  }
}"""

BACKFILLS = """
query Backfills($limit: Int) {
  partitionBackfillsOrError(limit: $limit) {
    ... on PartitionBackfills {
      results { id status timestamp numPartitions jobName assetSelection { path } error { message } }
    }
  }
}"""

OPEN_BACKFILLS = """
query OpenBackfills {
  partitionBackfillsOrError(filters: {statuses: [REQUESTED, CANCELING, FAILING]}) {
    ... on PartitionBackfills {
      results {
        id status timestamp jobName assetSelection { path } partitionNames numCancelable
        assetBackfillData {
          assetBackfillStatuses {
            ... on AssetPartitionsStatusCounts {
              targeted: numPartitionsTargeted running: numPartitionsInProgress
              materialized: numPartitionsMaterialized failed: numPartitionsFailed
            }
          }
        }
      }
    }
  }
}"""

CANCEL = """
mutation CancelBackfill($id: String!) {
  cancelPartitionBackfill(backfillId: $id) {
    __typename
    ... on UnauthorizedError { message }
    ... on PythonError { message }
  }
}"""

TERMINATE = """
mutation Terminate($runs: [String!]!) {
  terminateRuns(runIds: $runs) {
    __typename
    ... on TerminateRunsResult {
      terminateRunResults { ... on TerminateRunSuccess { run { id } } }
    }
    ... on PythonError { message }
  }
}"""
