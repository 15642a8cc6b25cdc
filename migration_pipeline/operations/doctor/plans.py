"""Profiles and plans: do they import, and do they fit each other?"""

from __future__ import annotations

from migration_pipeline import settings
from migration_pipeline.errors import UsageError
from migration_pipeline.migration.plan import Plan, planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan, read_plans
from migration_pipeline.operations.doctor.findings import Finding, Findings, told
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.units import counted, readable_size

Planned = list[tuple[Plan, Profile]]


def plans(reference: str | None) -> tuple[Findings, Planned, list[Profile]]:
    """Look at one profile and its plan, or at all that have a plan; returns what loads, plans and profiles."""
    return _one(reference) if reference else _all()


def _all() -> tuple[Findings, Planned, list[Profile]]:
    found, planned = list[Finding](), Planned()
    with told(found, "plan"):
        planned, faults = read_plans(settings.plans_dir())
        found += [_plan(plan) for plan, _ in planned]
        found += [Finding("plan", "failed", fault.why) for fault in faults.values()]
        if not found:
            found.append(
                Finding(
                    "plan",
                    "skipped",
                    f"none in {settings.plans_dir()}: profile, exports and tables are not looked at",
                    "make one with migration-pipeline plan, or name a profile and --export",
                )
            )
    return found, planned, [profile for _, profile in planned]


def _one(reference: str) -> tuple[Findings, Planned, list[Profile]]:
    found, planned, profiles = list[Finding](), Planned(), list[Profile]()
    with told(found, "profile"):
        # The name of a plan stands for its profile, as in all commands.
        is_path = ":" in reference or "." in reference
        path = plan_path(settings.plans_dir(), load_profile(reference).name if is_path else reference)
        try:
            plan = read_plan(path)
        except UsageError as error:
            profiles.append(load_profile(reference))
            found.append(_profile(profiles[0]))
            found.append(Finding("plan", "warning", str(error)))
            return found, planned, profiles
        profiles.append(planned_profile(plan, path))
        found += [_profile(profiles[0]), _plan(plan)]
        planned.append((plan, profiles[0]))
    return found, planned, profiles


def _profile(profile: Profile) -> Finding:
    return Finding(
        "profile", "ok", f"{profile.name}: imports, and writes {counted(len(profile.all_tables), 'table')}"
    )


def _plan(plan: Plan) -> Finding:
    size = f"{counted(len(plan.files), 'file')}, {counted(plan.items, 'item')}, {readable_size(plan.bytes)} compressed"
    return Finding("plan", "ok", f"{plan.profile}: {size}")
