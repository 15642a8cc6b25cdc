"""Writes Python: literals and comments, and modules as ruff formats them."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

from migration_pipeline.errors import MigrationError


def tidy(source: str, path: Path, profile: str) -> str:
    """Format a module that is to be at `path`, beside the module `profile`, without needless imports and quotes.

    Ruff's settings are those that hold in the folder, or its own where it cannot read them. Raises `MigrationError`.
    """
    isort = f"lint.isort={{known-first-party=['{profile}'], split-on-trailing-comma=false}}"
    lints = ["check", "--select=F401,FURB157,I001", "--fix-only", f"--config={isort}"]
    return _ruff(["format"], _ruff(lints, source, path), path)


def _ruff(command: list[str], source: str, path: Path) -> str:
    place = ["--quiet", f"--stdin-filename={path.absolute()}", "-"]
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    for isolated in ([], ["--isolated"]):
        call = [sys.executable, "-m", "ruff", *command, *isolated, *place]
        done = subprocess.run(call, cwd=folder, input=source.encode(), capture_output=True, check=False)  # noqa: S603
        if done.returncode == 0:
            return done.stdout.decode()
    raise MigrationError(f"{path}: ruff cannot format it: {done.stderr.decode().strip()}")


def comment(text: str, indent: int = 0) -> list[str]:
    """Write a comment, folded to lines of a hundred columns or so. It must hold no line break."""
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) > 100 - indent:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [f"{' ' * indent}# {each}" for each in [*lines, line] if each]


def text_literal(text: str) -> str:
    """Write a text in double quotes, as it may stand in a comment, too."""
    quoted = repr(text + "'\"")  # with both quotes in it, repr() takes single ones and escapes those
    return '"' + quoted[1:-4].replace("\\'", "'").replace('"', '\\"') + '"'


def literal(value: Any) -> str:
    """Write a value that a row may hold; a set is sorted, so that it is written in one way."""
    if isinstance(value, datetime):
        return f"datetime.fromisoformat({value.isoformat()!r})"
    if isinstance(value, date):
        return f"date({value.year}, {value.month}, {value.day})"
    if isinstance(value, frozenset):
        return f"frozenset({{{', '.join(map(repr, sorted(value)))}}})"
    return repr(value)
