"""The wheel, installed into an empty environment as a user does it, without a clone beside it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from migration_pipeline.migration.plans import read_plan
from migration_pipeline_tests.conftest import query
from migration_pipeline_tests.oracle import expected

TOP = Path(__file__).parents[2]
INSTALL_SECONDS = 600


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    for package in ("migration_pipeline", "migration_pipeline_tests"):
        shutil.copytree(TOP / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(built), str(source), at=source
    )
    (made,) = built.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment into which nothing but the wheel was installed."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", str(folder / "venv"), at=folder)
    bin_ = folder / "venv" / "bin"
    run(
        str(bin_ / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "-c", str(TOP / "constraints.txt"), str(wheel), at=folder,
    )  # fmt: skip
    return bin_


def run(*command: str, at: Path, **environment: str) -> str:
    """Run a command that must succeed, in a folder that is no clone."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=at, env=clean | environment, capture_output=True, text=True, timeout=INSTALL_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"migration_pipeline"}
    parts = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    assert {"migration_pipeline/py.typed", "migration_pipeline/profiles/customer_activity.sql"} <= parts
    assert any(name.endswith(".jinja") for name in parts)
    with zipfile.ZipFile(wheel) as opened:
        assert opened.read("migration_pipeline/demo/dagster.yaml") == (TOP / "dagster.yaml").read_bytes()
    sources = {str(p.relative_to(TOP)) for p in (TOP / "migration_pipeline").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_without_a_compiler_it_is_built_all_the_same(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        TOP / "migration_pipeline", source / "migration_pipeline", ignore=shutil.ignore_patterns("*.so")
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, source)
    # What a build of an older source left here is no part of it.
    left = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    (left / "migration_pipeline" / "sources").mkdir(parents=True)
    old = left / "migration_pipeline" / "sources" / f"_lines{sysconfig.get_config_var('EXT_SUFFIX')}"
    old.write_bytes(b"")
    os.utime(old, (0, 0))
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "-w", str(tmp_path), str(source), at=source, CC="false",
    )  # fmt: skip
    (made,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(made).namelist()
    assert "migration_pipeline/definitions.py" in names
    assert not [name for name in names if name.endswith(".so")]


def test_it_migrates_a_folder_from_an_empty_environment(
    installed: Path, tmp_path: Path, shop_export: Path, database_url: str
) -> None:
    work = tmp_path / "a folder"
    work.mkdir()
    environment = {
        "MIGRATION_HOME": str(work / "state"),
        "MIGRATION_DATABASE_URL": database_url,
        "DAGSTER_HOME": str(work),
    }
    shutil.copy(TOP / "dagster.yaml", work)

    def call(name: str, *arguments: str) -> str:
        return run(str(installed / name), *arguments, at=work, **environment)

    assert "Usage: migration-pipeline" in call("migration-pipeline", "--help")
    call("migration-pipeline", "plan", "--profile", "shop", str(shop_export))
    call("migration-pipeline", "ddl", "shop", "--apply")
    plan = read_plan(work / "state" / "plans" / "shop.json")
    tables = "shop/customers,shop/orders,shop/order_lines,shop/shop_events"
    for planned in plan.files:
        call(
            "dagster", "asset", "materialize", "-m", "migration_pipeline.definitions",
            "--select", tables, "--partition", planned.partition,
        )  # fmt: skip
    ((orders,),) = query(database_url, "SELECT count(*) FROM orders")
    assert orders == len(expected(shop_export)[0]["orders"])
    assert query(database_url, "SELECT count(*) FROM migration.loaded_file") == [(len(plan.files),)]


def test_the_demo_runs_without_a_clone(installed: Path, tmp_path: Path) -> None:
    work = tmp_path / "an empty folder"
    work.mkdir()
    call = str(installed / "migration-pipeline")
    try:
        said = run(call, "demo", "--items", "2000", "--files", "1", at=work, MIGRATION_HOME="")
        assert "1 of 1 file materialized" in said
        assert "migration-pipeline dev   then open" in said
        assert "make " not in said
        assert [path.name for path in work.iterdir()] == [".local"]
    finally:
        run(call, "clean", at=work, MIGRATION_HOME="")
    assert not list(work.iterdir())


OWN_ASSET = """
import dagster as dg

@dg.asset(deps=[dg.AssetKey(["shop", "orders"])])
def orders_of_the_day() -> None: ...
"""


def test_a_project_made_by_create_dagster_takes_a_migration(
    installed: Path, tmp_path: Path, shop_export: Path, database_url: str
) -> None:
    """The project, `dg` and the component of docs/component.md, in an environment of the team's."""
    newest = version("dagster")
    run(
        str(installed / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "-c", str(TOP / "constraints.txt"), f"create-dagster=={newest}", f"dagster-dg-cli=={newest}", at=tmp_path,
    )  # fmt: skip
    project = tmp_path / "team"
    environment = {
        "PATH": f"{installed}:{os.environ['PATH']}",
        "PYTHONPATH": str(project / "src"),
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0",
        "MIGRATION_HOME": str(tmp_path / "state"),
        "MIGRATION_DATABASE_URL": database_url,
    }

    def call(name: str, *arguments: str) -> str:
        return run(
            str(installed / name), *arguments, at=project if project.exists() else tmp_path, **environment
        )

    call("create-dagster", "project", "team", "--no-uv-sync")
    (shown,) = re.findall(r"```yaml\n(.*?)```", (TOP / "docs" / "component.md").read_text(), re.DOTALL)
    folder = project / "src" / "team" / "defs" / "shop"
    folder.mkdir()
    (folder / "defs.yaml").write_text(shown.replace("my_project.migrations.shop:profile", "shop"))
    (folder.parent / "own.py").write_text(OWN_ASSET)
    call("migration-pipeline", "plan", "--profile", "shop", str(shop_export))
    call("migration-pipeline", "ddl", "shop", "--apply")

    call("dg", "check", "yaml")
    call("dg", "check", "defs")
    listed = json.loads(call("dg", "list", "defs", "--json"))
    assets = {asset["asset_key"]: asset for asset in listed["assets"]}
    assert {"shop/customers", "shop/orders", "shop/finishing", "orders_of_the_day"} <= set(assets)
    assert assets["orders_of_the_day"]["dependency_keys"] == ["shop/orders"]
    assert {"shop_check", "shop_verify"} <= {job["name"] for job in listed["jobs"]}
    assert "migration_pipeline.component.MigrationComponent" in call("dg", "list", "components", "--json")

    plan = read_plan(tmp_path / "state" / "plans" / "shop.json")
    call(
        "dagster", "asset", "materialize", "-m", "team.definitions", "--partition", plan.files[1].partition,
        "--select", "shop/customers,shop/orders,shop/order_lines,shop/shop_events",
    )  # fmt: skip
    assert query(database_url, "SELECT file FROM migration.loaded_file") == [(plan.files[1].file.name,)]

    # And this repository is a project of its own.
    repository = tmp_path / "repository"
    repository.mkdir()
    for name in ("pyproject.toml", "dagster.yaml", "workspace.yaml"):
        shutil.copy(TOP / name, repository)
    shutil.copytree(TOP / "migration_pipeline", repository / "migration_pipeline")
    for words in (("check", "defs"), ("list", "defs")):
        done = subprocess.run(
            [installed / "dg", *words], cwd=repository, env=dict(os.environ) | environment | {"DAGSTER_HOME": str(repository)}, capture_output=True,
            text=True, timeout=INSTALL_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "arning" not in done.stdout + done.stderr
