"""What imports what: a deployment does without the local stack, and a command without what it does not use."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import migration_pipeline

PACKAGE = Path(migration_pipeline.__file__).parent
DEMO = "migration_pipeline.demo"


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_nothing_outside_of_the_demo_imports_it() -> None:
    others = [path for path in PACKAGE.rglob("*.py") if PACKAGE / "demo" not in path.parents]
    assert len(others) > 50
    assert not [path for path in others for name in imported(path) if f"{name}.".startswith(f"{DEMO}.")]


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], ["migration_pipeline.migration", "migration_pipeline.cli.planning", "rich", "requests"]),
        (["plan", "--help"], ["migration_pipeline.cli.loading"]),
        (["backfill", "--help"], ["migration_pipeline.cli.planning", "boto3", "smart_open"]),
        (["status", "--help"], ["prometheus_client", "boto3", "smart_open"]),
        (["verify", "--help"], ["jinja2", "altair"]),
    ],
)
def test_a_command_is_imported_when_it_is_called(arguments: list[str], without: list[str]) -> None:
    script = (
        "import json, sys\n"
        "from migration_pipeline.cli import main\n"
        f"main({arguments!r}, 'migration-pipeline', standalone_mode=False)\n"
        "print(json.dumps(list(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "migration_pipeline.cli" in modules
    for name in ("dagster", DEMO, *without):
        assert not [module for module in modules if f"{module}.".startswith(f"{name}.")]
