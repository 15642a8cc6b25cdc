"""Reads a line of an incremental export in DynamoDB JSON: what became of one item in a window.

``{"Metadata":{"WriteTimestampMicros":{"N":"…"}},"Keys":{…},"OldImage":{…},"NewImage":{…}}``: an insert has no
OldImage, a delete no NewImage, and with the view NEW_IMAGE no record has an OldImage. An image that is not there
may also be spelled ``null``. Format: "DynamoDB table export output format" in the DynamoDB developer guide.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from migration_pipeline.errors import BadItem

Image: Any = msgspec.Raw | UnsetType
"""An item, not read yet; ``null`` also stands for none."""


class Micros(msgspec.Struct, frozen=True):
    """A number as the wire has it."""

    N: str


class Metadata(msgspec.Struct, frozen=True):
    """When the item was written last in the window, in microseconds since 1970-01-01 UTC."""

    WriteTimestampMicros: Micros


class WindowRecord(msgspec.Struct, frozen=True):
    """A line of a window; its images are raw JSON, the attributes of an item by name."""

    Metadata: Metadata
    Keys: msgspec.Raw
    OldImage: Image = UNSET
    NewImage: Image = UNSET

    @property
    def state(self) -> bytes:
        """The attributes that are known of the item: as it is now; of a deleted one, as it was, or only its key."""
        images = (bytes(image) for image in (self.NewImage, self.OldImage) if image is not UNSET)
        return next((image for image in images if image != b"null"), bytes(self.Keys))


class _Keys(msgspec.Struct, frozen=True):
    Keys: dict[str, msgspec.Raw]


_decode = msgspec.json.Decoder(WindowRecord).decode
_decode_keys = msgspec.json.Decoder(_Keys).decode


def item_line(line: bytes) -> bytes:
    """Make a line of a full export of a record: its item's `WindowRecord.state`. Raises `BadItem`."""
    try:
        return b'{"Item":' + _decode(line).state + b"}"
    except UnicodeDecodeError:
        raise BadItem("invalid UTF-8") from None
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadItem(f"no record of an incremental export: {error}") from None


def key_names(line: bytes) -> tuple[str, ...]:
    """Return the names of the attributes in a record's Keys, sorted; none where that cannot be told."""
    try:
        return tuple(sorted(_decode_keys(line).Keys))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()
