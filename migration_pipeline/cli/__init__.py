"""The command line: all commands by name, each imported only when it is called.

Commands are thin: they read arguments, call the layers, print, and set the exit status. Exit status: 0 done, 1 something
is failed or missing, 2 the call was wrong.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from migration_pipeline.errors import MigrationError, UsageError

COMMANDS = {
    "migration_pipeline.cli.discovering": {
        "inspect": "Say what EXPORT holds: its entity types, their attributes, and the types that these fit.",
        "scaffold": "Write a first profile for EXPORT, to read and to change: its module, schema.sql, and a test.",
    },
    "migration_pipeline.cli.planning": {
        "plan": "Read the manifests of EXPORTS and pin their files as the profile's partitions.",
        "ddl": "Print the SQL that creates the profile's tables and the bookkeeping; running it again changes nothing.",
    },
    "migration_pipeline.cli.loading": {
        "backfill": "Launch a backfill of all files that are not materialized, then of what is made of them all.",
        "retry-failed": "Load the files again that failed or were stopped, each from its beginning; then what is made of all files.",
        "stop": "Stop the migration: cancel its backfills, terminate its runs.",
        "replay": "Run the quarantined items of loaded files through the profile again, after it or a table was fixed.",
    },
    "migration_pipeline.cli.observing": {
        "status": "List the files, and what is made of them all: state, items, rows, run, how far it is or why it failed.",
        "logs": "Print the log of the last run that tried FILE: the file's name, or a part that no other file has.",
        "metrics": "Serve /metrics for Prometheus until Ctrl-C: of these profiles, or of all that are planned.",
    },
    "migration_pipeline.cli.checking": {
        "verify": "Read the export again, and compare each row that it makes with the database.",
        "report": "Write one HTML file that tells and proves what was migrated, to attach to a change ticket.",
        "reconcile": "Tell Dagster of what is loaded and made, as the database's receipts prove, and that it does not show.",
    },
    "migration_pipeline.demo.commands": {
        "sample": "Write a realistic export below FOLDER, in the layout that DynamoDB writes.",
        "demo": "Migrate a sample export into an embedded PostgreSQL, through a Dagster of its own.",
        "dev": "Run Dagster (UI, daemon, code server) and the embedded PostgreSQL until Ctrl-C.",
        "clean": "Remove the embedded PostgreSQL with its data, and everything else below the state folder.",
    },
}
"""The commands of each module, which have their names there, with _ for -. Beside each the first sentence of its help:
`migration-pipeline --help` shows it without an import."""


class _Lazy(click.Command):
    """Stands for a command whose module is imported when it is called, or its own help is asked."""

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
    """Prints our own errors as one line, and gives them their exit status."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except MigrationError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(2 if isinstance(error, UsageError) else 1)


@click.group(
    cls=_Group,
    commands=[_Lazy(module, *each) for module, names in COMMANDS.items() for each in names.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="migration-pipeline")
def main() -> None:
    """Move a DynamoDB table, exported to S3, into PostgreSQL through Dagster.

    The usual order: inspect, scaffold, plan, ddl, backfill --wait, status, retry-failed.
    """
