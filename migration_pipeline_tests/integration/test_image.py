"""The image without Docker: its file system, built by the script that the Dockerfile runs, and deploy/compose.yaml on it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import Bucket, eventually
from migration_pipeline_tests.s3 import s3_server
from migration_pipeline_tests.servers import free_port, redis

TOP = Path(__file__).parents[2]
DOCKERFILE = (TOP / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((TOP / "deploy" / "compose.yaml").read_text())
INSTALL_SECONDS = 900

PROFILE = """
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("visits")

class Session(Item):
    PK: str

class Visit(Row, table="visits", key="session_id"):
    session_id: str

@profile.route(PK=prefix("SESSION#"))
def visit(item: Session) -> Visit:
    return Visit(item.PK)

profile.ignore(because="not asked for")
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands at /opt in the image. Only what .dockerignore lets through is there to build it of."""
    source, top = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("opt")
    rules = (TOP / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    for name in (rule.removeprefix("!") for rule in rules if rule.startswith("!")):
        if (TOP / name).is_dir():
            shutil.copytree(TOP / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(TOP / name, source)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [source / "deploy" / "image.sh", source, top / "migration", "celery"],
        env=clean | {"PYTHON": sys.executable},
        check=True,
        timeout=INSTALL_SECONDS,
    )
    shutil.rmtree(source)
    (top / "profiles").mkdir()
    (top / "profiles" / "visits.py").write_text(PROFILE)
    return top


def settings_of_the_image() -> dict[str, str]:
    """The Dockerfile's environment."""
    (block,) = re.findall(r"^ENV (PATH=(?:.*\\\n)*.*)$", DOCKERFILE, re.MULTILINE)
    return dict(each.split("=", 1) for each in block.replace("\\\n", " ").split())


class Deployment:
    """The services of compose.yaml as processes, each with the environment of its container and no other."""

    def __init__(self, top: Path, settings: dict[str, str]) -> None:
        self._top = top
        self._settings = settings
        self._ports = {"3000": str(free_port()), "4000": str(free_port())}
        self._processes: list[subprocess.Popen[bytes]] = []
        workspace = top / "migration" / "workspace.yaml"
        workspace.write_text(workspace.read_text().replace("4000", self._ports["4000"]))
        self.url = f"http://127.0.0.1:{self._ports['3000']}"

    def start(self, service: str) -> None:
        command = COMPOSE["services"][service].get("command") or self._command_of_the_image()
        log = (self._top / f"{service}.log").open("wb")
        with log:
            self._processes.append(
                subprocess.Popen(
                    self._here(command), cwd="/", env=self._environment(service), stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL, start_new_session=True,
                )
            )  # fmt: skip

    def is_healthy(self, service: str) -> bool:
        """Ask as Docker would."""
        test = COMPOSE["services"][service].get("healthcheck", {}).get("test")
        if test is None:
            (found,) = re.findall(r"^HEALTHCHECK [^\[]*(\[.*\])$", DOCKERFILE, re.MULTILINE)
            test = ["CMD", *yaml.safe_load(found)]
        return self._run(self._here(test[1:]), service).returncode == 0

    def command(self, *command: str) -> str:
        done = self._run(self._here(list(command)), "webserver", {"MIGRATION_DAGSTER_URL": self.url})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def log(self, service: str) -> str:
        return (self._top / f"{service}.log").read_text()

    def end(self) -> None:
        for process in reversed(self._processes):
            os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _command_of_the_image(self) -> list[str]:
        (found,) = re.findall(r"^CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
        command: list[str] = yaml.safe_load(found)
        return command

    def _here(self, command: list[str]) -> list[str]:
        """The same command where the image's file system is, at free ports."""
        words = [self._at(self._ports.get(word, word)) for word in command]
        words = [word.replace("127.0.0.1:3000", self.url.removeprefix("http://")) for word in words]
        program = self._top / "migration" / "bin" / words[0]
        assert program.exists(), f"the image has no {words[0]}"
        return [str(program), *words[1:]]

    def _at(self, text: str) -> str:
        return text.replace("/opt/", f"{self._top}/")

    def _environment(self, service: str) -> dict[str, str]:
        own: dict[str, str] = COMPOSE["services"][service]["environment"]
        texts = {**settings_of_the_image(), **own, **{k: v for k, v in self._settings.items() if k in own}}
        texts |= {name: value for name, value in self._settings.items() if name.startswith("AWS_")}
        texts["PATH"] = texts["PATH"].replace("$PATH", os.environ["PATH"])
        return {name: self._at(value) for name, value in texts.items()}

    def _run(
        self, command: list[str], service: str, more: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        environment = self._environment(service) | (more or {})
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=180)


@pytest.fixture(scope="module")
def deployment(
    image: Path, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Deployment, Bucket, str]]:
    folder = tmp_path_factory.mktemp("deployment")
    for name in ("image_dagster", "image_target"):
        execute(postgres.url, f"CREATE DATABASE {name}")
    dagster, target = (
        postgres.url.replace("/postgres?", f"/{n}?") for n in ("image_dagster", "image_target")
    )
    with ExitStack() as ends, pytest.MonkeyPatch.context() as patch:
        aws = ends.enter_context(s3_server())
        for name, value in aws.items():
            patch.setenv(name, value)
        bucket = Bucket("image-exports", boto3.Session().client("s3"))
        made = Deployment(
            image,
            {
                "DAGSTER_PG_URL": dagster.replace("postgresql:", "postgresql+psycopg2:"),
                "DAGSTER_LOGS_BUCKET": bucket.name,
                "CELERY_BROKER_URL": ends.enter_context(redis(folder / "redis")).url,
                "MIGRATION_DATABASE_URL": target,
                "MIGRATION_PLANS": f"s3://{bucket.name}/plans",
                "CODE_SERVER_HOST": "127.0.0.1",
                **aws,
            },
        )
        ends.callback(made.end)
        yield made, bucket, target


def test_compose_yaml_starts_a_deployment_that_loads_a_file(
    deployment: tuple[Deployment, Bucket, str], tmp_path: Path
) -> None:
    made, bucket, target = deployment
    for service in ("code", "webserver", "daemon", "worker"):  # the order of `depends_on`
        made.start(service)
        if service in ("code", "webserver"):
            eventually(lambda service=service: made.is_healthy(service), f"{service} is healthy")  # type: ignore[misc]
    # A plan that is made later: the code server loads its code again.
    location = bucket.upload(write_sample(tmp_path, items=2_000, files=2, seed=5))
    made.command("migration-pipeline", "plan", "--profile", "visits:profile", location)
    made.command("migration-pipeline", "ddl", "visits:profile", "--apply")
    output = made.command("migration-pipeline", "backfill", "visits:profile", "--wait")
    assert "2 of 2 files materialized" in output
    assert made.is_healthy("daemon")
    ((visits,),) = query(target, "SELECT count(*) FROM visits")
    assert visits > 0
    assert "migration" in made.log("worker")


def test_each_dagster_yaml_of_the_image_is_one_that_dagster_takes(image: Path) -> None:
    homes = sorted((image / "migration" / "homes").iterdir())
    assert [home.name for home in homes] == ["celery", "ecs", "one-machine"]
    check = (
        "import sys; from dagster._core.instance.config import dagster_instance_config;"
        "print(dagster_instance_config(sys.argv[1])[0]['run_launcher']['class'])"
    )
    python = image / "migration" / "bin" / "python"
    found = [
        subprocess.run(
            [python, "-c", check, home], capture_output=True, text=True, check=True, env={}
        ).stdout.strip()
        for home in homes
    ]
    assert found == ["CheckedCeleryRunLauncher", "CheckedEcsRunLauncher", "CheckedRunLauncher"]


def test_no_secret_and_no_path_of_a_machine_is_in_deploy() -> None:
    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for each in value.values():
                yield from texts(each)
        elif isinstance(value, list):
            for each in value:
                yield from texts(each)
        else:
            yield str(value)

    for service in COMPOSE["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|SECRET|DATABASE_URL|PG_URL", name):
                assert "${" in value, name
    for file in (TOP / "deploy").rglob("*.*"):
        if file.suffix in (".yaml", ".json"):
            for text in texts(yaml.safe_load(file.read_text())):
                assert not re.match(r"/(home|root|tmp|work|Users)\b", text), file


def test_the_image_is_not_root_s() -> None:
    assert re.search(r"^USER [1-9]\d+$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.index("USER ") < DOCKERFILE.index("\nCMD ")
