"""Starts each run as a Celery task, on workers of any number of machines: dagster-celery, with its traps closed.

| in dagster-celery | here |
|---|---|
| A run's health is what the result backend says: with the default one, a live run is failed at the next look. | Its worker is asked (`migration_pipeline.defs.misses`). There is no result backend. |
| Terminate ends in a failure, which is retried. | The run is marked as canceling before its worker is told. |
| A run that waits in the broker cannot be terminated, and is failed after a while. | Runs wait in Dagster's queue: it lets out as many as workers have places (`slots`). |
| Without a broker in dagster.yaml, one on this machine is taken. | That is an error, and so is any broker but Redis (`_expect_redis`). |
| A worker has a configuration of its own. | It has that of dagster.yaml (`migration_pipeline.defs.celery_worker`). |
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any, cast

import msgspec
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus, Field, StringSource
from dagster._core.launcher import CheckRunHealthResult
from dagster._core.storage.runs import SqliteRunStorage, SqlRunStorage
from dagster_celery.config import TASK_EXECUTE_JOB_NAME
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG
from kombu.entity import Queue
from kombu.exceptions import KombuError

from migration_pipeline.defs.misses import MISSES, Misses
from migration_pipeline.errors import UsageError

QUEUE = "migration"

WORKER_TAG = "migration/worker"
"""Tag of a run: the Celery worker that has it."""

PLACES = "migration_places"
"""The question that a worker answers with a `Places`."""

ANSWER_SECONDS = 5.0
"""How long the worker of a run may take to answer. It answers at once unless its machine is very busy."""

ROLL_CALL_SECONDS = 1.5
"""How long to wait for workers to say that they are there: nobody knows how many there are."""

ROLL_CALL_EVERY_SECONDS = 15.0
"""Between two roll calls."""

SETTINGS = {
    "task_ignore_result": True,  # Dagster knows how a run ended
    "task_acks_late": False,  # no broker hands a run out again: run monitoring notices dead ones, and run retries start them
    "worker_disable_prefetch": True,  # no worker takes a run that it has no place for
    "worker_prefetch_multiplier": 1,
    "worker_max_tasks_per_child": 1,  # a process loads the definitions once: the next run may need another plan
    "worker_pool": "prefork",  # Terminate is a signal to the run's process
    "worker_redirect_stdouts": False,  # Dagster captures them
    "broker_connection_retry_on_startup": True,
}
"""Celery's settings that must be so; `config_source` in dagster.yaml may have others."""


class Places(msgspec.Struct, frozen=True):
    """What a worker says of itself."""

    runs: int
    """Runs that it executes at once."""
    queue: str
    """The queue that it takes them from."""
    storage: str
    """Id of the Dagster storage that it writes to."""


def storage_id(instance: DagsterInstance) -> str:
    """Give the id by which a worker and the daemon know that they share a storage."""
    storage = instance.run_storage
    if not isinstance(storage, SqlRunStorage):
        raise UsageError("storage: expected PostgreSQL")
    return storage.get_run_storage_id()


class CheckedCeleryRunLauncher(CeleryRunLauncher):
    """The launcher of dagster-celery; the module says what is different. Raises `UsageError` for a wrong configuration."""

    def __init__(self, default_queue: str = QUEUE, broker: str | None = None, **config: Any) -> None:
        if not broker:
            raise UsageError(
                "run_launcher: config: broker is missing: name it, as in redis://broker.example.com/0"
            )
        super().__init__(default_queue, broker, **config)
        self.celery.conf.update(SETTINGS)
        self._expect_redis()
        name, queue = TASK_EXECUTE_JOB_NAME, self.default_queue
        self.celery.conf.task_queues = [
            Queue(queue, routing_key=f"{queue}.#", queue_arguments={"x-max-priority": 10})  # type: ignore[no-untyped-call]
        ]
        self.celery.conf.task_routes = {name: {"queue": queue, "routing_key": f"{queue}.{name}"}}
        self.launches = True
        """Whether this process may launch runs. One that executes a run reads the queue's settings, too, and need not ask workers."""
        self._misses = Misses()
        self._present: dict[str, tuple[int, int]] = {}
        self._called = float("-inf")
        self._told: dict[str, str] = {}

    def _expect_redis(self) -> None:
        """See that Celery can keep a busy worker from taking a run ahead that a free one could have. Raises `UsageError`."""
        try:
            with self.celery.connection_for_write() as connection:
                kind = connection.transport.driver_type
        except (KeyError, ImportError):  # Celery does not know it, or lacks its library
            kind = ""
        if kind != "redis":
            raise UsageError(
                "run_launcher: config: broker: expected Redis (redis://, rediss:// or sentinel://): with another one a busy worker "
                "takes a run that waits then, though another worker has a place; name a Redis"
            )

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """Give the settings of dagster-celery, with a queue that its own workers do not listen to."""
        queue = Field(
            StringSource, is_required=False, default_value=QUEUE, description="The queue of all runs."
        )
        return {**cast("dict[str, Any]", super().config_type()), "default_queue": queue}

    def app_args(self) -> dict[str, Any]:
        """Give the arguments of the Celery app: those of dagster.yaml, without a result backend."""
        args: dict[str, Any] = super().app_args()
        return args | {"backend": "disabled"}

    def register_instance(self, instance: DagsterInstance) -> None:
        """Take the instance. Raises `UsageError` when workers cannot work with it."""
        super().register_instance(instance)
        if isinstance(instance.run_storage, SqliteRunStorage):
            raise UsageError(
                "storage: runs on Celery workers need Dagster's storage in PostgreSQL: no other machine sees SQLite"
            )
        if not instance.run_monitoring_settings.get("enabled"):
            raise UsageError(
                "run_monitoring: enabled: true is needed: nothing else notices a worker that is gone"
            )
        if "max_concurrent_runs" in (instance.get_settings("concurrency") or {}).get("runs", {}):
            raise UsageError(
                "concurrency: runs: max_concurrent_runs: with Celery, set it below run_coordinator: config, "
                "where it is lowered to the places that workers have"
            )

    @property
    def supports_resume_run(self) -> bool:
        """No: a dead run is failed and started anew, because it would load its file from the beginning anyway."""
        return False

    def terminate(self, run_id: str) -> bool:
        """Stop a run: at once if no worker has it yet, else as its worker's process is told to."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        if task := run.tags.get(DAGSTER_CELERY_TASK_ID_TAG):
            self.celery.control.revoke(task, terminate=True, signal="SIGTERM")
        if run.status == DagsterRunStatus.STARTING and WORKER_TAG not in run.tags:
            self._instance.report_run_canceled(
                run, "No worker had it. One that takes it now leaves it alone."
            )
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check whether a run is alive; the daemon fails it if the status is not RUNNING."""
        return self._misses.judge(self._instance, run, self._missing(run))

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Say which worker has or had the run."""
        return f"its worker: {run.tags.get(WORKER_TAG, 'none so far')}"

    def _missing(self, run: DagsterRun) -> str:
        """Say why the run seems gone; "" when a worker has it, or nobody can be asked."""
        task, worker = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG), run.tags.get(WORKER_TAG)
        if not task:
            return ""  # another launcher started it
        answers = self._ask("query_task", ANSWER_SECONDS, [worker] if worker else None, ids=[task])
        if answers is None or any(task in found for found in answers.values() if isinstance(found, dict)):
            return ""
        if not answers:
            return f"its worker {worker} does not answer" if worker else "no worker answers"
        return "its worker does not have it"

    def slots(self) -> int | None:
        """Give the number of runs that the workers can execute at once: 0 while the broker is away, None where nobody asks.

        A worker counts for `MISSES` roll calls that it does not answer, as it may be busy.
        """
        if not self.launches:
            return None
        if time.monotonic() - self._called >= ROLL_CALL_EVERY_SECONDS:
            answers = self._ask(PLACES, ROLL_CALL_SECONDS)
            self._called = time.monotonic()
            if answers is None:
                self._called = float("-inf")
                self._tell("", "the broker does not answer: nothing new starts")
                return 0
            absent = {
                w: (runs, missed + 1) for w, (runs, missed) in self._present.items() if missed + 1 < MISSES
            }
            self._present = absent | self._counted(answers)
            if self._present:
                self._told.pop("", None)
            else:
                self._tell("", f"no Celery worker takes runs from the queue {self.default_queue}")
        return sum(runs for runs, _ in self._present.values())

    def _counted(self, answers: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Those of the workers that can take runs. The log says why another one cannot, once."""
        counted = {}
        storage = storage_id(self._instance)
        for worker, answer in answers.items():
            try:
                places = msgspec.convert(answer, Places)
            except msgspec.ValidationError:
                self._tell(worker, "it was not started by `migration-pipeline worker`")
                continue
            if places.storage != storage:
                self._tell(worker, "its dagster.yaml names another storage: its runs would not be found")
            elif places.queue == self.default_queue:
                counted[worker] = places.runs, 0
        return counted

    def _tell(self, worker: str, why: str) -> None:
        if self._told.get(worker) != why:
            self._told[worker] = why
            logging.getLogger(__name__).warning("%s: %s", worker or "workers", why)

    def _ask(
        self, question: str, seconds: float, workers: list[str] | None = None, **arguments: Any
    ) -> dict[str, Any] | None:
        """Ask workers, or all; gives their answers by name, and None when the broker cannot be asked."""
        with self.celery.connection_for_write() as connection:
            try:
                connection.ensure_connection(max_retries=1, timeout=seconds)
                answers = self.celery.control.broadcast(
                    question,
                    arguments=arguments,
                    destination=workers,
                    reply=True,
                    timeout=seconds,
                    connection=connection,
                )
            except (KombuError, OSError, *connection.recoverable_connection_errors):
                return None
        return {name: answer for each in answers or () for name, answer in each.items()}
