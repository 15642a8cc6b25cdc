"""An ECS that runs something: moto's, which speaks the protocol, and processes in place of containers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast

import boto3
from moto.ecs.models import ecs_backends
from moto.moto_api import state_manager

REGION = "us-east-1"
ACCOUNT = "123456789012"  # moto's
CLUSTER = "migration"


class Tasks:
    """Runs the command override of each task that is started, as a process."""

    def __init__(self, folder: Path) -> None:
        self._backend = cast(Any, ecs_backends[ACCOUNT][REGION])
        self._folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ending = Event()
        self._thread = Thread(target=self._go_on, daemon=True)
        self._describe = self._backend.describe_tasks
        self._backend.describe_tasks = self._answer
        self.lose = 0
        """Questions for a task that get no task as an answer from now on, as when ECS is not consistent yet."""
        self.lost = 0
        self.environment: dict[str, str] = {}
        """What the containers of runs see, beside this process's own."""
        self.overrides: list[str] = []
        """Of each task, as JSON."""
        self._thread.start()

    def process(self, arn: str) -> subprocess.Popen[bytes]:
        """Give the process of a task."""
        return self._processes[arn]

    def definition(self, arn: str) -> str:
        """Give the ARN of the revision that a task is of."""
        return str(self._backend.tasks[CLUSTER][arn].task_definition_arn)

    def end(self) -> None:
        self._ending.set()
        self._thread.join()
        self._backend.describe_tasks = self._describe
        for process in self._processes.values():
            process.kill()
            process.wait()

    def _answer(self, cluster: str, tasks: list[str]) -> Any:
        if self.lose and any(each in self._processes for each in tasks):
            self.lose -= 1
            self.lost += 1
            return []
        return self._describe(cluster, tasks)

    def _go_on(self) -> None:
        while not self._ending.wait(0.2):
            for arn, task in list(self._backend.tasks.get(CLUSTER, {}).items()):
                overrides = task.overrides.get("containerOverrides", [])
                if not overrides:
                    continue  # a service: the stack of the test is in its place
                process = self._processes.get(arn)
                if process is None:
                    self.overrides.append(json.dumps(task.overrides))
                    self._processes[arn] = self._start(overrides[0]["command"], arn)
                elif process.poll() is not None:
                    task.containers[0].exitCode = process.returncode
                    task.last_status = task.desired_status = "STOPPED"
                elif task.desired_status == "STOPPED":  # as StopTask does
                    process.send_signal(signal.SIGTERM)

    def _start(self, command: list[str], arn: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # as in the image
        with (self._folder / f"{arn.rpartition('/')[2]}.log").open("wb") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment, "PATH": path},
            )


@contextmanager
def ecs(
    folder: Path, definitions: list[dict[str, Any]], endpoint: str
) -> Iterator[tuple[Tasks, dict[str, str]]]:
    """Make a cluster with a daemon's task in it; gives what runs tasks, and what ECS would give the daemon's environment."""
    client = boto3.client("ecs", region_name=REGION, endpoint_url=endpoint)
    ec2 = boto3.client("ec2", region_name=REGION, endpoint_url=endpoint)
    client.create_cluster(clusterName=CLUSTER)
    for definition in definitions:
        for container in definition["containerDefinitions"]:
            container["memory"] = int(definition["memory"])  # moto asks for it on Fargate, too
        client.register_task_definition(**definition)
    subnet = ec2.describe_subnets()["Subnets"][0]
    groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [subnet["VpcId"]]}])
    network = {"subnets": [subnet["SubnetId"]], "securityGroups": [groups["SecurityGroups"][0]["GroupId"]]}
    (task,) = client.run_task(
        cluster=CLUSTER, taskDefinition="migration-daemon", launchType="FARGATE",
        networkConfiguration={"awsvpcConfiguration": network},
    )["tasks"]  # fmt: skip
    state_manager.set_transition(
        "ecs::task", {"progression": "manual", "times": 10**9}
    )  # none ends by itself
    tasks = Tasks(folder)
    try:
        with _metadata({"Cluster": CLUSTER, "TaskARN": task["taskArn"]}) as url:
            yield tasks, {"ECS_CONTAINER_METADATA_URI_V4": url, "AWS_ENDPOINT_URL": endpoint}
    finally:
        tasks.end()
        state_manager.unset_transition("ecs::task")


@contextmanager
def _metadata(answer: dict[str, str]) -> Iterator[str]:
    """Serve what ECS tells a container of its own task."""

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
