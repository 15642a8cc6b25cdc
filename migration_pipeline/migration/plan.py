"""The plan: a pinned JSON file that says which files of which exports a profile migrates, in which order.

It is written once, from the manifests, and read whenever Dagster loads the code location: in every run
worker, so the manifests are not asked for again. Dagster's static partitions are the plan's files.
"""

from __future__ import annotations

import hashlib
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
from migration_pipeline.migration.partition_keys import PartitionKeys
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import Export, ExportFile, OutputFormat, Window
from migration_pipeline.targets.throttle import ThrottleSettings

FORMAT = 1
"""Increased when the file's format changes."""


MANY_FILES, SMALL_BYTES, PROPOSED_RUNS = 200, 4_000_000, 50
"""Many files are at least so many, small ones hold less than so many bytes on average, and then so many runs are proposed.

A run costs some three seconds beside the load, in which a file of 4 MB is loaded."""


class PlannedFile(msgspec.Struct, frozen=True):
    """A file and the partition it is."""

    partition: str
    """Partition key: names the file, and is unique in the plan; see `PartitionKeys`."""
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
    output_format: OutputFormat = "DYNAMODB_JSON"
    """How its lines are spelled."""
    doubt: str = ""
    """Why nothing vouches for its completeness; "" where its manifest does."""


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
    throttle: dict[str, Any] = {}
    """Values for the throttle's settings; those that are not here have their defaults."""
    allow_gap: bool = False
    """Whether there are holes in the chain of windows, which were allowed when it was made."""
    tables: tuple[str, ...] = ()
    """Names of the tables that files are loaded into, and below of the aggregates and the tables that each is made of: what
    Dagster is to know of the migration while its profile does not load."""
    aggregates: dict[str, tuple[str, ...]] = {}

    @property
    def digest(self) -> str:
        """A digest of all that it holds, 12 hexadecimal digits: two plans of one digest are the same."""
        return hashlib.blake2b(self.content, digest_size=6).hexdigest()

    @property
    def content(self) -> bytes:
        """Its file."""
        document = msgspec.to_builtins(self)
        for name in ("tables", "aggregates"):  # a plan that was made before there were these keeps its digest
            if not document[name]:
                del document[name]
        return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"

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
        return self.export_of(planned).window

    def export_of(self, planned: PlannedFile) -> PlannedExport:
        """The export that a file is of."""
        return next(export for export in self.exports if export.id == planned.export_id)

    def before(self, planned: PlannedFile) -> list[PlannedFile]:
        """The files that must be loaded before a file: for one of a window, all of the full exports and of earlier windows."""
        if self.window_of(planned) is None:
            return []
        earlier = [export.id for export in self.exports]
        earlier = earlier[: earlier.index(planned.export_id)]
        return [file for file in self.files if file.export_id in earlier]

    @property
    def doubts(self) -> list[str]:
        """Why nothing vouches for the completeness of some exports: a line for each."""
        return [f"{export.uri}: {export.doubt}" for export in self.exports if export.doubt]

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
    throttle: Mapping[str, Any] = MappingProxyType({}),
    before: Plan | None = None,
) -> Plan:
    """Plan the files of `exports`: full exports, the oldest first, then windows by their time.

    `options` are values of the profile's options, or texts of them, and `throttle` those of its settings. Files of the plan
    `before` keep their partition keys. `tell` hears of windows that overlap, and of holes in their chain, which `allow_gap` allows. Raises `UsageError` for two exports of one id, for windows that do not follow a
    full export or that the profile cannot follow, for options that the profile does not take, and for tables whose assets
    would have one name.
    """
    _check_assets(profile)
    read = msgspec.to_builtins(profile.options(options))
    keys = _keys_of(before)
    full = sorted((e for e in exports if e.window is None), key=lambda each: (each.export_time, each.id))
    plan = Plan(
        format=FORMAT,
        profile=profile.name,
        reference=reference,
        exports=tuple(map(_planned_export, full)),
        files=tuple(planned for export in full for planned in _planned(export, keys)),
        files_per_run=files_per_run,
        options={name: read[name] for name in options},
        throttle=_throttle(throttle),
    )
    _check_twice(exports)
    return _with_windows(plan, profile, [e for e in exports if e.window is not None], allow_gap, tell, keys)


def throttle_of(plan: Plan) -> ThrottleSettings:
    """The throttle's settings that a plan has by default."""
    return msgspec.convert(plan.throttle, ThrottleSettings)


def _throttle(given: Mapping[str, Any]) -> dict[str, Any]:
    names = ThrottleSettings.__struct_fields__
    for name in given:
        if name not in names:
            raise UsageError(f"the throttle has no setting {name}; it has {', '.join(names)}")
    try:
        read = msgspec.to_builtins(msgspec.convert(dict(given), ThrottleSettings, strict=False))
    except msgspec.ValidationError as error:
        raise UsageError(f"the throttle: {error}") from None
    return {name: read[name] for name in given}


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
    return _with_windows(plan, profile, new, allow_gap, tell, _keys_of(plan)) if new else plan


def _check_twice(exports: Sequence[Export]) -> None:
    seen = set[str]()
    for export in exports:
        if export.id in seen:
            raise UsageError(f"{export.uri}: the export {export.id} is named twice; give each export once")
        seen.add(export.id)


def _with_windows(
    plan: Plan,
    profile: Profile,
    new: Sequence[Export],
    allow_gap: bool,
    tell: Callable[[str], None],
    keys: PartitionKeys,
) -> Plan:
    """Put windows in their places: behind the full exports, and among those that are there by their time."""
    exports = sorted([*plan.exports, *map(_planned_export, new)], key=_place)
    told_before = check_chain(plan.exports, True, holes(plan))
    for note in check_chain(exports, allow_gap, holes(plan)):
        if note not in told_before:
            tell(note)
    places = {export.id: place for place, export in enumerate(exports)}
    added = [planned for export in new for planned in _planned(export, keys)]
    files = sorted([*plan.files, *added], key=lambda planned: places[planned.export_id])
    made = msgspec.structs.replace(
        plan,
        exports=tuple(exports),
        files=tuple(files),
        tables=tuple(table.name for table in profile.tables.values()),
        aggregates={
            each.table.name: tuple(source.name for source in each.sources) for each in profile.aggregates
        },
    )
    check_followed(profile, new, made.keys)
    return msgspec.structs.replace(made, allow_gap=bool(holes(made)))


def _planned_export(export: Export) -> PlannedExport:
    return PlannedExport(
        export.id, export.uri, export.table_arn, export.export_time, export.table_id, export.window,
        export.output_format, export.doubt,
    )  # fmt: skip


def _place(export: PlannedExport) -> tuple[Any, ...]:
    """Where an export stands in its plan: full ones as they are, then windows by their time."""
    return (1, export.window.start, export.window.end, export.id) if export.window else (0,)


def _planned(export: Export, keys: PartitionKeys) -> list[PlannedFile]:
    return [
        PlannedFile(key, export.id, file) for key, file in zip(keys.of(export), export.files, strict=True)
    ]


def _keys_of(plan: Plan | None) -> PartitionKeys:
    files = plan.files if plan else ()
    return PartitionKeys((each.export_id, each.file.name, each.partition) for each in files)


def proposed_files_per_run(plan: Plan) -> int:
    """How many files a run should load, where a run for each would spend most of its time on starting; else 0."""
    if plan.files_per_run > 1 or len(plan.files) < MANY_FILES or plan.bytes >= SMALL_BYTES * len(plan.files):
        return 0
    return max(-(-len(plan.files) // PROPOSED_RUNS), 10)


def planned_profile(plan: Plan, path: Path | str) -> Profile:
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
