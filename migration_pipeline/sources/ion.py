"""Reads a line of an export in Ion: translated to DynamoDB JSON, and no further than is needed, it is read as such a line.

So the code that makes typed items of values is that of `dynamodb_json`, and an item becomes the same rows from both formats. `ion_text`
translates, and `_ion.c` in its place where it is built. See docs/ion.md.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from migration_pipeline import accelerator
from migration_pipeline.errors import BadItem
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Rule
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.ion_text import attributes_line, item_line
from migration_pipeline.sources.ion_usual import quick_attributes
from migration_pipeline.sources.lines import Read, reader

ItemType = TypeVar("ItemType", bound=Item)

ROUTED_BY_PYTHON = "its routing attributes are of an odd shape"
"""Why Python reads lines that C may understand."""


def _items(lines: Sequence[bytes]) -> Iterable[bytes]:
    """Translate lines. Raises `BadItem`."""
    extension = accelerator.extension(accelerator.ION)
    return extension.items(lines, item_line) if extension else map(item_line, lines)


def _read(decoder: Callable[[bytes], Any], line: bytes) -> Any:
    """Read a translated line. A place in it is no place in the line of the file, so it is cut off a reason. Raises `BadItem`."""
    try:
        return decoder(line)
    except BadItem as error:
        raise BadItem(_PLACE.sub("", str(error))) from None


_PLACE = re.compile(r" \(byte \d+\)")


class Attributes:
    """Translates of lines the attributes of some names alone; what follows the last of them is not read."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(map(str.encode, names))
        self._quick = quick_attributes(self._names)

    def many(self, lines: Iterable[bytes]) -> Iterable[bytes]:
        """Translate lines. Raises `BadItem`."""
        extension = accelerator.extension(accelerator.ION)
        if extension:
            return extension.attributes(lines, self._names, self._in_full)  # type: ignore[no-any-return]
        return (self._quick(line) or self._in_full(line) for line in lines)

    def _in_full(self, line: bytes) -> bytes:
        return attributes_line(line, self._names)

    def one(self, line: bytes) -> bytes:
        """Translate a line. Raises `BadItem`."""
        (made,) = self.many([line])
        return made


class KeysDecoder:
    """Reads the values of some attributes of a line, as `dynamodb_json.KeysDecoder` does."""

    def __init__(self, attributes: Sequence[str], typed: Collection[str] = ()) -> None:
        self._attributes = Attributes(attributes)
        self._read = dynamodb_json.KeysDecoder(attributes, typed)

    def __call__(self, line: bytes) -> tuple[Any, ...]:
        """Read one line. Raises `BadItem`."""
        keys: tuple[Any, ...] = _read(self._read, self._attributes.one(line))
        return keys

    def many(self, lines: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        """Read many lines. Raises any exception when one of them is bad."""
        return self._read.many(self._attributes.many(lines))


class ItemDecoder(Generic[ItemType]):
    """A compiled `Item` class: a function from a line to an item, as `dynamodb_json.ItemDecoder` is one."""

    def __init__(self, item_class: type[ItemType], known: Sequence[str] = ()) -> None:
        self.of_json = dynamodb_json.ItemDecoder(item_class, known)
        """Reads the same item of a line in DynamoDB JSON."""

    def __call__(self, line: bytes) -> ItemType:
        """Read a line. Raises `BadItem`."""
        item: ItemType = _read(self.of_json, item_line(line))
        return item

    def many(self, lines: Sequence[bytes]) -> Iterator[ItemType]:
        """Read many lines. Raises any exception when one of them is bad, or odd; a call for each tells."""
        return self.of_json.many(list(_items(lines)))


keys_decoder = KeysDecoder
item_decoder = ItemDecoder


def wire_types(line: bytes, attributes: Iterable[str]) -> dict[str, str]:
    """Tell the DynamoDB types of some attributes of a line; those that it lacks are left out. Raises `BadItem`."""
    names = list(attributes)
    return dynamodb_json.wire_types(Attributes(names).one(line), names)


class _Routed(Item):
    """An item of which nothing is read."""


def line_reader(
    rules: Sequence[Rule],
    attributes: Sequence[str],
    typed: Collection[str],
    decoders: Mapping[type[Item], ItemDecoder[Any]],
    which: Callable[[tuple[Any, ...]], int],
) -> Read | None:
    """Compile the accelerated reader of a profile's lines; None where there is no accelerator. See `lines.reader`.

    Lines are routed by a short translation, which has no other attributes; those that a route takes are translated whole.
    """
    extension = accelerator.extension(accelerator.LINES)
    if not (extension and accelerator.extension(accelerator.ION)):
        return None
    short = Attributes(attributes)
    keys = dynamodb_json.KeysDecoder(attributes, typed)
    lean = [dataclasses.replace(rule, item_class=rule.item_class and _Routed) for rule in rules]
    route = reader(
        extension, lean, attributes, typed, {_Routed: dynamodb_json.ItemDecoder(_Routed)},
        lambda line: which(keys(line)),
    )  # fmt: skip
    makers = {
        number: _maker(extension, rule, decoders[rule.item_class])
        for number, rule in enumerate(rules)
        if rule.function and rule.item_class
    }

    def read(lines: Sequence[bytes], numbers: Sequence[int]) -> tuple[Any, ...]:
        routed = short.many(lines)
        taken, places, counts, unrouted, _, bad, by_python = route(list(routed), numbers)
        _raise_first(bad)
        whole = dict(zip(numbers, lines, strict=True))
        items: list[list[Any]] = [[] for _ in rules]
        odd = Counter[str]()
        for number, make in makers.items():
            if taken[number]:
                taken[number] = [whole[place] for place in places[number]]
                *_, (items[number],), bad, more = make(list(_items(taken[number])), places[number])
                _raise_first(bad)
                odd.update(more)
        if unrouted:
            of = dict(zip(map(id, routed), lines, strict=True))
            unrouted = [of[id(line)] for line in unrouted]
        if again := min(sum(by_python.values()), len(lines) - sum(odd.values())):
            odd[ROUTED_BY_PYTHON] += again
        return taken, places, counts, unrouted, items, [], odd

    return read


def _raise_first(bad: Sequence[tuple[int, bytes, BadItem, int]]) -> None:
    """A list with a bad line is read by Python, line by line."""
    for _, _, error, _ in bad:
        raise error


def _maker(extension: Any, rule: Rule, decoder: ItemDecoder[Any]) -> Read:
    """Compile the reader that makes the Items of one route, of lines that are known to be its own."""
    assert rule.item_class is not None  # noqa: S101
    every = dataclasses.replace(rule, conditions=())
    return reader(extension, [every], (), (), {rule.item_class: decoder.of_json}, lambda _: 0)
