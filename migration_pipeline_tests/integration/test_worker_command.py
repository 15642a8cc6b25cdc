"""`migration-pipeline worker` with a dagster.yaml that would not work: it says what to change, and does not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from dagster import DagsterInstance

from migration_pipeline.cli import main
from migration_pipeline.defs.celery_launcher import CheckedCeleryRunLauncher

TOP = Path(__file__).parents[2]
Change = dict[str, Any]


@pytest.fixture
def home(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME, without a dagster.yaml yet."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_PG_URL", database_url.replace("postgresql:", "postgresql+psycopg2:"))
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "a-bucket")
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    return tmp_path


def settings(home: Path, **changes: Change | None) -> None:
    """Write deploy/celery/dagster.yaml with sections that differ; one that is None is left out."""
    shipped = yaml.safe_load((TOP / "deploy" / "celery" / "dagster.yaml").read_text())
    changed = {name: value for name, value in (shipped | changes).items() if value is not None}
    (home / "dagster.yaml").write_text(yaml.safe_dump(changed))


OURS = {"module": "migration_pipeline.defs.celery_launcher", "class": "CheckedCeleryRunLauncher"}
THEIRS = {"module": "dagster_celery.launcher", "class": "CeleryRunLauncher"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run_launcher": OURS | {"config": {}}}, "broker is missing"),
        ({"run_launcher": THEIRS | {"config": {"broker": "redis://h"}}}, "found CeleryRunLauncher"),
        ({"run_launcher": None}, "found DefaultRunLauncher"),
        ({"storage": None}, "no other machine sees SQLite"),
        ({"run_monitoring": {"enabled": False}}, "run_monitoring: enabled: true is needed"),
        ({"concurrency": {"runs": {"max_concurrent_runs": 3}}}, "set it below run_coordinator: config"),
    ],
)
def test_a_configuration_that_would_not_work_is_refused(
    home: Path, changes: dict[str, Change | None], message: str
) -> None:
    settings(home, **changes)
    done = CliRunner().invoke(main, ["worker"])
    assert done.exit_code == 2, done.output
    assert done.output.startswith("error: ")
    assert message in done.output


@pytest.mark.parametrize("broker", ["amqp://h", "sqla+sqlite:///x", "nothing://h"])
def test_a_broker_with_which_workers_take_runs_ahead_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, broker: str
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", broker)
    settings(home)
    done = CliRunner().invoke(main, ["worker"])
    assert done.exit_code == 2, done.output
    assert "broker: expected Redis" in done.output


@pytest.mark.parametrize("broker", ["redis://h:6379/0", "rediss://h:6379/0", "sentinel://h:26379"])
def test_every_redis_is_taken(home: Path, monkeypatch: pytest.MonkeyPatch, broker: str) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", broker)
    settings(home)
    with DagsterInstance.get() as instance:
        assert isinstance(instance.run_launcher, CheckedCeleryRunLauncher)


def test_settings_of_celery_that_would_do_harm_are_corrected(home: Path) -> None:
    source = {"task_acks_late": True, "worker_max_tasks_per_child": 50, "broker_heartbeat": 7}
    config = {"broker": "redis://127.0.0.1:1/0", "backend": "rpc://", "config_source": source}
    settings(home, run_launcher=OURS | {"config": config})
    with DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, CheckedCeleryRunLauncher)
        conf = launcher.celery.conf
        assert (conf.task_acks_late, conf.worker_max_tasks_per_child, conf.broker_heartbeat) == (False, 1, 7)
        assert type(launcher.celery.backend).__name__ == "DisabledBackend"
        assert [queue.name for queue in conf.task_queues] == ["migration"]


def test_nothing_leaves_the_queue_while_the_broker_is_away(home: Path) -> None:
    settings(home)
    with DagsterInstance.get() as instance:
        launcher = instance.run_launcher
        assert isinstance(launcher, CheckedCeleryRunLauncher)
        assert launcher.slots() == 0
        assert instance.get_concurrency_config().run_queue_config.max_concurrent_runs == 0  # type: ignore[union-attr]
