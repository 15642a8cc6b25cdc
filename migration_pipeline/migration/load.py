"""Loads a file of a plan, from its export into the tables."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from datetime import datetime, timezone
from functools import partial
from typing import Any, NamedTuple, get_type_hints

import msgspec
from typing_extensions import Self

from migration_pipeline import accelerator
from migration_pipeline.engine.batch import AnyTransform
from migration_pipeline.engine.changes import ChangeTransform
from migration_pipeline.engine.file_report import FileReport, Progress
from migration_pipeline.engine.load import FileLoad, LoadSettings, read_ahead
from migration_pipeline.engine.memory import keep_what_is_freed
from migration_pipeline.engine.pace import Pause, Unpaced
from migration_pipeline.engine.patterns import rules_that_cannot_hold
from migration_pipeline.engine.threads import Ahead
from migration_pipeline.engine.transform import Transform
from migration_pipeline.migration.chain import holes
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.dialects import dialect_of, item_digests
from migration_pipeline.sources.export import OutputFormat, Window
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.sources.windows import ChangeReader, micros
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline.targets.known_tables import KnownTables
from migration_pipeline.targets.ledger import Place
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.session import LostCommitsError, Session
from migration_pipeline.targets.throttle import FilePace, Throttle, ThrottleSettings
from migration_pipeline.units import counted, counted_that


def described(defaults: msgspec.Struct) -> Iterator[tuple[str, Any, msgspec.Meta]]:
    """Return the fields of a struct that an operator may set: name, type, and limits with a description.

    Of settings, these are the fields with a description; of a profile's options, all.
    """
    plain = get_type_hints(type(defaults))
    for name, annotation in get_type_hints(type(defaults), include_extras=True).items():
        metas = [m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, msgspec.Meta)]
        if metas or isinstance(defaults, Options):
            yield name, plain[name], metas[0] if metas else msgspec.Meta()


def default_settings() -> dict[str, Any]:
    """Name -> default of all settings that a run config has for loads, except the profile's options."""
    structs = (LoadSettings(), DatabaseSettings(), ThrottleSettings())
    return {name: getattr(struct, name) for struct in structs for name, *_ in described(struct)}


class _Begun(NamedTuple):
    """A file whose first lines are being read."""

    planned: PlannedFile
    source: FileStream
    lists: Ahead[Sequence[bytes]]


class Loader:
    """Loads files of one plan with the same settings, one after another; with a `throttle`, at its pace.

    A context manager: it keeps its connection from one file to the next, unless a load fails. A new one has to read what it
    needs of the catalog, which takes as long as loading a small file.
    """

    def __init__(
        self,
        plan: Plan,
        profile: Profile,
        url: str,
        run_id: str,
        settings: LoadSettings,
        database: DatabaseSettings,
        options: Options | None,
        throttle: Throttle | None = None,
    ) -> None:
        keep_what_is_freed()  # before any thread has a heap of its own
        self._throttle = throttle
        self._plan = plan
        self._profile = profile
        self._url = url
        self._run_id = run_id
        self._settings = settings
        self._database = database
        self._options = options
        self._transforms: dict[OutputFormat, Transform] = {}
        self._known = KnownTables(profile.tables)
        self._session: Session | None = None
        """Between two files."""
        self._ended: list[tuple[int, str]] = []
        """Files that it has loaded, each with the number of the transaction that ended it."""
        self._begun: _Begun | None = None
        """The file that follows, once all of the one before it is read."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun is not None:
            self._begun.lists.close()
        if self._session is not None:
            self._session.close()

    def load(
        self,
        planned: PlannedFile,
        log: logging.Logger,
        on_progress: Callable[[Progress], None],
        on_retry: Callable[[str], None],
        on_pause: Callable[[Pause], None] = lambda _: None,
        following: PlannedFile | None = None,
    ) -> FileReport:
        """Load a file, saying in `log` how it went. Raises `MigrationError`; then the file has no receipt.

        `on_retry` is called for each transaction that runs again, and why, perhaps from another thread; so is `on_pause`, when
        the load begins to wait for the throttle or goes on, and now and then between. Of the file `following`, which is to be
        loaded next, the first lines are read while the last rows of this one are written.
        """
        if self._throttle:  # one that cannot be read is told of before any work
            self._throttle.open(on_retry)
        pace = FilePace(self._throttle, on_pause) if self._throttle else Unpaced()
        file, profile, window = planned.file, self._profile, self._plan.window_of(planned)
        session = self._take_session(on_retry)
        target = PostgresTarget(
            self._url,
            profile.tables,
            self._identity(planned),
            self._database,
            profile.nul,
            session=session,
            known=self._known,
            place=place_of(self._plan, planned),
        )
        try:
            with target:
                # Before the file is read: this may fail, and only the load ends the reading.
                transform = self._transform_for(planned, target)
                begun = self._begun_of(planned)
                report = FileLoad(
                    file.name,
                    file.items,
                    begun.source,
                    transform,
                    target,
                    self._settings,
                    on_progress=on_progress,
                    pace=pace,
                    lists=begun.lists,
                    on_read=partial(self._begin, following),
                ).run()
        except LostCommitsError as error:
            raise self._with_others(error) from None
        self._session = session
        self._ended.append((session.committed, file.name))
        self._tell(report, file.name, log, window)
        return report

    def _take_session(self, on_retry: Callable[[str], None]) -> Session:
        """Take the session of the file before, or a new one, which knows nothing: a failover may be why there is none."""
        session, self._session = self._session, None
        if session is None:
            session = Session(self._url, self._database, chain=True)
            session.open()
            self._known = KnownTables(self._profile.tables)
            self._ended = []
        session.on_retry = on_retry
        return session

    def _with_others(self, error: LostCommitsError) -> LostCommitsError:
        """Name the files that this session had loaded and that are lost as well.

        Of a file that had been loaded before, the older rows are back, and the older receipt: nothing else would tell.
        """
        lost = [name for number, name in self._ended if number > error.there]
        if not lost:
            return error
        return error.reworded(f"{error}, and with --only what this run had loaded before: {', '.join(lost)}")

    def _identity(self, planned: PlannedFile) -> FileIdentity:
        profile, export = self._profile, self._plan.export_of(planned)
        return FileIdentity(
            profile.name,
            profile.version,
            planned.export_id,
            planned.file.name,
            self._run_id,
            _time(export.export_time),
            export.doubt,
        )

    def _begin(self, following: PlannedFile | None) -> None:
        if following is not None:
            self._begun = _begin(following)

    def _begun_of(self, planned: PlannedFile) -> _Begun:
        begun, self._begun = self._begun, None
        if begun is not None and begun.planned == planned:
            return begun
        if begun is not None:
            begun.lists.close()
        return _begin(planned)

    def _transform_for(self, planned: PlannedFile, target: PostgresTarget) -> Transform | ChangeTransform:
        export = self._plan.export_of(planned)
        if export.window:
            return transform_of(self._profile, export.window, self._options)
        if export.output_format not in self._transforms:
            made = Transform(self._profile, dialect_of(export.output_format), self._options)
            self._transforms[export.output_format] = made
        transform = copy(self._transforms[export.output_format])
        transform.newer = target.newer()
        return transform

    def _tell(self, report: FileReport, name: str, log: logging.Logger, window: Window | None) -> None:
        log.info(f"{name}: {sentence(report, of_window=window is not None)}")
        log.info(f"{name}: {_how_it_was_read(report)}")
        if report.throttled:
            waits = ", ".join(f"{seconds:,.1f} s ({kind})" for kind, seconds in report.throttled.items())
            log.info(f"{name}: waited for the throttle: {waits}")
        for reason, count in report.quarantined_by_reason.items():
            log.warning(f"{name}: quarantined {count:,}: {reason}")
        for warning in rules_that_cannot_hold(self._profile, report.unrouted):
            log.warning(f"{name}: {warning}")
        if report.items and not (report.loaded or report.quarantined or report.superseded):
            log.warning(f"{name}: no route of the profile took any of its items")
        for column, count in report.rounded.items():
            log.info(
                f"{name}: {counted_that(count, 'value', 'was', 'were')} made to fit the column {column}, as the Row allows"
            )


def _begin(planned: PlannedFile) -> _Begun:
    source = FileStream(planned.file, Storage())
    return _Begun(planned, source, read_ahead(source))


def _how_it_was_read(report: FileReport) -> str:
    """Say what of a file was read in C, and why the rest was not."""
    handed = sum(report.not_accelerated.values())
    if not (report.accelerated or handed):
        return accelerator.described()
    why = "; ".join(f"{count:,} by Python: {reason}" for reason, count in report.not_accelerated.items())
    share = report.accelerated / (report.accelerated + handed)
    return f"{share:.1%} of its lines were read by the accelerator" + (f", {why}" if why else "")


def sentence(report: FileReport, *, of_window: bool) -> str:
    """The account of a file in one line: ``done, 12 items in 0.10 s (120 items/s), 10 rows, 2 skipped, 0 quarantined``."""
    unit = "record" if of_window else "item"
    begun = f"done, {counted(report.items, unit)} in {report.seconds:,.2f} s ({report.items_per_second:,.0f} {unit}s/s)"
    left = f"{sum(report.skipped.values()):,} skipped, {report.quarantined:,} quarantined"
    if of_window:
        counts = {kind: sum(rows.values()) for kind, rows in report.row_changes.items()}
        rows = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
        return f"{begun}, rows: {rows}; records: {report.superseded:,} superseded, {left}"
    superseded = f"{report.superseded:,} superseded, " if report.superseded else ""
    return f"{begun}, {counted(sum(report.rows.values()), 'row')}, {superseded}{left}"


def transform_of(
    profile: Profile,
    window: Window | None,
    options: Options | None,
    output_format: OutputFormat = "DYNAMODB_JSON",
) -> Transform | ChangeTransform:
    """Compile a profile for the files of a window, or of a full export."""
    dialect = dialect_of(output_format)
    if window is None:
        return Transform(profile, dialect, options)
    return ChangeTransform(profile, dialect, ChangeReader(window, profile.name), options)


class Transforms:
    """Compiles a plan's profile for its files, once for each export."""

    def __init__(self, plan: Plan, profile: Profile, options: Options | None) -> None:
        self._plan = plan
        self._profile = profile
        self._options = options or profile.options(plan.options)
        self._made: dict[tuple[Window | None, OutputFormat], AnyTransform] = {}

    def of(self, planned: PlannedFile) -> AnyTransform:
        """The transform of a file."""
        export = self._plan.export_of(planned)
        of = export.window, export.output_format
        if of not in self._made:
            self._made[of] = self._make(*of)
        return self._made[of]

    def _make(self, window: Window | None, output_format: OutputFormat) -> AnyTransform:
        return transform_of(self._profile, window, self._options, output_format)


def place_of(plan: Plan, planned: PlannedFile) -> Place:
    """The place of a file in its plan's chain."""
    window, digest = plan.window_of(planned), item_digests(plan.keys, plan.profile) if plan.keys else None
    ids = [each.id for each in plan.windows]
    later = tuple(ids[ids.index(planned.export_id) + 1 :] if window else ids)
    later_files = sum(each.export_id in later for each in plan.files)
    if window is None:
        return Place(digest=digest, later=later, later_files=later_files)
    earlier = plan.windows[: ids.index(planned.export_id)]
    overlapped = tuple(each.id for each in earlier if each.window and each.window.end > window.start)
    beside = [each for each in plan.files if each.export_id == planned.export_id and each != planned]
    return Place(
        window=planned.export_id,
        before=_promised(plan.before(planned)),
        digest=digest,
        beside=_promised(beside),
        windows=tuple(each.id for each in earlier),
        later=later,
        later_files=later_files,
        overlapped=overlapped,
        broken=bool(overlapped or holes(plan)),
        start=micros(window.start),
        end=micros(window.end),
        base_time=max((_micros(each.export_time) for each in plan.exports if each.window is None), default=0),
    )


def _micros(time: str) -> int:
    if (known := _time(time)) is None:
        return 0
    moment = datetime.fromisoformat(known.replace("Z", "+00:00"))
    return micros(moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc))


def _promised(files: Iterable[PlannedFile]) -> tuple[tuple[str, str, str], ...]:
    return tuple((each.export_id, each.file.name, each.file.md5) for each in files)


def _time(text: str) -> str | None:
    """Return an export's time as it stands, if it is one; a manifest made by hand may have any text."""
    try:
        datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return text
