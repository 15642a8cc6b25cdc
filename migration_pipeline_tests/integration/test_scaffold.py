"""A scaffolded profile migrates what was sampled at once: into a real PostgreSQL, with nothing in quarantine."""

from __future__ import annotations

import base64
import json
import os
import shlex
import string
import subprocess
import sys
import tempfile
from collections.abc import Callable
from decimal import Decimal
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from migration_pipeline.cli import main
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.discovery import inspection
from migration_pipeline.discovery.names import Names, column_name, field_name
from migration_pipeline.discovery.sampling import take_sample
from migration_pipeline.discovery.scaffold import imported, scaffold, write
from migration_pipeline.discovery.survey import survey_sample
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.profile.profile import Profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import write_export

TOP = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent


def scaffolded(export: Path, folder: Path, *options: str) -> tuple[int, str]:
    """Call the command; the profile is called ``mine``."""
    result = CliRunner().invoke(main, ["scaffold", str(export), "-o", str(folder / "mine.py"), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


RUFF = [str(TOOLS / "ruff"), "--config", "cache-dir='.ruff'"]
LINTS = [[*RUFF, "format", "--diff"], [*RUFF, "check"]]
OURS = f"extend = '{TOP / 'pyproject.toml'}'\n"
"""Settings of ruff for a folder: this project's, in place of those it comes with."""
CACHE = tempfile.TemporaryDirectory()  # of what mypy knows of this package, for all tests
MYPY = [str(TOOLS / "mypy"), "--strict", "--python-version", "3.10", "--cache-dir", CACHE.name]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]


def passes(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(TOP)},
        timeout=300,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-1000:]}"


def check(folder: Path, *what: str) -> None:
    """Hold what was written against ruff, with the settings of the folder, mypy, and its own test."""
    for command in (*LINTS, MYPY):
        passes([*command, *(what or ("mine.py", "test_mine.py"))], folder)
    passes([*PYTEST, *(what or ("test_mine.py",))], folder)


def load(url: str, location: Path, profile: Profile) -> list[FileReport]:
    """Load every file of an export."""
    export = read_export(str(location), Storage())
    reports = []
    for file in export.files:
        identity = FileIdentity(profile.name, "1", export.id, file.name, "run")
        with PostgresTarget(url, profile.tables, identity, nul=profile.nul) as target:
            transform, stream = Transform(profile, dynamodb_json), FileStream(file, Storage())
            chosen = LoadSettings(max_bad_share=1.0)
            reports.append(FileLoad(file.name, file.items, stream, transform, target, chosen).run())
    return reports


@pytest.mark.parametrize("profile", ["shop", "pictures"])
def test_the_size_in_postgresql_is_estimated(database_url: str, tmp_path: Path, profile: str) -> None:
    export = write_sample(tmp_path / "export", items=100_000, files=2, seed=3, profile=profile)
    survey = survey_sample(take_sample(read_export(str(export), Storage()), Storage()))
    guessed = inspection.facts(survey)["postgresql_bytes"]
    assert scaffolded(export, tmp_path)[0] == 0
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported((tmp_path / "mine.py").read_text(), "mine") as made:
        load(database_url, export, made)
    ((tables, keys),) = query(
        database_url,
        "SELECT sum(pg_relation_size(oid))::bigint, sum(pg_indexes_size(oid))::bigint FROM pg_class "
        "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
    )
    assert guessed["tables"] == pytest.approx(tables, rel=0.12)
    assert guessed["keys"] == pytest.approx(keys, rel=0.2)
    assert guessed["total"] == pytest.approx(guessed["tables"] + guessed["keys"], abs=1)


@pytest.mark.parametrize(
    ("options", "sampled"),
    [((), "3,000"), (("--all", "--items-per-file", "50"), "150")],
    ids=["sample", "all"],
)
def test_the_shop_is_scaffolded_and_loads_at_once(
    shop_export: Path, database_url: str, tmp_path: Path, options: tuple[str, ...], sampled: str
) -> None:
    (tmp_path / "ruff.toml").write_text(OURS if options else "")
    status, output = scaffolded(shop_export, tmp_path, *options)
    assert status == 0
    assert (
        f"tried on {sampled} sampled items: {sampled} would load, 0 be unrouted, 0 be quarantined" in output
    )
    check(tmp_path)
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported((tmp_path / "mine.py").read_text(), "mine") as profile:
        reports = load(database_url, shop_export, profile)
    assert sum(report.loaded for report in reports) == 6_000
    assert sum(report.quarantined for report in reports) == 0
    tables = ["customer_profiles", "customer_orders", "order_lines", "customer_events", "sessions"]
    counts = [query(database_url, f"SELECT count(*) FROM {table}")[0][0] for table in tables]
    assert counts == [420, 720, 900, 2_400, 1_560]


def test_items_that_are_called_test_make_no_tests(tmp_path: Path) -> None:
    """Pytest takes a class that a test imports for a test of its own if its name begins so."""
    items = [{"PK": {"S": f"TEST#{n}"}, "SK": {"S": "TEST_RESULT#1"}, "n": {"N": str(n)}} for n in range(30)]
    status, output = scaffolded(write_export(tmp_path, [items], table="test"), tmp_path)
    assert status == 0, output
    assert "class ATest" in (tmp_path / "mine.py").read_text()
    passes([*PYTEST, "-W", "error", "test_mine.py"], tmp_path)


@pytest.mark.parametrize(
    ("folder", "called"),
    [(".", "mine:profile"), ("migrations/new", "migrations.new.mine:profile"), ("my-folder", "")],
)
def test_the_next_step_names_a_profile_that_imports(
    shop_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, called: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["scaffold", str(shop_export), "-o", f"{folder}/mine.py"])
    next_step = done.output.splitlines()[-1].partition("then ")[2]
    assert f"--profile {called or 'mine:profile'} " in next_step
    command = next_step.replace("migration-pipeline", shlex.quote(str(TOOLS / "migration-pipeline")))
    ran = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "planned 4 files" in ran.stdout


def test_a_module_that_pytest_would_run_is_refused(shop_export: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["scaffold", str(shop_export), "-o", str(tmp_path / "test_mine.py")])
    assert done.exit_code == 2
    assert "pytest would take a module named test_mine for a test" in done.output


def test_the_sample_with_broken_items_is_scaffolded_and_says_so(database_url: str, tmp_path: Path) -> None:
    from migration_pipeline.demo.sample import write_sample

    export = write_sample(tmp_path / "export", items=3_000, files=2, seed=3, bad=30)
    status, output = scaffolded(export, tmp_path, "--items-per-file", "100000")
    assert status == 0, output
    check(tmp_path)
    execute(database_url, (tmp_path / "schema.sql").read_text())
    listed = [json.loads(line) for line in (tmp_path / "export" / "bad-items.jsonl").read_text().splitlines()]
    # What is wrong with a line is wrong for any profile; what only the shop's profile minds, this one takes as it is.
    hopeless = {"malformed_json", "truncated_line", "not_an_object", "no_item", "invalid_utf8", "lone_surrogate",
                "duplicate_attribute", "not_a_number", "bad_base64"}  # fmt: skip
    bad = [each for each in listed if each["kind"] in hopeless]
    with imported((tmp_path / "mine.py").read_text(), "mine") as profile:
        reports = load(database_url, export, profile)
    assert sum(report.quarantined for report in reports) == len(bad) > 0
    assert f"{len(bad):,} be quarantined" in output
    assert {(file, line) for file, line in query(database_url, "SELECT file, line FROM migration.quarantine")} == {
        (each["file"], each["line"]) for each in bad
    }  # fmt: skip


def text(value: str) -> dict[str, str]:
    return {"S": value}


LONG_NAME = "ü" * 32_000 + "end"
MESSY: dict[str, Any] = {
    "select": text("an SQL keyword"),
    "order": text("another"),
    "class": text("a keyword of Python"),
    "None": text("no keyword in lower case"),
    "two words": text("a space"),
    "it's": text("a quote"),
    "🛒": text("an emoji"),
    "🎁": text("another emoji"),
    "größe": {"N": "12"},
    "GRÖSSE": {"N": "1.5"},
    "Name": text("two that differ in case only"),
    "name": text("the other"),
    "": text("no name at all"),
    "123": text("digits"),
    "ctid": text("a system column"),
    "date": text("2024-02-29"),
    "str": text("a type"),
    "attribute": text("a word of the vocabulary"),
    "Attribute": text("the same, but for its case"),
    "password": text("'; DROP TABLE users; --"),
    '"""': text("undeclarable: quotes"),
    "back\\slash": text("undeclarable: a backslash"),
    "line\nbreak": text("undeclarable: a control character"),
    "mixed": text("text here"),
    "flag": text("yes"),
    "nul": text("a\0b"),
    "documents": {"M": {"a\0": {"L": [{"M": {}}, {"NULL": True}, {"B": "AAE="}]}}},
    "huge": {"N": "9" * 38},
    "tiny": {"N": "1E-130"},
    "set": {"NS": ["1", "2.5"]},
    "naive": text("2024-01-01T00:00:00"),
    "nanos": text("2024-01-01T00:00:00.123456789Z"),
    "seen_at": {"N": "1700000000.123"},
    "created_at": {"N": "1700000000123"},
    "id": text("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
    "v1.price-€": {"N": "5"},
    "__class__": text("dunder"),
    "nothing": {"NULL": True},
    "rest": text("what else would be called so"),
    "n\0l": text("undeclarable: U+0000"),
}


def messy_items() -> list[dict[str, Any]]:
    """Items of a type each: names that no table should have, types that differ, keys in several forms."""
    others = {**MESSY, "mixed": {"N": "7"}, "flag": text("no"), LONG_NAME: text("64 KB")}
    some = {name: value for number, (name, value) in enumerate(MESSY.items()) if number % 3}
    items = []
    for number in range(30):
        body = (MESSY, others, some)[number % 3]
        items.append({**body, "PK": text(f"USER#{number}"), "SK": text("PROFILE")})
        items.append({**body, "PK": text(f"USER#{number}"), "SK": text(f"ITEM#{number}")})
        items.append(
            {**body, "PK": text(f"ROW#{number}"), "SK": text(f"2024-01-{number + 1:02}T00:00:00Z#{number}")}
        )
    return items


def test_messy_items_are_scaffolded_and_load_at_once(database_url: str, tmp_path: Path) -> None:
    items = messy_items()
    export = write_export(tmp_path / "export", [items[:50], items[50:]])
    status, output = scaffolded(export, tmp_path)
    assert status == 0, output
    source = (tmp_path / "mine.py").read_text()
    check(tmp_path)
    assert 'Profile("mine", nul="escape")' in source
    undeclarable = ('"""', "back\\slash", "line\nbreak", "n\0l")
    columns = len({"PK", LONG_NAME, *MESSY}) - len(undeclarable)
    assert f"user_profiles: {columns} attributes are columns; 4 others go to the" in output
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported(source, "mine") as profile:
        reports = load(database_url, export, profile)
    assert (sum(r.loaded for r in reports), sum(r.quarantined for r in reports)) == (90, 0)
    assert query(
        database_url,
        'SELECT "select", "order", class, two_words, name, name_2, flag, mixed, date, seen_at::text, nul '
        "FROM user_profiles WHERE user_id = '1'",
    ) == [
        ("an SQL keyword", "another", "a keyword of Python", "a space", "two that differ in case only", "the other",
         False, 7, __import__("datetime").date(2024, 2, 29), "2023-11-14 22:13:20.123+00", "a\\u0000b"),
    ]  # fmt: skip
    assert query(database_url, "SELECT rest, other_attributes FROM user_profiles WHERE user_id = '1'") == [
        (MESSY["rest"]["S"], {name.replace("\0", "\\u0000"): MESSY[name]["S"] for name in undeclarable})
    ]


def test_hundreds_of_entity_types_are_scaffolded(database_url: str, tmp_path: Path) -> None:
    """The commonest get a table each; what is left goes together."""
    items = [
        {"PK": text(f"KIND_{kind}#{n}"), "SK": text("A"), f"only_{kind}": {"N": str(n)}}
        for kind in range(300)
        for n in range(4 if kind < 150 else 3)
    ]
    export = write_export(tmp_path / "export", [items[::2], items[1::2]])
    status, output = scaffolded(export, tmp_path)
    assert (status, "201 entity types" in output) == (0, True), output
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported((tmp_path / "mine.py").read_text(), "mine") as profile:
        reports = load(database_url, export, profile)
    assert (sum(r.loaded for r in reports), sum(r.quarantined for r in reports)) == (len(items), 0)


def plainly(value: Any) -> Any:
    """A value of an item in wire form, as a jsonb column gives it back: numbers by value, sets sorted."""
    ((letter, inner),) = value.items()
    if letter in ("N", "NS"):
        return Decimal(inner) if letter == "N" else sorted(map(Decimal, inner))
    if letter == "M":
        return {name: plainly(each) for name, each in inner.items()}
    if letter == "L":
        return list(map(plainly, inner))
    return None if letter == "NULL" else inner


def assert_nothing_is_lost(url: str, table: str, items: list[dict[str, Any]]) -> None:
    """Each attribute is in the column of its name, if there is one, or else in the document, and never in both."""
    rows = query(url, f"SELECT user_id, to_jsonb(t)::text FROM {table} AS t")
    stored = {key: json.loads(row, parse_float=Decimal, parse_int=Decimal) for key, row in rows}
    assert len(stored) == len(items)
    for item in items:
        row = stored[item["PK"]["S"].removeprefix("USER#")]
        document = row.pop("rest") or {}
        expected = {name: plainly(value) for name, value in item.items() if name not in ("PK", "SK")}
        columns = {name: value for name, value in row.items() if name != "user_id" and value is not None}
        assert not {*columns} & {*document}
        assert {**columns, **document} == expected


WIDE: dict[str, Callable[[int], dict[str, Any]]] = {
    "thousands of names, a few an item": lambda n: {
        **{f"2024-{(n * 37 + k * 11) % 4_000:05}": {"N": str(k)} for k in range(30)},
        "title": text(f"title {n}"), "count": {"N": str(n)},
    },
    "two thousand names, all in each item": lambda n: {
        f"m{k:04}": text(noise(n * 2_000 + k, 60)) if k % 2 else {"N": str(k)} for k in range(2_000)
    },
    "names that only items beyond the sample have": lambda n: {
        "title": text("t"), **({f"late_{n}": {"M": {"a": {"L": [{"N": "1.50"}]}}}} if n % 7 == 0 else {}),
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "number", "per_file", "columns"),
    [
        ("thousands of names, a few an item", 600, 200, 3),
        ("two thousand names, all in each item", 30, 20, 200),
        ("names that only items beyond the sample have", 600, 10, 0),
    ],
)
def test_what_becomes_no_column_is_told_and_is_in_the_document(
    kind: str, number: int, per_file: int, columns: int, database_url: str, tmp_path: Path
) -> None:
    items = [{"SK": text("META"), **WIDE[kind](n), "PK": text(f"USER#{n}")} for n in range(number)]
    export = write_export(tmp_path / "export", [items[::2], items[1::2]])
    status, output = scaffolded(export, tmp_path, "--items-per-file", str(per_file))
    assert status == 0, output
    sampled = take_sample(read_export(str(export), Storage()), Storage(), per_file)
    others = len({name for line in sampled for name in json.loads(line.line)["Item"]} - {"SK"}) - columns
    told = (
        f"user_metas: {columns} attributes are columns; {others:,} others go to the document in column rest"
    )
    assert not columns or told in output
    assert ("attributes found only in items that were not looked at" in output) == (number > 2 * per_file)
    check(tmp_path)
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported((tmp_path / "mine.py").read_text(), "mine") as profile:
        reports = load(database_url, export, profile)
    assert (sum(r.loaded for r in reports), sum(r.quarantined for r in reports)) == (number, 0)
    assert_nothing_is_lost(database_url, "user_metas", items)


def test_a_text_with_nul_loads(database_url: str, tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", [[{"id": text("1"), "note": text("a\0b")}]])
    assert scaffolded(export, tmp_path)[0] == 0
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported((tmp_path / "mine.py").read_text(), "mine") as profile:
        (report,) = load(database_url, export, profile)
    assert (report.loaded, report.quarantined) == (1, 0)
    assert query(database_url, "SELECT note FROM things") == [("a\\u0000b",)]


def test_keys_that_no_index_takes_are_digested(database_url: str, tmp_path: Path) -> None:
    items = [{"PK": text(noise(n, 2_000)), "SK": text(noise(-n, 1_000))} for n in range(9)]
    export = write_export(tmp_path / "export", [items])
    assert scaffolded(export, tmp_path)[0] == 0
    check(tmp_path)
    execute(database_url, (tmp_path / "schema.sql").read_text())
    with imported((tmp_path / "mine.py").read_text(), "mine") as profile:
        (report,) = load(database_url, export, profile)
    assert (report.loaded, report.quarantined) == (9, 0)
    assert query(database_url, "SELECT count(DISTINCT key_digest), max(length(pk)) FROM things") == [
        (9, 2_000)
    ]


# -- the law: whatever the items, what was sampled is not quarantined ----------------------------------

CHARACTERS = st.characters(codec="utf-8")

NAMES = st.sampled_from(
    [*MESSY, "createdAt", "other_attributes", "type", "ttl", "Ünï", "a" * 255, "PK2", "sk "]
) | st.text(CHARACTERS, min_size=1, max_size=12)
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=20),
    st.sampled_from(["true", "false", "yes", "0", "1", "1700000000", "1700000000123", "", "2024-01-01"]),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.datetimes().map(str),
    st.uuids().map(str),
    st.dates().map(str),
)
NUMBERS = st.one_of(
    st.integers(-(10**37), 10**37).map(str),
    st.integers(1_600_000_000, 1_800_000_000).map(str),
    st.decimals(-(10**20), 10**20, allow_nan=False, allow_infinity=False, places=5).map(str),
    st.sampled_from(["0", "-0", "1E+125", "9.9E-120", "1.7E+9", str(2**63), str(-(2**63))]),
)
BINARIES = st.binary(max_size=10).map(lambda value: base64.b64encode(value).decode())
SCALARS = st.one_of(
    st.builds(lambda v: {"S": v}, TEXTS),
    st.builds(lambda v: {"N": v}, NUMBERS),
    st.builds(lambda v: {"B": v}, BINARIES),
    st.builds(lambda v: {"BOOL": v}, st.booleans()),
    st.just({"NULL": True}),
    st.builds(lambda v: {"SS": v}, st.lists(TEXTS, min_size=1, max_size=3, unique=True)),
    st.builds(lambda v: {"NS": v}, st.lists(NUMBERS, min_size=1, max_size=3, unique_by=Decimal)),
    st.builds(lambda v: {"BS": v}, st.lists(BINARIES, min_size=1, max_size=3, unique=True)),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(lambda v: {"L": v}, st.lists(inner, max_size=3)),
        st.builds(lambda v: {"M": v}, st.dictionaries(NAMES, inner, max_size=3)),
    ),
    max_leaves=6,
)


def noise(number: int, size: int) -> str:
    """Text that no compression helps to fit into an index."""
    return "".join(Random(number).choices(string.ascii_letters + string.digits, k=size))


LAYOUTS: dict[str, Any] = {
    "a number": lambda n, word: {"pk": {"N": str(n * 3 - 7)}},
    "a text": lambda n, word: {"id": text(f"{word}{n}")},
    "binary": lambda n, word: {"the key": {"B": base64.b64encode(bytes([n, 0])).decode()}},
    "prefixes": lambda n, word: {
        "PK": text(f"{('USER', 'Order', 'class')[n % 3]}#{n // 2}"), "SK": text(f"{('A#', 'PROFILE', 'b|')[n % 2]}{n}"),
    },
    "words": lambda n, word: {"PK": text(f"{word}#{n // 2}"), "SK": text(("META", "profile")[n % 2])},
    "types": lambda n, word: {"hash_key": text(str(n)), "entityType": text(("Item", "Row", word or "x")[n % 3])},
    "events": lambda n, word: {"PK": text(f"u{n // 4}"), "SK": {"N": str(1_700_000_000 + n)}},
    "long": lambda n, word: {
        "PK": text(noise(n, 2_000)), "SK": text(noise(n, 900) + str(n)),
    },
}  # fmt: skip


@st.composite
def exports(draw: st.DrawFn) -> list[list[dict[str, Any]]]:
    """Files of items with keys of one layout, and attributes from a small pool, so that types meet and conflict."""
    layout = draw(st.sampled_from(sorted(LAYOUTS)))
    event(layout)
    word = draw(st.sampled_from(["", "SMITH", "a b", "Ünï", "x'\"", "CUSTOMER"]))
    pool = draw(st.lists(NAMES, max_size=5, unique=True))
    kinds = draw(st.fixed_dictionaries({name: st.lists(VALUES, min_size=1, max_size=3) for name in pool}))
    items = []
    for number in range(draw(st.integers(1, 40))):
        chosen = {
            name: values[(number * 7 + place) % len(values)]
            for place, (name, values) in enumerate(kinds.items())
            if (number + place) % 4
        }
        items.append({**chosen, **LAYOUTS[layout](number, word)})
    cut = draw(st.integers(0, len(items)))
    return [items[:cut], items[cut:]]


@pytest.fixture(scope="module")
def url(postgres: Any) -> str:
    execute(postgres.url, "CREATE DATABASE scaffolds")
    made: str = postgres.url.replace("/postgres?", "/scaffolds?")
    return made


@settings(suppress_health_check=list(HealthCheck), deadline=None, max_examples=60)
@given(exports())
def test_what_was_sampled_is_never_quarantined(url: str, files: list[list[dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        location = write_export(Path(folder), files)
        storage = Storage()
        survey = survey_sample(take_sample(read_export(str(location), storage), storage))
        made = scaffold(survey, Path(folder) / "mine.py")
        source, sql, _ = made.files.values()
        assert (made.bad, made.unrouted) == ({}, 0)
        execute(
            url, "DROP SCHEMA IF EXISTS migration CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public"
        )
        execute(url, sql)
        with imported(source, "mine") as profile:
            reports = load(url, location, profile)
            tables = [table.qualified for table in profile.tables.values()]
        items = sum(map(len, files))
        assert query(url, "SELECT table_name, reason FROM migration.quarantine") == []
        assert sum(report.loaded for report in reports) == items
        # Keys were told apart: there are as many rows as items.
        assert sum(query(url, f'SELECT count(*) FROM "{table}"')[0][0] for table in tables) == items


def test_a_letter_that_looks_like_a_digit_is_no_name() -> None:
    assert (field_name("±§l", Names()), column_name("l_")) == ("l_", "l")


def test_whatever_is_scaffolded_passes_lint_types_and_its_own_test(tmp_path: Path) -> None:
    """All examples are written first, and then held against each tool once: half of them where this project's rules hold."""
    numbers, storage = count(), Storage()
    for folder, rules in (("theirs", ""), ("ours", OURS)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ruff.toml").write_text(rules)

    @settings(deadline=None, max_examples=40, database=None, phases=[Phase.generate])
    @given(exports())
    def generate(files: list[list[dict[str, Any]]]) -> None:
        number = next(numbers)
        location = write_export(tmp_path / f"export{number}", files)
        survey = survey_sample(take_sample(read_export(str(location), storage), storage))
        folder = tmp_path / ("theirs", "ours")[number % 2]
        write(scaffold(survey, folder / f"mine{number}.py"), force=True)

    generate()
    assert next(numbers) >= 40
    check(tmp_path / "theirs", ".")
    check(tmp_path / "ours", ".")


def test_settings_that_ruff_cannot_read_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "ruff.toml").write_text('required-version = ">=99"')
    export = write_export(tmp_path / "export", [[{"id": text("1")}]])
    assert scaffolded(export, tmp_path)[0] == 0
    (tmp_path / "ruff.toml").unlink()
    check(tmp_path)


def test_the_test_tells_what_a_change_does_to_real_items(tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", [[{"id": text("1"), "n": {"N": "5"}}]])
    assert scaffolded(export, tmp_path)[0] == 0
    module = tmp_path / "mine.py"
    assert "n=item.n" in module.read_text()
    module.write_text(module.read_text().replace("n=item.n", "n=item.n + 1"))
    with pytest.raises(AssertionError, match="1 failed"):
        passes([*PYTEST, "test_mine.py"], tmp_path)
