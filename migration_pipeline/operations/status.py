"""The state of a migration as one JSON document, for scripts: what `migration-pipeline status --json` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, get_args

import msgspec

from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.migration.verdicts import Left, left_of
from migration_pipeline.operations.backfills import Backfill
from migration_pipeline.operations.downstream import AssetStatus
from migration_pipeline.operations.files import FileStatus, State
from migration_pipeline.operations.running import RunningFile
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.connection import DatabaseError
from migration_pipeline.targets.receipts import count_quarantined, read_receipts
from migration_pipeline.targets.records import FileKey, Receipt


class _Account(msgspec.Struct, frozen=True):
    """What is left of a file."""

    quarantined: int
    unrouted: dict[str, int]


def left(plan: Plan, profile: Profile, files: Sequence[FileStatus], url: str | None) -> Left:
    """Sum up the items of materialized files that are in the quarantine, and those that no rule took.

    If a file's receipt is newer than its materialization, the receipt counts: a replay may have changed it since. With windows
    the quarantine itself is counted, because they end that of items that they mend or delete. If the database is not
    known, or cannot be reached from here, the numbers are those of the load.
    """
    receipts, kept = dict[FileKey, Receipt](), dict[FileKey, int]()
    planned = plan.by_partition()
    done = [file for file in files if file.state == "materialized"]
    keys = [_key(planned[file.partition]) for file in done]
    if url:
        with suppress(DatabaseError):
            receipts = read_receipts(url, plan.profile)
            kept = count_quarantined(url, plan.profile) if plan.windows else {}
    found = left_of(
        profile, [_account(file, receipts.get(key)) for file, key in zip(done, keys, strict=True)]
    )
    if plan.windows and receipts:
        found = msgspec.structs.replace(found, quarantined=sum(kept.get(key, 0) for key in keys))
    return found


def known_receipts(plan: Plan, url: str | None) -> dict[FileKey, Receipt]:
    """Read the receipts of a plan's profile; none if the database is not known, or cannot be reached from here."""
    with suppress(DatabaseError):
        return read_receipts(url, plan.profile) if url else {}
    return {}


def _key(planned: PlannedFile) -> FileKey:
    return planned.export_id, planned.file.name


def _account(file: FileStatus, receipt: Receipt | None) -> Receipt | _Account:
    """The account of a file: its receipt if that is newer, else its materialization."""
    if receipt and receipt.md5 == file.file.md5 and receipt.loaded_at.timestamp() > file.materialized_at:
        return receipt
    return _Account(file.metadata.get("quarantined", 0), file.metadata.get("unrouted_by_keys", {}))


def status_json(
    plan: Plan,
    files: Sequence[FileStatus],
    running: Sequence[RunningFile],
    backfills: Sequence[Backfill],
    then: Sequence[AssetStatus],
    left: Left,
) -> str:
    """Write the state of all files, of what is made of them all, and the newest backfill, as JSON. It holds no value of an item.

    Times are seconds of the epoch, and every state is counted, also those that no file has.
    """
    counts = Counter[str](file.state for file in files)
    now = {file.planned.partition: file for file in running}
    newest = backfills[0] if backfills else None
    document = {
        "profile": plan.profile,
        "files": len(files),
        "files_by_state": {state: counts[state] for state in get_args(State)},
        "items": plan.items,
        "items_materialized": sum(f.file.items for f in files if f.state == "materialized"),
        "items_read_by_running_files": sum(f.items for f in running),
        "items_quarantined": left.quarantined,
        "items_unrouted": sum(left.unrouted.values()),
        "unrouted_by_keys": dict(left.unrouted),
        "complete": not left.faults
        and all(state == "materialized" for state in (*(f.state for f in files), *(a.state for a in then))),
        "newest_backfill": newest
        and {"id": newest.id, "status": newest.status, "created": newest.created, "error": newest.error},
        "then": [
            {
                "name": each.name,
                "state": each.state,
                "rows": each.rows,
                "run_id": each.run_id or None,
                "error": each.error or None,
            }
            for each in then
        ],
        "by_file": [_file(file, now.get(file.partition)) for file in files],
    }
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _file(status: FileStatus, running: RunningFile | None) -> dict[str, Any]:
    loaded = status.metadata
    document = {
        "file": status.file.name,
        "partition": status.partition,
        "state": status.state,
        "items": status.file.items,
        "bytes": status.file.size,
        "rows": sum(loaded.get("rows_by_table", {}).values()) if loaded else None,
        "quarantined": loaded.get("quarantined"),
        "unrouted": loaded.get("unrouted"),
        "run_id": status.run_id or None,
        "error": status.error or None,
        "progress": None,
    }
    if status.state == "running" and running:
        document["run_id"] = running.run_id
        document["progress"] = {
            "items": running.items,
            "items_per_second": running.items_per_second,
            "seconds_left": running.progress.eta_seconds,
            "retries": running.retries,
            "throttled": running.throttled or None,
            "throttled_seconds": running.throttled_seconds,
            "started": running.started,
            "last_log_line": running.heard,
        }
    return document
