"""The command line: all commands by name, each imported only when it is called.

Commands are thin: they read arguments, call the layers, print, and set the exit status: 0 done, 1 something
failed or is missing, 2 the call was wrong.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

from migration_pipeline.errors import MigrationError, UsageError

COMMANDS = {
    "migration_pipeline.cli.discovering": {
        "inspect": "Show what EXPORT holds: its entity types, their attributes, and the types that fit them.",
        "scaffold": "Write a first profile for EXPORT, to read and to edit: its module, schema.sql, and a test.",
    },
    "migration_pipeline.cli.planning": {
        "plan": "Read the manifests of EXPORTS and pin their files as the profile's partitions.",
        "ddl": "Print the SQL that creates the profile's tables and the bookkeeping; running it again changes nothing.",
    },
    "migration_pipeline.cli.loading": {
        "backfill": "Launch a backfill of all files that are not materialized; aggregates and finishing follow.",
        "retry-failed": "Load failed and stopped files again, each from its beginning; aggregates and finishing follow.",
        "stop": "Stop the migration: cancel its backfills, terminate its runs.",
        "replay": "Run the quarantined items of loaded files through the profile again, after fixing it or a table.",
    },
    "migration_pipeline.cli.steering": {
        "throttle": "Show what a load's pace depends on, or change it: running files follow within two seconds.",
    },
    "migration_pipeline.cli.exporting": {
        "export": "Ask DynamoDB for an export of TABLE to S3, wait for it, and print its address.",
    },
    "migration_pipeline.cli.following": {
        "follow": "Follow the living table: export the next window to S3, add it to the plan, load it, and so on.",
        "cutover": "Tell whether the application can switch to PostgreSQL now: a checklist that ends in yes or no.",
    },
    "migration_pipeline.cli.observing": {
        "status": "List files, aggregates and finishing: state, items, rows, run, and progress or error.",
        "logs": "Print the log of the last run that tried FILE: the file's name, or a unique part of it.",
        "metrics": "Serve /metrics for Prometheus until Ctrl-C, for these profiles or for all that have a plan.",
    },
    "migration_pipeline.cli.checking": {
        "verify": "Read the export again, and compare each row that it makes with the database.",
        "report": "Write one HTML file that shows and proves what was migrated, to attach to a change ticket.",
        "reconcile": "Restore in Dagster what it no longer shows: files and aggregates that the database's receipts prove.",
    },
    "migration_pipeline.cli.diagnosing": {
        "doctor": "Look at all that a migration needs, and say of each part what is there, what lacks, and the way out.",
    },
    "migration_pipeline.cli.working": {
        "worker": "Execute runs on this machine, as a Celery worker, until SIGTERM, which lets them end first.",
    },
    "migration_pipeline.demo.commands": {
        "sample": "Write a realistic export below FOLDER, in the layout that DynamoDB writes.",
        "demo": "Migrate a sample export into an embedded PostgreSQL, through a Dagster of its own.",
        "dev": "Run Dagster (UI, daemon, code server) and the embedded PostgreSQL until Ctrl-C.",
        "clean": "Remove the embedded PostgreSQL with its data, and everything else below the state folder.",
    },
}
"""Module -> its commands, as functions of the same name with _ for -, each with the first sentence of its help, so that
`migration-pipeline --help` needs no import."""


class _Lazy(click.Command):
    """A command whose module is imported only when it is called or its help is shown."""

    def __init__(self, module: str, name: str, sentence: str) -> None:
        super().__init__(name, help=sentence)
        self._at = module, name.replace("-", "_")

    def load(self) -> click.Command:
        """Import the command."""
        module, name = self._at
        command: click.Command = getattr(import_module(module), name)
        return command

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """Parse the call as the command does: click goes on with the command itself."""
        return self.load().make_context(*arguments, **more)


class _Group(click.Group):
    """The command group: prints our own errors as one line, and exits with their status."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MigrationError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(2 if isinstance(error, UsageError) else 1)


def _tell_version(context: click.Context) -> None:
    from migration_pipeline import accelerator  # of no use to who calls a command

    click.echo(f"migration-pipeline, version {version('migration-pipeline')}, {accelerator.described()}")
    context.exit()


@click.group(
    cls=_Group,
    commands=[_Lazy(module, *each) for module, names in COMMANDS.items() for each in names.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=lambda context, _, asked: _tell_version(context) if asked else None,
    help="Show the version, and whether the extensions in C are used.",
)
def main() -> None:
    """Move a DynamoDB table, exported to S3, into PostgreSQL through Dagster.

    The usual order: inspect, scaffold, plan, ddl, backfill --wait, status, retry-failed, verify, report.
    """
