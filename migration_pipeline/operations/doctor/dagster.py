"""The Dagster that the commands talk to: webserver, code, daemon, launcher, queue. Seen through its GraphQL, as its UI sees it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from migration_pipeline import settings
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.client import DagsterClient, first_line
from migration_pipeline.operations.doctor.findings import Finding, Findings, told
from migration_pipeline.profile.profile import Profile
from migration_pipeline.units import counted, moment

PATIENCE_SECONDS = 20

SILENT_SECONDS = 180
"""How long a part of the daemon may send no heartbeat. It sends one every 30 seconds, on a busy machine later."""

AWRY_SECONDS = 600
"""How far the times of runs may be off: clocks of two machines differ by less, and all time zones by more."""

INSTANCE = """
query Instance {
  version
  instance {
    runLauncher { name }
    runQueuingSupported
    runQueueConfig { maxConcurrentRuns }
    daemonHealth {
      allDaemonStatuses { daemonType required healthy lastHeartbeatTime lastHeartbeatErrors { message } }
    }
  }
  workspaceOrError {
    ... on Workspace {
      locationEntries { name locationOrLoadError { __typename ... on PythonError { message } } }
    }
  }
  partitionBackfillsOrError(limit: 5) {
    ... on PartitionBackfills { results { timestamp runs(limit: 1) { creationTime } } }
  }
  queued: runsOrError(filter: {statuses: [QUEUED]}, limit: 1000) { ... on Runs { results { id } } }
  started: runsOrError(filter: {statuses: [STARTING, STARTED]}, limit: 1000) { ... on Runs { results { id } } }
}"""

CHECKED = {
    "DefaultRunLauncher": "a run whose process dies silently (a reboot) holds its place in the queue for ever"
}
"""Launchers that do not look after their runs, and what comes of it."""


def dagster(planned: Sequence[tuple[Plan, Profile]]) -> Findings:
    """Look at Dagster, and whether it knows these plans."""
    found: Findings = []
    with told(found, "Dagster"):
        client = DagsterClient(settings.webserver_url(), PATIENCE_SECONDS)
        seen = client.query(INSTANCE)
        found.append(_webserver(client.url, seen["version"]))
        found.extend(_code(seen["workspaceOrError"]["locationEntries"]))
        found.extend(_known(client, plan, profile) for plan, profile in planned)
        found.append(_daemons(seen["instance"]["daemonHealth"]["allDaemonStatuses"]))
        found.append(_launcher(seen["instance"]))
        found.append(_queue(seen))
        found.extend(_times(seen["partitionBackfillsOrError"].get("results", ())))
    return found


def _webserver(url: str, there: str) -> Finding:
    here = version("dagster")
    if there != here:
        return Finding(
            "Dagster",
            "warning",
            f"{url}: version {there}, and {here} is installed here",
            "install the same version on both sides",
        )
    return Finding("Dagster", "ok", f"{url}: version {there}")


def _code(entries: Sequence[Mapping[str, Any]]) -> Findings:
    found = []
    for entry in entries:
        loaded = entry["locationOrLoadError"] or {}
        if loaded.get("__typename") == "PythonError":
            found.append(
                Finding(
                    "code",
                    "failed",
                    f"{entry['name']}: {first_line(loaded)}",
                    "fix it, then reload the definitions in the UI",
                )
            )
        else:
            found.append(Finding("code", "ok", f"{entry['name']} is loaded"))
    return found or [
        Finding(
            "code",
            "failed",
            "no code location",
            "start Dagster with workspace.yaml, or -m migration_pipeline.definitions",
        )
    ]


def _known(client: DagsterClient, plan: Plan, profile: Profile) -> Finding:
    if client.knows(plan, profile):
        return Finding(
            "code", "ok", f"the plan of {plan.profile} is shown, with its {counted(len(plan.files), 'file')}"
        )
    return Finding(
        "code",
        "warning",
        f"Dagster does not show the plan of {plan.profile}, or another one",
        f"reload the definitions in the UI; if that does not help, give both sides the same {settings.PLANS_DIR}",
    )


def _daemons(statuses: Sequence[Mapping[str, Any]], now: float | None = None) -> Finding:
    """Judge the daemon by its heartbeats; Dagster itself calls one healthy that was silent for half an hour."""
    required = [each for each in statuses if each["required"]]
    since = (now or time.time()) - SILENT_SECONDS
    ill = [each for each in required if not each["healthy"] or (each["lastHeartbeatTime"] or 0) < since]
    if not ill:
        return Finding("daemon", "ok", f"alive, with {counted(len(required), 'service')}")
    beats = [each["lastHeartbeatTime"] for each in ill if each["lastHeartbeatTime"]]
    last = f"; last heard {moment(min(beats))} UTC" if beats else ""
    errors = [first_line(error) for each in ill for error in each["lastHeartbeatErrors"]]
    why = f": {errors[0]}" if errors else ""
    names = ", ".join(each["daemonType"].lower() for each in ill)
    return Finding(
        "daemon",
        "failed",
        f"not alive ({names}){last}{why}",
        "start `dagster-daemon run`, with this instance's DAGSTER_HOME: without it nothing is launched",
    )


def _launcher(instance: Mapping[str, Any]) -> Finding:
    name = (instance["runLauncher"] or {}).get("name", "none")
    if name in CHECKED:
        return Finding(
            "launcher",
            "warning",
            f"{name}: {CHECKED[name]}",
            "take run_launcher and run_monitoring from dagster.yaml of this project",
        )
    return Finding("launcher", "ok", name)


def _queue(seen: Mapping[str, Any]) -> Finding:
    instance = seen["instance"]
    if not instance["runQueuingSupported"]:
        return Finding(
            "queue",
            "warning",
            "none: a backfill starts the runs of all files at once",
            "take run_coordinator and concurrency from dagster.yaml of this project",
        )
    queued, started = (len(seen[name].get("results", ())) for name in ("queued", "started"))
    limit = (instance["runQueueConfig"] or {}).get("maxConcurrentRuns")
    bound = (
        f"at most {counted(limit, 'run')} at once"
        if limit is not None and limit >= 0
        else "any number of runs at once"
    )
    return Finding("queue", "ok", f"{bound}; {started:,} running, {queued:,} waiting")


def _times(backfills: Sequence[Mapping[str, Any]]) -> Findings:
    """Tell if runs were made before their backfill, or are from the future: dagster-postgres takes local times for UTC's."""
    runs = [(run["creationTime"], each["timestamp"]) for each in backfills for run in each["runs"]]
    now = time.time()
    if all(launched - AWRY_SECONDS < made < now + AWRY_SECONDS for made, launched in runs):
        return []
    return [
        Finding(
            "storage",
            "warning",
            "the times of runs are off: Dagster's PostgreSQL is in another time zone than UTC, so runs that are being made may be given up",
            "add options=-c%20timezone%3DUTC to the URL of Dagster's storage, or ALTER ROLE … SET timezone = 'UTC' for its role",
        )
    ]
