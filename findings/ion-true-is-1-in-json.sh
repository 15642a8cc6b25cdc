#!/usr/bin/env bash
# amazon.ion 0.15.0: what is true in Ion is 1 in JSON, and null is no None.
#
# `loads` gives values that also know their annotations: subclasses of Python's own types. Python's bool and None cannot
# have subclasses.
#
# Guess: what is read from Ion can be given to `json.dumps`, and tested with `is None` and isinstance(…, bool).
# Seen:  a struct is no dict. true is an IonPyBool, a subclass of int: json.dumps writes 1, isinstance(…, bool) is False. null is an
#        IonPyNull, which neither `is None` nor `== None` finds; json.dumps refuses it. Texts and lists are written as expected.
#        With value_model=IonPyValueModel.MAY_BE_BARE all is as guessed.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check amazon.ion==0.15.0
"$work/venv/bin/python" - <<'PYTHON'
import json

from amazon.ion import simpleion
from amazon.ion.simpleion import IonPyValueModel

TEXT = '{active:true,name:"a",tags:["x"]}'
read = simpleion.loads(TEXT)
null = simpleion.loads("null")
bare = simpleion.loads(TEXT, value_model=IonPyValueModel.MAY_BE_BARE)
try:
    refused = json.dumps({"it": null})
except TypeError as error:
    refused = type(error).__name__
seen = {
    "json": json.dumps(dict(read)),
    "is a dict": isinstance(read, dict),
    "is a bool": isinstance(read["active"], bool),
    "null is None": null is None,
    "null == None": null == None,  # noqa: E711
    "null in JSON": refused,
    "bare, in JSON": json.dumps(dict(bare)),
    "bare null is None": simpleion.loads("null", value_model=IonPyValueModel.MAY_BE_BARE) is None,
}
for name, value in seen.items():
    print(f"{name:18} {value}")
assert simpleion.c_ext
assert seen == {
    "json": '{"active": 1, "name": "a", "tags": ["x"]}',
    "is a dict": False,
    "is a bool": False,
    "null is None": False,
    "null == None": False,
    "null in JSON": "TypeError",
    "bare, in JSON": '{"active": true, "name": "a", "tags": ["x"]}',
    "bare null is None": True,
}, "this has changed"
PYTHON
