"""The runs and backfills of one plan in a running Dagster: which are alive, what they say, how to stop them.

A run belongs to a plan when it loads assets of its profile. What a run says is its event log, which is in
Dagster's storage, so it can be read from anywhere, and also after the run's worker is gone.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from migration_pipeline.engine.file_report import Progress
from migration_pipeline.errors import UsageError
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.operations.client import Backfill, DagsterClient, FileStatus, State, failure_of
from migration_pipeline.profile.profile import Profile

EXECUTING = ("STARTING", "STARTED", "CANCELING")
WAITING = ("QUEUED", "NOT_STARTED")
"""Dagster's RunStatus of runs that have a worker, and of those that wait for one."""

ENDED: dict[str, State] = {"FAILURE": "failed", "CANCELED": "stopped"}

NEWEST_BACKFILLS = 50
"""Backfills looked at, newest first, to find those of a profile."""

PAGE = 500
"""Runs asked about in one query."""

STOP_SECONDS = 180.0
"""How long `stop` waits: a terminated run ends at its next batch, and the daemon looks every few seconds."""

POLL_SECONDS = 1.0

SAID = re.compile(r"^(?P<file>[^\s:]+\.json\.gz): (?P<what>.*)", re.DOTALL)
PROGRESS = re.compile(r"(?P<items>[\d,]+) of (?P<total>[\d,]+) items, (?P<speed>[\d,]+) items/s")
RETRY = re.compile(r"; try \d+ in [\d.]+ s$")
"""What a load writes into its run's log (`defs/migration.py`, `targets/postgres.py`): a line of a file, its
progress, and a transaction that runs again."""

SHOWN_EVENTS = {
    "LogMessageEvent": "",
    "ExecutionStepFailureEvent": "",
    "RunFailureEvent": "",
    "RunEnqueuedEvent": "run queued",
    "RunStartEvent": "run started",
    "RunCancelingEvent": "run is being terminated",
    "RunCanceledEvent": "run terminated",
    "RunSuccessEvent": "run succeeded",
}
"""GraphQL types of the events that tell an operator something, and our words for those whose own say nothing; the
rest is Dagster's own machinery."""


class Run(msgspec.Struct, kw_only=True, frozen=True):
    """A run that loads files of a plan; times are seconds of the epoch."""

    id: str
    status: str
    partitions: tuple[str, ...]
    """Partition keys, in load order."""
    started: float
    """When its worker began; 0.0 before."""


class RunningFile(msgspec.Struct, kw_only=True):
    """A file that a run is loading now, as far as the run's log tells."""

    planned: PlannedFile
    run_id: str
    started: float
    """When its load began, in seconds of the epoch."""
    items: int = 0
    """Items read so far."""
    items_per_second: float = 0.0
    retries: int = 0
    """Transactions that ran again so far."""
    heard: float = 0.0
    """When its run last wrote into its log, in seconds of the epoch. A worker that is gone writes nothing."""

    @property
    def progress(self) -> Progress:
        """How far it is."""
        seconds = self.items / self.items_per_second if self.items_per_second else 0.0
        return Progress(self.items, self.planned.file.items, 0, seconds)


class LogLine(msgspec.Struct, frozen=True):
    """A line of a run's log."""

    time: float
    """Seconds of the epoch."""
    level: str
    text: str
    kind: str
    """GraphQL type of the event."""


# -- which runs there are ----------------------------------------------------------------------------


def runs(client: DagsterClient, plan: Plan, statuses: Sequence[str], newest: int | None = None) -> list[Run]:
    """Give the plan's runs that have one of Dagster's `statuses` (or any), newest first.

    With `newest`, of that many newest runs of the whole Dagster.
    """
    found: list[Run] = []
    places = {partition: place for place, partition in enumerate(plan.by_partition())}
    cursor = None
    while True:
        page = client.query(RUNS, statuses=list(statuses) or None, cursor=cursor, limit=newest or PAGE)[
            "runsOrError"
        ]["results"]
        found += (_run(run, places) for run in page if _is_of(run, plan.profile))
        if newest or len(page) < PAGE:
            return found
        cursor = page[-1]["id"]


def _run(run: dict[str, Any], places: dict[str, int]) -> Run:
    tags = {tag["key"]: tag["value"] for tag in run["tags"]}
    first = tags.get("dagster/asset_partition_range_start", tags.get("dagster/partition"))
    last = tags.get("dagster/asset_partition_range_end", first)
    partitions: tuple[str, ...] = ()
    if first in places and last in places:
        partitions = tuple(list(places)[places[first] : places[last] + 1])
    return Run(id=run["id"], status=run["status"], partitions=partitions, started=run["startTime"] or 0.0)


def _is_of(work: dict[str, Any], profile: str) -> bool:
    """Whether a run or backfill loads a profile's assets: by its selection, or as a job ``<profile>_…`` of them."""
    if selection := work["assetSelection"]:
        return any(key["path"][0] == profile for key in selection)
    return str(work["jobName"] or "").rpartition("_")[0] == profile


def run_configs(client: DagsterClient, run_ids: Sequence[str]) -> dict[str, str]:
    """Give the run config of runs as YAML, by run id. It may hold secrets."""
    found: dict[str, str] = {}
    for start in range(0, len(run_ids), PAGE):
        answer = client.query(CONFIGS, runs=list(run_ids[start : start + PAGE]))["runsOrError"]
        found |= {run["id"]: run["runConfigYaml"] for run in answer["results"]}
    return found


def backfills(client: DagsterClient, plan: Plan) -> list[Backfill]:
    """Give the profile's backfills among Dagster's newest `NEWEST_BACKFILLS`, newest first."""
    answer = client.query(BACKFILLS, limit=NEWEST_BACKFILLS)["partitionBackfillsOrError"]
    return [
        Backfill(
            id=one["id"],
            status=one["status"],
            error=one["error"]["message"].splitlines()[0] if one["error"] else "",
            created=one["timestamp"],
            files=one["numPartitions"] or 0,
        )
        for one in answer.get("results", [])
        if _is_of(one, plan.profile)
    ]


def states(
    client: DagsterClient, plan: Plan, profile: Profile, running: Sequence[RunningFile]
) -> dict[str, State]:
    """Tell the state of each partition by two queries, however many files have failed.

    A file whose run's worker died, or that was stopped, is missing to Dagster; its newest run tells, if it is
    among Dagster's newest `PAGE`.
    """
    found = client.states(plan, profile)
    now = {file.planned.partition for file in running}
    seen: set[str] = set()
    for run in runs(client, plan, (), newest=PAGE):
        for partition in set(run.partitions) - seen:
            if found[partition] == "missing":
                found[partition] = ENDED.get(run.status, "missing")
        seen.update(run.partitions)
    return {p: "queued" if state == "running" and p not in now else state for p, state in found.items()}


def tell_queued(files: Sequence[FileStatus], running: Sequence[RunningFile]) -> None:
    """Change `running` to `queued` in those files whose run waits for its turn."""
    now = {file.planned.partition for file in running}
    for file in files:
        if file.state == "running" and file.partition not in now:
            file.state = "queued"


# -- what they say -----------------------------------------------------------------------------------


class Follow:
    """Follows the executing runs of a plan. Each event of a log is read once, however often it is asked."""

    def __init__(self, client: DagsterClient, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._logs: dict[str, _RunLog] = {}

    def running(self) -> list[RunningFile]:
        """Give the files that runs are loading now, in load order."""
        files = self._plan.by_partition()
        alive = {run.id: run for run in runs(self._client, self._plan, EXECUTING)}
        self._logs = {
            run.id: self._logs.get(run.id)
            or _RunLog(run, {files[partition].file.name: files[partition] for partition in run.partitions})
            for run in alive.values()
            if run.partitions
        }
        for log in self._logs.values():
            log.read(self._client)
        found = [log.current for log in self._logs.values() if log.current]
        return sorted(found, key=lambda file: file.planned.partition)


class _RunLog:
    """What is known of one executing run from its log."""

    def __init__(self, run: Run, files: dict[str, PlannedFile]) -> None:
        self._run = run
        self._files = files
        self._cursor: str | None = None
        self.current: RunningFile | None = None
        if len(files) == 1:  # it loads that one, even if it has not said so yet
            (planned,) = files.values()
            self._begin(planned, run.started or time.time())

    def _begin(self, planned: PlannedFile, when: float) -> None:
        self.current = RunningFile(planned=planned, run_id=self._run.id, started=when, heard=when)

    def read(self, client: DagsterClient) -> None:
        """Read what is new."""
        lines, self._cursor = log_lines(client, self._run.id, self._cursor)
        for line in lines:
            self._take(line)

    def _take(self, line: LogLine) -> None:
        said = SAID.match(line.text)
        planned = self._files.get(said["file"]) if said else None
        if planned and (self.current is None or self.current.planned is not planned):
            self._begin(planned, line.time)
        if self.current is None:
            return
        self.current.heard = max(self.current.heard, line.time)
        if not said or not planned:
            return
        if progress := PROGRESS.search(said["what"]):
            self.current.items = int(progress["items"].replace(",", ""))
            self.current.items_per_second = float(progress["speed"].replace(",", ""))
        elif RETRY.search(said["what"]):
            self.current.retries += 1


def log_lines(
    client: DagsterClient, run_id: str, cursor: str | None = None
) -> tuple[list[LogLine], str | None]:
    """Read a run's log from after `cursor` on, oldest first; gives the cursor to go on from, too."""
    events, cursor = client.events(run_id, cursor)
    return [_line(event) for event in events if "timestamp" in event], cursor


def _line(event: dict[str, Any]) -> LogLine:
    kind = event["__typename"]
    text = failure_of(event) if kind == "ExecutionStepFailureEvent" else str(event["message"] or "")
    text = SHOWN_EVENTS.get(kind) or text
    return LogLine(float(event["timestamp"]) / 1000, event["level"], text, kind)


def one_file(plan: Plan, text: str) -> PlannedFile:
    """Find one file by its name or a part of it. Raises `UsageError` unless there is exactly one."""
    found = plan.matching(text)
    exact = [planned for planned in found if text in (planned.file.name, planned.partition)]
    if len(exact) == 1:
        return exact[0]
    if len(found) > 1:
        names = ", ".join(planned.file.name for planned in found[:5])
        raise UsageError(
            f"{text} is part of {len(found)} files' names: {names}{', …' if len(found) > 5 else ''}; "
            "give a longer part"
        )
    return found[0]


def last_run(client: DagsterClient, plan: Plan, profile: Profile, planned: PlannedFile) -> Run | None:
    """Give the last run that tried a file; None when none did, or it is deleted."""
    table = next(iter(profile.tables.values()))
    node = client.query(LAST_RUN, key={"path": [plan.profile, table.name]}, partition=planned.partition)[
        "assetNodeOrError"
    ]
    run = node.get("latestRunForPartition")
    return _run(run, {p: n for n, p in enumerate(plan.by_partition())}) if run else None


def file_log(
    client: DagsterClient, run: Run, planned: PlannedFile, *, follow: bool = False
) -> Iterator[LogLine]:
    """Yield what a run says of a file, and of itself; with `follow`, until the run is over."""
    cursor: str | None = None
    while True:
        over = not follow or run_status(client, run.id) not in (*WAITING, *EXECUTING)
        lines, cursor = log_lines(client, run.id, cursor)
        for line in lines:
            if line.kind not in SHOWN_EVENTS:
                continue
            said = SAID.match(line.text)
            if line.kind != "LogMessageEvent" or said is None or said["file"] == planned.file.name:
                yield line
        if over:
            return
        time.sleep(POLL_SECONDS)


def run_status(client: DagsterClient, run_id: str) -> str:
    """Dagster's RunStatus of a run; "" when it is deleted."""
    return str(client.query(RUN_STATUS, run=run_id)["runOrError"].get("status", ""))


# -- how to stop them --------------------------------------------------------------------------------


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

    Backfills go first: they would make new runs. Raises `DagsterClientError` when Dagster refuses.
    """
    done = Stopped()
    deadline = time.monotonic() + seconds
    said = ""
    while True:
        open_backfills = [one for one in backfills(client, plan) if not one.over]
        for one in open_backfills:
            if one.status == "REQUESTED" and one.id not in done.backfills:
                client.cancel_backfill(one.id)
                done.backfills.append(one.id)
        alive = runs(client, plan, (*WAITING, *EXECUTING))
        if ending := [run.id for run in alive if run.status != "CANCELING" and run.id not in done.runs]:
            done.runs += client.terminate(ending)
        if not (open_backfills or alive):
            return done
        if time.monotonic() > deadline:
            done.left, done.open_backfills = alive, [one.id for one in open_backfills]
            return done
        line = f"waiting for {len(alive):,} runs and {len(open_backfills):,} backfills to end"
        if line != said:
            say(line)
            said = line
        time.sleep(POLL_SECONDS)


RUNS = """
query Runs($statuses: [RunStatus!], $cursor: String, $limit: Int) {
  runsOrError(filter: {statuses: $statuses}, cursor: $cursor, limit: $limit) {
    ... on Runs {
      results { id status startTime jobName assetSelection { path } tags { key value } }
    }
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

LAST_RUN = """
query LastRun($key: AssetKeyInput!, $partition: String!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      latestRunForPartition(partition: $partition) { id status startTime tags { key value } }
    }
  }
}"""

RUN_STATUS = """
query RunStatus($run: ID!) {
  runOrError(runId: $run) { ... on Run { status } }
}"""

CONFIGS = """
query Configs($runs: [String]) {
  runsOrError(filter: {runIds: $runs}) {
    ... on Runs { results { id runConfigYaml } }
  }
}"""
