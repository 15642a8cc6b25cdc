"""Compares an export with the database, before a load (dry run) and after it (verify); for the command line and Dagster.

Both read the files as a load does. A verification writes to none of the tables (`targets.comparison`); a dry run is a load whose
transaction is rolled back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import msgspec

from migration_pipeline.engine.batch import AnyTransform
from migration_pipeline.engine.file_report import FileReport, Progress
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.patterns import rules_that_cannot_hold
from migration_pipeline.migration.load import Transforms, place_of
from migration_pipeline.migration.newest import NewestTransforms, OnProgress, newest_of, read_windows
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.comparison import ComparingTarget, Comparison, Difference
from migration_pipeline.targets.connection import DatabaseSettings, connect
from migration_pipeline.targets.ddl import check_tables
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.receipts import count_rows, keep_verification
from migration_pipeline.targets.records import KeptDifference, Verification, md5_of_files
from migration_pipeline.targets.session import Session
from migration_pipeline.targets.sql import EXAMPLES
from migration_pipeline.targets.states import read_states
from migration_pipeline.units import counted


class ComparedFile(msgspec.Struct):
    """One file, compared with the database."""

    planned: PlannedFile
    report: FileReport
    """The account of the file as a load would settle it."""
    tables: dict[str, Comparison]
    """By the table's qualified name."""
    unaccounted: int
    """In a verification: bad items that are not in the quarantine."""


class Compared(msgspec.Struct):
    """The results for all files, and for tables as wholes."""

    files: list[ComparedFile]
    names: list[str]
    """The tables compared."""
    whole: dict[str, Comparison] = {}
    """In a verification, by table, what is found of tables as wholes: rows that no item makes; aggregates."""
    notes: list[str] = []
    """What could not be compared."""

    def table(self, name: str) -> Comparison:
        """Sum up a table over all files."""
        total = Comparison()
        for file in self.files:
            total.add(file.tables.get(name, Comparison()))
        total.add(self.whole.get(name, Comparison()))
        del total.examples[EXAMPLES:]
        return total

    @property
    def unaccounted(self) -> int:
        """Bad items that are not in the quarantine."""
        return sum(file.unaccounted for file in self.files)

    @property
    def takes_nothing(self) -> bool:
        """Whether no route took any item, though there are some: then nothing was compared."""
        reports = [file.report for file in self.files]
        taken = any(r.loaded or r.superseded or r.quarantined for r in reports)
        return any(r.items for r in reports) and not taken

    def faults(self, name: str) -> int:
        """The number of a table's rows that differ from the export."""
        total = self.table(name)
        return sum(total.count(kind) for kind in ("missing", "different", "extra"))


SAID_SECONDS = 10.0


def now_and_then(say: Callable[[str], None]) -> OnProgress:
    """Make a hook that says how far a file is, every `SAID_SECONDS`."""
    due: dict[str, float] = {}

    def hook(planned: PlannedFile, progress: Progress) -> None:
        if progress.seconds >= due.get(planned.partition, SAID_SECONDS):
            due[planned.partition] = progress.seconds + SAID_SECONDS
            say(f"{planned.file.name}: {progress.share:.0%}, {progress.items_per_second:,.0f} items/s")

    return hook


def dry_run(
    plan: Plan,
    profile: Profile,
    url: str,
    files: Sequence[PlannedFile],
    settings: LoadSettings = LoadSettings(),  # noqa: B008  # frozen
    database: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
    *,
    options: Options | None = None,
    say: Callable[[str], None] = lambda _: None,
    on_progress: OnProgress = lambda file, progress: None,
) -> Compared:
    """Load `files`, statement for statement as a load does, in one transaction that is rolled back.

    Until then it holds locks on the rows that it writes. Raises `MigrationError` as a load does: a file of a window needs those
    before it, loaded or among `files`.
    """
    connect(url).close()  # a user waits for the result: report a missing database at once
    transforms = Transforms(plan, profile, options)
    found = []
    with Session(url, database, say, hold=True) as session:
        for planned in files:
            identity = FileIdentity(
                profile.name, profile.version, planned.export_id, planned.file.name, "dry run"
            )
            target = PostgresTarget(
                url,
                profile.tables,
                identity,
                database,
                profile.nul,
                session=session,
                place=place_of(plan, planned),
            )
            with target:
                report = _load(planned, transforms.of(planned), target, settings, on_progress).run()
            found.append(ComparedFile(planned, report, _as_comparisons(report, profile), 0))
    names = [table.qualified for table in profile.tables.values()]
    return Compared(
        found,
        names,
        notes=[*_would_go(found), *_not_tried(plan, profile, files), *_wrong_rules(profile, found)],
    )


def _would_go(files: Sequence[ComparedFile]) -> list[str]:
    """Count what windows would take away or pass over."""
    gone = Counter[str]()
    for file in files:
        gone.update(file.report.deleted_rows)
    notes = [f"{counted(rows, 'row')} of {name} would be deleted" for name, rows in (+gone).items()]
    if superseded := sum(file.report.superseded for file in files):
        notes.append(f"{counted(superseded, 'item')} would be passed over: a newer state is loaded")
    return notes


def _wrong_rules(profile: Profile, files: Sequence[ComparedFile]) -> list[str]:
    unrouted = Counter[str]()
    for file in files:
        unrouted.update(file.report.unrouted)
    return rules_that_cannot_hold(profile, unrouted)


def _not_tried(plan: Plan, profile: Profile, files: Sequence[PlannedFile]) -> list[str]:
    """Name what a dry run of these files could not see."""
    notes = [
        f"not tried: {aggregate.table.qualified}, which is made once all files are loaded"
        for aggregate in profile.aggregates
    ]
    if profile.finishing:
        notes.append(f"not tried: finishing ({', '.join(step.name for step in profile.finishing)})")
    if others := len(plan.files) - len(files):
        notes.append(
            f"not tried: keys that these files share with the plan's {counted(others, 'other file')}"
        )
    return notes


def _as_comparisons(report: FileReport, profile: Profile) -> dict[str, Comparison]:
    """Turn a load's report into comparisons: new rows count as missing, changed ones as different."""
    found = {}
    for name in (table.qualified for table in profile.tables.values()):
        rows, changed = report.rows.get(name, 0), report.changed_rows.get(name, 0)
        newer, unchanged = report.newer_rows.get(name, 0), report.unchanged_rows.get(name, 0)
        counts = {"missing": rows - changed - newer - unchanged, "different": changed, "newer": newer}
        found[name] = Comparison(rows, Counter({Difference(kind): count for kind, count in counts.items()}))
    return found


def verify(
    plan: Plan,
    profile: Profile,
    url: str,
    run_id: str,
    *,
    extra: bool = False,
    options: Options | None = None,
    settings: LoadSettings = LoadSettings(),  # noqa: B008  # frozen
    database: DatabaseSettings = DatabaseSettings(),  # noqa: B008  # frozen
    say: Callable[[str], None] = lambda _: None,
    on_progress: OnProgress = lambda file, progress: None,
) -> Compared:
    """Read all files of the plan again, and compare each row with the database.

    With windows these are the rows of the newest state of each item: of what the base or a window says, the last that was
    written. Which that is the windows themselves say, and not the ledger.

    Rows that no item makes are counted; with `extra` they are searched key by key, which is exact even if
    items share a key, and gives examples. The result is kept in ``migration.verification``, examples
    in ``migration.difference``. Raises `MigrationError`.
    """
    patient = msgspec.structs.replace(settings, max_bad_items=max(1, plan.items), max_bad_share=1.0)
    keyed = [table for table in profile.tables.values() if not table.landing]
    check_tables(url, profile.all_tables)  # at once: a user waits for the result
    began, states = read_states(url, profile.all_tables)
    newest = newest_of(plan)
    with ComparingTarget(
        url, profile.tables, database, profile.nul, say, keys=extra, newest=newest
    ) as target:
        if newest:
            read_windows(plan, newest, target, on_progress)
        transforms = NewestTransforms(plan, profile, options, newest)
        files = _compare(plan, profile, target, transforms, patient, on_progress)
        compared = Compared(files, [table.qualified for table in profile.tables.values()])
        compared.notes += _wrong_rules(profile, files)
        if extra:
            compared.whole = {table.qualified: target.rows_of_no_item(table) for table in keyed}
        for table in profile.tables.values() if newest else ():
            if table.landing:
                rows = compared.table(table.qualified).compared
                compared.whole[table.qualified] = target.landed(table, rows)
        for aggregate in profile.aggregates:
            name = aggregate.table.qualified
            if target.not_landed:
                compared.notes.append(f"{name} was not compared: what files had landed was dropped")
            else:
                compared.names.append(name)
                compared.whole[name] = target.aggregate(aggregate)
    if not extra:
        for table in keyed:
            found = compared.table(table.qualified)
            compared.whole[table.qualified] = _too_many(found, count_rows(url, table))
    made = [_verification(profile, run_id, compared, name) for name in compared.names]
    made = [msgspec.structs.replace(each, began_at=began, state=states[each.table_name]) for each in made]
    keep_verification(url, made, list(_differences(compared)))
    return compared


def _too_many(comparison: Comparison, rows: int) -> Comparison:
    """Count the rows of a table beyond those that items found: at least so many are no item's."""
    surplus = rows - (comparison.compared - comparison.count("missing"))
    return Comparison(found=Counter({Difference("extra"): surplus} if surplus > 0 else {}))


def _verification(profile: Profile, run_id: str, compared: Compared, table: str) -> Verification:
    total = compared.table(table)
    return Verification(
        profile=profile.name,
        table_name=table,
        files=len(compared.files),
        compared=total.compared,
        same=total.same,
        missing=total.count("missing"),
        different=total.count("different"),
        newer=total.count("newer"),
        extra=total.count("extra"),
        columns=total.columns,
        run_id=run_id,
        profile_version=profile.version,
        files_md5=md5_of_files((file.planned.export_id, file.planned.file.name) for file in compared.files),
    )


def _differences(compared: Compared) -> Iterator[KeptDifference]:
    """Return the examples of all tables, those of tables as wholes without a file."""
    found = [(file.planned.export_id, file.planned.file.name, file.tables) for file in compared.files]
    for export_id, file, tables in [*found, ("", "", compared.whole)]:
        for table in compared.names:
            for difference, key in tables.get(table, Comparison()).examples:
                yield KeptDifference(
                    table_name=table, export_id=export_id, file=file, kind=difference.kind,
                    columns=list(difference.columns), key=key,
                )  # fmt: skip


def _compare(
    plan: Plan,
    profile: Profile,
    target: ComparingTarget,
    transforms: Transforms,
    settings: LoadSettings,
    on_progress: OnProgress,
) -> list[ComparedFile]:
    compared = []
    for number, planned in enumerate(plan.files):
        identity = FileIdentity(profile.name, profile.version, planned.export_id, planned.file.name, "")
        target.turn_to(identity, number if plan.window_of(planned) else None, planned.file.items)
        report = _load(planned, transforms.of(planned), target, settings, on_progress).run()
        compared.append(ComparedFile(planned, report, target.comparisons, target.unaccounted))
    return compared


def _load(
    planned: PlannedFile,
    transform: AnyTransform,
    target: PostgresTarget | ComparingTarget,
    settings: LoadSettings,
    on_progress: OnProgress,
) -> FileLoad:
    return FileLoad(
        planned.file.name,
        planned.file.items,
        FileStream(planned.file, Storage()),
        transform,
        target,
        settings,
        on_progress=lambda progress: on_progress(planned, progress),
        progress_seconds=1.0,
    )
