"""What a profile writes: typed classes for the rows of a PostgreSQL table."""

from __future__ import annotations

import types
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from typing_extensions import dataclass_transform

from migration_pipeline.errors import UsageError
from migration_pipeline.profile.field_docs import field_docs

SCALARS: dict[Any, str] = {
    str: "text",
    int: "bigint",
    Decimal: "numeric",
    float: "double precision",
    bool: "boolean",
    bytes: "bytea",
    datetime: "timestamp with time zone",
    date: "date",
    UUID: "uuid",
}
"""Python type -> the PostgreSQL type it makes, as `format_type()` of the catalog spells it."""


@dataclass(frozen=True)
class PgType:
    """Overrides the PostgreSQL type of a column: ``size: Annotated[int, PgType("integer")]``."""

    name: str


@dataclass(frozen=True)
class Merge:
    """Merges a column of two rows of one key, by an SQL expression over ``{old}`` and ``{new}``.

    ``points: Annotated[int, Merge("greatest({old}, {new})")]`` keeps the greater. The expression must be
    commutative, associative and idempotent, or the result would depend on the order of files and on
    reruns; `migration_pipeline.testing.check_merges` tests that it is. It may use nothing else: no other
    column, no sequence, no clock.
    """

    expression: str


@dataclass(frozen=True)
class Fits:
    """Marks a column whose values may be changed by its type."""


Value = TypeVar("Value")

Fitted = Annotated[Value, Fits()]
"""``price: Fitted[Decimal]``: the column's type may change a value that it cannot hold exactly.

PostgreSQL's own rules decide: ``numeric(10,2)`` rounds half away from zero, ``timestamp(0)`` to the nearest second, ``real``
to the nearest number; ``varchar(3)`` cuts off blanks, and ``char(3)`` pads with them. What a type refuses stays refused. Values
changed so are counted by column. Without `Fitted`, an item with such a value goes to the quarantine.
"""

SmallInt = Annotated[int, PgType("smallint")]
Integer = Annotated[int, PgType("integer")]
BigInt = Annotated[int, PgType("bigint")]


def column(name: str | None = None, *, default: Any = msgspec.NODEFAULT) -> Any:
    """Name the column a field is written to, where that is not the field's own name: ``column("imageType")``."""
    return msgspec.field(name=name, default=default)


@dataclass(frozen=True)
class Column:
    """One column of a `Row`: where its value comes from and what it is in PostgreSQL."""

    field: str
    """The attribute of the Row object."""
    name: str
    """The column's name, as in the catalog."""
    python_type: Any
    """The annotation without ``| None`` and without markers; ``Any`` for a document."""
    pg_type: str
    nullable: bool
    comment: str = ""
    """The docstring below the field; "" where there is none."""
    merge: str | None = None
    """The expression of its `Merge`."""
    declared: bool = False
    """Whether the Row names the type (`PgType`), and not just Python's."""
    fitted: bool = False
    """Whether its type may change values (`Fitted`)."""


LANDING_SCHEMA = "landing"
"""Schema of landing tables that name none. The role that loads must own it: it makes and drops tables there."""

LONGEST_LANDING_NAME = 40
"""Bytes of a landing table's name: those of its slices are longer, and PostgreSQL has 63."""


@dataclass(frozen=True)
class Table:
    """A `Row` class read once: its table, its columns in order, and its key."""

    name: str
    schema: str | None
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Names of the key's columns."""
    comment: str
    version: str | None = None
    """Name of the column that decides between two rows of one key: the greater stays, in whatever order they come."""
    landing: bool = False
    """Whether it is internal and has no key: each file has a slice of it, which is replaced whole."""

    @property
    def merges(self) -> bool:
        """Whether two rows of one key are merged."""
        return any(column.merge for column in self.columns)

    @property
    def qualified(self) -> str:
        """The name as people write it: ``schema.table``, or ``table`` in the search path."""
        return f"{self.schema}.{self.name}" if self.schema else self.name

    @property
    def spellings(self) -> tuple[str, ...]:
        """All that may be its qualified name: an unqualified one is looked for in *public*, unless a server says otherwise."""
        if self.schema in (None, "public"):
            return (self.name, f"public.{self.name}")
        return (self.qualified,)


class RowMeta(msgspec.StructMeta):
    """Takes ``table=``, ``key=`` and the like off the class line, so that a Row reads as one declaration."""

    def __new__(  # noqa: D102
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        table: str | None = None,
        key: str | tuple[str, ...] = (),
        version: str | None = None,
        landing: bool = False,
        **config: Any,
    ) -> RowMeta:
        cls: Any = super().__new__(mcls, name, bases, namespace, **config)
        if bases and bases[0] is not msgspec.Struct:
            if landing and table and (key or version):
                raise UsageError(
                    f"{name}: a landing Row must not have a key or version; remove them, or remove landing=True"
                )
            if not table or not (key or landing):
                raise UsageError(
                    f'{name}: a Row needs a table and a key: class {name}(Row, table="…", key="…")'
                )
            cls._declared = (table, (key,) if isinstance(key, str) else tuple(key), version, landing)
        return cls  # type: ignore[no-any-return]


@dataclass_transform(field_specifiers=(column,), frozen_default=True)
class Row(msgspec.Struct, frozen=True, gc=False, array_like=True, metaclass=RowMeta):
    """Base of the typed rows that routes return.

    ``class Customer(Row, table="customers", key="customer_id")`` is one table: the fields give its
    columns, their types and which may be NULL, `key` its primary key (a tuple of field names for a key
    of several columns), and the docstring its comment; a docstring below a field is its column's comment.
    ``table="sales.customers"`` names a schema.
    Types are those of `SCALARS`; ``frozenset``/``list`` of one makes an array, sorted where it came
    from a set; ``dict[str, Any]``, ``list[Any]`` and ``Any`` make ``jsonb``.

    Two items that make rows of one key are a *collision*: which row stays depends on the order, and a check
    reports it. If that is intended, ``version="updated_at"`` names a field that decides: the row with the
    greater version stays, whatever the order. Or a column merges both (`Merge`).

    ``class Event(Row, table="shop_events", landing=True)`` is a landing table: rows without a key, that an
    aggregate makes other rows of. It is internal, and lies in the schema `LANDING_SCHEMA` unless it names one.
    """

    _declared: ClassVar[tuple[str, tuple[str, ...], str | None, bool]]


@cache
def table_of(row_class: type[Row]) -> Table:
    """Read a `Row` class. Raises `UsageError` for a type or key that makes no column."""
    declared, key_fields, version, landing = row_class._declared
    schema, _, name = declared.rpartition(".")
    if landing and len(name.encode()) > LONGEST_LANDING_NAME:
        raise UsageError(
            f"{row_class.__name__}: the name of a landing table must have at most {LONGEST_LANDING_NAME} bytes, and {name!r} is longer"
        )
    hints = get_type_hints(row_class, include_extras=True)
    docs = field_docs(row_class)
    columns = tuple(
        _column(row_class, field.name, field.encode_name, hints[field.name], docs.get(field.name, ""))
        for field in msgspec.structs.fields(row_class)
    )
    by_field = {c.field: c for c in columns}
    for field in key_fields:
        if field not in by_field:
            raise UsageError(f"{row_class.__name__}: its key names {field!r}, which is not one of its fields")
        if by_field[field].nullable:
            raise UsageError(f"{row_class.__name__}: {field!r} is part of the key, so it must not allow None")
    if version is not None and (version not in by_field or version in key_fields):
        raise UsageError(
            f"{row_class.__name__}: version={version!r} must name a field that is not part of the key"
        )
    for each in columns:
        if each.merge is not None and (landing or version or each.field in key_fields):
            raise UsageError(
                f"{row_class.__name__}.{each.field}: Merge is not allowed in a key column, in a landing Row, "
                "or together with version="
            )
    return Table(
        name=name,
        schema=schema or (LANDING_SCHEMA if landing else None),
        columns=columns,
        key=tuple(by_field[field].name for field in key_fields),
        comment=(row_class.__doc__ or "").strip(),
        version=by_field[version].name if version else None,
        landing=landing,
    )


def _column(row_class: type[Row], field: str, name: str, annotation: Any, comment: str) -> Column:
    bare, markers, nullable = unwrap(annotation)
    declared = next((m.name.strip() for m in markers if isinstance(m, PgType)), None)
    pg_type = declared or _pg_type(bare)
    if pg_type is None:
        raise UsageError(f"{row_class.__name__}.{field}: no PostgreSQL type for {annotation!r}; see Row")
    if pg_type.lower() in ("json", "jsonb"):
        bare = Any
    merge = next((m.expression for m in markers if isinstance(m, Merge)), None)
    if merge is not None and not ("{old}" in merge and "{new}" in merge):
        raise UsageError(f"{row_class.__name__}.{field}: a Merge's expression must use {{old}} and {{new}}")
    return Column(
        field,
        name,
        bare,
        pg_type,
        nullable or annotation is Any,
        comment,
        merge,
        declared=declared is not None,
        fitted=any(isinstance(m, Fits) for m in markers),
    )


def _pg_type(bare: Any) -> str | None:
    if bare in SCALARS:
        return SCALARS[bare]
    origin, arguments = get_origin(bare), get_args(bare)
    if origin is Literal and all(isinstance(a, str) for a in arguments):
        return "text"
    if origin in (frozenset, set, list) and (element := element_type(bare)) in SCALARS:
        return SCALARS[element] + "[]"
    if bare in (Any, dict, list) or origin is dict or bare == list[Any]:
        return "jsonb"
    return None


def element_type(bare: Any) -> Any:
    """The type of an array's elements, which may be NULL: `Decimal` of ``list[Decimal | None]``."""
    return unwrap(get_args(bare)[0])[0]


def unwrap(annotation: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Split an annotation into its bare type, its `Annotated` markers, and whether None is allowed."""
    nullable, markers = False, ()
    while True:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation, markers = arguments[0], markers + tuple(arguments[1:])
        elif origin in (Union, types.UnionType) and type(None) in arguments:
            nullable = True
            rest = [a for a in arguments if a is not type(None)]
            annotation = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007
        else:
            return annotation, markers, nullable
