"""The history of a sample: a full export at T0, windows of what was written after it, and a full export at their end.

Whoever loads the base and the windows must end with what loading the final export into empty tables gives. The base
is read back once for the items that are written to, and once for the final export, so memory follows the number of
changes, not that of items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice, pairwise
from pathlib import Path
from random import Random

from migration_pipeline.demo.sample import Progress, named, write_sample
from migration_pipeline.demo.sample_base import Base, Stop, write_final
from migration_pipeline.demo.sample_changes import changes_of
from migration_pipeline.demo.sample_faults import Fault
from migration_pipeline.demo.sample_layout import FullExport, WindowExport, json_lines
from migration_pipeline.demo.sample_stories import EARLY, Dealt, Items, deal, of_the_base
from migration_pipeline.demo.sample_window_faults import Broken, Planted
from migration_pipeline.demo.sample_windows import Clock, keys_reader, record, write_window
from migration_pipeline.errors import UsageError
from migration_pipeline.units import counted

VIEWS = ("NEW_AND_OLD_IMAGES", "NEW_IMAGE")

_WINDOW = timedelta(hours=1)


@dataclass(frozen=True)
class History:
    """Where the exports of a history are."""

    base: Path
    windows: tuple[Path, ...]
    final: Path
    """The full export of the same table at the end of the last window."""
    records: tuple[int, ...]
    """In each window: fewer than there were writes, because a window has an item's last state only."""
    final_items: int


def write_history(
    folder: Path,
    *,
    items: int,
    files: int,
    seed: int = 1,
    changes: int,
    windows: int = 2,
    window_files: int | None = None,
    view: str = "NEW_AND_OLD_IMAGES",
    bad: int = 0,
    profile: str = "shop",
    on_progress: Progress | None = None,
) -> History:
    """Write an export of `items` items, `windows` windows with `changes` writes, and an export at the last one's end.

    The base is what `write_sample` writes for the same numbers. Each window is an hour and has `window_files` data files,
    or else as many as the base (at most `sample_windows.MOST_FILES`). The same arguments give the same bytes, and both views tell the
    same history. `on_progress` hears of the base only.

    `bad` faults are planted in the base, and as many more in the windows; ``folder/bad-items.jsonl`` lists the broken
    lines of all exports, also of the final one. Of a window, the stage ``line`` is also that of a record that is not
    whole, or not of the window's time. Some broken items are mended, and some deleted: these writes, and broken
    records, come on top of `changes`. Raises `UsageError` for numbers that make no history.
    """
    if changes < 1 or windows < 1 or view not in VIEWS:
        raise UsageError(
            f"A history needs at least 1 change, 1 window and a view of {' or '.join(VIEWS)}, "
            f"not {counted(changes, 'change')} in {counted(windows, 'window')} with {view}."
        )
    told = named(items=items, files=files, seed=seed, bad=bad, profile=profile)
    name = f"{told.id}: {changes} changes in {windows} windows"
    if window_files is not None:
        name += f" of {window_files} files"
    exports, final = _later(told, windows, view, name)
    for stale in (*exports, final):  # what is left of another call must not pass for complete
        (folder / "AWSDynamoDB" / stale.id / "manifest-summary.json").unlink(missing_ok=True)
    root = write_sample(
        folder, items=items, files=files, seed=seed, bad=bad, profile=profile, on_progress=on_progress
    )
    base = Base(root, folder / "bad-items.jsonl")
    dealt = deal(changes, windows, items - len(base.faults), Random(f"stories {name}"))
    writer = _Writer(told, base, Items(changes_of(told, items, seed)), dealt, Random(f"windows {name}"))
    writer.broken.heal({position: fault["kind"] for position, fault in base.faults.items()})
    writer.broken.plant(bad, view, first=items)
    records = [
        writer.window(folder, number, export, window_files or files) for number, export in enumerate(exports)
    ]
    final_items = writer.final(folder, final)
    paths = [folder / "AWSDynamoDB" / export.id for export in (*exports, final)]
    return History(root, tuple(paths[:-1]), paths[-1], tuple(records), final_items)


def _later(base: FullExport, windows: int, view: str, name: str) -> tuple[list[WindowExport], FullExport]:
    """The names and times of the windows, and of the final export."""
    start = base.time.replace(
        microsecond=0
    )  # windows begin at whole seconds: the first one a little before the base
    borders = pairwise(start + number * _WINDOW for number in range(windows + 1))
    exports = [WindowExport(base, *times, view, f"{times[0]} {name}, {view}") for times in borders]
    return exports, base.later(exports[-1].end, f"final {name}")


class _Writer:
    """Writes the windows, one after another, and the final export."""

    def __init__(self, told: FullExport, base: Base, lives: Items, dealt: Dealt, random: Random) -> None:
        self._time, self._base, self._lives, self._random = told.time, base, lives, random
        self._windows = dealt.windows
        self._keys_of = keys_reader(lives.changes.keys)
        self.broken = Broken(len(dealt.windows), random.getrandbits(64))
        self._listed = list(base.listed)
        stories = dealt.stories
        wanted = [2 * story + nth for story, text in enumerate(stories) for nth in range(of_the_base(text))]
        chosen = base.choose(len(wanted), random)
        self._homes = dict(sorted(zip(chosen, wanted, strict=True)))
        for item, state in zip(self._homes.values(), base.read(list(self._homes)), strict=True):
            lives.add(item, state, stories[item // 2])

    def window(self, folder: Path, number: int, export: WindowExport, files: int) -> int:
        """Write a window; return the number of its records."""
        written, faults = write_window(folder, export, files, self._records(number, export), self._random)
        self._listed += faults
        self._windows[number].clear()
        return written

    def _records(self, number: int, export: WindowExport) -> Iterator[tuple[bytes, Fault | None]]:
        """The records of the stories, and among them those of broken items."""
        stories, planted = self._windows[number], iter(self.broken.windows[number])
        each = 1 + len(stories) // (1 + len(self.broken.windows[number]))
        early, late = self._clocks(number, export)
        for turn, (story, ops) in enumerate(stories, 1):
            times = [(early if op in EARLY else late).next() for op in ops.replace("S", "SS")]
            for before, after, write in self._lives.play(story, ops):
                keys = self._keys_of(after or before or b"")
                yield record(times[write], keys, before, after, export.view), None
            if not turn % each:
                for broken in islice(planted, 1):
                    yield self._planted(broken, late.next(), export.view)
        for broken in planted:
            yield self._planted(broken, late.next(), export.view)

    def _planted(self, broken: Planted, micros: int, view: str) -> tuple[bytes, Fault | None]:
        right = record(micros, broken.keys, broken.before, broken.after, view)
        return broken.planted_in(right, micros), broken.fault

    def _clocks(self, number: int, export: WindowExport) -> tuple[Clock, Clock]:
        """The times of writes before T0, which only the first window has, and of those after it."""
        writes = "".join(ops for _, ops in self._windows[number]).replace("S", "SS")
        early = sum(map(writes.count, EARLY))
        after = max(export.start, self._time)
        late = len(writes) - early + len(self.broken.windows[number])
        return Clock(export.start, self._time, early, self._random), Clock(
            after, export.end, late, self._random
        )

    def final(self, folder: Path, export: FullExport) -> int:
        """Write the final export, and the list of planted faults; return the number of items."""
        now, base, broken = self._lives.now, self._base, self.broken
        stops = [Stop(position, now.pop(item, None), None) for position, item in self._homes.items()]
        stops += [Stop(position, state, None) for position, state in broken.base.items()]
        left = base.faults.keys() - broken.base.keys()
        stops += [Stop(position, None, base.faults[position]) for position in left]
        new = [(state, None) for state in now.values()] + broken.new
        written, listed = write_final(
            folder, export, base, sorted(stops, key=lambda stop: stop.position), new
        )
        if self._listed or listed:
            (folder / "bad-items.jsonl").write_bytes(json_lines(self._listed + listed))
        return written
