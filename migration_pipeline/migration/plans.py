"""Keeps plans: a file each in a folder, or an object each below ``s3://bucket/prefix``, where workers on other machines read it, too.

Of each plan a copy is kept under its name and digest, which is never changed: what a run has read can be looked up later.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

import msgspec

from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import FORMAT, Plan, planned_profile
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.storage import MissingError, Storage, StorageError, join

SUFFIX = ".json"

COPIES = "history"
"""The folder beside the plans that has a folder for each digest."""


def plan_path(place: Path | str, profile_name: str) -> str:
    """Where a profile's plan lies."""
    return join(str(place), f"{profile_name}{SUFFIX}")


def copy_path(place: Path | str, plan: Plan) -> str:
    """Where the copy of a plan lies."""
    return plan_path(join(str(place), COPIES, plan.digest), plan.profile)


def write_plan(plan: Plan, place: Path | str) -> bool:
    """Write a plan and its copy; returns False if the same plan is there already.

    Raises `UsageError` if another profile with the same name has one, and `StorageError`.
    """
    path, storage = plan_path(place, plan.profile), Storage()
    if storage.exists(path):
        if storage.read(path) == plan.content:
            return False
        there = read_plan(path, storage)
        if there.reference != plan.reference:
            raise UsageError(
                f"{path}: this plan belongs to another profile named {plan.profile}: {there.reference}; "
                "rename one of the two, or remove the plan"
            )
    # The copy first: whoever reads the plan finds its copy.
    for where in (copy_path(place, plan), path):
        storage.write(where, plan.content)
    return True


def read_plan(path: Path | str, storage: Storage | None = None) -> Plan:
    """Read a plan. Raises `UsageError` if there is none, or if it is not valid."""
    path, storage = str(path), storage or Storage()
    name = PurePosixPath(path).stem
    try:
        plan = msgspec.json.decode(storage.read(path), type=Plan)
    except MissingError:
        raise UsageError(
            f"{path}: no plan; make one with: migration-pipeline plan --profile {name} EXPORT…"
        ) from None
    except StorageError as error:
        raise UsageError(f"the plan cannot be read: {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a valid plan: {error}; plan again") from None
    if plan.format != FORMAT:
        raise UsageError(
            f"{path}: the plan's format is {plan.format}, this version reads {FORMAT}; plan again"
        )
    if plan.profile != name:
        raise UsageError(f"{path}: this plan was made for the profile {plan.profile}, not {name}; plan again")
    return plan


class Unloadable(msgspec.Struct, frozen=True):
    """A plan that does not load."""

    why: str
    plan: Plan | None = None
    """The plan, where it can be read, and its profile does not load."""
    passing: bool = False
    """Whether it may load in a moment, as S3 did not give it."""


def read_plans(place: Path | str) -> tuple[list[tuple[Plan, Profile]], dict[str, Unloadable]]:
    """Read all plans of a place with their profiles; and, by profile's name, why each of the others does not load.

    Raises `StorageError` if the place cannot be listed.
    """
    plans, faults, storage = [], {}, Storage()
    for path in _paths(place, storage):
        plan = None
        try:
            plan = read_plan(path, storage)
            plans.append((plan, planned_profile(plan, path)))
        except UsageError as error:
            faults[PurePosixPath(path).stem] = Unloadable(str(error), plan, is_passing(error))
    return plans, faults


def is_passing(error: MigrationError) -> bool:
    """Whether a plan could not be read because S3 did not give it, as it may in a moment."""
    return isinstance(error.__cause__, StorageError) and error.__cause__.passing


def plan_of(place: Path | str, reference: str) -> Plan | None:
    """The plan of a profile that does not load, by its reference; None if there is none that can be read."""
    storage = Storage()
    with suppress(StorageError):
        for path in _paths(place, storage):
            with suppress(UsageError):
                if (plan := read_plan(path, storage)).reference == reference:
                    return plan
    return None


def check_other_plans(profile: Profile, place: Path | str, warn: Callable[[str], None]) -> None:
    """Compare a profile's tables with those of the other plans. Raises `UsageError` for a table that two of them write.

    Each would overwrite the rows of the other, and the counts of each would include the rows of both. A plan that
    cannot be read is reported to `warn`.
    """
    ours = {name: table for table in profile.all_tables for name in table.spellings}
    storage = Storage()
    for path in _paths(place, storage):
        if path == plan_path(place, profile.name):
            continue
        try:
            other = planned_profile(read_plan(path, storage), path)
        except UsageError as error:
            warn(f"cannot check whether this plan writes a table of {profile.name}, too: {error}")
            continue
        for table in other.all_tables:
            if table.qualified in ours:
                raise UsageError(
                    f"the profiles {other.name} (planned in {path}) and {profile.name} both write the table {table.qualified}: "
                    "each would overwrite the other's rows, and counts would include both; use another table in one "
                    f"of them, merge them into one profile, or remove {PurePosixPath(path).name} if that migration is over"
                )


def _paths(place: Path | str, storage: Storage) -> list[str]:
    found = storage.listing(str(place))
    return [join(str(place), name) for name in sorted(found) if name.endswith(SUFFIX)]
