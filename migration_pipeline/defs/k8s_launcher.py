"""Starts each run as a Kubernetes job, as dagster-k8s does, and does not take a lost answer for the end of a run."""

from __future__ import annotations

from typing import Any

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_k8s import K8sRunLauncher

from migration_pipeline.defs.misses import Misses


class CheckedK8sRunLauncher(K8sRunLauncher):
    """The launcher of dagster-k8s, with the rule of `migration_pipeline.defs.misses` for its check of a run's health."""

    def __init__(self, *arguments: Any, **config: Any) -> None:
        super().__init__(*arguments, **config)
        self._misses = Misses()

    @property
    def supports_resume_run(self) -> bool:
        """No: a dead run is failed and started anew, because it would load its file from the beginning anyway."""
        return False

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check whether a run is alive; the daemon fails it if the status is not RUNNING."""
        found = super().check_run_worker_health(run)
        reason, lost = "", WorkerStatus.NOT_FOUND
        if found.status in (WorkerStatus.SUCCESS, WorkerStatus.FAILED):
            reason, lost = found.msg or "its job has ended, and it has not", WorkerStatus.FAILED
        elif found.status != WorkerStatus.RUNNING and (found.msg or "").endswith("could not be found"):
            reason = found.msg or ""
        # Any other UNKNOWN is an error of the API: nobody can tell.
        return self._misses.judge(self._instance, run, reason, lost)
