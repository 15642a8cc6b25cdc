"""A file's stream: the same lines in any cut, checked against the manifest, corrupt ones refused by name."""

from __future__ import annotations

import base64
import gzip
import hashlib
from pathlib import Path

import pytest

from migration_pipeline.errors import MigrationError
from migration_pipeline.sources import stream
from migration_pipeline.sources.export import ExportFile
from migration_pipeline.sources.storage import Storage, StorageError
from migration_pipeline.sources.stream import FileStream


def a_file(path: Path, content: bytes, items: int, md5: str | None = None) -> FileStream:
    path.write_bytes(content)
    md5 = md5 or base64.b64encode(hashlib.md5(content).digest()).decode()
    return FileStream(ExportFile("x.json.gz", str(path), items, md5, len(content)), Storage())


def lines_of(source: FileStream) -> list[bytes]:
    return [line for lines in source for line in lines]


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize("last_newline", [b"", b"\n"])
def test_lines_do_not_depend_on_how_the_stream_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int, last_newline: bytes
) -> None:
    monkeypatch.setattr(stream, "READ_BYTES", read_bytes)
    source = a_file(tmp_path / "a file", gzip.compress(b"one\n\nthree" + last_newline), 3)
    assert lines_of(source) == [b"one", b"", b"three"]
    source.verify()


def test_several_gzip_members_are_one_stream(tmp_path: Path) -> None:
    source = a_file(tmp_path / "f", gzip.compress(b"one\ntw") + gzip.compress(b"") + gzip.compress(b"o\n"), 2)
    assert lines_of(source) == [b"one", b"two"]
    source.verify()


def test_an_empty_file_is_sound(tmp_path: Path) -> None:
    source = a_file(tmp_path / "f", gzip.compress(b""), 0)
    assert lines_of(source) == []
    source.verify()
    assert source.bytes_read == 20


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    source = a_file(tmp_path / "f", gzip.compress(b"one\n" * 1000)[:-9], 1000)
    with pytest.raises(StorageError, match=r"/f: the gzip stream ends in the middle; the file is truncated"):
        lines_of(source)


@pytest.mark.parametrize(
    "content",
    [b"no gzip at all", gzip.compress(b"one\n")[:-8] + b"\0" * 8, gzip.compress(b"a") + b"junk behind it"],
    ids=[
        "no gzip",
        "wrong checksum",
        "junk behind",
    ],  # gzip has the time in it, and workers of xdist compare ids
)
def test_a_corrupt_file_is_named(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(StorageError, match=r"/f: corrupt gzip"):
        lines_of(a_file(tmp_path / "f", content, 1))


def test_another_md5_than_the_manifests_is_refused(tmp_path: Path) -> None:
    source = a_file(tmp_path / "f", gzip.compress(b"one\n"), 1, md5="AAAAAAAAAAAAAAAAAAAAAA==")
    lines_of(source)
    with pytest.raises(StorageError, match=r"its MD5 is .*, but the manifest says AAAA"):
        source.verify()


def test_another_count_than_the_manifests_is_refused(tmp_path: Path) -> None:
    source = a_file(tmp_path / "f", gzip.compress(b"one\n"), 2)
    lines_of(source)
    with pytest.raises(StorageError, match="it holds 1 item, but the manifest says 2"):
        source.verify()


def test_a_stream_that_was_not_read_does_not_verify(tmp_path: Path) -> None:
    with pytest.raises(MigrationError):
        a_file(tmp_path / "f", gzip.compress(b"one\n"), 1).verify()


def test_a_line_too_long_to_be_an_item_stops_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(stream, "READ_BYTES", 300)
    source = a_file(tmp_path / "f", gzip.compress(b"one\n" + b"x" * 5000 + b"\n"), 2)
    with pytest.raises(StorageError, match="line 2 is longer than 1,000 bytes"):
        lines_of(source)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = ExportFile("x.json.gz", str(tmp_path / "gone"), 1, "", 1)
    with pytest.raises(StorageError, match="gone: no such file or folder"):
        lines_of(FileStream(file, Storage()))
