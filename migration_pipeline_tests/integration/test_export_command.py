"""`export` asks DynamoDB for what it should, waits, and prints addresses; each refusal is one line with the way out.

Against moto's server over HTTP, amended where moto lacks what DynamoDB has (`migration_pipeline_tests/dynamodb.py`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner, Result

from migration_pipeline.cli import following as cli_following
from migration_pipeline.cli import main
from migration_pipeline.migration.plan import FORMAT, Plan, PlannedExport
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.operations import exports
from migration_pipeline.operations.exports import Place
from migration_pipeline.sources.export import Window
from migration_pipeline_tests.dynamodb import DynamoDB, aws_server, create_table
from migration_pipeline_tests.s3 import s3_server

PLACE = "s3://a-bucket/some/prefix"
ID = r"\d{14}-[0-9a-f]{8}"
HOUR = timedelta(hours=1)
BASE = datetime.now(timezone.utc).replace(microsecond=0) - 30 * HOUR


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[DynamoDB, dict[str, str]]]:
    with aws_server() as found:
        yield found


@pytest.fixture
def aws(
    servers: tuple[DynamoDB, dict[str, str]], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> DynamoDB:
    """A DynamoDB with an empty table of the test's own name, and a bucket."""
    dynamodb, environment = servers
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(exports, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(exports, "SAY_SECONDS", 0.0)
    boto3.client("s3").create_bucket(Bucket="a-bucket")
    dynamodb.__init__(dynamodb._moto)  # type: ignore[misc]
    dynamodb.recovery = (BASE - 24 * HOUR, BASE + 28 * HOUR)
    return dynamodb


@pytest.fixture
def table(aws: DynamoDB, request: pytest.FixtureRequest) -> str:
    """The ARN of a table of the test's own."""
    return create_table(boto3.client("dynamodb"), re.sub(r"\W", "-", request.node.name)[:100])


def plan_of(arn: str, *spans: tuple[datetime, datetime], table_id: str = "") -> None:
    """Write a plan for the shop: a base of `BASE`, and windows."""
    base = PlannedExport("e", "s3://b/e", arn, f"{BASE:%Y-%m-%dT%H:%M:%S}.622Z", table_id)
    windows = [
        PlannedExport(f"w{n}", f"s3://b/w{n}", arn, "", table_id, Window(*span, "NEW_AND_OLD_IMAGES"))
        for n, span in enumerate(spans)
    ]
    write_plan(
        Plan(FORMAT, "shop", "shop", (base, *windows), ()), Path(os.environ["MIGRATION_HOME"]) / "plans"
    )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def exported(*arguments: str) -> list[str]:
    """The addresses that the command prints."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.split()


def windows(dynamodb: DynamoDB) -> list[tuple[datetime, datetime]]:
    """The windows that were asked for, as hours after `BASE`."""
    specifications = [each["IncrementalExportSpecification"] for each in dynamodb.asked]
    return [
        tuple(datetime.fromtimestamp(each[name], timezone.utc) for name in ("ExportFromTime", "ExportToTime"))  # type: ignore[misc]
        for each in specifications
    ]


def test_a_full_export_is_asked_for_and_its_address_is_all_that_is_printed(aws: DynamoDB, table: str) -> None:
    aws.pending = 3
    result = run(table.rpartition("/")[2], PLACE + "/")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(rf"s3://a-bucket/some/prefix/AWSDynamoDB/{ID}\n", result.stdout)
    assert f"full export: {table}/export/" in result.stderr
    assert "full export: in progress since" in result.stderr
    (asked,) = aws.asked
    del asked["ClientToken"]
    assert asked == {
        "TableArn": table, "S3Bucket": "a-bucket", "S3Prefix": "some/prefix", "ExportFormat": "DYNAMODB_JSON", "ExportType": "FULL_EXPORT"
    }  # fmt: skip


def test_the_owner_of_the_bucket_is_named(aws: DynamoDB, table: str) -> None:
    """DynamoDB needs it for a bucket of another account; a window is then another request, so it has another token."""
    owner = ("--bucket-owner", "123456789012")
    exported(table, PLACE, *owner)
    plan_of(table)
    aws.recovery = (BASE - HOUR, BASE + 2 * HOUR)
    first = exported(table, PLACE, "--since", "shop", *owner)
    assert [each["S3BucketOwner"] for each in aws.asked] == ["123456789012"] * 2
    assert exported(table, PLACE, "--since", "shop") != first
    assert "S3BucketOwner" not in aws.asked[2]
    assert aws.asked[1]["ClientToken"] != aws.asked[2]["ClientToken"]
    result = run(table, PLACE, "--bucket-owner", "someone")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "someone: expected the number of an AWS account, of 12 digits" in result.stderr


def test_an_arn_names_the_region(aws: DynamoDB, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert len(exported(table, PLACE)) == 1
    result = run(table.rpartition("/")[2], PLACE)
    assert result.exit_code == 1
    assert "no AWS region; set AWS_DEFAULT_REGION, or give the table's ARN" in result.stderr


def test_each_full_export_is_a_new_one_and_no_wait_prints_it_at_once(aws: DynamoDB, table: str) -> None:
    aws.pending = 1_000_000
    one, other = (exported(table, "s3://a-bucket", "--no-wait") for _ in range(2))
    assert one != other
    assert re.fullmatch(rf"s3://a-bucket/AWSDynamoDB/{ID}", one[0])
    assert "S3Prefix" not in aws.asked[0]


def test_moto_itself_takes_the_call_and_writes_there(
    aws: DynamoDB, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without anything before it: what it is asked for is what boto3's model and moto know."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", os.environ["AWS_ENDPOINT_URL_S3"])
    client = boto3.client("dynamodb")
    client.put_item(TableName=table, Item={"PK": {"S": "a"}, "SK": {"S": "b"}})
    assert len(exported(table, "s3://a-bucket/of-moto")) == 1
    listed = boto3.client("s3").list_objects_v2(Bucket="a-bucket", Prefix="of-moto/AWSDynamoDB/")
    assert listed["KeyCount"] == 1
    result = run(table, "s3://not-there/of-moto")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no bucket not-there: check its name, or create it" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ("nothing", PLACE),
            1,
            "nothing: no such DynamoDB table; check its name, the account and the region",
        ),
        (("arn:aws:dynamodb:us-east-1:1:table/nothing", PLACE), 1, "nothing: no such DynamoDB table"),
        (("arn:aws:s3:::nothing", PLACE), 2, "expected the table's name, or its ARN"),
        (("{table}", "/a/folder"), 2, "/a/folder: DynamoDB exports to S3 only; expected s3://bucket/prefix"),
        (("{table}", PLACE, "--until", "2026-01-01"), 2, "it needs --since"),
        (("{table}", PLACE, "--since", "nobody"), 2, "nobody.json: no plan"),
    ],
)
def test_what_cannot_be_is_refused(
    aws: DynamoDB, table: str, arguments: tuple[str, ...], code: int, text: str
) -> None:
    result = run(*(each.format(table=table) for each in arguments))
    assert (result.exit_code, result.stdout) == (code, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_recovery_that_is_off_is_told_with_the_command_that_turns_it_on(aws: DynamoDB) -> None:
    arn = create_table(boto3.client("dynamodb"), "off", recovery=False)
    plan_of(arn)
    for more in ((), ("--since", "shop")):
        result = run("off", PLACE, *more)
        assert (result.exit_code, result.stdout) == (1, "")
        assert (
            "off: point in time recovery is off, and exports need it; turn it on with: aws dynamodb update-continuous-backups "
            "--table-name off --point-in-time-recovery-specification PointInTimeRecoveryEnabled=true"
        ) in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "operation", ["DescribeTable", "DescribeContinuousBackups", "ExportTableToPointInTime", "ListExports", "DescribeExport"]
)  # fmt: skip
def test_rights_that_are_missing_are_named(aws: DynamoDB, table: str, operation: str) -> None:
    plan_of(table)
    aws.refused = {operation: "AccessDeniedException"}
    result = run(table, PLACE, "--since", "shop")
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"access denied to dynamodb:{operation}; the role needs dynamodb:DescribeTable" in result.stderr


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (
            "ExpiredTokenException",
            "AWS refused the credentials (ExpiredTokenException); renew them and try again",
        ),
        ("LimitExceededException", "makes no more exports at once"),
        ("SomethingNewException", "DynamoDB answered SomethingNewException to ExportTableToPointInTime"),
    ],
)
def test_other_refusals_are_one_line(aws: DynamoDB, table: str, code: str, text: str) -> None:
    aws.refused = {"ExportTableToPointInTime": code}
    result = run(table, PLACE)
    assert result.exit_code == 1
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_failed_export_is_told_with_its_code(aws: DynamoDB, table: str) -> None:
    aws.fails = ("S3AccessDenied", "Access Denied")
    result = run(table, PLACE)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.search(
        rf"the export {table}/export/{ID} has failed: S3AccessDenied: Access Denied; grant s3:PutObject",
        result.stderr,
    )


def test_no_server_is_one_line(aws: DynamoDB, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    result = run("t", PLACE)
    assert result.exit_code == 1
    assert "t: DynamoDB cannot be reached" in result.stderr
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no AWS credentials" in run("t", PLACE).stderr


# -- windows -----------------------------------------------------------------------------------------


def test_the_first_windows_begin_in_the_second_of_the_base(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    addresses = exported(table, PLACE, "--since", "shop")
    assert windows(aws) == [(BASE, BASE + 24 * HOUR), (BASE + 24 * HOUR, BASE + 28 * HOUR)]
    assert [each["ExportType"] for each in aws.asked] == ["INCREMENTAL_EXPORT"] * 2
    assert {each["IncrementalExportSpecification"]["ExportViewType"] for each in aws.asked} == {
        "NEW_AND_OLD_IMAGES"
    }
    ids = [arn.rpartition("/")[2] for arn in aws.exports]
    assert addresses == [f"{PLACE}/AWSDynamoDB/{each}" for each in ids]


def test_the_next_follows_the_greatest_end_to_until_in_the_view_that_is_asked_for(
    aws: DynamoDB, table: str
) -> None:
    plan_of(table, (BASE, BASE + 6 * HOUR), (BASE + HOUR, BASE + 2 * HOUR))
    until = BASE + 7.5 * HOUR
    exported(table, PLACE, "--since", "shop", "--until", until.isoformat(), "--view", "NEW_IMAGE")
    assert windows(aws) == [(BASE + 6 * HOUR, until)]
    assert aws.asked[0]["IncrementalExportSpecification"]["ExportViewType"] == "NEW_IMAGE"


def test_json_has_times_and_addresses(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    result = run(table, PLACE, "--since", "shop", "--json")
    documents = json.loads(result.stdout)
    assert [each["status"] for each in documents] == ["COMPLETED"] * 2
    assert [datetime.fromisoformat(each["to"].replace("Z", "+00:00")) for each in documents] == [
        BASE + 24 * HOUR, BASE + 28 * HOUR
    ]  # fmt: skip
    assert json.loads(run(table, PLACE, "--json").stdout)[0]["from"] is None


@pytest.mark.parametrize(
    ("latest", "more", "text"),
    [
        (BASE + timedelta(minutes=14), (), "too early: a window is 15 minutes long at least, and begins at"),
        (BASE + HOUR, ("--until", BASE.isoformat()), "nothing to export: the plan of shop reaches"),
    ],
)
def test_too_early_prints_nothing_and_asks_for_nothing(
    aws: DynamoDB, table: str, latest: datetime, more: tuple[str, ...], text: str
) -> None:
    plan_of(table)
    aws.recovery = (BASE - HOUR, latest)
    result = run(table, PLACE, "--since", "shop", *more)
    assert (result.exit_code, result.stdout, aws.asked) == (0, "", [])
    assert text in result.stderr


@pytest.mark.parametrize("earliest", [BASE + HOUR, datetime.now(timezone.utc) - timedelta(days=90)])
def test_a_chain_that_recovery_does_not_reach_is_broken_for_good(
    aws: DynamoDB, table: str, earliest: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what DynamoDB says, and by the 35 days, whatever it says."""
    if earliest < BASE:
        monkeypatch.setattr(exports, "RECOVERED_DAYS", 1)
    plan_of(table)
    aws.recovery = (earliest, BASE + 28 * HOUR)
    result = run(table, PLACE, "--since", "shop")
    assert (result.exit_code, aws.asked) == (1, [])
    assert (
        f"begins at {BASE:%Y-%m-%d %H:%M:%S} UTC, but the table's recovery reaches back to" in result.stderr
    )
    assert "is broken for good: make a new full export (migration-pipeline export" in result.stderr


def test_a_future_end_is_refused(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    result = run(table, PLACE, "--since", "shop", "--until", (datetime.now(timezone.utc) + HOUR).isoformat())
    assert result.exit_code == 2
    assert "is not over yet" in result.stderr


def test_the_plan_must_be_of_this_very_table(aws: DynamoDB, table: str) -> None:
    plan_of(table.replace("table/", "table/x-"))
    result = run(table, PLACE, "--since", "shop")
    assert result.exit_code == 2
    assert f"{table}: the plan of shop is of another table" in result.stderr
    plan_of(table, table_id="before")
    aws.table_id = "now"
    result = run(table, PLACE, "--since", "shop")
    assert result.exit_code == 1
    assert (
        "dropped and made anew since the plan's full export (its id was before, and is now now)"
        in result.stderr
    )
    aws.table_id = "before"
    assert len(exported(table, PLACE, "--since", "shop")) == 2


# -- asked twice -------------------------------------------------------------------------------------


def test_a_window_that_was_asked_for_is_found_again(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    aws.pending = 1_000_000
    first = exported(table, PLACE, "--since", "shop", "--no-wait")
    aws.tokens.clear()  # eight hours are over
    for more in ((PLACE, "--view", "NEW_IMAGE"), ("s3://a-bucket/elsewhere",)):
        found = exported(table, *more, "--since", "shop", "--no-wait")
        assert len(found) == 2
        assert not {*found} & {*first}
    asked = len(aws.asked)
    aws._left = dict.fromkeys(aws.exports, 3)
    assert exported(table, PLACE, "--since", "shop") == first
    assert len(aws.asked) == asked


def test_of_complete_windows_those_count_that_are_still_there(aws: DynamoDB, table: str) -> None:
    s3 = boto3.client("s3")

    def key(address: str) -> dict[str, str]:
        return {
            "Bucket": "a-bucket",
            "Key": address.removeprefix("s3://a-bucket/") + "/manifest-summary.json",
        }

    plan_of(table)
    first = exported(table, PLACE, "--since", "shop")
    for address in first:
        s3.put_object(**key(address))  # type: ignore[arg-type]
    aws.tokens.clear()
    assert aws.recovery
    aws.recovery = (aws.recovery[0], BASE + 29 * HOUR)
    third = exported(table, PLACE, "--since", "shop")
    assert third[:2] == first
    assert windows(aws)[2:] == [(BASE + 28 * HOUR, BASE + 29 * HOUR)]
    s3.delete_object(**key(first[1]))  # type: ignore[arg-type]
    again = exported(table, PLACE, "--since", "shop")
    assert again[0] == first[0]
    assert windows(aws)[3:] == [(BASE + 24 * HOUR, BASE + 29 * HOUR)]
    # Of two that begin at once, the one that reaches farther: there is less left to ask for.
    for address in (*again, first[1]):
        s3.put_object(**key(address))  # type: ignore[arg-type]
    assert exported(table, PLACE, "--since", "shop") == again
    assert len(aws.asked) == 4


def test_the_same_window_is_one_export_by_its_token(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    first = exported(table, PLACE, "--since", "shop")
    assert exported(table, PLACE, "--since", "shop") == first
    assert len(aws.asked) == 4
    assert len(aws.exports) == 2


def test_a_failed_window_is_asked_for_anew(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    aws.recovery = (BASE - HOUR, BASE + 2 * HOUR)
    aws.fails = ("S3NoSuchBucket", "The specified bucket does not exist")
    for _ in range(2):  # each time it is tried
        assert run(table, PLACE, "--since", "shop").exit_code == 1
    failed = [arn.rpartition("/")[2] for arn in aws.exports]
    assert len(failed) == 2
    aws.fails = None
    (address,) = exported(table, PLACE, "--since", "shop")
    assert address.rpartition("/")[2] not in failed
    assert len({each["ClientToken"] for each in aws.asked}) == 3


# -- Ctrl-C ------------------------------------------------------------------------------------------


def test_ctrl_c_says_what_goes_on_in_aws(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    aws.pending = 1_000_000
    command: list[Any] = [sys.executable, "-c", "from migration_pipeline.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "export", table, PLACE, "--since", "shop"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(aws.asked) < 2 or not any(left < 999_998 for left in aws._left.values()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    for arn in aws.exports:
        place = f"{PLACE}/AWSDynamoDB/{arn.rpartition('/')[2]}"
        assert (
            f"the export goes on in AWS: {arn}; once it is complete: migration-pipeline plan shop --add {place}"
            in err
        )
    assert "Traceback" not in err


def test_moto_alone_covers_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why there is a server before it. Once this fails, moto has learned, and the server may go."""
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        client: Any = boto3.client("dynamodb", endpoint_url=environment["AWS_ENDPOINT_URL_S3"])
        arn = create_table(client, "t")
        found = client.describe_continuous_backups(TableName=arn)["ContinuousBackupsDescription"]
        recovery = found["PointInTimeRecoveryDescription"]
        assert recovery["EarliestRestorableDateTime"] == recovery["LatestRestorableDateTime"]


# -- follow, while something does not answer ---------------------------------------------------------


@pytest.mark.parametrize("code", ["ThrottlingException", "AccessDeniedException"])
def test_follow_waits_for_a_dynamodb_that_does_not_answer_now(
    aws: DynamoDB, table: str, code: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not for one that refuses: that does not pass."""
    rounds: list[bool] = []
    answers_again = True

    def sleep(_: float) -> None:
        if answers_again:
            aws.refused.clear()

    plan_of(table, (BASE, BASE + HOUR))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # boto3's own sleep, too
    course = cli_following._Course("shop", Place.of(PLACE), "NEW_AND_OLD_IMAGES", None)
    monkeypatch.setattr(course, "round", lambda *, first: rounds.append(first))
    monkeypatch.setattr(cli_following, "TRIES", 3)
    monkeypatch.setattr(time, "sleep", sleep)
    aws.refused = {"DescribeContinuousBackups": code}
    if code == "AccessDeniedException":
        with pytest.raises(exports.TableExportError, match="access denied"):
            course.go_on(HOUR)
        return
    course.go_on(HOUR)
    assert rounds == [True]  # it looks for what it had asked for
    assert "; trying again in 60 s" in capsys.readouterr().err
    answers_again, aws.refused = False, {"DescribeContinuousBackups": code}
    with pytest.raises(exports.UnreachableError):
        course.go_on(HOUR)
    assert capsys.readouterr().err.count("trying again") == 2


def test_what_is_not_over_yet_is_left_whole(aws: DynamoDB, table: str) -> None:
    plan_of(table)
    aws.recovery = (BASE - HOUR, BASE + 2 * HOUR)
    until = BASE + 2 * HOUR + timedelta(minutes=4)
    result = run(table, PLACE, "--since", "shop", "--until", until.isoformat())
    assert result.exit_code == 0
    assert windows(aws) == [(BASE, until - timedelta(minutes=15))]
    assert "cannot be exported yet; ask for the rest in some minutes" in result.stderr
