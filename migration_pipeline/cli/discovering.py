"""The commands for a new export: inspect shows what it holds, scaffold writes a first profile for it."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from migration_pipeline.cli.terminal import console, warn
from migration_pipeline.discovery import inspection
from migration_pipeline.discovery.sampling import take_sample
from migration_pipeline.discovery.scaffold import Scaffold, reference_of, write
from migration_pipeline.discovery.scaffold import scaffold as scaffold_of
from migration_pipeline.discovery.survey import Survey, survey_everything, survey_sample
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.sources.bare import read_bare_export
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.units import counted, counted_that

EXPORT = click.argument("location", metavar="EXPORT")
ITEMS_PER_FILE = click.option(
    "--items-per-file",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    help="Items sampled from each file.",
)
WITHOUT_MANIFEST = click.option(
    "--without-manifest",
    is_flag=True,
    help="EXPORT has none, such as that of an emulator: take all files of the folder (….gz), and read them to count their items.",
)
EVERYTHING = click.option(
    "--all", "everything", is_flag=True, help="Read every item instead of a sample: minutes for millions."
)


@click.command()
@EXPORT
@ITEMS_PER_FILE
@EVERYTHING
@WITHOUT_MANIFEST
@click.option("--json", "as_json", is_flag=True, help="Print all findings as JSON.")
@click.option(
    "--html",
    "page",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all findings to an HTML page.",
)
def inspect(
    location: str,
    items_per_file: int,
    everything: bool,
    without_manifest: bool,
    as_json: bool,
    page: Path | None,
) -> None:
    """Show what EXPORT holds: its entity types, their attributes, and the types that fit them.

    It reads a sample of every file, and says how much. It shows no text of an item except key prefixes and the
    constants of attributes with few values; of numbers and times it shows the range. Of a window (an incremental
    export), each item counts as it was at the end, a deleted one as it was before.
    """
    if page is not None:
        inspection.page_template()  # says before the survey what is not installed
    storage = Storage()
    export = _read(location, storage, without_manifest)
    found = inspection.facts(_survey(export, storage, items_per_file, everything))
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
    help="The profile's module; the profile is named after it. schema.sql and a test are written next to it.",
)
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@ITEMS_PER_FILE
@EVERYTHING
@WITHOUT_MANIFEST
def scaffold(
    location: str, output: Path, force: bool, items_per_file: int, everything: bool, without_manifest: bool
) -> None:
    """Write a first profile for EXPORT, to read and to edit: its module, schema.sql, and a test.

    It is made from a sample of every file, and tried on that sample. The test contains sampled items unchanged.
    """
    storage = Storage()
    export = _read(location, storage, without_manifest)
    if export.window is not None:
        raise UsageError(
            f"{export.uri}: an incremental export, which holds only what changed; make the profile from the full export that "
            "it follows"
        )
    survey = _survey(export, storage, items_per_file, everything)
    made = scaffold_of(survey, output)
    write(made, force)
    _tell_made(survey, made)
    reference, folder = reference_of(output)
    before = f"export PYTHONPATH={shlex.quote(folder)}; " if folder else ""
    more = "--without-manifest " if without_manifest else ""
    click.echo(
        f"next: read {output.name}, then {before}migration-pipeline plan --profile {reference} {more}{shlex.quote(location)}"
    )
    sys.exit(1 if survey.unread else 0)


def _read(location: str, storage: Storage, without_manifest: bool) -> Export:
    if without_manifest:
        return read_bare_export(location, storage, partial(click.echo, err=True))
    return read_export(location, storage, warn)


def _tell_made(survey: Survey, made: Scaffold) -> None:
    """Print the files written, the attributes without a column, and the profile's results on the sample."""
    for reason in survey.unread.values():
        warn(f"not read: {reason}")
    for path in made.files:
        click.echo(f"wrote {path}")
    click.echo(
        f"{counted(made.entity_types, 'entity type')}; {counted_that(made.cases, 'real item', 'is a case', 'are cases')} of the test: mind who may read it"
    )
    for rest in made.rests:
        if rest.others:
            click.echo(
                f"{rest.table}: {counted_that(rest.columns, 'attribute', 'is a column', 'are columns')}; {rest.others:,}"
                f"{' other goes' if rest.others == 1 and rest.all_counted else ' others go' if rest.all_counted else ' or more others go'} to the document in column {rest.column}"
            )
    if not survey.whole:
        click.echo("attributes found only in items that were not looked at go to the document of their table")
    for reason, count in made.bad.items():
        click.echo(f"bad: {counted(count, 'sampled item')}: {reason}")
    click.echo(
        f"tried on {counted(survey.sample.items, 'sampled item')}: {made.items:,} would load, {made.unrouted:,} be unrouted, "
        f"{sum(made.bad.values()):,} be quarantined"
    )


def _survey(export: Export, storage: Storage, items_per_file: int, everything: bool) -> Survey:
    """Look at an export, with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        sampling = bar.add_task("sampling the files", total=len(export.files))
        sample = take_sample(export, storage, items_per_file, lambda: bar.advance(sampling))
        if not everything:
            looking = bar.add_task(f"looking at {counted(sample.items, 'item')}", total=sample.items)
            return survey_sample(sample, lambda items: bar.advance(looking, items))
        reading = bar.add_task(f"reading {counted(export.items, 'item')}", total=export.items)
        return survey_everything(sample, storage, lambda items: bar.advance(reading, items))
