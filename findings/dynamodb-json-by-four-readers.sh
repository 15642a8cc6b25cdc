#!/usr/bin/env bash
# dynamodb-json 1.4.2, dynamo-json 1.2.0, dynojson 0.2.0, cerealbox 0.1.2: none of four readers of DynamoDB JSON reads every item of an
# export.
#
# DynamoDB JSON has each value below the name of its type, {"N": "1.5"}. Numbers are texts of up to 38 digits, and an attribute may be
# called N or S as anything else: short names are advised, as they are paid for by length.
#
# Guess: a reader gives numbers with all their digits or refuses them, the numbers of a set as well; and what an attribute is called
#        changes nothing.
# Seen:  three round numbers to a float without a word, which leaves 17 digits of 38; dynojson whole numbers as well. dynamo-json knows
#        no sets, and says so; dynamodb-json leaves the numbers in them as texts. Where a map has an attribute S, dynamodb-json
#        takes its text for the map, and drops what else is in the map. cerealbox refuses an item with an attribute N of its own.
#        boto3's TypeDeserializer, beside them, reads each item as it is.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dynamodb-json==1.4.2 dynamo-json==1.2.0 dynojson==0.2.0 cerealbox==0.1.2 boto3==1.44.5
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import json
import sys
from decimal import Decimal

import dynamo_json
import dynojson
from boto3.dynamodb.types import TypeDeserializer
from cerealbox.dynamo import from_dynamodb_json
from dynamodb_json import json_util

readers = {
    "boto3": lambda text: {name: TypeDeserializer().deserialize(value) for name, value in json.loads(text).items()},
    "dynamodb-json": json_util.loads,
    "dynamo-json": lambda text: dynamo_json.unmarshall(json.loads(text)),
    "dynojson": lambda text: json.loads(dynojson.unmarshall(text)),
    "cerealbox": lambda text: from_dynamodb_json(json.loads(text)),
}
DIGITS = "12345678901234567890123456789012345678"
items = {
    "a whole number": ({"n": {"N": DIGITS}}, {"n": Decimal(DIGITS)}),
    "a fraction": ({"n": {"N": "0." + DIGITS}}, {"n": Decimal("0." + DIGITS)}),
    "a set of numbers": ({"n": {"NS": ["1", "2"]}}, {"n": {1, 2}}),
    "a set of texts": ({"n": {"SS": ["a", "b"]}}, {"n": {"a", "b"}}),
    "a map with S": ({"m": {"M": {"S": {"S": "x"}}}}, {"m": {"S": "x"}}),
    "a map with S and other": ({"m": {"M": {"S": {"S": "x"}, "other": {"S": "y"}}}}, {"m": {"S": "x", "other": "y"}}),
    "an item with S": ({"S": {"S": "x"}}, {"S": "x"}),
    "an item with N": ({"N": {"N": "5"}}, {"N": 5}),
}
rounded, dropped = {"n": 0.12345678901234568}, {"m": "x"}
expected = {  # where it is not what the item says
    "boto3": {},
    "dynamodb-json": {
        "a fraction": rounded, "a set of numbers": {"n": {"1", "2"}}, "a set of texts": {"n": ["a", "b"]},
        "a map with S": dropped, "a map with S and other": dropped, "an item with S": "x",
    },
    "dynamo-json": {"a fraction": rounded, "a set of numbers": "Exception", "a set of texts": "Exception"},
    "dynojson": {
        "a whole number": {"n": 1.2345678901234568e37}, "a fraction": rounded,
        "a set of numbers": {"n": [1, 2]}, "a set of texts": {"n": ["a", "b"]},  # JSON has no sets
    },
    "cerealbox": {"an item with N": "TypeError"},
}  # fmt: skip


def read_by(reader, item):
    try:
        return reader(json.dumps(item))
    except Exception as error:
        return type(error).__name__


wrong = 0
for name, reader in readers.items():
    seen = {what: got for what, (item, meant) in items.items() if (got := read_by(reader, item)) != meant}
    print(f"{name}: {len(items) - len(seen)} of {len(items)} as they are", *(f"{what}: {got!r}" for what, got in seen.items()), sep="\n    ")
    if seen != expected[name]:
        print("    CHANGED; it was:", expected[name])
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
