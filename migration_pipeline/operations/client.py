"""Talks GraphQL to the running Dagster: launch a backfill, see how its files are doing.

The same calls as the UI makes, so that a terminal has the same reach and everything shows in the UI.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import msgspec
import requests

from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.export import ExportFile

State = Literal["materialized", "failed", "stopped", "running", "queued", "missing"]
"""`queued` files have a run that waits for its turn."""

TIMEOUT_SECONDS = 60
ANSWER_SECONDS = 10
"""How long a webserver has to say what it is."""
DAEMON_CATCHES_UP_SECONDS = 5
"""A backfill launched before the daemon has the new code fails, naming partitions that "no longer" exist."""

BATCH = 200
"""Partitions asked about in one query."""


CHECK_URL = "check MIGRATION_DAGSTER_URL"

HTTP_ERRORS = {
    401: "it wants to know who asks; put user and password into MIGRATION_DAGSTER_URL (https://user:password@host), or a line "
    "into ~/.netrc",
    403: "it does not let this user in; ask whoever runs it",
    404: f"a web server is there, and no Dagster at this path; {CHECK_URL}, with the path prefix of dagster-webserver",
    502: "a proxy is there, and no Dagster behind it; see that dagster-webserver runs",
    503: "a proxy is there, and Dagster behind it takes no calls; see that dagster-webserver runs",
    504: "a proxy is there, and Dagster behind it did not answer in time; try again",
}
"""What an answer of a web server means that is not Dagster's, and the way out."""


class DagsterClientError(MigrationError):
    """Dagster cannot be reached, or refused a call."""


class FileStatus(msgspec.Struct, kw_only=True):
    """One file as Dagster knows it."""

    partition: str
    file: ExportFile
    state: State
    run_id: str = ""
    """The run that materialized it, or the last that tried."""
    error: str = ""
    """First line of what its last run failed with."""
    metadata: dict[str, Any] = {}
    """The materialization's metadata by label; empty unless materialized."""
    materialized_at: float = 0.0
    """Seconds of the epoch; 0 unless materialized."""


class Backfill(msgspec.Struct, kw_only=True):
    """A backfill's state; `status` is Dagster's BulkActionStatus."""

    id: str
    status: str
    error: str = ""
    created: float = 0.0
    """Seconds of the epoch."""
    files: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.status.startswith("COMPLETED") or self.status in ("FAILED", "CANCELED")


class DagsterClient:
    """A running Dagster webserver. Raises `DagsterClientError` with the way out when it does not answer."""

    def __init__(self, url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._address = url.rstrip("/")
        parts = urlsplit(self._address)
        self.url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        """To show: without user and password."""
        self._timeout = timeout_seconds
        self._session = requests.Session()
        # A proxy of the environment is not for this machine.
        self._session.trust_env = urlsplit(self.url).hostname not in ("127.0.0.1", "localhost", "::1")

    def query(self, text: str, **variables: Any) -> dict[str, Any]:
        """Run a GraphQL query or mutation; gives its `data`."""
        response = self._post("/graphql", {"query": text, "variables": variables})
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if isinstance(answer, dict) and answer.get("errors"):
            raise DagsterClientError(f"Dagster at {self.url} refused: {answer['errors'][0]['message']}")
        if not response.ok:
            raise self._refused(response)
        if not isinstance(answer, dict) or "data" not in answer:
            raise DagsterClientError(f"{self.url} answers, but not as Dagster does; {CHECK_URL}")
        data: dict[str, Any] = answer["data"]
        return data

    def report_materialization(
        self, key: Sequence[str], partition: str | None, metadata: Mapping[str, Any], description: str
    ) -> None:
        """Record a materialization that belongs to no run.

        By the webserver's REST call for external assets: the GraphQL mutation for it takes no metadata.
        """
        event = {"asset_key": list(key), "metadata": dict(metadata), "description": description}
        if partition is not None:
            event["partition"] = partition
        response = self._post("/report_asset_materialization/", event)
        if not response.ok:
            raise self._refused(response)

    def run_start(self, run_id: str) -> float:
        """When a run started, in seconds of the epoch; 0.0 when it never did, or is deleted."""
        run = self.query(RUN_START, run=run_id)["runOrError"]
        return float(run.get("startTime") or 0)

    def _post(self, path: str, document: dict[str, Any]) -> requests.Response:
        try:
            return self._session.post(f"{self._address}{path}", json=document, timeout=self._timeout)
        except requests.Timeout:
            raise DagsterClientError(
                f"Dagster at {self.url} did not answer within {self._timeout:g} s; it may be busy: try again, or look into "
                "its log"
            ) from None
        except requests.exceptions.SSLError:
            raise DagsterClientError(
                f"the certificate of {self.url} is not trusted; name its authority in REQUESTS_CA_BUNDLE"
            ) from None
        except requests.RequestException:
            raise DagsterClientError(
                f"no Dagster at {self.url}; start it with `make dev`, or set MIGRATION_DAGSTER_URL"
            ) from None

    def _refused(self, response: requests.Response) -> DagsterClientError:
        """Say what a web server's answer means that is not Dagster's. Its text is not told: it may be a page."""
        meaning = HTTP_ERRORS.get(response.status_code, f"look into the webserver's log, or {CHECK_URL}")
        return DagsterClientError(f"{self.url} answers {response.status_code} {response.reason}: {meaning}")

    # -- what there is ---------------------------------------------------------------------------

    def answers(self) -> bool:
        """Whether it is a Dagster that is there, and not nothing, or another server."""
        try:
            info = self._session.get(f"{self.url}/server_info", timeout=ANSWER_SECONDS).json()
        except (requests.RequestException, ValueError):
            return False
        return isinstance(info, dict) and "dagster_webserver_version" in info

    def load_plan(self, plan: Plan, profile: Profile, *, changed: bool = False) -> None:
        """Make sure Dagster knows the plan's files, reloading its code if it does not.

        A plan that has `changed` may have the same files, and other options. Raises `DagsterClientError` when it still
        does not know them: the code location fails, or reads other plans.
        """
        if not changed and self._knows(plan, profile):
            return
        for name in self._locations():
            self.query(RELOAD, name=name)
        deadline = time.monotonic() + self._timeout
        while not self._knows(plan, profile):
            failure = self._location_error()
            if failure or time.monotonic() > deadline:
                raise DagsterClientError(
                    f"Dagster at {self.url} does not know the plan of {plan.profile}: "
                    + (failure or "its code location reads its plans elsewhere; check MIGRATION_PLANS there")
                )
            time.sleep(0.5)
        # The webserver has the new code. The daemon, which has no call to ask it, looks every second.
        time.sleep(DAEMON_CATCHES_UP_SECONDS)

    def _knows(self, plan: Plan, profile: Profile) -> bool:
        """Whether every table of the profile is an asset with just the plan's files."""
        keys, files = _keys(plan, profile), set(plan.by_partition())
        nodes = self.query(PARTITIONS, keys=[{"path": key} for key in keys])["assetNodes"]
        return len(nodes) == len(keys) and all(set(node["partitionKeys"]) == files for node in nodes)

    def _locations(self) -> list[str]:
        entries = self.query(LOCATIONS)["workspaceOrError"]["locationEntries"]
        return [entry["name"] for entry in entries]

    def _location_error(self) -> str:
        for entry in self.query(LOCATIONS)["workspaceOrError"]["locationEntries"]:
            failure = entry["locationOrLoadError"] or {}
            if failure.get("__typename") == "PythonError":
                return _first_line(failure)
        return ""

    def files(self, plan: Plan, profile: Profile, *, attempts: bool = True) -> list[FileStatus]:
        """Tell the state of each of the plan's files, in load order.

        With `attempts`, files that are not materialized are asked for their last run, which tells failed
        and stopped ones from those never tried, and why they failed.
        """
        states = self.states(plan, profile)
        files = [
            FileStatus(partition=p.partition, file=p.file, state=states[p.partition]) for p in plan.files
        ]
        key = _keys(plan, profile)[0]
        self._add_metadata(key, [f for f in files if f.state == "materialized"])
        if attempts:
            tried = self._ended_badly(plan)
            self._add_attempts(
                key,
                [f for f in files if f.state == "failed" or (f.state == "missing" and f.partition in tried)],
            )
        return files

    def states(self, plan: Plan, profile: Profile) -> dict[str, State]:
        """Tell the state of each partition by one query, as Dagster keeps it; all that were stopped are missing."""
        keys = _keys(plan, profile)
        nodes = self.query(STATUSES, keys=[{"path": key} for key in keys])["assetNodes"]
        if len(nodes) != len(keys):
            raise DagsterClientError(
                f"Dagster at {self.url} does not have all tables of {plan.profile} yet; "
                f"run `migration-pipeline backfill {plan.reference}`, or reload its definitions"
            )
        statuses = [node["assetPartitionStatuses"] for node in nodes]
        # A file is done when all its tables say so: a kill may fall between two of their events.
        done = set.intersection(*(set(s.get("materializedPartitions", [])) for s in statuses))
        failed = set.union(*(set(s.get("failedPartitions", [])) for s in statuses))
        running = set.union(*(set(s.get("materializingPartitions", [])) for s in statuses))
        return {p.partition: _state(p.partition, done, failed, running) for p in plan.files}

    def _ended_badly(self, plan: Plan) -> set[str]:
        """Files that a stopped or failed run was to load. Asking for each file's last run takes 5 ms a file."""
        partitions = list(plan.by_partition())
        places = {partition: place for place, partition in enumerate(partitions)}
        tried: set[str] = set()
        for run in self.query(ENDED_BADLY)["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            first = tags.get("dagster/asset_partition_range_start", tags.get("dagster/partition"))
            last = tags.get("dagster/asset_partition_range_end", first)
            if first in places and last in places:
                tried.update(partitions[places[first] : places[last] + 1])
        return tried

    def _add_metadata(self, key: Sequence[str], files: Sequence[FileStatus]) -> None:
        for some in _chunks(files):
            events = self.query(
                MATERIALIZATIONS, key={"path": key}, partitions=[file.partition for file in some]
            )["assetNodeOrError"]["latestMaterializationByPartition"]
            by_partition = {event["partition"]: event for event in events if event}
            for file in some:
                event = by_partition.get(file.partition)
                if event is None:  # its run was deleted: Dagster's statuses still count it
                    file.state = "missing"
                    continue
                metadata = {e["label"]: _value(e) for e in event["metadataEntries"]}
                if metadata.get("md5", file.file.md5) == file.file.md5:
                    file.run_id, file.metadata = event["runId"], metadata
                    file.materialized_at = int(event["timestamp"]) / 1000
                else:  # the plan was made again, from other contents under the same name
                    file.state = "missing"

    def _add_attempts(self, key: Sequence[str], files: Sequence[FileStatus]) -> None:
        for some in _chunks(files):
            declared = ", ".join(f"$p{n}: String!" for n in range(len(some)))
            asked = " ".join(
                f"f{n}: latestRunForPartition(partition: $p{n}) {{ id status }}" for n in range(len(some))
            )
            text = (
                f"query Attempts($key: AssetKeyInput!, {declared}) "
                f"{{ assetNodeOrError(assetKey: $key) {{ ... on AssetNode {{ {asked} }} }} }}"
            )
            partitions = {f"p{n}": file.partition for n, file in enumerate(some)}
            runs = self.query(text, key={"path": key}, **partitions)["assetNodeOrError"]
            for n, file in enumerate(some):
                if run := runs[f"f{n}"]:
                    file.run_id = run["id"]
                    if run["status"] in ("CANCELED", "FAILURE") and file.state == "missing":
                        file.state = "stopped" if run["status"] == "CANCELED" else "failed"
        for file in files:
            if file.state == "failed" and file.run_id:
                file.error = self.run_error(file.run_id)

    def run_error(self, run_id: str) -> str:
        """Give the first line of what a run failed with; "" when it did not fail."""
        line = ""
        for event in self.events(run_id)[0]:
            if event["__typename"] == "ExecutionStepFailureEvent":
                return failure_of(event)
            if event["__typename"] == "RunFailureEvent":
                line = (event["message"] or "the run failed").splitlines()[0]
        return line

    def events(self, run_id: str, cursor: str | None = None) -> tuple[list[dict[str, Any]], str | None]:
        """Give a run's events from after `cursor` on, oldest first, and the cursor to go on from; none of a deleted run."""
        events: list[dict[str, Any]] = []
        while True:
            connection = self.query(EVENTS, run=run_id, cursor=cursor)["runOrError"].get("eventConnection")
            if connection is None:
                return events, cursor
            cursor = str(connection["cursor"])
            events += connection["events"]
            if not connection["hasMore"]:
                return events, cursor

    # -- what to do ------------------------------------------------------------------------------

    def launch(
        self,
        plan: Plan,
        profile: Profile,
        partitions: Sequence[str],
        title: str,
        then: Sequence[Sequence[str]] = (),
    ) -> str:
        """Launch a backfill of some files through Dagster's queue; gives its id.

        `then` are keys of assets without partitions, which Dagster makes once all these files are loaded.
        """
        keys = [*(_keys(plan, profile) if partitions else []), *then]
        result = self.query(
            LAUNCH,
            params={
                "assetSelection": [{"path": list(key)} for key in keys],
                **({"partitionNames": list(partitions)} if partitions else {"allPartitions": True}),
                "title": title,
            },
        )["launchPartitionBackfill"]
        if "backfillId" not in result:
            raise DagsterClientError(
                f"Dagster refused the backfill: {result.get('message', result['__typename'])}"
            )
        return str(result["backfillId"])

    def backfill(self, backfill_id: str) -> Backfill:
        """Ask for a backfill's state."""
        result = self.query(BACKFILL, id=backfill_id)["partitionBackfillOrError"]
        if "status" not in result:
            raise DagsterClientError(f"backfill {backfill_id}: {result.get('message', 'not found')}")
        error = _first_line(result["error"]) if result["error"] else ""
        return Backfill(id=backfill_id, status=result["status"], error=error)

    def cancel_backfill(self, backfill_id: str) -> None:
        """Ask for a backfill to end: it makes no more runs, and the daemon terminates those it made."""
        result = self.query(CANCEL_BACKFILL, id=backfill_id)["cancelPartitionBackfill"]
        if result["__typename"] != "CancelBackfillSuccess":
            raise DagsterClientError(
                f"Dagster did not cancel backfill {backfill_id}: {result.get('message', '')}"
            )

    def terminate(self, run_ids: Sequence[str]) -> list[str]:
        """Ask for runs to end, as the UI's Terminate does; gives those that will.

        One that has ended in between will not, nor one that is just being started: ask again for that.
        """
        result = self.query(TERMINATE, runs=list(run_ids))["terminateRuns"]
        if "terminateRunResults" not in result:
            raise DagsterClientError(
                f"Dagster did not terminate: {result.get('message', result['__typename'])}"
            )
        return [one["run"]["id"] for one in result["terminateRunResults"] if "run" in one]


def _keys(plan: Plan, profile: Profile) -> list[list[str]]:
    return [[plan.profile, table.name] for table in profile.tables.values()]


def _state(partition: str, done: set[str], failed: set[str], running: set[str]) -> State:
    if partition in running:
        return "running"
    if partition in failed:
        return "failed"
    return "materialized" if partition in done else "missing"


def _chunks(files: Sequence[FileStatus]) -> Iterable[Sequence[FileStatus]]:
    return (files[start : start + BATCH] for start in range(0, len(files), BATCH))


def _value(entry: dict[str, Any]) -> Any:
    if entry.get("jsonString"):
        return msgspec.json.decode(entry["jsonString"])
    if entry.get("intRepr"):
        return int(entry["intRepr"])  # intValue is null beyond 32 bits
    return entry.get("floatValue", entry.get("text"))


def failure_of(event: dict[str, Any]) -> str:
    """Give the first line of what an ExecutionStepFailureEvent says."""
    described = (event["failureMetadata"] or {}).get("description")
    if described:
        return str(described).splitlines()[0]
    error = event["error"] or {}
    causes = error.get("causes") or []
    return _first_line(causes[-1] if causes else error)


def _first_line(error: dict[str, Any]) -> str:
    return str(error.get("message") or "unknown error").strip().splitlines()[0]


PARTITIONS = """
query Partitions($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) { partitionKeys }
}"""

LOCATIONS = """
query Locations {
  workspaceOrError {
    ... on Workspace {
      locationEntries { name locationOrLoadError { __typename ... on PythonError { message } } }
    }
  }
}"""

RELOAD = """
mutation Reload($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename }
}"""

STATUSES = """
query Statuses($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetKey { path }
    assetPartitionStatuses {
      ... on DefaultPartitionStatuses { materializedPartitions failedPartitions materializingPartitions }
    }
  }
}"""

MATERIALIZATIONS = """
query Materializations($key: AssetKeyInput!, $partitions: [String!]!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      latestMaterializationByPartition(partitions: $partitions) {
        partition runId timestamp
        metadataEntries {
          label
          ... on IntMetadataEntry { intRepr }
          ... on FloatMetadataEntry { floatValue }
          ... on TextMetadataEntry { text }
          ... on JsonMetadataEntry { jsonString }
        }
      }
    }
  }
}"""

ENDED_BADLY = """
query EndedBadly {
  runsOrError(filter: {statuses: [CANCELED, FAILURE]}) {
    ... on Runs { results { tags { key value } } }
  }
}"""

RUN_START = """
query RunStart($run: ID!) {
  runOrError(runId: $run) { ... on Run { startTime } }
}"""

EVENTS = """
query Events($run: ID!, $cursor: String) {
  runOrError(runId: $run) {
    ... on Run {
      eventConnection(afterCursor: $cursor) {
        cursor hasMore
        events {
          __typename
          ... on MessageEvent { message timestamp level }
          ... on ExecutionStepFailureEvent {
            error { message causes { message } }
            failureMetadata { description }
          }
        }
      }
    }
  }
}"""

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on Error { message }
  }
}"""

BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status error { message } }
    ... on Error { message }
  }
}"""

CANCEL_BACKFILL = """
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
