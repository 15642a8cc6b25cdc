"""The statements that stage rows, compare them with a table, and write those that are new or different.

They take no parameters: with them, psycopg2 would read a % in a name as a placeholder. Identifiers and values are quoted by
psycopg2, never pasted. Each runs on any table that `catalog.read_target` takes: an UPDATE and an INSERT do what
``ON CONFLICT DO UPDATE`` would, which partitioned tables, deferrable keys, keys over ranges and identity columns refuse in
part or as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from psycopg2 import sql

from migration_pipeline.profile.row import Table
from migration_pipeline.targets.catalog import Target
from migration_pipeline.targets.copy_csv import COPY_OPTIONS
from migration_pipeline.targets.fits import TIMES, Fit

EXAMPLES = 20
"""Examples of keys that are kept: of collisions a file, of differences a file and table."""


class Statements(msgspec.Struct, frozen=True):
    """The SQL of one table, composed once."""

    staging: sql.Identifier
    copy: sql.Composed
    """COPY straight into the table."""
    stage: sql.Composed
    """Makes the staging table, whose types hold all values of the Row exactly, unless it is there."""
    empty: sql.Composed
    copy_to_staging: sql.Composed
    fold: sql.Composed | None
    """Merges rows of one key in the staging table, two by two; gives whether there still are some. None where none merge."""
    twins: sql.Composed | None
    """Deletes all but one row of each key that the column calls equal; None where Python tells them apart as it does."""
    round_trips: sql.Composed | None
    """Counts the values that the columns `round_trip_fits` would not give back."""
    round_trip_fits: tuple[Fit, ...]
    classify: sql.Composed
    """Counts the staged rows that are new, different, and older than the table's."""
    update: sql.Composed | None
    """Writes those that are different, gives their number and keeps examples; None for a table that is all key."""
    insert: sql.Composed
    """Writes those that are new."""

    @property
    def trial(self) -> list[sql.Composed]:
        """What a load may have to do, in an order in which it can be tried without a row."""
        optional = (self.fold, self.twins, self.round_trips, self.update)
        return [
            self.stage,
            self.empty,
            *(text for text in optional if text is not None),
            self.classify,
            self.insert,
        ]


def statements(
    target: Target,
    staging: sql.Identifier,
    file: Sequence[str] = ("", "", ""),
    examples: int = 0,
    within: sql.Composable | None = None,
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
        "source": sql.SQL("SELECT {} FROM {}").format(name_list(names), staging),
        "same_key": sql.SQL("{} AND {}").format(same_key(target, "t", "s"), within)
        if within
        else same_key(target, "t", "s"),
        "first_key": sql.Identifier(table.key[0]) if table.key else sql.SQL(""),
        "differs": sql.SQL("{} AND {}").format(differs(others, "t", "s"), not_older(target, "t", "s")),
        "newer": sql.SQL("NOT {}").format(not_older(target, "t", "s")),
        "options": sql.SQL(COPY_OPTIONS),
        "values": sql.SQL(", ").join(written(fit, "s") for fit in fits),
        "order": sql.SQL(", ").join(as_key(fit, "s") for fit in fits if fit.column.name in table.key),
        "overriding": sql.SQL("OVERRIDING SYSTEM VALUE " if target.overriding else ""),
        "changes": sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(fit.column.name), merged(fit, "t", "s"))
            for fit in others
        ),
        "key_document": key_document(table, "t"),
        "this_file": sql.SQL(", ").join(map(sql.Literal, file)),
        "table": sql.Literal(table.qualified),
        "examples": sql.Literal(examples),
    }
    parts["unless_there"] = sql.SQL("ON CONFLICT ({}) DO NOTHING" if target.arbiter else "").format(
        *([parts["key"]] if target.arbiter else [])
    )
    spelled = tuple(fit for fit in fits if fit.round_trip)
    keyed = bool(table.key)
    return Statements(
        staging=staging,
        copy=sql.SQL("COPY {target} ({columns}) FROM STDIN WITH ({options})").format(**parts),
        stage=stage(fits, staging),
        empty=sql.SQL("DELETE FROM {staging}").format(**parts),
        copy_to_staging=sql.SQL("COPY {staging} ({columns}) FROM STDIN WITH ({options})").format(**parts),
        fold=_fold(target, staging) if table.merges else None,
        twins=_twins(target, staging) if keyed and not table.merges and _loose(target) else None,
        round_trips=round_trips(spelled, staging) if spelled else None,
        round_trip_fits=spelled,
        classify=sql.SQL(CLASSIFY if keyed else "SELECT 0, 0, 0").format(**parts),
        update=sql.SQL(UPDATE).format(**parts) if others and keyed else None,
        insert=sql.SQL(INSERT if keyed else "SELECT").format(**parts),
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
), examples AS (
    INSERT INTO migration.collision (profile, export_id, file, table_name, key)
    SELECT {this_file}, {table}, key
      FROM changed
     WHERE {examples} > (SELECT count(*) FROM migration.collision WHERE (profile, export_id, file) = ({this_file}))
     LIMIT {examples}
        ON CONFLICT DO NOTHING
)
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


def compared(target: Target) -> list[Fit]:
    """The columns by which a row is different: those of the key, too, whose type calls other values equal."""
    return [
        fit
        for fit in target.fits
        if fit.column.name not in target.table.key or (fit.loose and fit.actual.identity != "a")
    ]


def stage(fits: Sequence[Fit], staging: sql.Identifier, *, exact: bool = False) -> sql.Composed:
    """Make a table for the exact values of some columns, which ends with its transaction; with `exact`, of any value."""
    return sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} ({}) ON COMMIT DROP").format(
        sql.Identifier(staging.strings[-1]),
        sql.SQL(", ").join(
            sql.SQL("{} {}").format(
                sql.Identifier(fit.column.name), sql.SQL((fit.exact if exact else "") or fit.staged)
            )
            for fit in fits
        ),
    )


def exactly(fits: Sequence[Fit], alias: str) -> sql.Composed:
    """Columns of a query as the types that hold the Row's values exactly."""
    return sql.SQL(", ").join(
        sql.SQL("{0}::{1} AS {2}").format(
            sql.Identifier(alias, fit.column.name),
            sql.SQL(fit.exact or fit.staged),
            sql.Identifier(fit.column.name),
        )
        for fit in fits
    )


def written(fit: Fit, alias: str) -> sql.Composed:
    """A staged value as the column takes it."""
    return sql.SQL(fit.written).format(sql.Identifier(alias, fit.column.name))


def as_key(fit: Fit, alias: str | None) -> sql.Composed:
    """A staged value as it is compared with the column of a key, so that the key's index finds it."""
    value = sql.SQL(fit.key or fit.written).format(sql.Identifier(*filter(None, (alias, fit.column.name))))
    return (
        sql.SQL("({}) COLLATE {}").format(value, sql.SQL(fit.actual.collation))
        if fit.actual.collation
        else value
    )


def same_key(target: Target, old: str, new: str) -> sql.Composed:
    """The condition that a row of the table and a staged one have one key."""
    by_name = {fit.column.name: fit for fit in target.fits}
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(old, name), as_key(by_name[name], new))
        for name in target.table.key
    )


def merged(fit: Fit, old: str, new: str) -> sql.Composed:
    """The value of a column after an update: the staged one or, where the column merges, that of both."""
    value = written(fit, new)
    if fit.column.merge is None:
        return value
    both = {"old": sql.Identifier(old, fit.column.name), "new": value}
    return sql.SQL("({})").format(sql.SQL(fit.column.merge).format(**both))


def sides(fit: Fit, old: str, new: str) -> tuple[sql.Composable, sql.Composable]:
    """The table's value and the one that it should be, as they are compared."""
    if fit.column.merge is not None:  # it is as it should be if the staged one is in it already
        return sql.Identifier(old, fit.column.name), merged(fit, old, new)
    return (
        sql.SQL(fit.theirs).format(sql.Identifier(old, fit.column.name)),
        sql.SQL(fit.ours).format(sql.Identifier(new, fit.column.name)),
    )


NOT_THE_SAME = "ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record"
"""Without the casts PostgreSQL takes it for one comparison a column, by an operator of the column's type."""


def differs(fits: Sequence[Fit], old: str, new: str) -> sql.Composable:
    """The condition that a row is not as it should be.

    Equal is not the same: two boxes of one area are equal, ``1 mon`` and ``30 days``, texts of some collations. So columns of
    such types are compared by their image.
    """
    conditions = []
    for image, comparison in ((False, "ROW({}) IS DISTINCT FROM ROW({})"), (True, NOT_THE_SAME)):
        pairs = [sides(fit, old, new) for fit in fits if fit.image == image]
        if pairs:
            theirs, ours = (sql.SQL(", ").join(side) for side in zip(*pairs, strict=True))
            conditions.append(sql.SQL(comparison).format(theirs, ours))
    return sql.SQL("({})").format(sql.SQL(" OR ").join(conditions)) if conditions else sql.SQL("false")


def differing(fits: Sequence[Fit], old: str, new: str) -> sql.Composed:
    """An array of the names of the columns that differ."""
    return sql.SQL("array_remove(ARRAY[{}]::text[], NULL)").format(
        sql.SQL(", ").join(
            sql.SQL("CASE WHEN {} THEN {} END").format(
                differs_alone(fit, old, new), sql.Literal(fit.column.name)
            )
            for fit in fits
        )
    )


def differs_alone(fit: Fit, old: str, new: str) -> sql.Composed:
    """The condition that one column is not as it should be."""
    theirs, ours = sides(fit, old, new)
    return sql.SQL(NOT_THE_SAME if fit.image else "{} IS DISTINCT FROM {}").format(theirs, ours)


def key_document(table: Table, alias: str) -> sql.Composed:
    """A row's key as JSON."""
    return sql.SQL("jsonb_build_object({})").format(
        sql.SQL(", ").join(
            sql.SQL("{}, {}").format(sql.Literal(name), sql.Identifier(alias, name)) for name in table.key
        )
    )


def names_of(fits: Iterable[Fit]) -> list[str]:
    """Names of columns."""
    return [fit.column.name for fit in fits]


def name_list(names: Iterable[str], alias: str | None = None) -> sql.Composed:
    """Quoted names with commas between."""
    return sql.SQL(", ").join(sql.Identifier(*filter(None, (alias, name))) for name in names)


def not_older(target: Target, old: str, new: str) -> sql.Composable:
    """The condition that a staged row may replace the table's: of one key the greatest version stays.

    The same version again is the same item, made anew.
    """
    version = _version(target)
    if version is None:
        return sql.SQL("true")
    return sql.SQL("({old} IS NULL OR {new} >= {old}) IS TRUE").format(
        old=sql.Identifier(old, version.column.name), new=as_key(version, new)
    )


def _version(target: Target) -> Fit | None:
    return next((fit for fit in target.fits if fit.column.name == target.table.version), None)


def _loose(target: Target) -> bool:
    return any(fit.loose for fit in target.fits if fit.column.name in target.table.key)


def _twins(target: Target, staging: sql.Identifier) -> sql.Composed:
    """Of rows of one key the one with the greatest version stays, and of those the one with the greatest text."""
    version = _version(target)
    return sql.SQL(TWINS).format(
        staging=staging,
        keys=sql.SQL(", ").join(
            as_key(fit, "s") for fit in target.fits if fit.column.name in target.table.key
        ),
        version=as_key(version, "s") if version else sql.SQL("NULL::text"),
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


def round_trips(fits: Sequence[Fit], staging: sql.Identifier) -> sql.Composed:
    """Count the staged values of each of these columns that the column would not give back."""
    return sql.SQL("SELECT {} FROM {} s").format(
        sql.SQL(", ").join(
            sql.SQL("count(*) FILTER (WHERE {})").format(
                sql.SQL(" AND ").join(
                    sql.SQL(read + " IS DISTINCT FROM {0}").format(sql.Identifier("s", fit.column.name))
                    for read in _given_back(fit)
                )
            )
            for fit in fits
        ),
        staging,
    )


def _given_back(fit: Fit) -> list[str]:
    """A staged value, written to the column's type and read again: in each of the ways in which it is spelled."""
    full = fit.written if fit.round_trip else f"{{0}}::{fit.actual.type}"
    full = full.replace("{}", "{0}")
    if fit.actual.element == "money" and fit.staged == "numeric":
        return [f"({full})::numeric"]  # text has a currency
    if fit.actual.element in ("numeric", *TIMES) and fit.staged != "text":
        return [f"({full})::{fit.staged}"]
    if (fit.exact or fit.staged) == "text":
        # A cast to text takes the blanks off a char(n), and gives an inet a netmask; output says t for true.
        cast = [] if fit.actual.element == "character" else [f"({full})::text"]
        return [*cast, f"CASE WHEN {{0}} IS NOT NULL THEN concat({full}) END"]
    return [f"({full})::text::{fit.exact or fit.staged}"]


def _fold(target: Target, staging: sql.Identifier) -> sql.Composed:
    """Compose the statement that merges each row of a staging table with the next one of its key."""
    values, following = [], []
    for number, fit in enumerate(target.fits):
        name, next_name = sql.Identifier(fit.column.name), sql.Identifier(f"next {number}")
        if fit.column.merge is None:
            values.append(sql.SQL("{}").format(name))
        else:
            merge = sql.SQL(fit.column.merge).format(old=name, new=next_name)
            values.append(sql.SQL("CASE WHEN {} THEN {} ELSE {} END").format(HAS_NEXT, merge, name))
            following.append(sql.SQL(", lead({}) OVER twins AS {}").format(name, next_name))
    keys = [as_key(fit, None) for fit in target.fits if fit.column.name in target.table.key]
    aliases = [sql.Identifier(f"key {number}") for number in range(len(keys))]
    return sql.SQL(FOLD).format(
        staging=staging,
        columns=name_list(names_of(target.fits)),
        keys=sql.SQL(", ").join(keys),
        returned=sql.SQL(", ").join(map(sql.SQL("{} AS {}").format, keys, aliases)),
        aliases=sql.SQL(", ").join(aliases),
        following=sql.Composed(following),
        has_next=HAS_NEXT,
        number=NUMBER,
        values=sql.SQL(", ").join(values),
    )


HAS_NEXT = sql.Identifier("has next")
NUMBER = sql.Identifier("number of twin")
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
