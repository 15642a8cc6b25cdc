"""Turns a survey into the draft of a profile: classes, fields, keys and open decisions."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from migration_pipeline.discovery.attributes import Attribute, Fit
from migration_pipeline.discovery.inspection import percent
from migration_pipeline.discovery.keys import declarable, text_of
from migration_pipeline.discovery.names import (
    MAX_NAME,
    MODULE_NAMES,
    Names,
    class_name,
    column_name,
    field_name,
    name_words,
    plural,
    snake,
)
from migration_pipeline.discovery.source import text_literal
from migration_pipeline.discovery.survey import EntityType, Survey
from migration_pipeline.errors import UsageError
from migration_pipeline.units import all_that, counted, counted_that

ENOUGH = 100
"""Items of a type that a sample needs, for an attribute that all of them have to be taken for required."""

MAX_COLUMNS = 200
"""Columns of a table. PostgreSQL takes 1,600, but of most types far fewer fit a page of 8 KB."""

MAX_KEY_BYTES = 2_600
"""Bytes of a key that an index of PostgreSQL takes: a third of a page, less a few."""


COLUMN_SHARE = 0.05
"""Share of the items that have an attribute, for it to be a column where not all attributes can be one."""


class Field(msgspec.Struct):
    """An attribute, the field of the Item that reads it, and the one of the Row that it is written to."""

    attribute: str
    item_field: str
    item_type: str
    row_field: str
    """"" when it is read and not written."""
    row_type: str
    value: str
    """What the route passes for it."""
    column: str
    comments: list[str] = []


class Entity(msgspec.Struct):
    """An entity type: its table, classes and route."""

    kind: EntityType
    row_class: str
    item_class: str
    function: str
    table: str
    fields: list[Field]
    """What is read, in the order of the columns."""
    key: tuple[str, ...]
    """Fields of the Row."""
    key_comment: str
    digest: str = ""
    """What the route passes for a key that is too long for an index, and that a digest stands for; "" if none is."""
    left_out: dict[str, str] = {}
    """Attribute -> why it is no column."""
    rest: tuple[str, str] | None = None
    """Fields of the Item and of the Row for what is no column; None when every attribute is one, in all of the export."""

    @property
    def written(self) -> list[Field]:
        """The fields that are columns."""
        return [field for field in self.fields if field.row_field]

    @property
    def others(self) -> int:
        """Attributes of the items looked at that are no column."""
        return len(self.left_out) + self.kind.further


class Draft(msgspec.Struct):
    """A profile to be written."""

    name: str
    survey: Survey
    entities: list[Entity]

    @property
    def has_nul(self) -> bool:
        """Whether U+0000 was found."""
        return any(entity.kind.nul for entity in self.entities)


def make_draft(survey: Survey, name: str) -> Draft:
    """Draft a profile. Raises `UsageError` if the items that were looked at make none."""
    if not survey.types:
        raise UsageError(
            f"{survey.export.uri}: no items to draft a profile from"
            + (
                f": {all_that(survey.bad_items, 'item', 'read is', 'read are')} bad"
                if survey.bad_items
                else ""
            )
        )
    if not survey.key.attributes:
        raise UsageError(f"{survey.export.uri}: no key can be proposed: {survey.key.reason}")
    for attribute in survey.key.attributes:
        if not declarable(attribute):
            raise UsageError(
                f"{survey.export.uri}: the key attribute {attribute!a} cannot be named in an Item: it holds a "
                "quote, a backslash or a control character; no profile can read this table"
            )
    modules, tables = Names(MODULE_NAMES), Names()
    named = [(found, _words(found, survey)) for found in survey.types]
    # Rows get the plain names first: of the types ORDER and ORDER_ITEM, the class OrderItem is a Row.
    rows = [modules.give(class_name(words), f"{class_name(words)}Record") for _, words in named]
    entities = [
        _entity(found, survey, words, row_class, modules, tables)
        for (found, words), row_class in zip(named, rows, strict=True)
    ]
    return Draft(name, survey, entities)


def _words(found: EntityType, survey: Survey) -> list[str]:
    """The words that name an entity type: those of its keys, or of the table."""
    words = name_words(text_of(condition) for _, condition in found.conditions)
    if not words and len(survey.types) == 1:
        words = name_words([survey.export.table_arn.rpartition("/")[2]])
    words = words or ["other"]
    return words if words[0][0].isalpha() else ["a", *words]


def _entity(
    found: EntityType, survey: Survey, words: list[str], row_class: str, modules: Names, tables: Names
) -> Entity:
    fields = _Fields(found, survey)
    short = "_".join(words)[:40].strip("_")
    key = [fields.add_key(name) for name in found.key]
    comment = _key_comment(found, survey, [field.attribute for field in key])
    constant = {name for name, condition in found.conditions if isinstance(condition, str)}
    others = [a for name, a in found.attributes.items() if name not in {*survey.key.attributes, *constant}]
    fields.add_all(others)
    digest = ""
    if sum(found.attributes[field.attribute].longest_bytes for field in key) > MAX_KEY_BYTES:
        digest = f"digest({', '.join(f'item.{field.item_field}' for field in key)})"
        comment += " It is longer than an index takes, so a digest stands for it."
    rest = None
    if fields.left_out or found.further or not survey.whole:
        fields.add_constants(constant, len(key))
        rest = fields.add_rest()
    return Entity(
        kind=found,
        row_class=row_class,
        item_class=modules.give(f"{row_class}Item", f"{row_class}Attributes"),
        function=modules.give(short, f"{short}_item"),
        table=tables.give(plural(short)),
        fields=fields.made,
        key=(fields.rows.give("key_digest"),) if digest else tuple(field.row_field for field in key),
        key_comment=comment,
        digest=digest,
        left_out=fields.left_out,
        rest=rest,
    )


def _key_comment(found: EntityType, survey: Survey, names: list[str]) -> str:
    constant = {name: mark[0] for name in survey.key.attributes if (mark := found.mark_of(name)) and mark[1]}
    same = [f"{quoted(name)} is always {text}" for name, text in constant.items() if name not in names]
    text = f"Key: {' and '.join(map(quoted, names))}" + (f"; {', '.join(same)}." if same else ".")
    if len(names) == 2 and found.distinct_sorts and found.items > 1:
        text += (
            f" {quoted(names[1])} alone was different in all {counted(found.items, 'item')} looked at, too."
        )
    return text


def quoted(name: str) -> str:
    """A name of an attribute as it may stand in a comment: as it is when it is a plain word."""
    return name if name.isascii() and name.isidentifier() and len(name) <= MAX_NAME else ascii(name)[:80]


class _Fields:
    """The fields of one entity type, made one after the other."""

    def __init__(self, found: EntityType, survey: Survey) -> None:
        self.made: list[Field] = []
        self.left_out: dict[str, str] = {}
        self.rows = Names()
        self._items = Names()
        self._found = found
        self._enough = survey.whole or found.items >= ENOUGH

    def required(self, attribute: Attribute) -> bool:
        """Whether an item without the attribute is a bad one."""
        return self._enough and self._found.always_there(attribute)

    def add_key(self, name: str) -> Field:
        """Add the field of a key attribute, without the prefix that names the type."""
        attribute, mark = self._found.attributes[name], self._found.mark_of(name)
        item_field = field_name(name, self._items)
        value = f"item.{item_field}"
        row_field = field_name(name, self.rows) if not mark or mark[1] else ""
        if not row_field and mark:
            head = snake(mark[0])
            row_field = field_name(f"{head[:26]}_id" if head else name, self.rows)
            value = f"{value}.removeprefix({text_literal(mark[0])})"
        fit = _key_fit(attribute, bool(mark))
        field = Field(name, item_field, fit.item, row_field, fit.row, value, column_name(row_field))
        if not self._found.always_there(attribute):
            missing = self._found.items - attribute.present
            field.comments.append(
                f"{counted_that(missing, 'item', 'lacks', 'lack')} it, and would go to the quarantine"
            )
        self.made.append(field)
        return field

    def add_all(self, attributes: Iterable[Attribute]) -> None:
        """Add the fields of other attributes: of all, or of the commonest where they are too many."""
        found = sorted(attributes, key=lambda a: (-a.types.total(), a.name))
        crowded = len(self.made) + len(found) + self._found.further > MAX_COLUMNS
        chosen: list[Attribute] = []
        for attribute in found:
            if not declarable(attribute.name):
                why = "a quote, a backslash or a control character in the name"
            elif crowded and attribute.types.total() < COLUMN_SHARE * self._found.items:
                why = f"in less than {percent(COLUMN_SHARE)} of the items"
            elif len(self.made) + len(chosen) >= MAX_COLUMNS:
                why = f"{MAX_COLUMNS} columns are enough for a table; choose"
            else:
                chosen.append(attribute)
                continue
            self.left_out[attribute.name] = why
        for attribute in sorted(chosen, key=lambda a: (not self.required(a), snake(a.name), a.name)):
            self._add(attribute)

    def add_constants(self, names: Iterable[str], place: int) -> None:
        """Add the attributes that are the same in all items and no column, so that they are not part of the rest."""
        for name in sorted({*names}.difference(field.attribute for field in self.made)):
            said = ["the same in all of them, as the route says: no column"]
            self.made.insert(place, Field(name, field_name(name, self._items), "str", "", "", "", "", said))

    def add_rest(self) -> tuple[str, str]:
        """Name the fields of what is no column, as no attribute is named."""
        return self._items.give("rest", "other_attributes"), self.rows.give("rest", "other_attributes")

    def _add(self, attribute: Attribute) -> None:
        fit, required = attribute.fit, self.required(attribute)
        item_field, row_field = (field_name(attribute.name, names) for names in (self._items, self.rows))
        value = f"item.{item_field}"
        if fit.row == "bool" and fit.item == "str":
            value = f"BOOLEANS[{value}]" if required else f"boolean({value})"
        self.made.append(
            Field(
                attribute.name, item_field, _optional(fit.item, required), row_field,
                _optional(fit.row, required), value, column_name(row_field), self._comments(attribute, fit),
            )
        )  # fmt: skip

    def _comments(self, attribute: Attribute, fit: Fit) -> list[str]:
        said = [fit.note] if fit.note else []
        if attribute.nul:
            said.append(f"U+0000 in {counted(attribute.nul, 'item')}, e.g. {attribute.nul_example}")
        return said


def _key_fit(attribute: Attribute, marked: bool) -> Fit:
    """A type in which different keys stay different: no times, which may be rounded."""
    fit = attribute.fit
    if attribute.letters == ["N"]:
        return Fit("int", "int", "bigint") if attribute.whole else Fit("Decimal", "Decimal", "numeric")
    return fit if fit.item in ("UUID", "bytes") and not marked else Fit("str", "str", "text")


def _optional(annotation: str, required: bool) -> str:
    return annotation if required or annotation == "Any" else f"{annotation} | None"
