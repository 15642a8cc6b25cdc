"""The stream of one export file: bytes → MD5 → gunzip → lines, in memory that does not grow with the file."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from isal import igzip, isal_zlib

from migration_pipeline import accelerator
from migration_pipeline.block import Block
from migration_pipeline.sources.export import ExportFile
from migration_pipeline.sources.storage import Storage, StorageError, explained
from migration_pipeline.units import counted

READ_BYTES = 1 << 18
"""Decompressed bytes a read, and of a block: some hundred items. Larger ones cost memory, smaller ones time, as each block costs some."""

MAX_LINE_BYTES = 8 << 20
"""An item is at most 400 KB; JSON escapes and base64 make at most a few times that of it. A longer line is no item."""

MAX_EXPANSION = 250
"""Decompressed bytes a compressed byte, beyond which a file is a gzip bomb.

DynamoDB JSON shrinks to a tenth or so, and items that are all alike to a hundredth; deflate's own limit is
1,032 (zlib's technical details). Memory is bounded without this; it is time that a bomb would take.
"""

MAX_EXPANSION_FLOOR = 64 << 20
"""Decompressed bytes that any file may have, however well it shrank."""

CORRUPT: Any = (igzip.BadGzipFile, isal_zlib.error, zlib.error)
"""What gunzip raises for bytes that are no gzip; a truncated stream is an EOFError."""


class _Counted(io.RawIOBase):
    """A raw stream that hashes and counts what is read from it."""

    def __init__(self, raw: BinaryIO, uri: str) -> None:
        self._raw = raw
        self._uri = uri
        self.md5 = hashlib.md5(usedforsecurity=False)
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explained(self._uri):
            data = self._raw.read(len(buffer))
        self.md5.update(data)
        self.bytes += len(data)
        buffer[: len(data)] = data
        return len(data)


def _newlines(data: bytes) -> int:
    return data.count(b"\n")


class FileStream:
    """One export file as an iterator of blocks of lines, and the proof, after the last, that it was all there.

    Errors are `StorageError` and name the file: a missing or unreadable object, corrupt or truncated
    gzip, a line too long to be an item, more bytes or lines than there can be.
    """

    def __init__(self, file: ExportFile, storage: Storage) -> None:
        self.file = file
        self._storage = storage
        self._counted: _Counted | None = None
        self.lines_read = 0

    @property
    def bytes_read(self) -> int:
        """Compressed bytes read so far."""
        return self._counted.bytes if self._counted else 0

    @property
    def md5(self) -> str:
        """base64(MD5) of the compressed bytes read so far."""
        digest = self._counted.md5.digest() if self._counted else hashlib.md5(usedforsecurity=False).digest()
        return base64.b64encode(digest).decode()

    def __iter__(self) -> Iterator[Sequence[bytes]]:
        """Yield the file's lines in blocks of about `READ_BYTES`."""
        with self._storage.open(self.file.uri) as raw:
            self._counted = _Counted(raw, self.file.uri)
            try:
                with igzip.open(self._counted, "rb") as unzipped:
                    yield from self._split(unzipped)
            except EOFError:
                raise self._error(
                    "the gzip stream ends in the middle; the file is truncated: copy it again"
                ) from None
            except CORRUPT as error:
                raise self._error(f"corrupt gzip ({error}); copy the file again") from None

    def _split(self, unzipped: BinaryIO) -> Iterator[Sequence[bytes]]:
        rest = b""
        room = self.file.size * MAX_EXPANSION + MAX_EXPANSION_FLOOR
        in_c = accelerator.extension(accelerator.LINES)
        newlines = in_c.newlines if in_c else _newlines
        while data := unzipped.read(READ_BYTES):
            room -= len(data)
            if room < 0:
                raise self._error(
                    f"its {counted(self.file.size, 'byte')} decompress to more than {MAX_EXPANSION} times as many: "
                    "it is not a DynamoDB export but a gzip bomb; copy the file again"
                )
            end = data.rfind(b"\n")
            lines = b"".join((rest, memoryview(data)[:end])) if end >= 0 else None
            block = Block(lines, newlines(lines) + 1) if lines is not None else None
            rest = data[end + 1 :] if end >= 0 else rest + data
            if len(rest) > MAX_LINE_BYTES:
                raise self._error(
                    f"line {self.lines_read + len(block or ()) + 1:,} is longer than {counted(MAX_LINE_BYTES, 'byte')}, so it is not a DynamoDB item; copy the file again"
                )
            if block is not None:
                self._count(len(block))
                yield block
        if rest:
            self._count(1)
            yield Block(rest)

    @property
    def _authority(self) -> str:
        """Who says how many items the file has, and its MD5."""
        return "plan" if self.file.counted else "manifest"

    def _count(self, lines: int) -> None:
        self.lines_read += lines
        if self.lines_read > self.file.items:
            raise self._error(
                f"it holds more items than the {self.file.items:,} that the {self._authority} says; copy the export "
                "again, or plan again if it was replaced"
            )

    def verify(self) -> None:
        """Compare what was read, to the end, with the manifest. Raises `StorageError` when it differs."""
        if self.md5 != self.file.md5:
            raise self._error(
                f"its MD5 is {self.md5}, but the {self._authority} says {self.file.md5}; copy the file again, "
                "or plan again if the export was replaced"
            )
        if self.lines_read != self.file.items:
            raise self._error(
                f"it holds {counted(self.lines_read, 'item')}, but the {self._authority} says {self.file.items:,}; "
                "copy the export again"
            )

    def _error(self, text: str) -> StorageError:
        return StorageError(f"{self.file.uri}: {text}")
