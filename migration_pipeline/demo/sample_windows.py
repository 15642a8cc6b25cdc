"""Writes the windows of a sample's history: records in DynamoDB's order of members, spread over the window's files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from migration_pipeline.demo.sample_faults import Fault
from migration_pipeline.demo.sample_layout import EPOCH, LineFile, WindowExport, clear, write_manifests
from migration_pipeline.demo.sample_window_faults import entry

MOST_FILES = 64
"""Data files of a window, at most: all of them are open at once, each with a compressor's memory."""


class Clock:
    """Times of writes between two times: as many as are said, evenly, in ascending order, none twice."""

    def __init__(self, start: datetime, end: datetime, writes: int, random: Random) -> None:
        self._start = (start - EPOCH) // timedelta(microseconds=1)
        self._step = (end - start) // timedelta(microseconds=1) // max(1, writes)
        self._random = random.random

    def next(self) -> int:
        """The next write's time, in microseconds of the epoch."""
        time = self._start + int(self._random() * self._step)
        self._start += self._step
        return time


def keys_reader(names: tuple[str, ...]) -> Callable[[bytes], bytes]:
    """A function that gives the `Keys` of an item's attributes, both in JSON."""
    fields: list[Any] = [(name, msgspec.Raw) for name in names]
    decoder = msgspec.json.Decoder(msgspec.defstruct("Keys", fields))
    return lambda image: msgspec.json.encode(decoder.decode(image))


def record(micros: int, keys: bytes, before: bytes | None, after: bytes | None, view: str) -> bytes:
    """The line of a record. In NEW_IMAGE some deletes have a NewImage that is null, others have none."""
    line = b'{"Metadata":{"WriteTimestampMicros":{"N":"%d"}},"Keys":%b' % (micros, keys)
    if before is not None and view != "NEW_IMAGE":
        line += b',"OldImage":' + before
    if after is not None:
        line += b',"NewImage":' + after
    elif view == "NEW_IMAGE" and micros % 4 == 0:
        line += b',"NewImage":null'
    return line + b"}\n"


def write_window(
    folder: Path,
    export: WindowExport,
    files: int,
    records: Iterable[tuple[bytes, Fault | None]],
    random: Random,
) -> tuple[int, list[dict[str, object]]]:
    """Write a window below `folder`; return the number of its records, and what the list says of planted faults.

    Any record may be in any file, but of three files or more the last one is empty.
    """
    root = folder / "AWSDynamoDB" / export.id
    clear(root)
    data = folder / export.data
    data.mkdir(exist_ok=True)
    planted = []
    with ExitStack() as ends:
        parts = list(_parts(ends, data, export, files))
        filled = parts[:-1] if len(parts) >= 3 else parts
        for line, fault in records:
            index = int(random.random() * len(filled))
            parts[index].add(line)
            if fault:
                planted.append((index, parts[index].items, fault))
    written = write_manifests(root, export, parts)
    planted.sort(key=lambda each: each[:2])
    return written, [entry(parts[index].name, line, fault) for index, line, fault in planted]


def _parts(ends: ExitStack, data: Path, export: WindowExport, files: int) -> Iterator[LineFile]:
    for _ in range(min(files, MOST_FILES)):
        yield ends.enter_context(LineFile(data / export.file_name()))
