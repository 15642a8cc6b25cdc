"""The extensions in C: which of them are there, and whether they may be used. All works without them, only slower."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from migration_pipeline import settings
from migration_pipeline.errors import UsageError

LINES = "migration_pipeline.sources._lines"
"""From lines to Items."""

ION = "migration_pipeline.sources._ion"
"""From lines in Ion to lines in DynamoDB JSON."""

ROWS = "migration_pipeline.targets._rows"
"""From Rows to the input of COPY."""

PARTS = (LINES, ION, ROWS)

INTERFACE = 4
"""What all of them have as `INTERFACE`, a number that grows when they are called in another way. One that was built before is not used."""


def extension(name: str) -> Any:  # without stubs
    """Return an extension, or None when it is not built, or not wanted. Raises `UsageError` when it is required and not there."""
    mode = settings.accelerator()
    if mode == settings.ACCELERATOR_OFF:
        return None
    module = _imported(name)
    if module is None and mode == settings.ACCELERATOR_REQUIRED:
        raise UsageError(
            f"{settings.ACCELERATOR}={mode}, but {name} is not built: install a C compiler and Python's headers and "
            f"run `pip install --force-reinstall --no-deps --no-cache-dir` of this package again, or set {settings.ACCELERATOR}=auto"
        )
    return module


def described() -> str:
    """Say in a few words which extensions are used."""
    mode = settings.accelerator()
    if mode == settings.ACCELERATOR_OFF:
        return f"accelerator off ({settings.ACCELERATOR})"
    parts = {name.rpartition("._")[2]: _imported(name) is not None for name in PARTS}
    if all(parts.values()):
        return "accelerated"
    if not any(parts.values()):
        return "not accelerated: the extensions in C are not built"
    there = ", ".join(name for name, built in parts.items() if built)
    missing = ", ".join(name for name, built in parts.items() if not built)
    return f"accelerated in part: {there}; not built: {missing}"


@cache
def _imported(name: str) -> ModuleType | None:
    try:
        module = import_module(name)
    except ImportError:
        return None
    return module if getattr(module, "INTERFACE", None) == INTERFACE else None
