"""What a refusal of PostgreSQL means for a load: by SQLSTATE, never by the driver's exception class.

The classes of SQLSTATEs: Appendix A, "PostgreSQL Error Codes", of PostgreSQL's documentation.
"""

from __future__ import annotations

import enum
import random

import psycopg2

from migration_pipeline.targets.secrets import SecretError


class Fault(enum.Enum):
    """What to do after a refusal."""

    AGAIN = "run the transaction again"
    RECONNECT = "drop the connection, connect anew, and run the transaction again"
    FULL = "the server cannot go on: fail the file; a rerun resumes"
    DATA = "an item is bad: halve the batch until it stands alone"
    FATAL = "a mistake of the operator or of ours: fail the file at once"


AGAIN = frozenset(
    {
        "40001",  # serialization failure
        "40P01",  # deadlock
        "55P03",  # lock not available: lock_timeout
        "55006",  # object in use
        "57014",  # query canceled: statement_timeout, or an operator's pg_cancel_backend
    }
)
RECONNECT = frozenset(
    {
        "57P01",  # admin shutdown, pg_terminate_backend
        "57P02",  # crash shutdown
        "57P03",  # cannot connect now: starting up, shutting down, in recovery
        "25006",  # read-only transaction: Aurora's old writer after a failover
        "25P03",  # idle in transaction session timeout
        "53300",  # too many connections
    }
)
DATA = frozenset(
    {
        "40002",  # integrity constraint violation, found at the end of a transaction
        "54000",  # program limit exceeded: a key too long for its index
        "54001",  # statement too complex: a document nested too deeply
    }
)
DATA_CLASSES = frozenset(
    {
        "22",  # data exception
        "23",  # integrity constraint violation
        "P0",  # a trigger in PL/pgSQL refused the row: RAISE EXCEPTION
        "38",  # one in another language did
        "39",
        "44",  # WITH CHECK OPTION
        "45",  # SQLSTATE 45000 is what other databases' triggers raise
    }
)
FULL = frozenset({"53100", "53200", "53000", "53400"})

FEW_TRIES = {"57014": 3}
"""A statement that runs into its time limit again and again is no transient fault."""

FIRST_WAIT_SECONDS = 0.25
LONG_FIRST_WAIT_SECONDS = 2.0
"""For 53300: others have to give connections back first."""
LONGEST_WAIT_SECONDS = 15.0


def fault_of(error: psycopg2.Error, *, connected: bool = True) -> Fault:
    """Classify a refusal; with `connected` false, one of a connection that was never made.

    A connection that breaks leaves no SQLSTATE. Neither does one that is refused, whatever the server's
    reason (libpq hands on only its text): a fault that waiting does not help is recognized by that text if the
    server's messages are in English; else it is retried for as long as other faults.
    """
    if isinstance(error, SecretError):
        return Fault.FATAL if error.hopeless else Fault.RECONNECT
    state = error.pgcode
    if state is None:
        if not connected and any(phrase in str(error) for phrase in HOPELESS):
            return Fault.FATAL
        # Of the interface's own mistakes (a wrong number of parameters), none is in the connection.
        return Fault.FATAL if isinstance(error, psycopg2.ProgrammingError) else Fault.RECONNECT
    if state in AGAIN:
        return Fault.AGAIN
    if state in RECONNECT or state.startswith("08"):
        return Fault.RECONNECT
    if state in FULL or state.startswith("58"):
        return Fault.FULL
    if state[:2] in DATA_CLASSES or state in DATA:
        return Fault.DATA
    return Fault.FATAL


HOPELESS = (
    "authentication failed",
    "no password supplied",
    "does not exist",
    "no pg_hba.conf entry",
    "permission denied",
    "not permitted to log in",
    "certificate",
    "server does not support SSL",
    "SSL is required",
    "unsupported startup parameter",  # of a pooler
    "invalid ",  # of a connection option
)
"""Parts of libpq's texts for failed connections that waiting does not help."""


def wait_seconds(attempt: int, state: str | None, chance: random.Random) -> float:
    """Return the seconds to wait before another try, `attempt` counting from 0: doubling, with jitter, bounded.

    The jitter keeps loaders that failed together from coming back together.
    """
    first = LONG_FIRST_WAIT_SECONDS if state == "53300" else FIRST_WAIT_SECONDS
    # The exponent is bounded, as a float is: after three hours of tries it would not hold the power.
    return min(LONGEST_WAIT_SECONDS, first * 2.0 ** min(attempt, 10)) * chance.uniform(0.5, 1.0)


ADVICE = {
    "53100": "the database's disk is full: make room, then rerun the file",
    "53200": "the database is out of memory: free some, then rerun the file",
    "28": "check the user and password in MIGRATION_DATABASE_URL, and the server's pg_hba.conf",
    "3D": "the database does not exist: check MIGRATION_DATABASE_URL",
    "3F": "the schema does not exist: create it, or check the Row's table name",
    "0A000": "the table, or a type in it, does not support the statement: docs/targets.md says which tables do",
    "21000": "two rows of one key met in one statement, which is a defect of the pipeline: please report it",
    "22P05": "the database's encoding lacks a character: use a database whose encoding is UTF8",
    "42501": "the role lacks a privilege: see the grants in docs/security.md",
    "428C9": "a column is GENERATED ALWAYS: remove it from the Row, or make it BY DEFAULT",
    "42883": "a type has no such operator or function: name another type in the Row, or install its extension",
    "42P10": "no unique index is on exactly the Row's key: make one, or change the key",
    "42804": "the type of a column changed after the load began: check the table against the profile, then rerun the file",
    "42": "the tables changed after the load began: check them against the profile, then rerun the file",
    "55000": "the table is not ready for the statement: give a published table a replica identity, or see its triggers",
    "P0001": "a trigger raised an error: see the table's triggers",
    "58": "the database server has trouble with its files: check its log, then rerun the file",
}
"""The next step, by SQLSTATE or its class."""

WHY_BAD = {
    "22P05": "the database's encoding lacks one of its characters",
    "P0001": "a trigger of the table refused the row",
    "54000": "one of its values is too long for an index",
}
"""What a refusal of a row means, by SQLSTATE, where its name does not say it."""


def why_bad(state: str, *, named: bool) -> str:
    """Say what the refusal of a row means; "" where that is plain. `named`: it names a column or constraint."""
    if state == "23514" and not named:  # check_violation, of no constraint
        return "the table has no partition for the row"
    return WHY_BAD.get(state, "")


def advice(state: str | None) -> str:
    """Return the next step after a fault that ends a file; "" when there is none to give."""
    return ADVICE.get(state or "", ADVICE.get((state or "")[:2], ""))
