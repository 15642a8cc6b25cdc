"""The plan: a pinned JSON file that says which files of which exports a profile migrates, in which order.

It is written once, from the manifests, and read whenever Dagster loads the code location: in every run
worker, so without any call to S3. Dagster's static partitions are the plan's files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.migration.chain import check_chain, holes
from migration_pipeline.migration.followed import check_followed
from migration_pipeline.migration.names import EXPORT, FINISHING
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import Export, ExportFile, Window

FORMAT = 1
"""Increased when the file's format changes."""


class PlannedFile(msgspec.Struct, frozen=True):
    """A file and the partition it is."""

    partition: str
    """Partition key: names export and file, is unique in the plan, and sorts in load order."""
    export_id: str
    file: ExportFile


class PlannedExport(msgspec.Struct, frozen=True):
    """Where a plan's export lies, for people to see."""

    id: str
    uri: str
    table_arn: str
    export_time: str
    """Of a full export; of a window, its end."""
    table_id: str = ""
    window: Window | None = None
    """None for a full export."""


class Plan(msgspec.Struct, frozen=True):
    """The exports, files and options of a migration: everything a backfill needs to know."""

    format: int
    profile: str
    """The profile's name."""
    reference: str
    """How the profile is imported: ``shop`` or ``my_package.my_module:profile``."""
    exports: tuple[PlannedExport, ...]
    files: tuple[PlannedFile, ...]
    files_per_run: int = 1
    """Files that a backfill loads in one run, one after another; more spare small files a run's start each."""
    options: dict[str, Any] = {}
    """Values of the profile's options; those that are not here have their defaults."""
    allow_gap: bool = False
    """Whether there are holes in the chain of windows, which were allowed when it was made."""

    @property
    def windows(self) -> list[PlannedExport]:
        """The windows, in the order in which they are loaded."""
        return [export for export in self.exports if export.window is not None]

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the attributes of the table's primary key, sorted; none if no window has a record."""
        return next((each.window.keys for each in self.windows if each.window and each.window.keys), ())

    def window_of(self, planned: PlannedFile) -> Window | None:
        """The window that a file is of; None for one of a full export."""
        return next(export.window for export in self.exports if export.id == planned.export_id)

    def before(self, planned: PlannedFile) -> list[PlannedFile]:
        """The files that must be loaded before a file: for one of a window, all of the full exports and of earlier windows."""
        if self.window_of(planned) is None:
            return []
        earlier = [export.id for export in self.exports]
        earlier = earlier[: earlier.index(planned.export_id)]
        return [file for file in self.files if file.export_id in earlier]

    @property
    def items(self) -> int:
        """Items in all files."""
        return sum(planned.file.items for planned in self.files)

    @property
    def bytes(self) -> int:
        """Compressed bytes in all files."""
        return sum(planned.file.size for planned in self.files)

    def by_partition(self) -> dict[str, PlannedFile]:
        """Partition key -> file."""
        return {planned.partition: planned for planned in self.files}

    def matching(self, text: str) -> list[PlannedFile]:
        """Find files by a part of their name or partition key, or by a pattern of the whole of it (``*``, ``?``).

        Raises `UsageError` when there is none.
        """
        pattern = text if set(text) & set("*?[") else f"*{text}*"
        found = [
            planned
            for planned in self.files
            if fnmatchcase(planned.file.name, pattern) or fnmatchcase(planned.partition, pattern)
        ]
        if not found:
            raise UsageError(
                f"no file in the plan of {self.profile} is named like {text}; "
                f"migration-pipeline status {self.profile} lists them"
            )
        return found


def make_plan(
    profile: Profile,
    reference: str,
    exports: Sequence[Export],
    files_per_run: int = 1,
    options: Mapping[str, Any] = MappingProxyType({}),
    allow_gap: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan the files of `exports`: full exports, the oldest first, then windows by their time.

    `options` are values of the profile's options, or texts of them. `tell` hears of windows that overlap, and of holes in
    their chain, which `allow_gap` allows. Raises `UsageError` for two exports of one id, for windows that do not follow a
    full export or that the profile cannot follow, for options that the profile does not take, and for tables whose assets
    would have one name.
    """
    _check_assets(profile)
    read = msgspec.to_builtins(profile.options(options))
    full = sorted((e for e in exports if e.window is None), key=lambda each: (each.export_time, each.id))
    plan = Plan(
        format=FORMAT,
        profile=profile.name,
        reference=reference,
        exports=tuple(map(_planned_export, full)),
        files=tuple(planned for export in full for planned in _planned(export, _safe(export.id))),
        files_per_run=files_per_run,
        options={name: read[name] for name in options},
    )
    _check_twice(exports)
    return _with_windows(plan, profile, [e for e in exports if e.window is not None], allow_gap, tell)


def add_windows(
    plan: Plan,
    profile: Profile,
    exports: Sequence[Export],
    allow_gap: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Add windows to a plan: what is planned stays as it is, and keeps its partitions.

    Windows that the plan has already are passed over. Raises `UsageError` as `make_plan` does, and for a full export.
    """
    _check_twice(exports)
    for export in exports:
        if export.window is None:
            raise UsageError(
                f"{export.uri}: a full export, and only windows (incremental exports) can be added to a plan; "
                f"make a new plan: migration-pipeline plan --profile {plan.reference} {export.uri}"
            )
    there = {export.id for export in plan.exports}
    new = [export for export in exports if export.id not in there]
    return _with_windows(plan, profile, new, allow_gap, tell) if new else plan


def _check_twice(exports: Sequence[Export]) -> None:
    seen = set[str]()
    for export in exports:
        if export.id in seen:
            raise UsageError(f"{export.uri}: the export {export.id} is named twice; give each export once")
        seen.add(export.id)


def _with_windows(
    plan: Plan, profile: Profile, new: Sequence[Export], allow_gap: bool, tell: Callable[[str], None]
) -> Plan:
    """Put windows in their places: behind the full exports, and among those that are there by their time."""
    exports = sorted([*plan.exports, *map(_planned_export, new)], key=_place)
    for note in check_chain(exports, allow_gap, holes(plan)):
        tell(note)
    places = {export.id: place for place, export in enumerate(exports)}
    added = [planned for export in new for planned in _planned(export, _lead(export, exports[0].id))]
    files = sorted([*plan.files, *added], key=lambda planned: places[planned.export_id])
    made = msgspec.structs.replace(plan, exports=tuple(exports), files=tuple(files))
    check_followed(profile, new, made.keys)
    return msgspec.structs.replace(made, allow_gap=bool(holes(made)))


def _planned_export(export: Export) -> PlannedExport:
    return PlannedExport(
        export.id, export.uri, export.table_arn, export.export_time, export.table_id, export.window
    )


def _place(export: PlannedExport) -> tuple[Any, ...]:
    """Where an export stands in its plan: full ones as they are, then windows by their time."""
    return (1, export.window.start, export.window.end, export.id) if export.window else (0,)


def _planned(export: Export, lead: str) -> list[PlannedFile]:
    width = max(4, len(str(len(export.files))))
    return [
        PlannedFile(f"{lead}_{number:0{width}}_{_safe(file.name)}", export.id, file)
        for number, file in enumerate(export.files, 1)
    ]


def _lead(export: Export, base: str) -> str:
    """How the partition keys of a window begin, so that they sort behind those of the base, and by the window's time.

    An export's own id begins with the time when it was asked for, which may be before the base's. Ids of DynamoDB are
    digits first; a base in a folder of another name, which may sort behind "window", puts it before them.
    """
    assert export.window is not None  # noqa: S101
    start, end = (f"{moment:%Y%m%dT%H%M%S}" for moment in (export.window.start, export.window.end))
    word = "window" if _safe(base) < "window" else f"{_safe(base)}_window"
    return f"{word}_{start}_{end}_{_safe(export.id)}"


def _safe(name: str) -> str:
    """Keep of a name what a partition key may hold: Dagster refuses "..." and splits lists at commas."""
    return re.sub(r"[^\w\-]+", "-", name.removesuffix(".json.gz"))


def plan_path(folder: Path, profile_name: str) -> Path:
    """Where a profile's plan lies."""
    return folder / f"{profile_name}.json"


def digest(plan: Plan) -> str:
    """An MD5, in hex, of all that a plan says: by it one sees whether Dagster has loaded this plan or an earlier one."""
    return hashlib.md5(msgspec.json.encode(plan), usedforsecurity=False).hexdigest()


MANY_FILES, SMALL_BYTES, PROPOSED_RUNS = 200, 4_000_000, 50
"""Many files are at least so many, small ones hold less than so many bytes on average, and then so many runs are proposed.

A run costs some three seconds beside the load, in which a file of 4 MB is loaded."""


def proposed_files_per_run(plan: Plan) -> int:
    """How many files a run should load, where a run for each would spend most of its time on starting; else 0."""
    if plan.files_per_run > 1 or len(plan.files) < MANY_FILES or plan.bytes >= SMALL_BYTES * len(plan.files):
        return 0
    return max(-(-len(plan.files) // PROPOSED_RUNS), 10)


def write_plan(plan: Plan, folder: Path) -> bool:
    """Write a plan to its file; returns False if the file holds the same plan already.

    Raises `UsageError` if the file belongs to another profile with the same name.
    """
    path = plan_path(folder, plan.profile)
    content = msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"
    if path.exists():
        if path.read_bytes() == content:
            return False
        there = read_plan(path)
        if there.reference != plan.reference:
            raise UsageError(
                f"{path}: this plan belongs to another profile named {plan.profile}: {there.reference}; "
                "rename one of the two, or remove the plan"
            )
    folder.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    scratch.write_bytes(content)
    scratch.replace(path)
    return True


def read_plan(path: Path) -> Plan:
    """Read a plan. Raises `UsageError` if the file is missing or is not a valid plan."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no plan; make one with: migration-pipeline plan --profile {path.stem} EXPORT…"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a valid plan: {error}; plan again") from None
    except OSError as error:
        raise UsageError(f"{path}: the plan cannot be read: {error.strerror}; plan again") from None
    if plan.format != FORMAT:
        raise UsageError(
            f"{path}: the plan's format is {plan.format}, this version reads {FORMAT}; plan again"
        )
    if plan.profile != path.stem:
        raise UsageError(
            f"{path}: this plan was made for the profile {plan.profile}, not {path.stem}; plan again"
        )
    return plan


def read_plans(folder: Path) -> tuple[list[tuple[Plan, Profile]], dict[str, str]]:
    """Read all plans of a folder with their profiles; and, by profile's name, why each of the others does not load."""
    plans, faults = [], {}
    for path in sorted(folder.glob("*.json")):
        try:
            plan = read_plan(path)
            plans.append((plan, planned_profile(plan, path)))
        except UsageError as error:
            faults[path.stem] = str(error)
    return plans, faults


def check_other_plans(profile: Profile, folder: Path, warn: Callable[[str], None]) -> None:
    """Compare a profile's tables with those of the other plans. Raises `UsageError` for a table that two of them write.

    Each would overwrite the rows of the other, and the counts of each would include the rows of both. A plan that
    cannot be read is reported to `warn`.
    """
    ours = {name: table for table in profile.all_tables for name in table.spellings}
    for path in sorted(folder.glob("*.json")):
        if path == plan_path(folder, profile.name):
            continue
        try:
            other = planned_profile(read_plan(path), path)
        except UsageError as error:
            warn(f"cannot check whether this plan writes a table of {profile.name}, too: {error}")
            continue
        for table in other.all_tables:
            if table.qualified in ours:
                raise UsageError(
                    f"the profiles {other.name} (planned in {path}) and {profile.name} both write the table {table.qualified}: "
                    "each would overwrite the other's rows, and counts would include both; use another table in one "
                    f"of them, merge them into one profile, or remove {path.name} if that migration is over"
                )


def planned_profile(plan: Plan, path: Path) -> Profile:
    """Import a plan's profile. Raises `UsageError` if the plan was made for another profile."""
    profile = load_profile(plan.reference)
    if profile.name != plan.profile:
        raise UsageError(
            f"{path}: this plan was made for the profile {plan.profile}, but {plan.reference} is now named "
            f"{profile.name}; plan again"
        )
    _check_assets(profile)
    try:
        profile.options(plan.options)
    except UsageError as error:
        raise UsageError(f"{path}: {error}; plan again") from None
    return profile


def _check_assets(profile: Profile) -> None:
    """See that each asset has a name of its own: one that stands twice would keep Dagster from loading any plan."""
    taken = {EXPORT: "the export", FINISHING: "the finishing of the tables"}
    for table in profile.all_tables:
        if table.name in taken:
            raise UsageError(
                f"profile {profile.name}: the table {table.qualified} would have the asset [{profile.name}, {table.name}], "
                f"which is that of {taken[table.name]}; name the table otherwise"
            )
        taken[table.name] = f"the table {table.qualified}"
