"""What the files of a run know of their tables: read for the first one, and again where anybody has changed anything of them since.

To read it takes 4 ms, as long as 2,000 items of a file; to see that all is as it was 0.7. An encoder of rows is each file's own: how it spells times
depends on those that it has met.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from migration_pipeline.profile.row import Row, Table
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.ddl import check_bookkeeping, read_targets
from migration_pipeline.targets.known_batches import KnownBatches
from migration_pipeline.targets.shape import Shape


class KnownTables:
    """The tables of a profile, as the catalog describes them. `read` comes first."""

    def __init__(self, tables: Mapping[type[Row], Table]) -> None:
        self._tables = dict(tables)
        self._shape: Shape | None = None
        self.targets: dict[type[Row], TargetTable] = {}
        self.batches: KnownBatches
        """Of these tables, once they were read."""
        self.tried: set[TargetTable] = set()
        """Those whose statements were tried."""

    def read(self, cursor: Any) -> Shape:
        """Compare tables with the catalog, and for the first file the bookkeeping. Raises `SchemaError`.

        Returns what the tables must be while a file is loaded.
        """
        if self._shape is None:
            check_bookkeeping(cursor)
        # First: what changes after it is told, whatever the catalog says then.
        shape = Shape(cursor, self._tables.values())
        if self._shape is None or not shape.is_as(self._shape):
            targets = read_targets(cursor, self._tables)
            batches = KnownBatches(cursor, targets.values())
            self._shape, self.targets, self.batches = shape, targets, batches
        return shape
