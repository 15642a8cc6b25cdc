"""Writes the module of a drafted profile, as a person would have written it."""

from __future__ import annotations

import keyword
import re

from migration_pipeline.discovery.draft import Draft, Entity, Field, quoted
from migration_pipeline.discovery.keys import Conditions, text_of
from migration_pipeline.discovery.source import (
    Group,
    Node,
    Part,
    call,
    comment,
    flat,
    statement,
    text_literal,
)
from migration_pipeline.discovery.survey import patterns
from migration_pipeline.profile.profile import Prefix

MAX_LISTED = 20
"""Attributes that are named in a comment; of more, only the number is told."""


def module_source(draft: Draft) -> str:
    """Write the profile."""
    blocks = [_docstring(draft), "", "from __future__ import annotations", ""]
    body = "\n".join(
        line
        for lines in (_profile(draft), *map(_entity, draft.entities), _rest(draft))
        for line in (*lines, "")
    )
    return "\n".join([*blocks, *_imports(body), "", body.rstrip(), ""])


def _docstring(draft: Draft) -> str:
    survey = draft.survey
    looked = "all" if survey.whole else f"{survey.looked_at:,} of"
    return (
        f'"""A first draft, made from {looked} {survey.export.items:,} items of the export {survey.export.id}.\n\n'
        "Read it from top to bottom: names, keys and types are proposals. Where a comment says so, they are guesses.\n"
        '"""'
    )


STANDARD = (
    ("datetime", ("date", "datetime")),
    ("decimal", ("Decimal",)),
    ("hashlib", ("sha256",)),
    ("typing", ("Any",)),
    ("uuid", ("UUID",)),
)
VOCABULARY = (
    "EpochMillis",
    "EpochSeconds",
    "Item",
    "Profile",
    "RestOfItem",
    "Row",
    "attribute",
    "column",
    "prefix",
)


def _imports(body: str) -> list[str]:
    """Import the names that the code uses; those in comments and literals do not count."""
    code = re.sub(r'"""(?s:.)*?"""|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|#[^\n]*', "", body)

    def used(name: str) -> bool:
        return re.search(rf"(?<![\w.]){name}\b(?![:=])", code) is not None

    lines = [
        f"from {module} import {', '.join(found)}"
        for module, names in STANDARD
        if (found := [name for name in names if used(name)])
    ]
    ours = Group("(", [Part("", name) for name in VOCABULARY if used(name)], ")")
    line = "from migration_pipeline import " + flat(ours)[1:-1]
    return [
        *lines,
        "",
        line if len(line) <= 88 else statement("from migration_pipeline import ", ours),
    ] if lines else [line]  # fmt: skip


def _profile(draft: Draft) -> list[str]:
    options: dict[str, Node] = {}
    said: list[str] = []
    if draft.has_nul:
        said = comment(
            "U+0000 was found, which PostgreSQL's text and jsonb refuse: it is written as the six characters \\u0000. "
            'Or leave it out, with nul="strip"; without nul, such items go to the quarantine.'
        )
        options["nul"] = '"escape"'
    lines = [
        *comment(_key_guess(draft)),
        *said,
        statement("profile = ", call("Profile", text_literal(draft.name), **options)),
    ]
    if any(_holds(entity, ("BOOLEANS[", "boolean(")) for entity in draft.entities):
        lines += _booleans(draft)
    if any(_holds(entity, ("boolean(",)) for entity in draft.entities):
        lines += [
            "", "", "def boolean(text: str | None) -> bool | None:",
            '    """Read a boolean that is kept as a text. Any other text than those of BOOLEANS makes a bad item."""',
            "    return None if text is None else BOOLEANS[text]",
        ]  # fmt: skip
    if any(entity.digest for entity in draft.entities):
        lines += [
            "", "", "def digest(*key: object) -> str:",
            '    """Stand for a key that is longer than an index of PostgreSQL takes, about 2,700 bytes."""',
            "    return sha256(repr(key).encode()).hexdigest()",
        ]  # fmt: skip
    return lines


def _key_guess(draft: Draft) -> str:
    key = draft.survey.key
    return (
        f"The table's key is a guess, as an export does not name it: {' and '.join(map(quoted, key.attributes))}, "
        f"{key.reason}."
    )


def _holds(entity: Entity, begins: tuple[str, ...]) -> bool:
    return any(isinstance(field.value, str) and field.value.startswith(begins) for field in entity.fields)


def _booleans(draft: Draft) -> list[str]:
    texts = {
        text: true
        for entity in draft.entities
        for field in entity.fields
        if isinstance(field.value, str) and field.value.startswith(("BOOLEANS[", "boolean("))
        for text, true in zip(entity.kind.attributes[field.attribute].booleans, (True, False), strict=True)
    }
    parts = [Part(f"{text_literal(text)}: ", str(true)) for text, true in texts.items()]
    return ["", statement("BOOLEANS = ", Group("{", parts, "}"))]


def _entity(entity: Entity) -> list[str]:
    return ["", *_item(entity), "", "", *_row(entity), "", "", *_route(entity)]


def _item(entity: Entity) -> list[str]:
    lines = [
        statement("class ", Group(f"{entity.item_class}(", [Part("", "Item")], ")"), ":"),
        f'    """{_sentence(entity)}"""',
        "",
    ]
    for field in entity.fields:
        for text in field.comments:
            lines += comment(text, 4)
        named = field.attribute != field.item_field
        source: Node = call("attribute", text_literal(field.attribute)) if named else ""
        before = f"{field.item_field}: {field.item_type}"
        lines.append(statement(f"{before} = ", source, indent=4) if source else f"    {before}")
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
    names = [text_literal(name) for name in entity.key]
    key: Node = names[0] if len(names) == 1 else Group("(", [Part("", name) for name in names], ")")
    header = Group(
        f"{entity.row_class}(",
        [Part("", "Row"), Part("table=", text_literal(entity.table)), Part("key=", key)],
        ")",
    )
    lines = [*comment(entity.key_comment), statement("class ", header, ":")]
    lines += [f'    """Items with {patterns(entity.kind.conditions)}."""', ""] if entity.kind.conditions else [
        '    """Items of any keys."""', "",
    ]  # fmt: skip
    if entity.digest:
        lines.append(f"    {entity.key[0]}: str")
    lines += [_row_field(field) for field in entity.written]
    return [*lines, f"    {entity.rest[1]}: dict[str, Any] | None"] if entity.rest else lines


def _row_field(field: Field) -> str:
    if field.column == field.row_field:
        return f"    {field.row_field}: {field.row_type}"
    return statement(
        f"{field.row_field}: {field.row_type} = ", call("column", text_literal(field.column)), indent=4
    )


def _route(entity: Entity) -> list[str]:
    signature = Group(f"def {entity.function}(", [Part("item: ", entity.item_class)], ")")
    values = {field.row_field: field.value for field in entity.written}
    if entity.rest:
        values[entity.rest[1]] = f"item.{entity.rest[0]} or None"
    if entity.digest:
        values = {entity.key[0]: entity.digest, **values}
    made = Group(f"{entity.row_class}(", [Part(f"{name}=", value) for name, value in values.items()], ")")
    return [
        statement("@profile.route", conditions_of(entity)),
        statement("", signature, f" -> {entity.row_class}:"),
        f'    """One item is one row of {entity.table}."""',
        statement("return ", made, indent=4),
        *_event_proposal(entity),
    ]


def conditions_of(entity: Entity) -> Group:
    """Write the conditions of a route; what takes every item needs one, too."""
    conditions: Conditions = entity.kind.conditions or ((entity.fields[0].attribute, Prefix("")),)
    return Group("(", [_condition(name, condition) for name, condition in conditions], ")")


def _condition(name: str, condition: str | Prefix) -> Part:
    text = text_literal(text_of(condition))
    node: Node = call("prefix", text) if isinstance(condition, Prefix) else text
    if name.isidentifier() and name.isascii() and not keyword.iskeyword(name):
        return Part(f"{name}=", node)
    return Part("**", Group("{", [Part(f"{text_literal(name)}: ", node)], "}"))


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
        "",
        *comment(
            "Items that no rule takes are skipped, and counted as unrouted, by the pattern of their keys."
        ),
    ]
    lines += comment(
        "For what you do not want, take out the route with its classes, and say so with the reason:"
    )
    lines.append("#")
    for entity in draft.entities:
        group = conditions_of(entity)
        parts = [*group.parts, Part("because=", '"…"')]
        lines.append(f"# profile.ignore{flat(Group('(', parts, ')'))}")
    if bad := draft.survey.bad_items:
        lines += ["#", *comment(f"{bad:,} of the items looked at are bad, and will go to the quarantine.")]
    return lines
