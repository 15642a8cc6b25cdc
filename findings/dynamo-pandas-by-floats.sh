#!/usr/bin/env bash
# dynamo-pandas 1.4.1: one long number makes a table unreadable, whole numbers are rounded, and True is written as the number 1.
#
# It reads DynamoDB's items into a DataFrame (get_df) and writes them back (put_df).
#
# Guess: a whole number that int64 holds is what it was, if no item lacks it; a longer one is a float or a Decimal.
# Seen:  each goes through a float: 2 ** 53 + 1 is one less, in a table of one item as well. A whole number of more than 28 digits
#        (DynamoDB has 38) raises decimal.InvalidOperation, and the table is not read: its remainder by 1 is asked for with Python's
#        own precision.
#
# Guess: what is written is what is in the frame: a bool a BOOL, and for a missing value (NaN, NaT, None) no attribute.
# Seen:  True is the number 1, in a column of dtype bool as well. A missing value is an attribute that is NULL, which a condition
#        attribute_exists finds; written back after reading, each item has all attributes of all items.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dynamo-pandas==1.4.1 pandas==3.1.1 'moto[dynamodb]==5.2.5'
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import boto3
import pandas as pd
from dynamo_pandas import get_df, put_df
from moto import mock_aws

mock_aws().start()
dynamodb = boto3.client("dynamodb")


def table(*items):
    """A new table with these items."""
    if dynamodb.list_tables()["TableNames"]:
        dynamodb.delete_table(TableName="orders")
    dynamodb.create_table(
        TableName="orders",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    for place, item in enumerate(items):
        dynamodb.put_item(TableName="orders", Item={"id": {"S": str(place)}, **item})


def read(number):
    """What a table of one number is read as."""
    table({"n": {"N": number}})
    try:
        return int(get_df(table="orders")["n"][0])
    except ArithmeticError as error:
        return type(error).__name__


def there():
    """The items of the table, without their keys, in the order of these."""
    items = sorted(dynamodb.scan(TableName="orders")["Items"], key=lambda item: item.pop("id")["S"])
    return items


def written(**columns):
    """What becomes of the columns of a frame."""
    table()
    frame = pd.DataFrame(columns)
    frame["id"] = [str(place) for place in range(len(frame))]
    put_df(frame, table="orders")
    return there()


def again():
    """Two items, each with an attribute of its own, after they were read and written back."""
    table({"a": {"S": "x"}}, {"b": {"S": "y"}})
    put_df(get_df(table="orders"), table="orders")
    return there()


NULL = {"NULL": True}
checks = [
    ("2 ** 53 - 1", read(str(2**53 - 1)), 2**53 - 1),
    ("2 ** 53 + 1", read(str(2**53 + 1)), 2**53),
    ("28 digits", read("1234567890123456789012345678"), int(1234567890123456789012345678.0)),
    ("29 digits", read("12345678901234567890123456789"), "InvalidOperation"),
    ("bools", written(v=[True, False]), [{"v": {"N": "1"}}, {"v": {"N": "0"}}]),
    ("missing", written(v=["x", None], n=[None, 1.5]), [{"v": {"S": "x"}, "n": NULL}, {"v": NULL, "n": {"N": "1.5"}}]),
    ("read, written back", again(), [{"a": {"S": "x"}, "b": NULL}, {"a": NULL, "b": {"S": "y"}}]),
]
wrong = 0
for name, seen, stated in checks:
    print(f"{name:22}", seen)
    if seen != stated:
        print("    CHANGED; it was:", stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
