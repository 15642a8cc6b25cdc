"""Presents the findings of a survey: plain facts for programs, tables on a terminal, and an HTML page.

No text of an item is among the facts, except what names its type (``CUSTOMER#``, ``PROFILE``) and the
constants of enum-like attributes. Numbers and times show their least and greatest value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from migration_pipeline.discovery.attributes import Attribute
from migration_pipeline.discovery.sizes import Estimate, estimate, together
from migration_pipeline.discovery.survey import EntityType, Survey, patterns, shown
from migration_pipeline.migration.pages import pages
from migration_pipeline.sources.export import Window, utc
from migration_pipeline.units import counted, counted_that, readable_size, some_of, some_that

if TYPE_CHECKING:
    from jinja2 import Template

MAX_SHOWN = 25
"""Entity types whose attributes are listed on a terminal, the commonest first; JSON and HTML have all of them."""

MAX_LISTED = 60
"""Attributes of one entity type that are listed on a terminal, the commonest first."""

# -- facts -----------------------------------------------------------------------------------------


def facts(survey: Survey) -> dict[str, Any]:
    """Return all that was found as plain values, ready for JSON. Shares are of the items looked at, 0 to 1."""
    export, sample = survey.export, survey.sample
    return {
        "export": {
            "id": export.id, "uri": export.uri, "items": export.items, "files": len(export.files),
            "table": export.table_arn.rpartition("/")[2], "time": export.export_time,
            "bytes": sum(file.size for file in export.files),
            "window": _window_facts(export.window) if export.window else None,
        },
        "looked_at": {
            "items": survey.looked_at,
            "share": round(survey.looked_at / export.items, 6) if export.items else 1.0,
            "files": len(export.files) - len(survey.unread),
            "drawn_from": export.items if survey.everything else sum(file.seen for file in sample.files),
            "bytes": None if survey.everything else sum(file.bytes for file in sample.files),
            "all": survey.whole,
        },
        "item_bytes": _item_bytes(survey.types),
        "postgresql_bytes": _postgresql_bytes(together(map(estimate, survey.types))),
        "key": {"attributes": list(survey.key.attributes), "guessed_because": survey.key.reason},
        "types": [
            _type_facts(found, survey) for found in sorted(survey.types, key=lambda found: -found.items)
        ],
        "bad": [
            {"reason": bad.reason, "items": bad.items, "example": str(bad.example)}
            for bad in survey.bad.values()
        ],
        "unread": survey.unread,
    }  # fmt: skip


def _window_facts(window: Window) -> dict[str, Any]:
    return {"from": utc(window.start), "to": utc(window.end), "view": window.view, "keys": list(window.keys)}


def _item_bytes(types: Sequence[EntityType]) -> dict[str, int]:
    """Sizes of items, unzipped, as DynamoDB JSON: the average is that of the whole export, if its other items are alike."""
    items = sum(found.estimate for found in types)
    total = sum(found.estimate * found.bytes / found.items for found in types)
    return {
        "average": round(total / items) if items else 0,
        "largest": max((found.largest for found in types), default=0),
    }


def _postgresql_bytes(size: Estimate) -> dict[str, int]:
    return {"tables": round(size.rows), "keys": round(size.keys), "total": size.total}


def _type_facts(found: EntityType, survey: Survey) -> dict[str, Any]:
    return {
        "pattern": patterns(found.conditions),
        "items": found.items,
        "share": round(found.items / survey.looked_at, 6),
        "estimated_items": round(found.estimate),
        "item_bytes": _item_bytes([found]),
        "postgresql_bytes": _postgresql_bytes(estimate(found)),
        "event_like": found.event_like,
        "items_per_partition_key": round(found.per_partition, 2),
        "attributes": [
            _attribute_facts(attribute, found)
            for attribute in sorted(found.attributes.values(), key=lambda a: (-a.types.total(), a.name))
        ],
        "further_attributes": found.further,
        "all_attributes_counted": found.all_counted,
    }


def _attribute_facts(attribute: Attribute, found: EntityType) -> dict[str, Any]:
    fit = attribute.fit
    there = attribute.types.total()
    letters = attribute.letters
    others = sum(attribute.types[letter] for letter in letters[1:])
    return {
        "name": attribute.name,
        "types": dict(attribute.types.most_common()),
        "presence": round(there / found.items, 6),
        "conflict": {"share": round(others / there, 6), "example": str(attribute.examples[letters[-1]])}
        if others
        else None,
        "range": _range(attribute),
        "longest_text": attribute.longest if "S" in attribute.types else None,
        "most_digits": attribute.digits or None,
        "most_decimals": attribute.decimals if attribute.digits else None,
        "nul": {"items": attribute.nul, "example": str(attribute.nul_example)} if attribute.nul else None,
        "depth": attribute.depth or None,
        "constants": attribute.constants or None,
        "fits": fit.column,
        "note": fit.note,
    }


def _range(attribute: Attribute) -> list[str] | None:
    if attribute.span:
        return [str(moment).replace("+00:00", "Z") for moment in attribute.span]
    if attribute.letters == ["N"]:
        return [str(attribute.smallest), str(attribute.greatest)]
    return None


# -- sentences -------------------------------------------------------------------------------------


def scope(found: dict[str, Any]) -> str:
    """Describe which items were looked at: the findings claim nothing beyond them."""
    export, looked = found["export"], found["looked_at"]
    files = some_of(looked["files"], export["files"], "file")
    if looked["all"]:
        return f"All was read: {counted(export['items'], 'item')} of {counted(export['files'], 'file')}."
    if looked["bytes"] is None:
        return f"{some_that(looked['items'], export['items'], 'item', 'was', 'were')} read, in {files}."
    whole = looked["drawn_from"] == export["items"]
    where = "all of them" if whole else f"the first {looked['drawn_from']:,}"
    return (
        f"Sampled: {some_of(looked['items'], export['items'], 'item')} ({percent(looked['share'])}), drawn at random from "
        f"{where}, {readable_size(looked['bytes'])} unzipped at the beginning of {files}. Shares are those of the sample, "
        "counts with ≈ are estimates; of other items nothing is known."
    )


def window_sentence(found: dict[str, Any]) -> list[str]:
    """Say of a window what counts as its items; nothing of a full export."""
    if (window := found["export"]["window"]) is None:
        return []
    deleted = (
        "a deleted one as it was before"
        if window["view"] == "NEW_AND_OLD_IMAGES"
        else "of a deleted one only the key"
    )
    return [
        f"A window: the items written from {window['from']} to {window['to']} ({window['view']}), each as it was at the end, "
        f"{deleted}."
    ]


def key_sentence(found: dict[str, Any]) -> str:
    """Say which attributes are taken for the key, and why."""
    names = " and ".join(map(shown, found["key"]["attributes"])) or "none"
    return f"Key, guessed: {names} ({found['key']['guessed_because']})."


def export_sentence(found: dict[str, Any]) -> str:
    """Say which table the export is of, as of when, and how large it is."""
    export = found["export"]
    return (
        f"Table {export['table'] or 'unknown'}, as of {export['time'] or 'an unknown time'}: "
        f"{counted(export['items'], 'item')} in {counted(export['files'], 'file')}, {readable_size(export['bytes'])} compressed."
    )


def size_sentence(found: dict[str, Any]) -> list[str]:
    """Say how large items are, and what they take in PostgreSQL; nothing where there are none."""
    if not found["types"]:
        return []
    item, there = found["item_bytes"], found["postgresql_bytes"]
    return [
        f"An item has {readable_size(item['average'])} on average, the largest seen {readable_size(item['largest'])}, unzipped. In "
        f"PostgreSQL ≈ {readable_size(there['total'])}, if each entity type becomes a table as scaffold writes it: tables "
        f"{readable_size(there['tables'])}, primary keys {readable_size(there['keys'])}."
    ]


def sentences(found: dict[str, Any]) -> list[str]:
    """All that is said before the tables."""
    return [
        *window_sentence(found), scope(found), key_sentence(found), export_sentence(found), *size_sentence(found)
    ]  # fmt: skip


def troubles(found: dict[str, Any]) -> list[str]:
    """Say what could not be read."""
    return [
        f"{counted_that(bad['items'], 'item', 'is', 'are')} bad, e.g. {bad['example']}: {bad['reason']}"
        for bad in found["bad"]
    ] + [f"not read: {reason}" for reason in found["unread"].values()]


def percent(share: float) -> str:
    """Format a share for people: 0 % only for zero, 100 % only for all."""
    if 0 < share < 0.001:
        return "< 0.1 %"
    if 0.999 < share < 1:
        return "> 99.9 %"
    return f"{share:.1%}".replace("%", " %").replace(".0 ", " ")


def further(kind: dict[str, Any], listed: int | None = None) -> str:
    """Say how many attributes of an entity type are not `listed` (by default, all known ones are); "" for none."""
    unlisted = kind["attributes"][listed:] if listed is not None else []
    if not (count := len(unlisted) + kind["further_attributes"]):
        return ""
    where = f"; --json and --html have {len(unlisted):,} of them" if unlisted else ""
    return f"and {count:,}{'' if kind['all_attributes_counted'] else ' or more'} others{where}"


TYPE_COLUMNS = ("entity type", "items", "share", "≈ in the export", "attributes", "kind")
ATTRIBUTE_COLUMNS = ("attribute", "types", "present", "fits", "range", "longest", "notes")


def type_row(kind: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one entity type under `TYPE_COLUMNS`."""
    return (
        kind["pattern"], f"{kind['items']:,}", percent(kind["share"]), f"{kind['estimated_items']:,}",
        f"{len(kind['attributes']) + kind['further_attributes']:,}", "event-like" if kind["event_like"] else "",
    )  # fmt: skip


def attribute_row(attribute: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one attribute under `ATTRIBUTE_COLUMNS`."""
    types = ", ".join(
        letter if len(attribute["types"]) == 1 else f"{letter} {count:,}"
        for letter, count in attribute["types"].items()
    )
    ends = [end[:32] for end in attribute["range"] or ()]
    return (
        shown(attribute["name"]), types, percent(attribute["presence"]), attribute["fits"],
        " … ".join(dict.fromkeys(ends)), _longest(attribute), "; ".join(_notes(attribute)),
    )  # fmt: skip


def _longest(attribute: dict[str, Any]) -> str:
    if attribute["most_digits"] and attribute["longest_text"] is None:
        decimals = attribute["most_decimals"]
        return counted(attribute["most_digits"], "digit") + (
            f", {counted(decimals, 'decimal')}" if decimals else ""
        )
    return "" if attribute["longest_text"] is None else counted(attribute["longest_text"], "character")


def _notes(attribute: dict[str, Any]) -> Iterable[str]:
    if attribute["note"]:
        yield attribute["note"]
    if attribute["nul"]:
        yield f"U+0000 in {attribute['nul']['items']:,}, e.g. {attribute['nul']['example']}"
    if attribute["depth"]:
        yield counted(attribute["depth"], "level")


# -- terminal --------------------------------------------------------------------------------------


def tables(found: dict[str, Any]) -> Group:
    """Lay the facts out for a terminal."""
    parts: list[RenderableType] = [Text(sentence) for sentence in sentences(found)]
    parts += [Text(trouble, style="yellow") for trouble in troubles(found)]
    if not found["types"]:
        return Group(*parts)
    parts.append(_table(TYPE_COLUMNS, map(type_row, found["types"]), right=(1, 2, 3, 4)))
    for kind in found["types"][:MAX_SHOWN]:
        parts.append(Text(f"{kind['pattern']}, {counted(kind['items'], 'item')}", style="bold"))
        parts.append(
            _table(ATTRIBUTE_COLUMNS, map(attribute_row, kind["attributes"][:MAX_LISTED]), right=(2,))
        )
        if unlisted := further(kind, MAX_LISTED):
            parts.append(Text(f"{unlisted}\n"))
    if len(found["types"]) > MAX_SHOWN:
        parts.append(
            Text(
                f"The attributes of {counted_that(len(found['types']) - MAX_SHOWN, 'rarer type', 'are', 'are')} in what --json and --html give."
            )
        )
    return Group(*parts)


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]], right: tuple[int, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


# -- HTML ------------------------------------------------------------------------------------------


def html(found: dict[str, Any]) -> str:
    """Lay the facts out as one HTML page."""
    kinds = [
        (
            f"{kind['pattern']}, {counted(kind['items'], 'item')}",
            list(map(attribute_row, kind["attributes"])),
            further(kind),
        )
        for kind in found["types"]
    ]
    return page_template().render(
        export=found["export"],
        found=found,
        sentences=[*window_sentence(found), scope(found), key_sentence(found)],
        troubles=troubles(found),
        type_columns=(*TYPE_COLUMNS, "bytes an item", "≈ in PostgreSQL"),
        types=[
            (
                *type_row(kind),
                f"{kind['item_bytes']['average']:,}",
                readable_size(kind["postgresql_bytes"]["total"]),
            )
            for kind in found["types"]
        ],
        attribute_columns=ATTRIBUTE_COLUMNS,
        kinds=kinds,
        shown=MAX_SHOWN,
    )


def page_template() -> Template:
    """Load the page. Raises `UsageError` where the extra ``report`` is not installed."""
    return pages("migration_pipeline.discovery").get_template("page.html.jinja")
