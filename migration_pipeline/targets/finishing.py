"""Finishing, after all files are loaded: indexes, constraints, sequences, statistics; landed rows dropped if asked for.

Each step is a transaction of its own and sees for itself whether there is anything to do, so that all of it
can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from psycopg2.sql import SQL, Identifier, Literal

from migration_pipeline.engine.pace import Pace, Unpaced
from migration_pipeline.engine.threads import together
from migration_pipeline.profile.aggregate import Constraint, Index, Sequence
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import Table, table_of
from migration_pipeline.targets import ledger_sql
from migration_pipeline.targets.bookkeeping import FORGET_SLICES, LEFTOVERS
from migration_pipeline.targets.catalog import identifier, qualified, quote
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings
from migration_pipeline.targets.ddl import check_bookkeeping
from migration_pipeline.targets.landing import WINDOWS, part_of
from migration_pipeline.targets.session import Session

CONSTRAINT = "SELECT 1 FROM pg_constraint WHERE conrelid = to_regclass(%s) AND conname = %s"

INDEX = """
SELECT 1
  FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
 WHERE i.indrelid = to_regclass(%s) AND c.relname = %s
"""


class FinishingReport(msgspec.Struct, kw_only=True):
    """The account of a finishing. Its lists name only what was done now, not what existed already."""

    made: list[str] = []
    """Indexes and constraints that were made."""
    sequences: dict[str, int] = {}
    """Sequences that were moved, and to where."""
    analyzed: list[str] = []
    dropped: int = 0
    """Slices of landing tables that were dropped."""
    warnings: list[str] = []


def finish(
    url: str,
    profile: Profile,
    drop_landing: bool,
    database: DatabaseSettings = DatabaseSettings(statement_timeout_seconds=3600),  # noqa: B008  # frozen
    say: Callable[[str], None] = lambda _: None,
    pace: Pace = Unpaced(),  # noqa: B008  # has no state
) -> FinishingReport:
    """Finish a profile's tables, waiting for `pace` before each step. Raises `DatabaseError`; steps that were done until then stay done."""
    report = FinishingReport()
    with Session(url, database, on_retry=say, chain=True) as session:

        def step(what: str, work: Callable[[Any], Any]) -> Any:
            together([lambda: pace.wait(0, lambda: None)], pace.cancel, "pace")
            say(what)
            try:
                return session.interruptibly(work)
            except DatabaseError as error:
                raise error.reworded(f"finishing, {what}: {error}") from None

        session.interruptibly(check_bookkeeping)
        for each in profile.finishing:
            if isinstance(each, Sequence):
                if (value := step(f"sequence {each.name}", partial(_sequence, each))) is not None:
                    report.sequences[each.name] = value
            elif step(f"{type(each).__name__.lower()} {each.name}", partial(_made, each)):
                report.made.append(each.name)
        for table in profile.all_tables:
            if not table.landing:
                report.sequences.update(
                    step(f"sequences of {table.qualified}", partial(_own_sequences, table))
                )
                if refusal := step(f"statistics of {table.qualified}", partial(_analyze, table)):
                    report.warnings.append(refusal)
                else:
                    report.analyzed.append(table.qualified)
        if drop_landing:
            while some := step("dropping what is landed", partial(_drop_landing, profile)):
                report.dropped += some
    return report


def _made(each: Index | Constraint, cursor: Any) -> bool:
    """Make an index or a constraint unless there is one of its name; returns whether it was made."""
    table = table_of(each.row_class)
    cursor.execute(INDEX if isinstance(each, Index) else CONSTRAINT, (qualified(table), each.name))
    if cursor.fetchone():
        return False
    if isinstance(each, Index):
        statement = SQL("CREATE {}INDEX {} ON {} ({})").format(
            SQL("UNIQUE " if each.unique else ""),
            Identifier(each.name),
            identifier(table),
            SQL(", ").join(map(Identifier, each.columns)),
        )
    else:
        statement = SQL("ALTER TABLE {} ADD CONSTRAINT {} {}").format(
            identifier(table), Identifier(each.name), SQL(each.definition)
        )
    cursor.execute(statement)
    return True


def _sequence(each: Sequence, cursor: Any) -> int | None:
    """Move a sequence to the greatest value of a column, making it if it is not there; returns that, if it moved."""
    name = ".".join(map(quote, each.name.split(".")))
    cursor.execute("SELECT to_regclass(%s)", (name,))
    if cursor.fetchone() == (None,):
        cursor.execute(SQL("CREATE SEQUENCE {}").format(SQL(name)))
    return _moved(cursor, name, each.column, table_of(each.row_class))


def _moved(cursor: Any, sequence: str, column: str, table: Table, *, up: bool = True) -> int | None:
    """Move a sequence to the last value of a column, in its direction; returns that, if it moved."""
    cursor.execute(
        SQL(
            "SELECT setval({name}, m) FROM (SELECT {end}({column}) AS m FROM {table}) t, {sequence} s "
            "WHERE m {beyond} last_value OR (m = last_value AND NOT is_called)"
        ).format(
            name=Literal(sequence),
            end=SQL("max" if up else "min"),
            column=Identifier(column),
            table=identifier(table),
            sequence=SQL(sequence),
            beyond=SQL(">" if up else "<"),
        )
    )
    moved = cursor.fetchone()
    return int(moved[0]) if moved else None


OWN_SEQUENCES = """
SELECT a.attname, s.seqrelid::regclass::text, s.seqincrement > 0
  FROM pg_attribute a
  JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
   AND d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  JOIN pg_sequence s ON s.seqrelid = d.objid
 WHERE a.attrelid = to_regclass(%s) AND a.attname = ANY (%s)
"""
"""Sequences that identity and serial columns own."""


def _own_sequences(table: Table, cursor: Any) -> dict[str, int]:
    """Move the sequences of a table's identity and serial columns past what was loaded into these; returns those that moved.

    Otherwise the next row that an application inserts would be refused as a duplicate of a loaded one.
    """
    cursor.execute(OWN_SEQUENCES, (qualified(table), [column.name for column in table.columns]))
    moved = {name: _moved(cursor, name, column, table, up=up) for column, name, up in cursor.fetchall()}
    return {name: value for name, value in moved.items() if value is not None}


def _analyze(table: Table, cursor: Any) -> str:
    """Gather a table's statistics; returns a warning when the role may not."""
    notices = cursor.connection.notices
    notices.clear()
    cursor.execute(SQL("ANALYZE {}").format(identifier(table)))
    if any("permission denied" in notice for notice in notices):
        return f"the role may not ANALYZE {table.qualified}: its owner should, or grant MAINTAIN on it"
    return ""


def _drop_landing(profile: Profile, cursor: Any) -> int:
    """Drop some slices, those that failed and killed loads have left among them; returns how many."""
    cursor.execute(FORGET_SLICES, (profile.name,))
    slices = cursor.fetchall()
    if not slices:
        _drop_of_windows(profile, cursor)
        cursor.execute(LEFTOVERS, {"profile": profile.name})
        slices = cursor.fetchall()
    for (number,) in slices:
        for table in profile.tables.values():
            if table.landing:
                cursor.execute(SQL("DROP TABLE IF EXISTS {}").format(part_of(table.qualified, number)))
    return len(slices)


def _drop_of_windows(profile: Profile, cursor: Any) -> None:
    """Drop the landed rows of windows, and the account of what these took away."""
    for table in profile.tables.values():
        if table.landing:
            cursor.execute(SQL("DROP TABLE IF EXISTS {}").format(part_of(table.qualified, WINDOWS)))
            cursor.execute(ledger_sql.FORGET_TAKEN, (profile.name, table.qualified))
