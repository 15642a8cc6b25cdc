"""The state of each file of a plan, as Dagster knows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from migration_pipeline.migration.names import table_keys
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.backfills import Backfill, open_backfills
from migration_pipeline.operations.client import ENTRIES, DagsterAwayError, DagsterClient, metadata_of
from migration_pipeline.operations.running import RunningFile
from migration_pipeline.operations.runs import PAGE, Run, run_error, runs
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.export import ExportFile
from migration_pipeline.targets.records import FileKey, Receipt

State = Literal["materialized", "failed", "stopped", "running", "queued", "launched", "missing"]
"""`queued` files have a run that waits for its turn; for `launched` ones an open backfill has yet to make it."""

BUSY: tuple[State, ...] = ("running", "queued", "launched")
"""States of files that will be loaded without another launch."""

ENDED: dict[str, State] = {"FAILURE": "failed", "CANCELED": "stopped"}
"""Status of a file's last run -> state of the file, if it is not materialized. To Dagster a stopped one is missing."""

BATCH = 200
"""Partitions asked about in one query."""


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


def read_files(
    client: DagsterClient,
    plan: Plan,
    profile: Profile,
    *,
    attempts: bool = True,
    known: Mapping[str, FileStatus] | None = None,
    receipts: Mapping[FileKey, Receipt] | None = None,
) -> list[FileStatus]:
    """Tell the state of each of the plan's files, in load order.

    With `attempts`, files that are not materialized are asked for their last run, which tells failed
    and stopped ones from those never tried, and why they failed. `known` are files by partition as a moment ago: those that
    were materialized then, and are now, are not asked about again. With `receipts`, of more than `BATCH` materialized files only those
    are asked about that have none of the same contents: each takes a millisecond.
    """
    opened = open_backfills(client, plan)  # before the states: a run that is made in between shows in these
    states = _steady_states(client, plan, profile, opened)
    files = [FileStatus(partition=p.partition, file=p.file, state=states[p.partition]) for p in plan.files]
    key = table_keys(profile)[0]
    done = [(f, known and known.get(f.partition)) for f in files if f.state == "materialized"]
    for file, before in done:
        if before and before.metadata and before.state == "materialized":
            file.run_id, file.metadata = before.run_id, before.metadata
            file.materialized_at = before.materialized_at
    if receipts and len(done) > BATCH:
        _add_receipts(plan, [file for file, _ in done if not file.metadata], receipts)
    _add_metadata(client, key, [file for file, _ in done if not file.metadata])
    if attempts:
        ended = runs(client, plan, list(ENDED))
    else:  # by backfill: Dagster's own times are no epoch's where its PostgreSQL has another time zone than UTC
        ended = [run for one in opened for run in runs(client, plan, list(ENDED), backfill=one.id)]
    _tell_launched(files, opened, ended)
    if attempts:
        # Asking for a file's last run takes 5 ms: only those are asked for that a run was to load.
        tried = {partition for run in ended for partition in run.partitions}
        _add_attempts(
            client,
            key,
            [f for f in files if f.state == "failed" or (f.state == "missing" and f.partition in tried)],
        )
    return files


def read_launched(
    client: DagsterClient, plan: Plan, profile: Profile, backfill: Backfill, launched: Sequence[FileStatus]
) -> list[FileStatus]:
    """Tell the state of the files of one backfill, as cheaply as that can be asked; `launched` are they as they were before it.

    Without metadata, and of the table that is recorded last.
    """
    keys = table_keys(profile)
    states = _kept_states(client, plan, profile, keys[-1:])
    files = [FileStatus(partition=f.partition, file=f.file, state=states[f.partition]) for f in launched]
    before = {f.partition for f in launched if f.state == "materialized" or f.run_id}
    _add_metadata(client, keys[-1], [f for f in files if f.partition in before and f.state == "materialized"])
    for file in files:
        if not file.metadata and file.state == "materialized":
            file.materialized_at = backfill.created
    partitions = frozenset(f.partition for f in files)
    asked = msgspec.structs.replace(backfill, partitions=partitions, unmade=len(files))
    _tell_launched(files, [asked], runs(client, plan, list(ENDED), backfill=backfill.id))
    for file in files:
        if file.state == "materialized" and file.materialized_at < backfill.created:
            file.state = "missing"
    return files


def read_states(
    client: DagsterClient, plan: Plan, profile: Profile, running: Sequence[RunningFile]
) -> dict[str, State]:
    """Tell the state of each partition by two queries, however many files have failed.

    To Dagster, a file that was stopped or whose worker died is missing; its newest run says which, if it is
    among Dagster's newest `PAGE`.
    """
    opened = open_backfills(client, plan)
    found = _kept_states(client, plan, profile)
    now = {file.planned.partition for file in running}
    seen: set[str] = set()
    newest = runs(client, plan, (), newest=PAGE)
    for partition in _waiting(opened, [run for run in newest if run.status in ENDED]):
        if found.get(partition) in ("missing", "failed"):
            found[partition] = "launched"
    for run in newest:
        for partition in set(run.partitions) - seen:
            if found[partition] == "missing":
                found[partition] = ENDED.get(run.status, "missing")
        seen.update(run.partitions)
    return {p: "queued" if state == "running" and p not in now else state for p, state in found.items()}


def _tell_launched(files: Sequence[FileStatus], opened: Sequence[Backfill], ended: Sequence[Run]) -> None:
    """Mark as *launched* what an open backfill is still to load, whatever it was before."""
    waiting = _waiting(opened, ended)
    for file in files:
        since = waiting.get(file.partition)
        if since is not None and (
            file.state in ("missing", "failed")
            or (file.state == "materialized" and file.materialized_at < since)
        ):
            file.state = "launched"


def _waiting(opened: Sequence[Backfill], ended: Sequence[Run]) -> dict[str, float]:
    """The files of open backfills that no run of theirs has failed with, and when their backfill was made.

    A backfill that is being cancelled makes no more runs, nor does one that has made all, and waits for what follows the files.
    """
    waiting: dict[str, float] = {}
    for backfill in opened:
        if backfill.status == "REQUESTED" and backfill.unmade:
            tried = {each for run in ended if run.backfill == backfill.id for each in run.partitions}
            waiting |= dict.fromkeys(backfill.partitions - tried, backfill.created)
    return waiting


def tell_queued(files: Sequence[FileStatus], running: Sequence[RunningFile]) -> None:
    """Change `running` to `queued` in those files whose run waits for its turn."""
    now = {file.planned.partition for file in running}
    for file in files:
        if file.state == "running" and file.partition not in now:
            file.state = "queued"


def _steady_states(
    client: DagsterClient, plan: Plan, profile: Profile, opened: Sequence[Backfill]
) -> dict[str, State]:
    """Tell the state of each partition, as Dagster keeps it.

    Dagster reads what is materialized before what is running. A file that ends in between is neither, for a moment: so those of
    open backfills that have made all their runs are asked about twice before they count as missing.
    """
    states = _kept_states(client, plan, profile)
    made = {partition for each in opened if not each.unmade for partition in each.partitions}
    if any(states.get(partition) == "missing" for partition in made):
        again = _kept_states(client, plan, profile)
        states = {p: again[p] if state == "missing" else state for p, state in states.items()}
    return states


def _kept_states(
    client: DagsterClient, plan: Plan, profile: Profile, keys: Sequence[list[str]] = ()
) -> dict[str, State]:
    """Tell the state of each partition by one query, as Dagster keeps it, of all tables or of some."""
    keys = keys or table_keys(profile)
    nodes = client.query(STATUSES, keys=[{"path": key} for key in keys])["assetNodes"]
    if len(nodes) != len(keys):
        lacks = f"Dagster at {client.url} does not have all tables of {plan.profile}"
        if failure := client.location_error():
            raise DagsterAwayError(f"{lacks}: its code does not load: {failure}")
        raise DagsterAwayError(
            f"{lacks} yet; run `migration-pipeline backfill {plan.reference}`, or reload its definitions"
        )
    statuses = [node["assetPartitionStatuses"] for node in nodes]
    # A file is done when all its tables say so: a kill may fall between two of their events.
    done = set.intersection(*(set(s.get("materializedPartitions", [])) for s in statuses))
    failed = set.union(*(set(s.get("failedPartitions", [])) for s in statuses))
    running = set.union(*(set(s.get("materializingPartitions", [])) for s in statuses))
    return {p.partition: _state(p.partition, done, failed, running) for p in plan.files}


def _state(partition: str, done: set[str], failed: set[str], running: set[str]) -> State:
    if partition in running:
        return "running"
    if partition in failed:
        return "failed"
    return "materialized" if partition in done else "missing"


def _add_receipts(plan: Plan, files: Sequence[FileStatus], receipts: Mapping[FileKey, Receipt]) -> None:
    """Take from the receipts what Dagster has as metadata of a file, as far as it is shown for thousands of them."""
    planned = plan.by_partition()
    for file in files:
        receipt = receipts.get((planned[file.partition].export_id, file.file.name))
        if receipt and receipt.md5 == file.file.md5:
            file.run_id, file.materialized_at = receipt.run_id, receipt.loaded_at.timestamp()
            file.metadata = {
                "md5": receipt.md5,
                "rows_by_table": receipt.rows,
                "quarantined": receipt.quarantined,
                "unrouted": sum(receipt.unrouted.values()),
                "unrouted_by_keys": receipt.unrouted,
            }


def _add_metadata(client: DagsterClient, key: Sequence[str], files: Sequence[FileStatus]) -> None:
    for some in _chunks(files):
        events = client.query(
            MATERIALIZATIONS, key={"path": key}, partitions=[file.partition for file in some]
        )["assetNodeOrError"]["latestMaterializationByPartition"]
        by_partition = {event["partition"]: event for event in events if event}
        for file in some:
            event = by_partition.get(file.partition)
            if event is None:  # its run was deleted: Dagster's statuses still count it
                file.state = "missing"
                continue
            metadata = metadata_of(event)
            if metadata.get("md5", file.file.md5) == file.file.md5:
                file.run_id, file.metadata = event["runId"], metadata
                file.materialized_at = int(event["timestamp"]) / 1000
            else:  # the plan was made again, from other contents under the same name
                file.state = "missing"


def _add_attempts(client: DagsterClient, key: Sequence[str], files: Sequence[FileStatus]) -> None:
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
        last = client.query(text, key={"path": key}, **partitions)["assetNodeOrError"]
        for n, file in enumerate(some):
            if run := last[f"f{n}"]:
                file.run_id = run["id"]
                if file.state == "missing":
                    file.state = ENDED.get(run["status"], "missing")
    for file in files:
        if file.state == "failed" and file.run_id:
            file.error = run_error(client, file.run_id)


def _chunks(files: Sequence[FileStatus]) -> Iterator[Sequence[FileStatus]]:
    return (files[start : start + BATCH] for start in range(0, len(files), BATCH))


STATUSES = """
query Statuses($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    assetKey { path }
    assetPartitionStatuses {
      ... on DefaultPartitionStatuses { materializedPartitions failedPartitions materializingPartitions }
    }
  }
}"""

MATERIALIZATIONS = (
    """
query Materializations($key: AssetKeyInput!, $partitions: [String!]!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      latestMaterializationByPartition(partitions: $partitions) {
        partition runId timestamp
        metadataEntries { ...Entries }
      }
    }
  }
}"""
    + ENTRIES
)
