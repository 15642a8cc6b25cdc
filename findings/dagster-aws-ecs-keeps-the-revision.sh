#!/usr/bin/env bash
# dagster-aws 0.29.27: a new revision of an ECS task definition does not reach the runs, and most changes make no revision.
#
# EcsRunLauncher starts each run as an ECS task. It is given a task definition by its name, or it registers one, a revision anew
# whenever the settings in dagster.yaml differ from the one before.
#
# Guess: with `task_definition: mine`, runs are of the newest revision of mine, as ECS's own RunTask takes a name without a revision.
# Seen:  the name is looked up once, when the daemon starts. Revisions that are registered later (a new image) are passed over
#        until the daemon is started again; RunTask with the same name takes them at once.
#
# Guess: after a change in dagster.yaml and a restart, a run has what dagster.yaml says.
# Seen:  log_group, runtime_platform, volumes, mount_points and linux_parameters are not compared: runs keep the old revision, with
#        its log group and its CPU architecture, without a word. A change of a role makes a revision, and that one has the others, too.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    dagster==1.13.27 dagster-aws==0.29.27 'moto[ecs,ec2,secretsmanager,logs]==5.2.5' 'boto3>=1.40,<2'
cd "$work"
export AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_DEFAULT_REGION=us-east-1 DAGSTER_DISABLE_TELEMETRY=1
"$work/venv/bin/python" -W ignore - <<'PYTHON'
from contextlib import suppress

import boto3
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.launcher import LaunchRunContext
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test, instance_for_test
from moto import mock_aws

code = RepositoryPythonOrigin("python", ModuleCodePointer("m", "f", None), container_image="image:1", entry_point=["dagster"], container_context={})
remote = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("location"), "repository")


def launch(instance):
    """Launch a run, and return the name of its task's definition, with the revision."""
    run = create_run_for_test(instance, job_name="job", job_code_origin=JobPythonOrigin("job", code), remote_job_origin=RemoteJobOrigin(remote, "job"))
    instance.run_launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=None))
    arn = instance.get_run_by_id(run.run_id).tags["ecs/task_arn"]
    return ecs.describe_tasks(cluster="cluster", tasks=[arn])["tasks"][0]["taskDefinitionArn"].rpartition("/")[2]


def daemon(task_definition):
    """Dagster's instance as a daemon has it that has just been started."""
    config = {"task_definition": task_definition, "run_task_kwargs": where, "secrets_tag": None, "use_current_ecs_task_config": False}
    return instance_for_test({"run_launcher": {"module": "dagster_aws.ecs", "class": "EcsRunLauncher", "config": config}})


with mock_aws():
    ecs, subnet = boto3.client("ecs"), boto3.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"]
    network = {"awsvpcConfiguration": {"subnets": [subnet], "securityGroups": []}}
    where = {"cluster": "cluster", "launchType": "FARGATE", "networkConfiguration": network}
    ecs.create_cluster(clusterName="cluster")

    def register(image):
        ecs.register_task_definition(
            family="mine", requiresCompatibilities=["FARGATE"], networkMode="awsvpc", cpu="256", memory="512",
            containerDefinitions=[{"name": "run", "image": image, "memory": 512}],
        )

    register("image:1")
    with daemon("mine") as instance:
        named = [launch(instance)]
        register("image:2")
        named.append(launch(instance))
    named.append(ecs.run_task(taskDefinition="mine", **where)["tasks"][0]["taskDefinitionArn"].rpartition("/")[2])
    with daemon("mine") as instance:
        named.append(launch(instance))
    print("by name: at first, after a new revision, RunTask itself, after a restart:", *named)

    def started_with(**settings):
        """Restart the daemon with other settings, launch a run; number of revisions, and log group of the newest."""
        with daemon({"log_group": "one", "requires_compatibilities": ["FARGATE"], **settings}) as instance:
            with suppress(TypeError):  # moto wants the memory of each container, which Fargate does not; registered it is before
                launch(instance)
        revisions = [arn for arn in ecs.list_task_definitions()["taskDefinitionArns"] if "/mine:" not in arn]
        newest = ecs.describe_task_definition(taskDefinition=revisions[-1])["taskDefinition"]
        seen = (len(revisions), newest["containerDefinitions"][0]["logConfiguration"]["options"]["awslogs-group"])
        print(settings or "at first", "-> revisions, and log group of the newest:", *seen)
        return seen

    seen = [
        started_with(),
        started_with(log_group="two"),
        started_with(log_group="two", runtime_platform={"cpuArchitecture": "ARM64"}),
        started_with(log_group="two", volumes=[{"name": "v"}], mount_points=[{"sourceVolume": "v", "containerPath": "/v"}]),
        started_with(log_group="two", linux_parameters={"initProcessEnabled": True}),
        started_with(log_group="two", task_role_arn="arn:aws:iam::123456789012:role/another"),
    ]
assert named == ["mine:1", "mine:1", "mine:2", "mine:2"], "CHANGED"
assert seen == [(1, "one")] * 5 + [(2, "two")], "CHANGED"
print("as stated above")
PYTHON
