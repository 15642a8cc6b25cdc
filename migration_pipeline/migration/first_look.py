"""Tries the profile's rules on the first items of an export when it is planned, to find mistakes early."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from migration_pipeline.engine.patterns import rules_that_cannot_hold
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import BadItem, MigrationError
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.dialects import dialect_of
from migration_pipeline.sources.export import Export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.sources.windows import item_line
from migration_pipeline.units import counted

ITEMS = 1_000
"""Items that are looked at, at most."""


def first_look(profile: Profile, exports: Sequence[Export], storage: Storage) -> list[str]:
    """Return warnings of one line each about the rules on the first items, or about a file that cannot be read."""
    found = next(((export, file) for export in exports for file in export.files if file.items), None)
    if found is None:
        return []
    export, file = found
    try:
        lines = _first_lines(FileStream(file, storage))
    except MigrationError as error:
        return [f"cannot read the first items: {error}"]
    if export.window is not None:
        lines = list(_items(lines))
    outcome = Transform(profile, dialect_of(export.output_format)).numbered(lines, range(1, len(lines) + 1))
    said = rules_that_cannot_hold(profile, outcome.counts.unrouted)
    if not outcome.lines and not outcome.bad:
        said.append(
            f"no route of the profile takes any of the first {counted(len(lines), 'item')} of {file.name}: see its conditions"
        )
    return said


def _items(records: Iterable[bytes]) -> Iterator[bytes]:
    """Make lines of items of a window's records; what is no record shows when it is loaded."""
    for line in records:
        try:
            yield item_line(line)
        except BadItem:
            continue


def _first_lines(stream: FileStream) -> list[bytes]:
    lines: list[bytes] = []
    lists = iter(stream)
    try:
        for some in lists:
            lines += some
            if len(lines) >= ITEMS:
                break
    finally:
        lists.close()  # type: ignore[attr-defined]  # a generator, which closes the file
    return lines[:ITEMS]
