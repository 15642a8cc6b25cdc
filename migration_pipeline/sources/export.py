"""An export's manifest: which files belong to it, how many items each holds, and their checksums.

The manifest is the only authority on what an export is; nothing is listed that it does not name.
Format: "DynamoDB table export output format" in the DynamoDB developer guide.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Literal, TypeVar

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.sources.storage import Storage, StorageError, is_s3, join, split_s3


class ExportError(UsageError):
    """A location that is no export, or an export whose manifest is wrong."""


class ExportFile(msgspec.Struct, frozen=True):
    """One data file of an export, as the manifest promises it."""

    name: str
    """File name without folders, e.g. ``a4t3yd7vlm2zxoqfs5wkqvyyxq.json.gz``."""
    uri: str
    items: int
    """Lines in the file."""
    md5: str
    """base64(MD5) of the compressed bytes."""
    size: int
    """Compressed bytes, as listed when the manifest was read."""


View = Literal["NEW_AND_OLD_IMAGES", "NEW_IMAGE"]


class Window(msgspec.Struct, frozen=True):
    """What an incremental export covers: the items that were written in this time, each with its last state in it."""

    start: datetime
    """Inclusive, in UTC."""
    end: datetime
    """Exclusive."""
    view: View
    """Whether a record has the item's state before the window, too."""
    keys: tuple[str, ...] = ()
    """Names of the attributes of the table's primary key, sorted, as the window's first record has them; none if it has no record."""


class Export(msgspec.Struct, frozen=True):
    """An export in DynamoDB JSON whose manifest has been checked: a full one, or a window."""

    id: str
    uri: str
    table_arn: str
    export_time: str
    """Of a full export; of a window, its end."""
    items: int
    files: tuple[ExportFile, ...]
    table_id: str = ""
    window: Window | None = None
    """None for a full export."""


class _Summary(msgspec.Struct, rename="camel"):
    export_arn: str
    table_arn: str
    manifest_files_s3_key: str = msgspec.field(name="manifestFilesS3Key")
    item_count: int
    output_format: str
    export_type: str = "FULL_EXPORT"
    export_time: str = ""


class _File(msgspec.Struct, rename="camel"):
    item_count: int
    md5_checksum: str = msgspec.field(name="md5Checksum")
    data_file_s3_key: str = msgspec.field(name="dataFileS3Key")


Decoded = TypeVar("Decoded")


def read_export(location: str, storage: Storage, warn: Callable[[str], None] = lambda _: None) -> Export:
    """Read and check the manifest of the export at `location` (``s3://bucket/prefix/AWSDynamoDB/<id>`` or a folder).

    Raises `ExportError` when it is no export or its manifest is wrong, and `StorageError` when it
    cannot be read. `warn` hears of what could not be checked (an export copied without its ``.md5``).
    """
    uri = _uri_of(location)
    summary_uri = join(uri, "manifest-summary.json")
    if not storage.exists(summary_uri):
        raise _not_an_export(uri, storage)
    summary = _decode(_Summary, _checked(storage, summary_uri, warn), summary_uri)
    _check_kind(summary, summary_uri)
    files_uri = join(uri, "manifest-files.json")
    lines = _checked(storage, files_uri, warn).splitlines()
    listed = [
        _decode(_File, line, f"{files_uri}, line {n}") for n, line in enumerate(lines, 1) if line.strip()
    ]
    promised = sum(file.item_count for file in listed)
    if promised != summary.item_count:
        raise ExportError(
            f"{files_uri}: its files hold {promised:,} items, but manifest-summary.json says "
            f"{summary.item_count:,}; the manifest is incomplete: copy the export again"
        )
    return Export(
        id=uri.rsplit("/", 1)[-1],
        uri=uri,
        table_arn=summary.table_arn,
        export_time=summary.export_time,
        items=summary.item_count,
        files=_resolve(listed, uri, files_uri, storage),
    )


def _uri_of(location: str) -> str:
    """Return the URI of the export at a location, its folder or something in it; Hadoop's schemes count as S3's."""
    uri = re.sub(r"^s3[an]://", "s3://", location)
    uri = uri.rstrip("/") if is_s3(uri) else os.path.abspath(uri)
    return INSIDE.sub("", uri)


INSIDE = re.compile(r"/(?:manifest-(?:summary|files)\.(?:json|md5)|data|data/[^/]+\.json\.gz)$")
"""What people name instead of an export: its manifest, its folder of files, or one of these."""


def _checked(storage: Storage, uri: str, warn: Callable[[str], None]) -> bytes:
    """Read a manifest and compare it with the .md5 beside it."""
    content = storage.read(uri)
    md5_uri = uri.removesuffix(".json") + ".md5"
    if not storage.exists(md5_uri):
        warn(f"{md5_uri} is missing: the manifest cannot be checked against it")
        return content
    expected = storage.read(md5_uri).decode("ascii", "replace").strip()
    actual = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
    if actual != expected:
        raise ExportError(
            f"{uri}: its MD5 is {actual}, but {md5_uri.rsplit('/', 1)[-1]} says {expected}; it was changed "
            "or cut short: copy the manifest again"
        )
    return content


def _decode(into: type[Decoded], content: bytes, where: str) -> Decoded:
    try:
        return msgspec.json.decode(content, type=into)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportError(f"{where}: not a valid manifest of a DynamoDB export: {error}") from None


def _check_kind(summary: _Summary, where: str) -> None:
    if summary.output_format != "DYNAMODB_JSON":
        raise ExportError(
            f"{where}: the export's format is {summary.output_format}; only DYNAMODB_JSON is read: "
            "export the table again with --export-format DYNAMODB_JSON"
        )
    if summary.export_type != "FULL_EXPORT":
        raise ExportError(
            f"{where}: this is an {summary.export_type}; only full exports are read: "
            "export the table again with --export-type FULL_EXPORT"
        )


def _resolve(listed: list[_File], uri: str, where: str, storage: Storage) -> tuple[ExportFile, ...]:
    """Find each data file below the export, and nowhere else.

    A copied export keeps the keys of its first place, so a key of another place stands for the file of
    the same name in our own ``data`` folder.
    """
    data = join(uri, "data")
    there = storage.listing(data)
    own_prefix = split_s3(data)[1] + "/" if is_s3(uri) else None
    files = []
    for line, file in enumerate(listed, 1):
        key = file.data_file_s3_key
        name = key.rsplit("/", 1)[-1]
        # A prefix may begin with a slash; another path that does is none of an export's.
        rooted = key.startswith("/") and not re.search(r"/AWSDynamoDB/[^/]+/data/[^/]+$", key)
        if ".." in key.split("/") or rooted or not re.fullmatch(r"[\w.\-]+", name):
            raise ExportError(f"{where}, line {line}: refused: its key points outside the export: {key!r}")
        if not name.endswith(".json.gz"):
            raise ExportError(
                f"{where}, line {line}: {name} is not a .json.gz file, as all files of a DynamoDB JSON export are"
            )
        if name not in there:
            moved = own_prefix is not None and not key.startswith(own_prefix)
            hint = (
                f" (the manifest's key is {key}; a copied export needs its files below data/)"
                if moved
                else ""
            )
            raise StorageError(
                f"{join(data, name)}: no such file, but the manifest names it{hint}; copy it there"
            )
        files.append(ExportFile(name, join(data, name), file.item_count, file.md5_checksum, there[name].size))
    twice = [name for name, times in Counter(file.name for file in files).items() if times > 1]
    if twice:
        raise ExportError(f"{where}: it names {twice[0]} twice; copy the manifest again")
    archived = [f for f in files if there[f.name].archived and not storage.is_restored(f.uri)]
    if archived:
        raise StorageError(
            f"{data}: {len(archived):,} of {len(files):,} files are archived (Glacier), {archived[0].name} among them; "
            "restore them first (aws s3api restore-object), then plan again"
        )
    return tuple(sorted(files, key=lambda f: f.name))


def _not_an_export(uri: str, storage: Storage) -> Exception:
    """Explain what is at `uri` instead of an export, and which exports are near."""
    near = [
        join(place, name)
        for place in (uri, join(uri, "AWSDynamoDB"))
        for name in storage.folders(place)
        if storage.exists(join(place, name, "manifest-summary.json"))
    ]
    hint = f"; did you mean {near[0]}?" if near else "; give …/AWSDynamoDB/<export id>"
    if not is_s3(uri) and not os.path.isdir(uri):
        return StorageError(f"{uri}: no such folder{hint if near else ''}")
    return ExportError(f"{uri}: not a DynamoDB export: it has no manifest-summary.json{hint}")
