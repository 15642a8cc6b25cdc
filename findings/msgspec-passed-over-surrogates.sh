#!/usr/bin/env bash
# msgspec 0.22.0: a text that is passed over is checked for half a surrogate pair, and for nothing else.
#
# A record of an incremental export has an item twice, before and after a window. A decoder that keeps both as msgspec.Raw, or
# has no field for one, leaves for later what is wrong inside: so one thinks.
#
# Guess: a member that no field names, and one of type Raw, is only looked at for its end. What its texts hold is found when
#        they are decoded, invalid UTF-8 and half a surrogate pair (the escape \ud83d alone) alike.
# Seen:  invalid UTF-8 is passed over, and comes out of Raw as it was. Half a pair is a DecodeError in both, so one text that
#        DynamoDB may hold makes the whole line unreadable. The first half is told as "Input data was truncated", which
#        the line is not; the second half alone as an invalid pair.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'msgspec==0.22.0'
"$work/venv/bin/python" - <<'PYTHON'
import sys

import msgspec


class Line(msgspec.Struct):
    kept: msgspec.Raw


def read(line: bytes) -> str:
    try:
        return bytes(msgspec.json.decode(line, type=Line).kept).decode("latin-1")
    except msgspec.DecodeError as error:
        return f"{type(error).__name__}: {str(error).split(' (')[0]}"


seen = {
    "invalid UTF-8, passed over": read(b'{"kept":1,"other":"\xff"}'),
    "invalid UTF-8, Raw": read(b'{"kept":"\xff"}'),
    "first half, passed over": read(rb'{"kept":1,"other":"\ud83d"}'),
    "first half, Raw": read(rb'{"kept":"\ud83d"}'),
    "second half, passed over": read(rb'{"kept":1,"other":"\ude00"}'),
    "a pair, passed over": read(rb'{"kept":1,"other":"\ud83d\ude00"}'),
}
for case, told in seen.items():
    print(f"{case}: {told}")
wanted = ["1", '"\xff"', "DecodeError: Input data was truncated", "DecodeError: Input data was truncated",
          "DecodeError: JSON is malformed: invalid utf-16 surrogate pair", "1"]
sys.exit(list(seen.values()) != wanted)
PYTHON
