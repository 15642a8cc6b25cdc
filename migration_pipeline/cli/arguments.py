"""Arguments that several commands share, and how they are opened."""

from __future__ import annotations

from typing import TypeAlias

import click

from migration_pipeline import settings
from migration_pipeline.errors import UsageError
from migration_pipeline.migration.plan import Plan, planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.profile.profile import Profile, load_profile

PROFILE = click.argument("reference", metavar="PROFILE")

WAIT = click.option(
    "--wait", is_flag=True, help="Show progress until it is over; Ctrl-C leaves the backfill running."
)

Opened: TypeAlias = tuple[Plan, Profile, DagsterClient]


def open_plan(reference: str) -> Opened:
    """Read a profile's plan, and make the client of the Dagster that runs it. Raises `UsageError` if the plan is of another profile."""
    name = load_profile(reference).name if ":" in reference or "." in reference else reference
    path = plan_path(settings.plans_dir(), name)
    plan = read_plan(path)
    if reference not in (name, plan.reference):
        raise UsageError(
            f"{path}: this plan was made for another profile: {plan.reference}; plan again with --profile {reference}"
        )
    return plan, planned_profile(plan, path), DagsterClient(settings.webserver_url())
