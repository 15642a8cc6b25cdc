"""The commands of the local stack and of sample exports. `migration_pipeline.cli` knows them by their dotted names only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
from rich.markup import escape
from rich.progress import Progress

from migration_pipeline.cli.terminal import console
from migration_pipeline.demo.demo import remove_state, run_demo, run_dev
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.sample_history import VIEWS, write_history
from migration_pipeline.errors import UsageError
from migration_pipeline.sources.export import OutputFormat
from migration_pipeline.units import counted, counted_that

ITEMS = partial(click.option, "--items", type=click.IntRange(0), default=200_000, show_default=True)
FILES = partial(click.option, "--files", type=click.IntRange(1), default=8, show_default=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@ITEMS(help="Items in all files.")
@FILES(help="Data files; of three or more, the last is empty.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed writes the same bytes.")
@click.option(
    "--bad",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Broken items to plant, and as many in the windows; bad-items.jsonl beside the export says which and why.",
)
@click.option(
    "--profile",
    type=click.Choice(["shop", "pictures"]),
    default="shop",
    show_default=True,
    help="The shipped profile whose table it is.",
)
@click.option(
    "--format",
    "spelled",
    type=click.Choice(["json", "ion"]),
    default="json",
    show_default=True,
    help="How the lines are spelled: in DynamoDB JSON, or in Amazon Ion.",
)
@click.option(
    "--changes",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Writes after the export, in windows (incremental exports); a full export at their end follows.",
)
@click.option("--windows", type=click.IntRange(1), help="Windows that the changes are in.  [default: 2]")
@click.option(
    "--view", type=click.Choice(VIEWS), help=f"What windows have of an update.  [default: {VIEWS[0]}]"
)
def sample(
    folder: Path,
    items: int,
    files: int,
    seed: int,
    bad: int,
    profile: str,
    spelled: str,
    changes: int,
    windows: int | None,
    view: str | None,
) -> None:
    """Write a realistic export below FOLDER, in the layout that DynamoDB writes."""
    if not changes and (windows or view):
        raise UsageError("windows have the changes of a table: say how many, with --changes")
    if changes and spelled == "ion":
        raise UsageError("windows are read in DynamoDB JSON only: leave out --format ion, or --changes")
    numbers = {"items": items, "files": files, "seed": seed, "bad": bad}
    with _progress(items) as on_progress:
        if changes:
            history = write_history(
                folder, **numbers, profile=profile, changes=changes, windows=windows or 2, view=view or VIEWS[0],
                on_progress=on_progress,
            )  # fmt: skip
        else:
            output_format: OutputFormat = "ION" if spelled == "ion" else "DYNAMODB_JSON"
            export = write_sample(
                folder, **numbers, profile=profile, output_format=output_format, on_progress=on_progress
            )
    _say(f"wrote {counted(items, 'item')} in {counted(files, 'file')}", history.base if changes else export)
    if changes:
        for window, records in zip(history.windows, history.records, strict=True):
            _say(f"wrote a window of {counted(records, 'record')}", window)
        _say(
            f"wrote {counted_that(history.final_items, 'item', 'as it is', 'as they are')} at the end",
            history.final,
        )
    if bad:
        _say(
            "broken lines of all of these"
            if changes
            else f"{bad:,} of them {'is' if bad == 1 else 'are'} broken",
            folder / "bad-items.jsonl",
        )


@contextmanager
def _progress(items: int) -> Iterator[Callable[[int], None]]:
    """Show a bar, on a terminal; yields what is to be told the number of items written."""
    out = console()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(f"writing {counted(items, 'item')}", total=items)
        yield lambda written: bar.update(task, completed=written)


def _say(what: str, where: Path) -> None:
    console().print(f"{what}: {escape(str(where))}", soft_wrap=True)


@click.command()
@ITEMS()
@FILES()
def demo(items: int, files: int) -> None:
    """Migrate a sample export into an embedded PostgreSQL, through a Dagster of its own."""
    sys.exit(run_demo(items, files))


@click.command()
@click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Port of the Dagster UI."
)
def dev(port: int) -> None:
    """Run Dagster (UI, daemon, code server) and the embedded PostgreSQL until Ctrl-C."""
    run_dev(port)


@click.command()
def clean() -> None:
    """Remove the embedded PostgreSQL with its data, and everything else below the state folder."""
    remove_state()
