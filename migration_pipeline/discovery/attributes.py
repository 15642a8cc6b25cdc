"""Statistics of one attribute's values, gathered item by item in bounded memory, and the types they fit.

The code that loads values decides whether a value fits a type, so that proposals are right.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from migration_pipeline.sources.values import Value, aware, instant, letter_of, number

MAX_DISTINCT = 12
"""Different values of a text attribute up to which it is called enum-like."""

MIN_REPEATS = 3
"""How often values of an enum-like attribute occur, on average, at least."""

CONSTANT = re.compile(r"[a-z0-9]+([_.-][a-z0-9]+)*|[A-Z0-9]+([_.-][A-Z0-9]+)*")
"""A value that looks like a word of a program, not of a person: only such ones of enum-like attributes are shown."""

MAX_CONSTANT = 32
"""Characters of a value that may be shown."""

BOOLEANS = ({"true", "false"}, {"True", "False"}, {"TRUE", "FALSE"}, {"yes", "no"}, {"Y", "N"}, {"0", "1"})
"""Pairs of texts that stand for booleans."""

_NANOSECONDS = re.compile(r"\.[0-9]{7}")

BIGINT = range(-(2**63), 2**63)

EPOCHS = (Decimal(946_684_800), Decimal(2_208_988_800))
"""The years 2000 to 2039 in seconds since 1970: numbers in it may be times, numbers out of it hardly."""

TIME_WORDS = frozenset({
    "at", "on", "time", "times", "timestamp", "ts", "date", "datetime", "epoch", "ttl", "created", "updated",
    "modified", "deleted", "expires", "expire", "expiry", "expiration", "expired", "since", "until", "start",
    "started", "end", "ended", "begin", "last", "first", "seen", "when",
})  # fmt: skip
"""Words in the name of an attribute that make a number a time: an EAN or a phone number has as many digits."""


class Place(msgspec.Struct, frozen=True):
    """Where an example is found."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Fit(msgspec.Struct, frozen=True):
    """A type that took all values that were seen."""

    item: str
    """The annotation in an Item, without ``| None``."""
    row: str
    """The annotation in a Row, without ``| None``."""
    column: str
    """The type in PostgreSQL."""
    note: str = ""
    """What the user has to know or decide; it holds no value except constants."""


FITS = {
    "B": Fit("bytes", "bytes", "bytea"),
    "BOOL": Fit("bool", "bool", "boolean"),
    "SS": Fit("frozenset[str]", "frozenset[str]", "text[]"),
    "BS": Fit("frozenset[bytes]", "frozenset[bytes]", "bytea[]"),
    "M": Fit("dict[str, Any]", "dict[str, Any]", "jsonb"),
    "L": Fit("list[Any]", "list[Any]", "jsonb"),
}
"""DynamoDB types that fit one type, whatever the values are."""


class Attribute:
    """All that is kept of one attribute's values; `add` takes one more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.types = Counter[str]()
        """DynamoDB type -> items that have the attribute in that type."""
        self.examples: dict[str, Place] = {}
        """DynamoDB type -> the first of them."""
        self.nul = 0
        """Items whose value holds U+0000 somewhere."""
        self.nul_example: Place | None = None
        self.stored = 0
        """Bytes of all values as PostgreSQL keeps them in a column of variable length, without the length itself."""
        self.longest = 0
        """Characters of the longest text."""
        self.longest_bytes = 0
        """Bytes of the longest text in UTF-8, or of the longest binary."""
        self.depth = 0
        """Levels of the deepest document; 1 is a document of plain values."""
        self.digits = 0
        """Significant digits of the number that has most."""
        self.decimals = 0
        """Digits behind the point, of the number that has most."""
        self.smallest: Decimal | None = None
        self.greatest: Decimal | None = None
        self.whole = True
        """Whether all numbers, those in sets included, are whole and fit a bigint."""
        self.numeric = True
        """Whether all texts are whole numbers in plain digits."""
        self.earliest: datetime | date | None = None
        self.latest: datetime | date | None = None
        self.without_offset = 0
        """ISO times without an offset."""
        self.distinct: Counter[str] | None = Counter()
        """Texts and how often they came; None when there are more than `MAX_DISTINCT`, or long ones."""
        self._reads = {"uuid", "datetime", "date"}

    @property
    def present(self) -> int:
        """Items that have the attribute and not as NULL."""
        return self.types.total() - self.types["NULL"]

    def add(self, value: Value, plain: Any, place: Place) -> None:
        """Take one more item's value, on the wire and as a Python value."""
        letter = letter_of(value)
        self.types[letter] += 1
        self.stored += stored_bytes(letter, plain)
        self.examples.setdefault(letter, place)
        if letter == "S":
            self._text(plain)
        elif letter == "N":
            self._number(plain)
        elif letter == "NS":
            for each in plain:
                self._whole(each)
        elif letter == "B":
            self.longest_bytes = max(self.longest_bytes, len(plain))
        elif letter in ("M", "L"):
            self.depth = max(self.depth, depth_of(plain))
        if holds_nul(plain):
            self.nul += 1
            self.nul_example = self.nul_example or place

    def _text(self, text: str) -> None:
        self.longest = max(self.longest, len(text))
        self.longest_bytes = max(self.longest_bytes, len(text.encode()))
        if self.distinct is not None:
            self.distinct[text[: MAX_CONSTANT + 1]] += 1
            if len(self.distinct) > MAX_DISTINCT or len(text) > MAX_CONSTANT:
                self.distinct = None
        if self.numeric:
            self.numeric = 0 < len(text) <= 18 and text.isascii() and text.isdecimal()
            if self.numeric:
                self._range(Decimal(text))
        for kind in tuple(self._reads):
            if not getattr(self, f"_is_{kind}")(text):
                self._reads.discard(kind)

    def _number(self, value: Decimal) -> None:
        self._whole(value)
        self._range(value)
        _, digits, exponent = value.as_tuple()
        self.digits = max(self.digits, len(digits))
        self.decimals = max(self.decimals, -int(exponent))

    def _whole(self, value: Decimal) -> None:
        self.whole = (
            self.whole
            and value.adjusted() < 20
            and value == value.to_integral_value()
            and int(value) in BIGINT
        )

    def _range(self, value: Decimal) -> None:
        self.smallest = value if self.smallest is None else min(self.smallest, value)
        self.greatest = value if self.greatest is None else max(self.greatest, value)

    def _is_uuid(self, text: str) -> bool:
        # Only the usual spelling: of another one, the column would give back other characters.
        try:
            return len(text) == 36 and str(UUID(text)) == text
        except ValueError:
            return False

    def _is_datetime(self, text: str) -> bool:
        time = read_datetime(text)
        if time is None:
            return False
        self.without_offset += time.tzinfo is None
        self._span(aware(time))
        return True

    def _is_date(self, text: str) -> bool:
        try:
            day = msgspec.convert(text, date)
        except msgspec.ValidationError:
            return False
        self._span(day)
        return True

    def _span(self, moment: Any) -> None:
        if self.earliest is None or type(self.earliest) is not type(moment):
            self.earliest = self.latest = moment
        self.earliest = min(self.earliest, moment)
        self.latest = max(self.latest, moment)

    # -- what it fits ------------------------------------------------------------------------------

    @property
    def letters(self) -> list[str]:
        """The DynamoDB types of the values, NULL left out, the commonest first."""
        return [letter for letter, _ in self.types.most_common() if letter != "NULL"]

    @property
    def constants(self) -> list[str]:
        """The values of an enum-like text attribute, sorted; none when it is not enum-like, or they look like data."""
        distinct = self.distinct
        if self.letters != ["S"] or not distinct or distinct.total() < MIN_REPEATS * len(distinct):
            return []
        shown = all(len(text) <= MAX_CONSTANT and CONSTANT.fullmatch(text) for text in distinct)
        return sorted(distinct) if shown else []

    @property
    def epoch(self) -> str:
        """``EpochSeconds`` or ``EpochMillis`` when name and numbers look like times, else ""; a guess."""
        if not self._counts() or self.smallest is None or self.greatest is None:
            return ""
        if not TIME_WORDS.intersection(words(self.name)):
            return ""
        for annotation, per_second, decimals in (("EpochSeconds", 1, 6), ("EpochMillis", 1000, 3)):
            # A timestamptz ends at the microsecond; what has more digits would lose some.
            if (
                self.decimals <= decimals
                and EPOCHS[0] * per_second <= self.smallest
                and self.greatest <= EPOCHS[1] * per_second
            ):
                return annotation
        return ""

    @property
    def span(self) -> tuple[datetime | date, datetime | date] | None:
        """The first and the last time of an attribute that fits timestamptz or date."""
        if self.epoch and self.smallest is not None and self.greatest is not None:
            per_second = 1 if self.epoch == "EpochSeconds" else 1000
            return instant(str(self.smallest), per_second), instant(str(self.greatest), per_second)
        if self.letters == ["S"] and self._reads & {"datetime", "date"} and self.earliest and self.latest:
            return self.earliest, self.latest
        return None

    def _counts(self) -> bool:
        return self.letters == ["N"] or (self.letters == ["S"] and self.numeric)

    @property
    def fit(self) -> Fit:
        """Propose the narrowest type that took all values."""
        letters = self.letters
        if not letters:
            return Fit("Any", "Any", "jsonb", "NULL wherever it was seen, so its type is unknown")
        if len(letters) > 1:
            counts = ", ".join(f"{letter} in {self.types[letter]:,}" for letter in letters)
            return Fit(
                "Any", "Any", "jsonb", f"its type differs: {counts} items, e.g. {self._odd_one(letters)}"
            )
        choices = {"S": self._fit_text, "N": self._fit_number, "NS": self._fit_numbers}
        return choices[letters[0]]() if letters[0] in choices else FITS[letters[0]]

    def _odd_one(self, letters: list[str]) -> str:
        return f"{letters[-1]} at {self.examples[letters[-1]]}"

    def _fit_text(self) -> Fit:
        if "uuid" in self._reads:
            return Fit("UUID", "UUID", "uuid")
        if "datetime" in self._reads:
            note = (
                f"{self.without_offset:,} times have no offset and are taken as UTC"
                if self.without_offset
                else ""
            )
            return Fit("datetime", "datetime", "timestamptz", note)
        if "date" in self._reads:
            return Fit("date", "date", "date")
        if self.epoch:
            return self._fit_epoch()
        if self.booleans:
            return Fit("str", "bool", "boolean", f"boolean in text: {' or '.join(self.booleans)}")
        if constants := self.constants:
            return Fit("str", "str", "text", f"few values: {', '.join(constants)}")
        return Fit("str", "str", "text")

    @property
    def booleans(self) -> list[str]:
        """The two texts of an attribute that keeps booleans as text, the true one first."""
        seen = set(self.distinct or ())
        pair = next((pair for pair in BOOLEANS if seen == pair), set())
        return sorted(pair, key=lambda text: text.lower() not in ("true", "yes", "y", "1"))

    def _fit_epoch(self) -> Fit:
        unit = "seconds" if self.epoch == "EpochSeconds" else "milliseconds"
        note = f"taken for {unit} since 1970, by its name and range: a guess"
        return Fit(self.epoch, "datetime", "timestamptz", note)

    def _fit_number(self) -> Fit:
        if self.epoch:
            return self._fit_epoch()
        return Fit("int", "int", "bigint") if self.whole else Fit("Decimal", "Decimal", "numeric")

    def _fit_numbers(self) -> Fit:
        if self.whole:
            return Fit("frozenset[int]", "frozenset[int]", "bigint[]")
        return Fit("frozenset[Decimal]", "frozenset[Decimal]", "numeric[]")


# -- values ----------------------------------------------------------------------------------------


def read_datetime(text: str) -> datetime | None:
    """Read a text as the loader reads a ``datetime``; None when it does not, or would round it."""
    if not (19 <= len(text) <= 32 and text[4] == "-" and text[10] in "Tt ") or _NANOSECONDS.search(text):
        return None
    try:
        return msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return None


def epoch_of(text: str) -> bool:
    """Tell whether a text is a count of seconds or milliseconds since 1970, in the years 2000 to 2039."""
    if not (text.isascii() and text.isdecimal() and len(text) in (9, 10, 12, 13)):
        return False
    seconds = number(text) / (1 if len(text) < 12 else 1000)
    return EPOCHS[0] <= seconds <= EPOCHS[1]


def stored_bytes(letter: str, plain: Any) -> int:
    """Estimate the bytes of a value in a column of variable length of PostgreSQL, without the length itself."""
    if letter == "S":
        return len(plain) if plain.isascii() else len(plain.encode())
    if letter == "N":
        return 2 + 2 * (len(plain.as_tuple().digits) // 4 + 1)
    if letter == "B":
        return len(plain)
    if letter in ("SS", "NS", "BS"):
        return 20 + sum(4 + stored_bytes(letter[0], each) for each in plain)
    return _document_bytes(plain) if letter in ("M", "L") else 0


def _document_bytes(plain: Any) -> int:
    """Estimate a jsonb, or a part of one: four bytes for itself and for each name and value in it, besides their own."""
    if isinstance(plain, dict):
        return 4 + sum(8 + len(name.encode()) + _document_bytes(value) for name, value in plain.items())
    if isinstance(plain, list):
        return 4 + sum(4 + _document_bytes(value) for value in plain)
    if isinstance(plain, str):
        return len(plain.encode())
    return 0 if plain is None or isinstance(plain, bool) else 10


def holds_nul(value: Any) -> bool:
    """Tell whether U+0000 stands in a text, or anywhere in a document, names included."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(map(holds_nul, value)) or any(map(holds_nul, value.values()))
    return isinstance(value, list) and any(map(holds_nul, value))


def depth_of(value: Any) -> int:
    """Count the levels of a document; 0 for a plain value."""
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


def words(name: str) -> list[str]:
    """Split a name into lower-case words: ``createdAt``, ``created_at`` and ``Created-At`` are the same two."""
    spaced = re.sub(r"([a-z0-9])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    return [word.lower() for word in re.split(r"[\W_]+", spaced) if word]
