#!/usr/bin/env bash
# boto3 1.44.5: a whole number of one digit and 38 zeros is refused, on its way to DynamoDB and back, and a number that DynamoDB
# does not take is passed on.
#
# DynamoDB's numbers have up to 38 significant digits, from 1E-130 to 9.99…E+125; zeros at either end are none of them. boto3's TypeSerializer
# and TypeDeserializer, which its Table uses too, turn them into Decimals and back.
#
# Guess: what fits goes through, however it is spelled, and what does not is refused: 10 ** 38 fits, as 1E+38 does.
# Seen:  every digit that is written counts, zeros too: 10 ** 38, and Decimal("1.000…") with 38 zeros behind the point, raise
#        decimal.Rounded, though nothing is lost; so does the text of 1 and 38 zeros when it is read. A zero with an exponent
#        (Decimal("0E-200"), as a product of zero may have) raises decimal.Clamped. These are no boto errors but ArithmeticErrors.
#        Without zeros all is well: 1E+38 is written, and comes back. 1E+126 and 1E-131, beyond both ends, are passed on.
#
# Guess: True is a BOOL wherever it stands, so a set of it is refused, as a set has numbers, texts or bytes.
# Seen:  {True} is a set of numbers, ["1"], and comes back as {Decimal("1")}.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check boto3==1.44.5
"$work/venv/bin/python" - <<'PYTHON'
import sys
from decimal import Decimal

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer


def says(function, value):
    try:
        return function(value)
    except ArithmeticError as error:
        return type(error).__name__


def written(value):
    return says(TypeSerializer().serialize, value)


def read(value):
    return says(TypeDeserializer().deserialize, value)


zeros = "0" * 38
checks = [
    ("written: 10 ** 38 - 1", written(10**38 - 1), {"N": "9" * 38}),
    ("written: 10 ** 38", written(10**38), "Rounded"),
    ("written: 1E+38", written(Decimal("1E+38")), {"N": "1E+38"}),
    ("written: 1. and 38 zeros", written(Decimal("1." + zeros)), "Rounded"),
    ("written: 1. and 37 zeros", written(Decimal("1." + zeros[:-1])), {"N": "1." + zeros[:-1]}),
    ("written: 0E-200", written(Decimal("0E-200")), "Clamped"),
    ("written: 0.1 * 0 to the 200th", written(Decimal(0) * Decimal("0.1") ** 200), "Clamped"),
    ("read: 1 and 38 zeros", read({"N": "1" + zeros}), "Rounded"),
    ("read: 1E+38", read({"N": "1E+38"}), Decimal("1E+38")),
    ("written: 39 digits", written(10**38 + 1), "Inexact"),
    ("written: 1E+126", written(Decimal("1E+126")), {"N": "1E+126"}),
    ("written: 1E-131", written(Decimal("1E-131")), {"N": "1E-131"}),
    ("written: 1E+127", written(Decimal("1E+127")), "Overflow"),
    ("written: True", written(True), {"BOOL": True}),
    ("written: {True}", written({True}), {"NS": ["1"]}),
]
wrong = 0
for name, seen, stated in checks:
    print(f"{name:30} {seen}")
    if seen != stated:
        print("    CHANGED; it was:", stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
