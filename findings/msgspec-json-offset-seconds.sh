#!/usr/bin/env bash
# msgspec 0.22.0: a datetime whose offset has seconds is another instant in JSON, without a word.
#
# Offsets with seconds are what Python's zoneinfo has for times before time zones: Berlin was at +00:53:28 until
# 1893, Amsterdam at +00:19:32 until 1937, Monrovia at -00:44:30 until 1972.
#
# Guess: json.encode writes the seconds, as isoformat() does ("+00:53:28"), or the instant in UTC, or refuses.
# Seen:  it rounds the offset to minutes and keeps the local time: 28 seconds are lost, and -00:00:30 becomes "Z".
#        to_builtins does the same. msgpack, of the same library, keeps the instant.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check msgspec==0.22.0
"$work/venv/bin/python" - <<'PYTHON'
import sys
from datetime import datetime, timedelta, timezone

import msgspec


def off(offset, encode, decode):
    """Seconds by which an instant is another one after a way there and back."""
    moment = datetime(1890, 1, 1, 12, tzinfo=timezone(offset))
    encoded = encode(moment)
    seconds = (decode(encoded) - moment).total_seconds()
    print(f"{moment.isoformat()}: {encoded!r}, off by {seconds:+.0f} s")
    return seconds


WAYS = {
    "json": (msgspec.json.encode, lambda encoded: msgspec.json.decode(encoded, type=datetime)),
    "to_builtins": (msgspec.to_builtins, lambda encoded: msgspec.convert(encoded, datetime)),
    "msgpack": (msgspec.msgpack.encode, msgspec.msgpack.decode),
}
OFFSETS = {
    "Berlin": timedelta(minutes=53, seconds=28),
    "Amsterdam": timedelta(minutes=19, seconds=32),
    "Monrovia": -timedelta(minutes=44, seconds=30),
    "UTC less 30 s": -timedelta(seconds=30),
    "whole minutes": timedelta(hours=5, minutes=45),
}
seen = {way: [off(offset, *steps) for offset in OFFSETS.values()] for way, steps in WAYS.items()}
rounded = [28, -28, -30, -30, 0]
sys.exit([list(map(abs, seen["json"])), seen["to_builtins"] == seen["json"], seen["msgpack"]]
         != [list(map(abs, rounded)), True, [0, 0, 0, 0, 0]])
PYTHON
echo "as stated above"
