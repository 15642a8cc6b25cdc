"""Cases of windows: the base is loaded, and a fault strikes while the files of the windows are.

The oracle is the full export at the end of the last window: what its items must become, and no row that was over before.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg2
import psycopg2.errors

from migration_pipeline.demo.sample_history import write_history
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import read_plan, write_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import ExportFile, read_exports
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ledger import TooEarlyError
from migration_pipeline.targets.session import Session
from migration_pipeline_tests.chaos.lab import (
    FILES,
    GRANTS,
    GRANTS_FOR_WINDOWS,
    ITEMS,
    PATIENCE,
    Case,
    Lab,
    Verdict,
    _hashable,
    _places,
)
from migration_pipeline_tests.oracle import SELECTS, Rows, actual, expected

CHANGES, WINDOWS = 1_600, 2

LOG = logging.getLogger("chaos")
LOG.setLevel(logging.CRITICAL)

UNACCOUNTED = """
SELECT file
  FROM migration.loaded_file f
 WHERE items <> loaded + superseded + quarantined + (SELECT coalesce(sum(value::bigint), 0) FROM jsonb_each_text(skipped))
    OR quarantined < (SELECT count(*) FROM migration.quarantine q WHERE q.file = f.file)
"""

OWN_NUMBERS = "SELECT setval('migration.slice_id_seq', (SELECT max(id) FROM migration.slice))"
"""A copied sequence goes on without a word in the WAL, as its original may, and after a crash it would begin again."""

QUARANTINE = "SELECT file, line, raw FROM migration.quarantine"


@dataclass(frozen=True)
class Story:
    """A base and its windows, and what they must become."""

    plan: Plan
    folder: Path
    """Where the plan's file is."""
    template: str
    """A database with the base loaded."""
    rows: Rows
    """What the items of the last full export make."""
    over: dict[str, set[Any]]
    """Rows of the base that are over, by table."""
    quarantine: set[tuple[str, int, bytes]]
    """File, line and content, after a load without faults."""


@functools.cache
def story(lab: Lab, seed: int, bad: int) -> Story:
    """Write a history, load its base, and compute what all of it must become."""
    folder = lab.folder / f"history-{seed}-{bad}"
    history = write_history(
        folder, items=ITEMS, files=FILES, seed=seed, changes=CHANGES, windows=WINDOWS, bad=bad
    )
    shop = load_profile("shop")
    paths = [str(path) for path in (history.base, *history.windows)]
    plan = make_plan(shop, "shop", read_exports(paths, Storage(), lambda _: None))
    write_plan(plan, folder)
    places = frozenset(_places(folder)) if bad else frozenset()
    rows, before = (expected(export, leave_out=places)[0] for export in (history.final, history.base))
    over = {table: set(map(_hashable, before[table])) - set(map(_hashable, rows[table])) for table in SELECTS}
    template = lab.database()
    base = plan.exports[0].id
    _load(lab, template, plan, [file.file for file in plan.files if file.export_id == base])
    faultless = copy(lab, template)
    _load(lab, faultless, plan, [file.file for file in plan.files if file.export_id != base])
    found = _tables(lab, faultless)
    for table in SELECTS:
        assert found[table] == rows[table], f"without a fault, {table} is not as the last full export has it"
    quarantine = {(file, line, bytes(raw)) for file, line, raw in lab.execute(QUARANTINE, faultless)}
    assert bool(quarantine) == bool(bad)
    return Story(plan, folder, template, rows, over, quarantine)


def copy(lab: Lab, template: str) -> str:
    """Copy a database."""
    with lab._lock:
        name = f"case_{next(lab._numbers)}"
    for _ in range(50):  # whoever used the template is gone, but perhaps not for the server yet
        try:
            lab.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        except psycopg2.errors.ObjectInUse:
            time.sleep(0.1)
        else:
            break
    lab.execute(GRANTS.format(database=name) + GRANTS_FOR_WINDOWS, name)
    lab.execute(OWN_NUMBERS, name)
    return name


def _load(lab: Lab, database: str, plan: Plan, files: list[ExportFile]) -> None:
    url = lab.server.url.replace("postgres@/postgres?", f"loader@/{database}?")
    for file in files:
        load(url, plan, file)


def load(
    url: str,
    plan: Plan,
    file: ExportFile,
    batch_items: int = 1_000,
    settings: Any = PATIENCE,
    on_retry: Callable[[str], None] = lambda _: None,
) -> FileReport:
    """Load one file of a plan, which may lie elsewhere by now."""
    files = tuple(
        msgspec.structs.replace(each, file=file) if each.file.name == file.name else each
        for each in plan.files
    )
    plan = msgspec.structs.replace(plan, files=files)
    (planned,) = (each for each in files if each.file.name == file.name)
    settings_of_load = LoadSettings(batch_items=batch_items)
    with Loader(plan, load_profile("shop"), url, "run", settings_of_load, settings, None) as loader:
        return loader.load(planned, LOG, lambda _: None, on_retry)


def _tables(lab: Lab, database: str) -> Rows:
    with closing(psycopg2.connect(lab.server.url.replace("/postgres?", f"/{database}?"))) as connection:
        return actual(connection)


class WindowCase(Case):
    """The load of all windows under a fault; the base is there."""

    die_after = 0
    """The process kills itself after so many transactions; 0: never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lab.execute(f"DROP DATABASE {self.database}")
        self.story = story(self.lab, self.seed % 3, self.bad)
        self.database = copy(self.lab, self.story.template)
        self.plan = self.story.plan
        self.files = [file for window in self.plan.windows for file in self._shuffled(window.id)]

    def _shuffled(self, export_id: str) -> list[ExportFile]:
        files = self.of(export_id)
        self.chance.shuffle(files)
        return files

    def of(self, export_id: str) -> list[ExportFile]:
        """The files of an export, as they are planned."""
        return [each.file for each in self.plan.files if each.export_id == export_id]

    @property
    def base(self) -> list[ExportFile]:
        """The files of the full export."""
        return self.of(self.plan.exports[0].id)

    @property
    def groups(self) -> list[list[ExportFile]]:
        """The windows."""
        names = [{file.name for file in self.of(window.id)} for window in self.plan.windows]
        return [[file for file in self.files if file.name in some] for some in names]

    def load(self, url: str, file: ExportFile) -> FileReport:
        """Load one file."""
        return load(url, self.plan, file, self.batch_items, self.settings, self.told.append)

    def load_all(self, url: str) -> list[str]:
        """Load all files, going on past failed ones; gives their errors. Files that a failed one is before are not loaded."""
        errors: list[str] = []
        for file in self.files:
            try:
                self.load(url, file)
            except TooEarlyError:
                assert errors, "nothing is missing"
            except MigrationError as error:
                errors.append(str(error))
        return errors

    def command(self, url: str) -> list[str]:
        """The command that loads all files."""
        numbers = [str(self.batch_items), str(self.die_after)]
        names = [file.name for file in self.files]
        return ["-m", __name__, url, str(self.story.folder / "shop.json"), *numbers, *names]

    def verdict(self) -> Verdict:
        """Load what is not loaded, and older files once more; compare all with the full export at the end."""
        again = self.without_receipt()
        for file in again:
            self.load(self.url(), file)
        for file in (self.chance.choice(self.base), self.chance.choice(self.groups[0])):
            self.load(self.url(), file)
        found = _tables(self.lab, self.database)
        lost = duplicated = brought_back = 0
        for table in SELECTS:
            should, are = (Counter(map(_hashable, rows[table])) for rows in (self.story.rows, found))
            lost += (should - are).total()
            old = sum(count for row, count in (are - should).items() if row in self.story.over[table])
            brought_back += old
            duplicated += (are - should).total() - old
        quarantine = {(file, line, bytes(raw)) for file, line, raw in self.execute(QUARANTINE)}
        return Verdict(
            survived=not again,
            lost=lost,
            duplicated=duplicated,
            brought_back=brought_back,
            quarantine_right=quarantine == self.story.quarantine,
            conserved=not self.execute(UNACCOUNTED) and not self.without_receipt(),
        )


# -- a process that loads ----------------------------------------------------------------------------


def main(url: str, plan_file: str, batch_items: str, die_after: str, *names: str) -> None:
    """Load files, as a run worker does; this is what `WindowCase.process` runs, and somebody kills."""
    plan = read_plan(Path(plan_file))
    by_name = {each.file.name: each.file for each in plan.files}
    _die(int(die_after))
    sys.stdout.write("begin\n")
    sys.stdout.flush()
    for name in names:
        load(url, plan, by_name[name], int(batch_items))


def _die(after: int) -> None:
    """Have this process killed between two transactions."""
    transaction, numbers = Session._transaction, _counting()

    def counted(self: Session, work: Callable[[Any], Any]) -> Any:
        result = transaction(self, work)
        if next(numbers) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    Session._transaction = counted  # type: ignore[method-assign]


def _counting() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except MigrationError:
        sys.exit(1)  # a fault that ends a file; the verdict finds it without a receipt
