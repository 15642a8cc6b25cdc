"""The statements that stage rows, compare them with a table, and write those that are new or different.

They take no parameters: with them, psycopg2 would read a % in a name as a placeholder. Identifiers and values are quoted by
psycopg2, never pasted. Each runs on any table that `catalog.read_target` takes: an UPDATE and an INSERT do what
``ON CONFLICT DO UPDATE`` would, which partitioned tables, deferrable keys, keys over ranges and identity columns refuse in
part or as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from migration_pipeline.profile.row import Row
from migration_pipeline.targets.bookkeeping import KEEP_COLLISIONS
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.expressions import (
    as_key,
    comparable,
    compared,
    differing,
    differs,
    given_back,
    key_document,
    merged,
    name_list,
    names_of,
    not_older,
    same_key,
    version_of,
    written,
)
from migration_pipeline.targets.fits import Fit

EXAMPLES = 20
"""Examples of keys that are kept: of collisions a file, of differences a file and table."""


class Statements(msgspec.Struct, frozen=True):
    """The SQL of one table, composed once."""

    staging: Identifier
    stage: Composed
    """Makes the staging table, whose types hold all values of the Row exactly, unless it is there."""
    empty: Composed
    copy_to_staging: Composed
    fold: Composed | None
    """Merges rows of one key in the staging table, two by two; gives whether there still are some. None where none merge."""
    twins: Composed | None
    """Deletes all but one row of each key that the column calls equal; None where Python tells them apart as it does."""
    round_trips: Composed | None
    """Counts the values that the columns `round_trip_fits` would not give back."""
    round_trip_fits: tuple[Fit, ...]
    classify: Composed
    """Counts the staged rows that are new, different, and older than the table's."""
    update: Composed | None
    """Writes those that are different, gives their number and keeps examples; None for a table that is all key."""
    insert: Composed
    """Writes those that are new."""

    @property
    def trial(self) -> list[Composed]:
        """What a load may have to do, in an order in which it can be tried without a row."""
        optional = (self.fold, self.twins, self.round_trips, self.update)
        return [
            self.stage,
            self.empty,
            *(text for text in optional if text is not None),
            self.classify,
            self.insert,
        ]


def copy_rows(target: TargetTable, into: Identifier, options: str = COPY_OPTIONS) -> Composed:
    """Copy a table's rows into it, or into another one that has its columns."""
    return SQL("COPY {} ({}) FROM STDIN WITH ({})").format(
        into, name_list(names_of(target.fits)), SQL(options)
    )


class Composing(dict[type[Row], Statements]):
    """Statements by Row class, composed when they are asked for: a file that sends none to a staging table needs none."""

    def __init__(self, compose: Callable[[type[Row]], Statements]) -> None:
        super().__init__()
        self._compose = compose

    def __missing__(self, row_class: type[Row]) -> Statements:
        self[row_class] = made = self._compose(row_class)
        return made


def statements(
    target: TargetTable,
    staging: Identifier,
    file: Sequence[str] = ("", "", ""),
    examples: int = 0,
    within: Composable | None = None,
) -> Statements:
    """Compose a table's statements.

    `file` is profile, export and file, for up to so many `examples` of collisions. `within` is a condition of the table's
    rows `t` that may be met.
    """
    table, fits = target.table, target.fits
    names = names_of(fits)
    others = compared(target)
    parts = {
        "target": target.identifier,
        "staging": staging,
        "columns": name_list(names),
        "key": name_list(table.key),
        "same_key": SQL("{} AND {}").format(same_key(target, "t", "s"), within)
        if within
        else same_key(target, "t", "s"),
        "first_key": Identifier(table.key[0]) if table.key else SQL(""),
        "differs": SQL("{} AND {}").format(differs(others, "t", "s"), not_older(target, "t", "s")),
        "newer": SQL("NOT {}").format(not_older(target, "t", "s")),
        "values": SQL(", ").join(written(fit, "s") for fit in fits),
        "order": SQL(", ").join(as_key(fit, "s") for fit in target.key_fits),
        "overriding": SQL("OVERRIDING SYSTEM VALUE " if target.overriding else ""),
        "changes": SQL(", ").join(
            SQL("{} = {}").format(Identifier(fit.column.name), merged(fit, "t", "s")) for fit in others
        ),
        "key_document": key_document(table, "t"),
        "keep_collisions": SQL(KEEP_COLLISIONS).format(
            this_file=SQL(", ").join(map(Literal, file)),
            table=Literal(table.qualified),
            examples=Literal(examples),
        ),
    }
    parts["unless_there"] = SQL("ON CONFLICT ({}) DO NOTHING" if target.arbiter else "").format(
        *([parts["key"]] if target.arbiter else [])
    )
    spelled = tuple(fit for fit in fits if fit.round_trip)
    keyed = bool(table.key)
    return Statements(
        staging=staging,
        stage=stage(fits, staging),
        empty=SQL("DELETE FROM {staging}").format(**parts),
        copy_to_staging=copy_rows(target, staging),
        fold=_fold(target, staging) if table.merges else None,
        twins=_twins(target, staging) if keyed and not table.merges and _loose(target) else None,
        round_trips=round_trips(spelled, staging) if spelled else None,
        round_trip_fits=spelled,
        classify=SQL(CLASSIFY if keyed else "SELECT 0, 0, 0").format(**parts),
        update=SQL(UPDATE).format(**parts) if others and keyed else None,
        insert=SQL(INSERT if keyed else "SELECT").format(**parts),
    )


CLASSIFY = """
SELECT count(*) FILTER (WHERE t.{first_key} IS NULL),
       count(*) FILTER (WHERE t.{first_key} IS NOT NULL AND {differs}),
       count(*) FILTER (WHERE t.{first_key} IS NOT NULL AND {newer})
  FROM {staging} s
  LEFT JOIN {target} t ON {same_key}
"""

UPDATE = """
WITH changed AS (
    UPDATE {target} AS t
       SET {changes}
      FROM {staging} s
     WHERE {same_key} AND {differs}
    RETURNING {key_document} AS key
), examples AS ({keep_collisions})
SELECT count(*) FROM changed
"""
"""Rows that are there unchanged stay out of it, as each would be locked and logged."""

INSERT = """
INSERT INTO {target} ({columns}) {overriding}
SELECT {values}
  FROM {staging} s
  LEFT JOIN {target} t ON {same_key}
 WHERE t.{first_key} IS NULL
 ORDER BY {order}
{unless_there}
"""


def stage(fits: Sequence[Fit], staging: Identifier, *, exact: bool = False) -> Composed:
    """Make a table for the exact values of some columns, which ends with its transaction; with `exact`, of any value."""
    return SQL("CREATE TEMP TABLE IF NOT EXISTS {} ({}) ON COMMIT DROP").format(
        Identifier(staging.strings[-1]),
        SQL(", ").join(
            SQL("{} {}").format(Identifier(fit.column.name), SQL((fit.exact if exact else "") or fit.staged))
            for fit in fits
        ),
    )


def _loose(target: TargetTable) -> bool:
    return any(fit.loose for fit in target.key_fits)


def _twins(target: TargetTable, staging: Identifier) -> Composed:
    """Of rows of one key the one with the greatest version stays, and of those the one with the greatest text."""
    version = version_of(target)
    return SQL(TWINS).format(
        staging=staging,
        keys=SQL(", ").join(as_key(fit, "s") for fit in target.key_fits),
        version=as_key(version, "s") if version else SQL("NULL::text"),
        row=name_list(names_of(target.fits), "s"),
    )


TWINS = """
DELETE FROM {staging}
 WHERE ctid IN (SELECT place
                  FROM (SELECT s.ctid AS place,
                               row_number() OVER (PARTITION BY {keys}
                                                      ORDER BY {version} DESC NULLS LAST,
                                                               ROW({row})::text COLLATE "C" DESC) AS rank
                          FROM {staging} s) r
                 WHERE rank > 1)
"""


def round_trips(fits: Sequence[Fit], staging: Identifier) -> Composed:
    """Count the staged values of each of these columns that the column would not give back."""
    return SQL("SELECT {} FROM {} s").format(
        SQL(", ").join(
            SQL("count(*) FILTER (WHERE {})").format(
                SQL(" AND ").join(
                    SQL(read + " IS DISTINCT FROM {0}").format(Identifier("s", fit.column.name))
                    for read in given_back(fit)
                )
            )
            for fit in fits
        ),
        staging,
    )


def _fold(target: TargetTable, staging: Identifier) -> Composed:
    """Compose the statement that merges each row of a staging table with the next one of its key."""
    values, following = [], []
    for number, fit in enumerate(target.fits):
        name, next_name = Identifier(fit.column.name), Identifier(f"next {number}")
        if fit.column.merge is None:
            values.append(SQL("{}").format(name))
        else:
            merge = SQL(fit.column.merge).format(old=name, new=next_name)
            values.append(SQL("CASE WHEN {} THEN {} ELSE {} END").format(HAS_NEXT, merge, name))
            following.append(SQL(", lead({}) OVER twins AS {}").format(name, next_name))
    keys = [as_key(fit, None) for fit in target.key_fits]
    aliases = [Identifier(f"key {number}") for number in range(len(keys))]
    return SQL(FOLD).format(
        staging=staging,
        columns=name_list(names_of(target.fits)),
        keys=SQL(", ").join(keys),
        returned=SQL(", ").join(map(SQL("{} AS {}").format, keys, aliases)),
        aliases=SQL(", ").join(aliases),
        following=Composed(following),
        has_next=HAS_NEXT,
        number=NUMBER,
        values=SQL(", ").join(values),
    )


HAS_NEXT = Identifier("has next")
NUMBER = Identifier("number of twin")
"""Names that no column of a profile is likely to have."""

FOLD = """
WITH taken AS (
    DELETE FROM {staging} RETURNING {columns}
), numbered AS (
    SELECT {columns}, row_number() OVER twins AS {number}, lead(true, 1, false) OVER twins AS {has_next}{following}
      FROM taken
    WINDOW twins AS (PARTITION BY {keys} ORDER BY {columns})
), folded AS (
    INSERT INTO {staging} ({columns}) SELECT {values} FROM numbered WHERE {number} % 2 = 1 RETURNING {returned}
)
SELECT count(*) > count(DISTINCT ({aliases})) FROM folded
"""
"""Of the rows of one key it leaves half as many. Which are merged first does not matter, by the laws of `Merge`."""


# -- the rows of an aggregate ------------------------------------------------------------------------

HISTOGRAM = """
SELECT bound::text
  FROM (SELECT DISTINCT {bound} AS bound
          FROM pg_stats s, unnest(coalesce(histogram_bounds::text, most_common_vals::text)::text[]) AS b
         WHERE (schemaname, tablename) = (SELECT nspname, relname
                                            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                                           WHERE c.oid = to_regclass(%s))
           AND attname = %s AND inherited) AS bounds
 ORDER BY bounds.bound
"""
"""Values that split the landed rows into shares of one size, or all values if they are few, in the order of the key."""


OCCUPIED = "SELECT EXISTS (SELECT FROM {target} t WHERE {range_of_target})"


INSERT_PART = """
INSERT INTO {target} ({columns}) {overriding}
SELECT {values}
  FROM (SELECT {exactly} FROM (
{select}
) q WHERE {range_of_query}) s
"""


STAGE_PART = """
INSERT INTO {staging} ({columns})
SELECT {exactly} FROM (
{select}
) q WHERE {range_of_query}
"""


COUNT_TWINS = "SELECT count(*) - count(DISTINCT ({staged_key})) FROM {staging} s"


DELETE_OTHERS = """
DELETE FROM {target} t
 WHERE {range_of_target} AND NOT EXISTS (SELECT FROM {staging} s WHERE {same_key})
"""


# -- comparisons -------------------------------------------------------------------------------------

COMPARE = """
SELECT kind, columns, count(*), (array_agg(key::text ORDER BY key::text))[1:{examples}]
  FROM (SELECT {key} AS key,
               CASE WHEN t.{first_key} IS NULL THEN 'missing' WHEN {not_older} THEN 'different' ELSE 'newer' END AS kind,
               CASE WHEN t.{first_key} IS NULL THEN ARRAY[]::text[] ELSE {differing} END AS columns
          FROM {staging} s
          LEFT JOIN {target} t ON {same_key}
         WHERE t.{first_key} IS NULL OR {differs}) AS compared
 GROUP BY kind, columns
"""


EXTRA = """
WITH extra AS (
    SELECT {key} AS key
      FROM {target} t
     WHERE NOT EXISTS (SELECT FROM {seen} s WHERE {same_key})
)
SELECT count(*), (SELECT array_agg(key::text) FROM (SELECT key FROM extra LIMIT {examples}) AS shown) FROM extra
"""


COMPARE_SLICES = """
WITH ours AS (SELECT {ours} FROM {staging}), theirs AS (SELECT {columns} FROM {theirs})
SELECT (SELECT count(*) FROM (TABLE ours EXCEPT ALL TABLE theirs) AS missing),
       (SELECT count(*) FROM (TABLE theirs EXCEPT ALL TABLE ours) AS extra)
"""


def compare_slices(target: TargetTable, staging: Identifier, theirs: Composable) -> Composed:
    """Count the staged rows that a slice has not, and those of it that are not staged."""
    return SQL(COMPARE_SLICES).format(
        ours=comparable(target, "ours"), staging=staging, columns=comparable(target, "theirs"), theirs=theirs
    )


def extra(target: TargetTable, seen: Identifier) -> Composed:
    """Count the rows of a table whose keys are not among those seen, with examples of keys."""
    return SQL(EXTRA).format(
        target=target.identifier,
        seen=seen,
        same_key=same_key(target, "t", "s"),
        key=key_document(target.table, "t"),
        examples=Literal(EXAMPLES),
    )


def compare(target: TargetTable, staging: Identifier) -> Composed:
    """Count the staged rows that the table does not hold just so, by kind and columns, with examples of keys."""
    others = compared(target)
    return SQL(COMPARE).format(
        examples=Literal(EXAMPLES),
        key=key_document(target.table, "s"),
        first_key=Identifier(target.table.key[0]),
        not_older=not_older(target, "t", "s"),
        differing=differing(others, "t", "s"),
        staging=staging,
        target=target.identifier,
        same_key=same_key(target, "t", "s"),
        differs=differs(others, "t", "s"),
    )
