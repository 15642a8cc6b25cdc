#!/usr/bin/env bash
# moto 5.2.5: an export of a DynamoDB table to S3 is COMPLETED, and no reader of exports can find its files.
#
# DynamoDB writes manifest-summary.json, manifest-files.json and their .md5 below AWSDynamoDB/<id>/, and names the
# data files there; <id> is the end of the export's ARN, arn:…:table/t/export/<id>. S3Prefix is optional.
#
# Guess: moto's export_table_to_point_in_time writes this layout, so that a reader can be tested with it.
# Seen:  it writes one file and no manifest. The folder's id is in nothing that the API returns: the ARN holds
#        the table's ARN a second time and ends in /import/<another id>. The format is called DYNAMO_JSON, which is
#        none of the API's. BilledSizeBytes is the number of items. Items are spelled with spaces. Without S3Prefix it is a KeyError.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'moto[dynamodb,s3]==5.2.5' 'boto3>=1.40,<2'
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" - <<'PYTHON'
import gzip
import re
import sys
import time

import boto3
from moto import mock_aws

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
    for n in range(3):
        dynamodb.put_item(TableName="t", Item={"PK": {"S": str(n)}, "text": {"S": "x" * 1000}})
    try:
        dynamodb.export_table_to_point_in_time(TableArn=table, S3Bucket="my-bucket")
        without_prefix = "works"
    except Exception as error:
        without_prefix = f"{type(error).__name__}: {error}"
    made = dynamodb.export_table_to_point_in_time(TableArn=table, S3Bucket="my-bucket", S3Prefix="backup")
    for _ in range(100):  # a thread makes it
        export = dynamodb.describe_export(ExportArn=made["ExportDescription"]["ExportArn"])["ExportDescription"]
        if export["ExportStatus"] != "IN_PROGRESS":
            break
        time.sleep(0.1)
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket="my-bucket")["Contents"]]
    body = gzip.decompress(s3.get_object(Bucket="my-bucket", Key=keys[0])["Body"].read())

shown = {name: export.get(name) for name in ("ExportArn", "ExportStatus", "ExportFormat", "ItemCount", "BilledSizeBytes", "ExportManifest")}
print(shown, keys, body[:40], f"without a prefix: {without_prefix}", sep="\n")
folder = re.fullmatch(r"backup/AWSDynamoDB/([-0-9a-f]{36})/data/[-0-9a-f]{36}\.gz", keys[0])
sys.exit(not (
    len(keys) == 1
    and folder
    and folder[1] not in str(export)
    and re.fullmatch(re.escape(table.rpartition("/")[0]) + "/" + re.escape(table) + "/import/[0-9a-f]{32}", export["ExportArn"])
    and (export["ExportStatus"], export["ExportFormat"], export.get("ExportManifest")) == ("COMPLETED", "DYNAMO_JSON", None)
    and export["BilledSizeBytes"] == export["ItemCount"] == 3
    and body.startswith(b'{"Item": {"PK": {"S": ')
    and without_prefix == "KeyError: 'S3Prefix'"
))
PYTHON
echo "as stated above"
