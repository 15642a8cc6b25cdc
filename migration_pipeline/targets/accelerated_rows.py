"""Rows as COPY input by a C extension, where there is one: the same bytes as `copy_csv` makes in Python, in less time.

`copy_csv.RowEncoder` is the specification. Whatever the extension does not know is encoded there: a column's value, a row, or all
rows of a piece, which also finds the reason for those that cannot be encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from migration_pipeline.profile.row import Column, Row, Table, element_type
from migration_pipeline.targets.fits import Fit
from migration_pipeline.targets.spellings import Spell, bytea, document, scalar, spelling_of, utc

PLAIN, SCALAR, BYTEA, ARRAY, BYTEA_ARRAY, DOCUMENT, TIME, UTC, SPELLED = range(9)
"""How a column's values are spelled, as `_rows.c` numbers it. `SPELLED` are those that Python spells, each."""

KINDS: dict[Spell, int] = {scalar: SCALAR, bytea: BYTEA, document: DOCUMENT, utc: UTC}


def compile_rows(
    rows: Any,
    row_class: type[Row],
    table: Table,
    fits: Mapping[str, Fit],
    spellings: Mapping[str, Spell | None],
    line_of: Callable[[Row], bytes],
    *,
    apart: bool,
) -> Any:
    """Make the encoder of a table's rows in `rows`, the extension or None; None where that cannot be.

    `spellings` are Python's, by field; `line_of` encodes a row in Python.
    """
    if rows is None:
        return None
    columns = []
    for column in table.columns:
        spell = spellings[column.field]
        kind = _kind_of(column, fits.get(column.name), spell)
        # Of a time that C does not know Python looks at the zone first: with the whole row.
        alone = None if kind in (TIME, UTC) else spell
        columns.append((getattr(row_class, column.field, None), kind, alone))
    names = [column.name for column in table.columns]
    key = tuple(map(names.index, table.key))
    try:
        return rows.Encoder(row_class, tuple(columns), key, line_of, apart)
    except TypeError:
        return None  # a class whose attributes are no members


def _kind_of(column: Column, fit: Fit | None, spell: Spell | None) -> int:
    if spell is None:
        return TIME if column.python_type is datetime else PLAIN
    own = spelling_of(column, fit) or spell
    if own in KINDS:
        return KINDS[own]
    if fit and fit.utc:
        return SPELLED
    return BYTEA_ARRAY if element_type(column.python_type) is bytes else ARRAY


def join(
    rows: Any, keys: Sequence[Sequence[Any]], lines: Sequence[Sequence[bytes]], *, twins: bool
) -> bytes | None:
    """Sort the lines of some pieces by key, each with a newline at its end.

    None where that is for Python, as it is for two of a key without `twins`.
    """
    try:
        return rows.join(keys, lines, twins) if rows is not None else None
    except Exception:
        return None  # Python says what it is
