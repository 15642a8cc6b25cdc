"""What a verification reads of a plan with windows: first their records, then of all files what the newest record of each item says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from migration_pipeline.engine.batch import AnyTransform
from migration_pipeline.engine.changes import ChangeOutcome, ChangeTransform
from migration_pipeline.engine.file_report import Progress
from migration_pipeline.engine.load import read_ahead
from migration_pipeline.engine.transform import Bad, Dialect, Outcome, Transform
from migration_pipeline.errors import BadItem, MigrationError
from migration_pipeline.migration.load import Transforms
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.dialects import dialect_of, item_digests
from migration_pipeline.sources.export import OutputFormat, Window
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.sources.windows import Change, ChangeReader, micros
from migration_pipeline.targets.comparison import ComparingTarget
from migration_pipeline.targets.ledger import digest_of
from migration_pipeline.targets.newest import Newest, Seen

OnProgress = Callable[[PlannedFile, Progress], None]

RECORDS = 20_000
"""Records that are sent to the database at a time, about."""


def newest_of(plan: Plan) -> Newest | None:
    """What will know the newest records; None for a plan without windows."""
    if not plan.windows:
        return None
    return Newest(sum(planned.file.items for planned in plan.files if plan.window_of(planned)))


# -- pass 1 ------------------------------------------------------------------------------------------


def read_windows(plan: Plan, newest: Newest, target: ComparingTarget, on_progress: OnProgress) -> None:
    """Take note of all records of a plan's windows, in the transaction of `target`. Raises `MigrationError`.

    What is wrong with a record, so that it names no item, is found by the second pass, which tells of all files' progress
    from their beginning again.
    """
    order = {export.id: number for number, export in enumerate(plan.windows)}
    for number, planned in enumerate(plan.files):
        if window := plan.window_of(planned):
            tell = partial(on_progress, planned)
            for records in _records(planned, plan.profile, window, order[planned.export_id], number, tell):
                target.prepare(partial(newest.add, records=records))
    windows = [export.window for export in plan.windows if export.window]
    times = [(micros(window.start), micros(window.end)) for window in windows]
    target.prepare(partial(newest.settle, windows=times))


def _records(
    planned: PlannedFile,
    profile: str,
    window: Window,
    number: int,
    file: int,
    tell: Callable[[Progress], None],
) -> Iterator[list[Seen]]:
    """Read the records of a file, some at a time."""
    source, read, found, line = (
        FileStream(planned.file, Storage()),
        ChangeReader(window, profile),
        list[Seen](),
        0,
    )
    began = time.monotonic()
    lists = read_ahead(source)
    try:
        for lines in lists:
            for line, raw in enumerate(lines, line + 1):  # noqa: B020  # counts on
                try:
                    change = read(raw)
                except BadItem:
                    continue
                found.append(Seen(change.item, change.written, number, file, line))
            if len(found) >= RECORDS:
                yield found
                found = []
                tell(Progress(line, planned.file.items, source.bytes_read, time.monotonic() - began))
        source.verify()
    except MigrationError as error:
        error.file = error.file or planned.file.name
        raise
    finally:
        lists.close()
    if found:
        yield found


# -- pass 2 ------------------------------------------------------------------------------------------


class NewestTransforms(Transforms):
    """Compiles a profile for the second pass: lines of which there is a newer record, or may be one, are set aside."""

    def __init__(self, plan: Plan, profile: Profile, options: Options | None, newest: Newest | None) -> None:
        super().__init__(plan, profile, options)
        self._newest = newest
        self._digest = item_digests(plan.keys, plan.profile) if plan.keys else None

    def _make(self, window: Window | None, output_format: OutputFormat) -> AnyTransform:
        dialect = dialect_of(output_format)
        if self._newest and window:
            return _NewestRecords(self._profile, dialect, window, self._options, self._newest)
        if self._newest and self._digest:
            return _UntouchedLines(self._profile, dialect, self._options, self._digest, self._newest)
        return super()._make(window, output_format)


class _UntouchedLines(Transform):
    """Turns lines of a full export into rows; those whose items windows may have touched are counted, without their rows."""

    def __init__(
        self,
        profile: Profile,
        dialect: Dialect,
        options: Options | None,
        digest: Callable[[bytes], bytes],
        newest: Newest,
    ) -> None:
        super().__init__(profile, dialect, options)
        self._digest = digest
        self._newest = newest

    def numbered(self, lines: Sequence[bytes], numbers: Sequence[int]) -> Outcome:
        """Turn lines of any numbers into rows."""
        aside = self._aside(lines, numbers)
        if not aside:
            return super().numbered(lines, numbers)
        rest = [(line, n) for line, n in zip(lines, numbers, strict=True) if n not in aside]
        outcome = super().numbered([line for line, _ in rest], [number for _, number in rest])
        outcome.add(self._without_their_rows(aside))
        return outcome

    def _without_their_rows(self, aside: Mapping[int, tuple[bytes, str]]) -> Outcome:
        """Count lines that are set aside; what is skipped is not, as it makes no row anyway."""
        some = super().numbered([line for line, _ in aside.values()], list(aside))
        if some.counts.empty and len(aside) > 1:  # which they are, the sum does not tell
            some = Outcome(self.row_classes)
            for number, each in aside.items():
                some.add(self._without_their_rows({number: each}))
        elif some.counts.loaded or some.bad:
            for number in (*some.numbers, *(bad.number for bad in some.bad)):
                self._newest.aside[number] = aside[number][1]
        some.rows = {}
        return some

    def _aside(self, lines: Sequence[bytes], numbers: Sequence[int]) -> dict[int, tuple[bytes, str]]:
        digest, touched = self._digest, self._newest.may_be_touched
        return {
            number: (line, item)
            for line, number in zip(lines, numbers, strict=True)
            if (item := digest_of(digest, line)) and touched(number, item)
        }


class _NewestRecords(ChangeTransform):
    """Turns the newest records of items into the rows of their new states; others are counted as loaded, and set aside."""

    def __init__(
        self, profile: Profile, dialect: Dialect, window: Window, options: Options | None, newest: Newest
    ) -> None:
        read = ChangeReader(window, profile.name)

        def read_new(line: bytes) -> Change:
            return msgspec.structs.replace(read(line), old=None)

        super().__init__(profile, dialect, read_new, options)
        self._newest = newest

    def numbered(self, lines: Sequence[bytes], numbers: Sequence[int]) -> ChangeOutcome:
        """Turn records of any numbers into rows."""
        pairs, current = list(zip(lines, numbers, strict=True)), self._newest.is_current
        now = [pair for pair in pairs if current(pair[1])]
        outcome = super().numbered([line for line, _ in now], [number for _, number in now])
        for line, number in pairs if len(now) < len(pairs) else ():
            if not current(number):
                self._set_aside(line, number, outcome)
        return outcome

    def _set_aside(self, line: bytes, number: int, outcome: ChangeOutcome) -> None:
        try:
            self._read(line)
        except BadItem as error:
            outcome.bad.append(Bad(number, line, str(error)))
            return
        self._newest.aside[number] = ""
        outcome.counts.loaded += 1
        outcome.lines.append(line)
        outcome.numbers.append(number)
