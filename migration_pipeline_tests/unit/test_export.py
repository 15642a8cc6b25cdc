"""The manifest is checked before anything is believed; every complaint names the place and the way out."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from migration_pipeline.sources.export import ExportError, read_export
from migration_pipeline.sources.storage import Storage, StorageError


@pytest.fixture
def export(shop_export: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    copy = tmp_path / "AWSDynamoDB" / shop_export.name
    shutil.copytree(shop_export, copy)
    return copy


def rewrite(path: Path, content: bytes) -> None:
    """Write a manifest with the .md5 that belongs to it."""
    path.write_bytes(content)
    digest = base64.b64encode(hashlib.md5(content).digest())
    path.with_suffix(".md5").write_bytes(digest)


def change_summary(export: Path, **changes: Any) -> None:
    path = export / "manifest-summary.json"
    rewrite(path, json.dumps(json.loads(path.read_text()) | changes).encode())


def change_first_file(export: Path, **changes: Any) -> None:
    path = export / "manifest-files.json"
    first, *rest = path.read_text().splitlines()
    rewrite(path, "\n".join([json.dumps(json.loads(first) | changes), *rest]).encode())


def read(export: Path) -> Any:
    return read_export(str(export), Storage())


def test_a_sound_export_is_read_as_its_manifest_says(export: Path) -> None:
    found = read(export)
    lines = [json.loads(line) for line in (export / "manifest-files.json").read_text().splitlines()]
    assert found.id == export.name
    assert found.items == 6_000 == sum(file.items for file in found.files)
    assert [f.name for f in found.files] == sorted(f.name for f in found.files)
    assert {(f.name, f.items, f.md5) for f in found.files} == {
        (line["dataFileS3Key"].rsplit("/")[-1], line["itemCount"], line["md5Checksum"]) for line in lines
    }
    assert all(f.size == Path(f.uri).stat().st_size for f in found.files)


@pytest.mark.parametrize("manifest", ["manifest-summary", "manifest-files"])
def test_a_changed_manifest_is_refused(export: Path, manifest: str) -> None:
    path = export / f"{manifest}.json"
    path.write_bytes(
        path.read_bytes().replace(b"dynamodb", b"dynamodb ", 1).replace(b"itemCount", b"itemCount ", 1)
    )
    with pytest.raises(ExportError, match=rf"{manifest}.json: its MD5 is .* but {manifest}.md5 says"):
        read(export)


def test_a_missing_md5_is_said_and_passed_over(export: Path) -> None:
    (export / "manifest-files.md5").unlink()
    warnings: list[str] = []
    assert read_export(str(export), Storage(), warnings.append).items == 6_000
    assert len(warnings) == 1
    assert "manifest-files.md5 is missing" in warnings[0]


def test_a_manifest_that_counts_wrong_is_refused(export: Path) -> None:
    change_summary(export, itemCount=6_001)
    with pytest.raises(
        ExportError, match=r"manifest-files.json: its files hold 6,000 items, but .* says 6,001"
    ):
        read(export)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputFormat": "ION"}, "format is ION; only DYNAMODB_JSON"),
        ({"exportType": "INCREMENTAL_EXPORT"}, "INCREMENTAL_EXPORT; only full exports"),
        ({"itemCount": "many"}, "not a valid manifest of a DynamoDB export"),
    ],
)
def test_an_export_of_another_kind_is_refused(export: Path, changes: dict[str, Any], message: str) -> None:
    change_summary(export, **changes)
    with pytest.raises(ExportError, match=message):
        read(export)


@pytest.mark.parametrize(
    "key", ["../../etc/x.json.gz", "/etc/x.json.gz", "AWSDynamoDB/../data/x.json.gz", "a/b c.json.gz", ""]
)
def test_a_key_that_leads_out_of_the_export_is_refused(export: Path, key: str) -> None:
    change_first_file(export, dataFileS3Key=key)
    with pytest.raises(ExportError, match=r"manifest-files.json, line 1: refused"):
        read(export)


def test_a_file_of_another_format_is_refused(export: Path) -> None:
    change_first_file(export, dataFileS3Key="AWSDynamoDB/x/data/a.ion.gz")
    with pytest.raises(ExportError, match=r"a.ion.gz is not a .json.gz file"):
        read(export)


def test_a_file_that_is_named_twice_is_refused(export: Path) -> None:
    path = export / "manifest-files.json"
    lines = path.read_text().splitlines()
    doubled = [*lines, lines[0]]
    rewrite(path, "\n".join(doubled).encode())
    change_summary(export, itemCount=sum(json.loads(line)["itemCount"] for line in doubled))
    with pytest.raises(ExportError, match="twice"):
        read(export)


def test_a_copied_export_keeps_its_old_keys(export: Path) -> None:
    """Keys of another bucket and prefix stand for the files of the same name beside the manifest."""
    path = export / "manifest-files.json"
    rewrite(path, path.read_bytes().replace(b'"AWSDynamoDB/', b'"old/prefix/AWSDynamoDB/'))
    assert read(export).items == 6_000


def test_a_missing_data_file_is_named(export: Path) -> None:
    victim = next(iter((export / "data").iterdir()))
    victim.unlink()
    with pytest.raises(StorageError, match=rf"{victim.name}: no such file, but the manifest names it"):
        read(export)


def test_a_folder_that_is_no_export_says_where_one_is(export: Path, tmp_path: Path) -> None:
    for near in (tmp_path, tmp_path / "AWSDynamoDB"):
        with pytest.raises(ExportError, match=rf"did you mean .*{export.name}\?"):
            read(near)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"not a DynamoDB export: it has no manifest-summary.json"):
        read(tmp_path / "empty")
    with pytest.raises(StorageError, match="no such folder"):
        read(tmp_path / "nowhere")
