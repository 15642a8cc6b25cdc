"""The database: reached, encrypted, new enough, with what the role needs, and with tables that fit."""

from __future__ import annotations

import os
from collections.abc import Sequence

from migration_pipeline import settings
from migration_pipeline.operations.doctor.findings import Finding, Findings, told
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.ddl import check_tables
from migration_pipeline.targets.health import Health, read_health

OLDEST = 140000
"""The oldest PostgreSQL whose maintainers still fix it; what is older was not tried."""


def database(profiles: Sequence[Profile]) -> Findings:
    """Look at the database that is named, and at the tables of these profiles."""
    found: Findings = []
    with told(found, "database"):
        url = settings.database_url()
        health = read_health(url)
        found.append(_server(health))
        found.append(_durability(health))
        found.append(_tls(health))
        found.append(_pooler(health))
        found.extend(_privileges(health))
        if health.bookkeeping:
            for profile in profiles:
                found.extend(_tables(url, profile))
    return found


def _server(health: Health) -> Finding:
    kind = "Aurora, PostgreSQL" if health.aurora else "PostgreSQL"
    text = f"{health.address}: {kind} {health.version}, {health.encoding}"
    if health.encoding not in ("UTF8", "SQL_ASCII"):
        return Finding("database", "failed", text, "use a database created WITH ENCODING 'UTF8'")
    if health.version_number < OLDEST:
        return Finding(
            "database", "warning", text, "this was never tried with so old a PostgreSQL: rehearse with a copy"
        )
    return Finding("database", "ok", text)


def _durability(health: Health) -> Finding:
    if health.unsafe:
        return Finding(
            "durability",
            "warning",
            f"off: {' and '.join(health.unsafe)}; a crash of the server's machine may lose or spoil what is recorded as loaded",
            "switch on before the load: its commits rely on it (docs/reliability.md#the-proof)",
        )
    return Finding("durability", "ok", "what is committed is on disk")


def _tls(health: Health) -> Finding:
    mode = health.mode or os.environ.get("PGSSLMODE") or "prefer"
    if health.address.is_local:
        return Finding("TLS", "ok", health.protocol or "none, and none needed: the server is on this machine")
    way_out = "use sslmode=verify-full and sslrootcert (docs/security.md#the-connection-to-postgresql)"
    if not health.protocol:
        return Finding("TLS", "warning", "none: rows and the password cross the network as they are", way_out)
    if mode != "verify-full":
        return Finding(
            "TLS", "warning", f"{health.protocol}, but sslmode={mode} does not check who answers", way_out
        )
    return Finding("TLS", "ok", f"{health.protocol}, verify-full")


def _pooler(health: Health) -> Finding:
    if health.pooled:
        return Finding(
            "pooler",
            "ok",
            "something like PgBouncer stands before the server: see docs/targets.md#behind-a-pooler",
        )
    return Finding("pooler", "ok", "none: connections go to the server")


def _privileges(health: Health) -> Findings:
    """Tell what the role lacks; what concerns single tables comes out when they are compared."""
    role, name = health.address.role, health.address.database
    found: Findings = []
    if not health.temporary:
        found.append(
            Finding(
                "privileges",
                "failed",
                f"{role} may not make temporary tables",
                f'GRANT TEMPORARY ON DATABASE "{name}" TO "{role}"',
            )
        )
    if not health.bookkeeping:
        who = (
            ""
            if health.may_create
            else f", as a role that may create tables: {role} may not (docs/security.md)"
        )
        found.append(
            Finding(
                "privileges",
                "warning",
                "there are no tables of ours yet (schema migration)",
                f"create them with migration-pipeline ddl PROFILE --apply{who}",
            )
        )
    return found or [Finding("privileges", "ok", f"{role} may make temporary tables")]


def _tables(url: str, profile: Profile) -> Findings:
    found: Findings = []
    with told(found, "tables"):
        check_tables(url, profile.all_tables)
        names = ", ".join(table.qualified for table in profile.all_tables)
        found.append(Finding("tables", "ok", f"fit the profile {profile.name}, with the privileges: {names}"))
    return found
