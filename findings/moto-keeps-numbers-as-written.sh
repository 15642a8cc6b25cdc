#!/usr/bin/env bash
# moto 5.2.5: numbers in its DynamoDB are texts as they were written, and its sums end at 28 digits.
#
# DynamoDB keeps numbers as numbers: it trims zeros at both ends, has up to 38 digits, refuses more, and has each number once in a set.
# Tests of an exporter or of a migration compare what comes back, and count.
#
# Guess: moto does so too; it refuses 1E+200 and NaN as DynamoDB does, and takes 1 and 1.0 for one sort key.
# Seen:  those it does. But 1.10, 007 and 1E+2 come back as they were written, the sets [1, 1.0] and ["a", "a"] have two members each,
#        and so has a set [1] to which 1.0 is added. A number of 39 digits is stored. SET v = v + :one with a fraction of 36 digits
#        leaves 28 in all. An item that is put again with the sort key 1.0 has that for its key from then on.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'moto[dynamodb]==5.2.5' boto3==1.44.5
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import boto3
from botocore.exceptions import ClientError
from moto import mock_aws

mock_aws().start()
dynamodb = boto3.client("dynamodb")
dynamodb.create_table(
    TableName="orders",
    KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}, {"AttributeName": "sk", "AttributeType": "N"}],
    BillingMode="PAY_PER_REQUEST",
)
KEY = {"pk": {"S": "a"}, "sk": {"N": "1"}}
MANY = "12345678901234567890123456789012345678"


def kept(value):
    """What is there after a value was put."""
    try:
        dynamodb.put_item(TableName="orders", Item={**KEY, "v": value})
    except ClientError as error:
        return error.response["Error"]["Code"]
    return dynamodb.get_item(TableName="orders", Key=KEY)["Item"]["v"]


def updated(value, expression, by):
    """What is there after an update of a value that was put."""
    kept(value)
    answer = dynamodb.update_item(
        TableName="orders", Key=KEY, UpdateExpression=expression, ExpressionAttributeValues={":by": by}, ReturnValues="ALL_NEW"
    )
    return answer["Attributes"]["v"]


def keys():
    """The sort keys of all items, after one was put twice."""
    for number in ("1", "1.0"):
        dynamodb.put_item(TableName="orders", Item={"pk": {"S": "a"}, "sk": {"N": number}})
    return [each["sk"]["N"] for each in dynamodb.scan(TableName="orders")["Items"]]


checks = [
    ("1E+200", kept({"N": "1E+200"}), "ValidationException"),
    ("NaN", kept({"N": "NaN"}), "ValidationException"),
    ("1.10", kept({"N": "1.10"}), {"N": "1.10"}),
    ("007", kept({"N": "007"}), {"N": "007"}),
    ("1E+2", kept({"N": "1E+2"}), {"N": "1E+2"}),
    ("39 digits", kept({"N": MANY + "9"}), {"N": MANY + "9"}),
    ("set of 1 and 1.0", kept({"NS": ["1", "1.0"]}), {"NS": ["1", "1.0"]}),
    ("set of a and a", kept({"SS": ["a", "a"]}), {"SS": ["a", "a"]}),
    ("set of 1, with 1.0 added", updated({"NS": ["1"]}, "ADD v :by", {"NS": ["1.0"]}), {"NS": ["1", "1.0"]}),
    ("a fraction and 1", updated({"N": "0." + MANY[:36]}, "SET v = v + :by", {"N": "1"}), {"N": "1.123456789012345678901234568"}),
    ("sort keys", keys(), ["1.0"]),
]
wrong = 0
for name, seen, stated in checks:
    print(f"{name:26}", seen)
    if seen != stated:
        print("    CHANGED; it was:", stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
