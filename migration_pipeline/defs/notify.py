"""Notifies of finished backfills: a sensor, off until it is switched on, calls one function of the user's.

The function is named by the setting ``MIGRATION_NOTIFY``, as ``my_module:function``, and takes a `BackfillReport`::

    def tell(report: BackfillReport) -> None:
        webhook = os.environ["SLACK_WEBHOOK_URL"]
        requests.post(webhook, json={"text": report.text}, timeout=10).raise_for_status()

If the function raises, the sensor's tick fails, which shows in the UI, and the next tick calls it again: each backfill
is reported at least once.
"""

import os
import traceback
from collections.abc import Callable, Sequence
from typing import Literal

import dagster as dg
import msgspec
from dagster._core.execution.backfill import BULK_ACTION_TERMINAL_STATUSES, PartitionBackfill
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from migration_pipeline import settings
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.profile import Profile, import_here
from migration_pipeline.units import counted_that, readable_time, some_of

SENSOR = "tell_of_finished_backfills"

SECONDS = 15
"""Seconds between two ticks of the sensor."""

LOOKED_AT = 100
"""Newest backfills that a tick considers."""

NAMED = 10
"""Failed files that a report names at most; their number is always complete."""

Planned = Sequence[tuple[Plan, Profile]]


class BackfillReport(msgspec.Struct, frozen=True, kw_only=True):
    """A backfill that is over, and how its files stand now. It holds names and numbers, no value of an item."""

    profile: str
    backfill_id: str
    status: Literal["succeeded", "failed", "canceled"]
    files: int
    """Files that the backfill was to load; the counts below are of these."""
    materialized: int
    failed: int
    missing: int
    """Neither materialized nor failed: never begun, or terminated."""
    failed_files: tuple[str, ...] = ()
    """Names of failed files, ten at most."""
    seconds: float = 0.0
    """From its launch to its end."""
    url: str = ""
    """The backfill's page in the UI."""
    error: str = ""
    """Why Dagster gave it up, when it did; "" when only files failed."""

    @property
    def text(self) -> str:
        """All of it as a message of a few lines, for people."""
        lines = [
            f"Backfill {self.backfill_id} of {self.profile} {self.status} after {readable_time(self.seconds)}: "
            f"{some_of(self.materialized, self.files, 'file')} materialized, {self.failed:,} failed, "
            f"{self.missing:,} missing"
        ]
        if self.error:
            lines.append(f"Error: {self.error}")
        if self.failed_files:
            more = self.failed - len(self.failed_files)
            lines.append(f"Failed: {', '.join(self.failed_files)}" + (f" and {more:,} more" if more else ""))
        if self.materialized < self.files:
            lines.append(
                f"Next: fix the cause, then migration-pipeline retry-failed {self.profile}, "
                "or Failed and missing in the UI"
            )
        return "\n".join([*lines, self.url])


Hook = Callable[[BackfillReport], object]


def backfill_sensor(plans: Planned, name: str = SENSOR) -> dg.SensorDefinition:
    """Build the sensor, which reports one backfill at each tick, the oldest first.

    Backfills that ended before it was first switched on are not reported. Its cursor holds the ids of those that are over.
    """

    @dg.sensor(
        name=name,
        minimum_interval_seconds=SECONDS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=f"Calls the function named in {settings.NOTIFY} once a backfill of a migration is over: finished, "
        "failed or canceled.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        over = [b for b in context.instance.get_backfills(limit=LOOKED_AT) if _is_over(b)]
        ids = {backfill.backfill_id for backfill in over}
        if context.cursor is None:
            context.update_cursor(_cursor(ids))
            return dg.SkipReason(
                f"from now on; {counted_that(len(over), 'backfill', 'was', 'were')} over before"
            )
        told = set(msgspec.json.decode(context.cursor, type=list[str]))
        for backfill in sorted(over, key=lambda each: each.backfill_end_timestamp or 0):
            found = _plan_of(plans, backfill)
            if backfill.backfill_id in told or found is None:
                continue
            hook = load_hook(os.environ.get(settings.NOTIFY))
            report = report_of(context.instance, backfill, *found)
            _call(hook, report)
            context.update_cursor(_cursor((told & ids) | {backfill.backfill_id}))
            return dg.SkipReason(f"told of backfill {report.backfill_id}, which {report.status}")
        return dg.SkipReason("no backfill has ended since")

    return sensor


def load_hook(reference: str | None) -> Hook:
    """Import the user's function. The current folder is importable. Raises `UsageError` that says what is wrong."""
    if not reference:
        raise UsageError(f"{settings.NOTIFY} is not set; name a function in it, such as my_module:function")
    module, _, name = reference.partition(":")
    if not name:
        raise UsageError(f"{settings.NOTIFY}={reference}: expected MODULE:FUNCTION, as {module}:function")
    try:
        hook = getattr(import_here(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{settings.NOTIFY}={reference}: {error}") from error
    if not callable(hook):
        raise UsageError(f"{settings.NOTIFY}={reference}: this is not a function")
    return hook  # type: ignore[no-any-return]  # what it takes is documented


def _call(hook: Hook, report: BackfillReport) -> None:
    """Call the user's function. Its exceptions are reported by type and place only: their text may name a secret address."""
    try:
        hook(report)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[:2][-1]  # its own frame, if it is no builtin
        raise MigrationError(
            f"the function named in {settings.NOTIFY} failed: {type(error).__name__} at {place.filename}:{place.lineno}"
        ) from None


def report_of(
    instance: dg.DagsterInstance, backfill: PartitionBackfill, plan: Plan, profile: Profile
) -> BackfillReport:
    """Say how a backfill ended and how its files stand."""
    partitions = _partitions(plan, backfill)
    statuses = [
        instance.get_status_by_partition(
            dg.AssetKey([plan.profile, table.name]),
            partitions,
            dg.StaticPartitionsDefinition(list(plan.by_partition())),
        )
        or {}
        for table in profile.tables.values()
    ]
    # A file is done when all its tables say so: a kill may fall between two of their events.
    failed = [p for p in partitions if any(s.get(p) is AssetPartitionStatus.FAILED for s in statuses)]
    done = [p for p in partitions if all(s.get(p) is AssetPartitionStatus.MATERIALIZED for s in statuses)]
    files = plan.by_partition()
    ended = backfill.backfill_end_timestamp or backfill.backfill_timestamp
    return BackfillReport(
        profile=plan.profile,
        backfill_id=backfill.backfill_id,
        status=_status(backfill, bool(failed)),
        files=len(partitions),
        materialized=len(done),
        failed=len(failed),
        missing=len(partitions) - len(done) - len(failed),
        failed_files=tuple(files[partition].file.name for partition in failed[:NAMED]),
        seconds=ended - backfill.backfill_timestamp,
        url=f"{settings.webserver_url()}/runs/b/{backfill.backfill_id}",
        error=(backfill.error.message.strip().splitlines() or [""])[0] if backfill.error else "",
    )


def _is_over(backfill: PartitionBackfill) -> bool:
    return backfill.status in BULK_ACTION_TERMINAL_STATUSES


def _status(backfill: PartitionBackfill, failed: bool) -> Literal["succeeded", "failed", "canceled"]:
    if backfill.status.value == "CANCELED":
        return "canceled"
    return "failed" if failed or "FAILED" in backfill.status.value else "succeeded"


def _plan_of(plans: Planned, backfill: PartitionBackfill) -> tuple[Plan, Profile] | None:
    """Return the plan that a backfill belongs to, by its assets or its job; None for another project's."""
    for plan, profile in plans:
        keys = backfill.asset_selection or ()
        if any(key.path[0] == plan.profile for key in keys) or backfill.job_name == f"{plan.profile}_migrate":
            return plan, profile
    return None


def _partitions(plan: Plan, backfill: PartitionBackfill) -> list[str]:
    """Return the partitions that a backfill was to load, in the plan's order."""
    names = set(backfill.partition_names or ())
    if data := backfill.asset_backfill_data:
        for subset in data.target_subset.partitions_subsets_by_asset_key.values():
            names.update(subset.get_partition_keys())
    return [partition for partition in plan.by_partition() if partition in names]


def _cursor(ids: set[str]) -> str:
    return msgspec.json.encode(sorted(ids)).decode()
