"""The layout of made-up exports: names, times, manifests and data files, as DynamoDB writes them.

A full export has its data files in its own folder; all windows (incremental exports) share one folder beside theirs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from types import TracebackType
from typing import TypeVar

from isal import isal_zlib

from migration_pipeline.sources.export import SUFFIXES, OutputFormat

_COMPRESSION = 2  # of ISA-L's levels 0 to 3
_GZIP_WINDOW = 31  # zlib's wbits for gzip; the header that comes with it holds no time
_CHUNK = 1024  # lines that wait for the compressor
EPOCH = datetime(1970, 1, 1)


_File = TypeVar("_File", bound="DataFile")


class FullExport:
    """The name, the times and the manifest of a full export."""

    def __init__(
        self,
        table: str,
        table_id: uuid.UUID,
        time: datetime,
        name: str,
        random: Random,
        output_format: OutputFormat = "DYNAMODB_JSON",
    ) -> None:
        """Of a table at a time; `name` tells it from other exports of that time, `random` names its files."""
        self.table, self.table_id, self.time, self.output_format = table, table_id, time, output_format
        self._random = random
        self.id = (
            f"{round((time - EPOCH) / timedelta(milliseconds=1)):014d}-{Random(name).getrandbits(32):08x}"
        )

    @classmethod
    def first(
        cls, seed: int, size: str, table: str, output_format: OutputFormat = "DYNAMODB_JSON"
    ) -> FullExport:
        """The export that a sample begins with, all of it from its seed and its `size` in words."""
        random = Random(f"export {seed}")
        milliseconds = 1_700_000_000_000 + random.getrandbits(34)  # 2023-11-14 and up to 199 days on
        table_id = uuid.UUID(int=random.getrandbits(128), version=4)
        time = EPOCH + timedelta(milliseconds=milliseconds)
        return cls(table, table_id, time, f"{seed}: {size}", random, output_format)

    def later(self, time: datetime, name: str) -> FullExport:
        """Another full export of the same table."""
        return FullExport(self.table, self.table_id, time, name, Random(f"export {name}"))

    @property
    def data(self) -> str:
        """The folder of the data files, from the folder that holds AWSDynamoDB."""
        return f"AWSDynamoDB/{self.id}/data"

    def file_name(self) -> str:
        """The next data file's name."""
        return (
            "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz234567", k=26))
            + SUFFIXES[self.output_format]
        )

    def file_entry(self, name: str, items: int, md5: bytes) -> dict[str, object]:
        """The line of a data file in manifest-files.json, from the MD5 of its compressed bytes."""
        return {
            "itemCount": items,
            "md5Checksum": b64encode(md5).decode(),
            "etag": f"{_md5(md5).hex()}-1",
            "dataFileS3Key": f"{self.data}/{name}",
        }

    def summary(self, items: int, size: int) -> dict[str, object]:
        """The object in manifest-summary.json; `size` is in bytes before compression."""
        return {
            **self._head("2020-06-30"),
            "exportTime": iso(self.time),
            **self._tail(items, size),
        }

    def _head(self, version: str) -> dict[str, object]:
        table = f"arn:aws:dynamodb:eu-central-1:123456789012:table/{self.table}"
        return {
            "version": version,
            "exportArn": f"{table}/export/{self.id}",
            "startTime": iso(self.time),
            "endTime": iso(self.time + timedelta(minutes=7)),
            "tableArn": table,
            "tableId": str(self.table_id),
        }

    def _tail(self, items: int, size: int) -> dict[str, object]:
        return {
            "s3Bucket": "example-exports",
            "s3Prefix": None,
            "s3SseAlgorithm": "AES256",
            "s3SseKmsKeyId": None,
            "manifestFilesS3Key": f"AWSDynamoDB/{self.id}/manifest-files.json",
            "billedSizeBytes": size,
            "itemCount": items,
            "outputFormat": self.output_format,
        }


class WindowExport(FullExport):
    """The name, the times and the manifest of an incremental export from `start` (inclusive) to `end` (exclusive)."""

    def __init__(self, base: FullExport, start: datetime, end: datetime, view: str, name: str) -> None:
        asked = end + timedelta(seconds=90)  # DynamoDB takes a window only once it is over
        super().__init__(base.table, base.table_id, asked, name, Random(f"window {name}"))
        self.start, self.end, self.view = start, end, view

    @property
    def data(self) -> str:
        """The folder that all windows share."""
        return "AWSDynamoDB/data"

    def summary(self, items: int, size: int) -> dict[str, object]:
        """The object in manifest-summary.json; `size` is in bytes before compression."""
        return {
            **self._head("2023-08-01"),
            "exportFromTime": iso(self.start),
            "exportToTime": iso(self.end),
            **self._tail(items, size),
            "outputView": self.view,
            "exportType": "INCREMENTAL_EXPORT",
        }


class DataFile:
    """A gzip file that is written piece by piece; afterwards the facts that a manifest tells of it."""

    def __init__(self, path: Path) -> None:
        self._out = path.open("wb")
        self._compressor = isal_zlib.compressobj(_COMPRESSION, isal_zlib.DEFLATED, _GZIP_WINDOW)
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size = 0
        """Bytes before compression."""

    def __enter__(self: _File) -> _File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the end, unless something failed: then the file has none, as after a crash."""
        if kind is None:
            self._put(self._compressor.flush())
        self._out.close()

    def write(self, chunk: bytes) -> None:
        """Write some lines."""
        self.size += len(chunk)
        self._put(self._compressor.compress(chunk))

    def _put(self, packed: bytes) -> None:
        self._md5.update(packed)
        self._out.write(packed)

    @property
    def md5(self) -> bytes:
        """Of the compressed bytes."""
        return self._md5.digest()


class LineFile(DataFile):
    """A data file that is written line by line, and counts them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = path.name
        self.items = 0
        """Lines so far."""
        self._lines: list[bytes] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what waits, too."""
        if kind is None:
            self._flush()
        super().__exit__(kind, error, trace)

    def add(self, line: bytes) -> None:
        """Write a line."""
        self.items += 1
        self._lines.append(line)
        if len(self._lines) >= _CHUNK:
            self._flush()

    def copy(self, lines: Iterator[bytes], number: int) -> None:
        """Write the next `number` lines of others."""
        self.items += number
        while number > 0:
            self._lines += islice(lines, min(number, _CHUNK))
            number -= _CHUNK
            if len(self._lines) >= _CHUNK:
                self._flush()

    def _flush(self) -> None:
        self.write(b"".join(self._lines))
        self._lines.clear()


def iso(time: datetime, timespec: str = "milliseconds") -> str:
    """A time as DynamoDB spells it."""
    return time.isoformat(timespec=timespec) + "Z"


def json_lines(objects: Iterable[dict[str, object]]) -> bytes:
    """JSON Lines, each without spaces."""
    return "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in objects).encode()


def clear(root: Path) -> None:
    """Make an empty export folder; the summary goes first, so that what is left never passes for complete."""
    (root / "manifest-summary.json").unlink(missing_ok=True)
    if root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True)
    (root / "_started").touch()


def write_manifests(root: Path, export: FullExport, files: Sequence[LineFile]) -> int:
    """Write both manifests of files that are complete; return the number of their lines."""
    items = sum(file.items for file in files)
    entries = [export.file_entry(file.name, file.items, file.md5) for file in files]
    write_manifest(root, entries, export.summary(items, sum(file.size for file in files)))
    return items


def write_manifest(root: Path, entries: Iterable[dict[str, object]], summary: dict[str, object]) -> None:
    """Write both manifests, each with its MD5.

    A reader takes an export with a summary for complete, so the summary comes last.
    """
    _write(root, "manifest-files", json_lines(entries))
    _write(root, "manifest-summary", json_lines([summary]).rstrip())


def _write(root: Path, name: str, content: bytes) -> None:
    (root / f"{name}.md5").write_bytes(b64encode(_md5(content)))
    (root / f"{name}.json").write_bytes(content)


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()
