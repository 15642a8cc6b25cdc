"""A history is the yardstick of windows, so it is replayed here with json, gzip and a dictionary."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.demo import sample_stories
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.sample_changes import changes_of
from migration_pipeline.demo.sample_history import History, write_history
from migration_pipeline.demo.sample_layout import FullExport
from migration_pipeline.demo.sample_stories import Items, deal
from migration_pipeline.errors import UsageError
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.profile.row import table_of
from migration_pipeline.testing import rows_of

BOTH, NEW = "NEW_AND_OLD_IMAGES", "NEW_IMAGE"
NUMBERS: dict[str, Any] = {"items": 3000, "files": 5, "seed": 7, "changes": 1000, "windows": 3}
KEYS = {"shop": ("PK", "SK"), "pictures": ("id",)}
BAD = 45

State = dict[tuple[str, ...], dict[str, Any]]


@pytest.fixture(scope="module", params=["shop", "pictures"])
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[BOTH, NEW])
def view(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory, profile: str, view: str) -> History:
    return write_history(tmp_path_factory.mktemp("history"), **NUMBERS, profile=profile, view=view)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, view: str) -> History:
    return write_history(tmp_path_factory.mktemp("broken"), **NUMBERS, view=view, bad=BAD)


def summary(export: Path) -> dict[str, Any]:
    found = json.loads((export / "manifest-summary.json").read_bytes())
    assert isinstance(found, dict)
    return found


def entries(export: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (export / "manifest-files.json").read_bytes().splitlines()]


def lines_of(export: Path) -> Iterator[tuple[str, int, bytes]]:
    """Each line of an export with its file's name and its number in it, as the manifest alone leads to them."""
    for entry in entries(export):
        path = export.parents[1] / entry["dataFileS3Key"]
        for number, line in enumerate(gzip.decompress(path.read_bytes()).splitlines(keepends=True), 1):
            yield path.name, number, line


def records(window: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for _, _, line in lines_of(window)]


def key(attributes: dict[str, Any], profile: str) -> tuple[str, ...]:
    return tuple(attributes[name]["S"] for name in KEYS[profile])


def state(export: Path, profile: str) -> State:
    items = [json.loads(line)["Item"] for _, _, line in lines_of(export)]
    found = {key(item, profile): item for item in items}
    assert len(found) == len(items) == summary(export)["itemCount"]
    return found


def micros(record: dict[str, Any]) -> int:
    return int(record["Metadata"]["WriteTimestampMicros"]["N"])


def time_of(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def replay(now: State, window: Path, profile: str) -> None:
    """Apply a window as a table would."""
    for record in records(window):
        if record.get("NewImage"):
            now[key(record["Keys"], profile)] = record["NewImage"]
        else:
            now.pop(key(record["Keys"], profile), None)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_base_and_windows_make_the_final_export(history: History, profile: str) -> None:
    now = state(history.base, profile)
    for window in history.windows:
        replay(now, window, profile)
    assert now == state(history.final, profile)
    assert len(now) == history.final_items
    assert now != state(history.base, profile)


def test_an_old_image_is_the_state_right_before_the_window(history: History, profile: str, view: str) -> None:
    now = state(history.base, profile)
    others = []
    for window in history.windows:
        found = records(window)
        olds = {key(each["Keys"], profile): each.get("OldImage") for each in found}
        others.append({item for item, old in olds.items() if old != now.get(item)})
        assert any(olds.values()) == (view == BOTH)
        replay(now, window, profile)
    if view == BOTH:
        # The first window begins before the base, which has a little of what it tells already.
        assert 3 < len(others[0]) < 0.1 * len(records(history.windows[0]))
        assert not any(others[1:])


def test_the_first_window_tells_what_the_base_has_already(history: History, profile: str) -> None:
    base, base_time = (
        state(history.base, profile),
        time_of(summary(history.base)["exportTime"]).timestamp() * 1e6,
    )
    early = [record for record in records(history.windows[0]) if micros(record) < base_time]
    assert all(record.get("NewImage") == base.get(key(record["Keys"], profile)) for record in early)
    assert {bool(record.get("NewImage")) for record in early} == {True, False}
    assert not any(micros(record) < base_time for window in history.windows[1:] for record in records(window))


def test_an_item_is_in_a_window_once(history: History, profile: str) -> None:
    for window, promised in zip(history.windows, history.records, strict=True):
        keys = [key(record["Keys"], profile) for record in records(window)]
        assert len(set(keys)) == len(keys) == promised
    assert sum(history.records) < NUMBERS["changes"]


def test_records_have_their_members_in_order(history: History, profile: str, view: str) -> None:
    shapes: Counter[tuple[str, ...]] = Counter()
    for window in history.windows:
        for _, _, line in lines_of(window):
            record = json.loads(line)
            shapes[tuple(record)] += 1
            assert line == json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
            assert list(record["Keys"]) == list(KEYS[profile])
            for image in (record.get("OldImage"), record.get("NewImage")):
                assert image is None or {name: image[name] for name in KEYS[profile]} == record["Keys"]
    head = ("Metadata", "Keys")
    new = {head, (*head, "NewImage")}
    both = {(*head, "OldImage"), (*head, "OldImage", "NewImage"), (*head, "NewImage")}
    assert set(shapes) == (new if view == NEW else both)


def test_some_deletes_have_an_image_that_is_null(history: History, view: str) -> None:
    found = [record for window in history.windows for record in records(window)]
    assert any("NewImage" in each and each["NewImage"] is None for each in found) == (view == NEW)
    assert any("NewImage" not in each for each in found)


def test_times_lie_in_their_window_and_none_comes_twice(history: History) -> None:
    found = []
    for window in history.windows:
        told = summary(window)
        start, end = (time_of(told[name]).timestamp() * 1e6 for name in ("exportFromTime", "exportToTime"))
        times = [micros(record) for record in records(window)]
        assert all(start <= time < end for time in times)
        assert max(times) - min(times) > 0.9 * (end - start)
        found += times
    assert len(set(found)) == len(found)


def test_the_windows_are_a_chain_from_before_the_base_to_the_final_export(history: History) -> None:
    base, final = (time_of(summary(export)["exportTime"]) for export in (history.base, history.final))
    starts, ends = (
        [time_of(summary(window)[name]) for window in history.windows]
        for name in ("exportFromTime", "exportToTime")
    )
    assert base.microsecond
    assert timedelta() < base - starts[0] < timedelta(minutes=15)
    assert starts[1:] == ends[:-1]
    assert ends[-1] == final
    assert not any(time.microsecond for time in starts + ends)
    assert all(timedelta(minutes=15) <= end - start for start, end in zip(starts, ends, strict=True))


def test_a_windows_summary_has_the_fields_of_an_incremental_export(
    history: History, view: str, profile: str
) -> None:
    table = f"arn:aws:dynamodb:eu-central-1:123456789012:table/{profile}"
    for window in history.windows:
        found = summary(window)
        for field in ("startTime", "endTime"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop(field))
        for field in ("exportFromTime", "exportToTime"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", found.pop(field))
        assert found == {
            "version": "2023-08-01",
            "exportArn": f"{table}/export/{window.name}",
            "tableArn": table,
            "tableId": summary(history.base)["tableId"],
            "s3Bucket": "example-exports",
            "s3Prefix": None,
            "s3SseAlgorithm": "AES256",
            "s3SseKmsKeyId": None,
            "manifestFilesS3Key": f"AWSDynamoDB/{window.name}/manifest-files.json",
            "billedSizeBytes": sum(len(line) for _, _, line in lines_of(window)),
            "itemCount": len(records(window)),
            "outputFormat": "DYNAMODB_JSON",
            "outputView": view,
            "exportType": "INCREMENTAL_EXPORT",
        }
    final = summary(history.final)
    assert (final["version"], final["tableId"]) == ("2020-06-30", summary(history.base)["tableId"])
    assert list(final) == list(summary(history.base))


def md5(content: bytes) -> bytes:
    return hashlib.md5(content).digest()


def test_manifests_tell_each_file_as_it_is(history: History) -> None:
    for export in (history.base, *history.windows, history.final):
        for name in ("manifest-summary", "manifest-files"):
            content = (export / f"{name}.json").read_bytes()
            assert (export / f"{name}.md5").read_bytes() == base64.b64encode(md5(content))
        counts = Counter(name for name, _, _ in lines_of(export))
        assert len(entries(export)) == NUMBERS["files"]
        for entry in entries(export):
            path = export.parents[1] / entry["dataFileS3Key"]
            digest = md5(path.read_bytes())
            assert entry["md5Checksum"] == base64.b64encode(digest).decode()
            assert entry["etag"] == md5(digest).hex() + "-1"
            assert entry["itemCount"] == counts[path.name]
        assert [entry["itemCount"] == 0 for entry in entries(export)] == [False] * 4 + [True]


def test_windows_share_a_folder_of_files_with_names_of_their_own(history: History) -> None:
    root = history.base.parent
    named = [entry["dataFileS3Key"] for window in history.windows for entry in entries(window)]
    assert len(set(named)) == len(named) == 3 * NUMBERS["files"]
    assert sorted(named) == sorted(f"AWSDynamoDB/data/{path.name}" for path in (root / "data").iterdir())
    for window in history.windows:
        assert {path.name for path in window.iterdir()} == {
            "_started", "manifest-summary.json", "manifest-summary.md5", "manifest-files.json", "manifest-files.md5",
        }  # fmt: skip
    everywhere = Counter(path.name for path in root.rglob("*.json.gz"))
    assert set(everywhere.values()) == {1}


def test_the_records_of_a_file_of_the_base_are_in_all_files_of_a_window(
    history: History, profile: str
) -> None:
    home = {key(json.loads(line)["Item"], profile): name for name, _, line in lines_of(history.base)}
    spread = defaultdict(set)
    for name, _, line in lines_of(history.windows[1]):
        spread[home.get(key(json.loads(line)["Keys"], profile), "none")].add(name)
    assert len(spread) == NUMBERS["files"]
    assert all(len(names) == NUMBERS["files"] - 1 for names in spread.values())


def changes_by_item(history: History, profile: str) -> dict[tuple[str, ...], list[tuple[int, bool]]]:
    """For each item written to: in which windows, and whether it was there at each one's end."""
    found = defaultdict(list)
    for turn, window in enumerate(history.windows):
        for record in records(window):
            found[key(record["Keys"], profile)].append((turn, bool(record.get("NewImage"))))
    return found


def test_items_come_back_and_are_touched_again_and_again(history: History, profile: str) -> None:
    found = [tuple(there for _, there in each) for each in changes_by_item(history, profile).values()]
    assert (False, True) in found
    assert (True, False) in found
    assert (True, False, True) in found
    assert (True, True, True) in found
    assert (True, False) in found


def test_an_item_goes_back_to_what_it_was_and_a_write_may_change_nothing(
    tmp_path: Path, profile: str
) -> None:
    history = write_history(tmp_path, **NUMBERS, profile=profile)
    base = state(history.base, profile)
    back, nothing = 0, 0
    for window in history.windows[1:]:
        for record in records(window):
            old, new = record.get("OldImage"), record.get("NewImage")
            back += bool(old and new) and old != new == base.get(key(record["Keys"], profile))
            nothing += old == new
    assert back
    assert nothing


def owned(profile: str, item: dict[str, Any] | None) -> set[tuple[str, object]]:
    """The rows that the shipped profile makes of an item, by table and key; of landing tables by the whole row."""
    rows = rows_of(load_profile(profile), item) if item else []
    tables = [table_of(type(row)) for row in rows]
    return {
        (table.name, tuple(getattr(row, name) for name in table.key) or repr(row))
        for table, row in zip(tables, rows, strict=True)
    }


def test_in_the_shop_a_row_goes_from_one_item_to_another_within_one_window(tmp_path: Path) -> None:
    history = write_history(tmp_path, items=1000, files=2, changes=600)
    handed: Counter[str] = Counter()
    for window in history.windows:
        left, taken = set(), set()
        for record in records(window):
            before, after = (owned("shop", record.get(image)) for image in ("OldImage", "NewImage"))
            left |= before - after
            taken |= after - before
        handed.update(table for table, _ in left & taken)
    assert all(handed[table] for table in ("orders", "order_lines", "customers")), handed


def test_the_profile_takes_all_images_and_no_two_items_have_one_row(tmp_path: Path, profile: str) -> None:
    history = write_history(tmp_path, items=300, files=2, changes=200, profile=profile)
    now = state(history.base, profile)
    for window in history.windows:
        for record in records(window):
            for image in ("OldImage", "NewImage"):
                owned(profile, record.get(image))  # raises what would go to the quarantine
        replay(now, window, profile)
        owners = Counter(row for item in now.values() for row in owned(profile, item))
        keyed = {row: number for row, number in owners.items() if isinstance(row[1], tuple)}
        assert set(keyed.values()) <= {1}
        assert owners


def test_items_of_pictures_change_and_swap_their_picture(tmp_path: Path) -> None:
    history = write_history(tmp_path, **NUMBERS, profile="pictures")
    moves, swaps = 0, 0
    for window in history.windows:
        updates = [record for record in records(window) if len(record) == 4]
        pictures = [
            tuple(str(record[image]["pictureId"]) for image in ("OldImage", "NewImage")) for record in updates
        ]
        moved = {(one, other) for one, other in pictures if one != other}
        moves += len(moved)
        swaps += sum((other, one) in moved for one, other in moved) // 2
    assert moves > 20
    assert swaps > 2


def test_both_views_tell_the_same_history(tmp_path: Path, profile: str) -> None:
    both, new = (
        write_history(tmp_path / view, **NUMBERS, view=view, profile=profile, bad=BAD * (profile == "shop"))
        for view in (BOTH, NEW)
    )
    assert tree(both.final) == tree(new.final)
    assert both.final.name == new.final.name
    assert both.records == new.records
    assert not {window.name for window in both.windows} & {window.name for window in new.windows}


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, profile: str) -> None:
    numbers = {**NUMBERS, "profile": profile, "bad": BAD * (profile == "shop")}
    first = write_history(tmp_path / "twice", **numbers)
    assert write_history(tmp_path / "twice", **numbers) == first
    write_history(tmp_path / "once", **numbers)
    assert tree(tmp_path / "twice") == tree(tmp_path / "once")


def test_the_base_is_the_sample_without_a_history(history: History, profile: str, tmp_path: Path) -> None:
    plain = {name: NUMBERS[name] for name in ("items", "files", "seed")}
    export = write_sample(tmp_path, **plain, profile=profile)
    assert export.name == history.base.name
    assert tree(export) == tree(history.base)


CONTENTS = {
    ("shop", 0): "e46699f1915c692be929",
    ("shop", 20): "e8ddf9e04195daf1b3d9",
    ("pictures", 0): "c2deb9f5a216036a5ebc",
}
"""SHA-256 of the lines that a sample had before there were histories, of its summary and its list of faults."""


@pytest.mark.parametrize(("profile", "bad"), CONTENTS)
def test_a_sample_without_changes_is_as_it_always_was(tmp_path: Path, profile: str, bad: int) -> None:
    export = write_sample(tmp_path, items=2000, files=4, seed=3, bad=bad, profile=profile)
    digest = hashlib.sha256((export / "manifest-summary.json").read_bytes())
    for name, _, line in lines_of(export):
        digest.update(name.encode() + line)
    if bad:
        digest.update((tmp_path / "bad-items.jsonl").read_bytes())
    assert digest.hexdigest()[:20] == CONTENTS[profile, bad]


def listed(history: History) -> dict[tuple[str, int], dict[str, Any]]:
    found = [
        json.loads(line) for line in (history.base.parents[1] / "bad-items.jsonl").read_bytes().splitlines()
    ]
    assert len({(each["file"], each["line"]) for each in found}) == len(found)
    return {(each["file"], each["line"]): each for each in found}


def test_with_faults_the_final_export_is_what_a_loader_of_the_right_records_gets(broken: History) -> None:
    faults = listed(broken)
    now: dict[Any, bytes] = {}
    for name, number, line in lines_of(broken.base):
        unreadable = faults.get((name, number), {}).get("stage") == "line"
        now[line if unreadable else item_key(line)] = line
    for window in broken.windows:
        for name, number, line in lines_of(window):
            if faults.get((name, number), {}).get("stage") == "line":
                continue
            keys = item_key(line[line.index(b'"Keys":') :])
            new = line.partition(b',"NewImage":')[2].removesuffix(b"}\n")
            now.pop(keys, None)
            if new not in (b"", b"null"):
                now[keys] = b'{"Item":' + new + b"}\n"
    assert sorted(now.values()) == sorted(line for _, _, line in lines_of(broken.final))


def item_key(line: bytes) -> tuple[bytes, bytes]:
    """The key in a line that may be broken elsewhere."""
    partition, sort = (re.search(rb'"%s":\{"S":"([^"]*)"\}' % name, line) for name in (b"PK", b"SK"))
    assert partition
    assert sort
    return partition[1], sort[1]


def test_items_come_broken_break_and_are_mended_and_deleted(tmp_path: Path) -> None:
    history = write_history(tmp_path, **NUMBERS, bad=BAD)
    faults = listed(history)
    items: dict[int, list[str]] = defaultdict(list)
    for window in history.windows:
        for name, number, line in lines_of(window):
            item = re.search(rb'"CUSTOMER#broken-(\d+)"', line)
            if item and faults.get((name, number), {}).get("stage") != "line":
                right = "right" if b'"NewImage"' in line else "deleted"
                items[int(item[1])].append("broken" if (name, number) in faults else right)
    of_the_base = {tuple(states) for item, states in items.items() if item < NUMBERS["items"]}
    of_windows = {tuple(states) for item, states in items.items() if item >= NUMBERS["items"]}
    assert of_the_base == {("right",), ("deleted",)}
    assert of_windows == {("broken",), ("right", "broken"), ("broken", "right"), ("broken", "deleted")}


def test_all_faults_that_are_listed_are_there_and_no_others(broken: History, view: str) -> None:
    faults = listed(broken)
    exports = (broken.base, *broken.windows, broken.final)
    counts = []
    for export in exports:
        own = {(name, number): line for name, number, line in lines_of(export) if (name, number) in faults}
        counts.append(len(own))
        for place, line in own.items():
            assert_broken(line, faults[place]["kind"], export, view)
        for name, number, line in lines_of(export):
            if b"#broken" in line and (name, number) not in own:
                assert_right(line)
    assert counts[0] == BAD
    assert sum(counts[1:-1]) == BAD
    assert sum(counts) == len(faults)


def assert_right(line: bytes) -> None:
    """A line about an item that was broken, or will be: its last image has nothing wrong."""
    record = json.loads(line)
    image = record.get("NewImage", record.get("Item"))
    assert image is None or (image["name"] == {"S": "Mallory"} and image["loyaltyPoints"] == {"N": "7"})
    assert line.partition(b'"NewImage"')[2].count(b'"name"') <= 1


def assert_broken(line: bytes, kind: str, export: Path, view: str) -> None:
    """A fault of a record is the one that the list names; those of items are looked at in test_sample."""
    if kind == "malformed_record":
        with pytest.raises(json.JSONDecodeError):
            json.loads(line)
        assert "Keys" in json.loads(line.replace(b'"NewImage"', b',"NewImage"'))
    elif kind in ("no_keys", "no_metadata"):
        missing = {"no_keys": "Keys", "no_metadata": "Metadata"}[kind]
        assert set(json.loads(line)) == {"Metadata", "Keys", "NewImage"} - {missing}
    elif kind == "no_images":
        assert set(json.loads(line)) == {"Metadata", "Keys"}
        assert view == BOTH
    elif kind in ("before_window", "after_window"):
        told = summary(export)
        start, end = (time_of(told[name]).timestamp() * 1e6 for name in ("exportFromTime", "exportToTime"))
        written = micros(json.loads(line))
        assert written < start if kind == "before_window" else written >= end
    elif b'"NewImage"' in line:
        image = line.partition(b'"NewImage":')[2]
        assert image.startswith(b'{"PK":{"S":"CUSTOMER#broken-')
        assert b'"name":{"S":"Mallory"},"createdAt":{"S":"2023-02-28T12:00:00Z"}' not in image or (
            kind in ("not_a_number", "bad_base64", "integer_out_of_range")
        )


def test_windows_have_every_kind_of_fault_and_broken_items_are_mended_and_deleted(
    broken: History, view: str
) -> None:
    faults = listed(broken)
    kinds: Counter[str] = Counter()
    after_broken = set()
    for window in broken.windows:
        for name, number, line in lines_of(window):
            if (name, number) in faults:
                kinds[faults[name, number]["kind"]] += 1
            elif b"#broken" in line:
                record = json.loads(line)
                after_broken.add(bool(record.get("NewImage")))
    wanted = {
        "no_keys",
        "before_window",
        "after_window",
        "malformed_record",
        "wrong_type",
        "nul_character",
        "bad_base64",
    }
    assert wanted < set(kinds)
    assert ("no_images" in kinds, "no_metadata" in kinds) == (
        (True, False) if view == BOTH else (False, True)
    )
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert after_broken == {True, False}
    final = Counter(
        faults[name, number]["stage"]
        for name, number, _ in lines_of(broken.final)
        if (name, number) in faults
    )
    assert final["decode"] > 5
    assert final["database"]


@pytest.mark.parametrize("profile", ["shop", "pictures"])
@pytest.mark.parametrize(
    ("items", "files", "changes", "windows"),
    [(0, 1, 50, 1), (1, 1, 20, 2), (2, 4, 200, 5), (300, 2, 1, 3), (40, 3, 400, 1), (500, 70, 300, 30)],
)
def test_small_histories_are_whole(
    tmp_path: Path, profile: str, items: int, files: int, changes: int, windows: int
) -> None:
    made = write_history(
        tmp_path, items=items, files=files, changes=changes, windows=windows, profile=profile
    )
    now = state(made.base, profile)
    for window in made.windows:
        replay(now, window, profile)
    assert now == state(made.final, profile)
    assert len(made.windows) == windows


@pytest.mark.parametrize("windows", [1, 2, 7])
@pytest.mark.parametrize("base", [0, 1, 10_000])
@pytest.mark.parametrize("changes", [1, 2, 3, 100, 1234])
def test_as_many_writes_are_dealt_as_are_asked_for(changes: int, base: int, windows: int) -> None:
    dealt = deal(changes, windows, base, Random(1))
    assert sum(map(sample_stories.writes_of, dealt.stories)) == changes
    assert sum(map(sample_stories.of_the_base, dealt.stories)) <= base
    written = "".join(ops for window in dealt.windows for _, ops in window)
    assert Counter(written) == Counter("".join(dealt.stories).replace(" ", ""))
    assert all(set(ops).isdisjoint("Eex") for window in dealt.windows[1:] for _, ops in window)
    if base > 1000 and changes >= 100:
        early = [story for story in sample_stories._EARLY_DECK if windows > 1 or len(story) == 1]
        assert set(dealt.stories) == {*sample_stories._DECK, *early}


@pytest.mark.parametrize("profile", ["shop", "pictures"])
def test_what_is_put_and_deleted_in_one_window_is_not_told(profile: str) -> None:
    items = Items(changes_of(FullExport.first(1, "x", profile), 100, 1))
    assert list(items.play(0, "ID")) == []
    assert items.now == {}
    ((before, after, write),) = items.play(1, "IU")
    assert (before, write) == (None, 1)
    assert items.now == {2: after}
    assert [(each.before, each.after) for each in items.play(1, "D")] == [(after, None)]


@pytest.mark.parametrize(
    "wrong", [{"changes": 0}, {"changes": -1}, {"windows": 0}, {"view": "OLD_IMAGE"}, {"items": -1}]
)
def test_numbers_that_make_no_history_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        write_history(tmp_path, **{**NUMBERS, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_history_leaves_no_summary(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    made = write_history(tmp_path, **NUMBERS)
    with pytest.raises(KeyboardInterrupt):
        write_history(tmp_path, **NUMBERS, on_progress=interrupt)
    assert not list(tmp_path.rglob("manifest-summary.json"))
    assert made.final.exists()


def test_memory_follows_the_changes_not_the_items(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        write_history(tmp_path, items=30_000, files=2, changes=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000  # the lines are 8 MB


def test_the_command_writes_a_history_and_says_where(tmp_path: Path) -> None:
    numbers = ("--items", "400", "--files", "3", "--changes", "100", "--bad", "4")
    result = CliRunner().invoke(main, ["sample", str(tmp_path), *numbers, "--windows", "3", "--view", NEW])
    assert result.exit_code == 0, result.output
    base, *windows, final, bad = result.output.splitlines()
    assert base.startswith("wrote 400 items in 3 files: ")
    assert [re.sub(r"\d+ rec", "N rec", line).partition(":")[0] for line in windows] == [
        "wrote a window of N records"
    ] * 3
    assert re.match(r"wrote \d+ items as they are at the end: ", final)
    assert bad.startswith("broken lines of all of these: ")
    assert all(summary(Path(line.partition(": ")[2]))["outputView"] == NEW for line in windows)
    assert "exportTime" in summary(Path(final.partition(": ")[2]))
    two = CliRunner().invoke(main, ["sample", str(tmp_path / "2"), *numbers])
    assert two.output.count("wrote a window of") == 2


@pytest.mark.parametrize("more", [("--windows", "2"), ("--view", NEW)])
def test_windows_without_changes_are_refused(tmp_path: Path, more: tuple[str, ...]) -> None:
    result = CliRunner().invoke(main, ["sample", str(tmp_path), "--items", "10", *more])
    assert (result.exit_code, "say how many, with --changes" in result.output) == (2, True)
