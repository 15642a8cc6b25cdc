"""The rows of the bookkeeping: what the database itself says was loaded, made and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime

import msgspec

from migration_pipeline.engine.file_report import LoadedFile
from migration_pipeline.targets.states import TableState

FileKey = tuple[str, str]
"""Export id and file name."""


class Receipt(LoadedFile, frozen=True, kw_only=True):
    """A row of ``migration.loaded_file``."""

    export_id: str
    file: str
    profile_version: str
    changed: int
    """Rows of all tables that were there with other values; a load before `changed_rows` was kept has this alone."""
    run_id: str
    export_time: datetime | None = None
    """When the table was exported; None if unknown."""
    doubt: str = ""
    """Why nothing vouches for the completeness of its export; "" where its manifest does."""
    loaded_at: datetime


def md5_of_files(files: Iterable[tuple[str, str]]) -> str:
    """One MD5, in hex, for a set of files: export and name of each."""
    text = "\n".join(sorted("\t".join(file) for file in files))
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Steering(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``migration.throttle``: how a running migration is steered. None leaves a limit to the run config; 0 is no limit."""

    paused: bool = False
    max_lag_seconds: float | None = None
    max_active: int | None = None
    items_per_second: int | None = None
    changed_by: str = ""
    """User and machine."""
    changed_at: datetime | None = None


class AggregateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The account of an aggregate. Counts are of rows, but for `files`, `groups`, `parts` and `retries`."""

    files: int = 0
    groups: int = 0
    """Distinct keys in the landing tables; each makes one row."""
    rows: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    rounded: dict[str, int] = {}
    """Values that columns changed, as the Row allows, by table and column."""
    parts: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def unchanged(self) -> int:
        """Rows that were there already as they should be."""
        return self.rows - self.new - self.changed


class AggregateReceipt(AggregateReport, frozen=True, kw_only=True):
    """A row of ``migration.aggregate``."""

    table_name: str
    """Qualified."""
    profile_version: str
    sql_md5: str
    files_md5: str
    """`md5_of_files` of them."""
    unchanged: int
    run_id: str
    made_at: datetime


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``migration.verification``: a table, compared with the export. Counts are of rows."""

    profile: str
    table_name: str
    files: int
    """Files that were read."""
    compared: int
    same: int
    missing: int
    different: int
    newer: int
    extra: int
    columns: dict[str, int]
    """Rows that differ, by column."""
    run_id: str
    verified_at: datetime | None = None
    began_at: datetime | None = None
    """None for verifications kept by older versions."""
    profile_version: str = ""
    files_md5: str = ""
    """`md5_of_files` of those that were read."""
    state: TableState | None = None
    """The table's state when the verification began, so that changes while it reads count as later ones."""


class KeptDifference(msgspec.Struct, frozen=True, kw_only=True):
    """A row of ``migration.difference``: an example of what a verification found."""

    table_name: str
    export_id: str
    file: str
    """Of the row's item; "" of a row that no item made."""
    kind: str
    """As `targets.comparison.Difference` has it."""
    columns: list[str]
    key: str
    """JSON."""
