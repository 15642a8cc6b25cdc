"""The command that executes runs on a machine of its own."""

from __future__ import annotations

import os

import click

from migration_pipeline.errors import UsageError


@click.command()
@click.option(
    "--runs",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Runs at once, a file each: one keeps about a core busy.",
)
@click.option("--name", default=None, help="Of this worker, on its machine; by default its process number.")
def worker(runs: int, name: str | None) -> None:
    """Execute runs on this machine, as a Celery worker, until SIGTERM, which lets them end first.

    All else is in dagster.yaml in DAGSTER_HOME, which names broker and storage as the daemon's does.
    """
    try:
        from migration_pipeline.defs.celery_worker import work
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'migration-pipeline[celery]'") from None
    work(runs, name or f"migration-{os.getpid()}")
