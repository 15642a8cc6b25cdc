#!/usr/bin/env bash
# dagster 1.13.27: a crashed run is not started again if the daemon looks at the moment it is marked as failed.
#
# With `run_retries`, the daemon starts runs again whose worker crashed. It reads the event log every five seconds, from where it has
# been; a run fails in a process of its code server, or in another thread of the daemon.
#
# Guess: a run that has failed, and bears the tag dagster/will_retry: true, is started again, at that look or at a later one.
# Seen:  the event is written first, then the run's status, then the tag. A look between the event and the status takes the run for
#        one that has not failed, and goes on behind the event. No later look sees it: the run stays FAILURE with will_retry: true
#        and no run that follows, and a backfill with such a run never ends, as it waits for that run. Reporting the failure
#        once more makes the next look see it.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check dagster==1.13.27
cd "$work"
export DAGSTER_DISABLE_TELEMETRY=1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import logging
import time

from dagster import DagsterRunStatus
from dagster._core.execution.asset_backfill import backfill_runs_are_complete
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.test_utils import create_run_for_test, instance_for_test
from dagster._daemon.auto_run_reexecution import event_log_consumer
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import filter_runs_to_should_retry

logging.disable()
taken = []


def start_again(_context, records, _logger):
    """Stand for what starts runs again: note those that Dagster's own rule lets through."""
    taken.extend(run.run_id for run in filter_runs_to_should_retry([record.dagster_run for record in records], instance))
    yield


event_log_consumer.consume_new_runs_for_automatic_reexecution = start_again


class Context:
    def __init__(self, instance):
        self.instance = instance


def crash(look_in_between):
    """Fail a run as a code server does whose run worker has gone, while the daemon looks; gives the run's id."""
    run = create_run_for_test(instance, job_name="job", status=DagsterRunStatus.STARTED, tags={"dagster/backfill": "nightly"})
    storage, write_status = instance._run_storage, instance._run_storage.handle_run_event

    def meanwhile(*arguments, **more):
        storage.handle_run_event = write_status
        if look_in_between:
            look()
        return write_status(*arguments, **more)

    storage.handle_run_event = meanwhile
    instance.report_run_failed(run)
    return run.run_id


with instance_for_test({"run_retries": {"enabled": True, "max_retries": 2}}) as instance:
    daemon, context = event_log_consumer.EventLogConsumerDaemon(), Context(instance)

    def look():
        list(daemon.run_iteration(context))

    instance.add_backfill(
        PartitionBackfill("nightly", status=BulkActionStatus.REQUESTED, from_failure=False, tags={}, backfill_timestamp=time.time())
    )
    look()
    seen = crash(look_in_between=False)
    look()
    print("a look after it:       ", "started again" if seen in taken else "overlooked")
    assert seen in taken
    instance.add_run_tags(seen, {"dagster/auto_retry_run_id": "the run that follows"})
    overlooked = crash(look_in_between=True)
    for _ in range(3):
        look()
    run = instance.get_run_by_id(overlooked)
    print("a look in the middle:  ", "started again" if overlooked in taken else "overlooked", run.status.value, run.tags["dagster/will_retry"])
    assert overlooked not in taken
    assert (run.status, run.tags["dagster/will_retry"]) == (DagsterRunStatus.FAILURE, "true")
    over = backfill_runs_are_complete("nightly", instance, logging.getLogger("none"))
    print("its backfill:          ", "over" if over else "waits for it")
    assert not over
    instance.report_run_failed(run)
    look()
    print("after another report:  ", "started again" if overlooked in taken else "overlooked")
    assert overlooked in taken
PYTHON
