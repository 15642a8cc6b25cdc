"""An export's manifest: which files belong to it, how many items each holds, and their checksums.

The manifest is the only authority on what an export is; nothing is listed that it does not name.
Format: "DynamoDB table export output format" in the DynamoDB developer guide.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from isal import igzip, isal_zlib

from migration_pipeline.errors import UsageError
from migration_pipeline.sources.storage import Listed, Storage, StorageError, explained, is_s3, join, split_s3
from migration_pipeline.sources.windows import key_names
from migration_pipeline.units import counted, some_that

OutputFormat = Literal["DYNAMODB_JSON", "ION"]
"""How an export's lines are spelled, as a manifest says it."""

SUFFIXES = {"DYNAMODB_JSON": ".json.gz", "ION": ".ion.gz"}
"""How the names of data files end, by format."""


def stem(name: str) -> str:
    """A data file's name without its suffix, of which emulators leave the half out."""
    suffixes = (*SUFFIXES.values(), ".gz")
    return next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)


class ExportError(UsageError):
    """A location that is no export, or an export whose manifest is wrong."""


class ExportFile(msgspec.Struct, frozen=True):
    """One data file of an export, as the manifest promises it."""

    name: str
    """File name without folders, e.g. ``a4t3yd7vlm2zxoqfs5wkqvyyxq.json.gz``; of Ion, ``….ion.gz``."""
    uri: str
    items: int
    """Lines in the file."""
    md5: str
    """base64(MD5) of the compressed bytes."""
    size: int
    """Compressed bytes, as listed when the manifest was read."""
    counted: bool = False
    """Whether the numbers are none of a manifest's: there was none, so the file was read when it was planned."""


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
    """An export whose manifest has been checked: a full one, or a window."""

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
    output_format: OutputFormat = "DYNAMODB_JSON"
    """How its lines are spelled; `dialects.dialect_of` reads them."""
    doubt: str = ""
    """Why nothing vouches for its completeness; "" where its manifest does."""


Instant = Annotated[datetime, msgspec.Meta(tz=True)]

FULL, INCREMENTAL = "FULL_EXPORT", "INCREMENTAL_EXPORT"


class _Summary(msgspec.Struct, rename="camel"):
    export_arn: str
    table_arn: str
    manifest_files_s3_key: str = msgspec.field(name="manifestFilesS3Key")
    item_count: int
    output_format: str
    table_id: str = ""
    export_type: str = FULL
    """A full export's manifest does not have it."""
    export_time: str = ""
    export_from_time: Instant | None = None
    export_to_time: Instant | None = None
    output_view: View | None = None


class _File(msgspec.Struct, rename="camel"):
    item_count: int
    md5_checksum: str = msgspec.field(name="md5Checksum")
    data_file_s3_key: str = msgspec.field(name="dataFileS3Key")


Decoded = TypeVar("Decoded")


Warn = Callable[[str], None]

Listing = Callable[[str], dict[str, Listed]]
"""Lists a folder, as `Storage.listing` does."""


def read_export(location: str, storage: Storage, warn: Warn = lambda _: None) -> Export:
    """Read and check the manifest of the export at `location` (``s3://bucket/prefix/AWSDynamoDB/<id>`` or a folder).

    Raises `ExportError` when it is no export or its manifest is wrong, and `StorageError` when it
    cannot be read. `warn` hears of what could not be checked (an export copied without its ``.md5``).
    """
    return read_exports([location], storage, warn)[0]


def read_exports(
    locations: Sequence[str], storage: Storage, warn: Warn = lambda _: None, *, ignore_md5: bool = False
) -> list[Export]:
    """Read and check the manifests of several exports, as `read_export` does one.

    Windows of one table share a folder of data files, which may be large: it is listed once. With `ignore_md5` a manifest that
    does not match its ``.md5`` is read all the same, and the export's `doubt` says so.
    """
    listing = cache(storage.listing)
    return [_read(location, storage, _Check(storage, warn, ignore_md5), listing) for location in locations]


def _read(location: str, storage: Storage, check: _Check, listing: Listing) -> Export:
    uri, warn = uri_of(location), check.warn
    summary_uri = join(uri, MANIFEST)
    if not storage.exists(summary_uri):
        raise _not_an_export(uri, storage)
    summary = _decode(_Summary, check.read(summary_uri), summary_uri)
    _check_kind(summary, summary_uri)
    window = _window(summary, summary_uri) if summary.export_type == INCREMENTAL else None
    files = _files(summary, uri, storage, check, listing)
    if window is not None:
        window = msgspec.structs.replace(window, keys=_key_of(files, storage, warn))
    return Export(
        id=uri.rsplit("/", 1)[-1],
        uri=uri,
        table_arn=summary.table_arn,
        export_time=summary.export_time if window is None else utc(window.end),
        items=summary.item_count,
        files=files,
        table_id=summary.table_id,
        window=window,
        output_format=msgspec.convert(summary.output_format, OutputFormat),
        doubt="; ".join(check.doubts),
    )


def _files(
    summary: _Summary, uri: str, storage: Storage, check: _Check, listing: Listing
) -> tuple[ExportFile, ...]:
    """Read which files the export has, and find them."""
    files_uri = join(uri, "manifest-files.json")
    lines = check.read(files_uri).splitlines()
    listed = [
        _decode(_File, line, f"{files_uri}, line {n}") for n, line in enumerate(lines, 1) if line.strip()
    ]
    promised = sum(file.item_count for file in listed)
    if promised != summary.item_count:
        raise ExportError(
            f"{files_uri}: its files hold {counted(promised, 'item')}, but manifest-summary.json says "
            f"{summary.item_count:,}; the manifest is incomplete: copy the export again"
        )
    folders = [join(uri, "data")]
    if summary.export_type == INCREMENTAL:
        # All windows of a table have one folder, AWSDynamoDB/data. A copied window may have its own instead.
        folders.insert(0, join(uri.rsplit("/", 1)[0], "data"))
    return _resolve(listed, folders, files_uri, SUFFIXES[summary.output_format], storage, listing)


def utc(moment: datetime) -> str:
    """Write a time as manifests do: ``2024-04-13T12:00:00Z``."""
    return moment.astimezone(timezone.utc).isoformat().replace("+00:00", "Z")


def uri_of(location: str) -> str:
    """Return the URI of the export at a location, its folder or something in it; Hadoop's schemes count as S3's."""
    uri = re.sub(r"^s3[an]://", "s3://", location)
    uri = uri.rstrip("/") if is_s3(uri) else os.path.abspath(uri)
    return INSIDE.sub("", uri)


MANIFEST = "manifest-summary.json"

INSIDE = re.compile(r"/(?:manifest-(?:summary|files)\.(?:json|md5)|data|data/[^/]+\.(?:json|ion)\.gz)$")
"""What people name instead of an export: its manifest, its folder of files, or one of these."""


class _Check:
    """Reads the manifests of one export, and compares each with the .md5 beside it."""

    def __init__(self, storage: Storage, warn: Warn, ignore_md5: bool) -> None:
        self._storage = storage
        self.warn = warn
        self._ignore_md5 = ignore_md5
        self.doubts: list[str] = []
        """What was found and ignored."""

    def read(self, uri: str) -> bytes:
        """Read a manifest. Raises `ExportError` if its MD5 is another, unless that is to be ignored."""
        content = self._storage.read(uri)
        md5_uri = uri.removesuffix(".json") + ".md5"
        if not self._storage.exists(md5_uri):
            self.warn(f"{md5_uri} is missing: the manifest cannot be checked against it")
            return content
        expected = self._storage.read(md5_uri).decode("ascii", "replace").strip()
        actual = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        if actual == expected:
            return content
        name, md5_name = (each.rsplit("/", 1)[-1] for each in (uri, md5_uri))
        if not self._ignore_md5:
            raise ExportError(
                f"{uri}: its MD5 is {actual}, but {md5_name} says {expected}; it was changed "
                "or cut short: copy the manifest again, or, if it was changed on purpose, plan with --ignore-manifest-md5"
            )
        self.doubts.append(f"{name} does not match {md5_name}, which was ignored (--ignore-manifest-md5)")
        return content


def _decode(into: type[Decoded], content: bytes, where: str) -> Decoded:
    try:
        return msgspec.json.decode(content, type=into)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ExportError(f"{where}: not a valid manifest of a DynamoDB export: {error}") from None


def _check_kind(summary: _Summary, where: str) -> None:
    if summary.output_format not in SUFFIXES:
        raise ExportError(
            f"{where}: the export's format is {summary.output_format}; only {' and '.join(SUFFIXES)} are read: "
            "export the table again with --export-format DYNAMODB_JSON"
        )
    if summary.export_type not in (FULL, INCREMENTAL):
        raise ExportError(
            f"{where}: its exportType is {summary.export_type!r}; only {FULL} and {INCREMENTAL} are read: "
            "export the table again as one of these"
        )
    if summary.export_type == INCREMENTAL and summary.output_format != "DYNAMODB_JSON":
        raise ExportError(
            f"{where}: an incremental export in {summary.output_format}; incremental exports are read in DYNAMODB_JSON only: "
            "export the window again with --export-format DYNAMODB_JSON"
        )


def _window(summary: _Summary, where: str) -> Window:
    """Read what time an incremental export covers."""
    start, end, view = summary.export_from_time, summary.export_to_time, summary.output_view
    if start is None or end is None or view is None:
        missing = "exportFromTime" if start is None else "exportToTime" if end is None else "outputView"
        raise ExportError(f"{where}: an incremental export without {missing}; copy the manifest again")
    if start >= end:
        raise ExportError(
            f"{where}: the window begins at {utc(start)}, which is not before its end at {utc(end)}; "
            "copy the manifest again"
        )
    return Window(start.astimezone(timezone.utc), end.astimezone(timezone.utc), view)


KEY_LINES = 100
"""Records of a file that are looked at for the table's key: the first one names it, unless it is damaged."""

KEY_FILES = 5
"""Files that are looked at for it."""

KEY_BYTES = 8 << 20
"""Decompressed bytes of a line, beyond which it is no record."""


GUNZIP: Any = igzip.open  # typed in part only, which a profile's own check of its types would meet
UNREADABLE: Any = (EOFError, igzip.BadGzipFile, isal_zlib.error, zlib.error)
"""What gunzip raises for bytes that are no gzip, or not all of it."""


def _key_of(files: Sequence[ExportFile], storage: Storage, warn: Warn) -> tuple[str, ...]:
    """Return the names of the attributes of the table's primary key, sorted: those in Keys of the first record that has any."""
    filled = [file for file in files if file.items][:KEY_FILES]
    for file in filled:
        if names := _key_in(file, storage):
            return names
    if filled:
        warn(f"{filled[0].uri}: no record at the beginning of the window has Keys; copy the export again")
    return ()


def _key_in(file: ExportFile, storage: Storage) -> tuple[str, ...]:
    """Look for the key in one file. Its load says what is wrong if it cannot be unzipped. Raises `StorageError`."""
    with explained(file.uri), storage.open(file.uri) as raw:
        try:
            with GUNZIP(raw, "rb") as unzipped:
                for _ in range(KEY_LINES):
                    if names := key_names(unzipped.readline(KEY_BYTES)):
                        return names
        except UNREADABLE:
            pass
    return ()


def _resolve(
    listed: list[_File], folders: Sequence[str], where: str, suffix: str, storage: Storage, listing: Listing
) -> tuple[ExportFile, ...]:
    """Find each data file in the first of the export's `folders` that has it, and nowhere else.

    A copied export keeps the keys of its first place, so a key of another place stands for the file of
    the same name in our own folder.
    """
    files, archived = [], []
    for line, file in enumerate(listed, 1):
        name = _name_of(file.data_file_s3_key, f"{where}, line {line}", suffix)
        folder = next((each for each in folders if name in listing(each)), None)
        if folder is None:
            raise _missing(file.data_file_s3_key, name, folders)
        there = listing(folder)[name]
        files.append(ExportFile(name, join(folder, name), file.item_count, file.md5_checksum, there.size))
        if there.archived and not storage.is_restored(files[-1].uri):
            archived.append(files[-1])
    twice = [name for name, times in Counter(file.name for file in files).items() if times > 1]
    if twice:
        raise ExportError(f"{where}: it names {twice[0]} twice; copy the manifest again")
    if archived:
        folder = archived[0].uri.rsplit("/", 1)[0]
        raise StorageError(
            f"{folder}: {some_that(len(archived), len(files), 'file', 'is', 'are')} archived (Glacier), {archived[0].name} among them; "
            "restore them first (aws s3api restore-object), then plan again"
        )
    return tuple(sorted(files, key=lambda f: f.name))


def _name_of(key: str, where: str, suffix: str) -> str:
    """Return the file name in a key. Raises `ExportError` for a key that is none of a data file in the export's format."""
    name = key.rsplit("/", 1)[-1]
    # A prefix may begin with a slash; another path that does is none of an export's.
    rooted = key.startswith("/") and not re.search(r"/AWSDynamoDB/(?:[^/]+/)?data/[^/]+$", key)
    if ".." in key.split("/") or rooted or not re.fullmatch(r"[\w.\-]+", name):
        raise ExportError(f"{where}: refused: its key points outside the export: {key!r}")
    if not name.endswith(suffix):
        format_ = "DynamoDB JSON" if suffix == SUFFIXES["DYNAMODB_JSON"] else "Ion"
        raise ExportError(
            f"{where}: {name} is not a {suffix} file, as all files of an export in {format_} are"
        )
    return name


def _missing(key: str, name: str, folders: Sequence[str]) -> StorageError:
    places = {split_s3(folder)[1] + "/" + name for folder in folders if is_s3(folder)}
    moved = places and key not in places
    other = f" (nor in {folders[1]})" if len(folders) > 1 else ""
    hint = f" (the manifest's key is {key}; a copied export needs its files below data/)" if moved else ""
    return StorageError(
        f"{join(folders[0], name)}: no such file{other}, but the manifest names it{hint}; copy it there"
    )


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
    if not near and _is_bare(uri, storage):
        hint = "; if an emulator or a dump wrote it so, plan it with --without-manifest"
    return ExportError(f"{uri}: not a DynamoDB export: it has no manifest-summary.json{hint}")


def _is_bare(uri: str, storage: Storage) -> bool:
    """Whether there are files that may be data, and only no manifest."""
    return any(
        name.endswith(".gz") for folder in (join(uri, "data"), uri) for name in storage.listing(folder)
    )
