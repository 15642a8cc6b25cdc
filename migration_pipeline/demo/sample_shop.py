"""The items of a made-up shop: what `migration_pipeline.demo.sample` writes for the profile shop."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from math import gcd
from random import Random
from typing import TypeAlias

from msgspec.json import encode

from migration_pipeline.demo.sample_faults import Fault
from migration_pipeline.demo.sample_layout import EPOCH, iso

Attributes: TypeAlias = dict[str, dict[str, object]]
"""Of an item: name -> type -> value."""

_SHARES = {"customer": 7, "order": 12, "line": 15, "event": 40, "session": 26}  # of every 100 items
_LINES_OF_ORDERS = (1, 1, 1, 2, 1, 1, 1, 1, 3, 1, 1, 1)  # 12 orders have 15 lines, as in _SHARES
_ORDERED = [(order, line) for order, count in enumerate(_LINES_OF_ORDERS) for line in range(1, count + 1)]
_SPREAD_IDS = 0x9E3779B97F4A7C15  # odd, so multiplying by it modulo a power of two keeps ids apart


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST_NAMES = _words("Ada Björn Chloé Dmitri Élodie Fatima Grace Hiro İpek José Kwame Linh Noé Zoë")
_LAST_NAMES = _words("Adams Brandt Costa Dubois Evans Fischer Garcia Haddad Ito Jensen Kim Meyer Okafor")
# What a loader may trip over: quotes, COPY's own \N and tabs, line ends that are none, nothing at all.
_AWKWARD_NAMES = ('Miles "M" O\'Neil', "\\N", "Tab\there", "Léa 🛒", "Two\nlines", "", "Ann\u2028Mae")
_STREETS = _words("Abbey Birch Cherry Dock Elm Färber Garden Harbour Iris Jäger Lime Mill Nelson Orchard")
_CITIES = _words("Århus Berlin Córdoba Dublin Essen Firenze Genève Hanoi İzmir Kraków Lagos Lyon Zürich")
_TAGS = _words("vip wholesale early-adopter référence b2b student returns-often lapsed press {curly} a,b")
_STYLES = _words("Blue Classic Crisp Foldable Heavy Light Mini Organic Quiet Round Soft Sturdy Tall Wide")
_GOODS = _words("Backpack Bottle Chair Desk Kettle Lamp Mug Notebook Pillow Rug Scarf Shelf Stool Tent")
_STATUSES = _words("placed paid shipped shipped shipped returned")
_CURRENCIES = _words("EUR EUR EUR USD USD GBP CHF JPY")
_EVENT_KINDS = _words("viewed viewed viewed searched searched added_to_cart removed_from_cart login")
_PAGES = _words("home search cart account checkout help products/new products/sale products/kitchen")
_BROWSERS = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) Chrome/",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) Safari/",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_2 like Mac OS X) Mobile/",
    "ShopApp/Android/",
)


class Mix:
    """Which item stands at which position: the kinds in their shares, and neighbours far apart.

    Items are numbered so that each hundred holds the kinds in their exact shares. A stride that has no
    divisor in common with the number of items leads through the numbers in another order, so that what
    is numbered together (the lines of an order, say) lands in different files.
    """

    def __init__(self, items: int, seed: int) -> None:
        self.items = items
        self._stride = max(1, items * 618 // 1000)
        while gcd(self._stride, items) > 1:
            self._stride += 1
        kinds = [kind for kind, share in _SHARES.items() for _ in range(share)]
        Random(f"mix {seed}").shuffle(kinds)
        self._slots = [(kind, _SHARES[kind], kinds[:slot].count(kind)) for slot, kind in enumerate(kinds)]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """For each position the item's kind, and its number among all of that kind."""
        for position in range(self.items):
            yield self.of(position * self._stride % self.items)

    def of(self, number: int) -> tuple[str, int]:
        """The kind of the item with a number, and its number among all of that kind; those past all items are new."""
        hundred, slot = divmod(number, 100)
        kind, share, ordinal = self._slots[slot]
        return kind, hundred * share + ordinal


def _typed(kind: str, /, **values: object) -> Attributes:
    """Attributes of one DynamoDB type, as in ``{"name": {"S": "Ada"}}``; without those that are None."""
    return {name: {kind: value} for name, value in values.items() if value is not None}


def _decimal(units: int, per_unit: int = 100) -> str:
    """A decimal number as DynamoDB keeps it: without zeros at the end."""
    return f"{units / per_unit:.12g}"


class Shop:
    """The lines of the shop's items. What is rare goes by an item's number: small samples have it too."""

    def __init__(self, mix: Mix, seed: int, now: datetime, stream: Random | None = None) -> None:
        """Of a table at a time; `stream` gives values of their own to items that come later, with ids of the same table."""
        random = Random(seed)
        self._salt = random.getrandbits(64)
        random = stream or random
        self._random, self._bits, self._sample = random.random, random.getrandbits, random.sample
        self._mix = mix
        self._customers = max(1, mix.items // 100 * _SHARES["customer"])
        self._now = now
        self._seconds = int((now - EPOCH).total_seconds())
        self._make = {
            "customer": self._customer,
            "order": self._order,
            "line": self._order_line,
            "event": self._event,
            "session": self._session,
        }

    def lines(self, faults: dict[int, Fault]) -> Iterator[bytes]:
        """The line of each position, broken at the positions in `faults`."""
        for position, (kind, number) in enumerate(self._mix):
            # The good item is made in any case, so that a broken one changes none of those after it.
            item = self.item(kind, number)
            yield faults[position].line(position) if position in faults else encode({"Item": item}) + b"\n"

    def item(self, kind: str, number: int) -> Attributes:
        """An item of a kind, under the key that its number gives it."""
        attributes = list(self._make[kind](number).items())
        first = int(self._random() * len(attributes))  # their order means nothing in an export: vary it
        return dict(attributes[first:] + attributes[:first])

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._random() * len(choices))]

    def _id(self, number: int, digits: int) -> str:
        return f"{(number * _SPREAD_IDS + self._salt) % 16**digits:0{digits}x}"

    def some_customer(self) -> str:
        """The id of a customer; a few are far busier than the others."""
        return self._id(int(self._random() ** 2 * self._customers), 8)

    def _ago(self, days: int) -> datetime:
        return self._now - timedelta(milliseconds=int(self._random() * days * 86_400_000))

    def _base64(self, size: int) -> str:
        return b64encode(self._bits(8 * size).to_bytes(size, "big")).decode()

    def _customer(self, number: int) -> Attributes:
        customer, last_name = self._id(number, 8), self._pick(_LAST_NAMES)
        awkward = _AWKWARD_NAMES[number // 5 % len(_AWKWARD_NAMES)]
        name = awkward if number % 5 == 1 else f"{self._pick(_FIRST_NAMES)} {last_name}"
        created = iso(self._ago(900), "seconds" if number % 3 else "milliseconds")
        email = f"{last_name.lower()}.{customer}@example.com" if number % 6 > 1 else None
        phone = f"+1-555-{self._bits(23):07d}" if number % 4 else None
        balance = self._huge() if number % 50 == 4 else _decimal(self._bits(16) - 9_000)
        tags = self._sample(_TAGS, 1 + self._bits(2)) if number % 3 else None
        lucky_numbers = [_decimal(each, 10) for each in self._sample(range(-50, 1000), 3)]
        device_ids = [self._base64(9), self._base64(9)]
        return {
            **_typed("S", PK=f"CUSTOMER#{customer}", SK="PROFILE", name=name, createdAt=created),
            **_typed("N", balance=balance, loyaltyPoints=str(self._bits(12))),
            **_typed("BOOL", newsletter=self._random() < 0.4),
            **_typed("B", fingerprint=self._base64(16)),
            **_typed("S", email=email, phone=phone),
            **_typed("NULL", email=True if number % 6 == 1 else None),
            **_typed("SS", tags=tags),
            **_typed("NS", luckyNumbers=lucky_numbers if number % 20 == 3 else None),
            **_typed("BS", deviceIds=device_ids if number % 20 == 5 else None),
            **_typed("M", address=self._address() if number % 9 else None),
            **_typed("L", notes=self._notes(number)),
        }

    def _huge(self) -> str:
        """A number of 38 digits, which is all the precision that DynamoDB has."""
        digits, point = str(10**37 + (self._bits(120) | 1)), 1 + self._bits(5)
        return f"{self._pick(('', '-'))}{digits[:point]}.{digits[point:]}"

    def _notes(self, number: int) -> list[object] | None:
        if number % 4:
            return [] if number % 4 == 1 else None
        text = f"asks for a {self._pick(_GOODS)}"
        sizes = _typed("N", S=str(self._bits(3)), L="1")  # an attribute may itself be named S, N or L
        return [{"S": text}, {"N": str(self._bits(5))}, {"BOOL": True}, {"NULL": True}, {"M": sizes}]

    def _address(self) -> Attributes:
        street = f"{self._pick(_STREETS)} {self._bits(7)}"
        lat, lon = (_decimal(self._bits(20) - 500_000, 10_000) for _ in range(2))
        place = _typed("S", street=street, city=self._pick(_CITIES), zip=f"{self._bits(16):05d}")
        return place | _typed("M", geo=_typed("N", lat=lat, lon=lon))

    def _order(self, number: int) -> Attributes:
        placed = self._seconds * 1000 - self._bits(35)
        lines = _LINES_OF_ORDERS[number % len(_LINES_OF_ORDERS)]
        coupon = f"SAVE{self._bits(4)}-{number % 1000}" if number % 5 == 2 else None
        return {
            **_typed("S", PK=f"CUSTOMER#{self.some_customer()}", SK=f"ORDER#{self._id(number, 10)}"),
            **_typed("S", status=self._pick(_STATUSES), currency=self._pick(_CURRENCIES), coupon=coupon),
            **_typed("NULL", coupon=True if number % 5 == 4 else None),
            **_typed("N", total=_decimal(self._bits(15) + 99), placedAt=str(placed), lineCount=str(lines)),
            **_typed("M", shipTo=self._address()),
        }

    def _order_line(self, number: int) -> Attributes:
        dozen, index = divmod(number, len(_ORDERED))
        order, line = _ORDERED[index]
        order_id = self._id(dozen * len(_LINES_OF_ORDERS) + order, 10)
        sku, title = f"SKU-{self._bits(20):06x}", f"{self._pick(_STYLES)} {self._pick(_GOODS)}"
        price, weight = _decimal(self._bits(14) + 99), _decimal(self._bits(13) + 20, 1000)
        return {
            **_typed("S", PK=f"ORDER#{order_id}", SK=f"LINE#{line:03d}", sku=sku, title=title),
            **_typed("N", quantity=str(1 + self._bits(2)), unitPrice=price),
            **_typed("BOOL", gift=self._random() < 0.1),
            **_typed("N", weightKg=weight if number % 3 else None),
        }

    def _event(self, number: int) -> Attributes:
        time = iso(self._ago(90))
        payload = _typed("S", item=self._pick(_GOODS)) | _typed("N", milliseconds=str(self._bits(12)))
        return {
            **_typed("S", PK=f"CUSTOMER#{self.some_customer()}", SK=f"EVENT#{time}#{number}", at=time),
            **_typed("S", kind=self._pick(_EVENT_KINDS), page=f"/{self._pick(_PAGES)}"),
            **_typed("M", payload=payload),
        }

    def _session(self, number: int) -> Attributes:
        browser = f"{self._pick(_BROWSERS)}{100 + self._bits(4)}.0"
        return {
            **_typed("S", PK=f"SESSION#{self._id(number, 16)}", SK="SESSION", userAgent=browser),
            **_typed("S", customerId=self.some_customer(), ip=f"198.51.100.{self._bits(8)}"),
            **_typed("N", expiresAt=str(self._seconds + self._bits(16))),
        }
