"""Writes the module of a drafted profile, as a person would have written it."""

from __future__ import annotations

import keyword

from migration_pipeline.discovery.draft import Draft, Entity, Field, quoted
from migration_pipeline.discovery.keys import Conditions, text_of
from migration_pipeline.discovery.source import comment, text_literal
from migration_pipeline.discovery.survey import patterns
from migration_pipeline.profile.profile import Prefix

MAX_LISTED = 20
"""Attributes that are named in a comment; of more, only the number is told."""

HEAD = '''"""A first draft, made from {looked} {survey.export.items:,} items of the export {survey.export.id}.

Read it from top to bottom: names, keys and types are proposals. Where a comment says so, they are guesses.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any
from uuid import UUID

from migration_pipeline import EpochMillis, EpochSeconds, Item, Profile, RestOfItem, Row, attribute, column, prefix

'''

BOOLEAN = '''

def boolean(text: str | None) -> bool | None:
    """Read a boolean that is kept as a text. Any other text than those of BOOLEANS makes a bad item."""
    return None if text is None else BOOLEANS[text]
'''

DIGEST = '''

def digest(*key: object) -> str:
    """Stand for a key that is longer than an index of PostgreSQL takes, about 2,700 bytes."""
    return sha256(repr(key).encode()).hexdigest()
'''


def module_source(draft: Draft) -> str:
    """Write the profile, with all imports that it may need."""
    looked = "all" if draft.survey.whole else f"{draft.survey.looked_at:,} of"
    parts = [_profile(draft), *map(_entity, draft.entities), _rest(draft)]
    return HEAD.format(looked=looked, survey=draft.survey) + "\n\n\n".join("\n".join(part) for part in parts)


def _profile(draft: Draft) -> list[str]:
    lines = comment(_key_guess(draft))
    if draft.has_nul:
        lines += comment(
            "U+0000 was found, which PostgreSQL's text and jsonb refuse: it is written as the six characters \\u0000. "
            'Or leave it out, with nul="strip"; without nul, such items go to the quarantine.'
        )
    nul = ', nul="escape"' if draft.has_nul else ""
    lines.append(f"profile = Profile({text_literal(draft.name)}{nul})")
    if texts := _booleans(draft):
        lines += ["", f"BOOLEANS = {texts}"]
    values = [field.value for entity in draft.entities for field in entity.fields]
    if any(value.startswith("boolean(") for value in values):
        lines.append(BOOLEAN)
    if any(entity.digest for entity in draft.entities):
        lines.append(DIGEST)
    return lines


def _key_guess(draft: Draft) -> str:
    key = draft.survey.key
    return (
        f"The table's key is a guess, as an export does not name it: {' and '.join(map(quoted, key.attributes))}, "
        f"{key.reason}."
    )


def _booleans(draft: Draft) -> dict[str, bool]:
    """The texts that stand for booleans, in any attribute that is read so."""
    return {
        text: true
        for entity in draft.entities
        for field in entity.fields
        if field.value.startswith(("BOOLEANS[", "boolean("))
        for text, true in zip(entity.kind.attributes[field.attribute].booleans, (True, False), strict=True)
    }


def _entity(entity: Entity) -> list[str]:
    return [*_item(entity), "", "", *_row(entity), "", "", *_route(entity)]


def _item(entity: Entity) -> list[str]:
    lines = [f"class {entity.item_class}(Item):", f'    """{_sentence(entity)}"""', ""]
    for field in entity.fields:
        for text in field.comments:
            lines += comment(text, 4)
        named = field.attribute != field.item_field
        source = f" = attribute({text_literal(field.attribute)})" if named else ""
        lines.append(f"    {field.item_field}: {field.item_type}{source}")
    return lines + _rest_field(entity)


def _sentence(entity: Entity) -> str:
    found = entity.kind
    pattern = patterns(found.conditions)
    text = f"``{pattern}``" if found.conditions else "All items that no route above takes"
    return f"{text}: {found.items:,} of the items looked at, about {round(found.estimate):,} in the export."


def _rest_field(entity: Entity) -> list[str]:
    if entity.rest is None:
        return []
    if not entity.others:
        lines = comment("What else an item has: in those looked at, nothing.", 4)
        return [*lines, f"    {entity.rest[0]}: RestOfItem"]
    lines = comment("What else an item has, as one document:", 4)
    for why in dict.fromkeys(entity.left_out.values()):
        names = [ascii(name)[:80] for name, reason in entity.left_out.items() if reason == why]
        more = f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else ""
        lines += comment(f"- {', '.join(names[:MAX_LISTED])}{more} ({why})", 4)
    if further := entity.kind.further:
        more = "" if entity.kind.all_counted else " or more"
        lines += comment(f"- {further:,}{more} others", 4)
    return [*lines, f"    {entity.rest[0]}: RestOfItem"]


def _row(entity: Entity) -> list[str]:
    key = ", ".join(map(text_literal, entity.key))
    key = f"({key})" if len(entity.key) > 1 else key
    said = (
        f"Items with {patterns(entity.kind.conditions)}." if entity.kind.conditions else "Items of any keys."
    )
    return [
        *comment(entity.key_comment),
        f"class {entity.row_class}(Row, table={text_literal(entity.table)}, key={key}):",
        f'    """{said}"""',
        "",
        *([f"    {entity.key[0]}: str"] if entity.digest else []),
        *map(_row_field, entity.written),
        *([f"    {entity.rest[1]}: dict[str, Any] | None"] if entity.rest else []),
    ]


def _row_field(field: Field) -> str:
    named = f" = column({text_literal(field.column)})" if field.column != field.row_field else ""
    return f"    {field.row_field}: {field.row_type}{named}"


def _route(entity: Entity) -> list[str]:
    values = {entity.key[0]: entity.digest} if entity.digest else {}
    values |= {field.row_field: field.value for field in entity.written}
    if entity.rest:
        values[entity.rest[1]] = f"item.{entity.rest[0]} or None"
    made = ", ".join(f"{name}={value}" for name, value in values.items())
    return [
        f"@profile.route({_conditions(entity)})",
        f"def {entity.function}(item: {entity.item_class}) -> {entity.row_class}:",
        f'    """One item is one row of {entity.table}."""',
        f"    return {entity.row_class}({made})",
        *_event_proposal(entity),
    ]


def _conditions(entity: Entity) -> str:
    """Write the conditions of a route; what takes every item needs one, too."""
    conditions: Conditions = entity.kind.conditions or ((entity.fields[0].attribute, Prefix("")),)
    return ", ".join(_condition(name, condition) for name, condition in conditions)


def _condition(name: str, condition: str | Prefix) -> str:
    text = text_literal(text_of(condition))
    value = f"prefix({text})" if isinstance(condition, Prefix) else text
    plain = name.isidentifier() and name.isascii() and not keyword.iskeyword(name)
    return f"{name}={value}" if plain else f"**{{{text_literal(name)}: {value}}}"


def _event_proposal(entity: Entity) -> list[str]:
    if not entity.kind.event_like:
        return []
    said = (
        f"Event-like: the sort key begins with a time, and of what was looked at {entity.kind.per_partition:.1f} items "
        f"have the same partition key. If you need one row of many (a row for each {entity.fields[0].row_field}, with "
        "counts, the first, the last), let the items land in a table without a key, and make an aggregate of it in "
        "SQL, in place of the above:"
    )
    key, summary, table = entity.fields[0].row_field, f"{entity.row_class}Summary", f"{entity.table}_summary"
    return [
        "", "", *comment(said), "#",
        f'#     class {entity.row_class}(Row, table="{entity.table}", landing=True): ...  # the same fields',
        "#",
        f'#     class {summary}(Row, table="{table}", key="{key}"):',
        f"#         {key}: ...  # as above",
        "#         items: int",
        "#",
        f'#     profile.aggregate({summary}, of={entity.row_class}, by="{key}", sql="{table}.sql")',
        "#",
        f"# and in {table}.sql: SELECT {key}, count(*) AS items FROM landing.{entity.table} GROUP BY {key}",
    ]  # fmt: skip


def _rest(draft: Draft) -> list[str]:
    lines = [
        *comment(
            "Items that no rule takes are skipped, and counted as unrouted, by the pattern of their keys."
        ),
        *comment(
            "For what you do not want, take out the route with its classes, and say so with the reason:"
        ),
        "#",
        *(f'# profile.ignore({_conditions(entity)}, because="…")' for entity in draft.entities),
    ]
    if bad := draft.survey.bad_items:
        lines += [
            "#",
            *comment(
                f"{bad:,} of the items looked at {'is' if bad == 1 else 'are'} bad, and will go to the quarantine."
            ),
        ]
    return lines
