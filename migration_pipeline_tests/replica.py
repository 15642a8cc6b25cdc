"""A streaming replica of an embedded PostgreSQL, made by pg_basebackup of the same server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from migration_pipeline.demo.postgres import EmbeddedPostgres


class Replica(EmbeddedPostgres):
    """Replays what its primary writes; tells it each second how far it is."""

    def __init__(self, state_dir: Path, primary: EmbeddedPostgres) -> None:
        super().__init__(state_dir, {"wal_receiver_status_interval": "1s", "fsync": "off"})
        self._primary = primary

    def stop(self, mode: str = "immediate") -> None:
        """End it at once: nothing of it is kept."""
        super().stop(mode)

    def _make_cluster(self) -> None:
        if self._data.exists():
            return
        unfinished = Path(tempfile.mkdtemp(prefix="data.", dir=self._home))
        self._make_private(unfinished)
        at = parse_qs(urlsplit(self._primary.url).query)
        try:
            self._run(
                "pg_basebackup", "-D", unfinished.name, "-R", "-U", "postgres", "--checkpoint=fast",
                "-h", at["host"][0], "-p", at["port"][0],
            )  # fmt: skip
            unfinished.rename(self._data)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
