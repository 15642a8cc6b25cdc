"""The account of a file's load: while it runs (`Progress`), when it is done (`FileReport`) and kept afterwards (`LoadedFile`)."""

from __future__ import annotations

import msgspec


class BadExample(msgspec.Struct, frozen=True):
    """Where a bad item is and what is wrong with it. It holds no value of the item."""

    line: int
    """From 1."""
    reason: str
    table: str | None = None
    """The table that refused its row; None when it did not come that far."""
    sqlstate: str | None = None


class LoadedFile(msgspec.Struct, frozen=True, kw_only=True):
    """The account of one file. Counts are of items, except `rows`: one item may make several rows."""

    items: int = 0
    """Items read."""
    loaded: int = 0
    """Items that became rows."""
    skipped: dict[str, int] = {}
    """Items that the profile skipped, by reason."""
    unrouted: dict[str, int] = {}
    """Items that no rule took, by the pattern of their keys. They are part of `skipped`, too."""
    superseded: int = 0
    """Items of which a newer state was there already: of a full export, those that a window has touched since."""
    quarantined: int = 0
    """Items that something is wrong with; they are kept in the quarantine."""
    rows: dict[str, int] = {}
    """Rows written, by the table's qualified name; a table that got none may be left out."""
    collisions: dict[str, int] = {}
    """Rows left out because another item of the same batch made the same key, by table."""
    changed_rows: dict[str, int] = {}
    """Rows that were there with other values, by table: of an older load, or of another item with the same key."""
    deleted_rows: dict[str, int] = {}
    """Rows that had to go because their item was changed or deleted, by table; of a window."""
    unchanged_rows: dict[str, int] = {}
    """Rows that were there already as they are, by table."""
    rounded: dict[str, int] = {}
    """Values that a column changed, as the Row allows (`Fitted`), by table and column: ``{"prices.price": 3}``."""
    nul: int = 0
    """Values from which U+0000 was taken out, where the profile says so."""
    retries: int = 0
    """Transactions that ran again after a transient fault of the database."""
    throttled: dict[str, float] = {}
    """Seconds that the load waited until it might write, by the kind of the reason; they are part of `seconds`."""
    accelerated: int = 0
    """Lines that were read in C."""
    not_accelerated: dict[str, int] = {}
    """Lines that C handed to Python, by reason; none where there is no accelerator."""
    bytes: int = 0
    """Compressed bytes read."""
    md5: str = ""
    """base64(MD5) of these bytes."""
    seconds: float = 0.0
    """From the first line's read to the last batch's write, before its commit. Connecting and Dagster's part are not in it."""

    @property
    def conserved(self) -> bool:
        """Whether every item read is loaded, superseded, skipped or quarantined (promise P1)."""
        return self.items == self.loaded + self.superseded + sum(self.skipped.values()) + self.quarantined

    @property
    def row_changes(self) -> dict[str, dict[str, int]]:
        """What a window did to rows: ``{"inserted": {"orders": 3}, "updated": …, "deleted": …, "unchanged": …}``."""
        changed, same = self.changed_rows, self.unchanged_rows
        inserted = {name: rows - changed.get(name, 0) - same.get(name, 0) for name, rows in self.rows.items()}
        return {"inserted": inserted, "updated": changed, "deleted": self.deleted_rows, "unchanged": same}


class FileReport(LoadedFile, frozen=True, kw_only=True):
    """The account of a file that was loaded just now, and what only its load knows."""

    quarantined_by_reason: dict[str, int] = {}
    quarantined_examples: list[BadExample] = []
    """Some of them, for people to look at."""
    newer_rows: dict[str, int] = {}
    """Rows that gave way to one of a greater version, by table."""

    @property
    def changed(self) -> int:
        """Rows of all tables that were there with other values."""
        return sum(self.changed_rows.values())

    @property
    def items_per_second(self) -> float:
        """Items read, by the seconds of the load; 0 for an empty file."""
        return self.items / self.seconds if self.seconds and self.items else 0.0


class Progress(msgspec.Struct, frozen=True):
    """How far a running file is."""

    items: int
    total_items: int
    bytes: int
    seconds: float
    quarantined: int = 0
    """Items that something is wrong with, of those read and written so far."""

    @property
    def share(self) -> float:
        """Part of the file's items that is read, 0 to 1."""
        return self.items / self.total_items if self.total_items else 1.0

    @property
    def items_per_second(self) -> float:
        """Items read a second so far."""
        return self.items / self.seconds if self.seconds else 0.0

    @property
    def eta_seconds(self) -> float | None:
        """Seconds left at the present speed; None before there is one."""
        return (
            (self.total_items - self.items) / self.items_per_second if self.items and self.seconds else None
        )
