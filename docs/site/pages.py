"""Gathers the pages of the site in a folder, as they lie in the repository, and writes those of the reference.

    python docs/site/pages.py build && mkdocs build --strict -f build/mkdocs.yml

Links between pages, and to files of the project that a page names, work as they do in the repository.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from migration_pipeline.cli import main
from migration_pipeline.defs.config import aggregate_config, finishing_config, load_config
from migration_pipeline.migration.plan import FORMAT, Plan
from migration_pipeline.profile.profile import load_profile

TOP = Path(__file__).parents[2]

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")

DECISIONS = "- docs/decisions/* # pages.py names them"

PROFILES = """# What a profile is written with

All of it is imported from `migration_pipeline`. [Tables](../targets.md) says what a column may do to a value, and
[aggregates](../aggregates.md) how many items become one row.

::: migration_pipeline
    options:
      show_root_heading: false
      show_root_toc_entry: false
"""


def gather(build: Path) -> None:
    """Write all pages into ``build/pages``, which is emptied before, and what mkdocs needs to know of them."""
    folder = build / "pages"
    shutil.rmtree(folder, ignore_errors=True)
    pages = [TOP / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    pages += [page for page in (TOP / "docs").rglob("*.md") if page.parent.name != "site"]
    for page in pages:
        for path in (page, *_linked(page)):
            _copy(path, folder)
    reference = folder / "docs/reference"
    reference.mkdir(parents=True)
    (reference / "commands.md").write_text("\n".join(_commands()))
    (reference / "configuration.md").write_text("\n".join(_configuration()))
    (reference / "profiles.md").write_text(PROFILES)
    decisions = (f"- {page.relative_to(folder)}" for page in sorted((folder / "docs/decisions").iterdir()))
    settings = (Path(__file__).parent / "mkdocs.yml").read_text()
    (build / "mkdocs.yml").write_text(settings.replace(DECISIONS, "\n          ".join(decisions)))


def _linked(page: Path) -> Iterator[Path]:
    """The files of the project that a page links to. A folder's link leads to a list of what it holds."""
    for target in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        if path.is_relative_to(TOP) and path.is_file() and path.suffix != ".md":
            yield path


def _copy(path: Path, folder: Path) -> None:
    to = folder / path.relative_to(TOP)
    to.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix != ".md":
        shutil.copy(path, to)
        return
    text = path.read_text()
    for target in set(LINK.findall(text)):
        if (path.parent / target).is_dir() or target == "LICENSE":
            text = re.sub(
                rf"\[([^\]]*)\]\({re.escape(target)}\)", r"\1", text
            )  # a site has no list of a folder
    to.write_text(text)


def _commands() -> Iterator[str]:
    """Each command's help, as `--help` prints it."""
    yield "# Commands\n"
    context = click.Context(main, info_name="migration-pipeline")
    yield f"```text\n{main.get_help(context)}\n```\n"
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        command = getattr(command, "load", lambda c=command: c)()
        with click.Context(command, parent=context, info_name=name) as inner:
            yield f"## {name}\n\n```text\n{command.get_help(inner)}\n```\n"


def _configuration() -> Iterator[str]:
    """Each key of the run config, with its default."""
    yield "# Run config\n"
    yield "What the launchpad of a run takes. [Settings](../../README.md#settings) of the environment stand in the README.\n"
    profile = load_profile("shop")
    plan = Plan(format=FORMAT, profile=profile.name, reference=profile.name, exports=(), files=())
    kinds = {
        "Loads": load_config(plan, profile), "Aggregates": aggregate_config(plan), "Finishing": finishing_config(plan)
    }  # fmt: skip
    for kind, config in kinds.items():
        yield f"## {kind}\n\n| key | default | what |\n|---|---|---|"
        for name, field in config.model_fields.items():
            what = " ".join((field.description or "").split()).replace("|", "\\|")
            yield f"| `{name}` | `{field.default!r}` | {what} |"
        yield ""


if __name__ == "__main__":
    gather(Path(sys.argv[1]).resolve())
