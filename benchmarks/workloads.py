"""The workloads: a shop, a table in which every item is a row, and pictures, whose rows are made of many items."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

from isal import igzip

from migration_pipeline import EpochSeconds, Integer, Item, Profile, Row, attribute, prefix
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.profiles.shop import customer, order, order_line

shop = Profile("shop")
"""The shop's tables with a key, and nothing else: the same from one release to the next, for figures to compare."""
shop.route(SK="PROFILE")(customer)
shop.route(PK=prefix("CUSTOMER#"), SK=prefix("ORDER#"))(order)
shop.route(PK=prefix("ORDER#"), SK=prefix("LINE#"))(order_line)
shop.ignore(SK=prefix("EVENT#"), because="events stay in the analytics store")
shop.ignore(SK="SESSION", because="sessions expire within a day")

readings = Profile("readings")


class ReadingItem(Item):
    """``SENSOR#<id>#<number>``: ten attributes, all of them wanted."""

    PK: str
    site: str
    unit: str
    label: str
    value: Decimal
    quality: int
    valid: bool
    at: datetime
    received_at: EpochSeconds = attribute("receivedAt")
    remark: str | None


class Reading(Row, table="readings", key="reading_id"):
    """A sensor's reading."""

    reading_id: str
    site: str
    unit: str
    label: str
    value: Decimal
    quality: Integer
    valid: bool
    at: datetime
    received_at: datetime
    remark: str | None


@readings.route(PK=prefix("SENSOR#"))
def reading(item: ReadingItem) -> Reading:
    """Each item is one row."""
    return Reading(
        item.PK, item.site, item.unit, item.label, item.value, item.quality, item.valid, item.at,
        item.received_at, item.remark,
    )  # fmt: skip


def write_readings(folder: Path, items: int, files: int) -> Path:
    """Write an export of readings: items in no order of their keys, spread evenly over the files."""
    export = folder / "AWSDynamoDB" / f"01700000000000-{items:06d}x{files}"
    (export / "data").mkdir(parents=True)
    entries = []
    for number in range(files):
        name = f"readings{number:03d}.json.gz"
        lines = [_reading_line(index) for index in range(number, items, files)]
        with igzip.open(export / "data" / name, "wb") as out:
            out.write(b"".join(lines))
        digest = base64.b64encode(hashlib.md5((export / "data" / name).read_bytes()).digest()).decode()
        key = f"AWSDynamoDB/{export.name}/data/{name}"
        entries.append({"itemCount": len(lines), "md5Checksum": digest, "etag": "", "dataFileS3Key": key})
    summary = {
        "exportArn": "arn:aws:dynamodb:eu-central-1:123456789012:table/readings/export/1",
        "tableArn": "arn:aws:dynamodb:eu-central-1:123456789012:table/readings",
        "exportTime": "2024-01-01T00:00:00.000Z",
        "manifestFilesS3Key": f"AWSDynamoDB/{export.name}/manifest-files.json",
        "itemCount": items,
        "outputFormat": "DYNAMODB_JSON",
    }
    for stem, content in (
        ("manifest-files", "".join(json.dumps(entry) + "\n" for entry in entries)),
        ("manifest-summary", json.dumps(summary)),
    ):
        (export / f"{stem}.json").write_text(content)
        digest = base64.b64encode(hashlib.md5(content.encode()).digest()).decode()
        (export / f"{stem}.md5").write_text(digest)
    return export


def _reading_line(index: int) -> bytes:
    # An odd multiplier modulo 2**40 visits each number once, in no order.
    key = index * 0x9E3779B97F4A7C15 % 2**40
    at = datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=index)
    remark = '{"NULL":true}' if index % 3 else f'{{"S":"looked after by team {index % 17}"}}'
    return (
        f'{{"Item":{{"PK":{{"S":"SENSOR#{key:013d}"}},"site":{{"S":"site-{index % 97}"}},"unit":{{"S":"kWh"}},'
        f'"label":{{"S":"meter {key % 9999} on floor {index % 12}"}},"value":{{"N":"{index % 100000 / 100}"}},'
        f'"quality":{{"N":"{index % 100}"}},"valid":{{"BOOL":{"true" if index % 7 else "false"}}},'
        f'"at":{{"S":"{at:%Y-%m-%dT%H:%M:%SZ}"}},"receivedAt":{{"N":"{1704067200 + index}"}},"remark":{remark}}}}}\n'
    ).encode()


def _shop_script_rows(item: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What somebody writes by hand for the shop, over plain Python values of boto3's TypeDeserializer."""
    pk, sk = item["PK"], item["SK"]
    if sk == "PROFILE":
        yield "customers", (
            pk[9:], item["name"], item.get("email"), item.get("phone"), item["createdAt"], item["newsletter"],
            item["balance"], item["loyaltyPoints"], _sorted(item.get("tags")), _sorted(item.get("luckyNumbers")),
            _sorted(item.get("deviceIds")), item["fingerprint"],
            _document(item.get("address")), _document(item.get("notes")),
        )  # fmt: skip
    elif pk.startswith("CUSTOMER#") and sk.startswith("ORDER#"):
        placed = datetime.fromtimestamp(int(item["placedAt"]) / 1000, timezone.utc)
        yield "orders", (
            sk[6:], pk[9:], item["status"], item["total"], item["currency"], placed, item["lineCount"],
            item.get("coupon"), _document(item["shipTo"]),
        )  # fmt: skip
    elif sk.startswith("LINE#"):
        yield "order_lines", (
            pk[6:], int(sk[5:]), item["sku"], item["title"], item["quantity"], item["unitPrice"], item["gift"],
            item.get("weightKg"),
        )  # fmt: skip


def _readings_script_rows(item: dict[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    received = datetime.fromtimestamp(int(item["receivedAt"]), timezone.utc)
    yield "readings", (
        item["PK"], item["site"], item["unit"], item["label"], item["value"], item["quality"], item["valid"],
        item["at"], received, item["remark"],
    )  # fmt: skip


def _sorted(values: Any) -> list[Any] | None:
    return None if values is None else sorted(values)


def _document(value: Any) -> str | None:
    return None if value is None else json.dumps(value, default=str)


@dataclass(frozen=True)
class Workload:
    """An export, the profile that moves it, and the same rules as a script would have them."""

    name: str
    profile: Profile
    reference: str
    write: Callable[[Path, int, int], Path]
    script_rows: Callable[[dict[str, Any]], Iterator[tuple[str, tuple[Any, ...]]]] | None = None
    """None where the profile has an aggregate: then landing and aggregate are measured, beside the floor's parser alone."""
    times_items: int = 1
    """How many times the items of the others it has."""


WORKLOADS = {
    "shop": Workload(
        "shop",
        shop,
        "benchmarks.workloads:shop",
        lambda folder, items, files: write_sample(folder, items=items, files=files),
        _shop_script_rows,
    ),
    "every_item_a_row": Workload(
        "every_item_a_row", readings, "benchmarks.workloads:readings", write_readings, _readings_script_rows
    ),
    "pictures": Workload(
        "pictures",
        load_profile("pictures"),
        "pictures",
        lambda folder, items, files: write_sample(folder, items=items, files=files, profile="pictures"),
        times_items=6,
    ),
}
