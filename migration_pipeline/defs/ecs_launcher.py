"""Starts each run as an ECS task, as dagster-aws does, and does not take a lost answer of ECS for the end of a run."""

from __future__ import annotations

import os
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_aws.ecs import EcsRunLauncher

from migration_pipeline.defs.misses import Misses


class CheckedEcsRunLauncher(EcsRunLauncher):
    """The launcher of dagster-aws, with the rule of `migration_pipeline.defs.misses` for its check of a run's health.

    A task that is STOPPED with status 0 although its run is not over counts as gone, too: dagster-aws takes it for a
    success, and the run would stay STARTED.

    A task definition that is named without a revision is the newest one at each run, as ECS takes it: dagster-aws looks the
    revision up once, so that a daemon that is not started again would run the image of before.
    """

    def __init__(self, *arguments: Any, **config: Any) -> None:
        super().__init__(*arguments, **config)
        if self.task_definition:
            named = config["task_definition"]
            self.task_definition = named if isinstance(named, str) else os.environ[named["env"]]
        self._misses = Misses()

    @property
    def supports_resume_run(self) -> bool:
        """No: a dead run is failed and started anew, because it would load its file from the beginning anyway."""
        return False

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Check whether a run is alive; the daemon fails it if the status is not RUNNING."""
        reason, lost = "", WorkerStatus.NOT_FOUND
        try:
            found = super().check_run_worker_health(run)
        except (ClientError, BotoCoreError):
            pass  # ECS could not be asked, so nobody can tell
        else:
            if found.status == WorkerStatus.SUCCESS:
                reason = "its task has ended, and it has not"
            elif found.status == WorkerStatus.FAILED:
                reason, lost = found.msg or "its task has failed", found.status
            elif found.status != WorkerStatus.RUNNING:
                reason = found.msg or "ECS does not have its task"
        return self._misses.judge(self._instance, run, reason, lost)
