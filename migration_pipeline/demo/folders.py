"""Folders outside the state folder, for what cannot live inside it.

The path of a Unix socket may have 107 bytes at most (103 on macOS), and a state folder may lie deeper than
that. Each state folder therefore has a short name of its own, below a folder where everybody may write.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path

from migration_pipeline.demo import LocalError

# Not tempfile.gettempdir(): TMPDIR may be long, and may differ between the terminal that starts the stack
# and the one that asks for its database. `claim` makes sure that a folder in here is ours.
SHORT_LIVED = Path("/tmp")  # noqa: S108
KEPT = Path("/var/tmp")  # noqa: S108


def short_name(state_dir: Path) -> str:
    """The name that stands for a state folder: the same in every process, and for no other folder."""
    return "migration-pipeline-" + hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:12]


def claim(folder: Path, mode: int) -> Path:
    """Make a folder where everybody may make one, and return it.

    Raises `LocalError` when another user made it first, because what lies in it cannot be trusted then.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise LocalError(
            f"{folder} belongs to another user; remove it, or set MIGRATION_HOME to another folder"
        )
    folder.chmod(mode)
    return folder
