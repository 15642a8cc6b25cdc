"""Takes a sample of an export: some items of every file, within bounds of memory and of bytes read.

A gzip stream cannot be entered in its middle, so what is sampled of a file is drawn at random from a
stretch at its beginning. How long that stretch was is part of the sample, because nothing is known of
what comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from random import Random

import msgspec

from migration_pipeline.sources.export import Export, ExportFile
from migration_pipeline.sources.storage import Storage, StorageError
from migration_pipeline.sources.stream import FileStream

ITEMS_PER_FILE = 1_000
"""Items drawn of each file, unless asked for more."""

STRETCH_BYTES = 16 << 20
"""Decompressed bytes read of each file: some fifty thousand items, from which those of the sample are drawn."""

ALL_STRETCHES_BYTES = 1 << 30
"""Decompressed bytes read of all files: some seconds of gunzip; exports of very many files get shorter stretches."""

MIN_STRETCH_BYTES = 1 << 18
"""Decompressed bytes that every file gives at least."""

KEPT_BYTES = 16 << 20
"""Bytes of lines kept in memory, of all files; read, they take some ten times as much. Of large items, fewer are kept."""

READERS = 8
"""Files read at a time: S3 answers each request after some tens of milliseconds, whatever is asked."""


class Line(msgspec.Struct, frozen=True):
    """A line of an export file, and where it is."""

    file: str
    number: int
    """From 1."""
    line: bytes


class FileSample(msgspec.Struct, frozen=True):
    """What was drawn of one file."""

    file: ExportFile
    lines: tuple[Line, ...]
    seen: int
    """Items in the stretch that was read."""
    bytes: int
    """Decompressed bytes of the stretch."""

    @property
    def whole(self) -> bool:
        """Whether every item of the file is in the sample."""
        return len(self.lines) == self.file.items


class Sample(msgspec.Struct, frozen=True):
    """What was drawn of an export, in the order of its files, and the files that could not be read."""

    export: Export
    files: tuple[FileSample, ...]
    unread: dict[str, str]
    """File name -> why."""

    def __iter__(self) -> Iterator[Line]:
        """Yield the lines of all files."""
        return (line for file in self.files for line in file.lines)

    @property
    def items(self) -> int:
        """Lines in the sample."""
        return sum(len(file.lines) for file in self.files)


def take_sample(
    export: Export,
    storage: Storage,
    items_per_file: int = ITEMS_PER_FILE,
    on_file: Callable[[], None] = lambda: None,
) -> Sample:
    """Draw items of every file of an export; the same export gives the same sample. `on_file` is called after each.

    Raises `StorageError` when none of its files can be read.
    """
    files = max(1, len(export.files))
    stretch = min(STRETCH_BYTES, max(MIN_STRETCH_BYTES, ALL_STRETCHES_BYTES // files))
    kept = KEPT_BYTES // files
    found: dict[str, FileSample] = {}
    unread: dict[str, str] = {}
    # Leaving the pool waits for the stretches under way, so Ctrl-C first forgets those that have not begun.
    with ThreadPoolExecutor(READERS) as pool:
        futures = {
            pool.submit(_draw, file, storage, items_per_file, stretch, kept): file for file in export.files
        }
        try:
            for future in as_completed(futures):
                name = futures[future].name
                try:
                    found[name] = future.result()
                except StorageError as error:
                    unread[name] = str(error)
                on_file()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if unread and not found:
        raise StorageError(next(iter(unread.values())))
    return Sample(export, tuple(found[file.name] for file in export.files if file.name in found), unread)


def _draw(file: ExportFile, storage: Storage, items: int, stretch: int, kept: int) -> FileSample:
    """Draw `items` lines from the first `stretch` bytes of a file, each with the same chance (reservoir sampling)."""
    chance = Random(file.name)
    drawn: list[Line] = []
    seen = size = held = 0
    for lines in FileStream(file, storage):
        for line in lines:
            seen += 1
            size += len(line) + 1
            place = len(drawn) if len(drawn) < items else chance.randrange(seen)
            if place < len(drawn):
                held += len(line) - len(drawn[place].line)
                drawn[place] = Line(file.name, seen, line)
            elif place < items:
                held += len(line)
                drawn.append(Line(file.name, seen, line))
            while held > kept and len(drawn) > 1:
                items = len(drawn) - 1
                held -= len(drawn.pop(chance.randrange(len(drawn))).line)
        if size >= stretch:
            break
    drawn.sort(key=lambda line: line.number)
    return FileSample(file, tuple(drawn), seen, size)
