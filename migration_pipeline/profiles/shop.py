"""The shop: one DynamoDB table with customers, orders, order lines, events and sessions.

This profile is also the tutorial. It says which items become which rows, and nothing else: no
database, no files, no checkpoints. Read it from top to bottom.

The table has a composite key (`PK`, `SK`), and the sort key tells what an item is::

    PK                SK                          becomes
    CUSTOMER#<id>     PROFILE                     a row of customers
    CUSTOMER#<id>     ORDER#<order id>            a row of orders
    ORDER#<order id>  LINE#<number>               a row of order_lines
    CUSTOMER#<id>     EVENT#<time>#<number>       with all others of its customer a row of customer_activity
    SESSION#<id>      SESSION                     nothing: counted as skipped
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from migration_pipeline import EpochMillis, Integer, Item, Profile, Row, attribute, prefix

shop = profile = Profile("shop")


# An Item says what is read of a DynamoDB item: the attributes you need, with their types. Attributes
# that no field names are not even decoded. `X | None` also takes an attribute that is NULL or missing.


class CustomerItem(Item):
    """``CUSTOMER#<id> / PROFILE``"""

    PK: str
    name: str
    created_at: datetime = attribute("createdAt")
    newsletter: bool
    balance: Decimal
    loyalty_points: int = attribute("loyaltyPoints")
    fingerprint: bytes
    email: str | None
    phone: str | None
    tags: frozenset[str] | None
    lucky_numbers: frozenset[Decimal] | None = attribute("luckyNumbers")
    device_ids: frozenset[bytes] | None = attribute("deviceIds")
    address: dict[str, Any] | None
    notes: list[Any] | None


class OrderItem(Item):
    """``CUSTOMER#<id> / ORDER#<order id>``"""

    PK: str
    SK: str
    status: str
    total: Decimal
    currency: str
    placed_at: EpochMillis = attribute("placedAt")
    line_count: int = attribute("lineCount")
    coupon: str | None
    ship_to: dict[str, Any] = attribute("shipTo")


class OrderLineItem(Item):
    """``ORDER#<order id> / LINE#<number>``"""

    PK: str
    SK: str
    sku: str
    title: str
    quantity: int
    unit_price: Decimal = attribute("unitPrice")
    gift: bool
    weight_kg: Decimal | None = attribute("weightKg")


class EventItem(Item):
    """``CUSTOMER#<id> / EVENT#<time>#<number>``"""

    PK: str
    at: datetime
    kind: str


# A Row says what is written: the columns of a table, their types, and the key that makes a second
# load of the same file an update instead of a duplicate. Its docstrings become the comments of the table
# and its columns, in PostgreSQL and in Dagster.


class Customer(Row, table="customers", key="customer_id"):
    """People who signed up in the shop."""

    customer_id: str
    """The part of PK after `CUSTOMER#`."""
    name: str
    email: str | None
    phone: str | None
    created_at: datetime
    """When the customer signed up."""
    newsletter: bool
    """Whether the customer wants the newsletter."""
    balance: Decimal
    """Credit, in the currency of the customer's country; negative when the customer owes."""
    loyalty_points: int
    tags: frozenset[str] | None
    """NULL when there is none: DynamoDB has no empty set."""
    lucky_numbers: frozenset[Decimal] | None
    device_ids: frozenset[bytes] | None
    """Devices that the customer signed in with."""
    fingerprint: bytes
    """Of the last browser, as the shop computed it."""
    address: dict[str, Any] | None
    """Street, city and zip, and geo with lat and lon."""
    notes: list[Any] | None


class Order(Row, table="orders", key="order_id"):
    """Orders, one row each; their lines are in order_lines."""

    order_id: str
    """The part of SK after `ORDER#`."""
    customer_id: str
    """The customer's, from PK. No foreign key: files load in any order."""
    status: str
    total: Decimal
    """In `currency`, with all its digits."""
    currency: str
    """ISO 4217."""
    placed_at: datetime
    """When the order was placed, to the millisecond."""
    line_count: Integer
    """Lines that the order should have in order_lines."""
    coupon: str | None
    ship_to: dict[str, Any]
    """The address as it was when the order was placed."""


class OrderLine(Row, table="order_lines", key=("order_id", "line_no")):
    """What was ordered, line by line."""

    order_id: str
    """The part of PK after `ORDER#`."""
    line_no: Integer
    """From 1, in the order of the basket."""
    sku: str
    """The article's number."""
    title: str
    quantity: Integer
    unit_price: Decimal
    """In the order's currency."""
    gift: bool
    weight_kg: Decimal | None
    """Kilograms; NULL where nobody weighed it."""


# A landing Row has no key. Its table is internal: what the rows are for is said below, by an aggregate.


class Event(Row, table="shop_events", landing=True):
    """What customers did, event by event: for customer_activity.sql."""

    customer_id: str
    at: datetime
    kind: str


class CustomerActivity(Row, table="customer_activity", key="customer_id"):
    """What each customer did, in sum: from events in all files."""

    customer_id: str
    first_event_at: datetime
    last_event_at: datetime
    events: int
    events_by_kind: dict[str, Any]
    """How many of each kind: ``{"login": 3, "viewed": 12}``."""


# A route is a pure function from an item to a row. The engine decides when and how often to call it.


@shop.route(SK="PROFILE")
def customer(item: CustomerItem) -> Customer:
    """A customer's profile item is one customer."""
    return Customer(
        customer_id=item.PK.removeprefix("CUSTOMER#"),
        name=item.name,
        email=item.email,
        phone=item.phone,
        created_at=item.created_at,
        newsletter=item.newsletter,
        balance=item.balance,
        loyalty_points=item.loyalty_points,
        tags=item.tags,
        lucky_numbers=item.lucky_numbers,
        device_ids=item.device_ids,
        fingerprint=item.fingerprint,
        address=item.address,
        notes=item.notes,
    )


@shop.route(PK=prefix("CUSTOMER#"), SK=prefix("ORDER#"))
def order(item: OrderItem) -> Order:
    """An order, kept in its customer's collection."""
    return Order(
        order_id=item.SK.removeprefix("ORDER#"),
        customer_id=item.PK.removeprefix("CUSTOMER#"),
        status=item.status,
        total=item.total,
        currency=item.currency,
        placed_at=item.placed_at,
        line_count=item.line_count,
        coupon=item.coupon,
        ship_to=item.ship_to,
    )


@shop.route(PK=prefix("ORDER#"), SK=prefix("LINE#"))
def order_line(item: OrderLineItem) -> OrderLine:
    """A line of an order, kept in the order's own collection."""
    return OrderLine(
        order_id=item.PK.removeprefix("ORDER#"),
        line_no=int(item.SK.removeprefix("LINE#")),
        sku=item.sku,
        title=item.title,
        quantity=item.quantity,
        unit_price=item.unit_price,
        gift=item.gift,
        weight_kg=item.weight_kg,
    )


@shop.route(PK=prefix("CUSTOMER#"), SK=prefix("EVENT#"))
def event(item: EventItem) -> Event:
    """An event lands, to be counted with all others of its customer."""
    return Event(item.PK.removeprefix("CUSTOMER#"), item.at, item.kind)


# An aggregate makes one row of many: a SELECT over landing tables, in a file beside this one. It runs when all
# files are landed, so nothing depends on their order.

shop.aggregate(CustomerActivity, of=Event, by="customer_id", sql="customer_activity.sql")

# What is better done once all is loaded; it may be repeated.

shop.index(Order, "customer_id", name="orders_of_customer")

# What is not wanted is said, with the reason: an item that no line here takes is reported as unrouted.

shop.ignore(SK="SESSION", because="sessions expire within a day")
