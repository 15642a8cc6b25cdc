"""Compiles a profile to a function from lines to rows: route, decode, transform. Nothing here does I/O."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import compress, repeat
from typing import Any, Protocol

import msgspec

from migration_pipeline.block import Lines
from migration_pipeline.engine.patterns import count_pattern, key_pattern
from migration_pipeline.errors import BadItem
from migration_pipeline.generated import generated
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Condition, Prefix, Profile, Rule, wire_type
from migration_pipeline.profile.row import Row

UNROUTED = "unrouted"
"""The reason under which items that no rule takes are counted."""

BESIDE_FAILED = "in a list with an item that failed"
"""Why Python reads lines that C may understand: to find the one that failed."""


class Decoder(Protocol):
    """Reads lines: to the items of a class, or to a tuple of their routing attributes."""

    def __call__(self, line: bytes) -> Any:
        """Read one line. Raises `BadItem` with the reason."""

    def many(self, lines: Sequence[bytes]) -> Iterable[Any]:
        """Read many lines; raises any exception when one of them is bad."""


class Dialect(Protocol):
    """How lines are read: a module for each format, of which `migration_pipeline.sources.dialects` gives the one of an export."""

    def keys_decoder(self, attributes: Sequence[str], typed: Collection[str]) -> Decoder:
        """Compile the reader of the routing attributes: a str for each, or "" for none; of those in `typed` a Decimal or bool, too."""

    def wire_types(self, line: bytes, attributes: Iterable[str]) -> dict[str, str]:
        """Tell the DynamoDB types of some attributes of a line; those that it lacks are left out."""

    def item_decoder(self, item_class: type[Item], known: Sequence[str]) -> Any:
        """Compile the reader of a typed item, a `Decoder`."""

    def line_reader(
        self,
        rules: Sequence[Rule],
        attributes: Sequence[str],
        typed: Collection[str],
        decoders: Mapping[type[Item], Any],
        which: Callable[[tuple[Any, ...]], int],
    ) -> Callable[[Sequence[bytes], Sequence[int]], tuple[Any, ...]] | None:
        """Compile what does in C all that `compile_rules` and the decoders do; None where it is not there.

        `which` tells the number of the rule that takes an item, from its routing attributes, where C does not read the line. It
        gives what the function of `compile_rules` gives, but blocks of a block's lines, and lines alone for those that no rule takes; then the items for each rule,
        the bad lines (number, line, `BadItem`, and the rule that takes it or -1), and how many lines Python read, by reason.
        """


class Bad(msgspec.Struct, frozen=True):
    """An item that becomes no row, and why: what goes to the quarantine."""

    number: int
    """Its line in the file, from 1."""
    line: bytes
    reason: str
    """In words that hold no values of items."""
    table: str | None = None
    sqlstate: str | None = None


class Outcome:
    """The result of transforming lines: rows by table, and counts of the items that became none."""

    def __init__(self, row_classes: Iterable[type[Row]]) -> None:
        self.rows: dict[type[Row], list[Row]] = {row_class: [] for row_class in row_classes}
        self.numbers = array("q")
        """Line numbers of the items that a route took; `lines` are their lines, in the same order."""
        self.lines = Lines()
        self.bad: list[Bad] = []
        self.counts = Counts()

    @property
    def all_rows(self) -> list[Row]:
        """The rows of all tables, those of one table together."""
        return [row for rows in self.rows.values() for row in rows]

    def add(self, other: Outcome) -> None:
        """Add the outcome of other lines."""
        for row_class, rows in other.rows.items():
            self.rows[row_class] += rows
        self.numbers.extend(other.numbers)
        self.lines += other.lines
        self.bad += other.bad
        self.counts.add(other.counts)


class Counts:
    """Counts of items by outcome."""

    def __init__(self) -> None:
        self.loaded = 0
        self.ignored = Counter[str]()
        """Items by the reason of the ignore that took them."""
        self.empty = Counter[str]()
        """Items by the route that made no row of them."""
        self.unrouted = Counter[str]()
        """Items that no rule took, by the pattern of their keys."""
        self.superseded: list[Any] = []
        """Digests of items of which a newer state is known."""
        self.accelerated = 0
        """Lines that were read in C."""
        self.odd = Counter[str]()
        """Lines that C handed to Python, by reason."""

    def add(self, other: Counts) -> None:
        """Count other items, too."""
        self.loaded += other.loaded
        self.ignored.update(other.ignored)
        self.empty.update(other.empty)
        self.superseded += other.superseded
        self.accelerated += other.accelerated
        self.odd.update(other.odd)
        for pattern, count in other.unrouted.items():
            count_pattern(self.unrouted, pattern, count)

    @property
    def skipped(self) -> dict[str, int]:
        """Items that became no row because the profile says so, by reason."""
        skipped = Counter(self.ignored)
        for route, count in self.empty.items():
            skipped[f"{route}: no row"] += count
        if self.unrouted:
            skipped[UNROUTED] = sum(self.unrouted.values())
        return dict(sorted(skipped.items()))


class Transform:
    """A compiled profile: a function from lines to an `Outcome`."""

    outcome_class: type[Outcome] = Outcome
    newer: Callable[[bytes], Any] | None = None
    """Gives the digest of a line's item if a newer state of it is known, which a window has told; else None."""

    def __init__(self, profile: Profile, dialect: Dialect, options: Options | None = None) -> None:
        if options is None and profile.options_class is not None:
            options = profile.options_class()
        self.rules = list(profile.rules)
        self.row_classes = list(profile.row_classes)
        self.attributes = profile.routing_attributes
        typed = {name for name in self.attributes if profile.wire_types(name) - {"S"}}
        self.read_keys = dialect.keys_decoder(self.attributes, typed)
        self._wire_types = dialect.wire_types
        self.sort = compile_rules(self.rules, self.attributes)
        decoders = {
            rule.item_class: dialect.item_decoder(rule.item_class, self.attributes)
            for rule in self.rules
            if rule.item_class
        }
        self._read = dialect.line_reader(self.rules, self.attributes, typed, decoders, self._which)
        # After the item, a route that asks for them is given the options.
        self._routes = [
            (number, decoders[rule.item_class], rule.function, (options,) if rule.options_class else ())
            for number, rule in enumerate(self.rules)
            if rule.item_class and rule.function
        ]

    def __call__(self, lines: Sequence[bytes], first: int = 1) -> Outcome:
        """Turn lines, numbered from `first`, into rows, whatever is wrong with some of them."""
        return self.numbered(lines, range(first, first + len(lines)))

    def numbered(self, lines: Sequence[bytes], numbers: Sequence[int]) -> Outcome:
        """Turn lines of any numbers into rows: all at once, or one by one where that fails, to find the bad ones."""
        try:
            return self._all(lines, numbers)
        except Exception:  # what it was is found below, with its line
            outcome = self.outcome_class(self.row_classes)
            for line, number in zip(lines, numbers, strict=True):
                try:
                    outcome.add(self.one(line, number))
                except BadItem as error:
                    outcome.bad.append(Bad(number, line, str(error)))
            outcome.counts.accelerated, outcome.counts.odd = 0, Counter[str]()
            if self._read:
                outcome.counts.odd[BESIDE_FAILED] = len(lines)
            return outcome

    def without_rows(self, line: bytes, number: int) -> Outcome:
        """Turn a line whose rows cannot be written into what is left of it: nothing, of a full export."""
        return self.outcome_class(self.row_classes)

    def _all(self, lines: Sequence[bytes], numbers: Sequence[int]) -> Outcome:
        """Turn lines into rows. Raises any exception if a route fails or, read in Python, a line is bad; `one` tells which and why.

        This is the hot path: a loop in C for each step over all lines of a kind, and no Python code a line
        other than the route table, the generated decoders and the profile's own functions.
        """
        outcome = self.outcome_class(self.row_classes)
        items: list[list[Any]] = []
        if self._read:
            taken, places, counts, lines_unrouted, items, bad, odd = self._read(lines, numbers)
            unrouted = [(line, self.read_keys(line)) for line in lines_unrouted]
            self._note_bad(bad, outcome)
            outcome.counts.accelerated = len(lines) - sum(odd.values())
            outcome.counts.odd.update(odd)
        else:
            taken, places, counts, unrouted = self.sort(numbers, lines, self.read_keys.many(lines))
        if self.newer:
            self._leave_out(taken, places, items, outcome)
        for route, decoder, function, more in self._routes:
            if taken[route]:
                made = items[route] if items else decoder.many(taken[route])
                results = list(map(function, made, *map(repeat, more)))
                self._collect(route, results, outcome, places[route])
                outcome.lines += taken[route]
                outcome.numbers.extend(places[route])
        for rule, count in enumerate(counts):
            if count:
                outcome.counts.ignored[self.rules[rule].reason] += count
        for line, keys in unrouted:
            types: dict[str, str] = {}
            if True in keys or not all(keys):
                # What is no text may be there as another type, which no rule takes.
                odd = [
                    name for name, key in zip(self.attributes, keys, strict=False) if not key or key is True
                ]
                types = self._wire_types(line, odd) if odd else {}
            count_pattern(outcome.counts.unrouted, key_pattern(self.attributes, keys, types))
        return outcome

    def one(self, line: bytes, number: int = 1) -> Outcome:
        """Turn a single line into rows. Raises `BadItem`; an exception of the profile becomes one, too."""
        outcome = self.outcome_class(self.row_classes)
        taken, places, *_ = self.sort([number], [line], [self.read_keys(line)])
        if self.newer:
            self._leave_out(taken, places, [], outcome)
            if outcome.counts.superseded:
                return outcome
        for route, decoder, function, more in self._routes:
            if taken[route]:
                item = decoder(line)
                try:
                    result = function(item, *more)
                except Exception as error:
                    raise BadItem(f"route {function.__name__} failed: {describe(error, function)}") from error
                self._collect(route, [result], outcome, [number])
                outcome.lines.append(line)
                outcome.numbers.append(number)
                return outcome
        return self._all([line], [number])

    def _which(self, keys: tuple[Any, ...]) -> int:
        """Tell the number of the rule that takes an item of these routing attributes; the number of rules for none."""
        taken, _, counts, _ = self.sort([1], [b""], [keys])
        return next((n for n in range(len(self.rules)) if taken[n] or counts[n]), len(self.rules))

    def _note_bad(self, bad: Iterable[tuple[int, bytes, BadItem, int]], outcome: Outcome) -> None:
        """Note the bad lines; not those of items that a route takes and of which newer states are known."""
        for number, line, error, rule in bad:
            if rule >= 0 and self.newer and (digest := self.newer(line)):
                outcome.counts.superseded.append(digest)
            else:
                outcome.bad.append(Bad(number, line, str(error)))

    def _leave_out(
        self, taken: list[Any], places: list[list[int]], items: list[list[Any]], outcome: Outcome
    ) -> None:
        """Leave the lines out, with the items made of them, of whose items newer states are known."""
        for route, lines in enumerate(taken):
            if lines and self.newer:
                found = list(map(self.newer, lines))
                if any(found):
                    keep = [not digest for digest in found]
                    lists: tuple[list[Any], ...] = (taken, places, items)
                    for each in lists:
                        if each:
                            each[route] = list(compress(each[route], keep))
                    outcome.counts.superseded += filter(None, found)

    def _collect(self, route: int, results: list[Any], outcome: Outcome, _numbers: Sequence[int]) -> None:
        """Add what a route returned for some items: a row each, or None, or several rows."""
        kinds = set(map(type, results))
        if len(kinds) == 1 and (kind := kinds.pop()) in outcome.rows:
            outcome.rows[kind] += results
            outcome.counts.loaded += len(results)
            return
        for result in results:
            rows = self._rows_of(route, result)
            for row in rows:
                outcome.rows[row.__class__].append(row)
            if rows:
                outcome.counts.loaded += 1
            else:
                outcome.counts.empty[self.rules[route].reason] += 1

    def _rows_of(self, number: int, result: Any) -> list[Row]:
        """Check what a route returned for one item. Raises `BadItem` for anything but rows that it names."""
        if result is None:
            return []
        rows = list(result) if isinstance(result, (list, tuple)) else [result]
        for row in rows:
            if row.__class__ not in self.row_classes:
                raise BadItem(
                    f"route {self.rules[number].reason} returned a {type(row).__name__}, which its annotation does not name"
                )
        return rows


Sorted = tuple[list[list[bytes]], list[list[int]], list[int], list[tuple[bytes, tuple[Any, ...]]]]


def compile_rules(
    rules: Sequence[Rule], attributes: Sequence[str]
) -> Callable[[Iterable[int], Iterable[bytes], Iterable[tuple[Any, ...]]], Sorted]:
    """Generate one function for the whole route table: a chain of comparisons a line, first match first.

    The function takes lines with their numbers and routing attributes. It gives a list of lines and one of
    numbers for each rule with a function, a count for each without, and the lines that no rule takes with their
    attributes.
    """
    slot = {name: f"k[{index}]" for index, name in enumerate(attributes)}
    tests: list[str] = []
    names: dict[str, Any] = {"Decimal": Decimal}
    mixed = {name for rule in rules for name, c in rule.conditions if wire_type(c) != "S"}
    for number, rule in enumerate(rules):
        conditions = []
        for name, condition in rule.conditions:
            constant = f"c{len(names)}"
            names[constant], test = _comparison(slot[name], condition, constant, name in mixed)
            conditions.append(test)
        taking = f"taken[{number}].append(line); places[{number}].append(n)"
        action = taking if rule.function else f"counts[{number}] += 1"
        tests.append(f"if {' and '.join(conditions) or 'True'}: {action}")
    chain = "\n        el".join([*tests, "se: unrouted.append((line, k))"])
    source = (
        "def sort(numbers, lines, keys):\n"
        f"    taken, places = [[] for _ in range({len(rules)})], [[] for _ in range({len(rules)})]\n"
        f"    counts, unrouted = [0] * {len(rules)}, []\n"
        "    for n, line, k in zip(numbers, lines, keys):\n"
        f"        {chain}\n"
        "    return taken, places, counts, unrouted\n"
    )
    return generated("sort", source, "route table", names)  # type: ignore[no-any-return]


def _comparison(value: str, condition: Condition, constant: str, mixed: bool) -> tuple[Any, str]:
    """Return what a condition compares with, and the comparison; the value of a `mixed` attribute need not be a text."""
    if isinstance(condition, Prefix):
        text = f"{value}.__class__ is str and " if mixed else ""
        return condition.text, f"{text}{value}.startswith({constant})"
    if isinstance(condition, bool):  # True == 1 in Python
        return condition, f"{value} is {condition}"
    if isinstance(condition, (int, Decimal)):
        return Decimal(condition), f"{value}.__class__ is Decimal and {value} == {constant}"
    return condition, f"{value} == {constant}"


def describe(error: BaseException, function: Callable[..., Any]) -> str:
    """Name an exception of a profile's function and its place, without its text, which may echo a value."""
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == function.__code__.co_filename:
            place = f" at {function.__module__}:{traceback.tb_lineno}"
        traceback = traceback.tb_next
    return f"{type(error).__name__}{place}"
