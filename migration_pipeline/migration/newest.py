"""Reads the windows of a plan for the newest record of each item: the first pass of a verification."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from migration_pipeline.engine.load import READ_AHEAD
from migration_pipeline.engine.threads import ahead
from migration_pipeline.errors import BadItem, MigrationError
from migration_pipeline.migration.plan import Plan, PlannedFile
from migration_pipeline.sources.export import Window
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.sources.windows import ChangeReader, item_digests, micros
from migration_pipeline.targets.comparison import ComparingTarget
from migration_pipeline.targets.newest import Newest, Seen

RECORDS = 20_000
"""Records that are sent to the database at a time, about."""


def newest_of(plan: Plan) -> Newest | None:
    """What will know the newest records; None for a plan without windows."""
    return Newest(item_digests(plan.keys) if plan.keys else None) if plan.windows else None


def read_windows(plan: Plan, newest: Newest, target: ComparingTarget) -> None:
    """Take note of all records of a plan's windows, in the transaction of `target`. Raises `MigrationError`.

    What is wrong with a record, so that it names no item, is found by the second pass.
    """
    order = {export.id: number for number, export in enumerate(plan.windows)}
    for number, planned in enumerate(plan.files):
        if window := plan.window_of(planned):
            for records in _records(planned, window, order[planned.export_id], number):
                target.prepare(partial(newest.add, records=records))
    windows = [export.window for export in plan.windows if export.window]
    times = [(micros(window.start), micros(window.end)) for window in windows]
    target.prepare(partial(newest.settle, windows=times))


def _records(planned: PlannedFile, window: Window, number: int, file: int) -> Iterator[list[Seen]]:
    """Read the records of a file, some at a time."""
    source, read, found, line = FileStream(planned.file, Storage()), ChangeReader(window), list[Seen](), 0
    lists = ahead(source, READ_AHEAD)
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
        source.verify()
    except MigrationError as error:
        error.file = error.file or planned.file.name
        raise
    finally:
        lists.close()
    if found:
        yield found
