"""A Celery worker that executes runs: what `migration-pipeline worker` starts.

It is configured by the dagster.yaml of its DAGSTER_HOME, which has the same `run_launcher` and `storage` as the daemon's.
"""

from __future__ import annotations

from typing import Any

import msgspec
from celery.worker.control import inspect_command
from dagster import DagsterInstance
from dagster._cli.api import _execute_run_command_body
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import unpack_value
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_postgres.utils import DagsterPostgresException

from migration_pipeline.defs import aggregates, checks, jobs, migration, notify, verify_job
from migration_pipeline.defs.celery_launcher import (
    PLACES,
    WORKER_TAG,
    CheckedCeleryRunLauncher,
    Places,
    storage_id,
)
from migration_pipeline.errors import MigrationError, UsageError

LOADED_AHEAD = (aggregates, checks, jobs, migration, notify, verify_job)
"""What every run needs, loaded once: each run is a fork of the worker. The definitions themselves, and profiles, are not:
a run loads those of its own time."""


def work(runs: int, name: str) -> None:
    """Execute runs, so many at once, until a signal ends the worker.

    SIGTERM lets the runs end first, SIGQUIT does not. Raises `UsageError` when dagster.yaml does not name our launcher,
    and `MigrationError` when its storage does not answer.
    """
    try:
        with DagsterInstance.get() as instance:
            launcher = instance.run_launcher
            storage = storage_id(instance)
    except DagsterPostgresException:
        raise MigrationError("storage: Dagster's database in dagster.yaml does not answer") from None
    if not isinstance(launcher, CheckedCeleryRunLauncher):
        raise UsageError(
            f"run_launcher: expected migration_pipeline.defs.celery_launcher: CheckedCeleryRunLauncher in dagster.yaml, "
            f"found {type(launcher).__name__}"
        )
    app = launcher.celery
    places = msgspec.structs.asdict(Places(runs, launcher.default_queue, storage))

    @inspect_command(name=PLACES)  # type: ignore[untyped-decorator]
    def answer(_state: Any) -> dict[str, Any]:
        return places

    app.task(_execute, bind=True, name=TASK_EXECUTE_JOB_NAME)
    app.worker_main(
        ["worker", f"--concurrency={runs}", f"--hostname={name}@%h", "--without-gossip", "--without-mingle"]
    )


def _execute(task: Any, execute_job_args_packed: Any) -> int:
    """Execute a run in this process. It is Dagster that leaves a run alone which is over, or which another process has."""
    run_id = unpack_value(execute_job_args_packed, ExecuteRunArgs).run_id
    with DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, CheckedCeleryRunLauncher)  # noqa: S101  # `work` has seen it
        launcher.launches = False
        instance.add_run_tags(run_id, {WORKER_TAG: task.request.hostname})
        return _execute_run_command_body(run_id, instance, lambda _event: None, set_exit_code_on_failure=True)
