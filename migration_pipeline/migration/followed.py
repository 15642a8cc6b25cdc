"""Whether a profile can follow windows: whether the rows of an item's former state can be found and taken back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import get_type_hints

import msgspec

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.item import Item, Rest, Whole
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import unwrap
from migration_pipeline.sources.export import Export


def check_followed(profile: Profile, windows: Sequence[Export], keys: Collection[str]) -> None:
    """See that a profile can follow windows of a table whose primary key has the attributes `keys`.

    Raises `UsageError` for tables whose rows are of several items, and for windows without old images where the rows
    depend on more than the key.
    """
    if windows:
        _check_tables(profile)
    for export in windows:
        if export.window and export.window.view == "NEW_IMAGE" and export.items:
            for reason in _more_than_keys(profile, keys):
                raise UsageError(
                    f"{export.uri}: its view is NEW_IMAGE, which of an item's state before a change or a deletion has only the "
                    f"key ({', '.join(keys) or 'unknown'}), but {reason}; export this window again with the view "
                    "NEW_AND_OLD_IMAGES"
                )


def _check_tables(profile: Profile) -> None:
    for table in profile.tables.values():
        if table.version or table.merges:
            how = "version=" if table.version else "Merge"
            raise UsageError(
                f"profile {profile.name}: the table {table.qualified} uses {how}, so a row may be of several items, and a "
                "window cannot take back what one of them gave; land the items instead and make the rows by an aggregate, "
                "or plan without windows"
            )


def _more_than_keys(profile: Profile, keys: Collection[str]) -> Iterator[str]:
    """Say what of a profile needs other attributes than the key, as far as that shows without running it.

    A function that only reads the key makes the same rows of an item whatever became of it. Of any other, nothing
    is certain: it may put each attribute into a row's key.
    """
    for rule in profile.rules:
        for name, _ in rule.conditions:
            if name not in keys:
                what = f"the route {rule.reason}" if rule.function else f"ignore(because={rule.reason!r})"
                yield f"{what} has a condition on {name}"
        if rule.item_class is not None and (read := _read_by(rule.item_class, keys)):
            tables = ", ".join(profile.tables[row].qualified for row in rule.row_classes)
            yield f"the route {rule.reason}, of the table {tables}, reads {read}"


def _read_by(item_class: type[Item], keys: Collection[str]) -> str | None:
    """Name what a class reads besides the key: an attribute, or all of them."""
    hints = get_type_hints(item_class, include_extras=True)
    for field in msgspec.structs.fields(item_class):
        _, markers, _ = unwrap(hints[field.name])
        if any(isinstance(marker, (Whole, Rest)) for marker in markers):
            return "all attributes"
        if field.encode_name not in keys:
            return field.encode_name
    return None
