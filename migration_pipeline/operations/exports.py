"""Asks DynamoDB for exports of a table to S3, full ones and windows, and waits for them.

The client is made from the environment, as boto3 does, but for the region, which a table's ARN names. Everything that talks to
DynamoDB is here, and the translation of its errors to lines that say what to do.
"""

from __future__ import annotations

import itertools
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
)

from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.sources.export import View
from migration_pipeline.sources.storage import CONNECT_SECONDS, READ_SECONDS, Storage, is_s3, join, split_s3
from migration_pipeline.sources.window_times import RECOVERED_DAYS, Recovery, Span, next_windows, spelled

POLL_SECONDS = 5.0
"""How often an export is asked for its status; one takes minutes."""

SAY_SECONDS = 10.0
"""How often `wait` says that it waits."""

NOT_NOW = ("InternalServerError", "ServiceUnavailable", "ThrottlingException", "RequestLimitExceeded")
"""Codes that are an answer of the moment; boto3 has tried several times then."""

ACCOUNT = re.compile(r"\d{12}")

TABLE_ARN = re.compile(r"arn:[\w-]+:dynamodb:([\w-]+):\d+:table/([\w.-]+)")

RIGHTS = (
    "the role needs dynamodb:DescribeTable, dynamodb:DescribeContinuousBackups, dynamodb:ExportTableToPointInTime, "
    "dynamodb:DescribeExport and dynamodb:ListExports on the table, and s3:PutObject and s3:AbortMultipartUpload on the bucket"
)

REFUSED_CREDENTIALS = (
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "MissingAuthenticationTokenException",
)


class TableExportError(MigrationError):
    """DynamoDB cannot be reached, refuses an export, or an export has failed."""


class UnreachableError(TableExportError):
    """DynamoDB does not answer, or not now: the same call may do later."""


class Place(msgspec.Struct, frozen=True):
    """Where DynamoDB writes exports."""

    bucket: str
    prefix: str
    """Without slashes at its ends; may be empty."""
    owner: str = ""
    """The account that owns the bucket; "" for the table's own."""

    @staticmethod
    def of(uri: str, owner: str = "") -> Place:
        """Read ``s3://bucket/prefix``. Raises `UsageError` for anything else, and for an owner that is no account's number."""
        if owner and not ACCOUNT.fullmatch(owner):
            raise UsageError(f"{owner}: expected the number of an AWS account, of 12 digits")
        bucket, key = split_s3(uri)
        if not is_s3(uri) or not bucket:
            raise UsageError(f"{uri}: DynamoDB exports to S3 only; expected s3://bucket/prefix")
        return Place(bucket, re.sub(r"/?AWSDynamoDB$", "", key.strip("/")), owner)

    @property
    def uri(self) -> str:
        """As it is given to commands."""
        return join(f"s3://{self.bucket}", self.prefix) if self.prefix else f"s3://{self.bucket}"

    @property
    def arguments(self) -> str:
        """As it is given to commands, with its owner."""
        return f"{self.uri} --bucket-owner {self.owner}" if self.owner else self.uri

    def address(self, export_id: str) -> str:
        """The address of an export that was written here."""
        return join(self.uri, "AWSDynamoDB", export_id)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An export that DynamoDB was asked for."""

    arn: str
    address: str
    status: str
    """IN_PROGRESS, COMPLETED or FAILED."""
    span: Span | None = None
    """None for a full export."""
    view: str = ""
    place: Place
    failure: str = ""
    """DynamoDB's code and text."""
    items: int = 0

    @property
    def text(self) -> str:
        """What it is, for people."""
        if self.span is None:
            return "full export"
        return f"window from {spelled(self.span.start)} to {spelled(self.span.end)}"


class TableExports:
    """A table, and its exports. Raises `TableExportError` for a table that is not there or cannot be looked at."""

    def __init__(self, table: str) -> None:
        found = TABLE_ARN.fullmatch(table)
        if ":" in table and not found:
            raise UsageError(
                f"{table}: expected the table's name, or its ARN: arn:aws:dynamodb:REGION:ACCOUNT:table/NAME"
            )
        self.name = found[2] if found else table
        with self._explained():
            timeouts = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
            region = found[1] if found else None
            # Typed stubs of DynamoDB's client are no dependency.
            self._client: Any = boto3.Session().client("dynamodb", region_name=region, config=timeouts)
            described = self._client.describe_table(TableName=table)["Table"]
        self.storage = Storage()
        """Where its exports are read."""
        self.arn: str = described["TableArn"]
        self.id: str = described.get("TableId") or ""

    def recovery(self) -> Recovery:
        """The time that can be exported now. Raises `TableExportError` if point in time recovery is off."""
        with self._explained():
            answer = self._client.describe_continuous_backups(TableName=self.arn)
        found = answer["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
        if found.get("PointInTimeRecoveryStatus") != "ENABLED" or "LatestRestorableDateTime" not in found:
            raise TableExportError(self._recovery_is_off())
        latest = found["LatestRestorableDateTime"].astimezone(timezone.utc)
        earliest = found["EarliestRestorableDateTime"].astimezone(timezone.utc)
        reached = datetime.now(timezone.utc) - timedelta(days=RECOVERED_DAYS)
        return Recovery(earliest=max(earliest, reached), latest=latest)

    def ask(
        self, place: Place, span: Span | None = None, view: View = "NEW_AND_OLD_IMAGES", attempt: int = 0
    ) -> Asked:
        """Ask for a full export of the table as it is now, or for a window.

        The same window to the same place is one export, however often it is asked for within eight hours: DynamoDB knows it by
        its ClientToken. `attempt` tells those apart that have failed.
        """
        request: dict[str, Any] = {
            "TableArn": self.arn,
            "S3Bucket": place.bucket,
            **({"S3Prefix": place.prefix} if place.prefix else {}),
            **({"S3BucketOwner": place.owner} if place.owner else {}),
            "ExportFormat": "DYNAMODB_JSON",
        }
        if span is None:
            request["ExportType"] = "FULL_EXPORT"
        else:
            request["ExportType"] = "INCREMENTAL_EXPORT"
            request["IncrementalExportSpecification"] = {
                "ExportFromTime": span.start,
                "ExportToTime": span.end,
                "ExportViewType": view,
            }
            request["ClientToken"] = self._token(place, span, view, attempt)
        with self._explained():
            return self._asked(self._client.export_table_to_point_in_time(**request)["ExportDescription"])

    def ask_for(self, place: Place, span: Span, view: View, failed: Collection[str]) -> Asked:
        """Ask for a window; where an export of it has failed (`failed` has their ARNs), for another one."""
        for attempt in itertools.count():
            asked = self.ask(place, span, view, attempt)
            if asked.arn not in failed:
                return asked
        raise AssertionError("counting never ends")

    def asked_since(self, start: datetime) -> list[Asked]:
        """Exports of windows that begin at `start` or later, and were asked for before, in any state."""
        found, more = [], dict[str, Any]()
        while True:
            with self._explained():
                page = self._client.list_exports(TableArn=self.arn, **more)
            for each in page.get("ExportSummaries", []):
                # Its id begins with the time when it was asked for: to describe them all takes a call each.
                if each.get("ExportType") == "INCREMENTAL_EXPORT" and not _older(each["ExportArn"], start):
                    asked = self.describe(each["ExportArn"])
                    if asked.span and asked.span.start >= start:
                        found.append(asked)
            if not page.get("NextToken"):
                return found
            more = {"NextToken": page["NextToken"]}

    def describe(self, arn: str) -> Asked:
        """Ask how an export is."""
        with self._explained():
            return self._asked(self._client.describe_export(ExportArn=arn)["ExportDescription"])

    def wait(self, asked: Asked, say: Callable[[str], None]) -> Asked:
        """Wait until an export is complete. Raises `TableExportError` if it fails."""
        began = said = time.monotonic()
        while asked.status == "IN_PROGRESS":
            time.sleep(POLL_SECONDS)
            asked = self.describe(asked.arn)
            if asked.status == "IN_PROGRESS" and time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                say(f"{asked.text}: in progress since {said - began:,.0f} s")
        if asked.status != "COMPLETED":
            raise TableExportError(self._failed(asked))
        return asked

    def _token(self, place: Place, span: Span, view: str, attempt: int) -> str:
        parts = [self.arn, self.id, place.bucket, place.prefix, *(each.isoformat() for each in span), view]
        # DynamoDB refuses one token for two requests that differ.
        parts += [str(attempt), place.owner] if place.owner else [str(attempt)]
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "\n".join(parts)))

    def _asked(self, found: dict[str, Any]) -> Asked:
        prefix, owner = (found.get("S3Prefix") or "").strip("/"), found.get("S3BucketOwner") or ""
        place = Place(found.get("S3Bucket") or "", prefix, owner)
        window = found.get("IncrementalExportSpecification") or {}
        times = [window.get(name) for name in ("ExportFromTime", "ExportToTime")]
        span = Span(*(each.astimezone(timezone.utc) for each in times if each)) if all(times) else None
        told = (found.get("FailureCode"), found.get("FailureMessage"))
        return Asked(
            arn=found["ExportArn"],
            address=place.address(_id_of(found["ExportArn"])),
            status=found["ExportStatus"],
            span=span,
            view=window.get("ExportViewType") or "NEW_AND_OLD_IMAGES",
            place=place,
            failure=": ".join(filter(None, told)),
            items=found.get("ItemCount") or 0,
        )

    def _failed(self, asked: Asked) -> str:
        way_out = f"check the bucket {asked.place.bucket} and its policy, then export again"
        if "NoSuchBucket" in asked.failure:
            way_out = (
                f"there is no bucket {asked.place.bucket}: check its name, or create it, then export again"
            )
        elif "Denied" in asked.failure or "Forbidden" in asked.failure:
            way_out = (
                f"grant s3:PutObject and s3:AbortMultipartUpload on {asked.place.bucket}, then export again"
            )
        return f"{self.name}: the export {asked.arn} has failed: {asked.failure or asked.status}; {way_out}"

    def _recovery_is_off(self) -> str:
        return (
            f"{self.name}: point in time recovery is off, and exports need it; turn it on with: aws dynamodb update-continuous-backups "
            f"--table-name {self.name} --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true, then make a full export: "
            "windows reach back to that moment only"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn boto3's errors into one line that says what to do."""
        try:
            yield
        except ClientError as error:
            not_now = error.response.get("Error", {}).get("Code") in NOT_NOW
            raise (UnreachableError if not_now else TableExportError)(self._refusal(error)) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise TableExportError(
                f"{self.name}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        except NoRegionError as error:
            raise TableExportError(
                f"{self.name}: no AWS region; set AWS_DEFAULT_REGION, or give the table's ARN"
            ) from error
        except BotoCoreError as error:
            first = str(error).splitlines()[0]
            raise UnreachableError(f"{self.name}: DynamoDB cannot be reached: {first}") from error

    def _refusal(self, error: ClientError) -> str:
        told = error.response.get("Error", {})
        code, text = told.get("Code", ""), " ".join(str(told.get("Message", "")).split())
        if code in ("ResourceNotFoundException", "TableNotFoundException"):
            return f"{self.name}: no such DynamoDB table; check its name, the account and the region (AWS_DEFAULT_REGION, or the table's ARN)"
        if code == "PointInTimeRecoveryUnavailableException":
            return self._recovery_is_off()
        if code in REFUSED_CREDENTIALS:
            return f"{self.name}: AWS refused the credentials ({code}); renew them and try again"
        if code in ("AccessDeniedException", "AccessDenied"):
            return f"{self.name}: access denied to dynamodb:{error.operation_name}; {RIGHTS}"
        if code == "LimitExceededException":
            return f"{self.name}: DynamoDB makes no more exports at once ({text}); wait until one is complete, then try again"
        if code == "ExportConflictException":
            return f"{self.name}: DynamoDB was asked for this window otherwise within eight hours ({text}); try again with another end (--until)"
        return f"{self.name}: DynamoDB answered {code or 'with an error'} to {error.operation_name}{text and f': {text}'}"


def _id_of(arn: str) -> str:
    """The id of an export, which names its folder in S3."""
    return arn.rsplit("/", 1)[-1]


def _older(arn: str, moment: datetime) -> bool:
    """Whether an export was surely asked for before a moment; its id begins with milliseconds of the epoch."""
    found = re.match(r"(\d{14})-", _id_of(arn))
    return found is not None and int(found[1]) < moment.timestamp() * 1000


def ask_next(
    table: TableExports,
    place: Place,
    view: View,
    start: datetime,
    until: datetime | None,
    *,
    look_back: bool,
) -> list[Asked]:
    """Ask for the windows from `start` to now, or to `until`; none if it is too early for one.

    With `look_back`, exports that were asked for and not taken are taken first. Raises `TableExportError` and `BrokenChainError`.
    """
    known = table.asked_since(start) if look_back else []
    taken: list[Asked] = []
    while until is None or start < until:
        found = _usable(
            [each for each in known if each.span and each.span.start == start], place, view, table.storage
        )
        if found is None or found.span is None:
            break
        taken.append(found)
        start = found.span.end
    if until is not None and start >= until:
        return taken
    failed = {each.arn for each in known if each.status == "FAILED"}
    spans = next_windows(start, table.recovery(), until)
    return taken + [table.ask_for(place, span, view, failed) for span in spans]


def _usable(asked: Sequence[Asked], place: Place, view: str, storage: Storage) -> Asked | None:
    """Of some windows, the one that reaches farthest, has not failed, is at this place, and was not removed since."""
    best = None
    for each in asked:
        # A bucket's name is its own, whether its owner was told or not.
        if (each.place.uri, each.view) != (place.uri, view) or each.status == "FAILED" or each.span is None:
            continue
        summary = join(each.address, "manifest-summary.json")
        if each.status == "COMPLETED" and not storage.exists(summary):
            continue
        if best is None or best.span is None or each.span.end > best.span.end:
            best = each
    return best
