"""The commands for an export that nobody knows yet: say what it holds, write a first profile for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from migration_pipeline.cli.terminal import console, warn
from migration_pipeline.discovery import inspection
from migration_pipeline.discovery.sampling import take_sample
from migration_pipeline.discovery.scaffold import Scaffold, write
from migration_pipeline.discovery.scaffold import scaffold as scaffold_of
from migration_pipeline.discovery.survey import Survey, survey_everything, survey_sample
from migration_pipeline.errors import MigrationError
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage

EXPORT = click.argument("location", metavar="EXPORT")
ITEMS_PER_FILE = click.option(
    "--items-per-file",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="Items drawn of each file.",
)
EVERYTHING = click.option(
    "--all", "everything", is_flag=True, help="Read every item, instead of a sample: minutes for millions."
)


@click.command()
@EXPORT
@ITEMS_PER_FILE
@EVERYTHING
@click.option("--json", "as_json", is_flag=True, help="Print all that was found as JSON.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all that was found to a page for a browser.",
)
def inspect(location: str, items_per_file: int, everything: bool, as_json: bool, page: Path | None) -> None:
    """Say what EXPORT holds: its entity types, their attributes, and the types that these fit.

    It reads a sample of every file, and says which. No text of an item is shown, but key prefixes, the
    constants of attributes with few values, and the range of numbers and times.
    """
    if page is not None:
        inspection.page_template()  # says before the survey what is not installed
    found = inspection.facts(_survey(location, items_per_file, everything))
    if page is not None:
        try:
            page.write_text(inspection.html(found), encoding="utf-8")
        except OSError as error:
            raise MigrationError(f"{page}: cannot be written: {error.strerror}") from None
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        console().print(inspection.tables(found))
        if page is not None:
            click.echo(f"written: {page}")
    sys.exit(1 if found["unread"] else 0)


@click.command()
@EXPORT
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE.py",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The profile's module, which gives it its name; schema.sql and a test are written beside it.",
)
@click.option("--force", is_flag=True, help="Overwrite files that are there.")
@ITEMS_PER_FILE
@EVERYTHING
def scaffold(location: str, output: Path, force: bool, items_per_file: int, everything: bool) -> None:
    """Write a first profile for EXPORT, to read and to change: its module, schema.sql, and a test.

    It is made from a sample of every file, and tried on it. The test holds sampled items as they are.
    """
    survey = _survey(location, items_per_file, everything)
    made = scaffold_of(survey, output)
    write(made, force)
    _tell_made(survey, made)
    click.echo(
        f"next: read {output.name}, then migration-pipeline plan --profile {output.stem}:profile {location}"
    )
    sys.exit(1 if survey.unread else 0)


def _tell_made(survey: Survey, made: Scaffold) -> None:
    """Print what was written, what of the items has no column, and how the profile did on the sample."""
    for reason in survey.unread.values():
        warn(f"not read: {reason}")
    for path in made.files:
        click.echo(f"wrote {path}")
    click.echo(
        f"{made.entity_types:,} entity types; {made.cases:,} real items are cases of the test: mind who may see it"
    )
    for rest in made.rests:
        if rest.others:
            click.echo(
                f"{rest.table}: {rest.columns:,} attributes are columns; {rest.others:,}"
                f"{'' if rest.all_counted else ' or more'} others are none, and go to its document, the column {rest.column}"
            )
    if not survey.whole:
        click.echo(
            "attributes that only items have that were not looked at go to the document of their table"
        )
    for reason, count in made.bad.items():
        click.echo(f"bad: {count:,} sampled items: {reason}")
    click.echo(
        f"tried on {survey.sample.items:,} sampled items: {made.items:,} become rows, {made.unrouted:,} are unrouted, "
        f"{sum(made.bad.values()):,} would go to the quarantine"
    )


def _survey(location: str, items_per_file: int, everything: bool) -> Survey:
    """Look at an export, with progress on stderr."""
    storage = Storage()
    export = read_export(location, storage, warn)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        sampling = bar.add_task("sampling the files", total=len(export.files))
        sample = take_sample(export, storage, items_per_file, lambda: bar.advance(sampling))
        if not everything:
            looking = bar.add_task(f"looking at {sample.items:,} items", total=sample.items)
            return survey_sample(sample, lambda items: bar.advance(looking, items))
        reading = bar.add_task(f"reading {export.items:,} items", total=export.items)
        return survey_everything(sample, storage, lambda items: bar.advance(reading, items))
