"""The items of a made-up table of pictures: what `migration_pipeline.demo.sample` writes for the profile pictures.

Of twelve items four pictures are made, with 1, 2, 3 and 6 items. What is rare goes by an item's number, so
that small samples have it, too: numbers as digits in S, empty and missing captions, languages and formats
that nobody knows, pictures without the format 85, urls of all sorts.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd
from random import Random
from typing import Any

from msgspec.json import encode

_SIZES = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 5))
"""For each of a dozen items: which of four pictures, and which item of it."""

_LANGUAGES = ("0", "1", "3", "4", "5", "6", "9", "11", "13", "14", "15", "16", "17", "2", "99")
_FORMATS = ("85", "72", "68", "85", "40")
_EXTENSIONS = (".jpg", ".jpg", ".jpg", ".png", ".jpeg", ".gif", ".JPG", ".webp", "")
_WORDS = ("harbour", "market", "bridge", "garden", "église", "Straße", "кот", "rooftops", "tram", "café")
_AWKWARD = ('She said "no"', "a\ttab, a \\ and a\nnew line", "{}", "null", "'quoted'", "🛒")


class Pictures:
    """The lines of the items, in an order that spreads a picture's over the files."""

    def __init__(self, items: int, seed: int, stream: Random | None = None) -> None:
        """Of a table of `items`; `stream` gives values of their own to items that come later."""
        self._items = items
        self._random = stream or Random(f"pictures {seed}")
        self._stride = max(1, items * 618 // 1000)
        while gcd(self._stride, items) > 1:
            self._stride += 1

    def lines(self) -> Iterator[bytes]:
        """The line of each position."""
        for position in range(self._items):
            yield encode({"Item": self.item(position * self._stride % self._items)}) + b"\n"

    def item(self, number: int) -> dict[str, dict[str, Any]]:
        """The item with a number, whose id only this number has; those past all items are new."""
        dozen, place = divmod(number, 12)
        which, nth = _SIZES[place]
        picture = 4 * dozen + which + 1
        odd, bits = picture % 23, self._random.getrandbits
        language = _LANGUAGES[(picture + nth) % 7 if odd else (picture // 23 + nth) % len(_LANGUAGES)]
        # Of six items some have one format in several languages.
        form = _FORMATS[(nth % 3 + (odd % 5 == 1)) % 5] if odd != 7 else _FORMATS[4 - nth % 2]
        extension = _EXTENSIONS[picture % 3 if odd else picture // 23 % len(_EXTENSIONS)]
        folder = "" if odd == 3 else "/img/"
        url = f"{folder}{2000 + picture % 24}/{1 + picture % 12:02d}/{_WORDS[picture % 10]}-{picture}"
        caption = f"{_WORDS[bits(3)]} and {_WORDS[picture % 10]}, seen from the {_WORDS[bits(3)]}"
        if number % 31 == 5:
            caption = _AWKWARD[number // 31 % len(_AWKWARD)]
        letter = "S" if number % 17 == 3 else "N"
        item: dict[str, dict[str, Any]] = {
            "id": {"S": f"{picture}-{language}-{form}-{nth}" if nth > 2 else f"{picture}-{language}-{form}"},
            "pictureId": {letter: str(picture)},
            "languageId": {letter: language},
            "url": {"S": url + extension if odd != 11 else f"{url}.{nth}{extension}"},
            "caption": {"S": "" if number % 13 == 4 else caption},
            "agencyId": {letter: str(1 + picture % 400)},
            "formatId": {letter: form},
            "formatPictureId": {letter: str(picture * 10 + nth % 3)},
            "originalWidth": {letter: str(800 + 8 * (picture % 500))},
            "originalHeight": {letter: str(600 + 6 * (picture % 500))},
            "x": {"N": str(bits(8))},
            "y": {"N": str(bits(8))},
        }
        if number % 29 == 2:
            item["caption"] = {"NULL": True}
        if number % 37 == 9:
            del item["url"]
        if number % 19 == 6:
            del item["originalHeight"]
        if number % 41 == 8:
            del item["formatPictureId"], item["agencyId"], item["languageId"]
        return item
