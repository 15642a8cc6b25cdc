"""Exports without a manifest: what emulators write (moto, LocalStack), and dumps of a table as gzipped lines.

Nothing says what such an export should hold. So its files are those in the folder, and each is read once to count its items and
take its MD5: a load is held to these numbers. That the table had no other items, nobody vouches for.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping

import msgspec

from migration_pipeline.sources.export import MANIFEST, Export, ExportError, ExportFile, uri_of
from migration_pipeline.sources.storage import Listed, Storage, StorageError, join
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.units import some_that

DOUBT = "it has no manifest: nothing says what it should hold; its files were counted, and their MD5 taken, when it was planned"

ANY_NUMBER = sys.maxsize
"""Items that a file may have while they are counted."""

Tell = Callable[[str], None]


def read_bare_export(location: str, storage: Storage, tell: Tell = lambda _: None) -> Export:
    """Read all files of the export at `location`, a folder of ``….gz``, or one with such a folder ``data``.

    `tell` hears of each file before it is read, and of what is left out. Raises `ExportError` when there are no such files, they
    hold no items, or there is a manifest after all; `StorageError` when something cannot be read.
    """
    uri = uri_of(location)
    if storage.exists(join(uri, MANIFEST)):
        raise ExportError(
            f"{uri}: it has a manifest, which says what it holds: plan it without --without-manifest"
        )
    folder, names, there = _found(uri, storage)
    files = []
    for number, name in enumerate(names, 1):
        tell(f"counting the items of {name} ({number:,} of {len(names):,})")
        files.append(_counted(join(folder, name), name, there[name], storage))
    return Export(
        id=uri.rsplit("/", 1)[-1],
        uri=uri,
        table_arn="",
        export_time="",
        items=sum(file.items for file in files),
        files=tuple(files),
        doubt=DOUBT,
    )


def _found(uri: str, storage: Storage) -> tuple[str, list[str], Mapping[str, Listed]]:
    """Find the folder of the data files, and their names."""
    for folder in (join(uri, "data"), uri):
        there = storage.listing(folder)
        names = sorted(name for name in there if re.fullmatch(r"\w[\w.\-]*\.gz", name))
        if names:
            _check_archived(folder, names, there)
            return folder, names, there
    other = ", ".join(sorted(there)[:3])
    raise ExportError(
        f"{uri}: no file here, nor in data, is named ….gz{f' (but {other})' if other else ''}; give a folder of gzipped lines, each "
        'an item as DynamoDB exports it: {"Item": {…}}'
    )


def _check_archived(folder: str, names: list[str], there: Mapping[str, Listed]) -> None:
    archived = [name for name in names if there[name].archived]
    if archived:
        raise StorageError(
            f"{folder}: {some_that(len(archived), len(names), 'file', 'is', 'are')} archived (Glacier), {archived[0]} among them; restore them "
            "and copy them to another folder, then plan that"
        )


def _counted(uri: str, name: str, listed: Listed, storage: Storage) -> ExportFile:
    """Read a file to its end. Raises `StorageError`, and `ExportError` if its first line is no item."""
    stream = FileStream(ExportFile(name, uri, ANY_NUMBER, "", listed.size), storage)
    first = True
    for lines in stream:
        if first:
            _check_item(lines[0], uri)
        first = False
    return ExportFile(name, uri, stream.lines_read, stream.md5, stream.bytes_read, counted=True)


class _Line(msgspec.Struct):
    Item: dict[str, dict[str, msgspec.Raw]]


def _check_item(line: bytes, uri: str) -> None:
    try:
        msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        what = (
            "a record of an incremental export, whose manifest says which time it covers: give the export with its manifest"
            if b'"Keys"' in line[:4096]
            else 'no item as DynamoDB exports it: {"Item": {"PK": {"S": "…"}, …}}'
        )
        raise ExportError(f"{uri}: line 1 is {what}") from None
