"""Histories of a table: writes, and what exports of it say, for tests that compare windows with a full export at the end."""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec

from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import Plan, PlannedExport, PlannedFile
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources.export import ExportFile, View, Window
from migration_pipeline.targets.connection import DatabaseSettings

Item = dict[str, dict[str, Any]]
Key = tuple[Any, ...]

T0 = datetime(2026, 3, 1, 12, 0, 0, tzinfo=timezone.utc)
KEYS = ("id",)


@dataclass
class Write:
    """An item's new state at a moment, in seconds after `T0`; None deletes it."""

    second: float
    key: str
    item: Item | None


@dataclass
class History:
    """Items at the start, and writes in order of time."""

    start: dict[str, Item]
    writes: list[Write] = field(default_factory=list)

    def at(self, second: float) -> dict[str, Item]:
        """The table at a moment."""
        items = dict(self.start)
        for write in self.writes:
            if write.second >= second:
                break
            if write.item is None:
                items.pop(write.key, None)
            else:
                items[write.key] = write.item
        return items

    def full(self, second: float) -> list[bytes]:
        """The lines of a full export."""
        return [msgspec.json.encode({"Item": item}) for item in self.at(second).values()]

    def window(self, start: float, end: float, view: View = "NEW_AND_OLD_IMAGES") -> list[bytes]:
        """The records of a window."""
        before, after = self.at(start), self.at(end)
        last = {write.key: write.second for write in self.writes if start <= write.second < end}
        records = []
        for key, second in last.items():
            old, new = before.get(key), after.get(key)
            if old is None and new is None:
                continue
            micros = (
                T0 + timedelta(seconds=second) - datetime(1970, 1, 1, tzinfo=timezone.utc)
            ) // timedelta(microseconds=1)
            record: dict[str, Any] = {
                "Metadata": {"WriteTimestampMicros": {"N": str(micros)}},
                "Keys": {name: (new or old or {})[name] for name in KEYS},
            }
            if old is not None and view == "NEW_AND_OLD_IMAGES":
                record["OldImage"] = old
            if new is not None:
                record["NewImage"] = new
            records.append(msgspec.json.encode(record))
        return records


def write_files(folder: Path, name: str, files: Sequence[Iterable[bytes]]) -> tuple[ExportFile, ...]:
    """Write data files; returns them as a manifest would promise them."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for number, lines in enumerate(files):
        content = b"".join(line + b"\n" for line in lines)
        packed = gzip.compress(content, 1, mtime=0)
        path = folder / f"{name}-{number}.json.gz"
        path.write_bytes(packed)
        digest = base64.b64encode(hashlib.md5(packed).digest()).decode()
        made.append(ExportFile(path.name, str(path), content.count(b"\n"), digest, len(packed)))
    return tuple(made)


def dealt(lines: Sequence[bytes], files: int) -> list[list[bytes]]:
    """Deal lines into files."""
    return [list(lines[number::files]) for number in range(files)]


def plan_of(
    profile: Profile,
    base: tuple[ExportFile, ...],
    windows: Sequence[tuple[float, float, tuple[ExportFile, ...]]] = (),
    view: View = "NEW_AND_OLD_IMAGES",
    base_time: float = 0,
) -> Plan:
    """Plan a full export and windows, given by their start and end in seconds after `T0`."""
    exports = [PlannedExport("base", "", "arn", (T0 + timedelta(seconds=base_time)).isoformat())]
    files = [PlannedFile(f"base_{file.name}", "base", file) for file in base]
    for number, (start, end, some) in enumerate(windows, 1):
        name = f"window{number}"
        window = Window(T0 + timedelta(seconds=start), T0 + timedelta(seconds=end), view, KEYS)
        exports.append(PlannedExport(name, "", "arn", window.end.isoformat(), window=window))
        files += [PlannedFile(f"{name}_{file.name}", name, file) for file in some]
    return Plan(1, profile.name, "tests", tuple(exports), tuple(files))


def load(
    plan: Plan, profile: Profile, url: str, files: Iterable[PlannedFile] | None = None, batch_items: int = 3
) -> dict[str, FileReport]:
    """Load files of a plan, one after another; gives their reports by name."""
    settings = LoadSettings(batch_items=batch_items, max_bad_items=1_000, max_bad_share=1.0)
    log = logging.getLogger("histories")
    log.setLevel(logging.CRITICAL)
    with Loader(plan, profile, url, "test", settings, DatabaseSettings(), None) as loader:
        return {
            planned.file.name: loader.load(planned, log, lambda _: None, lambda _: None)
            for planned in (plan.files if files is None else files)
        }


def state(url: str, tables: Mapping[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of some tables (name to order), and the quarantined items' states, in an order that does not depend on the load."""
    from migration_pipeline_tests.conftest import query

    found = {name: query(url, f"SELECT * FROM {name} ORDER BY {order}") for name, order in tables.items()}
    found["quarantine"] = sorted(query(url, "SELECT item FROM migration.quarantine"))
    return found
