"""Writes exports of any items, in the true layout, for tests that need other items than the sample's."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from migration_pipeline.demo.sample_ion import ion_line
from migration_pipeline.sources.export import SUFFIXES, OutputFormat

EXPORT_ID = "01700000000000-0a1b2c3d"


def write_export(
    folder: Path,
    files: Sequence[Sequence[dict[str, Any] | bytes]],
    table: str = "things",
    export_id: str = EXPORT_ID,
    output_format: OutputFormat = "DYNAMODB_JSON",
) -> Path:
    """Write an export of items in wire form, or of raw lines, a list a file; return its folder."""
    spell = line_of if output_format == "DYNAMODB_JSON" else ion_line_of
    root = folder / "AWSDynamoDB" / export_id
    (root / "data").mkdir(parents=True)
    entries = []
    for number, items in enumerate(files):
        name = f"file{number:02}abcdefghijklmnopqrst{SUFFIXES[output_format]}"
        content = gzip.compress(b"".join(spell(item) + b"\n" for item in items), 1, mtime=0)
        (root / "data" / name).write_bytes(content)
        entries.append({
            "itemCount": len(items), "md5Checksum": md5(content), "etag": "x-1",
            "dataFileS3Key": f"AWSDynamoDB/{export_id}/data/{name}",
        })  # fmt: skip
    arn = f"arn:aws:dynamodb:eu-central-1:123456789012:table/{table}"
    summary = {
        "version": "2020-06-30", "exportArn": f"{arn}/export/{export_id}", "tableArn": arn, "tableId": "1",
        "startTime": "2024-01-01T00:00:00Z", "endTime": "2024-01-01T00:01:00Z", "exportTime": "2024-01-01T00:00:00Z",
        "s3Bucket": "b", "s3Prefix": None, "s3SseAlgorithm": "AES256", "s3SseKmsKeyId": None,
        "manifestFilesS3Key": f"AWSDynamoDB/{export_id}/manifest-files.json",
        "billedSizeBytes": 1, "itemCount": sum(map(len, files)), "outputFormat": output_format,
    }  # fmt: skip
    listing = "".join(json.dumps(entry) + "\n" for entry in entries)
    for kind, text in (("files", listing), ("summary", json.dumps(summary))):
        (root / f"manifest-{kind}.json").write_text(text)
        (root / f"manifest-{kind}.md5").write_text(md5(text.encode()))
    return root


def line_of(item: dict[str, Any] | bytes) -> bytes:
    """A line of an export, as DynamoDB writes it: without spaces, text as UTF-8."""
    if isinstance(item, bytes):
        return item
    return json.dumps({"Item": item}, ensure_ascii=False, separators=(",", ":")).encode()


def ion_line_of(item: dict[str, Any] | bytes) -> bytes:
    """The same, of an export in Ion."""
    return item if isinstance(item, bytes) else ion_line(line_of(item)).rstrip(b"\n")


def md5(content: bytes) -> str:
    """base64(MD5), as manifests have it."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
