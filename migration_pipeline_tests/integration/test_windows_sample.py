"""The samples with a history: base and windows end as the full export at the end does, quarantine and aggregates included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from migration_pipeline.demo.sample_history import History, write_history
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import read_exports
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, LandedFile
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.histories import load


def planned(profile: Profile, *exports: Path) -> Plan:
    return make_plan(
        profile, profile.name, read_exports([str(each) for each in exports], Storage(), lambda _: None)
    )


def aggregate(plan: Plan, profile: Profile, url: str) -> None:
    windows = {each.id for each in plan.windows}
    files = [LandedFile(p.export_id, p.file.name, p.file.md5, p.export_id in windows) for p in plan.files]
    for each in profile.aggregates:
        AggregateRun(url, each, files, AggregateIdentity(profile.name, profile.version, "test")).run()


def contents(profile: Profile, url: str) -> dict[str, list[tuple[Any, ...]]]:
    found = {}
    for table in profile.all_tables:
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        found[table.qualified] = query(
            url, f"SELECT t::text FROM (SELECT {columns} FROM {table.qualified}) t ORDER BY 1"
        )
    return found


def bad_items(url: str) -> list[str]:
    """The quarantined items as they are at the end: in a window's record that is the new image."""
    found = []
    for (raw,) in query(url, "SELECT raw FROM migration.quarantine"):
        text = bytes(raw).decode("utf-8", "surrogateescape")
        found.append(
            text.partition('"NewImage":')[2][:-1] if '"NewImage":' in text else text[len('{"Item":') : -1]
        )
    return sorted(found)


@pytest.mark.parametrize("name", ["shop", "pictures"])
def test_a_history_ends_as_the_export_at_its_end(name: str, database_url: str, tmp_path: Path) -> None:
    profile = load_profile(name)
    history: History = write_history(
        tmp_path, items=3_000, files=3, seed=5, changes=1_500, windows=3, profile=name, bad=0
    )
    execute(database_url, ddl(profile.all_tables))
    final = planned(profile, history.final)
    load(final, profile, database_url, batch_items=500)
    aggregate(final, profile, database_url)
    wanted, wanted_bad = contents(profile, database_url), bad_items(database_url)
    assert all(wanted.values())
    execute(
        database_url,
        "DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS landing CASCADE; DROP SCHEMA migration CASCADE; CREATE SCHEMA public",
    )
    execute(database_url, ddl(profile.all_tables))

    plan = planned(profile, history.base, *history.windows)
    reports = load(plan, profile, database_url, batch_items=200)
    aggregate(plan, profile, database_url)
    assert contents(profile, database_url) == wanted
    assert bad_items(database_url) == wanted_bad
    assert all(report.conserved for report in reports.values())
    again = load(plan, profile, database_url, batch_items=300)
    aggregate(plan, profile, database_url)
    assert contents(profile, database_url) == wanted
    assert sum(report.superseded for report in again.values()) > 300
