"""What a profile writes: typed classes for the rows of a PostgreSQL table."""

from __future__ import annotations

import types
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import msgspec
from typing_extensions import dataclass_transform

from migration_pipeline.errors import UsageError
from migration_pipeline.field_docs import field_docs

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

    @property
    def qualified(self) -> str:
        """The name as people write it: ``schema.table``, or ``table`` in the search path."""
        return f"{self.schema}.{self.name}" if self.schema else self.name


class RowMeta(msgspec.StructMeta):
    """Takes ``table=``, ``key=`` and ``version=`` off the class line, so that a Row reads as one declaration."""

    def __new__(  # noqa: D102
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        table: str | None = None,
        key: str | tuple[str, ...] = (),
        version: str | None = None,
        **config: Any,
    ) -> RowMeta:
        cls: Any = super().__new__(mcls, name, bases, namespace, **config)
        if bases and bases[0] is not msgspec.Struct:
            if not table or not key:
                raise UsageError(
                    f'{name}: a Row needs a table and a key: class {name}(Row, table="…", key="…")'
                )
            cls._declared = (table, (key,) if isinstance(key, str) else tuple(key), version)
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
    reports it. Where that is meant, ``version="updated_at"`` names a field that decides: the row with the
    greater version stays, whatever the order.
    """

    _declared: ClassVar[tuple[str, tuple[str, ...], str | None]]


def table_of(row_class: type[Row]) -> Table:
    """Read a `Row` class. Raises `UsageError` for a type or key that makes no column."""
    declared, key_fields, version = row_class._declared
    schema, _, name = declared.rpartition(".")
    hints = get_type_hints(row_class, include_extras=True)
    docs = field_docs(row_class)
    columns = tuple(
        _column(row_class, field.name, field.encode_name, hints[field.name], docs.get(field.name, ""))
        for field in msgspec.structs.fields(row_class)
    )
    by_field = {c.field: c for c in columns}
    for field in key_fields:
        if field not in by_field:
            raise UsageError(f"{row_class.__name__}: its key names {field!r}, which is none of its fields")
        if by_field[field].nullable:
            raise UsageError(f"{row_class.__name__}: {field!r} is part of the key and cannot be None")
    if version is not None and (version not in by_field or version in key_fields):
        raise UsageError(
            f"{row_class.__name__}: its version names {version!r}, which is none of its fields outside the key"
        )
    return Table(
        name=name,
        schema=schema or None,
        columns=columns,
        key=tuple(by_field[field].name for field in key_fields),
        comment=(row_class.__doc__ or "").strip(),
        version=by_field[version].name if version else None,
    )


def _column(row_class: type[Row], field: str, name: str, annotation: Any, comment: str) -> Column:
    bare, markers, nullable = unwrap(annotation)
    pg_type = next((m.name for m in markers if isinstance(m, PgType)), None) or _pg_type(bare)
    if pg_type is None:
        raise UsageError(f"{row_class.__name__}.{field}: no PostgreSQL type for {annotation!r}")
    if pg_type in ("jsonb", "json"):
        bare = Any
    return Column(field, name, bare, pg_type, nullable or annotation is Any, comment)


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
