#!/usr/bin/env bash
# setuptools 84.2.1: where an optional extension does not compile, the wheel may have the one of an older source.
#
# Extension(…, optional=True) makes a package installable without a compiler: "build failure in the extension should not abort the
# build process, but simply skip the extension".
#
# Guess: a wheel that was built without the extension is like any pure one: py3-none-any.
# Seen:  its tag is of this Python and this machine, and nothing in it is. pip keeps it: once a compiler is there, an install of the
#        same sdist, with --force-reinstall too, takes the wheel without the extension from the cache.
#
# Guess: where it does not compile, the wheel has no extension.
# Seen:  true in a clean folder. pip builds in the folder itself, and what an earlier build left in build/ goes into the wheel when
#        the new source does not compile: Python code of today beside C of another day, with exit status 0 and without a warning
#        in sight.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check setuptools==84.2.1
mkdir -p "$work/source/package"
cd "$work/source"
cat >setup.py <<'END'
from setuptools import Extension, setup

setup(name="package", version="1", packages=["package"], ext_modules=[Extension("package._c", ["package/_c.c"], optional=True)])
END
printf '[build-system]\nrequires = ["setuptools==84.2.1"]\nbuild-backend = "setuptools.build_meta"\n' >pyproject.toml
write() { # the package, whose Python and C say the same number
    echo "SAYS = $1" >package/__init__.py
    cat >package/_c.c <<END
#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_c", NULL, -1, NULL};
PyMODINIT_FUNC PyInit__c(void) {
    PyObject *made = PyModule_Create(&module);
    if (made) PyModule_AddIntConstant(made, "SAYS", $1);
    return made;
}
END
}
build() { # with a compiler or, as CC=false, without one
    rm -rf "$work/wheels" "$work/installed"
    CC="$1" "$work/venv/bin/pip" wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps -w "$work/wheels" . 2>"$work/said"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$work/installed" "$work"/wheels/*.whl
    (cd "$work/installed" && "$work/venv/bin/python" - <<'END'
import package

try:
    from package import _c
except ImportError:
    _c = None
print(f"Python says {package.SAYS}, C {_c.SAYS if _c else 'is not there'}")
END
    )
}
wrong=0
expect() {
    printf '%-34s %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "    CHANGED; it was: $3"; wrong=1; }
}
compiler="${CC:-gcc}"
write 1
expect "no compiler, clean folder" "$(build false)" "Python says 1, C is not there"
tag="$(echo "$work"/wheels/*.whl | sed 's/.*package-1-//; s/\.whl$//')"
expect "tag of that wheel" "$(case "$tag" in cp3*-cp3*-linux_* | cp3*-cp3*-macosx_*) echo of a machine ;; *) echo "$tag" ;; esac)" "of a machine"
expect "compiled" "$(build "$compiler")" "Python says 1, C 1"
sleep 1 # the source is newer than what was built
write 2
expect "another source, no compiler" "$(build false)" "Python says 2, C 1"
expect "lines that pip shows of it" "$(wc -l <"$work/said" | xargs)" "0"
rm -rf build
expect "the same without build/" "$(build false)" "Python says 2, C is not there"

"$work/venv/bin/python" setup.py --quiet sdist --dist-dir "$work" >"$work/said" 2>&1
install() { # from the sdist, with pip's cache, as from an index; $1 as above
    CC="$1" "$work/venv/bin/pip" install --quiet --disable-pip-version-check --cache-dir "$work/cache" --no-build-isolation \
        --no-deps --no-index --find-links "$work" --force-reinstall "${@:2}" package
    (cd "$work" && "$work/venv/bin/python" -c 'from importlib.util import find_spec; print("with" if find_spec("package._c") else "without")')
}
expect "sdist, no compiler" "$(install false)" "without"
expect "sdist, with a compiler" "$(install "$compiler")" "without"
expect "the same, with --no-cache-dir" "$(install "$compiler" --no-cache-dir)" "with"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
