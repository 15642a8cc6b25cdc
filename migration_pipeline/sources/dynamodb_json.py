"""Reads a line of an export in DynamoDB JSON: the routing attributes of any item, all of a wanted one.

An `Item` class is compiled once to a typed msgspec decoder for the *wire* form (``{"S": "…"}``,
``{"N": "12"}``) and to a generated function that makes the Item from it. Decoding and type checks run
in C; the generated function holds one expression a field, and no loop over fields.

The page on the export's output format in the DynamoDB developer guide describes the lines.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import msgspec
from msgspec import UNSET, UnsetType, defstruct

from migration_pipeline import accelerator
from migration_pipeline.errors import BadItem
from migration_pipeline.generated import generated
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Rule
from migration_pipeline.sources.fields import NAMES, REST, braces_of_members, field_of, objects
from migration_pipeline.sources.lines import Read, reader
from migration_pipeline.sources.twins import Pairs, TwinsError, passes_over, refuse_twins
from migration_pipeline.sources.values import Value, document, number

ItemType = TypeVar("ItemType", bound=Item)

Steps = tuple[Callable[[bytes], Any], Callable[[Any, bytes], ItemType]]

AnyValue: Any = msgspec.Raw | UnsetType
"""An attribute that is not read, and whose objects are counted."""

OneObject: Any = Annotated[dict[str, msgspec.Raw], msgspec.Meta(min_length=1)] | UnsetType
"""An attribute that is not read, and that is one object, as `objects` counts."""


class ItemDecoder(Generic[ItemType]):
    """A compiled `Item` class: a function from a line to an item.

    Calling it raises `BadItem` with a reason that names the attribute, never its value.

    `known` are attributes that items of the table have besides those of the class, such as the keys. Others
    that turn up are learned, so that unread attributes cost almost nothing.
    """

    def __init__(self, item_class: type[ItemType], known: Sequence[str] = ()) -> None:
        hints = get_type_hints(item_class, include_extras=True)
        infos = msgspec.structs.fields(item_class)
        self._item_class = item_class
        self.fields = [field_of(item_class, n, info, hints[info.name]) for n, info in enumerate(infos)]
        self._attributes = {field.attribute for field in self.fields if field.attribute is not None}
        self._names = dict(NAMES, Item=item_class, suspect=self._suspect, whole=whole, rest=self._rest)
        for field in self.fields:
            self._names |= field.constants
        self._has_rest = any(field.expression == REST for field in self.fields)
        others = () if self._has_rest else known
        self._passed_over = {name: False for name in others if name not in self._attributes}
        """Attributes that are not read, and whether their values may have objects inside."""
        self._learning = threading.Lock()
        self._first_steps = self._compile({})
        """From the line to its wire form, and from both to the item."""
        self._steps = self._compile(self._passed_over)
        """The same, but they know what is passed over. They refuse some lines that the first ones read, and no others."""

    def __call__(self, line: bytes) -> ItemType:
        """Read a line. Raises `BadItem`."""
        decode, make = self._first_steps
        try:
            return make(decode(line), line)
        except BadItem:
            raise
        except Exception as error:
            raise BadItem(self._reason(error, line)) from None

    def many(self, lines: Sequence[bytes]) -> Iterator[ItemType]:
        """Read many lines, lazily.

        Raises any exception when one of them is bad, or odd; a call for each tells. An Item may have
        code of its own (``__post_init__``), so there is no telling what it is.
        """
        decode, make = self._steps
        return map(make, map(decode, lines), lines)

    def _compile(self, passed_over: dict[str, bool]) -> Steps[ItemType]:
        others = list(passed_over.items())
        members = [field.member for field in self.fields if field.member] + [
            (f"x{n}", AnyValue if nested else OneObject, msgspec.field(name=name, default=UNSET))
            for n, (name, nested) in enumerate(others)
        ]
        source = self._source([nested for _, nested in others])
        label = f"decoder of {self._item_class.__name__}"
        make = generated("make", source, label, dict(self._names))
        return msgspec.json.Decoder(_envelope(members)).decode, make

    def _source(self, others: Sequence[bool]) -> str:
        """Write the function that makes an item of its wire form, one expression a field.

        JSON decoders keep the last of two members of one name, silently. So the objects on the line are
        counted: each attribute is spelled as one, plus those inside documents. If there are no more of them
        than the attributes that were read account for, nothing was passed over. An object that is not empty
        begins with {"; inside of a text that would be {\\".
        """
        spelled = [field.braces for field in self.fields] + [
            f"objects(w.x{n})" if nested else f"(w.x{n} is not UNSET)" for n, nested in enumerate(others)
        ]
        constant = 2 + spelled.count("1")  # the line's own object and the Item
        total = " + ".join([str(constant), *(each for each in spelled if each not in ("0", "1"))]) + " - m"
        if self._has_rest:
            return self._source_with_rest(total)
        values = ", ".join(f"({field.expression})" for field in self.fields)
        # One character is counted in half the time of two, and is nearly always enough.
        return (
            "def make(w, line):\n"
            "    w, m = w.Item, 0\n"
            f"    item = Item({values})\n"
            f"    if line.count(b'{{') != (total := {total}) and line.count(b'{{\"') != total: suspect(line)\n"
            "    return item\n"
        )

    def _source_with_rest(self, total: str) -> str:
        """Write the function for a class that reads all attributes: nothing is passed over, so nothing is learned."""
        read = [(f"v{n}", field.expression) for n, field in enumerate(self.fields)]
        lines = [f"    {name} = {expression}\n" for name, expression in read if expression != REST]
        values = ", ".join("others" if expression == REST else name for name, expression in read)
        return (
            "def make(w, line):\n"
            "    w, m = w.Item, 0\n"
            f"{''.join(lines)}"
            f"    others = {{}} if line.count(b'{{') == (total := {total}) else rest(line, total)\n"
            f"    return Item({values})\n"
        )

    def _rest(self, line: bytes, total: int) -> dict[str, Any]:
        """Read the attributes that no field names; those that fields do are spelled with `total` objects.

        Raises `BadItem` as `whole` does, and `TwinsError`.
        """
        try:
            item = _decode_raw(line).Item
            others = {
                name: _decode_value(value) for name, value in item.items() if name not in self._attributes
            }
            if line.count(b'{"') != total + (braces_of_members(others) - 2 if others else 0):
                json.loads(line, object_pairs_hook=refuse_twins)
        except TwinsError:
            raise
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadItem(_line_reason(error)) from None
        return _plain_item(others)

    def _suspect(self, line: bytes) -> None:
        """Look closer at a line with objects unaccounted for: attributes that nobody reads, or twins.

        Whether it is refused depends on the line alone, and not on what was learned.
        """
        self._learn(line)
        text = line.decode("utf-8", "surrogateescape")  # what nobody reads need not be UTF-8
        numbers: dict[str, Any] = dict.fromkeys(("parse_int", "parse_float", "parse_constant"), str)
        try:
            pairs = json.loads(text, object_pairs_hook=Pairs, strict=False, **numbers)
        except (ValueError, RecursionError):
            return  # what is wrong with it is in nothing that is read
        items = Pairs(pair for pair in pairs if pair[0] == "Item")
        read = Pairs(pair for pair in items[-1][1] if pair[0] in self._attributes)
        if passes_over(Pairs([*items[:-1], ("Item", read)])):
            raise TwinsError

    def _learn(self, line: bytes) -> None:
        """Account for the attributes of this line from the next list of lines on."""
        try:
            found = _decode_raw(line).Item
        except (msgspec.MsgspecError, ValueError):
            return  # what is wrong with it is in no attribute that is read
        with self._learning:  # the thread that writes decodes, too
            before = self._passed_over
            others = {
                name: before.get(name, False) or objects(raw) != 1
                for name, raw in found.items()
                if name not in self._attributes and _DECLARABLE.fullmatch(name)
            }
            after = before | others
            if after != before and len(after) <= MAX_PASSED_OVER:
                self._passed_over = after
                self._steps = self._compile(after)

    def _reason(self, error: Exception, line: bytes) -> str:
        """Say which attribute is at fault; conversions in the generated function do not know their field."""
        if isinstance(error, (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)):
            return _line_reason(error)
        if isinstance(error, TwinsError):
            return "an attribute name occurs twice"
        wire = self._first_steps[0](line).Item
        for field in self.fields:
            try:
                eval(field.careful, dict(self._names), {"w": wire, "m": 0, "line": line})  # noqa: S307  # the generated source itself
            except (ValueError, ArithmeticError) as cause:
                return f"attribute {field.attribute!r} {cause}"
        # It comes from the class's own code, and its text may echo a value.
        return f"its Item cannot be made: {type(error).__name__}"


item_decoder = ItemDecoder


def line_reader(
    rules: Sequence[Rule],
    attributes: Sequence[str],
    typed: Collection[str],
    decoders: Mapping[type[Item], ItemDecoder[Any]],
    which: Callable[[tuple[Any, ...]], int],
) -> Read | None:
    """Compile the accelerated reader of a profile's lines; None where there is no accelerator. See `lines.reader`.

    `which` tells the number of the rule that takes an item, from its routing attributes.
    """
    extension = accelerator.extension(accelerator.LINES)
    keys = KeysDecoder(attributes, typed)
    return extension and reader(extension, rules, attributes, typed, decoders, lambda line: which(keys(line)))


MAX_PASSED_OVER = 100
"""Unread attributes that a decoder learns. An item with others takes three times as long."""

_DECLARABLE = re.compile(r'[^"\\\x00-\x1f]*')
"""Names that msgspec takes for a member of a struct."""


class _RawLine(msgspec.Struct, frozen=True, gc=False):
    """A line with the names of its attributes, and their values unread."""

    Item: dict[str, msgspec.Raw]


_decode_value = msgspec.json.Decoder(Value).decode
_decode_raw = msgspec.json.Decoder(_RawLine).decode


class KeysDecoder:
    """Reads the values of some attributes of a line: texts; "" where it has none.

    Of those in `typed`, numbers (as Decimal) and booleans are read, too. Everything else on the line is skipped over, not
    decoded. Calling it raises `BadItem`; `many` raises any exception when one of its lines is bad.
    """

    def __init__(self, attributes: Sequence[str], typed: Collection[str] = ()) -> None:
        self._kinds = [_Typed if name in typed else _Text for name in attributes]
        members = [
            (f"f{n}", kind, msgspec.field(name=name, default=kind()))
            for n, (name, kind) in enumerate(zip(attributes, self._kinds, strict=True))
        ]
        self._decode = msgspec.json.Decoder(_envelope(members)).decode
        paths = [f"Item.f{n}" + (".S" if kind is _Text else "") for n, kind in enumerate(self._kinds)]
        # The last path is repeated, so that attrgetter makes a tuple of a single attribute, too.
        read: Callable[[Any], tuple[Any, ...]] = attrgetter(*paths, paths[-1]) if paths else lambda _: ()
        self._values = (lambda line: tuple(map(_typed, read(line)))) if _Typed in self._kinds else read

    def __call__(self, line: bytes) -> tuple[Any, ...]:
        """Read one line. Raises `BadItem`."""
        try:
            return self._values(self._decode(line))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise BadItem(_line_reason(error)) from None

    def many(self, lines: Iterable[bytes]) -> Iterator[tuple[Any, ...]]:
        """Read many lines, lazily and, where all are texts, in C."""
        if not self._kinds:
            return (() for _ in lines)  # whoever takes the items will see what is wrong with them
        return map(self._values, map(self._decode, lines))


class _Text(msgspec.Struct, frozen=True, gc=False):
    """A routing attribute, of which nothing but a text counts."""

    S: str = ""


class _Typed(msgspec.Struct, frozen=True, gc=False):
    """A routing attribute that a rule compares with a number or a boolean."""

    S: str | UnsetType = UNSET
    N: str | UnsetType = UNSET
    BOOL: bool | UnsetType = UNSET


def _typed(value: str | _Typed) -> str | Decimal | bool:
    """The value of an attribute that is a text, a number or a boolean; "" of any other."""
    if isinstance(value, str):
        return value
    if value.S is not UNSET:
        return value.S
    if value.N is not UNSET:
        return number(value.N)
    return "" if value.BOOL is UNSET else value.BOOL


def wire_types(line: bytes, attributes: Iterable[str]) -> dict[str, str]:
    """Tell the DynamoDB types of some attributes of a line: ``{"kind": "N"}``; those that it lacks are left out."""
    try:
        found = _decode_raw(line).Item
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    types = {}
    for name in attributes:
        if name in found and (letters := _TYPE.match(bytes(found[name]))):
            types[name] = letters[1].decode()
    return types


_TYPE = re.compile(rb'\s*\{\s*"(S|N|B|BOOL|NULL|M|L|SS|NS|BS)"\s*:')


keys_decoder = KeysDecoder


def _envelope(members: Sequence[tuple[Any, ...]]) -> Any:
    item = defstruct("Item", members, frozen=True, gc=False, kw_only=True)
    return defstruct("Line", [("Item", item)], frozen=True, gc=False)


class _AnyLine(msgspec.Struct, frozen=True, gc=False):
    """A line with all attributes of its item, as they are on the wire."""

    Item: dict[str, Value]


_decode_any = msgspec.json.Decoder(_AnyLine).decode


def whole_item(line: bytes) -> dict[str, Value]:
    """Read all attributes of a line, whatever they are called. Raises `BadItem`.

    It is several times slower than an `ItemDecoder`.
    """
    try:
        item = _decode_any(line).Item
        if line.count(b'{"') != braces_of_members(item):
            json.loads(line, object_pairs_hook=refuse_twins)
        return item
    except TwinsError:
        raise BadItem("an attribute name occurs twice") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BadItem(_line_reason(error)) from None


def whole(line: bytes) -> dict[str, Any]:
    """Make a plain dict of all attributes of a line. Raises `BadItem`."""
    return _plain_item(whole_item(line))


def _plain_item(item: dict[str, Value]) -> dict[str, Any]:
    try:
        return document(item)
    except (ValueError, ArithmeticError) as cause:
        # Which one is not said: of attributes that no class names, the names may be anybody's.
        raise BadItem(f"one of its attributes {cause}") from None


# -- reasons ---------------------------------------------------------------------------------------


_UNKNOWN = re.compile("Object contains unknown field `(.*?)`(?: - at |$)", re.DOTALL)


def _place(text: str) -> str:
    """Cut the path off a text of msgspec: it is made of our own names."""
    return text[text.rfind(" - at ") :] if " - at " in text else ""


def _line_reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "invalid UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply; DynamoDB's own limit is 32 levels"
    text = str(error)
    # Here, and only here, msgspec echoes what is on the line.
    if text.startswith("Invalid enum value"):
        text = "a value that is not allowed" + _place(text)
    elif (found := _UNKNOWN.match(text)) and found[1] not in Value.__struct_fields__:
        text = "a type that DynamoDB does not know" + _place(text)
    return text.replace(" - at `$", " at `$").removeprefix("JSON is malformed: ")
