"""What Dagster shows of a plan, as facts for the checklist of a cut-over."""

from __future__ import annotations

from collections.abc import Iterable

from migration_pipeline.migration.cutover import FromDagster
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.client import DagsterClient, DagsterClientError
from migration_pipeline.operations.downstream import downstream
from migration_pipeline.operations.files import FileStatus, read_files
from migration_pipeline.profile.profile import Profile


def ask_dagster(
    plan: Plan, profile: Profile, client: DagsterClient, files: Iterable[FileStatus] | None = None
) -> FromDagster:
    """Ask for the states of files, unless they are known, and of what is made of them; one that does not answer is told."""
    try:
        if files is None:
            files = read_files(client, plan, profile, attempts=False)
        then = {asset.name: asset.state for asset in downstream(client, profile)}
    except DagsterClientError as error:
        return FromDagster({}, {}, str(error))
    return FromDagster({file.partition: file.state for file in files}, then)
