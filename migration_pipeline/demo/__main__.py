"""One Dagster service, loaded ahead of its turn: `python -m migration_pipeline.demo daemon run …`.

A service spends seconds on importing Dagster and a moment on starting. The imports of all can go side by side.
The starts cannot: with SQLite storage, a webserver and a daemon that start at once have crashed. So each
imports what it needs, and waits for a line on its standard input before it starts.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

MODULES = {
    "code-server": "migration_pipeline.demo.code_server",
    "webserver": "dagster_webserver.cli",
    "daemon": "dagster._daemon.cli",
}

# The daemon looks for new backfills, and for progress in running ones, every 30 seconds, and has no setting for
# it. Who launches a backfill should see its first file start before they wonder whether anything happened, and its end.
BACKFILL_SECONDS = 1

REST = 4
"""The daemon pauses for so many times as long as a look took: of a backfill of thousands of files that is seconds of CPU."""

DAEMON = {"DAGSTER_EVENT_BATCH_SIZE": "100", "DAGSTER_ASSET_BACKFILL_RUN_CHUNK_SIZE": "100"}
"""Settings of Dagster's daemon for backfills of thousands of files. What is planned for a run is written at once (0 by default:
event by event), and the state of the backfill, which lists all runs still to make, after 100 runs instead of 25."""


class Interval(float):
    """Seconds between the beginnings of two looks, of which the daemon takes those away that a look took."""

    def __sub__(self, took: float) -> float:
        """Give the seconds to pause."""
        return max(float(self) - took, REST * took)


def main() -> None:
    """Import the service that the first argument names, await a line of input, run it with the others."""
    # Dagster ends on SIGTERM as it does on SIGINT, which a shell has background jobs ignore.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = sys.argv.pop(1)
    service = importlib.import_module(MODULES[name])
    if name == "daemon":
        for setting, value in DAEMON.items():
            os.environ.setdefault(setting, value)
        controller = importlib.import_module("dagster._daemon.controller")
        controller.DEFAULT_DAEMON_INTERVAL_SECONDS = Interval(BACKFILL_SECONDS)  # type: ignore[attr-defined]
    if sys.stdin.readline():  # an end of input, without a line, is the end of the stack
        service.main()


if __name__ == "__main__":
    main()
