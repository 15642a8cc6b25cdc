"""Windows: keys that a table never held, keys that it calls equal, two items of one key, loads that linger, changed profiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import pytest
from psycopg2.extensions import make_dsn

from migration_pipeline.engine.batch import Batch
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.load import place_of, transform_of
from migration_pipeline.migration.plan import Plan
from migration_pipeline.profile.item import Item
from migration_pipeline.profile.profile import Profile
from migration_pipeline.profile.row import PgType, Row
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.catalog import SchemaError
from migration_pipeline.targets.connection import DatabaseError, DatabaseSettings, transaction
from migration_pipeline.targets.ddl import ddl
from migration_pipeline.targets.ledger import Place
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.touched import Touched
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.histories import History, Write, load, plan_of, write_files

SPARE = {"uuid": "00000000-0000-0000-0000-000000000001"}
"""Another key, by type."""

keys = Profile("keys", may_quarantine=1_000)


class Named(Item):
    id: str
    kind: str
    code: str


class Numbered(Item):
    id: str
    kind: str
    n: int


class ByCode(Row, table="by_code", key="code"):
    code: str
    id: str


class ByNumber(Row, table="by_number", key="n"):
    n: int
    id: str


class Landed(Row, table="landing.numbers", landing=True):
    n: int
    id: str


@keys.route(kind="l")
def landing(item: Numbered) -> Landed:
    return Landed(item.n, item.id)


@keys.route(kind="c")
def named(item: Named) -> ByCode:
    return ByCode(item.code, item.id)


@keys.route(kind="n")
def numbered(item: Numbered) -> ByNumber:
    return ByNumber(item.n, item.id)


def code(key: str, text: str) -> dict[str, dict[str, Any]]:
    return {"id": {"S": key}, "kind": {"S": "c"}, "code": {"S": text}}


def number(key: str, n: int) -> dict[str, dict[str, Any]]:
    return {"id": {"S": key}, "kind": {"S": "n"}, "n": {"N": str(n)}}


def landed(key: str, n: int) -> dict[str, dict[str, Any]]:
    return {**number(key, n), "kind": {"S": "l"}}


def tables(url: str, code_type: str = "text") -> str:
    execute(
        url,
        ddl(keys.all_tables) + "DROP TABLE by_code, by_number;"
        f"CREATE TABLE by_code (code {code_type} PRIMARY KEY, id text NOT NULL);"
        "CREATE TABLE by_number (n integer PRIMARY KEY, id text NOT NULL)",
    )
    return url


def rows(url: str, table: str = "by_code") -> list[tuple[Any, ...]]:
    return query(url, f"SELECT * FROM {table} ORDER BY 2")


@pytest.mark.parametrize("end", ["mended", "deleted"])
@pytest.mark.parametrize(
    ("kind", "type_", "bad", "good"),
    [
        ("n", "text", 10**12, 5),
        ("c", "varchar(3)", "abcdef", "xyz"),
        ("c", "char(3)", "abcdef", "xyz"),
        ("c", "uuid", "none", "6f7c1bd6-14ac-4c70-ad68-53ec2a8bb4f1"),
        ("c", "text CHECK (code <> 'bad')", "bad", "good"),
        ("c", "text", "a\0b", "abc"),
    ],
)
def test_a_key_that_the_table_never_held(
    database_url: str, tmp_path: Path, kind: str, type_: str, bad: Any, good: Any, end: str
) -> None:
    """The item is in the base's quarantine, and a window mends or deletes it; a row that such a key could be cut to stays."""
    tables(database_url, type_)
    make: Any = number if kind == "n" else code
    others = {"other": code("other", "abc")} if type_ in ("varchar(3)", "char(3)") else {}
    after = make("it", good) if end == "mended" else None
    writes = [
        Write(1, "it", after),
        Write(2, "also", make("also", 7 if kind == "n" else SPARE.get(type_, "qed"))),
    ]
    history = History({"it": make("it", bad), **others}, writes)
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    load(plan_of(keys, base, [(0, 10, window)]), keys, database_url)
    table = "by_number" if kind == "n" else "by_code"
    ids = sorted(["also", *others, *(["it"] if after else [])])
    assert [row[1] for row in rows(database_url, table)] == ids
    assert query(database_url, "SELECT count(*) FROM migration.quarantine") == [(0,)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_key_that_was_refused_is_not_given_up(
    database_url: str, tmp_path: Path, order: tuple[int, int]
) -> None:
    """The column would have filled it up with blanks, so the item was refused; another item has the key as it is."""
    tables(database_url, "char(5)")
    history = History(
        {"giver": code("giver", "key")},
        [Write(1, "giver", code("giver", "other")), Write(2, "taker", code("taker", "key  "))],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [[record] for record in history.window(0, 10)])
    plan = plan_of(keys, base, [(0, 10, files)])
    load(plan, keys, database_url, [plan.files[0], *(plan.files[1 + n] for n in order)])
    assert [row[1] for row in rows(database_url)] == ["giver", "taker"]


def test_a_landed_row_that_the_table_never_held(database_url: str, tmp_path: Path) -> None:
    tables(database_url)
    history = History(
        {
            "mended": landed("mended", 10**30),
            "deleted": landed("deleted", 10**30),
            "other": landed("other", 1),
        },
        [
            Write(1, "mended", landed("mended", 2)),
            Write(2, "deleted", None),
            Write(3, "other", landed("other", 3)),
        ],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    window = write_files(tmp_path, "window", [history.window(0, 10)])
    load(plan_of(keys, base, [(0, 10, window)]), keys, database_url)
    assert rows(database_url, "landing.numbers") == [(2, "mended"), (3, "other")]
    assert query(database_url, "SELECT count(*) FROM migration.quarantine") == [(0,)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("type_", ["text", 'text COLLATE "C"'])
def test_two_items_of_one_key_give_it_up_and_a_third_takes_it(
    database_url: str, tmp_path: Path, order: tuple[int, int], type_: str
) -> None:
    tables(database_url, type_)
    history = History(
        {"one": code("one", "key"), "two": code("two", "key")},
        [
            Write(1, "one", code("one", "1")),
            Write(2, "three", code("three", "key")),
            Write(3, "two", code("two", "2")),
        ],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    one, three, two = history.window(0, 10)
    files = write_files(tmp_path, "window", [[one, three], [two]])
    plan = plan_of(keys, base, [(0, 10, files)])
    load(plan, keys, database_url, [plan.files[0], *(plan.files[1 + n] for n in order)])
    assert rows(database_url) == [("1", "one"), ("key", "three"), ("2", "two")]


class Lingering(FileStream):
    """A file of which some lines are given, then something else is done, then the others are given."""

    meanwhile: Callable[[], object]
    before: int

    def __iter__(self) -> Iterator[list[bytes]]:
        lines = [line for lines in super().__iter__() for line in lines]
        yield lines[: self.before]
        time.sleep(0.5)  # so that they are written
        self.meanwhile()
        yield lines[self.before :]


@pytest.mark.parametrize("before", [0, 2, 4])
def test_a_load_of_the_base_that_lingers_brings_nothing_back(
    database_url: str, tmp_path: Path, before: int
) -> None:
    """A first load hangs; another one takes its place, and a window is loaded; then the first goes on."""
    tables(database_url)
    history = History(
        {
            "first": code("first", "first"),
            "gone": code("gone", "gone"),
            "kept": code("kept", "kept"),
            "landed": landed("landed", 1),
            "stays": landed("stays", 1),
        },
        [Write(1, "gone", None), Write(2, "landed", None)],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(keys, base, [(0, 10, files)])
    planned = plan.files[0]
    identity = FileIdentity(keys.name, keys.version, planned.export_id, planned.file.name, "lingers")
    target = PostgresTarget(
        database_url, keys.tables, identity, DatabaseSettings(), place=place_of(plan, planned)
    )
    with target:
        source = Lingering(planned.file, Storage())
        source.before = before
        source.meanwhile = lambda: load(plan, keys, database_url)
        transform = transform_of(keys, None, None)
        transform.newer = target.newer()  # type: ignore[union-attr]
        FileLoad(
            planned.file.name, planned.file.items, source, transform, target, LoadSettings(batch_items=1)
        ).run()
    assert rows(database_url) == [("first", "first"), ("kept", "kept")]
    assert rows(database_url, "landing.numbers") == [(1, "stays")]


def test_items_of_other_profiles_are_looked_through_once(database_url: str) -> None:
    """Their ledger may be long, and nothing else may be entered meanwhile."""
    tables(database_url)
    enter = (
        "INSERT INTO migration.item (item, profile, written, window_id, place, owned) "
        "SELECT gen_random_uuid(), '{}', 1, 1, 1, '[]'"
    )
    execute(database_url, enter.format("another"))
    touched, nothing = Touched("keys", Place(), "token"), cast("Batch", None)

    def looked_through() -> bool:
        with transaction(database_url) as cursor:
            assert touched.numbers(cursor, nothing) == set()
            return b"'keys'" in cursor.query  # the last one

    assert [looked_through(), looked_through()] == [True, False]
    execute(database_url, enter.format("another"))
    assert [looked_through(), looked_through()] == [True, False]
    execute(database_url, enter.format("keys"))
    with pytest.raises(MigrationError, match="windows were loaded into the tables"):
        looked_through()


def changed(key_of: Callable[[Any], str]) -> Profile:
    """The profile after a change: another attribute is the key."""
    profile = Profile("keys", version="2", may_quarantine=1_000)

    @profile.route(kind="c")
    def named_otherwise(item: Two) -> ByCode:
        return ByCode(key_of(item), item.id)

    return profile


class Two(Item):
    id: str
    kind: str
    code: str
    other: str


def two(key: str, text: str, other: str) -> dict[str, dict[str, Any]]:
    return {**code(key, text), "other": {"S": other}}


def test_a_changed_profile_takes_away_the_rows_of_the_one_before(database_url: str, tmp_path: Path) -> None:
    """Items that were inserted, or moved, in the window have other keys then."""
    tables(database_url)
    history = History(
        {"moved": two("moved", "m", "m")},
        [Write(1, "inserted", two("inserted", "i", "i2")), Write(2, "moved", two("moved", "m1", "m2"))],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(keys, base, [(0, 10, files)])
    load(plan, keys, database_url)
    load(plan, changed(lambda item: item.other), database_url)
    assert rows(database_url) == [("i2", "inserted"), ("m2", "moved")]


def no_row(item: Named) -> ByCode | None:
    return None


def test_a_changed_profile_ignores_what_had_a_row(database_url: str, tmp_path: Path) -> None:
    tables(database_url)
    history = History(
        {"kept": two("kept", "k", "k")},
        [Write(1, "inserted", two("inserted", "i", "i")), Write(2, "kept", two("kept", "k2", "k2"))],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(keys, base, [(0, 10, files)])
    load(plan, keys, database_url)
    ignoring = Profile("keys", version="2", may_quarantine=1_000)
    ignoring.route(kind="c")(no_row)
    load(plan, ignoring, database_url)
    assert rows(database_url) == []


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_changed_profile_exchanges_keys(database_url: str, tmp_path: Path, order: tuple[int, int]) -> None:
    tables(database_url)
    history = History(
        {"one": two("one", "1", "2"), "two": two("two", "2", "3")},
        [Write(1, "one", two("one", "1", "2")), Write(2, "two", two("two", "2", "3"))],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [[record] for record in history.window(0, 10)])
    plan = plan_of(keys, base, [(0, 10, files)])
    load(plan, keys, database_url)
    again = [plan.files[1 + n] for n in order]
    load(plan, changed(lambda item: item.other), database_url, again)
    assert rows(database_url) == [("2", "one"), ("3", "two")]


class Both(Row, table="pairs", key=("code", "other")):
    code: str
    other: str


def test_a_key_of_the_same_values_in_other_columns_is_another_key(database_url: str, tmp_path: Path) -> None:
    def profile(version: str, row_of: Callable[[Two], Both]) -> Profile:
        made = Profile("both", version=version, may_quarantine=1_000)

        @made.route(kind="c")
        def both(item: Two) -> Both:
            return row_of(item)

        return made

    before = profile("1", lambda item: Both(item.code, item.other))
    execute(database_url, ddl(before.all_tables))
    history = History({}, [Write(1, "it", two("it", "a", "b")), Write(2, "at", two("at", "c", "c"))])
    files = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(before, write_files(tmp_path, "base", [[]]), [(0, 10, files)])
    load(plan, before, database_url)
    after = profile("2", lambda item: Both(item.other, item.code if item.id == "it" else "d"))
    load(plan, after, database_url)
    assert rows(database_url, "pairs") == [("b", "a"), ("c", "d")]


named_so = Profile("named_so", may_quarantine=1_000)


class Number(Row, table="named_so", key=("number", "taken", "item", "t", "k", "had")):
    number: str
    taken: str
    item: str
    t: str
    k: str
    had: str


class LandedNumber(Row, table="landing.named_so", landing=True):
    number: str
    item: str
    image: str
    place: str
    id: str
    content: str


@named_so.route(kind="c")
def number_named_so(item: Named) -> list[Number | LandedNumber]:
    return [Number(*[item.code] * 6), LandedNumber(*[item.code] * 6)]


def test_columns_of_any_name(database_url: str, tmp_path: Path) -> None:
    execute(database_url, ddl(named_so.all_tables))
    history = History(
        {"it": code("it", "old"), "gone": code("gone", "gone")},
        [Write(1, "it", code("it", "new")), Write(2, "gone", None)],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [history.window(0, 10)])
    plan = plan_of(named_so, base, [(0, 10, files)])
    load(plan, named_so, database_url)
    load(plan, named_so, database_url)
    for table in ("named_so", "landing.named_so"):
        assert rows(database_url, table) == [("new",) * 6]


def one_is_deleted(tmp_path: Path) -> Plan:
    history = History(
        {"gone": code("gone", "gone"), "stays": code("stays", "stays")}, [Write(1, "gone", None)]
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    return plan_of(keys, base, [(0, 10, write_files(tmp_path, "window", [history.window(0, 10)]))])


def test_a_trigger_that_keeps_rows_is_told(database_url: str, tmp_path: Path) -> None:
    """As one that marks rows as deleted instead."""
    tables(database_url)
    execute(
        database_url,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER keep BEFORE DELETE ON by_code FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    plan = one_is_deleted(tmp_path)
    with pytest.raises(DatabaseError, match="by_code: a trigger kept a row that has to go"):
        load(plan, keys, database_url)
    execute(database_url, "ALTER TABLE by_code DISABLE TRIGGER keep")
    load(plan, keys, database_url)
    assert rows(database_url) == [("stays", "stays")]


def test_a_role_that_must_not_delete_is_told_before_any_work(database_url: str, tmp_path: Path) -> None:
    tables(database_url)
    plan = one_is_deleted(tmp_path)
    execute(
        database_url,
        "CREATE ROLE no_deletion; GRANT SELECT, INSERT, UPDATE ON by_code, by_number TO no_deletion;"
        "GRANT USAGE ON SCHEMA migration, landing TO no_deletion; GRANT SELECT ON landing.numbers TO no_deletion;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA migration TO no_deletion",
    )
    try:
        url = make_dsn(database_url, options="-c role=no_deletion")
        only = Profile("keys", may_quarantine=1_000)
        only.route(kind="c")(named)
        with pytest.raises(SchemaError, match=r"by_code.*docs/security\.md"):
            load(plan, only, url)
        execute(database_url, "GRANT DELETE ON by_code TO no_deletion")
        load(plan, only, url)
    finally:
        execute(database_url, "DROP OWNED BY no_deletion; DROP ROLE no_deletion")
    assert rows(database_url) == [("stays", "stays")]


spans = Profile("spans", may_quarantine=1_000)


class Span(Row, table="spans", key="code"):
    code: Annotated[str, PgType("interval")]
    id: str


@spans.route(kind="c")
def span(item: Named) -> Span:
    return Span(item.code, item.id)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_key_that_the_table_calls_the_same(
    database_url: str, tmp_path: Path, order: tuple[int, int]
) -> None:
    """One item gives a key up, another takes it in another spelling, as of a citext."""
    execute(database_url, ddl(spans.all_tables))
    history = History(
        {"giver": code("giver", "1 mon")},
        [Write(1, "giver", code("giver", "1 day")), Write(2, "taker", code("taker", "30 days"))],
    )
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [[record] for record in history.window(0, 10)])
    plan = plan_of(spans, base, [(0, 10, files)])
    load(plan, spans, database_url, [plan.files[0], *(plan.files[1 + n] for n in order)])
    assert [row[1] for row in rows(database_url, "spans")] == ["giver", "taker"]


unique = Profile("unique", may_quarantine=1_000)


class Unique(Row, table="only_once", key="id"):
    id: str
    code: str


@unique.route(kind="c")
def once(item: Named) -> Unique:
    return Unique(item.id, item.code)


@pytest.mark.xfail(
    strict=True,
    reason="the item that takes the value is refused before the other one gives it up; replay loads it",
)
@pytest.mark.parametrize(
    ("start", "writes", "left"),
    [
        (
            {"x": code("x", "a"), "y": code("y", "b")},
            [Write(1, "x", code("x", "b")), Write(2, "y", code("y", "a"))],
            [("y", "a"), ("x", "b")],
        ),
        ({"x": code("x", "a")}, [Write(1, "y", code("y", "a")), Write(2, "x", None)], [("y", "a")]),
    ],
)
def test_a_value_that_only_one_row_may_have_goes_to_another_row(
    database_url: str, tmp_path: Path, start: Any, writes: list[Write], left: list[tuple[str, str]]
) -> None:
    """Of a unique constraint that is not the key's: the row that has the value still may be written later."""
    execute(database_url, ddl(unique.all_tables) + "ALTER TABLE only_once ADD UNIQUE (code)")
    history = History(start, writes)
    base = write_files(tmp_path, "base", [history.full(0)])
    files = write_files(tmp_path, "window", [[record] for record in history.window(0, 10)])
    load(plan_of(unique, base, [(0, 10, files)]), unique, database_url)
    assert rows(database_url, "only_once") == left


def test_a_new_full_export_is_not_left_out_for_windows_of_an_old_one(
    database_url: str, tmp_path: Path
) -> None:
    """The ledger has what was written before the new export was taken, and the new plan has other windows."""
    tables(database_url)
    history = History({}, [Write(1, "it", code("it", "old")), Write(11, "it", code("it", "new"))])
    first = write_files(tmp_path, "window", [history.window(0, 10)])
    load(
        plan_of(keys, write_files(tmp_path, "base", [history.full(0)]), [(0, 10, first)]), keys, database_url
    )
    base = write_files(tmp_path, "anew", [history.full(20)])
    plan = plan_of(keys, base, [(20, 30, write_files(tmp_path, "later", [[]]))], base_time=20)
    exports = [msgspec.structs.replace(each, id=f"{each.id} anew") for each in plan.exports]
    files = [msgspec.structs.replace(each, export_id=f"{each.export_id} anew") for each in plan.files]
    anew = msgspec.structs.replace(plan, exports=tuple(exports), files=tuple(files))
    with pytest.raises(
        MigrationError, match="windows were loaded into the tables, and the plan has not all of them"
    ):
        load(anew, keys, database_url)
