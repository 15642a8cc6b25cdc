"""Runs as Kubernetes jobs: what deploy/kubernetes makes of a run, told to an API server that keeps what it is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from dagster import DagsterInstance, DagsterRun, DagsterRunStatus
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext, WorkerStatus
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.test_utils import create_run_for_test
from kubernetes.client import ApiClient

from migration_pipeline.defs.coordinator import TaggingRunCoordinator
from migration_pipeline.defs.k8s_launcher import CheckedK8sRunLauncher

VALUES = Path(__file__).parents[2] / "deploy" / "kubernetes" / "values.yaml"
IMAGE = "registry.example.com/migration-pipeline:1"


class Api(ThreadingHTTPServer):
    """An API server for jobs: keeps their manifests, and says of each what it is told to say."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.jobs: list[dict[str, Any]] = []
        self.status: dict[str, Any] | int = {"active": 1}
        """Of every job; a number is an HTTP status in place of an answer."""


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        assert self.path == "/apis/batch/v1/namespaces/migration/jobs"
        self.server.jobs.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(201, self.server.jobs[-1])

    def do_GET(self) -> None:
        status = self.server.status
        if isinstance(status, int):
            self._answer(status, {"kind": "Status"})
        else:
            self._answer(200, {"apiVersion": "batch/v1", "kind": "Job", "status": status})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def instance(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DagsterInstance]:
    """An instance of the dagster.yaml that the chart makes of our values, with SQLite as its storage."""
    cluster = {"server": f"http://127.0.0.1:{api.server_port}"}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test", "users": [{"name": "test", "user": {}}],
        "clusters": [{"name": "test", "cluster": cluster}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    values = yaml.safe_load(VALUES.read_text())
    launcher = values["runLauncher"]["config"]["customRunLauncher"]
    launcher["config"] |= {"load_incluster_config": False, "kubeconfig_file": str(tmp_path / "kubeconfig")}
    daemon = values["dagsterDaemon"]
    monitoring = daemon["runMonitoring"]
    chart = {
        "run_launcher": launcher,
        "run_coordinator": daemon["runCoordinator"]["config"]["customRunCoordinator"],
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "cancel_timeout_seconds": monitoring["cancelTimeoutSeconds"],
            "max_resume_run_attempts": monitoring["maxResumeRunAttempts"],
            "poll_interval_seconds": monitoring["pollIntervalSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "telemetry": values["telemetry"],
        **values["additionalInstanceConfig"],
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(chart))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with DagsterInstance.get() as made:
        yield made


@pytest.fixture
def run(instance: DagsterInstance) -> DagsterRun:
    pointer = ModuleCodePointer("migration_pipeline.definitions", "defs", working_directory="/")
    repository = RepositoryPythonOrigin(sys.executable, pointer, IMAGE, ["dagster"], {})
    origin = JobPythonOrigin("__ASSET_JOB", repository)
    made: DagsterRun = create_run_for_test(
        instance, job_name="__ASSET_JOB", job_code_origin=origin, status=DagsterRunStatus.STARTED
    )
    return made


def test_a_run_becomes_a_job(instance: DagsterInstance, run: DagsterRun, api: Api) -> None:
    assert isinstance(instance.run_coordinator, TaggingRunCoordinator)
    assert not instance.run_retries_retry_on_asset_or_op_failure
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    (job,) = api.jobs
    # What Kubernetes' own models do not know, or know in another form, does not come back from them.
    client = ApiClient()
    assert (
        client.sanitize_for_serialization(client.deserialize(SimpleNamespace(data=json.dumps(job)), "V1Job"))
        == job
    )
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert container["args"][:3] == ["dagster", "api", "execute_run"]
    assert run.run_id in container["args"][3]
    # One try: Dagster starts it again, and knows of it.
    assert (spec["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    assert spec["ttlSecondsAfterFinished"] == 86400
    assert pod["terminationGracePeriodSeconds"] == 120
    assert container["securityContext"] == {"runAsNonRoot": True, "allowPrivilegeEscalation": False}
    assert container["resources"]["limits"] == {"memory": "2Gi"}
    # Secrets are named, and never there.
    assert {"secretRef": {"name": "migration-pipeline"}} in container["envFrom"]
    (password,) = (each for each in container["env"] if each["name"] == "DAGSTER_PG_PASSWORD")
    assert password["valueFrom"]["secretKeyRef"]["name"] == "dagster-postgresql-secret"


def test_answers_that_get_lost_fail_no_run(instance: DagsterInstance, run: DagsterRun, api: Api) -> None:
    launcher = instance.run_launcher
    assert isinstance(launcher, CheckedK8sRunLauncher)

    def looks(*answers: dict[str, Any] | int) -> list[WorkerStatus]:
        found = []
        for answer in answers:
            api.status = answer
            found.append(launcher.check_run_worker_health(run).status)
        return found

    alive, running = {"active": 1}, WorkerStatus.RUNNING
    assert looks(403, 403, 403, alive) == [running] * 4, "an API that cannot be asked says nothing of a run"
    assert looks(404, alive, 404, alive) == [running] * 4
    assert looks(404, 404) == [running, WorkerStatus.NOT_FOUND]
    assert looks({"failed": 1}, {"failed": 1}) == [running, WorkerStatus.FAILED]
    assert looks({"succeeded": 1}, {"succeeded": 1}) == [running, WorkerStatus.FAILED]
    api.status = 404
    for _ in range(4):  # it writes to its log, so it lives
        instance.report_engine_event("half of the file is loaded", run)
        assert launcher.check_run_worker_health(run).status == running
    assert not launcher.supports_resume_run
