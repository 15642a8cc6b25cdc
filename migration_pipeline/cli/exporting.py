"""The command that asks DynamoDB for exports, and what it shares with `follow`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import click
import msgspec

from migration_pipeline.cli.arguments import open_plan
from migration_pipeline.cli.terminal import stamped
from migration_pipeline.cli.times import moment
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.reach import planned_until
from migration_pipeline.operations import following
from migration_pipeline.operations.exports import Asked, Place, TableExports, ask_next
from migration_pipeline.sources.export import View
from migration_pipeline.sources.window_times import SHORTEST, BrokenChainError, spelled

VIEW = click.option(
    "--view",
    type=click.Choice(["NEW_AND_OLD_IMAGES", "NEW_IMAGE"]),
    default="NEW_AND_OLD_IMAGES",
    show_default=True,
    help="What a window has of each item: its state after the window only, or the one before it as well.",
)

OWNER = click.option(
    "--bucket-owner",
    "owner",
    metavar="ACCOUNT",
    default="",
    help="The number of the AWS account that owns the bucket, if it is not the table's.",
)


def say(text: str) -> None:
    """Write a line to standard error, with the time of day."""
    click.echo(stamped(text), err=True)


@click.command()
@click.argument("table")
@click.argument("address", metavar="s3://BUCKET/PREFIX")
@click.option(
    "--since",
    "reference",
    metavar="PROFILE",
    help="Export the windows that follow this profile's plan instead.",
)
@click.option(
    "--until",
    type=moment,
    metavar="TIME",
    help="Where the last window ends (ISO 8601, UTC unless a zone is given); now, if not given.",
)
@VIEW
@OWNER
@click.option("--no-wait", is_flag=True, help="Print the address at once; the export goes on in AWS.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")
def export(
    table: str,
    address: str,
    reference: str | None,
    until: datetime | None,
    view: View,
    owner: str,
    no_wait: bool,
    as_json: bool,
) -> None:
    """Ask DynamoDB for an export of TABLE to S3, wait for it, and print its address. TABLE is a name or an ARN.

    With --since, it is the windows that follow the plan's last one, as many as are needed: a window is 15 minutes to 24 hours long.
    Only addresses are printed to standard output, one a line.
    """
    place = Place.of(address, owner)
    if reference is None:
        if until is not None:
            raise UsageError(
                "--until says where windows end, so it needs --since; a full export is of the table as it is now"
            )
        of = TableExports(table)
        asked = [of.ask(place)]
    else:
        of, asked = _ask_since(table, place, reference, until, view)
    tell_asked(asked)
    done = asked if no_wait else [_wait(of, each, asked[n:], reference) for n, each in enumerate(asked)]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([_document(each) for each in done])).decode())
    else:
        for each in done:
            click.echo(each.address)


def _ask_since(
    table: str, place: Place, reference: str, until: datetime | None, view: View
) -> tuple[TableExports, list[Asked]]:
    """Ask for the windows that follow a plan."""
    plan, _, _ = open_plan(reference)
    if until is not None and until > datetime.now(timezone.utc):
        raise UsageError(f"--until {spelled(until)} is not over yet; export without it, or wait")
    of = following.followed_table(plan, table)
    start = planned_until(plan)
    asked = ask(of, plan, place, view, start, until)
    if not asked:
        click.echo(too_early(plan, start, until), err=True)
    elif until is not None and asked[-1].span and asked[-1].span.end < until:
        say(f"what ends at {spelled(until)} cannot be exported yet; ask for the rest in some minutes")
    return of, asked


def ask(
    of: TableExports,
    plan: Plan,
    place: Place,
    view: View,
    start: datetime,
    until: datetime | None,
    look_back: bool = True,
) -> list[Asked]:
    """Ask for the windows that follow a plan. Raises `MigrationError` for a chain that is broken for good."""
    try:
        return ask_next(of, place, view, start, until, look_back=look_back)
    except BrokenChainError as error:
        raise MigrationError(
            f"{of.name}: {error}; the chain of {plan.profile} is broken for good: make a new full export "
            f"(migration-pipeline export {of.name} {place.arguments}), plan it, and load it"
        ) from None


def too_early(plan: Plan, start: datetime, until: datetime | None) -> str:
    """Say why no window follows a plan yet."""
    if until is not None and until <= start:
        return f"nothing to export: the plan of {plan.profile} reaches {spelled(start)} already"
    return (
        f"too early: a window is {SHORTEST.seconds // 60} minutes long at least, and begins at {spelled(start)}; "
        "what can be exported ends some minutes ago"
    )


def tell_asked(asked: Sequence[Asked]) -> None:
    """Name exports that were asked for."""
    for each in asked:
        say(f"{each.text}: {each.arn}")


def _wait(of: TableExports, asked: Asked, left: Sequence[Asked], reference: str | None) -> Asked:
    """Wait for an export; on Ctrl-C say what goes on in AWS (`left`), and exit."""
    try:
        return of.wait(asked, say)
    except KeyboardInterrupt:
        click.echo("", err=True)
        for each in left:
            add = (
                f"migration-pipeline plan {reference} --add"
                if reference
                else "migration-pipeline plan --profile PROFILE"
            )
            click.echo(
                f"the export goes on in AWS: {each.arn}; once it is complete: {add} {each.address}", err=True
            )
        sys.exit(1)


def _document(asked: Asked) -> dict[str, Any]:
    return {
        "address": asked.address,
        "arn": asked.arn,
        "status": asked.status,
        "from": asked.span and asked.span.start,
        "to": asked.span and asked.span.end,
        "items": asked.items,
    }
