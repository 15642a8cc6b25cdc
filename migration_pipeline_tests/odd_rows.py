"""Rows of every column type with values of every kind, ordinary and odd, and what both encoders make of them."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from random import Random
from types import SimpleNamespace
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from migration_pipeline import Fitted, Integer, Row
from migration_pipeline.profile.profile import NulPolicy
from migration_pipeline.profile.row import Merge, PgType, Table, table_of
from migration_pipeline.targets.copy_csv import EncodedRows, RowEncoder
from migration_pipeline.targets.fits import Actual, Fit, fit_of
from migration_pipeline.targets.known_batches import ROW, without_rows


class Wide(Row, table="wide", key="k"):
    """A column of each type."""

    k: int
    text: str | None
    number: Decimal | None
    real: float | None
    flag: bool | None
    raw: bytes | None
    at: datetime | None
    day: date | None
    id: UUID | None
    tags: frozenset[str] | None
    numbers: list[Decimal | None] | None
    times: list[datetime] | None
    blobs: set[bytes] | None
    document: Any
    listed: list[Any] | None
    spelled: Annotated[str | None, PgType("jsonb")]


class Landed(Row, table="landed", landing=True):
    text: str | None
    number: int | None
    at: datetime | None
    document: dict[str, Any] | None


class Pair(Row, table="pair", key=("b", "a")):
    a: str
    b: Integer
    rest: str | None


class Versioned(Row, table="versioned", key="k", version="at"):
    k: str
    at: datetime | None
    flag: bool | None


class Merging(Row, table="merging", key="k"):
    k: str
    points: Annotated[int, Merge("greatest({old}, {new})")]


class OfUuid(Row, table="of_uuid", key=("id", "at")):
    id: UUID
    at: datetime
    amount: Decimal | None


class Narrow(Row, table="narrow", key="k"):
    """Columns that change values, and a time without a zone."""

    k: int
    short: Fitted[str] | None
    exact: Decimal | None
    at: datetime | None
    times: list[datetime] | None


CLASSES: list[type[Row]] = [Wide, Landed, Pair, Versioned, Merging, OfUuid, Narrow]

_NARROW = {
    "k": ("numeric", "numeric", False),
    "short": ("character varying(3)", "character varying", False),
    "exact": ("numeric(6,2)", "numeric", False),
    "at": ("timestamp(3) without time zone", "timestamp without time zone", False),
    "times": ("timestamp without time zone[]", "timestamp without time zone", True),
}


def fits_of(table: Table) -> list[Fit]:
    """How the columns of `Narrow` take their values; all others take them as they are."""
    if table.name != "narrow":
        return []
    found = []
    for column in table.columns:
        full, element, array = _NARROW[column.name]
        actual = Actual(
            name=column.name,
            type=full,
            element=element,
            modified=full.removesuffix("[]").replace("timestamp(3) without time zone", element + "(3)"),
            array=array,
            enum=False,
        )
        fit = fit_of(column, actual)
        assert fit is not None
        found.append(fit)
    return found


class Text(str):
    """A str that is none exactly."""

    __slots__ = ()


class Number(int):
    pass


class Exact(Decimal):
    pass


class Moment(datetime):
    pass


class Colour(enum.Enum):
    RED = "red"


class Shape(str, enum.Enum):  # Python 3.10 has no StrEnum
    ROUND = "round"


class Angry:
    """Fails at whatever is asked of it."""

    def __repr__(self) -> str:
        return "angry"

    def __str__(self) -> str:
        raise RuntimeError("s3cret")

    def __hash__(self) -> int:
        raise RuntimeError("s3cret")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("s3cret")


SOMETHING, VIEW = object(), memoryview(b"cd")
"""Their texts hold an address."""

SIGNS = [
    *"\\\"'\n\r\t\b\f.,{}[]:Nnu0 \x00\x01\x1f\x7f\x80é\u2028\uffff🛒axyz-5",
    "null",
    "u0000",
    "\\u000a",
    "\\n",
    "]\n[",
]
ZONES: list[tzinfo | None] = [
    None, timezone.utc, timezone.utc, timezone.utc, timezone(timedelta(0), "Z"), timezone(timedelta(hours=2)),
    timezone(-timedelta(hours=11, minutes=30)), timezone(timedelta(hours=23, minutes=59)), timezone(-timedelta(hours=23, minutes=59)),
]  # fmt: skip
ODD_ZONES: list[tzinfo | None] = [
    timezone(timedelta(seconds=3)),
    timezone(timedelta(hours=1, microseconds=5)),
    ZoneInfo("Europe/Berlin"),
]


def text(random: Random) -> str:
    kind = random.randrange(8)
    if kind == 0:
        return random.choice(["", "null", "\0", "\\.", '"', "x" * random.randrange(40)])
    if kind == 1:
        return (
            chr(random.choice([0xD800, 0xDFFF, 0x10FFFF, 0x7FF, 0x800])) if random.randrange(8) == 0 else "é"
        )
    if kind < 5:
        return "".join(random.choice("abcdefgh0123456789#-") for _ in range(random.randrange(30)))
    return "".join(random.choice(SIGNS) for _ in range(random.randrange(20)))


def integer(random: Random) -> int:
    if random.randrange(4):
        return random.randrange(-1000, 1000)
    edge = random.choice([0, 2**31, 2**63, 2**64, 10**18, 10**19, 2**130])
    return random.choice([1, -1]) * edge + random.randrange(-2, 3)


def decimal(random: Random) -> Decimal:
    if random.randrange(12) == 0:
        return Decimal(
            random.choice(
                ["NaN", "-NaN", "sNaN", "NaN123", "Infinity", "-Infinity", "-0", "0E+9", "1E-400", "1E+5000"]
            )
        )
    return Decimal(
        (
            random.randrange(2),
            tuple(random.choices(range(10), k=random.randrange(1, 39))),
            random.randrange(-45, 45),
        )
    )


def moment(random: Random) -> datetime:
    odd = random.randrange(40) == 0
    zone = random.choice(ODD_ZONES if odd else ZONES)
    if random.randrange(12) == 0:
        return random.choice([datetime.min, datetime.max]).replace(tzinfo=zone)
    microseconds = random.choice([0, 0, 1000, 10, random.randrange(10**6)])
    days = random.randrange(3_600_000)
    return datetime(1, 1, 1, tzinfo=zone) + timedelta(
        days=days, seconds=random.randrange(86400), microseconds=microseconds
    )


def real(random: Random) -> float:
    return random.choice(
        [
            0.0,
            -0.0,
            1.5,
            1e300,
            5e-324,
            1e16,
            float("nan"),
            float("inf"),
            -float("inf"),
            random.random() * 1e6,
        ]
    )


def identity(random: Random) -> UUID:
    return UUID(int=random.choice([0, 1, 2**64, 2**128 - 1, random.getrandbits(128)]))


def day(random: Random) -> date:
    return date.fromordinal(random.randrange(1, date.max.toordinal() + 1))


def raw(random: Random) -> bytes:
    return random.randbytes(random.randrange(12))


def document(random: Random, depth: int = 0) -> Any:
    kind = random.randrange(12 if depth < 4 else 8)
    if kind < 3:
        return text(random)
    if kind == 3:
        return decimal(random)
    if kind == 4:
        return integer(random)
    if kind == 5:
        return random.choice([None, True, False, [], {}, ()])
    if kind == 6:
        return anything(random) if random.randrange(6) == 0 else None
    if kind == 7:
        return random.choice([frozenset(), {text(random)}, frozenset({1, 2}), [text(random)]])
    if kind == 8:
        return [document(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 9 and random.randrange(20) == 0:
        deep: Any = text(random)
        for _ in range(random.choice([98, 99, 100, 101, 102, 150])):
            deep = [deep] if random.randrange(2) else {"d": deep}
        return deep
    return {text(random): document(random, depth + 1) for _ in range(random.randrange(4))}


def anything(random: Random) -> Any:
    """A value that may have no place where it is."""
    return random.choice(
        [
            Text(text(random)), Number(integer(random)), Exact("1.50"), Moment(2024, 1, 2, tzinfo=timezone.utc), Colour.RED, Shape.ROUND,
            Angry(), [Angry()], {1: 2}, {"a": Angry()}, SOMETHING, bytearray(b"ab"), VIEW, msgspec.UNSET, 1j, range(3),
            (1, "a"), {1, "a"}, [None, "x", 3, 1.5, b"z", moment(random)], real(random), {Text("sub"): 1}, timedelta(1, 2), Pair("a", 1, None),
            text, integer(random), decimal(random), moment(random), day(random), identity(random), raw(random), text(random), True, None,
            {"n": float("nan")}, [Decimal("NaN")], {"t": moment(random), "b": b"raw", "f": 1e22},
        ]
    )  # fmt: skip


MAKERS: dict[str, Any] = {
    "k": integer, "text": text, "number": decimal, "real": real, "flag": lambda r: r.random() < 0.5, "raw": raw, "at": moment,
    "day": day, "id": identity, "document": document, "listed": lambda r: [document(r) for _ in range(r.randrange(3))],
    "spelled": text, "tags": lambda r: frozenset(text(r) for _ in range(r.randrange(4))),
    "numbers": lambda r: [r.choice([None, decimal(r)]) for _ in range(r.randrange(4))],
    "times": lambda r: [moment(r) for _ in range(r.randrange(3))], "blobs": lambda r: {raw(r) for _ in range(r.randrange(3))},
    "a": text, "b": lambda r: integer(r) if r.randrange(8) == 0 else r.randrange(5), "rest": text, "points": integer, "amount": decimal, "short": text,
    "exact": lambda r: Decimal(r.randrange(10**6)) / 100, }  # fmt: skip


def row(random: Random, row_class: type[Row], oddity: int) -> Row:
    """A row, in which one value of `oddity` is one of any type."""
    values = []
    for field in msgspec.structs.fields(row_class):
        if random.randrange(oddity) == 0:
            values.append(anything(random))
        elif random.randrange(10) == 0 and field.name not in row_class._declared[1]:
            values.append(None)
        elif field.name == "k" and row_class in (Versioned, Merging):
            one = random.choice("abcé") + random.choice(["", "x", "\0"])
            values.append(text(random) if random.randrange(8) == 0 else one)
        else:
            values.append(MAKERS[field.name](random))
    return row_class(*values)


def pieces(random: Random, row_class: type[Row]) -> list[list[Row]]:
    """Some pieces of rows: mostly of one kind, as those of a file are."""
    oddity = random.choice([20, 100, 10**9])
    return [
        [row(random, row_class, oddity) for _ in range(random.randrange(6))]
        for _ in range(random.randrange(1, 4))
    ]


@contextmanager
def without_the_extension() -> Iterator[None]:
    """Encode in Python alone."""
    before = os.environ.get("MIGRATION_ACCELERATOR")
    os.environ["MIGRATION_ACCELERATOR"] = "off"
    try:
        yield
    finally:
        del os.environ["MIGRATION_ACCELERATOR"]
        if before is not None:
            os.environ["MIGRATION_ACCELERATOR"] = before


def spoilt(random: Random, data: bytes) -> str:
    """COPY input, perhaps with a character more, less, or another one."""
    text = data.decode()
    for _ in range(random.choice([0, 0, 1, 2])):
        at = random.randrange(len(text) + 1)
        text = text[:at] + random.choice(['"', "\\", ",", "\n", ""]) + text[at + random.randrange(2) :]
    return text


def fields_of_binary(random: Random, in_c: Any) -> int:
    """Make binary COPY input of some, perhaps spoilt, as if its columns had any types; how many fields it has. Raises AssertionError."""
    row_class = random.choice(CLASSES)
    table = table_of(row_class)
    encoder = RowEncoder(table, "strip", fits_of(table), apart=True)
    try:
        joined = encoder.join([encoder.encode(rows) for rows in pieces(random, row_class)])
    except Exception:  # those rows are bad
        return 0
    data = joined.data if random.random() < 0.5 else spoilt(random, joined.data).encode()
    rows, width = len(ROW.findall(data)) + random.choice([0, 0, 0, 1]), len(table.columns)
    natural = {int: b"8n", Decimal: b"n", bool: b"b", datetime: b"z", date: b"d", UUID: b"u"}
    types = bytes(
        random.choice(random.choice([b"t", b"tj248nzdub", *[natural.get(column.python_type, b"tj")] * 8]))
        for column in table.columns
    )
    made = in_c.binary(data, rows, types)
    if made is None:
        return 0
    assert made[:19] == b"PGCOPY\n\xff\r\n" + bytes(9)
    at = 19
    for _ in range(rows):
        assert made[at : at + 2] == width.to_bytes(2, "big")
        at += 2
        for _ in range(width):
            size = int.from_bytes(made[at : at + 4], "big", signed=True)
            assert -1 <= size <= len(data) + 16
            at += 4 + max(size, 0)
    assert made[at:] == b"\xff\xff"
    return rows * width


def left_of(random: Random, table: Table, data: bytes) -> bytes:
    """What is left of COPY input, perhaps a spoilt one, without some of its rows."""
    fits: list[Any] = [SimpleNamespace(column=column) for column in table.columns]
    target: Any = SimpleNamespace(
        table=table, fits=fits, key_fits=[fit for fit in fits if fit.column.name in table.key]
    )
    text = spoilt(random, data)
    # Of its texts some are keys, and more so where it has few columns.
    texts = [each.strip('"') for each in re.split(r"[,\n]", text)]
    keys = {tuple(random.choices(texts, k=len(table.key))) for _ in range(random.randrange(12))}
    # Of whole rows Python may be told how many they are, and splits them in another way then.
    rows = len(ROW.findall(data)) if random.random() < 0.5 and text.encode() == data else -1
    return without_rows(target, text.encode(), rows, keys)


def made_of(
    row_class: type[Row],
    some: Sequence[Sequence[Row]],
    nul: NulPolicy,
    apart: bool,
    random: Random | None = None,
) -> tuple[list[Any], int]:
    """What an encoder makes of pieces, each and joined, and with `random` what is left of that without some rows, or the exceptions.

    Also how many rows were given back to Python.
    """
    table = table_of(row_class)
    encoder = RowEncoder(table, nul, fits_of(table), apart=apart)
    encoded: list[EncodedRows] = []
    told: list[Any] = []
    for rows in some:
        try:
            encoded.append(encoder.encode(rows))
        except Exception as error:
            told.append((type(error), str(error)))
        else:
            keys, lines = (
                [(type(key), repr(key)) for key in encoded[-1].keys],
                list(map(bytes, encoded[-1].lines)),
            )
            told.append((*encoded[-1]._replace(keys=keys, lines=lines),))
    try:
        told.append(joined := encoder.join(encoded))
        if table.key and random:
            told.append(left_of(random, table, joined.data))
    except Exception as error:
        told.append((type(error), str(error)))
    return told, encoder.given_back


def both(seed: Random, again: Random) -> tuple[list[Any], list[Any], int, int]:
    """What both encoders make of the same rows, made twice; and how many rows there were, and how many C gave back."""
    made = []
    for random in (seed, again):
        row_class = random.choice(CLASSES)
        nul: NulPolicy = random.choice(["quarantine", "strip", "escape"])
        apart = random.random() < 0.5
        made.append((row_class, pieces(random, row_class), nul, apart, random))
    in_c, given_back = made_of(*made[0])
    with without_the_extension():
        in_python, _ = made_of(*made[1])
    return in_c, in_python, sum(map(len, made[0][1])), given_back
