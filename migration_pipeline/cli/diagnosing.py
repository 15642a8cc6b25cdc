"""The command that looks at all that a migration needs: `doctor`."""

from __future__ import annotations

import sys

import click
import msgspec

from migration_pipeline.cli.terminal import console, findings_table
from migration_pipeline.operations.doctor.dagster import dagster
from migration_pipeline.operations.doctor.database import database
from migration_pipeline.operations.doctor.exports import exports
from migration_pipeline.operations.doctor.findings import Finding, failed
from migration_pipeline.operations.doctor.machine import machine
from migration_pipeline.operations.doctor.plans import plans
from migration_pipeline.units import counted


@click.command()
@click.argument("reference", metavar="[PROFILE]", required=False)
@click.option(
    "--export",
    "locations",
    metavar="EXPORT",
    multiple=True,
    help="Also look at this export, which need not be planned. May be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document, for scripts.")
def doctor(reference: str | None, locations: tuple[str, ...], as_json: bool) -> None:
    """Look at all that a migration needs, and say of each part what is there, what lacks, and the way out.

    Python, disk, plans and profiles, the database (version, TLS, pooler, privileges, tables), exports (list, get, KMS), Dagster
    (webserver, code, daemon, launcher, queue). Nothing is written. PROFILE is one of those with a plan, or a path; without it all
    that have a plan are looked at. Exit status 1 if a load cannot work so; warnings are none.
    """
    found = machine()
    told, planned, profiles = plans(reference)
    found += told
    found += exports([plan for plan, _ in planned], locations)
    found += database(profiles)
    found += dagster(planned)
    if as_json:
        click.echo(
            msgspec.json.format(
                msgspec.json.encode({"ready": not failed(found), "findings": found}), indent=2
            )
        )
    else:
        _show(found)
    sys.exit(int(failed(found)))


def _show(found: list[Finding]) -> None:
    console().print(findings_table(found))
    states = [finding.state for finding in found]
    click.echo(
        f"{states.count('failed'):,} failed, {counted(states.count('warning'), 'warning')}, {states.count('ok'):,} ok"
        + (f", {states.count('skipped'):,} skipped" if "skipped" in states else "")
    )
