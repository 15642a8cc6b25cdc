"""What is written to a sample's table after T0: new items, updates, and items that leave or take a row.

In the shop, route, table and key of a row come from the item's primary key, which never changes. So a row
goes from one item to another by a delete and a put: an order moves to another customer and is still the same row
of `orders`. In the pictures any item may be updated to be of another picture.
"""

from __future__ import annotations

from itertools import count
from random import Random
from typing import Protocol

from migration_pipeline.demo.sample_layout import FullExport
from migration_pipeline.demo.sample_pictures import Pictures
from migration_pipeline.demo.sample_shop import Attributes, Mix, Shop


class Changes(Protocol):
    """What happens to the items of a table. No call changes an item that it is given."""

    keys: tuple[str, ...]
    """Names of the attributes of the primary key."""

    def new(self) -> Attributes:
        """An item under a key that no item has had."""

    def update(self, item: Attributes) -> Attributes:
        """The item with one or two other attributes set, or removed."""

    def leave(self, item: Attributes) -> Attributes | None:
        """What becomes of an item that gives up its row for another one to take; None if it is deleted."""

    def take(self, item: Attributes) -> Attributes:
        """Another item, for the row that an item has or had."""

    def swap(self, one: Attributes, other: Attributes) -> tuple[Attributes, Attributes]:
        """Both items after they have changed places, as far as the table lets them."""


def changes_of(export: FullExport, items: int, seed: int) -> Changes:
    """What happens to the items of the table that a sample is of."""
    stream = Random(f"changes {seed}")
    return (
        PictureChanges(items, seed, stream)
        if export.table == "pictures"
        else ShopChanges(export, items, seed, stream)
    )


class ShopChanges:
    """Customers, orders, order lines, events and sessions."""

    keys: tuple[str, ...] = ("PK", "SK")

    def __init__(self, export: FullExport, items: int, seed: int, stream: Random) -> None:
        self._random = stream.random
        self._mix = Mix(items, seed)
        self._shop = Shop(self._mix, seed, export.time, stream)
        self._new, self._fresh = count(items), count()

    def new(self) -> Attributes:
        """The next items, in the shares of their kinds."""
        return self._shop.item(*self._mix.of(next(self._new)))

    def update(self, item: Attributes) -> Attributes:
        """Take some attributes over from a new item of the kind; the keys stay."""
        return _mixed(item, self._shop.item(_kind(item), next(self._fresh)), self.keys, self._random)

    def leave(self, item: Attributes) -> None:
        """Nothing but its primary key gives an item its row: it must go."""

    def take(self, item: Attributes) -> Attributes:
        """Move an order, or an event, to another customer; spell the key of a line, or of a customer, otherwise."""
        partition, sort = _text(item, "PK"), _text(item, "SK")
        kind = _kind(item)
        if kind in ("order", "event"):
            other = f"CUSTOMER#{self._shop.some_customer()}"
            partition = other if other != partition else "CUSTOMER#guest"
        elif kind == "line":
            sort = f"LINE#{int(sort.removeprefix('LINE#'))}"
        elif kind == "customer":
            partition = partition.removeprefix("CUSTOMER#")
        else:
            partition += "-2"
        return {**item, "PK": {"S": partition}, "SK": {"S": sort}}

    def swap(self, one: Attributes, other: Attributes) -> tuple[Attributes, Attributes]:
        """Two updates: places change by primary keys here, and those stay."""
        return self.update(one), self.update(other)


class PictureChanges:
    """Items of pictures: by `pictureId` each is of a picture, and that is an attribute like others."""

    keys: tuple[str, ...] = ("id",)

    def __init__(self, items: int, seed: int, stream: Random) -> None:
        self._random = stream.random
        self._pictures = Pictures(items, seed, stream)
        self._new = count(items)
        self._items = max(items, 12)

    def new(self) -> Attributes:
        """Items of more pictures."""
        return self._pictures.item(next(self._new))

    def update(self, item: Attributes) -> Attributes:
        """Take some attributes over from any other item: `pictureId`, too."""
        return _mixed(item, self._other(), self.keys, self._random)

    def leave(self, item: Attributes) -> Attributes:
        """Be of another picture."""
        picture = item["pictureId"]
        while picture == item["pictureId"]:
            picture = self._other()["pictureId"]
        return {**item, "pictureId": picture}

    def take(self, item: Attributes) -> Attributes:
        """A new item that says the same."""
        return {**item, "id": self.new()["id"]}

    def swap(self, one: Attributes, other: Attributes) -> tuple[Attributes, Attributes]:
        """Each is of the picture that the other was of."""
        return {**one, "pictureId": other["pictureId"]}, {**other, "pictureId": one["pictureId"]}

    def _other(self) -> Attributes:
        return self._pictures.item(int(self._random() * self._items))


def _kind(item: Attributes) -> str:
    sort = _text(item, "SK").partition("#")[0]
    return {"PROFILE": "customer"}.get(sort, sort.lower())


def _text(item: Attributes, name: str) -> str:
    return str(item[name]["S"])


class _Uniform(Protocol):
    def __call__(self) -> float:
        """A number from 0 to 1, without 1."""


def _mixed(item: Attributes, fresh: Attributes, keys: tuple[str, ...], random: _Uniform) -> Attributes:
    """The item, with one or two attributes as `fresh` has them, or without what it has not."""
    names = [name for name in {**item, **fresh} if name not in keys]
    mixed = dict(item)
    for _ in range(1 + (random() < 0.5)):
        name = names[int(random() * len(names))]
        if name in fresh:
            mixed[name] = fresh[name]
        else:
            mixed.pop(name, None)
    return mixed
