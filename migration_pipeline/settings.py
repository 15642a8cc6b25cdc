"""Every environment name of the project and every default, in one place.

`AWS_*` names are not here: boto3 reads them itself. Each setting is a function, so that a change of the
environment counts from the next call, and importing this module costs nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from migration_pipeline.errors import UsageError

# The folder for all that the local stack keeps: the embedded database, Dagster's history, plans and logs.
STATE_DIR = "MIGRATION_HOME"
DEFAULT_STATE_DIR = ".local"

# Dagster's own name for the folder of its instance: dagster.yaml and, with SQLite storage, the run history.
DAGSTER_HOME = "DAGSTER_HOME"

# Where the plans are, the pinned lists of export files that the partitions are made of: a folder, or s3://bucket/prefix.
PLANS_DIR = "MIGRATION_PLANS"

# The database to load into, as a libpq URL. For a remote one: postgresql://…?sslmode=verify-full
DATABASE_URL = "MIGRATION_DATABASE_URL"

# Where the commands find the running Dagster webserver, when it is not the local stack's.
WEBSERVER_URL = "MIGRATION_DAGSTER_URL"
DEFAULT_WEBSERVER_URL = "http://127.0.0.1:3000"

# The function that is told of finished backfills, as my_module:function; see migration_pipeline/defs/notify.py.
NOTIFY = "MIGRATION_NOTIFY"

# Who pays for requests to a bucket whose owner does not: "requester", as S3 calls it.
REQUEST_PAYER = "MIGRATION_REQUEST_PAYER"

# Whether the extensions in C are used: auto (if they are built), off, or required (an error if they are not built).
ACCELERATOR = "MIGRATION_ACCELERATOR"
ACCELERATOR_AUTO, ACCELERATOR_OFF, ACCELERATOR_REQUIRED = "auto", "off", "required"

# What points at a deployment: `make demo` uses none of it.
OF_A_DEPLOYMENT = (DAGSTER_HOME, PLANS_DIR, DATABASE_URL, WEBSERVER_URL)


def state_dir() -> Path:
    """The local stack's folder, absolute and without symbolic links: its name decides the sockets' names."""
    return Path(os.environ.get(STATE_DIR) or DEFAULT_STATE_DIR).resolve()


def dagster_home() -> Path:
    """The folder of the Dagster instance, absolute as Dagster demands."""
    return _folder(DAGSTER_HOME, "dagster")


def plans_dir() -> str:
    """The folder that holds one plan a profile, absolute; or ``s3://bucket/prefix``."""
    named = os.environ.get(PLANS_DIR, "")
    return named.rstrip("/") if named.startswith("s3://") else str(_folder(PLANS_DIR, "plans"))


def database_url() -> str:
    """The libpq URL of the target database: the one that is named, else that of the running local stack.

    Raises `UsageError` when there is neither: no database is ever started, or guessed.
    """
    url = os.environ.get(DATABASE_URL) or _noted(database_url_file())
    if not url:
        raise UsageError(
            f"no database is named: set {DATABASE_URL}=postgresql://user@host/database (PG* variables fill in what it "
            f"leaves out), or start the local stack with `migration-pipeline dev`"
        )
    return url


def accelerator() -> str:
    """Whether the extensions in C are used: one of the three values above. Raises `UsageError` for another one."""
    mode = os.environ.get(ACCELERATOR) or ACCELERATOR_AUTO
    if mode not in (ACCELERATOR_AUTO, ACCELERATOR_OFF, ACCELERATOR_REQUIRED):
        raise UsageError(f"{ACCELERATOR}: expected auto, off or required")
    return mode


def request_payer() -> str:
    """Who pays for requests to S3; "" for the bucket's owner."""
    return os.environ.get(REQUEST_PAYER, "")


def known_database_url() -> str | None:
    """The target database's URL if Dagster surely loads into it (it was set, or is the local stack's); else None.

    A Dagster elsewhere may load into a database that a terminal without the setting does not know.
    """
    of_the_stack = webserver_url() == _noted(webserver_url_file()).rstrip("/")
    return os.environ.get(DATABASE_URL) or (of_the_stack and _noted(database_url_file())) or None


def webserver_url() -> str:
    """The URL of the Dagster webserver, without a slash at its end."""
    return (os.environ.get(WEBSERVER_URL) or _noted(webserver_url_file()) or DEFAULT_WEBSERVER_URL).rstrip(
        "/"
    )


def webserver_url_file() -> Path:
    """The file in which a running local stack notes the URL of its webserver."""
    return state_dir() / "webserver-url"


def database_url_file() -> Path:
    """The file in which a running local stack notes the URL of its embedded database; it holds no password."""
    return state_dir() / "database-url"


def _folder(name: str, default: str) -> Path:
    named = os.environ.get(name)
    return Path(named).absolute() if named else state_dir() / default


def _noted(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        return ""
