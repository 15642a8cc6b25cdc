"""What a shop export must become in PostgreSQL, computed from its files without any code of the project.

Plain `json` and `gzip` read the export; values are compared as PostgreSQL prints them or as Python types
that both sides share. Slow and simple on purpose: this is what the pipeline is held against.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

Rows = dict[str, list[tuple[Any, ...]]]

SELECTS = {
    "customers": "SELECT customer_id, name, email, phone, created_at, newsletter, balance, loyalty_points, tags, "
    "lucky_numbers::text[], device_ids::text[], fingerprint, address::text, notes::text FROM customers",
    "orders": "SELECT order_id, customer_id, status, total, currency, placed_at, line_count, coupon, ship_to::text "
    "FROM orders",
    "order_lines": "SELECT order_id, line_no, sku, title, quantity, unit_price, gift, weight_kg FROM order_lines",
    "landing.shop_events": "SELECT customer_id, at, kind FROM landing.shop_events",
}


def data_lines(export: Path) -> Iterator[tuple[str, int, bytes]]:
    """Yield file name, line number and line of every item that the manifest lists."""
    for entry in (export / "manifest-files.json").read_text().splitlines():
        name = json.loads(entry)["dataFileS3Key"].rsplit("/", 1)[-1]
        with gzip.open(export / "data" / name) as lines:
            for number, line in enumerate(lines, 1):
                yield name, number, line


def expected(export: Path, leave_out: Collection[tuple[str, int]] = ()) -> tuple[Rows, Counter[str]]:
    """Compute the tables' rows, sorted by key, and how many items go where; `leave_out` are (file, line)."""
    rows: Rows = {table: [] for table in SELECTS}
    counts = Counter[str]()
    for name, number, line in data_lines(export):
        counts["items"] += 1
        if (name, number) in leave_out:
            counts["left out"] += 1
            continue
        item = json.loads(line)["Item"]
        sort_key = item["SK"]["S"]
        if sort_key == "PROFILE":
            rows["customers"].append(_customer(item))
        elif sort_key.startswith("ORDER#"):
            rows["orders"].append(_order(item))
        elif sort_key.startswith("LINE#"):
            rows["order_lines"].append(_order_line(item))
        elif sort_key.startswith("EVENT#"):
            rows["landing.shop_events"].append(_event(item))
        else:
            counts[sort_key.split("#")[0]] += 1
    for table in rows.values():
        table.sort(key=lambda row: row[:3] if len(row) == 3 else row[:2])
    return rows, counts


def _customer(item: dict[str, Any]) -> tuple[Any, ...]:
    read = _reader(item)
    return (
        read("PK", "S").removeprefix("CUSTOMER#"), read("name", "S"), read("email", "S"), read("phone", "S"),
        datetime.fromisoformat(read("createdAt", "S").replace("Z", "+00:00")), read("newsletter", "BOOL"),
        read("balance", "N", Decimal), read("loyaltyPoints", "N", int),
        read("tags", "SS", sorted), read("luckyNumbers", "NS", lambda ns: sorted(map(Decimal, ns))),
        read("deviceIds", "BS", lambda bs: ["\\x" + b.hex() for b in sorted(map(base64.b64decode, bs))]),
        read("fingerprint", "B", base64.b64decode), read("address", "M", _members), read("notes", "L", _elements),
    )  # fmt: skip


def _order(item: dict[str, Any]) -> tuple[Any, ...]:
    read = _reader(item)
    placed = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=read("placedAt", "N", int))
    return (
        read("SK", "S").removeprefix("ORDER#"), read("PK", "S").removeprefix("CUSTOMER#"), read("status", "S"),
        read("total", "N", Decimal), read("currency", "S"), placed, read("lineCount", "N", int),
        read("coupon", "S"), read("shipTo", "M", _members),
    )  # fmt: skip


def _order_line(item: dict[str, Any]) -> tuple[Any, ...]:
    read = _reader(item)
    return (
        read("PK", "S").removeprefix("ORDER#"), int(read("SK", "S").removeprefix("LINE#")), read("sku", "S"),
        read("title", "S"), read("quantity", "N", int), read("unitPrice", "N", Decimal), read("gift", "BOOL"),
        read("weightKg", "N", Decimal),
    )  # fmt: skip


def _event(item: dict[str, Any]) -> tuple[Any, ...]:
    read = _reader(item)
    at = datetime.fromisoformat(read("at", "S").replace("Z", "+00:00"))
    return read("PK", "S").removeprefix("CUSTOMER#"), at, read("kind", "S")


def activities(rows: Rows) -> list[tuple[Any, ...]]:
    """Sum up what each customer did, of all events: rows of customer_activity, sorted by key."""
    by_customer: dict[str, list[tuple[Any, ...]]] = {}
    for event in rows["landing.shop_events"]:
        by_customer.setdefault(event[0], []).append(event)
    return [
        (
            customer,
            min(e[1] for e in events),
            max(e[1] for e in events),
            len(events),
            dict(Counter(e[2] for e in events)),
        )
        for customer, events in sorted(by_customer.items())
    ]


def _reader(item: dict[str, Any]) -> Callable[..., Any]:
    def read(name: str, letter: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
        attribute = item.get(name)
        return None if attribute is None or "NULL" in attribute else convert(attribute[letter])

    return read


def _members(members: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in members.items()}


def _elements(elements: list[Any]) -> list[Any]:
    return [_plain(value) for value in elements]


def _plain(attribute: dict[str, Any]) -> Any:
    ((letter, value),) = attribute.items()
    plain: dict[str, Callable[[], Any]] = {
        "N": lambda: Decimal(value), "NULL": lambda: None, "M": lambda: _members(value), "L": lambda: _elements(value),
        "SS": lambda: sorted(value), "NS": lambda: sorted(map(Decimal, value)),
    }  # fmt: skip
    return plain.get(letter, lambda: value)()


def actual(connection: Any) -> Rows:
    """Read the tables back, in the shape of `expected`."""
    tables = {}
    with connection, connection.cursor() as cursor:
        for table, select in SELECTS.items():
            cursor.execute(select)
            tables[table] = sorted(
                (_comparable(table, row) for row in cursor.fetchall()),
                key=lambda row: row[:3] if len(row) == 3 else row[:2],
            )
    return tables


def _comparable(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    documents = {"customers": (12, 13), "orders": (8,)}.get(table, ())
    values = [bytes(value) if isinstance(value, memoryview) else value for value in row]
    if table == "customers" and values[9] is not None:
        values[9] = list(map(Decimal, values[9]))  # psycopg2 would make floats of a numeric[]
    for index in documents:
        if values[index] is not None:
            values[index] = json.loads(values[index], parse_float=Decimal, parse_int=Decimal)
    return tuple(values)


def checksum(connection: Any, tables: Collection[str] = tuple(SELECTS)) -> str:
    """Digest the contents of tables, independent of physical order."""
    with connection, connection.cursor() as cursor:
        digests = []
        for table in sorted(tables):
            cursor.execute(
                f"SELECT md5(coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '')) FROM {table} t"
            )
            digests.append(cursor.fetchone()[0])
        return "-".join(digests)
