"""Migrations as components of a Dagster project that has other things: two profiles, and an asset of the team's downstream of a table."""

from __future__ import annotations

import re
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import read_plan, read_plans, write_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources import resumable
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.chaos.s3_faults import Answer, FaultyS3
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.oracle import expected
from migration_pipeline_tests.s3 import s3_server

TOP = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings(
    "ignore::dagster.BetaWarning"
)  # Dagster's own, of a component with checks

PYPROJECT = """
[project]
name = "team"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "team"
"""

DEFINITIONS = """
from pathlib import Path
import dagster as dg

@dg.definitions
def defs() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
"""

COMPONENT = """
type: migration_pipeline.component.MigrationComponent
attributes:
"""

OWN = """
import dagster as dg

class Database(dg.ConfigurableResource):
    url: str

@dg.asset(deps=[dg.AssetKey(["shop", "orders"])])
def orders_of_the_day() -> None:
    pass

defs = dg.Definitions(assets=[orders_of_the_day], resources={"database": Database(url="of the team's own")})
"""

Project = Callable[..., dg.Definitions]


@pytest.fixture
def plans(tmp_path: Path, shop_export: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Plan]:
    """A plan of both shipped profiles."""
    monkeypatch.setenv("MIGRATION_PLANS", str(tmp_path / "plans"))
    pictures = write_sample(tmp_path / "pictures", items=300, files=2, profile="pictures")
    for profile, export in (("shop", shop_export), ("pictures", pictures)):
        made = CliRunner().invoke(main, ["plan", "--profile", profile, str(export)])
        assert made.exit_code == 0, made.output
    return {name: read_plan(tmp_path / "plans" / f"{name}.json") for name in ("shop", "pictures")}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Writes a project with these components, by name, and loads it."""
    root = tmp_path / "project"

    def make(own: str = OWN, **components: str) -> dg.Definitions:
        files = {"pyproject.toml": PYPROJECT, "team/__init__.py": "", "team/definitions.py": DEFINITIONS, "team/defs/own.py": own}  # fmt: skip
        files |= {
            f"team/defs/{name}/defs.yaml": COMPONENT + textwrap.indent(text, "  ")
            for name, text in components.items()
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        monkeypatch.syspath_prepend(str(root))
        for name in [name for name in sys.modules if name.partition(".")[0] == "team"]:
            monkeypatch.delitem(sys.modules, name)
        loaded = dg.load_from_defs_folder(path_within_project=root / "team")
        dg.Definitions.validate_loadable(loaded)
        return loaded

    return make


def test_two_profiles_and_the_team_s_own_in_one_location(
    plans: dict[str, Plan],
    project: Project,
    shop_export: Path,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = project(orders="profile: shop\npool: dynamodb", pictures="profile: pictures\nfiles_per_run: 2")
    graph = loaded.resolve_asset_graph()
    orders, own = dg.AssetKey(["shop", "orders"]), dg.AssetKey(["orders_of_the_day"])
    assert graph.get(own).parent_keys == {orders}
    assert {key.path[0] for key in graph.get_all_asset_keys()} == {"shop", "pictures", "orders_of_the_day"}
    assert graph.get(orders).pools == {"dynamodb"}
    policy = graph.get(dg.AssetKey(["pictures", load_profile("pictures").all_tables[0].name])).backfill_policy
    assert policy is not None
    assert policy.max_partitions_per_run == 2
    names = {job.name for job in loaded.resolve_all_job_defs()}
    assert {f"{each}_{what}" for each in plans for what in ("migrate", "check", "verify", "replay")} <= names
    assert {sensor.name for sensor in loaded.sensors or ()} == {
        f"{each}_tell_of_finished_backfills" for each in plans
    }

    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    execute(database_url, ddl(load_profile("shop").all_tables))
    tables = [dg.AssetKey(["shop", table.name]) for table in load_profile("shop").tables.values()]
    job = loaded.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        for planned in plans["shop"].files:
            done = job.execute_in_process(
                instance=instance, partition_key=planned.partition, asset_selection=tables
            )
            assert done.success
        rest = [dg.AssetKey(["shop", "customer_activity"]), dg.AssetKey(["shop", "finishing"]), own]
        assert job.execute_in_process(instance=instance, asset_selection=rest).success
        checked = loaded.resolve_job_def("shop_check").execute_in_process(instance=instance)
        assert all(evaluation.passed for evaluation in checked.get_asset_check_evaluations())
        assert loaded.resolve_job_def("shop_verify").execute_in_process(instance=instance).success
        assert loaded.resolve_job_def("shop_replay").execute_in_process(instance=instance).success
    assert query(database_url, "SELECT count(*) FROM orders") == [(len(expected(shop_export)[0]["orders"]),)]


def test_the_resource_may_be_the_team_s(
    plans: dict[str, Plan],
    project: Project,
    shop_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    (tmp_path / "plans" / "shop.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "elsewhere.json").rename(tmp_path / "project-plan.json")
    folder = tmp_path / "project" / "team" / "defs" / "orders"
    folder.mkdir(parents=True)
    (tmp_path / "project-plan.json").rename(folder / "shop.json")
    own = OWN.replace('"of the team\'s own"', "dg.EnvVar('THEIRS')")
    loaded = project(own, orders="profile: shop\nplan: shop.json\nresource: database")
    monkeypatch.setenv("THEIRS", shop_database_url)
    tables = [dg.AssetKey(["shop", table.name]) for table in load_profile("shop").tables.values()]
    job = loaded.resolve_implicit_global_asset_job_def()
    assert job.execute_in_process(
        partition_key=plans["shop"].files[1].partition, asset_selection=tables
    ).success
    assert query(shop_database_url, "SELECT count(*) FROM migration.loaded_file") == [(1,)]


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ("profile: no_such_module:profile", "no module 'no_such_module'"),
        ("profile: shop\nplan: nowhere.json", "no plan; make one with"),
        ("profile: migration_pipeline.profiles.shop:profile", "this plan was made for the profile shop"),
    ],
)
def test_a_plan_that_does_not_load_leaves_the_rest_of_the_location(
    plans: dict[str, Plan], project: Project, attributes: str, why: str
) -> None:
    loaded = project(broken=attributes, pictures="profile: pictures")
    graph = loaded.resolve_asset_graph()
    (fault,) = [key for key in graph.get_all_asset_keys() if key.path[-1] == "plan_does_not_load"]
    assert why in (graph.get(fault).description or "")
    assert any(key.path[0] == "pictures" for key in graph.get_all_asset_keys())


THINGS = """
from migration_pipeline import Item, Profile, Row

profile = Profile("things")

class Thing(Item):
    PK: str

class Kept(Row, table="things", key="pk"):
    pk: str

@profile.route()
def keep(item: Thing) -> Kept:
    return Kept(item.PK)
"""


@pytest.mark.parametrize("attribute", ["", "plan: ../../../things.json\n"])
def test_the_assets_of_a_plan_stay_while_its_profile_does_not_load(
    plans: dict[str, Plan],
    project: Project,
    tmp_path: Path,
    shop_export: Path,
    monkeypatch: pytest.MonkeyPatch,
    attribute: str,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_things.py").write_text(THINGS)
    made = CliRunner().invoke(main, ["plan", "--profile", "broken_things:profile", str(shop_export)])
    assert made.exit_code == 0, made.output
    plan = read_plan(tmp_path / "plans" / "things.json")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "things.json").write_bytes(plan.content)
    monkeypatch.delitem(sys.modules, "broken_things")
    (tmp_path / "broken_things.py").write_text(f"{THINGS}import no_such_module\n")
    loaded = project(
        things=f"profile: broken_things:profile\nfiles_per_run: 3\n{attribute}", shop="profile: shop"
    )
    graph = loaded.resolve_asset_graph()
    table = graph.get(dg.AssetKey(["things", "things"]))
    assert table.partitions_def == dg.StaticPartitionsDefinition(list(plan.by_partition()))
    assert table.backfill_policy == dg.BackfillPolicy.multi_run(3)
    assert graph.has(dg.AssetKey(["things", "plan_does_not_load"]))
    assert graph.has(dg.AssetKey(["shop", "orders"]))


@pytest.mark.parametrize(("code", "passing"), [("InternalError", True), ("AccessDenied", False)])
def test_a_plan_that_s3_does_not_give_now_fails_the_location_so_that_backfills_wait(
    plans: dict[str, Plan], project: Project, monkeypatch: pytest.MonkeyPatch, code: str, passing: bool
) -> None:
    with s3_server() as aws, FaultyS3(aws["AWS_ENDPOINT_URL_S3"]) as s3:
        for name, value in (aws | {"AWS_ENDPOINT_URL_S3": s3.url, "AWS_MAX_ATTEMPTS": "1"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(resumable, "WAIT_SECONDS", (0.01,))
        Storage().client.create_bucket(Bucket="plans-of-ours")
        write_plan(plans["shop"], "s3://plans-of-ours/data")
        attributes = "profile: shop\nplan: s3://plans-of-ours/data/shop.json"
        assert project(shop=attributes).resolve_asset_graph().has(dg.AssetKey(["shop", "orders"]))
        s3.plan([], otherwise=Answer("error", code))
        _, faults = read_plans("s3://plans-of-ours/data")
        assert faults["shop"].passing is passing
        if passing:
            with pytest.raises(Exception, match="Error while building definitions") as caught:
                project(shop=attributes)
            assert "the plan cannot be read" in "".join(traceback.format_exception(caught.value))
        else:
            graph = project(shop=attributes).resolve_asset_graph()
            assert graph.has(dg.AssetKey(["shop", "plan_does_not_load"]))


def test_a_mistyped_attribute_is_refused_by_its_name(plans: dict[str, Plan], project: Project) -> None:
    with pytest.raises(Exception, match="Error while loading component") as caught:
        project(broken="profile: shop\nfiles_per_rum: 3")
    assert "files_per_rum" in "".join(traceback.format_exception(caught.value))


def test_the_documented_component_is_what_the_code_takes() -> None:
    from migration_pipeline.component import MigrationComponent

    text = (TOP / "docs" / "component.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    assert listed == set(MigrationComponent.model_fields)
