"""The machine itself: Python, our extensions, the disk of the state folder."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

from migration_pipeline import accelerator, settings
from migration_pipeline.errors import MigrationError
from migration_pipeline.operations.doctor.findings import Finding, Findings, State, told
from migration_pipeline.units import readable_size

LITTLE_BYTES, TOO_LITTLE_BYTES = 2 << 30, 100 << 20
"""Free space of the state folder, below which to warn, and below which Dagster's history cannot be written for long."""


def machine() -> Findings:
    """Look at the machine that runs the command."""
    found: Findings = []
    with told(found, "Python"):
        found.append(_python())
    found.append(_disk(settings.state_dir()))
    return found


def _python() -> Finding:
    """Tell versions. Raises `MigrationError` where the extensions are required and missing."""
    what = (
        f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"migration-pipeline {version('migration-pipeline')}, Dagster {version('dagster')}"
    )
    how = accelerator.described()
    if how == "accelerated" or settings.accelerator() == settings.ACCELERATOR_OFF:
        return Finding("Python", "ok", f"{what}, {how}")
    return Finding(
        "Python", "warning", f"{what}, {how}", "loads take twice the CPU time: see docs/accelerator.md"
    )


def _disk(folder: Path) -> Finding:
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise MigrationError(f"{there}: {error.strerror}") from None
    text = f"{readable_size(free)} free for {settings.STATE_DIR} ({folder})"
    if free < LITTLE_BYTES:
        state: State = "failed" if free < TOO_LITTLE_BYTES else "warning"
        return Finding(
            "disk",
            state,
            text,
            f"make room: plans, logs and Dagster's history are there, or set {settings.STATE_DIR}",
        )
    return Finding("disk", "ok", text)
