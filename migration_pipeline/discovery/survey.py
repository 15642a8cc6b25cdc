"""Surveys an export: its key, its entity types, and for each the attributes, from a sample or from all items."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import msgspec

from migration_pipeline.discovery.attributes import Attribute, Place, epoch_of, holds_nul
from migration_pipeline.discovery.keys import (
    Conditions,
    Item,
    Key,
    guess_key,
    guess_types,
    holds,
    key_value,
    text_in,
    text_of,
)
from migration_pipeline.discovery.sampling import Line, Sample
from migration_pipeline.errors import BadItem
from migration_pipeline.profile.profile import Prefix
from migration_pipeline.sources.dialects import json_line
from migration_pipeline.sources.dynamodb_json import whole_item
from migration_pipeline.sources.export import Export
from migration_pipeline.sources.storage import Storage, StorageError
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.sources.values import document
from migration_pipeline.sources.windows import item_line

MAX_ATTRIBUTES = 300
"""Attributes of one entity type that are looked at; more are hardly attributes, but data in their names."""

MAX_COUNTED = 100_000
"""Key values of one entity type that are told apart, and names of attributes: beyond them nothing is counted."""

EVENT_SHARE = 0.95
"""Share of an entity type's items whose sort key begins with a time, for the type to be called event-like."""

EXAMPLES = 3
"""Items of each entity type that are kept as examples."""

EXAMPLE_BYTES = 4_000
"""Bytes of a line up to which it makes a readable example."""

_TIME = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}|$)")


class EntityType:
    """What is known of the items that one rule takes; `add` takes one more."""

    def __init__(self, conditions: Conditions, key: Key, wanted: Iterable[str] = ()) -> None:
        """`wanted` are the names of attributes that are looked at before others, `MAX_ATTRIBUTES` at most."""
        self.conditions = conditions
        self.items = 0
        """Items looked at."""
        self.estimate = 0.0
        """Items in the whole export, if those that were not looked at are like the others."""
        self.bytes = 0
        """Bytes of the items looked at, as lines of DynamoDB JSON."""
        self.largest = 0
        """Bytes of the largest of them."""
        self.attributes: dict[str, Attribute] = {}
        self.nul = False
        """Whether U+0000 stands in any attribute, or in the name of one."""
        self._wanted = frozenset(wanted)
        self._room = MAX_ATTRIBUTES - len(self._wanted)
        self._further: set[int] = set()
        self._examples: list[Line] = []
        self._shortest: Line | None = None
        self._key = key
        self._timed = 0
        self._partitions: set[int] = set()
        self._sorts: set[int] = set()

    def add(self, item: Item, line: Line, weight: float) -> None:
        """Take one more item. Raises `BadItem`, and then counts nothing of it."""
        try:
            plain = document(dict(item))
        except ValueError as error:
            raise BadItem(f"an attribute {error}") from None
        self.items += 1
        self.estimate += weight
        self.bytes += len(line.line)
        self.largest = max(self.largest, len(line.line))
        place = Place(line.file, line.number)
        for name, value in item.items():
            attribute = self.attributes.get(name) or self._attribute(name)
            if attribute is not None:
                attribute.add(value, plain[name], place)
        self.nul = self.nul or (b"\\u0000" in line.line and holds_nul(plain))
        self._count_keys(item)
        if len(line.line) > EXAMPLE_BYTES:
            if self._shortest is None or len(line.line) < len(self._shortest.line):
                self._shortest = line
        elif len(self._examples) < EXAMPLES:
            self._examples.append(line)

    def _attribute(self, name: str) -> Attribute | None:
        """Begin to look at one more attribute; None when there are too many."""
        if name not in self._wanted:
            if self._room <= 0:
                if len(self._further) < MAX_COUNTED:
                    self._further.add(hash(name))
                return None
            self._room -= 1
        made = self.attributes[name] = Attribute(name)
        return made

    @property
    def further(self) -> int:
        """Attributes that are not looked at, beside the `attributes`."""
        return len(self._further)

    @property
    def all_counted(self) -> bool:
        """Whether `further` is all of them, and not the most that is counted."""
        return len(self._further) < MAX_COUNTED

    @property
    def examples(self) -> list[Line]:
        """Some items: short ones, or the shortest of long ones."""
        return self._examples or ([self._shortest] if self._shortest else [])

    def _count_keys(self, item: Item) -> None:
        partition, sort = self._key.partition, self._key.sort
        if partition is not None and partition in item and len(self._partitions) < MAX_COUNTED:
            self._partitions.add(hash(key_value(item[partition])))
        if sort is not None and sort in item:
            if len(self._sorts) < MAX_COUNTED:
                self._sorts.add(hash(key_value(item[sort])))
            self._timed += _begins_with_time(self.without_mark(sort, _text(item, sort)))

    def mark_of(self, name: str | None) -> tuple[str, bool] | None:
        """The text that a key attribute is known to be (True) or to begin with (False); None when it is free."""
        for attribute, condition in self.conditions:
            if attribute == name:
                return text_of(condition), not isinstance(condition, Prefix)
        return None

    def without_mark(self, name: str, text: str) -> str:
        """A key's text without the prefix that all items of the type have."""
        mark = self.mark_of(name)
        return text.removeprefix(mark[0]) if mark else text

    @property
    def key(self) -> list[str]:
        """The key's attributes whose values tell the items apart: those that are not the same in all."""
        names = list(self._key.attributes)
        free = [name for name in names if not (mark := self.mark_of(name)) or not mark[1]]
        return free or names[:1]

    @property
    def distinct_sorts(self) -> bool:
        """Whether no two of the items have the same sort key, whatever their partition keys are."""
        return self.items == len(self._sorts) < MAX_COUNTED

    @property
    def per_partition(self) -> float:
        """Items for each partition key; of a sample, that is less than in the export."""
        return self.items / len(self._partitions) if 0 < len(self._partitions) < MAX_COUNTED else 1.0

    @property
    def event_like(self) -> bool:
        """Whether the items look like events: a time in the sort key."""
        return self.items > 0 and self._timed >= EVENT_SHARE * self.items

    def always_there(self, attribute: Attribute) -> bool:
        """Whether every item has the attribute, and not as NULL."""
        return attribute.present == self.items


def _text(item: Item, name: str) -> str:
    value = item[name]
    return value.N if isinstance(value.N, str) else text_in(item, name)


def _begins_with_time(text: str) -> bool:
    return bool(_TIME.match(text)) or epoch_of(re.split(r"[^0-9]", text, maxsplit=1)[0])


class Unreadable(msgspec.Struct):
    """Lines that are no items, by reason."""

    reason: str
    items: int
    example: Place


class Survey:
    """Everything that is known of an export after looking at some of its items, or at all."""

    def __init__(self, sample: Sample) -> None:
        self.export: Export = sample.export
        self.sample = sample
        self.everything = False
        """Whether every item of the export was looked at, not the sample alone."""
        items = list(self._readable())
        self.key = guess_key(items, self.export.window.keys if self.export.window else ())
        self.rules: Sequence[Conditions] = guess_types(items, self.key)
        self.looked_at = 0
        """Items looked at, bad ones included."""
        self.unread = dict(sample.unread)
        self.bad: dict[str, Unreadable] = {}
        self._types = self._find_types(items)

    def _find_types(self, items: Iterable[Item]) -> dict[Conditions, EntityType]:
        """Make the entity types, each to look at the attributes that are commonest in it."""
        names = {conditions: Counter[str]() for conditions in [*self.rules, ()]}
        for item in items:
            names[next(each for each in names if holds(each, item))].update(item.keys())
        made = {}
        for conditions, counted in names.items():
            telling = [*self.key.attributes, *(name for name, _ in conditions)]
            common = [*telling, *(name for name, _ in counted.most_common(MAX_ATTRIBUTES))]
            made[conditions] = EntityType(conditions, self.key, list(dict.fromkeys(common))[:MAX_ATTRIBUTES])
        return made

    @property
    def types(self) -> list[EntityType]:
        """The entity types that were found, in the order in which their rules are tried."""
        return [found for found in self._types.values() if found.items]

    @property
    def whole(self) -> bool:
        """Whether there is no item that was not looked at."""
        return not self.unread and self.looked_at == self.export.items

    @property
    def bad_items(self) -> int:
        """Lines that are no items."""
        return sum(bad.items for bad in self.bad.values())

    def add(self, lines: Iterable[Line], weight: float) -> None:
        """Look at lines, each of which stands for `weight` items of the export."""
        for line in lines:
            self.looked_at += 1
            try:
                line = self.item_line(line)
                item = whole_item(line.line)
                self._type_of(item).add(item, line, weight)
            except BadItem as error:
                place = Place(line.file, line.number)
                self.bad.setdefault(str(error), Unreadable(str(error), 0, place)).items += 1

    def item_line(self, line: Line) -> Line:
        """Spell its item as a line of DynamoDB JSON: of a window's record, its newest state. Raises `BadItem`."""
        export = self.export
        spelled = item_line(line.line) if export.window else json_line(line.line, export.output_format)
        return msgspec.structs.replace(line, line=spelled)

    def _readable(self) -> Iterator[Item]:
        """Read the items of the sample; those that are bad are counted when they are looked at."""
        for line in self.sample:
            try:
                yield whole_item(self.item_line(line).line)
            except BadItem:
                continue

    def _type_of(self, item: Item) -> EntityType:
        return next(found for conditions, found in self._types.items() if holds(conditions, item))


def survey_sample(sample: Sample, on_items: Callable[[int], None] = lambda _: None) -> Survey:
    """Look at the items of a sample. `on_items` is called with how many more were looked at."""
    made = Survey(sample)
    for file in sample.files:
        made.add(file.lines, file.file.items / len(file.lines) if file.lines else 0)
        on_items(len(file.lines))
    return made


def survey_everything(sample: Sample, storage: Storage, on_items: Callable[[int], None]) -> Survey:
    """Look at every item of an export. The sample decides which key and entity types are looked for.

    Files are compared with the manifest as a load does. `on_items` is called with how many more items were read.
    """
    made = Survey(sample)
    made.everything = True
    for file in sample.export.files:
        if file.name in made.unread:
            continue
        stream = FileStream(file, storage)
        number = 0
        try:
            for lines in stream:
                made.add((Line(file.name, n, line) for n, line in enumerate(lines, number + 1)), 1.0)
                number += len(lines)
                on_items(len(lines))
            stream.verify()
        except StorageError as error:
            made.unread[file.name] = str(error)
    return made


def patterns(conditions: Conditions) -> str:
    """Write the conditions of a rule for people: ``PK=CUSTOMER#…, SK=PROFILE``."""
    return (
        ", ".join(
            f"{shown(name)}={text_of(condition)}{'…' if isinstance(condition, Prefix) else ''}"
            for name, condition in conditions
        )
        or "all other items"
    )


def shown(name: str, most: int = 40) -> str:
    """A name as it may stand on a terminal or in a comment: printable, on one line, not too long."""
    printable = "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in name
    )
    return printable if len(printable) <= most else f"{printable[: most - 1]}…"
