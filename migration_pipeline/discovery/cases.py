"""Writes a test of a drafted profile, with sampled items as its cases."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from migration_pipeline.discovery.draft import Draft
from migration_pipeline.discovery.sampling import Line
from migration_pipeline.discovery.source import Group, Node, Part, literal, statement
from migration_pipeline.errors import BadItem
from migration_pipeline.profile.row import Row

PASSWORD = re.compile(r"(^|_)(pas+wo?r?d|pass(phrase)?|pwd|token|secrete?)($|_)", re.IGNORECASE)
"""Names of arguments that linters take for a password in the source (ruff's S106)."""


def cases_source(
    draft: Draft, module: str, rows_of: Callable[[bytes], Iterable[Row]], beside_package: bool
) -> tuple[str, int]:
    """Write the test, and count its cases. `rows_of` gives the rows of a line.

    `beside_package` says whether the profile lies in the folder of the package `migration_pipeline`
    itself, where sorters of imports take both for one project, and the project's own rules of ruff hold.
    """
    names: set[str] = set()
    classes: set[str] = set()
    cases: list[str] = []
    for entity in draft.entities:
        for number, line in enumerate(entity.kind.examples, 1):
            try:
                rows = list(rows_of(line.line))
            except BadItem:
                continue
            classes.update(type(row).__name__ for row in rows)
            cases += _case(f"{entity.function}_{number}", line, rows, names)
    body = "\n".join(cases)
    exempt = ["S101"] + ["S106"] * any(map(PASSWORD.search, _arguments(draft)))
    head = f"# ruff: noqa: {', '.join(exempt)}\n" if beside_package else ""
    imports = _imports(names, [*sorted(classes, key=_import_order), "profile"], module, beside_package)
    return (head + _HEAD.format(module=module, imports=imports) + body).rstrip() + "\n", len(cases) // CASE


_HEAD = '''"""Items of the export, and the rows that they become by {module}. They are real: mind who may see them."""

from __future__ import annotations

{imports}

transform = Transform(profile, dynamodb_json)


def rows(item: dict[str, Any]) -> list[Row]:
    """Give the rows of an item, as a load makes them. Raises `BadItem` for one that goes to the quarantine."""
    outcome = transform.one(json.dumps({{"Item": item}}).encode())
    return [row for of_one_table in outcome.rows.values() for row in of_one_table]


'''

CASE = 7
"""Parts that `_case` makes of a case."""


def _import_order(name: str) -> tuple[Any, ...]:
    """As sorters of imports have it: what looks like a constant first, and numbers by their value."""
    constant = name.isupper() and len(name) > 1

    def natural(text: str) -> list[Any]:
        return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", text)]

    return not constant, natural(name.lower()), natural(name)


def _case(name: str, line: Line, rows: list[Row], names: set[str]) -> list[str]:
    expected = Group("[", [Part("", _row(row, names)) for row in rows], "]")
    return [
        f"def test_{name}() -> None:",
        f'    """The item at {line.file}:{line.number}."""',
        statement("item = ", literal(json.loads(line.line)["Item"], names), indent=4),
        statement("expected: list[Row] = ", expected, indent=4),
        "    assert rows(item) == expected",
        "",
        "",
    ]


def _row(row: Row, names: set[str]) -> Node:
    fields = [field.name for field in msgspec.structs.fields(type(row))]
    parts = [Part(f"{field}=", literal(getattr(row, field), names)) for field in fields]
    return Group(f"{type(row).__name__}(", parts, ")")


def _arguments(draft: Draft) -> list[str]:
    return [field.row_field for entity in draft.entities for field in entity.written]


STANDARD = (
    ("datetime", ("date", "datetime")),
    ("decimal", ("Decimal",)),
    ("typing", ("Any",)),
    ("uuid", ("UUID",)),
)


def _imports(names: set[str], classes: list[str], module: str, beside_package: bool) -> str:
    standard = ["import json"] + [
        f"from {source} import {', '.join(found)}"
        for source, known in STANDARD
        if (found := [name for name in known if name in {*names, "Any"}])
    ]
    ours = [
        "from migration_pipeline import Row",
        "from migration_pipeline.engine.transform import Transform",
        "from migration_pipeline.sources import dynamodb_json",
    ]
    line = f"from {module} import {', '.join(classes)}"
    if len(line) > 88:
        line = statement(f"from {module} import ", Group("(", [Part("", name) for name in classes], ")"))
    if not beside_package:
        return "\n".join([*standard, "", *ours, "", line])
    return "\n".join([*standard, "", *([line, *ours] if module < "migration_pipeline" else [*ours, line])])
