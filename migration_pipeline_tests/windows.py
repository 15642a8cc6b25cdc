"""Writes incremental exports by hand, record by record, in the true layout: all data files of a table in one folder."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from migration_pipeline_tests.exports import md5

Image = dict[str, Any]

KEYS = ("PK", "SK")


def record(
    new: Image | None = None,
    old: Image | None = None,
    at: str = "2024-01-01T00:05:00Z",
    keys: Sequence[str] = KEYS,
) -> dict[str, Any]:
    """A record with both images: an insert without `old`, a delete without `new`."""
    image = new or old or {}
    made: dict[str, Any] = {
        "Metadata": {"WriteTimestampMicros": {"N": str(micros(at))}},
        "Keys": {name: image[name] for name in keys},
    }
    if old is not None:
        made["OldImage"] = old
    if new is not None:
        made["NewImage"] = new
    return made


def without_old(made: dict[str, Any]) -> dict[str, Any]:
    """The same record in the view NEW_IMAGE: of a delete only its Keys are left."""
    return {name: part for name, part in made.items() if name != "OldImage"}


def micros(time: str) -> int:
    return int(datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() * 1_000_000)


def write_window(
    folder: Path,
    files: Sequence[Sequence[dict[str, Any] | bytes]],
    start: str,
    end: str,
    export_id: str = "",
    own_data: bool = False,
    **summary: Any,
) -> Path:
    """Write a window of records, or of raw lines, a list a file; return its folder. `summary` overrides the manifest.

    Beside full exports of the same `folder`, it has their ``AWSDynamoDB``. With `own_data`, its files lie below it, as
    those of a copy may.
    """
    root = folder / "AWSDynamoDB"
    export_id = export_id or f"{micros(end) // 1000:014}-{micros(start) // 1_000_000 % 2**32:08x}"
    data = root / export_id / "data" if own_data else root / "data"
    (root / export_id).mkdir(parents=True)
    data.mkdir(parents=True, exist_ok=True)
    own = zlib.crc32(export_id.encode())
    entries = []
    for number, records in enumerate(files):
        name = f"{own:08x}{number:02}abcdefghijklmnop.json.gz"
        content = gzip.compress(b"".join(line_of(each) + b"\n" for each in records), 1, mtime=0)
        (data / name).write_bytes(content)
        entries.append({
            "itemCount": len(records), "md5Checksum": md5(content), "etag": "x-1",
            "dataFileS3Key": f"AWSDynamoDB/data/{name}",
        })  # fmt: skip
    arn = "arn:aws:dynamodb:eu-central-1:123456789012:table/things"
    manifest = {
        "version": "2023-08-01", "exportArn": f"{arn}/export/{export_id}", "tableArn": arn, "tableId": "1",
        "startTime": end, "endTime": end, "exportFromTime": start, "exportToTime": end,
        "exportType": "INCREMENTAL_EXPORT", "outputView": "NEW_AND_OLD_IMAGES",
        "s3Bucket": "b", "s3Prefix": None, "s3SseAlgorithm": "AES256", "s3SseKmsKeyId": None,
        "manifestFilesS3Key": f"AWSDynamoDB/{export_id}/manifest-files.json",
        "billedSizeBytes": 1, "itemCount": sum(map(len, files)), "outputFormat": "DYNAMODB_JSON",
    } | summary  # fmt: skip
    manifest = {name: value for name, value in manifest.items() if value is not ...}
    listing = "".join(json.dumps(entry) + "\n" for entry in entries)
    for kind, text in (("files", listing), ("summary", json.dumps(manifest))):
        write_manifest(root / export_id / f"manifest-{kind}.json", text.encode())
    return root / export_id


def write_manifest(path: Path, content: bytes) -> None:
    """Write a manifest with the .md5 that belongs to it."""
    path.write_bytes(content)
    path.with_suffix(".md5").write_text(md5(content))


def change_summary(export: Path, **changes: Any) -> None:
    """Change a manifest-summary.json; a value of ``...`` takes its member away."""
    path = export / "manifest-summary.json"
    changed = json.loads(path.read_text()) | changes
    write_manifest(path, json.dumps({k: v for k, v in changed.items() if v is not ...}).encode())


def line_of(made: dict[str, Any] | bytes) -> bytes:
    """A line of a window, as DynamoDB writes it: without spaces, text as UTF-8."""
    if isinstance(made, bytes):
        return made
    return json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
