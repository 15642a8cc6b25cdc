"""The exports: can their files be listed, read and, where a key of KMS is involved, decrypted from here?"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import boto3
from botocore.exceptions import BotoCoreError

from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.doctor.findings import Finding, Findings, told
from migration_pipeline.sources.export import ExportFile, read_export
from migration_pipeline.sources.storage import Storage, explained, is_s3
from migration_pipeline.units import all_that, counted, some_that

GZIP = b"\x1f\x8b"


def exports(plans: Sequence[Plan], locations: Sequence[str]) -> Findings:
    """Look at the exports of these plans, and at those of `locations`, which need no plan."""
    storage, found = Storage(), list[Finding]()
    if any(map(is_s3, [*locations, *(planned.file.uri for plan in plans for planned in plan.files)])):
        found.append(_credentials())
    for location in locations:
        with told(found, "export"):
            export = read_export(
                location, storage, lambda text: found.append(Finding("export", "warning", text))
            )
            found.append(
                Finding(
                    "export",
                    "ok",
                    f"{export.uri}: {counted(len(export.files), 'file')}, {counted(export.items, 'item')}, all there",
                )
            )
            found.extend(_read(export.files, storage))
    for plan in plans:
        for _, group in groupby(plan.files, key=lambda planned: planned.export_id):
            found.extend(_planned([planned.file for planned in group], storage))
    return found


def _credentials() -> Finding:
    """Tell where boto3 finds its credentials; nothing of them."""
    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:
        return Finding("AWS", "failed", str(error).splitlines()[0], "check AWS_PROFILE and the files of AWS")
    if credentials is None:
        return Finding(
            "AWS",
            "failed",
            "no credentials",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
        )
    return Finding("AWS", "ok", f"credentials found: {credentials.method}")


def _planned(files: Sequence[ExportFile], storage: Storage) -> Findings:
    """Look whether planned files are where they were, of the size that they had, and can be read."""
    found: Findings = []
    folder = files[0].uri.rpartition("/")[0]
    with told(found, "list"):
        there = storage.listing(folder)
        gone = [file.name for file in files if file.name not in there]
        other = [file.name for file in files if file.name in there and there[file.name].size != file.size]
        for names, what in ((gone, "missing"), (other, "of another size than planned")):
            if names:
                found.append(
                    Finding(
                        "list",
                        "failed",
                        f"{folder}: {some_that(len(names), len(files), 'file', 'is', 'are')} {what}, {names[0]} first",
                        "copy them there, or plan again",
                    )
                )
        if not gone and not other:
            found.append(
                Finding("list", "ok", f"{folder}: {all_that(len(files), 'file', 'is', 'are')} there")
            )
        found.extend(_read([file for file in files if file.name in there], storage))
    return found


def _read(files: Sequence[ExportFile], storage: Storage) -> Findings:
    """Read the first bytes of the first file that has any: what a load does to each."""
    found: Findings = []
    file = next(iter([*(file for file in files if file.items), *files]), None)
    if file is None:
        return found
    with told(found, "get"), explained(file.uri), storage.open(file.uri) as stream:
        if stream.read(len(GZIP)) == GZIP:
            found.append(Finding("get", "ok", f"{file.uri}: can be read, and is a gzip file"))
        else:
            found.append(Finding("get", "failed", f"{file.uri}: is no gzip file", "copy it again"))
    return found
