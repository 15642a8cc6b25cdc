#!/usr/bin/env bash
# pynamodb 6.1.0: an item that is read and saved has other numbers, and only the attributes that its model names.
#
# A model's NumberAttribute is DynamoDB's number, of up to 38 digits. Writers and readers of a table may have models of different days.
#
# Guess: a number keeps its digits, as a Decimal if it is no int, and save() of an item that was read changes nothing that was not set.
# Seen:  numbers go through JSON: with a point or an exponent they are floats, so 17 digits of 38 are left, in maps and sets
#        too; 1E+2 is saved as 100.0. A Decimal is refused, and True is sent as the number "true", NaN as the number "NaN". save()
#        puts the whole item: what the model does not name is gone, except within a map. update() of one attribute leaves the others.
#
# Guess: UTCDateTimeAttribute reads any ISO 8601 time.
# Seen:  only its own spelling, "2024-01-01T00:00:00.000000+0000", with six digits and no colon. "…Z", as other SDKs write it, is a
#        ValueError, which a scan ends with.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pynamodb==6.1.0 'moto[dynamodb]==5.2.5'
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys
from decimal import Decimal

import boto3
from moto import mock_aws
from pynamodb.attributes import MapAttribute, NumberAttribute, NumberSetAttribute, UnicodeAttribute, UTCDateTimeAttribute
from pynamodb.models import Model

mock_aws().start()


class Order(Model):
    class Meta:
        table_name = "orders"
        region = "us-east-1"

    id = UnicodeAttribute(hash_key=True)
    total = NumberAttribute(null=True)
    parts = NumberSetAttribute(null=True)
    more = MapAttribute(null=True)
    at = UTCDateTimeAttribute(null=True)


Order.create_table(billing_mode="PAY_PER_REQUEST")
dynamodb = boto3.client("dynamodb")


def there(**attributes):
    """Put an item by boto3."""
    dynamodb.put_item(TableName="orders", Item={"id": {"S": "a"}, **attributes})


def after(change):
    """What DynamoDB has after a change of the item by its model."""
    change(Order.get("a"))
    item = dynamodb.get_item(TableName="orders", Key={"id": {"S": "a"}})["Item"]
    del item["id"]
    return item


def says(function):
    try:
        return function()
    except Exception as error:
        return type(error).__name__


DIGITS = "0.12345678901234567890123456789012345678"
ROUNDED = "0.12345678901234568"
checks = []
there(total={"N": DIGITS}, parts={"NS": [DIGITS]}, more={"M": {"deep": {"N": DIGITS}, "unnamed": {"S": "x"}}}, unnamed={"S": "x"})
checks.append((
    "read and saved", after(Order.save),
    {"total": {"N": ROUNDED}, "parts": {"NS": [ROUNDED]}, "more": {"M": {"deep": {"N": ROUNDED}, "unnamed": {"S": "x"}}}},
))  # fmt: skip
there(total={"N": DIGITS}, unnamed={"S": "x"})
checks.append((
    "updated", after(lambda order: order.update(actions=[Order.parts.set({1})])),
    {"total": {"N": DIGITS}, "unnamed": {"S": "x"}, "parts": {"NS": ["1"]}},
))  # fmt: skip
there(total={"N": "1E+2"})
checks.append(("1E+2", after(Order.save), {"total": {"N": "100.0"}}))
there(total={"N": "12345678901234567890123456789012345678"})
checks.append(("38 digits", after(Order.save), {"total": {"N": "12345678901234567890123456789012345678"}}))
for value, stated in ((True, {"N": "true"}), (float("nan"), {"N": "NaN"}), (Decimal("1.5"), "TypeError")):
    checks.append((f"{value!r} is sent as", says(lambda: Order("a", total=value).serialize()["total"]), stated))
for text, stated in (("2024-01-01T00:00:00.000000+0000", "2024-01-01T00:00:00+00:00"), ("2024-01-01T00:00:00Z", "ValueError")):
    there(at={"S": text})
    checks.append((text, says(lambda: next(iter(Order.scan())).at.isoformat()), stated))
wrong = 0
for name, seen, stated in checks:
    print(f"{name:32}", seen)
    if seen != stated:
        print("    CHANGED; it was:", stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
