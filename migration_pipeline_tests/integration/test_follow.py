"""`follow` from the base to the switch, against a running stack: what is exported, added, loaded, and taken up after a kill.

Its windows are written by hand, since moto writes none, and all but the last have no records: what records do to rows is tested
with the load. So this shows the order of things, and nothing of DynamoDB itself.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO, Any

import boto3
import pytest

from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import read_plan
from migration_pipeline_tests.conftest import query
from migration_pipeline_tests.dynamodb import DynamoDB, create_table, dynamodb_server
from migration_pipeline_tests.exports import md5
from migration_pipeline_tests.operating import PATIENCE_SECONDS, SCRIPT, Bucket, Operation, operation

PLACE = "s3://following/live"
MINUTE = timedelta(minutes=1)
BASE = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(hours=20)


class Follow:
    """A shop whose base is planned, and the calls of the commands."""

    def __init__(self, dynamodb: DynamoDB, operation: Operation, bucket: Bucket) -> None:
        self.dynamodb = dynamodb
        self.operation = operation
        self.bucket = bucket
        self.environment = dict(os.environ) | operation.environment
        self.records: list[dict[str, Any]] = []
        """Of the next window."""

    @property
    def plan(self) -> Plan:
        return read_plan(self.operation.home / "plans" / "shop.json")

    @property
    def ends(self) -> list[timedelta]:
        """The ends of the planned windows, after the base."""
        return [each.window.end - BASE for each in self.plan.windows if each.window]

    def until(self, minutes: float) -> None:
        """So much after the base can be exported now."""
        self.dynamodb.recovery = (BASE - 60 * MINUTE, BASE + minutes * MINUTE)

    def call(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [SCRIPT, *arguments], cwd=self.operation.home, env=self.environment, capture_output=True, text=True,
            timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def once(self, *more: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        return self.call("follow", "shop", PLACE, "--once", *more, code=code)

    def states(self) -> set[str]:
        return set(self.operation.states(self.plan))

    def write(self, asked: dict[str, Any]) -> None:
        """Write an export of a window that DynamoDB was asked for, with `records`; without them as an empty partition has it."""
        export_id = asked["ExportArn"].rpartition("/")[2]
        window = asked["IncrementalExportSpecification"]
        count, content = (
            len(self.records),
            gzip.compress("".join(json.dumps(r) + "\n" for r in self.records).encode(), mtime=0),
        )
        self.records = []
        name = f"{export_id[-8:]}abcdefghijklmnopqr.json.gz"
        key = f"{asked['S3Prefix']}/AWSDynamoDB/data/{name}"
        folder = f"{asked['S3Prefix']}/AWSDynamoDB/{export_id}"
        times = {
            name: f"{datetime.fromtimestamp(window[given], timezone.utc):%Y-%m-%dT%H:%M:%SZ}"
            for name, given in (("exportFromTime", "ExportFromTime"), ("exportToTime", "ExportToTime"))
        }
        summary = {
            "version": "2023-08-01", "exportArn": asked["ExportArn"], "startTime": "2026-01-01T00:00:00Z",
            "endTime": "2026-01-01T00:01:00Z", "tableArn": asked["TableArn"], "tableId": "1", **times, "s3Bucket": "following",
            "s3Prefix": asked["S3Prefix"], "s3SseAlgorithm": "AES256", "s3SseKmsKeyId": None,
            "manifestFilesS3Key": f"{folder}/manifest-files.json", "billedSizeBytes": 0, "itemCount": count,
            "outputFormat": "DYNAMODB_JSON", "outputView": window["ExportViewType"], "exportType": "INCREMENTAL_EXPORT",
        }  # fmt: skip
        entry = {"itemCount": count, "md5Checksum": md5(content), "etag": "x-1", "dataFileS3Key": key}
        self.bucket.put(key, content)
        for kind, text in (("files", json.dumps(entry) + "\n"), ("summary", json.dumps(summary))):
            self.bucket.put(f"{folder}/manifest-{kind}.json", text.encode())
            self.bucket.put(f"{folder}/manifest-{kind}.md5", md5(text.encode()).encode())


def base(folder: Path, arn: str) -> Path:
    """A sample that was exported at `BASE`, of the table of the tests."""
    export = write_sample(folder, items=600, files=2, seed=3)
    path = export / "manifest-summary.json"
    summary = json.loads(path.read_text()) | {
        "tableArn": arn, "tableId": "1", "exportTime": f"{BASE:%Y-%m-%dT%H:%M:%S}.622Z"
    }  # fmt: skip
    path.write_text(json.dumps(summary))
    path.with_suffix(".md5").write_text(md5(path.read_bytes()))
    return export


@pytest.fixture(scope="module")
def follow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follow]:
    home = tmp_path_factory.mktemp("following")
    with (
        dynamodb_server("") as (dynamodb, url),
        operation(home, "following", AWS_ENDPOINT_URL_DYNAMODB=url) as (made, bucket),
    ):
        dynamodb._moto = os.environ["AWS_ENDPOINT_URL_S3"]
        dynamodb.table_id = "1"
        arn = create_table(boto3.client("dynamodb"), "shop")
        made.plan("shop", bucket.upload(base(tmp_path_factory.mktemp("base"), arn)), "shop")
        following = Follow(dynamodb, made, bucket)
        dynamodb.write = following.write
        yield following


def test_the_base_comes_first(follow: Follow) -> None:
    follow.until(60)
    done = follow.once(code=1)
    assert "2 files of the full export" in done.stderr
    assert "load the full export with migration-pipeline backfill shop --wait, then follow" in done.stderr
    assert follow.dynamodb.asked == []
    follow.call("backfill", "shop", "--wait")


def test_a_round_exports_adds_and_loads(follow: Follow) -> None:
    follow.until(40)
    done = follow.once()
    assert follow.ends == [40 * MINUTE]
    assert follow.states() == {"materialized"}
    assert f"loaded up to {BASE + 40 * MINUTE:%Y-%m-%d %H:%M:%S} UTC; lag 19 h " in done.stdout
    follow.until(54)
    assert "too early" in follow.once().stderr
    assert len(follow.dynamodb.asked) == 1


def test_what_was_begun_is_taken_up(follow: Follow) -> None:
    """As after a kill: one window is added and not loaded, another is asked for and not added."""
    arn = follow.plan.exports[0].table_arn
    follow.until(60)
    added = follow.call("export", arn, PLACE, "--since", "shop").stdout.strip()
    follow.call("plan", "shop", "--add", added)
    assert "missing" in follow.states()
    follow.until(80)
    asked = follow.call("export", arn, PLACE, "--since", "shop", "--no-wait").stdout.strip()
    follow.dynamodb.tokens.clear()
    follow.until(90)
    done = follow.once()
    assert [window.uri for window in follow.plan.windows[1:]] == [added, asked]
    assert follow.ends == [40 * MINUTE, 60 * MINUTE, 80 * MINUTE]
    assert len(follow.dynamodb.asked) == 3
    assert follow.states() == {"materialized"}
    first, second = done.stdout.splitlines()
    assert f"{BASE + 60 * MINUTE:%H:%M:%S} UTC" in first  # in this order
    assert f"{BASE + 80 * MINUTE:%H:%M:%S} UTC" in second


def test_a_failed_file_ends_it_with_the_way_out(follow: Follow) -> None:
    follow.until(120)
    whole = follow.dynamodb.write

    def broken(asked: dict[str, Any]) -> None:
        whole(asked)
        (key,) = (
            key for key in follow.bucket.keys("live/AWSDynamoDB/data/") if asked["ExportArn"][-8:] in key
        )
        follow.bucket.put(key, gzip.compress(b"", mtime=1))

    follow.dynamodb.write = broken
    for _ in range(2):  # the second does not get beyond it, either
        done = follow.once(code=1)
        error = done.stderr.strip().splitlines()[-1]
        assert error.startswith("error: shop: 1 file was not loaded: ")
        assert "MD5" in error
        assert error.endswith(
            "fix the cause, then migration-pipeline retry-failed shop --wait, and follow again"
        )
    assert len(follow.ends) == 4
    follow.dynamodb.write = whole
    (export,) = (arn for arn in follow.dynamodb.exports if arn.endswith(follow.plan.exports[-1].id))
    whole(follow.dynamodb.exports[export])
    follow.call("retry-failed", "shop", "--wait")
    assert follow.states() == {"materialized"}


def test_until_ends_where_it_is_told_and_ctrl_c_between_two_windows(follow: Follow) -> None:
    follow.until(150)
    end = BASE + 145 * MINUTE
    follow.call("follow", "shop", PLACE, "--until", end.isoformat())
    assert follow.ends[-1] == 145 * MINUTE
    asked = len(follow.dynamodb.asked)
    with subprocess.Popen(
        [SCRIPT, "follow", "shop", PLACE], cwd=follow.operation.home, env=follow.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            read_until(process.stderr, "too early")
            assert len(follow.dynamodb.asked) == asked
            assert "another follow of shop is running here" in follow.once(code=1).stderr
            follow.until(165)  # while it sleeps: it looks again after a while
            read_until(process.stdout, f"loaded up to {BASE + 165 * MINUTE:%Y-%m-%d %H:%M:%S}")
            time.sleep(1)  # until it sleeps
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0, err
    assert "ended between two windows" in err
    assert "Traceback" not in err
    assert follow.ends[-1] == 165 * MINUTE


def read_until(stream: IO[str] | None, text: str) -> None:
    """Read lines up to one with a text; the stream must not end before."""
    assert stream
    assert any(text in line for line in stream)


def test_the_switch_is_a_yes_once_verify_has_passed(follow: Follow) -> None:
    document = json.loads(follow.call("cutover", "shop", "--json", code=1).stdout)
    assert [each["name"] for each in document["checks"] if not each["passed"]] == ["verify has passed since"]
    assert document["cutover"] is False
    follow.call("verify", "shop")
    done = follow.call("cutover", "shop")
    assert done.stdout.splitlines()[-1] == "yes: the application can switch"
    assert "NO" not in done.stdout
    assert f"ok  the chain has no hole: {len(follow.ends):,} windows from" in done.stdout
    late = follow.call("cutover", "shop", "--max-lag", "1h", code=1)
    assert "NO  what is loaded is new enough" in late.stdout
    follow.call("report", "shop", "-o", "report.html")
    page = (follow.operation.home / "report.html").read_text()
    assert "Cut-over" in page
    assert page.count("✗ no") == 0
    # A new window makes what was verified old.
    follow.until(200)
    follow.once()
    checks = json.loads(follow.call("cutover", "shop", "--json", code=1).stdout)["checks"]
    assert next(each["text"] for each in checks if not each["passed"]).startswith("customers: ")


def test_records_reach_the_tables(follow: Follow) -> None:
    folder = follow.plan.exports[0].uri.removeprefix("s3://following/")
    lines = [
        json.loads(line)["Item"]
        for key in follow.bucket.keys(f"{folder}/data/")
        for line in gzip.decompress(follow.bucket.get(key)).splitlines()
    ]
    changed, gone, *_ = (item for item in lines if item["SK"] == {"S": "PROFILE"})

    def record(item: dict[str, Any], minutes: int, **new: Any) -> dict[str, Any]:
        micros = int((BASE + minutes * MINUTE).timestamp() * 1_000_000)
        keys = {name: item[name] for name in ("PK", "SK")}
        return {
            "Metadata": {"WriteTimestampMicros": {"N": str(micros)}},
            "Keys": keys,
            "OldImage": item,
            **new,
        }

    follow.records = [
        record(changed, 210, NewImage=changed | {"name": {"S": "Somebody Else"}}), record(gone, 205)
    ]  # fmt: skip
    follow.until(220)
    before = names(follow)
    assert "2 records" in follow.once().stderr
    one, other = (item["PK"]["S"].removeprefix("CUSTOMER#") for item in (changed, gone))
    assert before[other]
    del before[other]
    assert names(follow) == before | {one: "Somebody Else"}
    assert follow.states() == {"materialized"}


def names(follow: Follow) -> dict[str, str]:
    return dict(query(follow.operation.database_url, "SELECT customer_id, name FROM customers"))
