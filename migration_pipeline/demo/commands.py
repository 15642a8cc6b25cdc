"""The commands of the local stack and of sample exports. `migration_pipeline.cli` knows them by their dotted names only."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click
from rich.markup import escape
from rich.progress import Progress

from migration_pipeline.cli.terminal import console
from migration_pipeline.demo.demo import remove_state, run_demo, run_dev
from migration_pipeline.demo.sample import write_sample

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
    help="Broken items to plant; bad-items.jsonl beside the export says which and why.",
)
@click.option(
    "--profile",
    type=click.Choice(["shop", "pictures"]),
    default="shop",
    show_default=True,
    help="The shipped profile whose table it is.",
)
def sample(folder: Path, items: int, files: int, seed: int, bad: int, profile: str) -> None:
    """Write a realistic export below FOLDER, in the layout that DynamoDB writes."""
    out = console()
    with Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(f"writing {items:,} items", total=items)
        export = write_sample(
            folder, items=items, files=files, seed=seed, bad=bad, profile=profile,
            on_progress=lambda written: bar.update(task, completed=written),
        )  # fmt: skip
    out.print(f"wrote {items:,} items in {files} files: {escape(str(export))}", soft_wrap=True)
    if bad:
        out.print(f"{bad} of them are broken: {escape(str(folder / 'bad-items.jsonl'))}", soft_wrap=True)


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
