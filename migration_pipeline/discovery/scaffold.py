"""Writes a first profile from an export: the module, its tables in SQL, and a test with sampled items."""

from __future__ import annotations

import re
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from migration_pipeline.discovery.cases import cases_source
from migration_pipeline.discovery.draft import make_draft
from migration_pipeline.discovery.module import module_source
from migration_pipeline.discovery.source import tidy
from migration_pipeline.discovery.survey import Survey
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import BadItem, MigrationError, UsageError
from migration_pipeline.generated import generated
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources import dynamodb_json  # which a survey spells its items in
from migration_pipeline.targets.ddl import ddl


class Rest(msgspec.Struct):
    """The attributes of an entity type that are not columns, and go to a document."""

    table: str
    column: str
    columns: int
    """Attributes that are columns."""
    others: int
    """Attributes of the items looked at that are none."""
    all_counted: bool
    """Whether there are no more than `others`."""


class Scaffold(msgspec.Struct):
    """What was made of an export: the files, not written yet, and how the profile did on the sample."""

    files: dict[Path, str]
    entity_types: int
    cases: int
    items: int
    """Sampled items that became rows."""
    bad: dict[str, int]
    """Reason -> sampled items that would go to the quarantine."""
    unrouted: int
    rests: list[Rest]
    """Of each table that has a document for what is no column."""


def scaffold(survey: Survey, path: Path) -> Scaffold:
    """Make a profile for the module at `path`, ``schema.sql`` and a test beside it, and try it on the sample.

    Raises `UsageError` if the name is not one for a module, or no profile can be made of the items.
    """
    _check_name(path)
    draft = make_draft(survey, path.stem)
    source = tidy(module_source(draft), path, path.stem)
    with imported(source, path.stem) as profile:
        transform = Transform(profile, dynamodb_json)
        cases, number = cases_source(draft, path.stem, lambda line: transform.one(line).all_rows)
        test = path.with_name(f"test_{path.name}")
        lines, bad = [], Counter[str]()
        for line in survey.sample:
            try:
                lines.append(survey.item_line(line).line)
            except BadItem as error:
                bad[str(error)] += 1
        outcome = transform(lines)
        files = {
            path: source,
            path.with_name("schema.sql"): ddl(profile.tables.values()),
            test: tidy(cases, test, path.stem),
        }
    return Scaffold(
        files=files,
        entity_types=len(draft.entities),
        cases=number,
        items=outcome.counts.loaded,
        bad=dict(bad + Counter(each.reason for each in outcome.bad)),
        unrouted=outcome.counts.unrouted.total(),
        rests=[
            Rest(entity.table, entity.rest[1], len(entity.written), entity.others, entity.kind.all_counted)
            for entity in draft.entities
            if entity.rest
        ],
    )


def reference_of(path: Path) -> tuple[str, str]:
    """How commands that are called in this folder name the profile at `path`, and the PYTHONPATH that they need, or ""."""
    folder = path.absolute().parent
    try:
        parts = folder.resolve().relative_to(Path.cwd().resolve()).parts
    except ValueError:
        parts = ("..",)
    if all(part.isidentifier() for part in parts):
        return ".".join([*parts, path.stem]) + ":profile", ""
    return f"{path.stem}:profile", str(folder)


def write(made: Scaffold, force: bool) -> None:
    """Write the files; all of them or, when one is there already and `force` is not given, none."""
    there = [path for path in made.files if path.exists()]
    if there and not force:
        raise UsageError(
            f"{there[0]} already exists; choose another name or folder, or overwrite it with --force"
        )
    for path, text in made.files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise MigrationError(f"{path}: cannot be written: {error.strerror}") from None


def _check_name(path: Path) -> None:
    if path.suffix != ".py" or not re.fullmatch(r"[a-z][a-z0-9_]*", path.stem):
        raise UsageError(
            f"{path}: the profile is named after its Python module, so the file name must be lower-case letters, digits and _, then .py"
        )
    if path.stem.startswith("test_") or path.stem.endswith("_test"):
        raise UsageError(
            f"{path}: pytest would take a module named {path.stem} for a test; choose another name"
        )
    if path.stem in sys.stdlib_module_names or path.stem == "migration_pipeline":
        raise UsageError(f"{path}: a module named {path.stem} already exists; choose another name")


@contextmanager
def imported(source: str, name: str) -> Iterator[Profile]:
    """Run the source of a profile as a module of its own, and forget it afterwards."""
    module = types.ModuleType(f"migration_pipeline_scaffold_{name}")
    sys.modules[module.__name__] = module  # where annotations are looked up
    try:
        yield generated("profile", source, f"{name}.py", module.__dict__)  # all texts in it are literals
    finally:
        del sys.modules[module.__name__]
