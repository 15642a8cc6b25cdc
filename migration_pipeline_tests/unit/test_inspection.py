"""What `inspect` says of an export: what it sampled, keys, entity types, attributes; and what it keeps to itself."""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.discovery import inspection, sampling
from migration_pipeline.discovery.attributes import Attribute, Place
from migration_pipeline.discovery.keys import guess_key, guess_types
from migration_pipeline.discovery.sampling import take_sample
from migration_pipeline.discovery.survey import Survey, patterns, survey_everything, survey_sample
from migration_pipeline.operations.report.page import page as page_of
from migration_pipeline.profile.profile import Prefix
from migration_pipeline.sources.dynamodb_json import whole_item
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.values import plain
from migration_pipeline.units import readable_size
from migration_pipeline_tests.exports import line_of, write_export
from migration_pipeline_tests.unit.test_report import account_of, file_of


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def text(value: str) -> dict[str, str]:
    return {"S": value}


def survey_of(folder: Path, *files: list[Any], items: int = 1_000) -> Survey:
    storage = Storage()
    return survey_sample(take_sample(read_export(str(write_export(folder, files)), storage), storage, items))


# -- the sample ------------------------------------------------------------------------------------


def test_every_file_is_sampled_alike_and_the_same_each_time(shop_export: Path) -> None:
    export, storage = read_export(str(shop_export), Storage()), Storage()
    sample = take_sample(export, storage, 50)
    assert [len(file.lines) for file in sample.files] == [50 if file.items else 0 for file in export.files]
    assert list(sample) == list(take_sample(export, storage, 50))
    for file in sample.files:
        numbers = [line.number for line in file.lines]
        assert numbers == sorted(set(numbers))
        assert file.seen == file.file.items
        # Spread over the stretch, not its first lines: fifty of two thousand.
        assert not numbers or numbers[-1] > file.seen * 0.8


def test_a_line_of_the_sample_is_the_line_of_its_number(tmp_path: Path) -> None:
    items = [{"id": {"N": str(n)}} for n in range(500)]
    export = read_export(str(write_export(tmp_path, [items])), Storage())
    for line in take_sample(export, Storage(), 20):
        assert line.line == line_of(items[line.number - 1])


def test_each_item_of_the_stretch_has_the_same_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = read_export(str(write_export(tmp_path, [[{"id": {"N": str(n)}} for n in range(20)]])), Storage())
    drawn = Counter[int]()
    for seed in range(600):
        monkeypatch.setattr(sampling, "Random", lambda _, seed=seed: __import__("random").Random(seed))
        drawn.update(line.number for line in take_sample(export, Storage(), 5))
    assert set(drawn) == set(range(1, 21))
    assert all(90 < count < 215 for count in drawn.values()), drawn  # 150 expected, with a deviation of 11


def test_long_items_and_long_files_stay_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "KEPT_BYTES", 10_000)
    monkeypatch.setattr(sampling, "ALL_STRETCHES_BYTES", 1)
    monkeypatch.setattr(sampling, "MIN_STRETCH_BYTES", 200_000)
    items = [{"id": {"N": str(n)}, "t": text("x" * 1_000)} for n in range(2_000)]
    export = read_export(str(write_export(tmp_path, [items])), Storage())
    (file,) = take_sample(export, Storage(), 500).files
    assert sum(len(line.line) for line in file.lines) <= 10_000
    assert len(file.lines) >= 8
    assert 190 < file.seen < 400, "the rest of the file is not read"
    found = inspection.facts(survey_sample(take_sample(export, Storage(), 500)))
    assert f"drawn at random from the first {file.seen:,}" in inspection.scope(found)
    assert "of 2,000 items" in inspection.scope(found)


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_sampled(tmp_path: Path) -> None:
    export = write_sample(tmp_path, items=900, files=3, seed=1)
    victim = max((export / "data").iterdir(), key=lambda path: path.stat().st_size)
    victim.write_bytes(b"no gzip at all")
    status, output = run("inspect", str(export))
    assert status == 1
    assert f"not read: {victim}: corrupt gzip" in output
    assert "in 2 of 3 files" in output or "of 2 of 3 files" in output


# -- keys and entity types ---------------------------------------------------------------------------


def items_of(*items: dict[str, Any]) -> list[Any]:
    return [whole_item(line_of(item)) for item in items]


def test_keys_are_guessed_by_names_and_by_what_is_unique() -> None:
    named = items_of(
        *({"SK": text(str(n % 2)), "a": {"N": str(n)}, "PK": text(str(n // 2))} for n in range(8))
    )
    assert guess_key(named).attributes == ("PK", "SK")
    alone = items_of(*({"name": text("x"), "userId": {"N": str(n)}} for n in range(5)))
    assert guess_key(alone).attributes == ("userId",)
    pair = items_of(*({"author": text(str(n // 3)), "when": {"N": str(n % 3)}} for n in range(9)))
    assert set(guess_key(pair).attributes) == {"author", "when"}
    # An attribute that is not in all items, or changes its type, is no key.
    changing = items_of(
        {"x": text("1"), "y": {"N": "1"}}, {"x": {"N": "2"}, "y": {"N": "2"}}, {"y": {"N": "3"}}
    )
    assert guess_key(changing).attributes == ("y",)
    assert guess_key(items_of({"a": {"BOOL": True}}, {"b": text("")})).attributes == ()


def types_of(*items: dict[str, Any]) -> list[str]:
    read = items_of(*items)
    return [patterns(conditions) for conditions in guess_types(read, guess_key(read))]


def test_prefixes_and_constant_sort_keys_tell_types_apart() -> None:
    items = [{"PK": text(f"CUSTOMER#{n}"), "SK": text("PROFILE")} for n in range(9)]
    items += [{"PK": text(f"CUSTOMER#{n}"), "SK": text(f"order|{n}")} for n in range(9)]
    items += [{"PK": text(f"u-{n}"), "SK": text(f"{n}")} for n in range(9)]
    assert types_of(*items) == [
        "PK=CUSTOMER#…, SK=PROFILE", "PK=CUSTOMER#…, SK=order|…", "all other items",
    ]  # fmt: skip


def test_keys_that_are_values_tell_no_types() -> None:
    """SMITH#1, JONES#2: as many prefixes as items. Words that come once, or very many words: names."""
    names = [f"{chr(65 + n // 26)}{chr(65 + n % 26)}" for n in range(300)]
    assert types_of(*({"PK": text(f"{name}#1"), "SK": text("x")} for name in names)) == ["SK=x"]
    assert types_of(*({"PK": text(name)} for name in names)) == ["all other items"]
    twice = [{"PK": text(str(n)), "SK": text(names[n // 2])} for n in range(200)]
    assert types_of(*twice) == ["all other items"]


def test_an_attribute_that_names_the_type_tells_types_apart() -> None:
    kinds = ("User", "Order", "User", "Line")
    by_name = [{"id": text(str(n)), "entityType": text(kinds[n % 4])} for n in range(40)]
    assert types_of(*by_name) == ["entityType=Line", "entityType=Order", "entityType=User"]
    # `type` may be anything. Here it splits what the keys hold together: kinds of events.
    events = [{"PK": text(f"E#{n}"), "type": text(("click", "view")[n % 2])} for n in range(40)]
    assert types_of(*events) == ["PK=E#…"]
    loose = [{"id": text(str(n)), "type": text(("click", "view")[n % 2])} for n in range(40)]
    assert types_of(*loose) == ["type=click", "type=view"]


def test_the_rules_take_each_item_once_the_narrower_first() -> None:
    read = items_of(
        *({"PK": text(f"A#{n}"), "SK": text("X" if n % 2 else str(n))} for n in range(20)),
        *({"PK": text(f"n{n}"), "SK": text("X")} for n in range(20)),
    )
    assert guess_types(read, guess_key(read)) == [
        (("PK", Prefix("A#")), ("SK", "X")), (("SK", "X"),), (("PK", Prefix("A#")),),
    ]  # fmt: skip


# -- attributes --------------------------------------------------------------------------------------


def attribute_of(name: str, *values: dict[str, Any]) -> Attribute:
    made = Attribute(name)
    for number, value in enumerate(values, 1):
        wire = whole_item(line_of({name: value}))[name]
        made.add(wire, plain(wire), Place("f", number))
    return made


@pytest.mark.parametrize(
    ("name", "values", "column"),
    [
        ("n", [{"N": "1"}, {"N": "-9223372036854775808"}], "bigint"),
        ("n", [{"N": "1"}, {"N": "9223372036854775808"}], "numeric"),
        ("n", [{"N": "1"}, {"N": "1.5"}], "numeric"),
        ("createdAt", [{"N": "1700000000"}, {"N": "1600000000.5"}], "timestamptz"),
        ("createdAt", [{"N": "1700000000000"}], "timestamptz"),
        ("createdAt", [{"N": "1700000000"}, {"N": "1"}], "bigint"),
        ("createdAt", [{"N": "1700000000.1234567"}], "numeric"),
        ("phone", [{"N": "1700000000"}], "bigint"),
        ("ttl", [text("1700000000")], "timestamptz"),
        ("t", [text("2024-02-29T12:00:00Z"), text("2024-02-29T12:00:00.5+01:00")], "timestamptz"),
        ("t", [text("2024-02-29T12:00:00Z"), text("2024-02-30T12:00:00Z")], "text"),
        ("t", [text("2024-02-29T12:00:00.123456789Z")], "text"),
        ("t", [text("2024-02-29"), text("2023-01-01")], "date"),
        ("t", [text("2024-02-29"), text("2024-02-29T12:00:00Z")], "text"),
        ("u", [text("6ba7b810-9dad-11d1-80b4-00c04fd430c8")], "uuid"),
        ("u", [text("6BA7B810-9DAD-11D1-80B4-00C04FD430C8")], "text"),
        ("b", [text("true"), text("false")], "boolean"),
        ("b", [text("true"), text("maybe")], "text"),
        ("b", [{"BOOL": True}, {"NULL": True}], "boolean"),
        ("x", [{"B": "AAE="}], "bytea"),
        ("s", [{"NS": ["1", "2"]}], "bigint[]"),
        ("s", [{"NS": ["1", "2.5"]}], "numeric[]"),
        ("s", [{"SS": ["a"]}], "text[]"),
        ("m", [{"M": {"a": {"L": [{"M": {}}]}}}], "jsonb"),
        ("x", [{"NULL": True}], "jsonb"),
        ("x", [text("1"), {"N": "1"}], "jsonb"),
    ],
)  # fmt: skip
def test_the_narrowest_type_that_takes_all_values_is_proposed(
    name: str, values: list[Any], column: str
) -> None:
    assert attribute_of(name, *values).fit.column == column


def test_conflicts_nul_digits_and_depth_are_told_with_their_places(tmp_path: Path) -> None:
    items = [{"id": {"N": str(n)}, "x": text("abc"), "d": {"M": {"k": {"L": []}}}} for n in range(9)]
    items.append({"id": {"N": "99.125"}, "x": {"BOOL": True}, "d": {"M": {"k\0": text("")}}})
    found = inspection.facts(survey_of(tmp_path, items))
    (kind,) = found["types"]
    by_name = {attribute["name"]: attribute for attribute in kind["attributes"]}
    assert by_name["x"]["conflict"]["share"] == 0.1
    assert by_name["x"]["conflict"]["example"].endswith(".json.gz:10")
    assert by_name["d"]["nul"] == {"items": 1, "example": by_name["x"]["conflict"]["example"]}
    assert by_name["d"]["depth"] == 2
    assert (by_name["id"]["most_digits"], by_name["id"]["most_decimals"]) == (5, 3)
    assert by_name["id"]["range"] == ["0", "99.125"]
    assert by_name["x"]["longest_text"] == 3


def test_bad_lines_are_counted_by_reason(tmp_path: Path) -> None:
    twins = b'{"Item":{"id":{"N":"2"},"x":{"S":"1"},"x":{"S":"2"}}}'
    lines = [{"id": {"N": "1"}}, b"{broken", {"id": {"N": "abc"}}, b"{}", twins, twins]
    found = inspection.facts(survey_of(tmp_path, lines))
    assert found["looked_at"]["items"] == 6
    assert sum(bad["items"] for bad in found["bad"]) == 5
    (told,) = [bad for bad in found["bad"] if bad["reason"] == "an attribute name occurs twice"]
    assert (told["items"], told["example"].rpartition(":")[2]) == (2, "5")
    assert found["types"][0]["items"] == 1


# -- estimates, everything, and what is said -----------------------------------------------------------


def test_estimates_weigh_each_file_by_its_items(tmp_path: Path) -> None:
    """Files differ: a thousand customers in one, ten orders in the other, of which all are sampled."""
    many = [{"PK": text(f"CUSTOMER#{n}")} for n in range(1_000)]
    few = [{"PK": text(f"ORDER#{n}")} for n in range(10)]
    kinds = inspection.facts(survey_of(tmp_path, many, few, items=10))["types"]
    assert {kind["pattern"]: (kind["items"], kind["estimated_items"]) for kind in kinds} == {
        "PK=CUSTOMER#…": (10, 1_000), "PK=ORDER#…": (10, 10),
    }  # fmt: skip


def test_everything_is_exact(shop_export: Path) -> None:
    status, output = run("inspect", str(shop_export), "--all", "--json")
    assert status == 0
    found = json.loads(output)
    assert found["looked_at"]["all"] is True
    assert {kind["pattern"]: kind["items"] for kind in found["types"]} == {
        "PK=CUSTOMER#…, SK=EVENT#…": 2_400, "PK=SESSION#…, SK=SESSION": 1_560, "PK=ORDER#…, SK=LINE#…": 900,
        "PK=CUSTOMER#…, SK=ORDER#…": 720, "PK=CUSTOMER#…, SK=PROFILE": 420,
    }  # fmt: skip
    assert [kind["pattern"] for kind in found["types"] if kind["event_like"]] == ["PK=CUSTOMER#…, SK=EVENT#…"]


def test_everything_of_a_broken_file_is_not_claimed(tmp_path: Path) -> None:
    export = write_sample(tmp_path, items=600, files=2, seed=1)
    sample = take_sample(read_export(str(export), Storage()), Storage())
    victim = max((export / "data").iterdir(), key=lambda path: path.stat().st_size)
    whole = victim.read_bytes()
    for content, message in (
        (whole[:-30], "the file is truncated"),
        (gzip.compress(gzip.decompress(whole), 9), "its MD5 is"),
    ):
        victim.write_bytes(content)
        survey = survey_everything(sample, Storage(), lambda _: None)
        assert not survey.whole
        assert message in survey.unread[victim.name]


def test_no_text_of_an_item_is_told(tmp_path: Path) -> None:
    """Not on the terminal, not as JSON, not in HTML; but for constants, and the ends of numbers and times."""
    secret = ["Ada Lovelace", "s3cret", "c@example.org", "Zürich"]
    items = [
        {"PK": text(f"USER#{secret[n % 4]}-{n}"), "SK": text("PROFILE"), "name": text(secret[n % 4]),
         "doc": {"M": {"k": text(secret[1])}}, "set": {"SS": secret}, "state": text(("open", "done")[n % 2])}
        for n in range(40)
    ]  # fmt: skip
    export, page = write_export(tmp_path, [items]), tmp_path / "page.html"
    shown = [run("inspect", str(export), "--html", str(page)), run("inspect", str(export), "--json")]
    for output in (*(output for _, output in shown), page.read_text()):
        assert "few values: done, open" in output
        assert not any(word in output for word in secret)


def test_the_page_says_first_what_it_is_of_and_how_large(tmp_path: Path, shop_export: Path) -> None:
    page = tmp_path / "page.html"
    _, output = run("inspect", str(shop_export), "--html", str(page))
    _, told = run("inspect", str(shop_export), "--json")
    found, export = json.loads(told), read_export(str(shop_export), Storage())
    size, items = sum(file.size for file in export.files), export.items
    assert found["export"] | {"id": "", "uri": "", "window": None} == {
        "id": "", "uri": "", "window": None, "items": items, "files": len(export.files), "bytes": size,
        "table": "shop", "time": export.export_time,
    }  # fmt: skip
    shown = page.read_text()
    head = shown[: shown.index("Entity types")]
    assert "<h1>Export of shop: DynamoDB</h1>" in head
    for text in (
        f"as of {export.export_time}", f"<b>{items:,}</b><span>items", f"<b>{len(export.files)}</b><span>files",
        f"<b>{readable_size(size)}</b><span>compressed", f"<b>{readable_size(found['item_bytes']['average'])}</b>",
        f"<b>{readable_size(found['item_bytes']['largest'])}</b>",
        f"<b>≈ {readable_size(found['postgresql_bytes']['total'])}</b><span>in PostgreSQL",
    ):  # fmt: skip
        assert text in head, text
    assert f"Table shop, as of {export.export_time}: {items:,} items in {len(export.files)} files" in output


def test_item_sizes_are_those_of_the_whole_export(tmp_path: Path) -> None:
    """A sample has as many items of a small file as of a large one; the average is not theirs."""
    small, large = (
        [{"id": text(f"A#{n}")} for n in range(30)],
        [{"id": text(f"B#{n:09}")} for n in range(300)],
    )
    lines = [len(line_of(item)) for item in (*small, *large)]
    found = inspection.facts(survey_of(tmp_path, small, large, items=30))
    assert found["item_bytes"]["average"] == pytest.approx(sum(lines) / len(lines), abs=1)
    assert found["item_bytes"]["largest"] == max(lines)


def test_the_pages_look_alike(tmp_path: Path, shop_export: Path) -> None:
    page = tmp_path / "page.html"
    run("inspect", str(shop_export), "--html", str(page))
    style = re.compile(r"<style>.*</style>", re.DOTALL)
    report = page_of(account_of(file_of(0)))
    assert style.findall(page.read_text()) == style.findall(report)


def test_names_cannot_break_terminal_or_page(tmp_path: Path) -> None:
    name = '<script>alert(1)</script>\x1b[31m[red]&"'
    page = tmp_path / "page.html"
    status, output = run(
        "inspect", str(write_export(tmp_path, [[{"id": text("1"), name: text("x")}]])), "--html", str(page)
    )
    assert status == 0
    assert "\x1b" not in output
    assert "[red]" in output
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()
    assert "http" not in page.read_text().replace("http-equiv", "")


def test_only_the_page_needs_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export, page = write_sample(tmp_path, items=10, files=1), tmp_path / "page.html"
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert run("inspect", str(export))[0] == 0
    status, output = run("inspect", str(export), "--html", str(page))
    assert (status, "pip install 'migration-pipeline[report]'" in output, page.exists()) == (2, True, False)


def test_the_commonest_of_thousands_of_attributes_are_looked_at_wherever_they_stand(tmp_path: Path) -> None:
    """The key, too: DynamoDB writes attributes in any order."""
    items = [
        {**{f"id-{n}-{k}": {"N": "1"} for k in range(400)}, **({"often": text("x")} if n % 2 else {}),
         "PK": text(f"USER#{n}")} for n in range(20)
    ]  # fmt: skip
    for options in ([], ["--all"]):
        export = str(write_export(tmp_path / "".join(["export", *options]), [items]))
        (kind,) = json.loads(run("inspect", export, "--json", *options)[1])["types"]
        assert [each["name"] for each in kind["attributes"][:2]] == ["PK", "often"]
        assert len(kind["attributes"]) + kind["further_attributes"] == 2 + 20 * 400
        assert (len(kind["attributes"]), kind["all_attributes_counted"]) == (300, True)
        _, output = run("inspect", export, *options)
        assert len(output.splitlines()) < 100
        assert "and 7,942 others; --json and --html have 240 of them" in output
    assert run("scaffold", export, "-o", str(tmp_path / "mine.py"))[0] == 0


def test_more_names_than_are_counted_are_told_as_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migration_pipeline.discovery.survey.MAX_COUNTED", 500)
    items = [{"id": text(str(n)), **{f"{n}-{k}": text("x") for k in range(100)}} for n in range(10)]
    page = tmp_path / "page.html"
    _, output = run("inspect", str(write_export(tmp_path, [items])), "--html", str(page))
    assert "and 740 or more others; --json and --html have 240 of them" in output
    assert "<p>and 500 or more others</p>" in page.read_text()


def test_of_long_items_the_shortest_is_an_example(tmp_path: Path) -> None:
    items = [{"id": text(str(n)), "text": text("x" * (9_000 - n))} for n in range(9)]
    (found,) = survey_of(tmp_path, items).types
    assert [example.number for example in found.examples] == [9]
    items.append({"id": text("short")})
    (found,) = survey_of(tmp_path / "other", items).types
    assert [example.number for example in found.examples] == [10]


# -- exports of little use ------------------------------------------------------------------------------


def test_an_empty_export_is_told_and_makes_no_profile(tmp_path: Path) -> None:
    export = write_export(tmp_path, [[], []])
    status, output = run("inspect", str(export))
    assert (status, output.splitlines()[0]) == (0, "All was read: 0 items of 2 files.")
    status, output = run("scaffold", str(export), "-o", str(tmp_path / "mine.py"))
    assert (status, output) == (2, f"error: {export}: no items to draft a profile from\n")
    assert not (tmp_path / "mine.py").exists()


def test_an_export_without_files_is_told(tmp_path: Path) -> None:
    assert run("inspect", str(write_export(tmp_path, [])))[0] == 0


def test_a_single_item_makes_a_profile_in_which_nothing_is_required(tmp_path: Path) -> None:
    export = write_sample(tmp_path, items=1, files=1)
    status, output = run("inspect", str(export))
    assert (status, "All was read: 1 item of 1 file." in output) == (0, True)
    status, output = run("scaffold", str(export), "-o", str(tmp_path / "mine.py"))
    assert (status, "tried on 1 sampled item: 1 would load" in output) == (0, True)


def test_only_bad_lines_make_no_profile(tmp_path: Path) -> None:
    export = write_export(tmp_path, [[b"{", b"[]"]])
    status, output = run("scaffold", str(export), "-o", str(tmp_path / "mine.py"))
    assert (status, "no items to draft a profile from: all 2 items read are bad" in output) == (2, True)


def test_a_key_that_no_profile_can_name_is_refused(tmp_path: Path) -> None:
    export = write_export(tmp_path, [[{'a"b': text(str(n))} for n in range(5)]])
    assert run("inspect", str(export))[0] == 0
    status, output = run("scaffold", str(export), "-o", str(tmp_path / "mine.py"))
    assert (status, "the key attribute 'a\"b' cannot be named in an Item" in output) == (2, True)


def test_scaffold_overwrites_nothing_unless_told(tmp_path: Path) -> None:
    export = str(write_sample(tmp_path, items=100, files=1))
    mine, test = tmp_path / "mine.py", tmp_path / "test_mine.py"
    test.write_text("theirs")
    status, output = run("scaffold", export, "-o", str(mine))
    assert (status, "test_mine.py already exists" in output) == (2, True)
    assert not mine.exists()
    assert test.read_text() == "theirs"
    assert run("scaffold", export, "-o", str(mine), "--force")[0] == 0
    assert "def test_" in test.read_text()


@pytest.mark.parametrize(
    "name", ["my-profile.py", "profile", "Profile.py", "json.py", "migration_pipeline.py"]
)
def test_a_name_that_is_none_for_a_profile_is_refused(tmp_path: Path, name: str) -> None:
    export = str(write_sample(tmp_path, items=10, files=1))
    status, output = run("scaffold", export, "-o", str(tmp_path / name))
    assert (status, len(output.splitlines())) == (2, 1)
