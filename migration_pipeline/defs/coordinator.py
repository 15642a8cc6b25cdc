"""Queues runs as Dagster does by default, and tags each with the profile of its assets.

A run that materializes assets gets the tags of the backfill or the dialog that launched it, and none of the assets'
own. With the tag, `tag_concurrency_limits` can hold a migration to so many files at once, and the list of runs can be
filtered by migration.
"""

from __future__ import annotations

from dagster import DagsterRun
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext

from migration_pipeline.defs.metadata import PROFILE_TAG


class TaggingRunCoordinator(QueuedRunCoordinator):
    """Dagster's queue, which gives a run the tag `PROFILE_TAG` of its assets if they all have the same."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run, and put it into the queue."""
        graph = context.workspace.asset_graph
        nodes = [graph.get(key) for key in context.dagster_run.asset_selection or () if graph.has(key)]
        profiles = {node.tags.get(PROFILE_TAG) for node in nodes} - {None}
        if len(profiles) == 1:
            self._instance.add_run_tags(context.dagster_run.run_id, {PROFILE_TAG: str(profiles.pop())})
        return super().submit_run(context)
