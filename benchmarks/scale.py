"""How cost and memory grow: ``python -m benchmarks.scale`` loads the shop in several sizes and numbers of files.

Prints microseconds an item and megabytes a process, for one process of the engine; both should stay flat.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import click
from rich.table import Table

from benchmarks.bench import execute, free_port, fresh_tables, load
from benchmarks.workloads import WORKLOADS
from migration_pipeline.cli.terminal import console
from migration_pipeline.demo.postgres import EmbeddedPostgres

SHAPES = ((100_000, 1), (1_000_000, 1), (1_000_000, 16), (1_000_000, 64), (3_000_000, 1), (5_000_000, 16))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--largest", type=int, default=5_000_000, show_default=True, help="Leave out exports of more items."
)
def main(largest: int) -> None:
    """Load exports of growing size, and of the same size in more files."""
    out, workload = console(), WORKLOADS["shop"]
    table = Table("items", "files", "µs an item", "peak MB", "rows", header_style="bold", box=None)
    home = Path(tempfile.mkdtemp(prefix="migration-scale-", dir=os.environ.get("TMPDIR")))
    try:
        port = free_port()
        url = f"postgresql://postgres:unused@127.0.0.1:{port}/postgres"
        with EmbeddedPostgres(home, {"listen_addresses": "127.0.0.1", "port": str(port)}):
            for items, files in (shape for shape in SHAPES if shape[0] <= largest):
                with out.status(f"{items:,} items in {files} files"):
                    export = workload.write(home / "export", items, files)
                    fresh_tables(url, workload)
                    result = load(workload, export, url, 1)
                    shutil.rmtree(home / "export")
                names = [t.name for t in workload.profile.tables.values()]
                rows = sum(execute(url, f"SELECT count(*) FROM {name}") for name in names)
                table.add_row(
                    f"{items:,}",
                    str(files),
                    f"{result['seconds'] / items * 1e6:.2f}",
                    f"{result['peak_rss_mb']:.0f}",
                    f"{rows:,}",
                )
        out.print(table)
    finally:
        EmbeddedPostgres(home).remove()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
