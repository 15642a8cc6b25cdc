#!/usr/bin/env bash
# DuckDB 2.0.1: what becomes of texts when it reads lines of a DynamoDB export (the layout of a full export in DynamoDB JSON).
#
# Guess: "S" is a text of JSON, and is a text here, too; only dates may be detected, and they can be spelled as they were.
# Seen:  where all texts of an attribute that it looked at have the form, they become UUIDs, which are spelled in small letters from then on (of an id in
#        capitals there is none any more, and a join by it finds nothing); times of day; and times, without the seventh digit of a second
#        and without their own offset. Numbers and binaries stay texts, 38 digits and zeros at their end as well. A list of columns prevents all that.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check duckdb==2.0.1 pytz==2026.2
"$work/venv/bin/python" - "$work/export.json" <<'PYTHON'
import json
import sys

import duckdb

lines = [
    {
        "id": {"S": f"{first}1B2C3D4-1111-4222-8333-444455556666"},
        "made_at": {"S": "2024-01-01T10:00:00.1234567+05:00"},
        "opens": {"S": "08:30"},
        "amount": {"N": "12345678901234567890123456789012345.600"},
        "raw": {"B": "AP8="},
    }
    for first in "AB"
]
with open(sys.argv[1], "w") as file:
    file.writelines(json.dumps({"Item": item}) + "\n" for item in lines)
duckdb.sql("SET timezone = 'UTC'")
print("DuckDB", duckdb.__version__)
spelled = "Item.id.S::text, Item.made_at.S::text, Item.opens.S::text, Item.amount.N::text, Item.raw.B::text"
kinds = "typeof(Item.id.S), typeof(Item.made_at.S), typeof(Item.opens.S), typeof(Item.amount.N), typeof(Item.raw.B)"
read = f"read_json('{sys.argv[1]}', format = 'newline_delimited'"
columns = "{Item: 'STRUCT(id STRUCT(S VARCHAR), made_at STRUCT(S VARCHAR), opens STRUCT(S VARCHAR), amount STRUCT(N VARCHAR), raw STRUCT(B VARCHAR))'}"
written = tuple(next(iter(value.values())) for value in lines[0].values())
seen = duckdb.sql(f"SELECT {spelled} FROM {read}) LIMIT 1").fetchall()[0]
types = duckdb.sql(f"SELECT {kinds} FROM {read}) LIMIT 1").fetchall()[0]
told = duckdb.sql(f"SELECT {spelled} FROM {read}, columns = {columns}) LIMIT 1").fetchall()[0]
for name, text, kind, found in zip(lines[0], written, types, seen, strict=True):
    print(f"{name}: {text} is read as {kind}, {found}")
stated = (
    "a1b2c3d4-1111-4222-8333-444455556666",
    "2024-01-01 05:00:00.123456+00",
    "08:30:00",
    "12345678901234567890123456789012345.600",
    "AP8=",
)
as_stated = seen == stated and told == written
print("as stated above" if as_stated else f"CHANGED; it was {stated}, and with columns as written; with columns now {told}")
sys.exit(not as_stated)
PYTHON
