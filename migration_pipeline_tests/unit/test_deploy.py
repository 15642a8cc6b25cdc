"""What lies in deploy/ is what those who read it take: the compose specification's schema, and the values of Dagster's chart.

The compose specification's schema is in the package check-jsonschema. Dagster's Helm chart has a schema of its values, too, but no
package of PyPI or npm has it. So our keys are held against those that the chart reads, and values against what they are passed on to:
here Dagster's command line, which takes the code server's arguments; in `integration/test_kubernetes.py` Dagster's instance, which takes
launcher, coordinator and their config, and the models of Kubernetes' client, which take the job that comes of it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._cli.code_server import start_command

DEPLOY = Path(__file__).parents[2] / "deploy"
VALUES = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())


def schema_check(file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_compose_yaml_is_one_of_the_compose_specification() -> None:
    done = schema_check(DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"depend_on": ["postgres"]}, "depend_on"),
        ({"depends_on": {"postgres": {"condition": "healthy"}}}, "services.worker"),
        ({"healthcheck": {"disabled": True}}, "disabled"),
    ],
)
def test_the_schema_finds_what_docker_would_refuse(tmp_path: Path, wrong: dict[str, Any], told: str) -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    compose["services"]["worker"] |= wrong
    (tmp_path / "compose.yaml").write_text(yaml.safe_dump(compose))
    done = schema_check(tmp_path / "compose.yaml")
    assert done.returncode == 1
    assert told in done.stdout


# -- Dagster's Helm chart ------------------------------------------------------------------------------

ANYTHING = None
IMAGE = dict.fromkeys(["repository", "tag", "pullPolicy"])
POD = dict.fromkeys(
    [
        "env", "envConfigMaps", "envSecrets", "labels", "annotations", "nodeSelector", "affinity", "tolerations", "resources",
        "podSecurityContext", "securityContext", "livenessProbe", "readinessProbe", "startupProbe", "volumes", "volumeMounts",
        "schedulerName",
    ]
)  # fmt: skip
CLASS = dict.fromkeys(["module", "class", "config"])
CHART: dict[str, Any] = {
    "global": dict.fromkeys(
        [
            "postgresqlSecretName", "dagsterHome", "serviceAccountName", "celeryConfigSecretName", "dagsterInstanceConfigMap",
        ]
    ),
    "generatePostgresqlPasswordSecret": ANYTHING,
    "postgresql": {
        **dict.fromkeys(["enabled", "postgresqlScheme", "postgresqlHost", "postgresqlUsername", "postgresqlPassword"]),
        **dict.fromkeys(["postgresqlDatabase", "postgresqlParams", "service"]),
        "image": IMAGE,
    },
    "dagsterWebserver": {"image": IMAGE, **POD},
    "dagster-user-deployments": {
        **dict.fromkeys(["enabled", "enableSubchart", "imagePullSecrets"]),
        "deployments": {
            "name": ANYTHING, "image": IMAGE, "port": ANYTHING, "codeServerArgs": ANYTHING, "dagsterApiGrpcArgs": ANYTHING,
            "includeConfigInLaunchedRuns": {"enabled": ANYTHING}, **POD,
        },
    },
    "runLauncher": {"type": ANYTHING, "config": {"customRunLauncher": CLASS}},
    "dagsterDaemon": {
        "image": IMAGE,
        "runCoordinator": {"enabled": ANYTHING, "type": ANYTHING, "config": {"customRunCoordinator": CLASS}},
        "runMonitoring": dict.fromkeys(
            [
                "enabled", "startTimeoutSeconds", "cancelTimeoutSeconds", "maxResumeRunAttempts", "pollIntervalSeconds",
                "freeSlotsAfterRunEndSeconds",
            ]
        ),
        "runRetries": dict.fromkeys(["enabled", "maxRetries"]),
        **POD,
    },
    "additionalInstanceConfig": ANYTHING,
    "computeLogManager": {
        "type": ANYTHING,
        "config": {
            "s3ComputeLogManager": dict.fromkeys(
                [
                    "bucket", "prefix", "region", "localDir", "useSsl", "verify", "verifyCertPath", "endpointUrl",
                    "skipEmptyFiles", "uploadInterval", "uploadExtraArgs", "showUrlOnly",
                ]
            )
        },
    },
    "telemetry": {"enabled": ANYTHING},
}  # fmt: skip
"""Keys that the chart's templates read, of those parts that we set; what a template does not know it passes over in silence."""


def unknown(values: Any, known: Mapping[str, Any] | None, place: str = "") -> Iterator[str]:
    """Name the keys that the chart does not know."""
    if known is None:
        return
    for each in values if isinstance(values, list) else [values]:
        for key, value in each.items():
            if key in known:
                yield from unknown(value, known[key], f"{place}{key}.")
            else:
                yield f"{place}{key}"


def test_the_chart_knows_our_values() -> None:
    assert list(unknown(VALUES, CHART)) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda v: v["dagsterDaemon"]["runMonitoring"].update(startTimeout=1), "startTimeout"),
        (lambda v: v["dagster-user-deployments"]["deployments"][0].update(args=[]), "deployments.args"),
        (lambda v: v.update(runRetries={}), "runRetries"),
    ],
)
def test_a_value_that_the_chart_would_pass_over_is_found(change: Callable[[Any], None], named: str) -> None:
    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text())
    change(values)
    (found,) = unknown(values, CHART)
    assert found.endswith(named)


@pytest.mark.parametrize(
    ("part", "kinds"),
    [
        (VALUES["runLauncher"], ["CeleryK8sRunLauncher", "K8sRunLauncher", "CustomRunLauncher"]),
        (VALUES["dagsterDaemon"]["runCoordinator"], ["QueuedRunCoordinator", "CustomRunCoordinator"]),
        (
            VALUES["computeLogManager"],
            ["NoOpComputeLogManager", "S3ComputeLogManager", "CustomComputeLogManager"],
        ),
    ],
)
def test_the_chart_reads_the_config_of_the_type_that_is_named(part: Any, kinds: list[str]) -> None:
    assert part["type"] in kinds
    (read,) = part["config"]
    assert read == part["type"][0].lower() + part["type"][1:]


def test_the_code_server_takes_its_arguments() -> None:
    """The chart puts `dagster code-server start -h 0.0.0.0 -p PORT` before them."""
    (deployment,) = VALUES["dagster-user-deployments"]["deployments"]
    before = ["-h", "0.0.0.0", "-p", str(deployment["port"])]
    given = start_command.make_context("start", [*before, *deployment["codeServerArgs"]]).params
    assert (given["port"], given["module_name"]) == (4000, "migration_pipeline.definitions")
