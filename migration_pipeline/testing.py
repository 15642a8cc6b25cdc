"""For the tests of your profile: the rows of an item, and the laws of a column that merges.

    from migration_pipeline.testing import check_merges, rows_of

    def test_a_customer():
        item = {"PK": {"S": "CUSTOMER#7"}, "SK": {"S": "PROFILE"}}
        assert rows_of(profile, item) == [Customer(customer_id="7")]

    def test_scores_merge_in_any_order():
        check_merges(Score, "postgresql://…")

The second needs `hypothesis`, and a PostgreSQL to evaluate the expressions in; it reads and writes no table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, timezone
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg2
from psycopg2 import sql

from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import UsageError
from migration_pipeline.profile.aggregate import Options
from migration_pipeline.profile.profile import Profile, Rule
from migration_pipeline.profile.row import Column, Row, table_of
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.dialects import json_line
from migration_pipeline.targets.connection import DatabaseError, connect, explain
from migration_pipeline.targets.spellings import spelling_of

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def rows_of(profile: Profile, item: Mapping[str, Any] | bytes, options: Options | None = None) -> list[Row]:
    """Return the rows that a load makes of an item, those of one table together; none when the profile skips it.

    The item is given as its attributes in DynamoDB JSON (``{"PK": {"S": "…"}}``), or as a line of an export, in Ion, too.
    `options` are the profile's, its defaults by default. Raises `BadItem` for an item that goes to the quarantine.
    """
    line = json_line(item) if isinstance(item, bytes) else json.dumps({"Item": item}).encode()
    return _compiled(profile, tuple(profile.rules), options).one(line).all_rows


@lru_cache(maxsize=8)
def _compiled(profile: Profile, rules: tuple[Rule, ...], options: Options | None) -> Transform:
    """Compile a profile once for all tests; `rules` tells when it was changed."""
    return Transform(profile, dynamodb_json, options)


# -- the laws of a merge ----------------------------------------------------------------------------

LAWS = {
    "commutative: merge(a, b) = merge(b, a)": ("{ab}", "{ba}"),
    "associative: merge(merge(a, b), c) = merge(a, merge(b, c))": ("{ab_c}", "{a_bc}"),
    "idempotent: merge(a, a) = a": ("{aa}", "{a}"),
}


def check_merges(
    row_class: type[Row],
    url: str,
    values: Mapping[str, SearchStrategy[Any]] | None = None,
    max_examples: int = 200,
) -> None:
    """Check the `Merge` of each column of a Row against its laws, with random values of its type.

    `values` has hypothesis strategies by column name, for columns of unusual types or that need certain
    values. Raises `AssertionError` naming column, law and values that break it; `DatabaseError` when
    PostgreSQL refuses the expression.
    """
    from hypothesis import given, settings
    from hypothesis import strategies as st

    columns = [column for column in table_of(row_class).columns if column.merge]
    if not columns:
        raise UsageError(f"{row_class.__name__}: it has no column with a Merge to check")
    connection = connect(url)
    connection.autocommit = True
    try:
        for column in columns:
            strategy = values[column.name] if values and column.name in values else _strategy(column)
            if column.nullable:
                strategy = st.none() | strategy

            check = _law_test(connection, row_class.__name__, column)
            given(st.tuples(strategy, strategy, strategy))(
                settings(max_examples=max_examples, deadline=None, database=None)(check)
            )()
    finally:
        connection.close()


def _law_test(connection: Any, name: str, column: Column) -> Callable[[tuple[Any, Any, Any]], None]:
    def hold(three: tuple[Any, Any, Any]) -> None:
        for law, held in zip(LAWS, _held(connection, column, *three), strict=True):
            if not held:
                raise AssertionError(f"{name}.{column.field} is not {law}; a, b, c = {three!r}")

    return hold


def _held(connection: Any, column: Column, *values: Any) -> tuple[bool, ...]:
    """Evaluate the laws for three values."""
    spell = spelling_of(column) or (lambda value: value)
    texts = [None if value is None else spell(value) for value in values]
    a, b, c = (sql.SQL("({})::{}").format(sql.Literal(text), sql.SQL(column.pg_type)) for text in texts)

    def merge(old: sql.Composable, new: sql.Composable) -> sql.Composable:
        both = sql.SQL(column.merge or "").format(old=old, new=new)
        return sql.SQL("({})::{}").format(both, sql.SQL(column.pg_type))

    terms = {
        "a": a,
        "aa": merge(a, a),
        "ab": merge(a, b),
        "ba": merge(b, a),
        "ab_c": merge(merge(a, b), c),
        "a_bc": merge(a, merge(b, c)),
    }
    equations = sql.SQL(", ").join(
        sql.SQL(f"{left} IS NOT DISTINCT FROM {right}").format(**terms) for left, right in LAWS.values()
    )
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql.SQL("SELECT {}").format(equations))
            held: tuple[bool, ...] = cursor.fetchone()
            return held
    except psycopg2.Error as error:
        raise DatabaseError(f"column {column.name}: {explain(error)}", sqlstate=error.pgcode) from None


def _strategy(column: Column) -> SearchStrategy[Any]:
    from hypothesis import strategies as st

    small = {"smallint": 2**15, "integer": 2**31}.get(column.pg_type, 2**63)
    usual: dict[Any, SearchStrategy[Any]] = {
        # Few values, so that some are equal, and any.
        int: st.integers(-2, 2) | st.integers(-small, small - 1),
        str: st.sampled_from(["", "a", "b"])
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5),
        bool: st.booleans(),
        Decimal: st.decimals(allow_nan=False, allow_infinity=False, places=2),
        float: st.floats(allow_nan=False, width=32),
        datetime: st.datetimes(timezones=st.just(timezone.utc)),
        date: st.dates(),
        UUID: st.uuids().map(str),
    }
    if column.python_type not in usual:
        raise UsageError(
            f"column {column.name}: give a strategy for its values: values={{{column.name!r}: …}}"
        )
    return usual[column.python_type]
