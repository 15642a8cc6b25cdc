#!/usr/bin/env bash
# moto 5.2.5: an incremental export of a DynamoDB table is a full one by another name.
#
# DynamoDB's incremental export has the items that were written within IncrementalExportSpecification's times, each as a
# record with Keys, Metadata.WriteTimestampMicros and images, and DescribeExport tells the times again. A window that ends
# in the future, or that is longer than 24 hours, is refused; so is Amazon Ion for it.
#
# Guess: moto refuses what it cannot do (NotImplementedError, as elsewhere), or leaves out what was written outside of the
#        window, so that a loader of windows can be tested with it.
# Seen:  ExportType comes back as INCREMENTAL_EXPORT, the status is COMPLETED, and the file has all items of the table, as
#        a full export has them: {"Item": …}, without Keys and Metadata. An item written a day after the window's end is in
#        it. A window of 30 hours that ends in three days is COMPLETED, and so is one in Ion, whose file is DynamoDB JSON.
#        DescribeExport has neither the window nor ExportTime.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'moto[dynamodb,s3]==5.2.5' 'boto3>=1.40,<2'
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" - <<'PYTHON'
import gzip
import sys
import time
from datetime import datetime, timedelta, timezone

import boto3
from moto import mock_aws

now = datetime.now(timezone.utc)


def window(begin: timedelta, end: timedelta) -> dict:
    times = {"ExportFromTime": now + begin, "ExportToTime": now + end}
    return {"ExportType": "INCREMENTAL_EXPORT", "IncrementalExportSpecification": {**times, "ExportViewType": "NEW_AND_OLD_IMAGES"}}


past, future = window(timedelta(hours=-48), timedelta(hours=-24)), window(timedelta(hours=42), timedelta(hours=72))
with mock_aws():
    s3, dynamodb = boto3.client("s3"), boto3.client("dynamodb")
    s3.create_bucket(Bucket="my-bucket")
    table = dynamodb.create_table(
        TableName="t",
        KeySchema=[{"AttributeName": "PK", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "PK", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )["TableDescription"]["TableArn"]
    dynamodb.update_continuous_backups(
        TableName="t", PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    dynamodb.put_item(TableName="t", Item={"PK": {"S": "written now"}})
    seen = []
    for number, asked in enumerate((past, future, past | {"ExportFormat": "ION"})):
        prefix = f"export-{number}"
        made = dynamodb.export_table_to_point_in_time(
            TableArn=table, S3Bucket="my-bucket", S3Prefix=prefix, **asked
        )["ExportDescription"]
        for _ in range(100):  # a thread makes it
            told = dynamodb.describe_export(ExportArn=made["ExportArn"])["ExportDescription"]
            if told["ExportStatus"] != "IN_PROGRESS":
                break
            time.sleep(0.1)
        (file,) = s3.list_objects_v2(Bucket="my-bucket", Prefix=prefix)["Contents"]
        body = gzip.decompress(s3.get_object(Bucket="my-bucket", Key=file["Key"])["Body"].read())
        seen.append((told["ExportStatus"], told["ExportType"], told["ItemCount"], told["ExportFormat"], body,
                     told.get("IncrementalExportSpecification"), told.get("ExportTime")))

print(*seen, sep="\n")
full = b'{"Item": {"PK": {"S": "written now"}}}\n'
sys.exit(seen != [
    ("COMPLETED", "INCREMENTAL_EXPORT", 1, "DYNAMO_JSON", full, None, None),
    ("COMPLETED", "INCREMENTAL_EXPORT", 1, "DYNAMO_JSON", full, None, None),
    ("COMPLETED", "INCREMENTAL_EXPORT", 1, "ION", full, None, None),
])
PYTHON
echo "as stated above"
