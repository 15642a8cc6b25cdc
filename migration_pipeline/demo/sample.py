"""A made-up export (a shop's, unless asked for another), so that a demo, a test or a benchmark needs no AWS account.

The layout and the lines are those of a real full export in DynamoDB JSON. The same arguments give the
same bytes, whatever the clock says, so that two loads of one sample can be compared.

Planted faults (``bad``) each break one item in one known way. The list of them lies beside the export:
a loader is right when it sets aside exactly those lines and loads all others.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import accumulate, islice, pairwise
from math import gcd
from pathlib import Path
from random import Random
from typing import TypeAlias

from isal import isal_zlib
from msgspec.json import encode

from migration_pipeline.demo.sample_faults import Fault, listed, plant
from migration_pipeline.demo.sample_pictures import Pictures
from migration_pipeline.errors import UsageError

PROFILES = ("shop", "pictures")
"""The shipped profiles, each of which has a sample."""

_Progress: TypeAlias = Callable[[int], None]
_Attributes: TypeAlias = dict[str, dict[str, object]]

_SHARES = {"customer": 7, "order": 12, "line": 15, "event": 40, "session": 26}  # of every 100 items
_LINES_OF_ORDERS = (1, 1, 1, 2, 1, 1, 1, 1, 3, 1, 1, 1)  # 12 orders have 15 lines, as in _SHARES
_ORDERED = [(order, line) for order, count in enumerate(_LINES_OF_ORDERS) for line in range(1, count + 1)]

_CHUNK = 4096  # lines; about 1 MB of text, which is all that is in memory at a time
_COMPRESSION = 2  # of ISA-L's levels 0 to 3
_GZIP_WINDOW = 31  # zlib's wbits for gzip; the header that comes with it holds no time
_SPREAD_IDS = 0x9E3779B97F4A7C15  # odd, so multiplying by it modulo a power of two keeps ids apart
_EPOCH = datetime(1970, 1, 1)


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


def write_sample(
    folder: Path,
    *,
    items: int,
    files: int,
    seed: int = 1,
    bad: int = 0,
    profile: str = "shop",
    on_progress: _Progress | None = None,
) -> Path:
    """Write an export of `items` items in `files` data files below `folder`; return the export's own folder.

    With three files or more the last one is empty, as real exports have it. `bad` of the wanted items
    (customers, orders, lines) are replaced by broken ones, listed in ``folder/bad-items.jsonl``: one
    object a line with the data file's name, the number of the line in it from 1, the kind of fault, the
    reason, and the stage where a loader must notice: ``line`` (it is no JSON object with an Item, in
    UTF-8), ``decode`` (an attribute is not what it must be) or ``database`` (PostgreSQL refuses the row).

    The export is named after all of these numbers, so another sample never passes for this one. The good
    items are the same whatever `files` and `bad` are. `profile` is one of `PROFILES`, whose table it is; bad
    items are planted in the shop only. `on_progress` is told the number of items written so far. Raises
    `UsageError` for numbers that make no sample.
    """
    if items < 0 or files < 1:
        raise UsageError(f"A sample has 0 items or more in 1 file or more, not {items} in {files}.")
    if profile not in PROFILES:
        raise UsageError(f"There is no sample of {profile}, only of {', '.join(PROFILES)}.")
    if bad and profile != "shop":
        raise UsageError(f"Bad items are planted in the sample of the shop only, not of {profile}.")
    size_in_words = f"{items} items in {files} files, {bad} bad"
    export = _Export(seed, size_in_words if profile == "shop" else f"{profile}: {size_in_words}", profile)
    mix = _Mix(items, seed)
    faults = plant(mix, mix.items, bad, seed)
    root, listing = folder / "AWSDynamoDB" / export.id, folder / "bad-items.jsonl"
    _clear(root, listing)

    ranges = _ranges(items, files, seed)
    names = [export.file_name() for _ in ranges]
    lines = (
        Pictures(items, seed).lines()
        if profile == "pictures"
        else _Shop(mix, seed, export.time).lines(faults)
    )
    entries, size = [], 0
    for name, positions in zip(names, ranges, strict=True):
        md5, raw_size = _write_data_file(root / "data" / name, _chunks(lines, positions, on_progress))
        entries.append(export.file_entry(name, len(positions), md5))
        size += raw_size
    if faults:
        listing.write_bytes(_json_lines(listed(faults, names, ranges)))
    _write_manifest(root, "manifest-files", _json_lines(entries))
    # A reader takes an export with a summary for complete, so the summary comes last.
    _write_manifest(root, "manifest-summary", _json_lines([export.summary(items, size)]).rstrip())
    return root


def _clear(root: Path, listing: Path) -> None:
    """Make an empty export folder; the summary goes first, so that what is left never passes for complete."""
    (root / "manifest-summary.json").unlink(missing_ok=True)
    listing.unlink(missing_ok=True)
    if root.exists():
        shutil.rmtree(root)
    (root / "data").mkdir(parents=True)
    (root / "_started").touch()


class _Export:
    """The name, the times and the manifest of an export, all from its seed and its `size` in words."""

    def __init__(self, seed: int, size: str, table: str) -> None:
        self._table = table
        self._random = Random(f"export {seed}")
        milliseconds = 1_700_000_000_000 + self._random.getrandbits(34)  # 2023-11-14 and up to 199 days on
        self.id = f"{milliseconds:014d}-{Random(f'{seed}: {size}').getrandbits(32):08x}"
        self.time = _EPOCH + timedelta(milliseconds=milliseconds)
        self._table_id = uuid.UUID(int=self._random.getrandbits(128), version=4)

    def file_name(self) -> str:
        """The next data file's name."""
        return "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz234567", k=26)) + ".json.gz"

    def file_entry(self, name: str, items: int, md5: bytes) -> dict[str, object]:
        """The line of a data file in manifest-files.json, from the MD5 of its compressed bytes."""
        return {
            "itemCount": items,
            "md5Checksum": b64encode(md5).decode(),
            "etag": f"{_md5(md5).hex()}-1",
            "dataFileS3Key": f"AWSDynamoDB/{self.id}/data/{name}",
        }

    def summary(self, items: int, size: int) -> dict[str, object]:
        """The object in manifest-summary.json; `size` is in bytes before compression."""
        table = f"arn:aws:dynamodb:eu-central-1:123456789012:table/{self._table}"
        return {
            "version": "2020-06-30",
            "exportArn": f"{table}/export/{self.id}",
            "startTime": _iso(self.time),
            "endTime": _iso(self.time + timedelta(minutes=7)),
            "tableArn": table,
            "tableId": str(self._table_id),
            "exportTime": _iso(self.time),
            "s3Bucket": "example-exports",
            "s3Prefix": None,
            "s3SseAlgorithm": "AES256",
            "s3SseKmsKeyId": None,
            "manifestFilesS3Key": f"AWSDynamoDB/{self.id}/manifest-files.json",
            "billedSizeBytes": size,
            "itemCount": items,
            "outputFormat": "DYNAMODB_JSON",
        }


def _iso(time: datetime, timespec: str = "milliseconds") -> str:
    return time.isoformat(timespec=timespec) + "Z"


def _md5(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _json_lines(objects: Iterable[dict[str, object]]) -> bytes:
    return "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in objects).encode()


def _write_manifest(root: Path, name: str, content: bytes) -> None:
    (root / f"{name}.md5").write_bytes(b64encode(_md5(content)))
    (root / f"{name}.json").write_bytes(content)


def _ranges(items: int, files: int, seed: int) -> list[range]:
    """The positions of the items that each file gets: a bit uneven, and none in the last of three or more."""
    random = Random(f"files {seed}").random
    filled = files - 1 if files >= 3 else files
    ends = list(accumulate(0.92 + 0.16 * random() for _ in range(filled)))
    bounds = [0, *(round(items * end / ends[-1]) for end in ends)]
    return [range(*bound) for bound in pairwise(bounds)] + [range(items, items)] * (files - filled)


def _write_data_file(path: Path, chunks: Iterable[bytes]) -> tuple[bytes, int]:
    """Write a gzip file; return the MD5 of its bytes, and the number of bytes before compression."""
    compressor = isal_zlib.compressobj(_COMPRESSION, isal_zlib.DEFLATED, _GZIP_WINDOW)
    md5, size = hashlib.md5(usedforsecurity=False), 0
    with path.open("wb") as out:

        def put(packed: bytes) -> None:
            md5.update(packed)
            out.write(packed)

        for chunk in chunks:
            size += len(chunk)
            put(compressor.compress(chunk))
        put(compressor.flush())
    return md5.digest(), size


def _chunks(lines: Iterator[bytes], positions: range, on_progress: _Progress | None) -> Iterator[bytes]:
    """The next lines, one a position, in pieces of a good size to compress."""
    for start in positions[::_CHUNK]:
        stop = min(start + _CHUNK, positions.stop)
        yield b"".join(islice(lines, stop - start))
        if on_progress is not None:
            on_progress(stop)


class _Mix:
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
            hundred, slot = divmod(position * self._stride % self.items, 100)
            kind, share, ordinal = self._slots[slot]
            yield kind, hundred * share + ordinal


def _typed(kind: str, /, **values: object) -> _Attributes:
    """Attributes of one DynamoDB type, as in ``{"name": {"S": "Ada"}}``; without those that are None."""
    return {name: {kind: value} for name, value in values.items() if value is not None}


def _decimal(units: int, per_unit: int = 100) -> str:
    """A decimal number as DynamoDB keeps it: without zeros at the end."""
    return f"{units / per_unit:.12g}"


class _Shop:
    """The lines of the shop's items. What is rare goes by an item's number: small samples have it too."""

    def __init__(self, mix: _Mix, seed: int, now: datetime) -> None:
        random = Random(seed)
        self._random, self._bits, self._sample = random.random, random.getrandbits, random.sample
        self._salt = random.getrandbits(64)
        self._mix = mix
        self._customers = max(1, mix.items // 100 * _SHARES["customer"])
        self._now = now
        self._seconds = int((now - _EPOCH).total_seconds())

    def lines(self, faults: dict[int, Fault]) -> Iterator[bytes]:
        """The line of each position, broken at the positions in `faults`."""
        make = {
            "customer": self._customer,
            "order": self._order,
            "line": self._order_line,
            "event": self._event,
            "session": self._session,
        }
        for position, (kind, number) in enumerate(self._mix):
            # The good item is made in any case, so that a broken one changes none of those after it.
            attributes = list(make[kind](number).items())
            first = int(self._random() * len(attributes))  # their order means nothing in an export: vary it
            item = dict(attributes[first:] + attributes[:first])
            yield faults[position].line(position) if position in faults else encode({"Item": item}) + b"\n"

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[int(self._random() * len(choices))]

    def _id(self, number: int, digits: int) -> str:
        return f"{(number * _SPREAD_IDS + self._salt) % 16**digits:0{digits}x}"

    def _some_customer(self) -> str:
        """The id of a customer; a few are far busier than the others."""
        return self._id(int(self._random() ** 2 * self._customers), 8)

    def _ago(self, days: int) -> datetime:
        return self._now - timedelta(milliseconds=int(self._random() * days * 86_400_000))

    def _base64(self, size: int) -> str:
        return b64encode(self._bits(8 * size).to_bytes(size, "big")).decode()

    def _customer(self, number: int) -> _Attributes:
        customer, last_name = self._id(number, 8), self._pick(_LAST_NAMES)
        awkward = _AWKWARD_NAMES[number // 5 % len(_AWKWARD_NAMES)]
        name = awkward if number % 5 == 1 else f"{self._pick(_FIRST_NAMES)} {last_name}"
        created = _iso(self._ago(900), "seconds" if number % 3 else "milliseconds")
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

    def _address(self) -> _Attributes:
        street = f"{self._pick(_STREETS)} {self._bits(7)}"
        lat, lon = (_decimal(self._bits(20) - 500_000, 10_000) for _ in range(2))
        place = _typed("S", street=street, city=self._pick(_CITIES), zip=f"{self._bits(16):05d}")
        return place | _typed("M", geo=_typed("N", lat=lat, lon=lon))

    def _order(self, number: int) -> _Attributes:
        placed = self._seconds * 1000 - self._bits(35)
        lines = _LINES_OF_ORDERS[number % len(_LINES_OF_ORDERS)]
        coupon = f"SAVE{self._bits(4)}-{number % 1000}" if number % 5 == 2 else None
        return {
            **_typed("S", PK=f"CUSTOMER#{self._some_customer()}", SK=f"ORDER#{self._id(number, 10)}"),
            **_typed("S", status=self._pick(_STATUSES), currency=self._pick(_CURRENCIES), coupon=coupon),
            **_typed("NULL", coupon=True if number % 5 == 4 else None),
            **_typed("N", total=_decimal(self._bits(15) + 99), placedAt=str(placed), lineCount=str(lines)),
            **_typed("M", shipTo=self._address()),
        }

    def _order_line(self, number: int) -> _Attributes:
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

    def _event(self, number: int) -> _Attributes:
        time = _iso(self._ago(90))
        payload = _typed("S", item=self._pick(_GOODS)) | _typed("N", milliseconds=str(self._bits(12)))
        return {
            **_typed("S", PK=f"CUSTOMER#{self._some_customer()}", SK=f"EVENT#{time}#{number}", at=time),
            **_typed("S", kind=self._pick(_EVENT_KINDS), page=f"/{self._pick(_PAGES)}"),
            **_typed("M", payload=payload),
        }

    def _session(self, number: int) -> _Attributes:
        browser = f"{self._pick(_BROWSERS)}{100 + self._bits(4)}.0"
        return {
            **_typed("S", PK=f"SESSION#{self._id(number, 16)}", SK="SESSION", userAgent=browser),
            **_typed("S", customerId=self._some_customer(), ip=f"198.51.100.{self._bits(8)}"),
            **_typed("N", expiresAt=str(self._seconds + self._bits(16))),
        }
