"""Texts for people: a single thing is no plural, and numbers have thousands separators, wherever they are written."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import migration_pipeline
from migration_pipeline.units import all_that, counted, counted_that, some_of, some_that

PACKAGE = Path(migration_pipeline.__file__).parent

WRITES_CODE = {PACKAGE / "engine" / "transform.py"}
"""Modules whose texts are Python, not for people."""

NOUN = (
    "attribute|backfill|batche|byte|change|character|column|connection|day|decimal|digit|export|file|group|item|landed row|level|"
    "line|object|part|pattern|reason|record|retrie|row|run|service|table|tick|trie|type|value|warning|window"
)
PLURAL = re.compile(rf" (?!of )(?:[a-z]+ ){{0,2}}(?:{NOUN})s\b(?!/)")


def texts() -> Iterator[tuple[str, ast.JoinedStr]]:
    """All f-strings of the package, each with its place."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path not in WRITES_CODE:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def form_of(value: ast.FormattedValue) -> str:
    return ast.unparse(value.format_spec)[2:-1] if value.format_spec else ""


def text_of(part: ast.expr) -> str:
    return str(part.value) if isinstance(part, ast.Constant) else ""


def test_a_single_thing_is_no_plural() -> None:
    assert (counted(1, "file"), counted(0, "file"), counted(1200, "file")) == (
        "1 file",
        "0 files",
        "1,200 files",
    )
    assert (counted(1, "retry", "retries"), counted(2, "retry", "retries")) == ("1 retry", "2 retries")
    assert (counted_that(1, "row", "is", "are"), counted_that(2, "row", "is", "are")) == (
        "1 row is",
        "2 rows are",
    )
    assert (some_of(1, 1, "file"), some_of(1, 2000, "file")) == ("1 of 1 file", "1 of 2,000 files")
    assert some_that(1, 4, "file", "is", "are") == "1 of 4 files is"
    assert (all_that(1, "row", "is", "are"), all_that(3, "row", "is", "are")) == (
        "the 1 row is",
        "all 3 rows are",
    )


def test_what_is_counted_is_written_by_the_functions_for_it() -> None:
    """``{n:,} files`` is wrong for one file: `units.counted` and its like know the singular."""
    found = [
        f"{place}: {{{ast.unparse(number.value)}}}{text_of(after)}"
        for place, text in texts()
        for number, after in pairwise(text.values)
        if isinstance(number, ast.FormattedValue) and form_of(number) == "," and PLURAL.match(text_of(after))
    ]
    assert found == []


def test_numbers_have_thousands_separators() -> None:
    found = [
        f"{place}: {{{ast.unparse(value.value)}}}"
        for place, text in texts()
        for value in text.values
        if isinstance(value, ast.FormattedValue)
        and isinstance(value.value, ast.Call)
        and isinstance(value.value.func, ast.Name)
        and value.value.func.id in ("len", "sum")
        and "," not in form_of(value)
    ]
    assert found == []


@pytest.mark.parametrize("page", sorted(PACKAGE.rglob("*.jinja")), ids=lambda path: path.parent.name)
def test_pages_count_alike(page: Path) -> None:
    text = page.read_text()
    assert not re.search(rf"\}}\}}{PLURAL.pattern}", text)
    assert not re.search(r"\{\{[^}]*\blength\s*\}\}", text), "a length without the filter `count`"
