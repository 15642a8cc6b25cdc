"""Compares a target table, as PostgreSQL's catalog describes it, with its Row before any work.

A table that a load could not write, or whose contents could not be verified, is refused here, in one line that says what
to do: the second load of a file takes another path than the first, and must not fail where that one did not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import psycopg2
from psycopg2.sql import SQL, Composable, Identifier

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.row import Column, Table
from migration_pipeline.targets.connection import explain
from migration_pipeline.targets.faults import Fault, fault_of
from migration_pipeline.targets.fits import INTEGERS, Actual, Fit, fit_of


class SchemaError(UsageError):
    """The tables in the database are not those that the profile's Row classes describe."""


def quote(identifier: str) -> str:
    """Quote an identifier as `quote_ident` does, always; for DDL that is printed, not run through psycopg2."""
    return '"' + identifier.replace('"', '""') + '"'


def qualified(table: Table) -> str:
    """A table's quoted name, with its schema if it has one."""
    return ".".join(quote(part) for part in (table.schema, table.name) if part)


def identifier(table: Table) -> Identifier:
    """A table's quoted name."""
    return Identifier(*(part for part in (table.schema, table.name) if part))


class TargetTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that fits its Row."""

    table: Table
    schema: str
    """Where it lies: an unqualified name could mean another table, one of ours included, in the same session."""
    fits: tuple[Fit, ...]
    """One for each of the Row's columns, in their order."""
    arbiter: bool
    """Whether ``ON CONFLICT`` may name the key: its index is none of a deferrable constraint, or of one over ranges."""
    overriding: bool
    """Whether a column of the key is GENERATED ALWAYS AS IDENTITY, which an INSERT has to override."""
    triggers: bool
    """Whether triggers may change or drop what is written."""

    @property
    def identifier(self) -> Identifier:
        """Its quoted name."""
        return Identifier(self.schema, self.table.name)

    @property
    def key_fits(self) -> list[Fit]:
        """Those of the key."""
        return [fit for fit in self.fits if fit.column.name in self.table.key]

    @property
    def straight(self) -> bool:
        """Whether COPY may write straight into it, because nothing can change a row unnoticed."""
        return not self.triggers and not any(fit.round_trip for fit in self.fits)


TABLES = """
WITH RECURSIVE wanted AS (
    SELECT name, to_regclass(name)::oid AS top, landing FROM unnest(%(names)s::text[], %(landing)s::boolean[]) AS w (name, landing)
), part AS (
    SELECT top, top AS id, landing FROM wanted
     UNION ALL
    SELECT top, inhrelid, landing FROM part JOIN pg_inherits ON inhparent = id WHERE NOT landing
)
SELECT name, c.oid, n.nspname, c.relkind::text,
       (SELECT max((SELECT relpersistence::text FROM pg_class WHERE oid = id)) FROM part WHERE top = c.oid),
       EXISTS (SELECT FROM pg_rewrite WHERE ev_class = c.oid AND rulename <> '_RETURN'),
       c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid),
       row_security_active(c.oid), current_user,
       EXISTS (SELECT FROM part WHERE top = c.oid AND EXISTS (SELECT FROM pg_trigger WHERE tgrelid = id AND NOT tgisinternal AND tgenabled IN ('O', 'A'))),
       EXISTS (SELECT FROM pg_publication WHERE pubupdate)
  FROM wanted JOIN pg_class c ON c.oid = top JOIN pg_namespace n ON n.oid = relnamespace
"""
"""The slices of a landing table are left out: they are as `landing` makes them, and there are as many as files are landed."""

PUBLICATION = """
WITH RECURSIVE part AS (
    SELECT %s::oid AS id
     UNION ALL
    SELECT inhrelid FROM part JOIN pg_inherits ON inhparent = id
)
SELECT min(p.pubname)
  FROM part
  JOIN pg_class pc ON pc.oid = id
  JOIN pg_namespace pn ON pn.oid = pc.relnamespace
  JOIN pg_publication_tables t ON (t.schemaname, t.tablename) = (pn.nspname, pc.relname)
  JOIN pg_publication p USING (pubname)
 WHERE p.pubupdate
   AND EXISTS (SELECT
                 FROM part JOIN pg_class leaf ON leaf.oid = id
                WHERE leaf.relkind = 'r'
                  AND (leaf.relreplident = 'n' OR leaf.relreplident = 'd'
                       AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = id AND indisprimary AND indimmediate)))
"""
"""One that publishes updates of a table that could not say which row it was. To plan it takes longer than all else here."""

COLUMNS = """
WITH RECURSIVE unwrapped AS (
    SELECT attrelid, attnum, atttypid AS type, atttypmod AS typmod, false AS is_array, false AS never_null, false AS filled, 0 AS depth
      FROM pg_attribute
     WHERE attrelid = ANY(%(tables)s::oid[]) AND attnum > 0 AND NOT attisdropped
     UNION ALL
    SELECT attrelid, attnum, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END,
           CASE WHEN typtype = 'd' AND typtypmod <> -1 THEN typtypmod ELSE typmod END,
           is_array OR typtype <> 'd', never_null OR (typtype = 'd' AND typnotnull AND NOT is_array),
           filled OR (typtype = 'd' AND typdefault IS NOT NULL AND NOT is_array), depth + 1
      FROM unwrapped JOIN pg_type t ON t.oid = type
     WHERE typtype = 'd' OR (typlen = -1 AND typelem <> 0 AND typcategory = 'A')
), element AS (
    SELECT DISTINCT ON (attrelid, attnum) attrelid, attnum, type, typmod, is_array, never_null, filled
      FROM unwrapped
     ORDER BY attrelid, attnum, depth DESC
)
SELECT attrelid, attname AS name, format_type(atttypid, atttypmod) AS type, format_type(e.type, NULL) AS element,
       format_type(e.type, e.typmod) AS modified, e.is_array AS array, t.typtype = 'e' AS enum,
       t.typnamespace = 'pg_catalog'::regnamespace AS builtin,
       CASE WHEN attcollation NOT IN (0, 'pg_catalog."default"'::regcollation)
            THEN attcollation::regcollation::text ELSE '' END AS collation,
       attnotnull OR never_null AS not_null, atthasdef OR filled AS has_default, attgenerated <> '' AS generated,
       attidentity::text AS identity
  FROM pg_attribute a
  JOIN element e USING (attrelid, attnum)
  JOIN pg_type t ON t.oid = e.type
 ORDER BY attrelid, attnum
"""
"""Of each column the type of its values below domains and arrays, with and without its modifier."""

UNIQUE_KEYS = """
SELECT i.indrelid, array_agg(a.attname::text ORDER BY a.attname), i.indimmediate AND m.amname = 'btree'
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am m ON m.oid = c.relam
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
 WHERE i.indrelid = ANY(%(tables)s::oid[]) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
 GROUP BY i.indrelid, i.indexrelid, i.indimmediate, m.amname
"""

KINDS = {
    "v": "is a view: name the table behind it",
    "m": "is a materialized view, which only its own query can fill: name a table",
    "f": "is a foreign table, which this server's transactions do not control: load into the table on its own server",
    "S": "is a sequence: name a table",
    "c": "is a composite type: name a table",
}


class Catalog:
    """What the catalog says of some tables: read by as many statements, whatever their number, as each takes its time to plan."""

    def __init__(self, cursor: Any, tables: Collection[Table]) -> None:
        names, landing = [qualified(table) for table in tables], [table.landing for table in tables]
        cursor.execute(TABLES, {"names": names, "landing": landing})
        self._tables = {name: found for name, *found in cursor.fetchall()}
        oids = [oid for oid, *_ in self._tables.values()]
        self._columns = read_columns(cursor, oids)
        self._keys: dict[int, list[tuple[list[str], bool]]] = {}
        cursor.execute(UNIQUE_KEYS, {"tables": oids})
        for oid, columns, immediate in cursor.fetchall():
            self._keys.setdefault(oid, []).append((columns, immediate))

    def table(self, table: Table) -> Any:
        """What it is; None if there is none."""
        return self._tables.get(qualified(table))

    def columns(self, oid: int) -> Mapping[str, Actual]:
        """A table's columns, by name."""
        return self._columns.get(oid, {})

    def unique_keys(self, oid: int) -> Iterable[tuple[list[str], bool]]:
        """The columns of each unique index, sorted, and whether ``ON CONFLICT`` may name it."""
        return self._keys.get(oid, [])


def read_target(table: Table, cursor: Any, catalog: Catalog | None = None) -> TargetTable:
    """Compare a `Row` with the catalog. Raises `SchemaError`, which names the first difference and what to do."""
    where = f"table {table.qualified}"
    catalog = catalog or Catalog(cursor, [table])
    found = catalog.table(table)
    if found is None:
        raise SchemaError(f"{where} does not exist; create it with: migration-pipeline ddl PROFILE --apply")
    oid, schema, kind, persistence, rules, parent, hidden, role, triggers, publications = found
    _check_kind(where, table, kind, persistence)
    if publications and not table.landing:
        _check_publication(where, table, oid, cursor)
    _check_way(where, rules, parent and not table.landing)
    if hidden:
        raise SchemaError(
            f"{where}: row-level security hides rows from the role {role}, so its contents could not be verified; "
            "load as its owner, or as a role with BYPASSRLS"
        )
    actual = catalog.columns(oid)
    fits = tuple(_fit(where, table, column, actual.get(column.name), cursor) for column in table.columns)
    _check_others(where, table, actual.values())
    immediate = [now for columns, now in catalog.unique_keys(oid) if columns == sorted(table.key)]
    if not table.landing and not immediate:
        raise SchemaError(
            f"{where}: no primary key or unique index on exactly ({', '.join(table.key)}), the Row's key; "
            "an upsert needs one: add it, or change the key"
        )
    return TargetTable(
        table=table,
        schema=schema,
        fits=fits,
        arbiter=bool(immediate) and all(immediate),  # PostgreSQL takes all that fit
        overriding=any(fit.actual.identity == "a" for fit in fits),
        triggers=triggers,
    )


def try_statements(target: TargetTable, texts: Iterable[Composable], cursor: Any) -> None:
    """Run a table's statements without rows, before any work. Raises `SchemaError` for what the server refuses.

    This also finds what only a later load needs: privileges, publications, triggers on new tables.
    """
    cursor.execute("SAVEPOINT trial")
    try:
        for text in texts:
            cursor.execute(text)
    except psycopg2.Error as error:
        if fault_of(error) not in (Fault.FATAL, Fault.DATA):
            raise
        told = explain(error)
        cursor.execute("ROLLBACK TO SAVEPOINT trial")
        raise SchemaError(
            f"table {target.table.qualified} cannot be written: {told}", sqlstate=error.pgcode
        ) from None
    cursor.execute("ROLLBACK TO SAVEPOINT trial")


def _check_kind(where: str, table: Table, kind: str, persistence: str) -> None:
    if kind != "r" and (kind != "p" or table.landing):
        raise SchemaError(
            f"{where} {KINDS.get(kind, 'is partitioned, but a landing table must not be: it gets slices of its own')}"
        )
    if persistence == "u":
        raise SchemaError(
            f"{where} is unlogged, or one of its partitions is: a server crash would empty it while receipts still say that "
            f"files are loaded; run ALTER TABLE {qualified(table)} SET LOGGED"
        )
    if persistence == "t":
        raise SchemaError(f"{where} is a temporary table, dropped with its session: name another")


def _check_publication(where: str, table: Table, oid: int, cursor: Any) -> None:
    cursor.execute(PUBLICATION, (oid,))
    (publication,) = cursor.fetchone()
    if publication is not None:
        raise SchemaError(
            f"{where}: the publication {publication} publishes its updates, but it has no replica identity, so "
            f"PostgreSQL refuses them; run ALTER TABLE {qualified(table)} REPLICA IDENTITY USING INDEX … or FULL"
        )


def _check_way(where: str, rules: bool, parent: bool) -> None:
    if rules:
        raise SchemaError(
            f"{where} has rules, which apply to INSERT but not to COPY; drop them, or replace them with triggers"
        )
    if parent:
        raise SchemaError(
            f"{where} has tables that inherit from it (INHERITS), which may hold the same key again; make them partitions, or "
            "name a table without such children"
        )


def read_columns(cursor: Any, oids: Collection[int]) -> dict[int, dict[str, Actual]]:
    """Read the columns of tables, by table and name."""
    cursor.execute(COLUMNS, {"tables": list(oids)})
    _, *names = (column.name for column in cursor.description)
    columns: dict[int, dict[str, Actual]] = {}
    for oid, *values in cursor.fetchall():
        actual = msgspec.convert(dict(zip(names, values, strict=True)), Actual)
        columns.setdefault(oid, {})[actual.name] = actual
    return columns


def _check_others(where: str, table: Table, actual: Iterable[Actual]) -> None:
    """Look at the columns that the Row does not have."""
    ours = {column.name for column in table.columns}
    for column in actual:
        filled = column.has_default or column.generated or column.identity
        if column.name not in ours and column.not_null and not filled:
            raise SchemaError(
                f"{where}: column {column.name!r} is NOT NULL without a default, and the Row has no such field; "
                "add it to the Row, or give the column a default"
            )


def _fit(where: str, table: Table, column: Column, actual: Actual | None, cursor: Any) -> Fit:
    if actual is None:
        raise SchemaError(
            f"{where} has no column {column.name!r}, which the Row has; add it: ALTER TABLE … ADD COLUMN "
            f"{quote(column.name)} {column.pg_type}"
        )
    named = f"{where}: column {column.name!r}"
    if actual.generated:
        raise SchemaError(f"{named} is generated, so the Row cannot write it; leave it out of the Row")
    if actual.identity == "a" and column.name not in table.key:
        raise SchemaError(
            f"{named} is GENERATED ALWAYS AS IDENTITY, which an UPDATE must not write; run ALTER TABLE {qualified(table)} "
            f"ALTER COLUMN {quote(column.name)} SET GENERATED BY DEFAULT, or leave it out of the Row"
        )
    if column.declared:
        _check_declared(named, column, actual, cursor)
    fit = fit_of(column, actual)
    merged = column.merge is not None and fit is not None and (fit.written != "{}" or fit.fitted)
    if fit is None or merged or (table.landing and fit.round_trip):
        raise SchemaError(
            f"{named} is {actual.type}, but the Row makes {column.pg_type}; "
            "change the annotation in the profile, or the column"
        )
    if column.name == table.version and (fit.fitted or fit.round_trip):
        raise SchemaError(
            f"{named} is {actual.type}, which could make two different versions equal; use a wider type, or declare the field with this type"
        )
    if column.name in table.key and "." in actual.element:
        raise SchemaError(
            f"{named} is {actual.element}, whose schema is not in the search_path, so its operators are not found; run "
            "ALTER ROLE … SET search_path = …, or move the extension"
        )
    if actual.not_null and column.nullable:
        raise SchemaError(
            f"{named} is NOT NULL, but the Row allows None; drop `| None` in the "
            "profile, or NOT NULL in the table"
        )
    return fit


def _check_declared(named: str, column: Column, actual: Actual, cursor: Any) -> None:
    """Compare the type that a Row names with the column's, as the server spells both."""
    if column.pg_type == actual.type:
        return
    declared = _as_the_server_spells(named, column, cursor)
    if declared.type == actual.type:
        return
    wider = declared.element in INTEGERS and actual.element in (*INTEGERS, "numeric") and not actual.args
    if wider and declared.array == actual.array:
        return  # what is too large for it is refused
    raise SchemaError(
        f"{named} is {actual.type}, but the Row names {declared.type}; change the PgType in the profile, or the column"
    )


def _as_the_server_spells(named: str, column: Column, cursor: Any) -> Actual:
    """Make a column of a type, and read what it is: ``int4`` is ``integer``, and some types have no other way to be read."""
    cursor.execute("SAVEPOINT declared")
    try:
        cursor.execute(SQL("CREATE TEMP TABLE migration_declared (it {})").format(SQL(column.pg_type)))
        cursor.execute("SELECT 'pg_temp.migration_declared'::regclass::oid")
        (columns,) = read_columns(cursor, cursor.fetchone()).values()
    except psycopg2.Error as error:
        if (error.pgcode or "")[:2] not in ("42", "22", "0A"):
            raise
        raise SchemaError(
            f"{named}: PgType({column.pg_type!r}) is not a type of this database (SQLSTATE {error.pgcode}); fix the profile, or create the type",
            sqlstate=error.pgcode,
        ) from None
    finally:
        cursor.execute("ROLLBACK TO SAVEPOINT declared")
    return columns["it"]
