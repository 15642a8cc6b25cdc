"""Guesses the key of a table, and the entity types that its keys tell apart. An export names neither.

An entity type is what a profile's route takes: conditions on text attributes that must all hold. So what
is found here is a route table, in the order in which its rules are tried.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Union

import msgspec

from migration_pipeline.profile.profile import Prefix
from migration_pipeline.sources.values import Value

Item = Mapping[str, Value]
Text = Union[str, Prefix]  # noqa: UP007  # an alias that Python 3.10 can evaluate
"""A condition that is guessed: of texts alone."""

Conditions = tuple[tuple[str, Text], ...]

MAX_TYPES = 200
"""Entity types told apart; items of further ones are counted together. More are hardly types, but values."""

MAX_CONSTANTS = 20
"""Different words that a key may be, for them to be taken for entity types."""

PARTITION_NAMES = ("pk", "partitionkey", "hashkey", "hash", "partition", "id")
SORT_NAMES = ("sk", "sortkey", "rangekey", "range", "sort")
TYPE_NAMES = (
    "entitytype", "edbe", "et", "itemtype", "recordtype", "objecttype", "typename", "doctype", "modeltype", "entity",
)  # fmt: skip
"""Names of attributes that say which entity type an item is, without case and punctuation."""

LOOSE_TYPE_NAMES = ("type", "kind", "model")
"""Names that may say it, too, and often say something else: a kind of event, say."""

HEAD = re.compile(r"([A-Za-z][A-Za-z0-9_.\-]{0,40}[#:|/])")
"""A text that begins with a word and a separator, as single-table designs name entity types: ``CUSTOMER#``."""

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,40}")
"""A text that is one word: ``PROFILE``."""

UPPER = re.compile(r"[A-Z][A-Z0-9_.\-]*[#:|/]?")

MAX_CANDIDATES = 8
"""Attributes of which combinations are tried for a key."""


class Key(msgspec.Struct, frozen=True):
    """The attributes guessed to be the table's key, and why."""

    attributes: tuple[str, ...]
    """Partition key, and sort key if there is one; none when nothing could be guessed."""
    reason: str

    @property
    def partition(self) -> str | None:
        """The partition key's attribute."""
        return self.attributes[0] if self.attributes else None

    @property
    def sort(self) -> str | None:
        """The sort key's attribute, if there is one."""
        return self.attributes[1] if len(self.attributes) > 1 else None


# -- the key ---------------------------------------------------------------------------------------


def guess_key(items: Sequence[Item], known: Sequence[str] = ()) -> Key:
    """Guess the key: attributes of one type (S, N or B) that all items have, and no two items have alike.

    `known` are the attributes of the key where the export names them, as a window does.
    """
    if known and all(item.keys() >= set(known) for item in items):
        return Key(
            tuple(sorted(known, key=lambda name: (_rank(name), name))),
            "named by the window's records, which do not tell their order",
        )
    candidates = _candidates(items)
    if not candidates:
        return Key((), "no attribute is there in all sampled items with one of the types S, N and B")
    partition, sort = _named(candidates, PARTITION_NAMES[:-1]), _named(candidates, SORT_NAMES)
    tried: list[tuple[str, ...]] = [(partition, sort)] if partition and sort else []
    tried += [(partition,)] if partition else []
    tried += [(name,) for name in candidates]
    tried += [(one, other) for one in candidates for other in candidates if one != other]
    for attributes in tried:
        if _unique(items, attributes):
            named = {partition, sort} >= set(attributes)
            return Key(attributes, _reason(attributes, named, len(items)))
    return Key(
        tuple(candidates[:2]),
        "in all sampled items, but some of them have the same values: a key that tells them apart was not found",
    )


def _reason(attributes: tuple[str, ...], named: bool, items: int) -> str:
    many = len(attributes) > 1
    why = f"in all sampled items, and no two of {items:,} have the same"
    return f"{'named as keys are, ' if named else ''}{why}{' pair' if many else ''}"


def _candidates(items: Sequence[Item]) -> list[str]:
    """The attributes that may be part of the key, the likeliest first."""
    if not items:
        return []
    common = {name: letter for name, value in items[0].items() if (letter := _type(value))}
    for item in items:  # one after the other, as items may have thousands of attributes
        common = {
            name: letter
            for name, letter in common.items()
            if (value := item.get(name)) is not None and _type(value) == letter
        }
    ranked = sorted(common, key=lambda name: (_rank(name), len(name), name))
    return ranked[:MAX_CANDIDATES]


def _type(value: Value) -> str:
    return next((letter for letter in "SNB" if getattr(value, letter) is not msgspec.UNSET), "")


def _rank(name: str) -> int:
    bare = _bare(name)
    if bare in PARTITION_NAMES:
        return 0
    if bare in SORT_NAMES:
        return 1
    return 2 if bare.endswith(("id", "key", "uuid")) else 3


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()


def _named(candidates: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for wanted in names for name in candidates if _bare(name) == wanted), None)


def _unique(items: Sequence[Item], attributes: Sequence[str]) -> bool:
    seen = {tuple(key_value(item[name]) for name in attributes) for item in items}
    return len(seen) == len(items)


def key_value(value: Value) -> str | bytes:
    """The value of a key attribute, as it is on the wire."""
    return next((each for each in (value.S, value.N, value.B) if not isinstance(each, msgspec.UnsetType)), "")


# -- entity types ----------------------------------------------------------------------------------


def guess_types(items: Sequence[Item], key: Key) -> list[Conditions]:
    """Guess the rules that tell entity types apart, in the order in which they are tried.

    The last has no condition and takes what no other does, if some of the items need it.
    """
    keys = filter(declarable, key.attributes)
    marks = [mark for name in keys if (mark := _key_marks(items, name))]
    by_type = _type_marks(items, marks)
    counts = Counter[Conditions]()
    for item in items:
        told = by_type(item) if by_type else ()
        counts[told or tuple(condition for mark in marks for condition in mark(item))] += 1
    kept = [conditions for conditions, _ in counts.most_common(MAX_TYPES)]
    if len(counts) > len(kept) and () not in kept:
        kept.append(())
    return sorted(kept, key=_specific_first)


def _specific_first(conditions: Conditions) -> tuple[object, ...]:
    exact = sum(isinstance(condition, str) for _, condition in conditions)
    texts = [(name, text_of(condition)) for name, condition in conditions]
    return (-len(conditions), -exact, texts)


def text_of(condition: Text) -> str:
    """The text that a condition compares with."""
    return condition.text if isinstance(condition, Prefix) else condition


def text_in(item: Item, name: str) -> str:
    """The text of an attribute, as routes see it: "" when it is missing or no text."""
    value = item.get(name)
    return value.S if value is not None and isinstance(value.S, str) else ""


def holds(conditions: Conditions, item: Item) -> bool:
    """Tell whether a rule takes an item, as a profile's route table would."""
    return all(
        text_in(item, name).startswith(condition.text)
        if isinstance(condition, Prefix)
        else text_in(item, name) == condition
        for name, condition in conditions
    )


def declarable(name: str) -> bool:
    """Tell whether an Item or a route may name an attribute: msgspec takes no quotes, backslashes or control characters."""
    return re.search(r'["\\\x00-\x1f]', name) is None


Mark = Callable[[Item], Conditions]
"""Gives the condition that an item's attribute meets if that names an entity type, else nothing."""


def _key_marks(items: Sequence[Item], name: str) -> Mark | None:
    """Find the prefixes and words of a key attribute that name entity types."""
    texts = [text for item in items if (text := text_in(item, name))]
    heads = Counter(found[1] for text in texts if (found := HEAD.match(text)))
    prefixes = set(_telling(heads))
    rest = Counter(text for text in texts if not _head_in(text, prefixes) and WORD.fullmatch(text))
    repeated = {text: count for text, count in rest.items() if count > 1}
    # A word that comes once names a thing, not a type. Many words are names, too: of people, countries, days.
    telling = len(repeated) <= MAX_CONSTANTS and sum(repeated.values()) * 2 >= rest.total() > 0
    constants = set(repeated) if telling else set()
    if not prefixes and not constants:
        return None

    def mark(item: Item) -> Conditions:
        text = text_in(item, name)
        if text in constants:
            return ((name, text),)
        head = _head_in(text, prefixes)
        return ((name, Prefix(head)),) if head else ()

    return mark


def _head_in(text: str, prefixes: set[str]) -> str:
    found = HEAD.match(text)
    return found[1] if found and found[1] in prefixes else ""


def _telling(heads: Counter[str]) -> list[str]:
    """Keep the heads that name types: those in capitals, and others that come again and again.

    Where each item has a head of its own, heads are values: ``SMITH#1``.
    """
    items = heads.total()
    if items >= 20 and len(heads) * 2 > items:
        return []
    few = max(2, items // 1000)
    return [head for head, count in heads.items() if UPPER.fullmatch(head) or count >= few]


def _type_marks(items: Sequence[Item], marks: Sequence[Mark]) -> Mark | None:
    """Find an attribute that says which entity type an item is."""
    names = Counter(name for item in items for name, value in item.items() if isinstance(value.S, str))
    for name in sorted(names, key=_bare):
        if (
            declarable(name)
            and _bare(name) in TYPE_NAMES + LOOSE_TYPE_NAMES
            and names[name] * 10 >= len(items) * 9
        ):
            values = Counter(text_in(item, name) for item in items)
            words = {text for text in values if WORD.fullmatch(text)}
            few = 1 < len(words) <= MAX_TYPES and len(words) * 2 <= len(items)
            if few and (_bare(name) in TYPE_NAMES or _agrees(items, marks, name)):

                def mark(item: Item, name: str = name, words: set[str] = words) -> Conditions:
                    text = text_in(item, name)
                    return ((name, text),) if text in words else ()

                return mark
    return None


def _agrees(items: Sequence[Item], marks: Sequence[Mark], name: str) -> bool:
    """Tell whether the values of an attribute split the items as their keys do; keys that tell nothing agree."""
    if not marks:
        return True
    pairs = {
        (text_in(item, name), tuple(condition for mark in marks for condition in mark(item)))
        for item in items
    }
    return len(pairs) == len({value for value, _ in pairs}) == len({keys for _, keys in pairs})
