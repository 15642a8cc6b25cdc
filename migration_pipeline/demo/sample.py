"""A made-up export (a shop's, unless asked for another), so that a demo, a test or a benchmark needs no AWS account.

The layout and the lines are those of a real full export, in DynamoDB JSON or in Ion. The same arguments give the
same bytes, whatever the clock says, so that two loads of one sample can be compared.

Planted faults (``bad``) each break one item in one known way. The list of them lies beside the export:
a loader is right when it sets aside exactly those lines and loads all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, islice, pairwise
from pathlib import Path
from random import Random
from typing import TypeAlias

from migration_pipeline.demo.sample_faults import Fault, listed, plant
from migration_pipeline.demo.sample_ion import broken_line, ion_line
from migration_pipeline.demo.sample_layout import DataFile, FullExport, clear, json_lines, write_manifest
from migration_pipeline.demo.sample_pictures import Pictures
from migration_pipeline.demo.sample_shop import Mix, Shop
from migration_pipeline.errors import UsageError
from migration_pipeline.sources.export import OutputFormat
from migration_pipeline.units import counted

PROFILES = ("shop", "pictures")
"""The shipped profiles, each of which has a sample."""

Progress: TypeAlias = Callable[[int], None]
"""Is called with the number of items written so far."""

_CHUNK = 4096  # lines; about 1 MB of text, which is all that is in memory at a time


def write_sample(
    folder: Path,
    *,
    items: int,
    files: int,
    seed: int = 1,
    bad: int = 0,
    profile: str = "shop",
    output_format: OutputFormat = "DYNAMODB_JSON",
    on_progress: Progress | None = None,
) -> Path:
    """Write an export of `items` items in `files` data files below `folder`; return the export's own folder.

    With three files or more the last one is empty, as real exports have it. `bad` of the wanted items
    (customers, orders, lines) are replaced by broken ones, listed in ``folder/bad-items.jsonl``: one
    object a line with the data file's name, the number of the line in it from 1, the kind of fault, the
    reason, and the stage where a loader must notice: ``line`` (it is no object with an Item, in
    UTF-8), ``decode`` (an attribute is not what it must be) or ``database`` (PostgreSQL refuses the row).

    The export is named after all of these numbers, so another sample never passes for this one. The good
    items are the same whatever `files` and `bad` are. `profile` is one of `PROFILES`, whose table it is; bad
    items are planted in the shop only. The items are the same in each `output_format`. `on_progress` is called with the number of items written so far. Raises
    `UsageError` for numbers that make no sample.
    """
    export = named(items=items, files=files, seed=seed, bad=bad, profile=profile, output_format=output_format)
    mix = Mix(items, seed)
    faults = plant(mix, mix.items, bad, seed)
    root, listing = folder / "AWSDynamoDB" / export.id, folder / "bad-items.jsonl"
    clear(root)
    listing.unlink(missing_ok=True)
    (root / "data").mkdir()

    ranges = _ranges(items, files, seed)
    names = [export.file_name() for _ in ranges]
    lines = (
        Pictures(items, seed).lines() if profile == "pictures" else Shop(mix, seed, export.time).lines(faults)
    )
    if output_format == "ION":
        lines = _in_ion(lines, faults)
    entries, size = [], 0
    for name, positions in zip(names, ranges, strict=True):
        with DataFile(root / "data" / name) as file:
            for chunk in _chunks(lines, positions, on_progress):
                file.write(chunk)
        entries.append(export.file_entry(name, len(positions), file.md5))
        size += file.size
    if faults:
        listing.write_bytes(json_lines(listed(faults, names, ranges)))
    write_manifest(root, entries, export.summary(items, size))
    return root


def _in_ion(lines: Iterator[bytes], faults: Mapping[int, Fault]) -> Iterator[bytes]:
    for position, line in enumerate(lines):
        yield broken_line(faults[position], position) if position in faults else ion_line(line)


def named(
    *,
    items: int,
    files: int,
    seed: int,
    bad: int,
    profile: str,
    output_format: OutputFormat = "DYNAMODB_JSON",
) -> FullExport:
    """The name and the times of the sample of these numbers; raises `UsageError` for numbers that make none."""
    if items < 0 or files < 1:
        raise UsageError(
            f"A sample needs at least 0 items and 1 file, not {counted(items, 'item')} in {counted(files, 'file')}."
        )
    if profile not in PROFILES:
        raise UsageError(f"There is no sample of {profile}, only of {', '.join(PROFILES)}.")
    if bad and profile != "shop":
        raise UsageError(f"Bad items can be planted only in the sample of shop, not of {profile}.")
    size = f"{items} items in {files} files, {bad} bad"
    size += "" if output_format == "DYNAMODB_JSON" else " in Ion"
    return FullExport.first(seed, size if profile == "shop" else f"{profile}: {size}", profile, output_format)


def _ranges(items: int, files: int, seed: int) -> list[range]:
    """The positions of the items that each file gets: a bit uneven, and none in the last of three or more."""
    random = Random(f"files {seed}").random
    filled = files - 1 if files >= 3 else files
    ends = list(accumulate(0.92 + 0.16 * random() for _ in range(filled)))
    bounds = [0, *(round(items * end / ends[-1]) for end in ends)]
    return [range(*bound) for bound in pairwise(bounds)] + [range(items, items)] * (files - filled)


def _chunks(lines: Iterator[bytes], positions: range, on_progress: Progress | None) -> Iterator[bytes]:
    """The next lines, one a position, in pieces of a good size to compress."""
    for start in positions[::_CHUNK]:
        stop = min(start + _CHUNK, positions.stop)
        yield b"".join(islice(lines, stop - start))
        if on_progress is not None:
            on_progress(stop)
