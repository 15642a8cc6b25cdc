"""Reads a line of an incremental export in DynamoDB JSON: what became of one item in a window.

``{"Metadata":{"WriteTimestampMicros":{"N":"…"}},"Keys":{…},"OldImage":{…},"NewImage":{…}}``: an insert has no
OldImage, a delete no NewImage, and with the view NEW_IMAGE no record has an OldImage. An image that is not there
may also be spelled ``null``. Format: "DynamoDB table export output format" in the DynamoDB developer guide.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, UnsetType, defstruct

from migration_pipeline.errors import BadItem

if TYPE_CHECKING:
    from migration_pipeline.sources.export import Window

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)

Image: Any = msgspec.Raw | UnsetType
"""An item, not read yet; ``null`` also stands for none."""


class Micros(msgspec.Struct, frozen=True):
    """A number as the wire has it."""

    N: str


class Metadata(msgspec.Struct, frozen=True):
    """When the item was written last in the window, in microseconds since 1970-01-01 UTC."""

    WriteTimestampMicros: Micros


class _KeyValue(msgspec.Struct, frozen=True, gc=False):
    """The value of an attribute of a primary key."""

    S: str | UnsetType = UNSET
    N: str | UnsetType = UNSET
    B: str | UnsetType = UNSET


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


class _ReadKeys(msgspec.Struct, frozen=True, gc=False):
    """A line of a window, of which the key is read at once."""

    Metadata: Metadata
    Keys: dict[str, _KeyValue]
    OldImage: Image = UNSET
    NewImage: Image = UNSET


class _Keys(msgspec.Struct, frozen=True):
    Keys: dict[str, msgspec.Raw]


_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u([dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""An escape of a JSON text: a surrogate pair, half of one with its digits, or any other."""

_decode = msgspec.json.Decoder(WindowRecord).decode
_decode_with_keys = msgspec.json.Decoder(_ReadKeys).decode
_decode_names = msgspec.json.Decoder(_Keys).decode
_decode_keys = msgspec.json.Decoder(dict[str, _KeyValue]).decode
_encode = msgspec.json.Encoder().encode


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
        return tuple(sorted(_decode_names(line).Keys))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ()


class Change(msgspec.Struct, frozen=True):
    """What a record says of its item. The states are lines as a full export has them."""

    item: str
    """Digest of the item's primary key, in hex."""
    written: int
    """Time of its last write in the window, in microseconds of the epoch."""
    old: bytes | None
    """The item before the window, None if there was none; where the window does not say, its key attributes alone."""
    new: bytes | None
    """The item at the end of the window; None if it was deleted."""


class ChangeReader:
    """Reads the records of a window. Calling it raises `BadItem` with a reason that holds no value."""

    def __init__(self, window: Window, profile: str) -> None:
        self._profile = profile
        self._both = window.view == "NEW_AND_OLD_IMAGES"
        self._first, self._end = (micros(each) for each in (window.start, window.end))

    def __call__(self, line: bytes) -> Change:
        """Read a record."""
        try:
            record, item = self._read(line)
            written = int(record.Metadata.WriteTimestampMicros.N)
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
            raise BadItem(_reason(error)) from None
        if not self._first <= written < self._end:
            raise BadItem("its write time (WriteTimestampMicros) lies outside of the window")
        old, new = _line(record.OldImage), _line(record.NewImage)
        if self._both and old is None and new is None:
            raise BadItem("it has neither OldImage nor NewImage, and the window has both images")
        return Change(item, written, old if self._both else _line(record.Keys), new)

    def _read(self, line: bytes) -> tuple[Any, str]:
        """Read a record and the digest of its key: at once, where the key's own text is of no use and nothing is odd."""
        if self._both:
            try:
                quick = _decode_with_keys(line)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                pass  # what it is, and whether it matters, is told below
            else:
                return quick, _digest_of_members(quick.Keys, self._profile)
        record = _read(line)
        return record, digest_of_keys(record.Keys, self._profile)


def _read(line: bytes) -> WindowRecord:
    """Read a record. Half a surrogate pair in an image is the image's fault: what the others say counts all the same."""
    found, mark = _around_halves(_decode, line)
    record: WindowRecord = found
    if not mark:
        return record

    def as_it_was(image: Any) -> Any:
        return UNSET if image is UNSET else msgspec.Raw(bytes(image).replace(mark, b"\\u"))

    images = as_it_was(record.OldImage), as_it_was(record.NewImage)
    return WindowRecord(record.Metadata, as_it_was(record.Keys), *images)


def _around_halves(decode: Callable[[bytes], Any], line: bytes) -> tuple[Any, bytes]:
    """Decode JSON, also where texts hold half a surrogate pair, which msgspec refuses even in what it passes over.

    Returns what stands for the ``\\u`` of such a half in what was decoded, too; b"" where there is none. Raises
    `msgspec.MsgspecError`.
    """
    try:
        return decode(line), b""
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mark = b"half-a-pair-"
        while mark in line:
            mark += b"-"
        marked = _ESCAPE.sub(lambda escape: mark + escape[1] if escape[1] else escape[0], line)
        if marked == line:
            raise
        return decode(marked), mark


def _line(image: Any) -> bytes | None:
    if image is UNSET:
        return None
    line = b'{"Item":%b}' % image
    return None if line == b'{"Item":null}' else line


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, msgspec.ValidationError) else "malformed"
    return f"no record of an incremental export{f': {text}' if 'missing required field' in text else ''}"


def micros(time: datetime) -> int:
    """A time in microseconds of the epoch."""
    return (time - _EPOCH) // timedelta(microseconds=1)


# -- which item it is --------------------------------------------------------------------------------


def digest_of_keys(keys: bytes | msgspec.Raw, profile: str) -> str:
    """Make a digest of a profile and a primary key, given as JSON; equal for one key however its numbers are spelled. Raises `ValueError`."""
    return _digest_of_members(_decode_keys(keys), profile)


def _digest_of_members(members: dict[str, _KeyValue], profile: str) -> str:
    return _digest([members[name] for name in sorted(members)], profile).hex()


def item_digests(keys: Sequence[str], profile: str) -> Callable[[bytes], bytes]:
    """Make the function that gives the digest of the item on a line of a full export; `keys` are the key's attributes, sorted.

    It raises `ValueError` or `msgspec.MsgspecError` for a line without them.
    """
    fields = [(f"k{n}", _KeyValue, msgspec.field(name=name)) for n, name in enumerate(keys)]
    item = defstruct("Item", fields, frozen=True, gc=False)
    decode = msgspec.json.Decoder(defstruct("Line", [("Item", item)], frozen=True, gc=False)).decode
    names = [name for name, *_ in fields]

    def digest(line: bytes) -> bytes:
        found, mark = _around_halves(decode, line)
        values = [getattr(found.Item, name) for name in names]
        if mark and any(mark.decode() in value.S for value in values if value.S is not UNSET):
            raise ValueError("a key attribute holds half a surrogate pair")
        return _digest(values, profile)

    return digest


def _digest(values: Sequence[_KeyValue], profile: str) -> bytes:
    if not values:
        raise ValueError("no key")
    canonical: list[Any] = [("S", value.S) if value.S is not UNSET else _not_text(value) for value in values]
    return hashlib.blake2b(_encode([profile, *canonical]), digest_size=16).digest()


def _not_text(value: _KeyValue) -> tuple[str, Any]:
    if value.N is UNSET:
        if value.B is UNSET:
            raise ValueError("a key attribute has no value")
        return ("B", value.B)
    sign, digits, exponent = Decimal(value.N).as_tuple()
    whole = int("".join(map(str, digits)))
    if not isinstance(exponent, int):
        raise ValueError("a key attribute is no number")
    if whole == 0:
        return ("N", 0)
    while whole % 10 == 0:
        whole, exponent = whole // 10, exponent + 1
    return ("N", f"{'-' * sign}{whole}E{exponent}")
