"""The parts of statements: names, values and conditions of columns, as a table's types want them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg2.sql import SQL, Composable, Composed, Identifier, Literal

from migration_pipeline.profile.row import Table
from migration_pipeline.targets.catalog import TargetTable
from migration_pipeline.targets.fits import TIMES, Fit


def names_of(fits: Iterable[Fit]) -> list[str]:
    """Names of columns."""
    return [fit.column.name for fit in fits]


def name_list(names: Iterable[str], alias: str | None = None) -> Composed:
    """Quoted names with commas between."""
    return SQL(", ").join(Identifier(*filter(None, (alias, name))) for name in names)


def written(fit: Fit, alias: str) -> Composed:
    """A staged value as the column takes it."""
    return SQL(fit.written).format(Identifier(alias, fit.column.name))


def as_key(fit: Fit, alias: str | None) -> Composed:
    """A staged value as it is compared with the column of a key, so that the key's index finds it."""
    return keyed(fit, Identifier(*filter(None, (alias, fit.column.name))))


def keyed(fit: Fit, value: Composable) -> Composed:
    """Any value of a staged column in that way."""
    key = SQL(fit.key or fit.written).format(value)
    return SQL("({}) COLLATE {}").format(key, SQL(fit.actual.collation)) if fit.actual.collation else key


def same_key(target: TargetTable, old: str, new: str) -> Composed:
    """The condition that a row of the table and a staged one have one key."""
    by_name = {fit.column.name: fit for fit in target.fits}
    return SQL(" AND ").join(
        SQL("{} = {}").format(Identifier(old, name), as_key(by_name[name], new)) for name in target.table.key
    )


def exactly(fits: Sequence[Fit], alias: str) -> Composed:
    """Columns of a query as the types that hold the Row's values exactly."""
    return SQL(", ").join(
        SQL("{0}::{1} AS {2}").format(
            Identifier(alias, fit.column.name), SQL(fit.exact or fit.staged), Identifier(fit.column.name)
        )
        for fit in fits
    )


def compared(target: TargetTable) -> list[Fit]:
    """The columns by which a row is different: those of the key, too, whose type calls other values equal."""
    return [
        fit
        for fit in target.fits
        if fit.column.name not in target.table.key or (fit.loose and fit.actual.identity != "a")
    ]


def merged(fit: Fit, old: str, new: str) -> Composed:
    """The value of a column after an update: the staged one or, where the column merges, that of both."""
    value = written(fit, new)
    if fit.column.merge is None:
        return value
    both = {"old": Identifier(old, fit.column.name), "new": value}
    return SQL("({})").format(SQL(fit.column.merge).format(**both))


def sides(fit: Fit, old: str, new: str) -> tuple[Composable, Composable]:
    """The table's value and the one that it should be, as they are compared."""
    if fit.column.merge is not None:  # it is as it should be if the staged one is in it already
        return Identifier(old, fit.column.name), merged(fit, old, new)
    return (
        SQL(fit.theirs).format(Identifier(old, fit.column.name)),
        SQL(fit.ours).format(Identifier(new, fit.column.name)),
    )


NOT_THE_SAME = "ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record"
"""Without the casts PostgreSQL takes it for one comparison a column, by an operator of the column's type."""


def differs(fits: Sequence[Fit], old: str, new: str) -> Composable:
    """The condition that a row is not as it should be.

    Equal is not the same: two boxes of one area are equal, ``1 mon`` and ``30 days``, texts of some collations. So columns of
    such types are compared by their image.
    """
    conditions = []
    for image, comparison in ((False, "ROW({}) IS DISTINCT FROM ROW({})"), (True, NOT_THE_SAME)):
        pairs = [sides(fit, old, new) for fit in fits if fit.image == image]
        if pairs:
            theirs, ours = (SQL(", ").join(side) for side in zip(*pairs, strict=True))
            conditions.append(SQL(comparison).format(theirs, ours))
    return SQL("({})").format(SQL(" OR ").join(conditions)) if conditions else SQL("false")


def differs_alone(fit: Fit, old: str, new: str) -> Composed:
    """The condition that one column is not as it should be."""
    theirs, ours = sides(fit, old, new)
    return SQL(NOT_THE_SAME if fit.image else "{} IS DISTINCT FROM {}").format(theirs, ours)


def differing(fits: Sequence[Fit], old: str, new: str) -> Composed:
    """An array of the names of the columns that differ."""
    return SQL("array_remove(ARRAY[{}]::text[], NULL)").format(
        SQL(", ").join(
            SQL("CASE WHEN {} THEN {} END").format(differs_alone(fit, old, new), Literal(fit.column.name))
            for fit in fits
        )
    )


def not_older(target: TargetTable, old: str, new: str) -> Composable:
    """The condition that a staged row may replace the table's: of one key the greatest version stays.

    The same version again is the same item, made anew.
    """
    version = version_of(target)
    if version is None:
        return SQL("true")
    return SQL("({old} IS NULL OR {new} >= {old}) IS TRUE").format(
        old=Identifier(old, version.column.name), new=as_key(version, new)
    )


def version_of(target: TargetTable) -> Fit | None:
    """The column of the Row's version."""
    return next((fit for fit in target.fits if fit.column.name == target.table.version), None)


def key_document(table: Table, alias: str) -> Composed:
    """A row's key as JSON."""
    return SQL("jsonb_build_object({})").format(
        SQL(", ").join(SQL("{}, {}").format(Literal(name), Identifier(alias, name)) for name in table.key)
    )


def given_back(fit: Fit) -> list[str]:
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


def comparable(target: TargetTable, side: str) -> Composed:
    """The columns of one side as they are compared; what must be compared by its image, by its text."""
    values = []
    for fit in target.fits:
        value = SQL(fit.ours if side == "ours" else fit.theirs).format(Identifier(fit.column.name))
        values.append(SQL('({})::text COLLATE "C"').format(value) if fit.image else value)
    return SQL(", ").join(values)
