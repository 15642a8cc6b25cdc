#!/usr/bin/env bash
# amazon.ion 0.15.0: without its C extension the same call gives other values, and says nothing.
#
# There is a wheel with the extension for Python 3.8 to 3.13. Elsewhere (3.14, musl) the package installs as well, in pure Python.
#
# Guess: the extension makes it faster, and nothing else.
# Seen:  value_model is taken and not looked at: with MAY_BE_BARE a true is a bool with the extension, and a subclass of int
#        without it; with STRUCT_AS_STD_DICT a field that stands twice counts once with it, and twice without. An empty text is None with
#        it, and an IonException without.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check amazon.ion==0.15.0
"$work/venv/bin/python" - <<'PYTHON'
from amazon.ion import simpleion
from amazon.ion.exceptions import IonException
from amazon.ion.simpleion import IonPyValueModel as Model


def read(text, **how):
    try:
        return simpleion.loads(text, **how)
    except IonException as error:
        return type(error)


seen = {}
for extension in (True, False):
    assert simpleion.c_ext or not extension, "the extension is not there"
    simpleion.c_ext = extension
    seen["with C" if extension else "without"] = (
        type(read("true", value_model=Model.MAY_BE_BARE)).__name__,
        len(read("{a:1.,a:2.}", value_model=Model.STRUCT_AS_STD_DICT)),
        read(""),
    )
for name, values in seen.items():
    print(f"{name:8} true is a {values[0]}; fields of {{a:1.,a:2.}}: {values[1]}; an empty text: {values[2]}")
assert seen == {"with C": ("bool", 1, None), "without": ("IonPyBool", 2, IonException)}, "this has changed"
PYTHON
