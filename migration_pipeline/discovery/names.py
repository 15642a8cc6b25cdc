"""Makes names of Python and PostgreSQL out of whatever attributes and key prefixes are called."""

from __future__ import annotations

import builtins
import keyword
import re
import unicodedata
from collections.abc import Iterable
from itertools import chain, count

from migration_pipeline import __all__ as vocabulary
from migration_pipeline.discovery.attributes import words

MAX_NAME = 30
"""Characters of a field's name, so that a line with two of them is no longer than a line should be."""

MODULE_NAMES = frozenset({
    *dir(builtins), *keyword.kwlist, *vocabulary, "Any", "Decimal", "UUID", "annotations", "date", "datetime", "sha256",
    "profile", "boolean", "digest", "BOOLEANS", "item", "rows_of", "l", "I", "O",
})  # fmt: skip
"""Names that mean something else in generated modules."""

CLASS_NAMES = frozenset(
    {*keyword.kwlist, "str", "int", "bool", "bytes", "dict", "list", "frozenset", "date", "datetime"}
    | {"attribute", "column", "l"}
)
"""Names that stand for something else in the body of a generated class, as in its annotations; and l, which looks like 1."""

SYSTEM_COLUMNS = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
"""Columns that every table of PostgreSQL has already."""


class Names:
    """Names given so far in one scope; no name is given twice."""

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = set(taken)

    def give(self, *wishes: str) -> str:
        """Return the first wish that is free, or the last with a number."""
        numbered = (f"{wishes[-1]}_{number}" for number in count(2))
        name = next(name for name in chain(wishes, numbered) if name not in self._taken)
        self._taken.add(name)
        return name


def snake(name: str) -> str:
    """Make a lower-case ASCII name: ``createdAt`` → ``created_at``, ``Größe`` → ``grosse``; "" if nothing is left."""
    folded = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode()
    return "_".join(words(folded[: 4 * MAX_NAME]))[:MAX_NAME].strip("_")


def field_name(name: str, names: Names) -> str:
    """Name the field of an attribute."""
    made = snake(name) or "attribute"
    if made[0].isdigit():
        made = f"a_{made}"
    if made in CLASS_NAMES or made in SYSTEM_COLUMNS:
        return names.give(f"{made}_")
    return names.give(made)


def column_name(field: str) -> str:
    """Name the column of a field: without the underscore that Python needed."""
    bare = field.removesuffix("_")
    return field if bare in SYSTEM_COLUMNS else bare


def class_name(parts: list[str]) -> str:
    """Join words to a name of a class: ``["order", "line"]`` → ``OrderLine``.

    One that begins with Test would be taken for a test by pytest, where a test imports it.
    """
    made = "".join(part.capitalize() for part in parts)[: MAX_NAME + 10]
    return f"A{made}" if made.startswith("Test") else made


def plural(name: str) -> str:
    """Make a table's name of an entity type's, in plain English."""
    if re.search(r"[^aeiou]y$", name):
        return f"{name[:-1]}ies"
    if re.search(r"(ss|x|z|ch|sh)$", name):
        return f"{name}es"
    return name if name.endswith("s") else f"{name}s"


def name_words(texts: Iterable[str]) -> list[str]:
    """Collect the words of some texts, each once: ``CUSTOMER#`` and ``CUSTOMER_ORDER#`` have two."""
    found = (word for text in texts for word in snake(text).split("_") if word)
    return list(dict.fromkeys(found))
