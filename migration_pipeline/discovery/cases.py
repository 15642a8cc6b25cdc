"""Writes a test of a drafted profile, with sampled items as its cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import msgspec

from migration_pipeline.discovery.draft import Draft
from migration_pipeline.discovery.sampling import Line
from migration_pipeline.discovery.source import literal
from migration_pipeline.errors import BadItem
from migration_pipeline.profile.row import Row

HEAD = '''"""Items of the export, and the rows that they become by {module}. They are real: mind who may see them."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from uuid import UUID

from migration_pipeline.testing import rows_of
from {module} import {names}
'''

CASE = '''

def test_{name}() -> None:
    """The item at {line.file}:{line.number}."""
    item = {item}
    assert rows_of(profile, item) == [{rows}]
'''


def cases_source(draft: Draft, module: str, rows_of: Callable[[bytes], Iterable[Row]]) -> tuple[str, int]:
    """Write the test, with all imports that it may need, and count its cases. `rows_of` gives the rows of a line."""
    names = {"profile"}
    cases: list[str] = []
    for entity in draft.entities:
        for number, line in enumerate(entity.kind.examples, 1):
            try:
                rows = list(rows_of(line.line))
            except BadItem:
                continue
            names.update(type(row).__name__ for row in rows)
            cases.append(_case(f"{entity.function}_{number}", line, rows))
    return HEAD.format(module=module, names=", ".join(sorted(names))) + "".join(cases), len(cases)


def _case(name: str, line: Line, rows: Iterable[Row]) -> str:
    item = repr(json.loads(line.line)["Item"])
    return CASE.format(name=name, line=line, item=item, rows=", ".join(map(_row, rows)))


def _row(row: Row) -> str:
    values = [f"{name}={literal(value)}" for name, value in msgspec.structs.asdict(row).items()]
    return f"{type(row).__name__}({', '.join(values)})"
