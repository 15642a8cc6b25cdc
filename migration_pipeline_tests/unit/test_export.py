"""The manifest is checked before anything is believed; every complaint names the place and the way out."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from migration_pipeline.sources.export import ExportError, Window, read_export, read_exports
from migration_pipeline.sources.storage import Listed, Storage, StorageError
from migration_pipeline_tests.exports import write_export
from migration_pipeline_tests.windows import change_summary as change
from migration_pipeline_tests.windows import line_of, record, without_old, write_manifest, write_window


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


@pytest.mark.parametrize("manifest", ["manifest-summary", "manifest-files"])
def test_a_changed_manifest_is_taken_and_doubted_when_told_to(export: Path, manifest: str) -> None:
    path = export / f"{manifest}.json"
    path.write_bytes(path.read_bytes() + b"\n")
    (found,) = read_exports([str(export)], Storage(), ignore_md5=True)
    assert found.items == 6_000
    assert (
        found.doubt
        == f"{manifest}.json does not match {manifest}.md5, which was ignored (--ignore-manifest-md5)"
    )
    path.write_bytes(path.read_bytes()[:-1])
    (found,) = read_exports([str(export)], Storage(), ignore_md5=True)
    assert found.doubt == ""


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
        ({"outputFormat": "CSV"}, "format is CSV; only DYNAMODB_JSON and ION are read"),
        (
            {"exportType": "PARTIAL"},
            "exportType is 'PARTIAL'; only FULL_EXPORT and INCREMENTAL_EXPORT are read",
        ),
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


def test_an_export_in_ion_has_files_of_its_own_kind(tmp_path: Path) -> None:
    found = read(write_export(tmp_path, [[ITEM], []], output_format="ION"))
    assert (found.output_format, found.items) == ("ION", 1)
    assert [file.name[-7:] for file in found.files] == [".ion.gz", ".ion.gz"]
    change_first_file(Path(found.uri), dataFileS3Key="AWSDynamoDB/x/data/a.json.gz")
    with pytest.raises(
        ExportError, match=r"a.json.gz is not a .ion.gz file, as all files of an export in Ion are"
    ):
        read(Path(found.uri))


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


# -- windows ---------------------------------------------------------------------------------------

START, END = "2024-01-01T00:00:00Z", "2024-01-01T00:15:00Z"

ITEM = {"PK": {"S": "A"}, "SK": {"N": "1"}, "x": {"S": "new"}}


def window_of(folder: Path, *files: Sequence[dict[str, Any] | bytes], **more: Any) -> Path:
    return write_window(folder, files or ([record(ITEM)], []), START, END, **more)


def test_a_window_is_read_as_its_manifest_says(tmp_path: Path) -> None:
    found = read(window_of(tmp_path, [], [record(ITEM), record(ITEM | {"SK": {"N": "2"}})], [record(ITEM)]))
    assert found.window == Window(
        datetime(2024, 1, 1, tzinfo=timezone.utc),
        datetime(2024, 1, 1, 0, 15, tzinfo=timezone.utc),
        "NEW_AND_OLD_IMAGES",
        ("PK", "SK"),
    )
    assert (found.items, found.table_id, found.export_time) == (3, "1", END)
    assert found.table_arn.endswith("table/things")
    assert [file.items for file in found.files] == [0, 2, 1]
    assert {Path(file.uri).parent for file in found.files} == {tmp_path / "AWSDynamoDB" / "data"}
    assert all(file.size == Path(file.uri).stat().st_size for file in found.files)


def test_a_manifest_without_export_type_is_of_a_full_export(tmp_path: Path) -> None:
    folder = write_export(tmp_path, [[ITEM]])
    assert "exportType" not in json.loads((folder / "manifest-summary.json").read_text())
    found = read(folder)
    assert (found.window, found.table_id) == (None, "1")
    change(folder, exportType="FULL_EXPORT")
    assert read(folder) == found


def test_windows_that_share_a_folder_are_told_apart_by_their_manifests(tmp_path: Path) -> None:
    one = window_of(tmp_path)
    other = write_window(tmp_path, [[record(ITEM)] * 2], END, "2024-01-01T00:30:00Z")
    write_export(tmp_path, [[ITEM]])
    (tmp_path / "AWSDynamoDB" / "data" / "stray.json.gz").write_bytes(b"of nobody")
    first, second = read_exports([str(one), str(other)], Storage())
    assert (len(first.files), len(second.files)) == (2, 1)
    assert not {file.uri for file in first.files} & {file.uri for file in second.files}


class Counting(Storage):
    """Counts which folders are listed."""

    def __init__(self) -> None:
        self.listed: list[str] = []

    def listing(self, folder: str) -> dict[str, Listed]:
        self.listed.append(folder)
        return super().listing(folder)


def test_the_shared_folder_is_listed_once_for_all_windows(tmp_path: Path) -> None:
    one, storage = window_of(tmp_path), Counting()
    other = write_window(tmp_path, [[record(ITEM)] * 2], END, "2024-01-01T00:30:00Z")
    read_exports([str(one), str(other)], storage)
    assert storage.listed == [str(tmp_path / "AWSDynamoDB" / "data")]


def test_a_copied_window_may_have_its_own_data(tmp_path: Path) -> None:
    folder = window_of(tmp_path, own_data=True)
    assert {Path(file.uri).parent for file in read(folder).files} == {folder / "data"}
    copy = tmp_path / "elsewhere" / "copy"
    shutil.copytree(folder, copy)
    assert read(copy).files[0].uri == str(copy / "data" / read(copy).files[0].name)
    (copy / "data").rename(copy.parent / "data")
    assert Path(read(copy).files[0].uri).parent == copy.parent / "data"


def test_a_window_s_keys_may_be_of_another_bucket_and_prefix(tmp_path: Path) -> None:
    path = window_of(tmp_path) / "manifest-files.json"
    write_manifest(path, path.read_bytes().replace(b'"AWSDynamoDB/', b'"/old/prefix/AWSDynamoDB/'))
    assert read(path.parent).items == 1


@pytest.mark.parametrize(
    "key", ["../data/x.json.gz", "/etc/x.json.gz", "AWSDynamoDB/data/../../x.json.gz", "AWSDynamoDB/data/"]
)
def test_a_key_of_a_window_that_leads_out_is_refused(tmp_path: Path, key: str) -> None:
    folder = window_of(tmp_path)
    change_first_file(folder, dataFileS3Key=key)
    with pytest.raises(ExportError, match=r"manifest-files.json, line 1: refused"):
        read(folder)


def test_a_full_export_takes_no_file_of_the_windows_folder(tmp_path: Path) -> None:
    folder = write_export(tmp_path, [[ITEM]])
    (folder / "data").rename(tmp_path / "AWSDynamoDB" / "data")
    with pytest.raises(StorageError, match=r"file00\w+.json.gz: no such file, but the manifest names it"):
        read(folder)


def test_a_missing_file_of_a_window_is_named_with_both_places(tmp_path: Path) -> None:
    folder = window_of(tmp_path)
    victim = Path(read(folder).files[0].uri)
    victim.unlink()
    with pytest.raises(StorageError) as error:
        read(folder)
    assert f"{victim}: no such file (nor in {folder}/data), but the manifest names it" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"outputFormat": "ION"},
            "an incremental export in ION; incremental exports are read in DYNAMODB_JSON only: export the window again",
        ),
        ({"exportFromTime": ...}, "an incremental export without exportFromTime; copy the manifest"),
        ({"exportToTime": ...}, "without exportToTime"),
        ({"outputView": ...}, "without outputView"),
        ({"outputView": "KEYS_ONLY"}, "not a valid manifest"),
        ({"exportToTime": "tomorrow"}, "not a valid manifest"),
        ({"exportToTime": "2024-01-01T00:15:00"}, "not a valid manifest"),  # of which zone?
        ({"exportToTime": START}, f"begins at {START}, which is not before its end at {START}"),
        ({"exportToTime": "2023-12-31T00:00:00Z"}, "is not before its end at 2023-12-31T00:00:00Z"),
        ({"itemCount": 5}, "its files hold 1 item, but manifest-summary.json says 5"),
    ],
)
def test_a_window_with_a_wrong_manifest_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = window_of(tmp_path)
    change(folder, **changes)
    with pytest.raises(ExportError, match=message) as error:
        read(folder)
    assert "manifest-" in str(error.value)
    assert "\n" not in str(error.value)


def test_times_of_a_window_are_kept_in_utc(tmp_path: Path) -> None:
    folder = window_of(tmp_path)
    change(folder, exportFromTime="2024-01-01T01:00:00+01:00")
    assert read(folder).window.start.isoformat() == "2024-01-01T00:00:00+00:00"


BROKEN = line_of(record(ITEM)).replace(b'"Keys"', b'"Kyes"')


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        ([[], [record(ITEM, keys=["PK"])]], ("PK",)),
        ([[BROKEN, b"{", b"", b"\xff", record(ITEM)]], ("PK", "SK")),
        ([[BROKEN], [without_old(record(old=ITEM))]], ("PK", "SK")),
        ([[], []], ()),
    ],
)
def test_the_key_is_that_of_the_first_record_that_names_it(
    tmp_path: Path, files: list[list[Any]], keys: tuple[str, ...]
) -> None:
    warnings: list[str] = []
    found = read_export(str(window_of(tmp_path, *files)), Storage(), warnings.append)
    assert found.window is not None
    assert (found.window.keys, warnings) == (keys, [])


def test_a_window_whose_records_name_no_key_is_told(tmp_path: Path) -> None:
    warnings: list[str] = []
    found = read_export(str(window_of(tmp_path, [BROKEN])), Storage(), warnings.append)
    assert found.window is not None
    assert found.window.keys == ()
    assert ["no record at the beginning of the window has Keys" in text for text in warnings] == [True]


def test_a_broken_file_does_not_hide_the_key_in_the_next(tmp_path: Path) -> None:
    folder = window_of(tmp_path, [record(ITEM)], [record(ITEM)])
    for damage in (b"no gzip at all", gzip.compress(b"x" * 10_000)[:20]):
        Path(read(folder).files[0].uri).write_bytes(damage)
        assert read(folder).window.keys == ("PK", "SK")
