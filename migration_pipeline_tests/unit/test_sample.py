"""The sample is the yardstick of other tests, so here it is read back with json and gzip alone."""

from __future__ import annotations

import base64
import binascii
import gzip
import hashlib
import json
import re
import shutil
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from migration_pipeline.demo.sample import write_sample
from migration_pipeline.errors import UsageError

ITEMS, FILES, BAD = 3000, 5, 40

REQUIRED = {
    "customer": {
        "name": "S",
        "createdAt": "S",
        "newsletter": "BOOL",
        "balance": "N",
        "loyaltyPoints": "N",
        "fingerprint": "B",
    },
    "order": {"status": "S", "total": "N", "currency": "S", "placedAt": "N", "lineCount": "N", "shipTo": "M"},
    "line": {"sku": "S", "title": "S", "quantity": "N", "unitPrice": "N", "gift": "BOOL"},
    "event": {"kind": "S", "at": "S", "page": "S", "payload": "M"},
    "session": {"customerId": "S", "userAgent": "S", "ip": "S", "expiresAt": "N"},
}
OPTIONAL = {
    "customer": {
        "email": {"S", "NULL"},
        "phone": {"S"},
        "tags": {"SS"},
        "luckyNumbers": {"NS"},
        "deviceIds": {"BS"},
        "address": {"M"},
        "notes": {"L"},
    },
    "order": {"coupon": {"S", "NULL"}},
    "line": {"weightKg": {"N"}},
    "event": {},
    "session": {},
}
WANTED = ("customer", "order", "line")
STAGE_OF_KIND = {
    "malformed_json": "line",
    "truncated_line": "line",
    "not_an_object": "line",
    "no_item": "line",
    "invalid_utf8": "line",
    "lone_surrogate": "decode",
    "duplicate_attribute": "decode",
    "wrong_type": "decode",
    "not_a_number": "decode",
    "missing_required": "decode",
    "bad_base64": "decode",
    "bad_datetime": "decode",
    "null_required": "decode",
    "nul_character": "database",
    "integer_out_of_range": "database",
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("good"), items=ITEMS, files=FILES, seed=7)


@pytest.fixture(scope="module")
def bad_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("bad"), items=ITEMS, files=FILES, seed=7, bad=BAD)


def manifest(export: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (export / "manifest-files.json").read_bytes().splitlines()]


def summary(export: Path) -> dict[str, Any]:
    found = json.loads((export / "manifest-summary.json").read_bytes())
    assert isinstance(found, dict)
    return found


def lines_of(export: Path) -> dict[str, list[bytes]]:
    """Lines by data file, in the manifest's order; a file's last line ends like all others."""
    found = {}
    for entry in manifest(export):
        name = entry["dataFileS3Key"].rpartition("/")[2]
        *lines, rest = gzip.decompress((export / "data" / name).read_bytes()).split(b"\n")
        assert rest == b""
        found[name] = lines
    return found


def all_lines(export: Path) -> list[bytes]:
    return [line for lines in lines_of(export).values() for line in lines]


def items_of(export: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["Item"] for line in all_lines(export)]


def listed(export: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (export.parents[1] / "bad-items.jsonl").read_bytes().splitlines()]


def key(item: dict[str, Any]) -> tuple[str, str]:
    return item["PK"]["S"], item["SK"]["S"]


def kind_of(item: dict[str, Any]) -> str:
    partition, sort = (part.partition("#")[0] for part in key(item))
    return {"PROFILE": "customer"}.get(sort, sort.lower() if partition != "SESSION" else "session")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def md5(content: bytes) -> bytes:
    return hashlib.md5(content).digest()


def test_the_layout_is_that_of_a_full_export(export: Path) -> None:
    assert re.fullmatch(r"0\d{13}-[0-9a-f]{8}", export.name)
    assert export.parent.name == "AWSDynamoDB"
    assert {path.name for path in export.iterdir()} == {
        "_started",
        "manifest-summary.json",
        "manifest-summary.md5",
        "manifest-files.json",
        "manifest-files.md5",
        "data",
    }
    assert (export / "_started").read_bytes() == b""
    assert {path.name for path in (export / "data").iterdir()} == set(lines_of(export))
    assert all(re.fullmatch(r"[a-z2-7]{26}\.json\.gz", name) for name in lines_of(export))


@pytest.mark.parametrize("name", ["manifest-summary", "manifest-files"])
def test_a_manifest_has_its_md5_beside_it(export: Path, name: str) -> None:
    content = (export / f"{name}.json").read_bytes()
    assert (export / f"{name}.md5").read_bytes() == base64.b64encode(md5(content))


def test_the_manifest_tells_each_file_as_it_is(export: Path) -> None:
    entries = manifest(export)
    assert len(entries) == FILES
    for entry, (name, lines) in zip(entries, lines_of(export).items(), strict=True):
        digest = md5((export / "data" / name).read_bytes())
        assert entry == {
            "itemCount": len(lines),
            "md5Checksum": base64.b64encode(digest).decode(),
            "etag": md5(digest).hex() + "-1",
            "dataFileS3Key": f"AWSDynamoDB/{export.name}/data/{name}",
        }


def test_the_summary_has_the_fields_of_a_full_export(export: Path) -> None:
    found = summary(export)
    table = "arn:aws:dynamodb:eu-central-1:123456789012:table/shop"
    for field in ("startTime", "endTime", "exportTime"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop(field))
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", found.pop("tableId"))
    assert found == {
        "version": "2020-06-30",
        "exportArn": f"{table}/export/{export.name}",
        "tableArn": table,
        "s3Bucket": "example-exports",
        "s3Prefix": None,
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": None,
        "manifestFilesS3Key": f"AWSDynamoDB/{export.name}/manifest-files.json",
        "billedSizeBytes": sum(len(line) + 1 for line in all_lines(export)),
        "itemCount": ITEMS,
        "outputFormat": "DYNAMODB_JSON",
    }
    assert sum(entry["itemCount"] for entry in manifest(export)) == ITEMS


def test_the_last_of_three_files_or_more_is_empty(export: Path, tmp_path: Path) -> None:
    *filled, last = manifest(export)
    assert last["itemCount"] == 0
    assert all(entry["itemCount"] > 0 for entry in filled)
    assert (export / "data" / last["dataFileS3Key"].rpartition("/")[2]).stat().st_size == 20
    two = manifest(write_sample(tmp_path, items=100, files=2))
    assert all(entry["itemCount"] > 0 for entry in two)


def test_files_are_a_bit_uneven(export: Path) -> None:
    counts = [entry["itemCount"] for entry in manifest(export)[:-1]]
    assert len(set(counts)) > 1
    assert max(counts) < 1.3 * min(counts)


def test_the_same_arguments_give_the_same_bytes(bad_export: Path, tmp_path: Path) -> None:
    write_sample(tmp_path, items=ITEMS, files=FILES, seed=7, bad=BAD)
    assert tree(tmp_path) == tree(bad_export.parents[1])


def test_another_seed_gives_another_export(export: Path, tmp_path: Path) -> None:
    other = write_sample(tmp_path, items=ITEMS, files=FILES, seed=8)
    assert other.name != export.name
    assert set(lines_of(other)).isdisjoint(lines_of(export))
    assert set(all_lines(other)).isdisjoint(all_lines(export))


def test_the_number_of_files_changes_no_item(export: Path, tmp_path: Path) -> None:
    assert all_lines(write_sample(tmp_path, items=ITEMS, files=1, seed=7)) == all_lines(export)


def typed_values(value: object) -> Iterator[str]:
    """The types in an attribute value, at any depth."""
    assert isinstance(value, dict)
    ((kind, content),) = value.items()
    yield kind
    nested = {"M": lambda: content.values(), "L": lambda: content}.get(kind, tuple)()
    for each in nested:
        yield from typed_values(each)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_small_sample_has_all_ten_types(tmp_path: Path, seed: int) -> None:
    items = items_of(write_sample(tmp_path, items=200, files=3, seed=seed))
    types = {kind for item in items for value in item.values() for kind in typed_values(value)}
    assert types == {"S", "N", "B", "BOOL", "NULL", "M", "L", "SS", "NS", "BS"}


def test_the_kinds_come_in_their_shares(export: Path) -> None:
    counts = Counter(kind_of(item) for item in items_of(export))
    shares = {kind: 100 * count / ITEMS for kind, count in counts.items()}
    assert shares == pytest.approx({"customer": 7, "order": 12, "line": 15, "event": 40, "session": 26})


def test_attributes_have_the_types_that_a_profile_expects(export: Path) -> None:
    seen = defaultdict(set)
    for item in items_of(export):
        kind, types = kind_of(item), {name: next(iter(value)) for name, value in item.items()}
        assert {name: types.pop(name) for name in ("PK", "SK")} == {"PK": "S", "SK": "S"}
        assert {name: types.pop(name, None) for name in REQUIRED[kind]} == REQUIRED[kind]
        for name in OPTIONAL[kind]:
            seen[kind, name].add(types.pop(name, "missing"))
        assert not types
    expected = {(kind, name): {*types} for kind, names in OPTIONAL.items() for name, types in names.items()}
    assert seen == {place: types | {"missing"} for place, types in expected.items()}


def test_lines_are_as_long_and_as_compressible_as_real_ones(export: Path) -> None:
    raw = sum(len(line) + 1 for line in all_lines(export))
    packed = sum(path.stat().st_size for path in (export / "data").iterdir())
    assert 200 <= raw / ITEMS <= 300
    assert 3 <= raw / packed <= 6


def test_attributes_come_in_varying_order(export: Path) -> None:
    firsts = Counter(next(iter(item)) for item in items_of(export) if kind_of(item) == "session")
    assert len(firsts) == 6


def test_a_line_is_compact_json_in_plain_utf8(export: Path) -> None:
    for line in all_lines(export):
        assert line == json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")).encode()


def test_values_reach_the_edges(export: Path) -> None:
    customers = [item for item in items_of(export) if kind_of(item) == "customer"]
    names = "".join(item["name"]["S"] for item in customers)
    assert all(character in names for character in "\"\\\t\né🛒\u2028'")
    balances = [Decimal(item["balance"]["N"]) for item in customers]
    assert max(len(balance.as_tuple().digits) for balance in balances) == 38
    assert min(balances) < 0 < max(balances)
    assert {"." in item["createdAt"]["S"] for item in customers} == {True, False}
    assert [] in [item["notes"]["L"] for item in customers if "notes" in item]
    sets = [
        value[kind]
        for item in customers
        for value in item.values()
        for kind in ("SS", "NS", "BS")
        if kind in value
    ]
    assert all(members and len(set(members)) == len(members) for members in sets)
    assert any(members != sorted(members) for members in sets)


def test_keys_are_unique(bad_export: Path, export: Path) -> None:
    keys = [key(item) for item in items_of(export)]
    assert len(set(keys)) == ITEMS
    changed = set(all_lines(bad_export)) - set(all_lines(export))
    planted = {line.split(b'"PK":{"S":"')[1].split(b'"')[0] for line in changed}
    assert len(planted) == BAD
    assert planted.isdisjoint(partition.encode() for partition, _ in keys)


def test_orders_belong_to_customers_and_have_their_lines(export: Path) -> None:
    items = items_of(export)
    customers = {key(item)[0] for item in items if kind_of(item) == "customer"}
    orders = {key(item)[1]: int(item["lineCount"]["N"]) for item in items if kind_of(item) == "order"}
    assert {key(item)[0] for item in items if kind_of(item) in ("order", "event")} <= customers
    assert Counter(key(item)[0] for item in items if kind_of(item) == "line") == orders


def test_a_collection_is_spread_over_files(export: Path) -> None:
    files, sizes = defaultdict(set), Counter[str]()
    for name, lines in lines_of(export).items():
        for line in lines:
            partition = json.loads(line)["Item"]["PK"]["S"]
            files[partition].add(name)
            sizes[partition] += 1
    large = [partition for partition, size in sizes.items() if size >= 5]
    assert len(large) > 50
    assert sum(len(files[partition]) > 1 for partition in large) > 0.9 * len(large)
    assert any(len(found) == FILES - 1 for found in files.values())
    orders = [partition for partition, size in sizes.items() if size == 3 and partition.startswith("ORDER#")]
    assert len(orders) > 10
    assert sum(len(files[order]) > 1 for order in orders) > 0.9 * len(orders)


def test_the_list_names_exactly_the_lines_that_are_not_as_without_bad(export: Path, bad_export: Path) -> None:
    good, bad = lines_of(export), lines_of(bad_export)
    assert list(good) == list(bad)
    changed = [
        (name, number)
        for name in good
        for number, (one, other) in enumerate(zip(good[name], bad[name], strict=True), start=1)
        if one != other
    ]
    assert changed == [(entry["file"], entry["line"]) for entry in listed(bad_export)]
    assert len(changed) == BAD
    assert all(kind_of(json.loads(good[name][number - 1])["Item"]) in WANTED for name, number in changed)


def test_each_kind_comes_before_any_comes_again(bad_export: Path, tmp_path: Path) -> None:
    counts = Counter(entry["kind"] for entry in listed(bad_export))
    assert set(counts) == set(STAGE_OF_KIND)
    assert set(counts.values()) == {BAD // len(STAGE_OF_KIND), BAD // len(STAGE_OF_KIND) + 1}
    few = listed(write_sample(tmp_path, items=200, files=2, bad=len(STAGE_OF_KIND)))
    assert sorted(entry["kind"] for entry in few) == sorted(STAGE_OF_KIND)


def test_a_record_of_a_bad_item_is_complete(bad_export: Path) -> None:
    for entry in listed(bad_export):
        assert list(entry) == ["file", "line", "kind", "reason", "stage"]
        assert entry["stage"] == STAGE_OF_KIND[entry["kind"]]
        assert len(entry["reason"]) > 10


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("duplicate name")
    return dict(pairs)


def check_decode(line: bytes) -> None:
    """Raise `ValueError` or `KeyError` for what a correct loader cannot decode."""
    item = json.loads(line, object_pairs_hook=no_duplicates)["Item"]
    json.dumps(item, ensure_ascii=False).encode()
    kind = kind_of(item)
    for name, expected in REQUIRED[kind].items():
        content = item[name][expected]
        if expected == "N" and not re.fullmatch(r"-?\d+(\.\d+)?", content):
            raise ValueError("not a number")
        if expected == "B":
            base64.b64decode(content, validate=True)
    if kind == "customer":
        datetime.fromisoformat(item["createdAt"]["S"].replace("Z", "+00:00"))


def stage_of(line: bytes) -> str | None:
    """The stage at which the line fails, judged by the standard library."""
    try:
        item = json.loads(line.decode())["Item"]
    except (ValueError, TypeError, KeyError):
        return "line"
    try:
        check_decode(line)
    except (ValueError, KeyError):
        return "decode"
    too_large = kind_of(item) == "customer" and not -(2**63) <= int(item["loyaltyPoints"]["N"]) < 2**63
    return "database" if too_large or "\\u0000" in json.dumps(item) else None


def test_good_items_pass_every_stage(export: Path) -> None:
    assert {stage_of(line) for line in all_lines(export)} == {None}


def test_bad_items_fail_at_the_stage_that_the_list_tells(bad_export: Path) -> None:
    lines = lines_of(bad_export)
    for entry in listed(bad_export):
        assert stage_of(lines[entry["file"]][entry["line"] - 1]) == entry["stage"], entry


def item(line: bytes) -> dict[str, Any]:
    found = json.loads(line)["Item"]
    assert isinstance(found, dict)
    return found


def fails(error: type[Exception], function: Callable[[], object]) -> bool:
    with pytest.raises(error):
        function()
    return True


WAYS: dict[str, Callable[[bytes], bool]] = {
    "malformed_json": lambda line: (
        line.endswith(b"}}}") and fails(json.JSONDecodeError, lambda: json.loads(line))
    ),
    "truncated_line": lambda line: (
        line.count(b"{") > line.count(b"}") and fails(ValueError, lambda: json.loads(line))
    ),
    "not_an_object": lambda line: isinstance(json.loads(line), list),
    "no_item": lambda line: isinstance(json.loads(line), dict) and "Item" not in json.loads(line),
    "invalid_utf8": lambda line: (
        fails(UnicodeDecodeError, line.decode) and "name" in item(line.decode("latin-1").encode())
    ),
    "lone_surrogate": lambda line: (
        line.isascii() and fails(UnicodeEncodeError, item(line)["name"]["S"].encode)
    ),
    "duplicate_attribute": lambda line: line.count(b'"name":') == 2 and "name" in item(line),
    "wrong_type": lambda line: list(item(line)["name"]) == ["N"],
    "not_a_number": lambda line: fails(ArithmeticError, lambda: Decimal(item(line)["balance"]["N"])),
    "missing_required": lambda line: set(REQUIRED["customer"]) - set(item(line)) == {"name"},
    "bad_base64": lambda line: fails(
        binascii.Error, lambda: base64.b64decode(item(line)["fingerprint"]["B"])
    ),
    "bad_datetime": lambda line: fails(
        ValueError, lambda: datetime.fromisoformat(item(line)["createdAt"]["S"][:-1])
    ),
    "null_required": lambda line: item(line)["name"] == {"NULL": True},
    "nul_character": lambda line: "\0" in item(line)["name"]["S"],
    "integer_out_of_range": lambda line: int(item(line)["loyaltyPoints"]["N"]) > 2**63 - 1,
}


@pytest.mark.parametrize("kind", STAGE_OF_KIND)
def test_a_bad_item_is_broken_in_the_way_claimed(bad_export: Path, kind: str) -> None:
    lines = lines_of(bad_export)
    found = [lines[entry["file"]][entry["line"] - 1] for entry in listed(bad_export) if entry["kind"] == kind]
    assert found
    assert all(WAYS[kind](line) for line in found)


@pytest.mark.parametrize(
    ("items", "files"), [(0, 1), (0, 2), (0, 4), (1, 1), (1, 3), (2, 9), (99, 2), (101, 4)]
)
def test_small_samples_are_whole(tmp_path: Path, items: int, files: int) -> None:
    export = write_sample(tmp_path, items=items, files=files)
    assert len(list((export / "data").iterdir())) == len(manifest(export)) == files
    assert summary(export)["itemCount"] == len(all_lines(export)) == items
    assert len({key(item) for item in items_of(export)}) == items


def test_every_wanted_item_may_be_bad(tmp_path: Path) -> None:
    export = write_sample(tmp_path, items=100, files=20, bad=34)
    broken = [
        (name, number)
        for name, lines in lines_of(export).items()
        for number, line in enumerate(lines, start=1)
        if stage_of(line) is not None
    ]
    assert broken == [(entry["file"], entry["line"]) for entry in listed(export)]
    assert len(broken) == 34


@pytest.mark.parametrize(
    ("items", "files", "bad"), [(-1, 1, 0), (10, 0, 0), (100, 1, 35), (100, 1, -1), (0, 1, 1)]
)
def test_numbers_that_make_no_sample_are_refused(tmp_path: Path, items: int, files: int, bad: int) -> None:
    with pytest.raises(UsageError, match=r"\d"):
        write_sample(tmp_path, items=items, files=files, bad=bad)
    assert list(tmp_path.iterdir()) == []


def test_the_same_sample_again_replaces_the_first(tmp_path: Path) -> None:
    first = write_sample(tmp_path / "twice", items=500, files=6, bad=3)
    assert write_sample(tmp_path / "twice", items=500, files=6, bad=3) == first
    write_sample(tmp_path / "once", items=500, files=6, bad=3)
    assert tree(tmp_path / "twice") == tree(tmp_path / "once")


def test_samples_of_different_numbers_are_different_exports(tmp_path: Path) -> None:
    numbers = [(500, 6, 1, 3), (501, 6, 1, 3), (500, 7, 1, 3), (500, 6, 2, 3), (500, 6, 1, 4)]
    exports = [write_sample(tmp_path, items=i, files=f, seed=s, bad=b) for i, f, s, b in numbers]
    assert len({export.name for export in exports}) == len(numbers)


def test_a_sample_half_removed_has_no_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError

    export = write_sample(tmp_path, items=10, files=1)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(PermissionError):
        write_sample(tmp_path, items=10, files=1)
    assert not (export / "manifest-summary.json").exists()


def test_an_interrupted_sample_has_no_summary(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    export = write_sample(tmp_path, items=500, files=2, bad=1)
    with pytest.raises(KeyboardInterrupt):
        write_sample(tmp_path, items=500, files=2, bad=1, on_progress=interrupt)
    assert not (export / "manifest-summary.json").exists()
    assert not (tmp_path / "bad-items.jsonl").exists()


def test_progress_rises_to_the_number_of_items(tmp_path: Path) -> None:
    told: list[int] = []
    write_sample(tmp_path, items=20_000, files=3, on_progress=told.append)
    assert told == sorted(set(told))
    assert told[-1] == 20_000


def test_memory_does_not_grow_with_the_items(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write_sample(tmp_path, items=30_000, files=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000  # the lines are 8 MB


def test_a_sample_of_pictures_is_another_table_and_the_same_each_time(tmp_path: Path) -> None:
    one, other = (
        write_sample(tmp_path / name, items=240, files=3, seed=3, profile="pictures") for name in "ab"
    )
    assert one.name == other.name
    assert "table/pictures/" in (one / "manifest-summary.json").read_text()
    for path in one.glob("data/*"):
        assert path.read_bytes() == (other / "data" / path.name).read_bytes()
    with pytest.raises(UsageError, match="only in the sample of shop"):
        write_sample(tmp_path, items=240, files=3, profile="pictures", bad=1)
    with pytest.raises(UsageError, match="no sample of readings, only of shop, pictures"):
        write_sample(tmp_path, items=240, files=3, profile="readings")
