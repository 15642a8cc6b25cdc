#!/usr/bin/env bash
# msgspec 0.22.0: the seventh digit of a time's fraction rounds it up, into the next year, or out of what a datetime can be.
#
# A datetime ends at the microsecond; RFC 3339 has no such end. .NET writes seven digits ("O"), Go and Java nine.
#
# Guess: digits that do not fit are cut off, as datetime.fromisoformat does: a time is never later than what was written.
# Seen:  they round. 23:59:59.9999999 on New Year's Eve is next year. DateTime.MaxValue of .NET, 9999-12-31T23:59:59.9999999Z, which
#        stands for "never" in many a table, is a ValidationError that speaks of an invalid encoding; with six digits it is read. `time`
#        has no next day, so there the last moment of a day becomes its first; `datetime` from a number of seconds rounds as well.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'msgspec==0.22.0'
"$work/venv/bin/python" - <<'PYTHON'
from datetime import datetime, time

import msgspec


def read(text: str, kind: type) -> str:
    try:
        return msgspec.json.decode(text.encode(), type=kind, strict=False).isoformat()
    except msgspec.ValidationError as error:
        return f"{type(error).__name__}: {error}"


SEEN = {
    ('"2024-12-31T23:59:59.9999994Z"', datetime): "2024-12-31T23:59:59.999999+00:00",
    ('"2024-12-31T23:59:59.9999995Z"', datetime): "2025-01-01T00:00:00+00:00",
    ('"2024-12-31T23:59:59.9999999Z"', datetime): "2025-01-01T00:00:00+00:00",
    ('"9999-12-31T23:59:59.999999Z"', datetime): "9999-12-31T23:59:59.999999+00:00",
    ('"9999-12-31T23:59:59.9999999Z"', datetime): "ValidationError: Invalid RFC3339 encoded datetime",
    ('"23:59:59.9999999"', time): "00:00:00",
    ("1735689599.9999999", datetime): "2025-01-01T00:00:00+00:00",
}
changed = []
for (text, kind), expected in SEEN.items():
    print(f"{kind.__name__:8} {text:32} {(found := read(text, kind))}")
    if found != expected:
        changed.append(text)
assert not changed, f"CHANGED: {changed}"
print("as stated above")
PYTHON
