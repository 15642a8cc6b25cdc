"""Runs as ECS tasks, with the files of deploy/ecs: moto's ECS, whose tasks a small harness runs as processes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psycopg2
import pytest

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.ecs import REGION, Tasks, ecs
from migration_pipeline_tests.operating import Operation, eventually, operation
from migration_pipeline_tests.oracle import actual, expected
from migration_pipeline_tests.s3 import s3_server

DEPLOY = Path(__file__).parents[2] / "deploy" / "ecs"
TABLES = ("customers", "orders", "order_lines", "shop_events")
POLL_SECONDS = 3
PLACEHOLDERS = {"ACCOUNT": "123456789012", "REGION": "us-east-1", "BUCKET": "ecs-exports", "TAG": "1"}
"""What an operator fills in."""


def definitions() -> list[dict[str, Any]]:
    found = []
    for file in sorted(DEPLOY.glob("*.json")):
        text = file.read_text()
        for name, value in PLACEHOLDERS.items():
            text = text.replace(name, value)
        found.append(json.loads(text))
    return found


def register_again(family: str, endpoint: str) -> str:
    """Register a definition once more, as for a new image; gives the ARN of the new revision."""
    client = boto3.client("ecs", region_name=REGION, endpoint_url=endpoint)
    had = client.describe_task_definition(taskDefinition=family)["taskDefinition"]
    made = client.register_task_definition(
        family=family, requiresCompatibilities=["FARGATE"], networkMode="awsvpc", cpu=had["cpu"], memory=had["memory"],
        containerDefinitions=had["containerDefinitions"],
    )  # fmt: skip
    assert made["taskDefinition"]["revision"] == had["revision"] + 1
    return str(made["taskDefinition"]["taskDefinitionArn"])


@pytest.fixture(scope="module")
def shared(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Operation, Tasks, Plan, Path]]:
    folder = tmp_path_factory.mktemp("ecs")
    export = write_sample(folder, items=4_000, files=4, seed=33)
    for name in ("ecs_dagster", "ecs_target"):
        execute(postgres.url, f"CREATE DATABASE {name}")
    dagster, target = (postgres.url.replace("/postgres?", f"/{n}?") for n in ("ecs_dagster", "ecs_target"))
    settings = (DEPLOY / "dagster.yaml").read_text()
    for shipped, here in {
        "poll_interval_seconds: 30": f"poll_interval_seconds: {POLL_SECONDS}",
        "max_concurrent_runs: 16": "max_concurrent_runs: 2",
    }.items():
        assert shipped in settings
        settings = settings.replace(shipped, here)
    (folder / "dagster").mkdir()
    (folder / "dagster" / "dagster.yaml").write_text(settings)
    with pytest.MonkeyPatch.context() as patch, s3_server() as aws:
        for name, value in aws.items():
            patch.setenv(name, value)
        with (
            ecs(folder, definitions(), aws["AWS_ENDPOINT_URL_S3"]) as (tasks, environment),
            operation(
                folder,
                "ecs-exports",
                DAGSTER_HOME=str(folder / "dagster"),
                DAGSTER_PG_URL=dagster.replace("postgresql:", "postgresql+psycopg2:"),
                DAGSTER_LOGS_BUCKET="ecs-exports",
                MIGRATION_PLANS="s3://ecs-exports/plans",
                MIGRATION_DATABASE_URL=target,
                **environment,
            ) as (operator, bucket),
        ):
            tasks.environment = operator.environment
            plan = operator.plan("shop", bucket.upload(export), "shop")
            yield operator, tasks, plan, export


def test_runs_are_tasks_and_a_lost_answer_fails_none(
    shared: tuple[Operation, Tasks, Plan, Path],
) -> None:
    operator, tasks, plan, export = shared
    full = [planned.partition for planned in plan.files if planned.file.items]
    operator.hold("customers")
    backfill = operator.launch(plan, tables=TABLES, partitions=full)

    def statuses() -> list[str]:
        return sorted(run["status"] for run in operator.runs(backfill))

    def task_of(run_id: str) -> str:
        return str(
            next(run["tags"]["ecs/task_arn"] for run in operator.runs(backfill) if run["id"] == run_id)
        )

    eventually(lambda: len(operator.held()) == 2, "two files are loading")
    one, other = operator.held()

    # ECS says once of each that it has no such task: nothing happens to them.
    tasks.lose = 2
    eventually(lambda: tasks.lost == 2, "two answers are lost")
    time.sleep(2 * POLL_SECONDS)
    assert statuses() == ["QUEUED", "STARTED", "STARTED"]

    # A task is killed: its run is failed and started again, and the file is loaded once.
    tasks.process(task_of(one)).kill()
    eventually(lambda: "FAILURE" in statuses(), "the run of the killed task is failed")
    # Another is terminated, and stays canceled.
    operator.terminate(other)
    operator.release()
    eventually(
        lambda: statuses() == ["CANCELED", "FAILURE", "SUCCESS", "SUCCESS"], "the others are loaded", 300
    )
    assert [run["id"] for run in operator.runs(backfill) if run["status"] == "CANCELED"] == [other]

    # The rest runs as the definition says by now, without a restart of the daemon.
    newest = register_again("migration-run", operator.environment["AWS_ENDPOINT_URL"])
    again = operator.launch(plan, tables=TABLES, partitions=full)
    eventually(lambda: operator.backfill_status(again) == "COMPLETED_SUCCESS", "all is loaded")
    assert {tasks.definition(run["tags"]["ecs/task_arn"]) for run in operator.runs(again)} == {newest}
    with contextlib.closing(psycopg2.connect(operator.database_url)) as connection:
        assert actual(connection) == expected(export)[0]
    assert query(operator.database_url, "SELECT count(*) FROM migration.loaded_file") == [(len(full),)]

    # What ECS is told: below its limit, and without a secret.
    assert max(map(len, tasks.overrides)) < 8192
    for secret in ("DAGSTER_PG_URL", "MIGRATION_DATABASE_URL", "AWS_SECRET_ACCESS_KEY"):
        assert not any(operator.environment[secret] in each for each in tasks.overrides)
