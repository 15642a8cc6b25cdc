"""Reads a sample back, when its history goes on from it, and writes it again as it is at the history's end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate, islice, pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from isal import igzip

from migration_pipeline.demo.sample_faults import Fault
from migration_pipeline.demo.sample_layout import FullExport, LineFile, clear, write_manifests
from migration_pipeline.demo.sample_window_faults import entry

_OPEN = b'{"Item":'


class Base:
    """The lines of a sample by their positions, which go through all of its files."""

    def __init__(self, root: Path, listing: Path) -> None:
        """Read the manifest, and the list of planted faults if there is one."""
        entries = list(_json_lines(root / "manifest-files.json"))
        names = [str(each["dataFileS3Key"]).rpartition("/")[2] for each in entries]
        ends = accumulate((each["itemCount"] for each in entries), initial=0)
        self._root = root
        self.files = {name: range(*ends) for name, ends in zip(names, pairwise(ends), strict=True)}
        """The positions in each file."""
        self.listed = list(_json_lines(listing)) if listing.exists() else []
        """The list of planted faults."""
        self.faults = {self.files[each["file"]].start + each["line"] - 1: each for each in self.listed}
        """By position."""

    def choose(self, number: int, random: Random) -> list[int]:
        """Choose positions of items that are not broken, if there are as many."""
        items = max((positions.stop for positions in self.files.values()), default=0)
        chosen = random.sample(range(items), min(items, number + len(self.faults)))
        return [position for position in chosen if position not in self.faults][:number]

    def read(self, positions: list[int]) -> Iterator[bytes]:
        """The attributes, in JSON, of the items at positions in ascending order."""
        places = iter(positions)
        position = next(places, None)
        for name, there in self.files.items():
            with self.lines(name) as lines:
                at = there.start
                while position is not None and position < there.stop:
                    yield next(islice(lines, position - at, None))[len(_OPEN) : -len("}\n")]
                    at, position = position + 1, next(places, None)

    @contextmanager
    def lines(self, name: str) -> Iterator[Iterator[bytes]]:
        """The lines of a data file."""
        with igzip.open(self._root / "data" / name, "rb") as lines:
            yield iter(lines)


class Stop(NamedTuple):
    """A place in the base where the final export is otherwise, or has a broken line."""

    position: int
    state: bytes | None
    """The item's attributes in JSON; None if there is no item any more."""
    fault: Mapping[str, Any] | None
    """What the list says of the line, which stays as it is."""


def write_final(
    folder: Path,
    export: FullExport,
    base: Base,
    stops: list[Stop],
    new: list[tuple[bytes, Fault | None]],
) -> tuple[int, list[dict[str, object]]]:
    """Write the base again with its `stops`, in ascending order, and with new items at the ends of its files.

    Returns the number of items, and what the list says of the broken ones.
    """
    root = folder / export.data
    clear(root.parent)
    root.mkdir()
    filled = max(1, len(base.files) - 1 if len(base.files) >= 3 else len(base.files))
    files, listed = [], []
    places = iter([*stops, Stop(1 << 62, None, None)])
    stop = next(places)
    for number, (name, there) in enumerate(base.files.items()):
        with base.lines(name) as lines, LineFile(root / export.file_name()) as out:
            at = there.start
            while stop.position < there.stop:
                out.copy(lines, stop.position - at)
                listed += _put(out, stop, next(lines))
                at, stop = stop.position + 1, next(places)
            out.copy(lines, there.stop - at)
            for state, fault in new[number::filled] if number < filled else ():
                listed += _put(out, Stop(-1, state, fault and fault._asdict()), b"")
        files.append(out)
    return write_manifests(root.parent, export, files), listed


def _put(out: LineFile, stop: Stop, line: bytes) -> list[dict[str, object]]:
    """Write what is at a stop; return what the list says of it, if anything."""
    if stop.state is not None:
        out.add(_OPEN + stop.state + b"}\n")
    elif stop.fault:
        out.add(line)
    return [entry(out.name, out.items, stop.fault)] if stop.fault else []


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        yield from map(json.loads, lines)
