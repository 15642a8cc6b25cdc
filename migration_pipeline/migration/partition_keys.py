"""Names partitions: short enough to be read in plots and lists, sortable, and never another one for the same file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from migration_pipeline.sources.export import Export, stem

LETTERS = 8
"""Of a file's name, which is random in DynamoDB's exports: enough for people to find it."""


class PartitionKeys:
    """Gives files their partition keys: those that they had before, or new ones that no file of another export has.

    ``0002_khzb2hd4_1f3a9c`` is the second file of an export: its number, how its name begins, and a digest of the export's id, since
    Dagster keeps what was materialized by key. ``w20240413T191500_0001_…`` is one of a window that begins then.
    Base files sort before windows, and these by their time.
    """

    def __init__(self, known: Iterable[tuple[str, str, str]] = ()) -> None:
        """`known` are export id, file name, and key of files that have one."""
        self._known = {(export_id, name): key for export_id, name, key in known}
        self._taken = set(self._known.values())

    def of(self, export: Export) -> list[str]:
        """The keys of an export's files, in their order."""
        width = max(4, len(str(len(export.files))))
        lead = f"w{export.window.start:%Y%m%dT%H%M%S}_" if export.window else ""
        return [
            self._known.get((export.id, file.name))
            or self._new(f"{lead}{number:0{width}}", export.id, file.name)
            for number, file in enumerate(export.files, 1)
        ]

    def _new(self, number: str, export_id: str, name: str) -> str:
        digest = hashlib.md5(export_id.encode(), usedforsecurity=False).hexdigest()
        choices = (f"{number}_{safe(name)[:LETTERS]}_{digest[:6]}", f"{number}_{safe(name)}_{digest}")
        key = next(each for each in choices if each not in self._taken)
        self._taken.add(key)
        return key


def safe(name: str) -> str:
    """Keep of a name what a partition key may hold: Dagster refuses "..." and splits lists at commas."""
    return re.sub(r"[^\w\-]+", "-", stem(name))
