"""Plans with windows: which chains are taken, which profiles can follow, and that what is planned stays as it is."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from hashlib import md5
from pathlib import Path
from typing import Annotated, Any, get_args

import dagster as dg
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from msgspec.structs import replace

from migration_pipeline import Item, Merge, Profile, RestOfItem, Row, WholeItem, attribute, prefix, settings
from migration_pipeline.cli import main
from migration_pipeline.defs.checks import migration_checks
from migration_pipeline.defs.migration import Database
from migration_pipeline.errors import BadItem, UsageError
from migration_pipeline.migration.chain import check_chain, holes
from migration_pipeline.migration.partition_keys import PartitionKeys
from migration_pipeline.migration.plan import Plan, PlannedExport, add_windows, make_plan
from migration_pipeline.migration.plans import plan_path, read_plan, write_plan
from migration_pipeline.sources.export import Export, View, Window, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.windows import item_line
from migration_pipeline_tests.exports import EXPORT_ID, write_export
from migration_pipeline_tests.windows import change_summary, line_of, record, without_old, write_window

T0 = "2024-01-01T00:00:00Z"
"""When the base of `write_export` was taken."""

ITEM = {"PK": {"S": "A"}, "SK": {"S": "X"}, "name": {"S": "secret"}}


class Thing(Row, table="things", key="id"):
    id: str
    name: str | None


class ThingItem(Item):
    PK: str
    name: str | None


class KeyItem(Item):
    id: str = attribute("PK")
    SK: str


def things(version: str = "1") -> Profile:
    profile = Profile("things", version)

    @profile.route(SK="X")
    def thing(item: ThingItem) -> Thing:
        return Thing(item.PK, item.name)

    return profile


def keyed() -> Profile:
    """A profile that needs nothing but the key."""
    profile = Profile("things")

    @profile.route(PK=prefix("A"), SK="X")
    def thing(item: KeyItem) -> Thing:
        return Thing(item.id, None)

    profile.ignore(SK="Y", because="not asked for")
    return profile


def at(minutes: float, base: str = T0) -> str:
    moment = datetime.fromisoformat(base.replace("Z", "+00:00")) + timedelta(minutes=minutes)
    return moment.isoformat().replace("+00:00", "Z")


class Table:
    """A table with a base and the windows that a test asks for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base_folder = write_export(folder, [[ITEM], [ITEM | {"PK": {"S": "B"}}]])

    @property
    def base(self) -> Export:
        return read_export(str(self.base_folder), Storage())

    def write(self, start: float, end: float, **more: Any) -> Path:
        """Write a window from and to some minutes after the base."""
        made = record(ITEM, at=at(start))
        return write_window(self.folder, [[made], []], at(start), at(end), **more)

    def window(self, start: float, end: float, **more: Any) -> Export:
        return read_export(str(self.write(start, end, **more)), Storage())

    def windows(self, *spans: tuple[float, float]) -> list[Export]:
        return [self.window(*span) for span in spans]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "bucket")


def planned(exports: Sequence[Export], allow_gap: bool = False, profile: Profile | None = None) -> Plan:
    return make_plan(profile or things(), "x:things", exports, allow_gap=allow_gap)


def refused(exports: Sequence[Export], profile: Profile | None = None) -> str:
    with pytest.raises(UsageError) as error:
        planned(exports, profile=profile)
    assert "\n" not in str(error.value)
    return str(error.value)


# -- order -----------------------------------------------------------------------------------------


def test_a_plan_has_the_base_and_then_the_windows_by_their_time(table: Table) -> None:
    late, early = table.window(15, 30, export_id="01600000000000-00000001"), table.window(0, 15)
    plan = planned([late, table.base, early])
    assert [export.id for export in plan.exports] == [EXPORT_ID, early.id, late.id]
    assert [export.window for export in plan.exports] == [None, early.window, late.window]
    assert [export.table_id for export in plan.exports] == ["1", "1", "1"]
    assert [file.export_id for file in plan.files] == [EXPORT_ID] * 2 + [early.id] * 2 + [late.id] * 2
    assert (plan.keys, plan.allow_gap, holes(plan)) == (("PK", "SK"), False, [])
    assert plan.before(plan.files[0]) == []
    assert plan.before(plan.files[2]) == list(plan.files[:2])
    assert plan.before(plan.files[5]) == list(plan.files[:4])


def test_a_plan_with_windows_is_read_as_it_was_written(table: Table, tmp_path: Path) -> None:
    plan = planned([table.base, table.window(0, 15), table.window(16, 30)], allow_gap=True)
    assert write_plan(plan, tmp_path)
    assert read_plan(plan_path(tmp_path, "things")) == plan
    assert not write_plan(plan, tmp_path)


@pytest.mark.parametrize(
    "base_id", ["01700000000000-0a1b2c3d", "users", "window", "windowed", "zebra", "écran"]
)
def test_partition_keys_sort_as_files_are_loaded(tmp_path: Path, base_id: str) -> None:
    """Whatever the ids are: one begins with the time when the export was asked for, and a copy has any name."""
    base = read_export(str(write_export(tmp_path, [[ITEM]] * 3, export_id=base_id)), Storage())
    spans = [(0, 15), (0, 30), (15, 30), (30, 1470), (1470, 1485)]
    ids = ["zz", "01800000000000-1", "0", "01600000000000-2", "a..., b"]
    windows = [
        read_export(str(write_window(tmp_path, [[], []], at(start), at(end), export_id=name)), Storage())
        for (start, end), name in zip(spans, ids, strict=True)
    ]
    random.Random(base_id).shuffle(windows)
    plan = planned([*windows, base])
    assert [export.id for export in plan.exports] == [base_id, *ids]
    keys = [file.partition for file in plan.files]
    leads = [key.split("_")[0] for key in keys]
    assert leads == sorted(leads)
    assert len(set(keys)) == 13
    dg.StaticPartitionsDefinition(keys)  # refuses what Dagster cannot take
    assert all("," not in key for key in keys)


def test_a_partition_key_is_short_and_of_one_file_for_ever(table: Table) -> None:
    window = table.window(0, 15)
    made = planned([table.base, window])
    base, of_window = made.files[0], made.files[2]
    digest = {each.id: md5(each.id.encode()).hexdigest()[:6] for each in (table.base, window)}
    assert base.partition == f"0001_{base.file.name[:8]}_{digest[table.base.id]}"
    assert of_window.partition == f"w20240101T000000_0001_{of_window.file.name[:8]}_{digest[window.id]}"
    # What was planned by an older version keeps its keys; what comes to it gets short ones.
    old = replace(made.files[0], partition=f"{table.base.id}_0001_{base.file.name.removesuffix('.json.gz')}")
    again = make_plan(
        things(), "x:things", [table.base, window], before=replace(made, files=(old, *made.files[1:]))
    )
    assert [file.partition for file in again.files] == [
        old.partition,
        *(file.partition for file in made.files[1:]),
    ]


def test_files_whose_names_begin_alike_have_different_keys(tmp_path: Path) -> None:
    export = read_export(str(write_export(tmp_path, [[], [], []])), Storage())
    twins = replace(
        export,
        files=tuple(replace(file, name=f"file-one-{n}.json.gz") for n, file in enumerate(export.files)),
    )
    known = [
        (export.id, file.name, key)
        for file, key in zip(export.files, PartitionKeys().of(export), strict=True)
    ]
    keys = PartitionKeys(known[:1]).of(twins)
    assert len({*keys, known[0][2]}) == 4


# -- the chain -------------------------------------------------------------------------------------


def test_a_window_may_begin_before_the_base_and_overlap(table: Table) -> None:
    told: list[str] = []
    exports = [table.base, *table.windows((-10, 5), (5, 20), (10, 60), (20, 40), (45, 60), (60, 75))]
    plan = make_plan(things(), "x", exports, tell=told.append)
    assert not holes(plan)
    one, other, short, last = (export.id for export in exports[2:6])
    assert "begins 600 s before the base" in told.pop()
    assert told == [
        f"the windows {former} and {later} both have {at(start)} to {at(end)}; that does no harm"
        for former, later, start, end in ((one, other, 10, 20), (other, short, 20, 40), (other, last, 45, 60))
    ]


def test_what_is_known_of_a_chain_is_told_once(table: Table) -> None:
    told: list[str] = []
    first, following = table.windows((-10, 15), (15, 30))
    plan = make_plan(things(), "x", [table.base, first], tell=told.append)
    assert len(told) == 1
    add_windows(plan, things(), [following], tell=told.append)
    assert len(told) == 1


def test_two_exports_of_the_same_window_are_told(table: Table) -> None:
    one, other = table.window(0, 15), table.window(0, 15, export_id="made-again")
    told: list[str] = []
    plan = make_plan(things(), "x", [table.base, one, other], tell=told.append)
    assert len(plan.windows) == 2
    assert told == [f"the windows {one.id} and made-again both have {T0} to {at(15)}; that does no harm"]


@pytest.mark.parametrize(
    ("spans", "start", "end", "length"),
    [
        ([(1, 16)], 0, 1, "0:01:00"),
        ([(0, 15), (16.5, 31)], 15, 16.5, "0:01:30"),
        ([(0, 60), (5, 20), (61, 90)], 60, 61, "0:01:00"),  # the end of the longest, not of the last
        ([(1500, 1515)], 0, 1500, "1 day, 1:00:00"),
    ],
)
def test_a_hole_is_refused_with_its_times_and_the_way_out(
    table: Table, spans: list[tuple[float, float]], start: float, end: float, length: str
) -> None:
    exports = [table.base, *table.windows(*spans)]
    text = refused(exports)
    for part in (at(start), at(end), length, exports[-1].id, "--allow-gap", "export a window"):
        assert part in text
    told: list[str] = []
    plan = make_plan(things(), "x", exports, allow_gap=True, tell=told.append)
    (hole,) = holes(plan)
    assert plan.allow_gap
    assert (hole.end - hole.start, str(hole.length), hole.before) == (hole.length, length, exports[-1].id)
    assert hole.after == (EXPORT_ID if start == 0 else exports[1].id)
    assert [length in text and "which is allowed" in text for text in told if "hole" in text] == [True]


def test_a_hole_of_less_than_a_second_is_a_hole(table: Table) -> None:
    """A full export is taken at a millisecond, a window begins at a second."""
    change_summary(table.base_folder, exportTime="2024-01-01T00:00:00.999Z")
    assert "0:00:00.001000" in refused([table.base, table.window(1 / 60, 16)])
    assert not holes(planned([table.base, table.window(0, 15)]))


def test_a_chain_without_a_hole_needs_no_allowing(table: Table) -> None:
    assert not planned([table.base, *table.windows((0, 15), (15, 30))], allow_gap=True).allow_gap


@pytest.mark.parametrize("end", [0.0, -5.0])
def test_a_window_that_ends_before_the_base_is_refused(table: Table, end: float) -> None:
    window = table.window(-60, end)
    text = refused([table.base, window, table.window(-60, 15)])
    for part in (window.uri, f"ends at {at(end)}", EXPORT_ID, f"taken at {T0}", "leave it out"):
        assert part in text
    planned([table.base, table.window(-60, 1 / 60)])


def test_windows_without_a_full_export_are_refused(table: Table) -> None:
    text = refused([table.window(0, 15)])
    assert "a window needs a base" in text
    assert f"one taken at {T0} or later and before {at(15)}" in text


def test_windows_with_two_full_exports_are_refused(table: Table, tmp_path: Path) -> None:
    second = write_export(tmp_path / "later", [[ITEM]], export_id="01800000000000-0")
    change_summary(second, exportTime=at(5))
    exports = [read_export(str(second), Storage()), table.base]
    assert len(planned(exports).exports) == 2
    text = refused([*exports, table.window(0, 15)])
    for part in (EXPORT_ID, T0, "01800000000000-0", at(5), "plan one of them"):
        assert part in text


def test_a_window_of_another_table_is_refused(table: Table) -> None:
    other = table.window(0, 15, tableArn="arn:aws:dynamodb:eu-central-1:123456789012:table/others")
    text = refused([table.base, other])
    for part in (other.uri, "table/others", "table/things", EXPORT_ID):
        assert part in text


def test_a_window_of_a_table_that_was_made_anew_is_refused(table: Table) -> None:
    window = table.window(0, 15, tableId="2")
    text = refused([table.base, window])
    for part in (window.uri, "tableId 2", EXPORT_ID, "dropped and made anew", "in full again"):
        assert part in text
    change_summary(table.base_folder, tableId=...)
    planned([table.base, window])  # it is not known, then


def test_windows_with_other_keys_are_refused(table: Table) -> None:
    other = write_window(table.folder, [[record(ITEM, keys=["PK"])]], at(15), at(30))
    text = refused([table.base, table.window(0, 15), read_export(str(other), Storage())])
    assert "the key of its table is PK, but in the window" in text
    assert "it is PK, SK" in text


def test_a_base_without_a_time_cannot_be_followed(table: Table) -> None:
    change_summary(table.base_folder, exportTime="yesterday")
    planned([table.base])
    assert "no valid exportTime ('yesterday')" in refused([table.base, table.window(0, 15)])


def test_a_window_named_twice_is_refused(table: Table) -> None:
    window = table.window(0, 15)
    assert f"the export {window.id} is named twice" in refused([table.base, window, window])


@settings_of_hypothesis(max_examples=200)
@given(
    spans=st.lists(st.tuples(st.integers(-50, 50), st.integers(1, 40)), min_size=1, max_size=8),
    data=st.data(),
)
def test_holes_are_the_minutes_that_no_window_has(spans: list[tuple[int, int]], data: st.DataObject) -> None:
    """Any windows that end behind the base, in any order: a minute up to the last end is in a window or in a hole."""
    begin = datetime(2024, 1, 1, tzinfo=timezone.utc)
    spans = [(max(start, 1 - length), length) for start, length in spans]
    links = [PlannedExport("base", "s3://b/base", "t", T0)]
    for n, (start, length) in enumerate(spans):
        end = begin + timedelta(minutes=start + length)
        window = Window(begin + timedelta(minutes=start), end, "NEW_IMAGE")
        links.append(PlannedExport(f"w{n}", "s3://b/w", "t", "", window=window))
    links = data.draw(st.permutations(links))
    plan = Plan(1, "p", "p", tuple(links), ())
    minutes = [
        minute
        for hole in holes(plan)
        for minute in range(*(int((end - begin).total_seconds() // 60) for end in (hole.start, hole.end)))
    ]
    covered = {minute for start, length in spans for minute in range(start, start + length)}
    assert minutes == sorted(set(range(max(covered) + 1)) - covered)
    check_chain(links, allow_gap=True)
    check_chain(links, known=holes(plan))
    if minutes:
        with pytest.raises(UsageError, match="a hole in the chain"):
            check_chain(links)
    else:
        check_chain(links)


# -- adding ----------------------------------------------------------------------------------------


def test_added_windows_leave_what_is_planned_as_it_is(table: Table) -> None:
    first, second, third = table.windows((0, 15), (15, 30), (30, 45))
    full = planned([table.base])
    one = add_windows(full, things(), [first])
    three = add_windows(one, things(), [third, second])
    assert one.files[:2] == full.files
    assert three.files[:4] == one.files
    assert three.exports[:2] == one.exports
    assert three == planned([table.base, first, second, third])


def test_windows_added_in_any_order_make_one_plan(table: Table) -> None:
    exports = table.windows((0, 30), (10, 40), (0, 15))
    made = []
    for order in itertools.permutations(exports):
        plan = planned([table.base])
        for export in order:
            before = plan
            plan = add_windows(plan, things(), [export], allow_gap=True)
            kept = [file for file in plan.files if file in before.files]
            assert kept == list(before.files), "nothing is renamed, or changes its place among the others"
        made.append(plan)
    assert all(plan == made[0] for plan in made)
    assert not made[0].allow_gap, "the last window has filled the hole"


def test_base_and_options_of_a_plan_stay(table: Table, tmp_path: Path) -> None:
    plan = make_plan(things(), "x:things", [table.base], files_per_run=7)
    for path in (table.base_folder / "data").iterdir():
        path.unlink()  # it is not read again
    made = add_windows(plan, things(), [table.window(0, 15)])
    assert (made.files_per_run, made.reference, made.files[:2]) == (7, "x:things", plan.files)


def test_a_window_that_is_there_changes_nothing(table: Table) -> None:
    window, next_one = table.windows((0, 15), (15, 30))
    plan = planned([table.base, window])
    assert add_windows(plan, things(), [window]) is plan
    assert add_windows(plan, things(), [window, next_one]).exports[:2] == plan.exports
    with pytest.raises(UsageError, match="is named twice"):
        add_windows(plan, things(), [next_one, next_one])


def test_a_full_export_is_not_added(table: Table) -> None:
    with pytest.raises(UsageError, match=r"a full export, and only windows .* plan --profile x:things"):
        add_windows(planned([table.base]), things(), [table.base])


def test_a_hole_that_was_allowed_stays_so_and_another_does_not(table: Table) -> None:
    early, late, later, filling = table.windows((0, 15), (60, 75), (90, 105), (30, 45))
    plan = planned([table.base, early, late], allow_gap=True)
    with pytest.raises(UsageError, match=r"reaches to 2024-01-01T01:15:00Z.*0:15:00"):
        add_windows(plan, things(), [later])
    smaller = add_windows(plan, things(), [filling])
    assert smaller.allow_gap
    assert [str(hole.length) for hole in holes(smaller)] == ["0:15:00", "0:15:00"]
    told: list[str] = []
    assert len(holes(add_windows(plan, things(), [later], allow_gap=True, tell=told.append))) == 2
    assert len(told) == 1  # of the new hole


# -- what a profile can follow -----------------------------------------------------------------------


class Versioned(Row, table="shop.versioned", key="id", version="name"):
    id: str
    name: str


class Merged(Row, table="merged", key="id"):
    id: str
    name: Annotated[str, Merge("greatest({old}, {new})")]


class Landed(Row, table="landed", landing=True):
    id: str


@pytest.mark.parametrize(
    ("row_class", "table_name", "how"),
    [(Versioned, "shop.versioned", "version="), (Merged, "merged", "Merge")],
)
def test_rows_of_several_items_cannot_follow(table: Table, row_class: Any, table_name: str, how: str) -> None:
    profile = Profile("things")

    def route(item: ThingItem) -> Row:
        return row_class(item.PK, item.name)  # type: ignore[no-any-return]

    route.__annotations__["return"] = row_class
    profile.route(SK="X")(route)
    planned([table.base], profile=profile)
    text = refused([table.base, table.window(0, 15)], profile)
    assert f"the table {table_name} uses {how}" in text
    assert "by an aggregate" in text


def new_images(table: Table, made: list[dict[str, Any]] | None = None) -> Export:
    records = [without_old(record(old=ITEM))] if made is None else made
    return read_export(
        str(write_window(table.folder, [records], T0, at(15), outputView="NEW_IMAGE")), Storage()
    )


def test_a_profile_that_needs_only_the_key_follows_new_images(table: Table) -> None:
    assert planned([table.base, new_images(table)], profile=keyed()).keys == ("PK", "SK")


def conditioned(**conditions: Any) -> Profile:
    profile = keyed()
    profile.ignore(**conditions, because="too old")
    return profile


def reading(item_class: type[Item]) -> Profile:
    profile = Profile("things")

    def land(item: Item) -> Landed:
        return Landed("")

    land.__annotations__["item"] = item_class
    profile.route(SK="X")(land)
    return profile


class WholeThing(Item):
    PK: str
    all: WholeItem


class RestOfThing(Item):
    PK: str
    rest: RestOfItem


class DefaultedThing(Item):
    PK: str
    name: str = attribute("label", default="")


@pytest.mark.parametrize(
    ("profile", "reason"),
    [
        (things(), "the route thing, of the table things, reads name"),
        (conditioned(kind="old"), "ignore(because='too old') has a condition on kind"),
        (reading(WholeThing), "the route land, of the table landing.landed, reads all attributes"),
        (reading(RestOfThing), "reads all attributes"),
        (reading(DefaultedThing), "reads label"),
    ],
)
def test_a_profile_that_needs_more_than_the_key_cannot_follow_new_images(
    table: Table, profile: Profile, reason: str
) -> None:
    window = new_images(table)
    text = refused([table.base, window], profile)
    for part in (
        window.uri,
        "view is NEW_IMAGE",
        "(PK, SK)",
        reason,
        "export this window again",
        "NEW_AND_OLD",
    ):
        assert part in text
    plan = planned([table.base], profile=profile)
    with pytest.raises(UsageError, match="view is NEW_IMAGE"):
        add_windows(plan, profile, [window])


def test_an_empty_window_of_new_images_is_followed_by_any_profile(table: Table) -> None:
    planned([table.base, new_images(table, [])])


def test_new_images_are_judged_by_the_key_that_another_window_names(table: Table) -> None:
    broken: Any = [b"{}"]
    window = new_images(table, broken)
    assert "(unknown)" in refused([table.base, window], keyed())
    planned([table.base, window, table.window(15, 30)], profile=keyed())


def test_both_views_are_known() -> None:
    assert get_args(View) == ("NEW_AND_OLD_IMAGES", "NEW_IMAGE")


# -- the command -----------------------------------------------------------------------------------

PROFILE = """
from migration_pipeline import Item, Profile, Row
profile = Profile("{name}")
class It(Item):
    PK: str
class Out(Row, table="out", key="id"):
    id: str
@profile.route(SK="X")
def it(item: It) -> Out:
    return Out(item.PK)
"""


@pytest.fixture
def profile_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "followed_" + str(abs(hash(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / f"{name}.py").write_text(PROFILE.format(name=name))
    return name


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def stored(name: str) -> Plan:
    return read_plan(plan_path(settings.plans_dir(), name))


def test_plan_takes_a_full_export_and_windows(table: Table, profile_name: str) -> None:
    windows = [table.write(0, 15), table.write(15, 30)]
    status, output = run("plan", "--profile", f"{profile_name}:profile", *windows, table.base_folder)
    first = output.splitlines()[0]
    assert status == 0, output
    assert first.startswith(
        f"planned 2 files, 2 items of {T0}, and 2 windows to {at(30)}: 4 files, 2 records; "
    )
    assert first.endswith(f"{profile_name}.json")
    assert len(stored(profile_name).windows) == 2


@pytest.mark.parametrize(
    "how",
    [
        ("plan", "{name}", "--add", "{one}", "--add", "{two}"),
        ("plan", "{name}", "--add", "{one}", "{two}"),
        ("plan", "{name}:profile", "--add", "{two}", "{one}"),
        ("plan", "--profile", "{name}:profile", "--add", "{one}", "{two}"),
        ("plan", "--add", "{one}", "{name}", "{two}"),
    ],
)
def test_plan_adds_windows(table: Table, profile_name: str, how: tuple[str, ...]) -> None:
    one, two = table.write(0, 15), table.write(15, 30)
    assert run("plan", "--profile", f"{profile_name}:profile", table.base_folder)[0] == 0
    before = stored(profile_name)
    status, output = run(*(part.format(name=profile_name, one=one, two=two) for part in how))
    assert (status, output.splitlines()[0][:7]) == (0, "planned"), output
    assert f"backfill {profile_name}" in output
    plan = stored(profile_name)
    assert [export.uri for export in plan.windows] == [str(one), str(two)]
    assert plan.files[:2] == before.files


def test_plan_tells_of_windows_that_are_there(table: Table, profile_name: str) -> None:
    one, two = table.write(0, 15), table.write(15, 30)
    run("plan", "--profile", f"{profile_name}:profile", table.base_folder, one)
    status, output = run("plan", profile_name, "--add", one)
    assert (status, output.splitlines()[0]) == (0, f"in the plan already: {one.name}")
    assert output.splitlines()[1].startswith("unchanged: 2 files")
    status, output = run("plan", profile_name, "--add", one, two)
    assert f"in the plan already: {one.name}" in output
    assert len(stored(profile_name).windows) == 2


def test_a_plan_that_drops_windows_tells_so(table: Table, profile_name: str) -> None:
    one, two = table.write(0, 15), table.write(15, 30)
    plan = ("plan", "--profile", f"{profile_name}:profile", table.base_folder)
    assert "warning" not in run(*plan, one, two)[1]
    assert "warning" not in run(*plan, two, one)[1]
    status, output = run(*plan, one)
    assert (status, f"1 window of the plan before is not in this one, {two} first" in output) == (0, True)


def test_plan_refuses_a_hole_and_takes_it_when_told(table: Table, profile_name: str) -> None:
    one, two = table.write(0, 15), table.write(20, 35)
    run("plan", "--profile", f"{profile_name}:profile", table.base_folder)
    status, output = run("plan", profile_name, "--add", one, two)
    assert (status, len(output.splitlines())) == (2, 1)
    assert "a hole in the chain" in output
    assert not stored(profile_name).windows
    status, output = run("plan", profile_name, "--add", one, two, "--allow-gap")
    assert status == 0
    assert "a hole in the chain, which is allowed" in output
    assert stored(profile_name).allow_gap


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --profile and its exports"),
        (("somewhere",), "give --profile and its exports"),
        (("--profile", "shop"), "give --profile and its exports"),
        (("--add", "somewhere"), "--add needs the profile"),
        (("shop", "--add", "somewhere", "--files-per-run", "2"), "cannot be given with --add"),
        (("shop", "--add", "somewhere", "--option", "a=1"), "cannot be given with --add"),
        (("shop", "--add", "somewhere"), "no plan; make one with"),
    ],
)
def test_a_wrong_call_says_what_is_missing(arguments: tuple[str, ...], message: str) -> None:
    status, output = run("plan", *arguments)
    assert (status, message in output) == (2, True), output


# -- inspect and the first look ----------------------------------------------------------------------


def changes() -> list[dict[str, Any]]:
    """An update, an insert, a delete; of each item, the state that counts has a `kind`."""
    return [
        record({**ITEM, "kind": {"S": "updated"}}, {**ITEM, "kind": {"S": "stale"}}),
        record({**ITEM, "PK": {"S": "B"}, "kind": {"S": "inserted"}}),
        record(None, {**ITEM, "PK": {"S": "C"}, "kind": {"S": "deleted"}}),
    ]


def test_inspect_counts_the_newest_state_of_each_item(table: Table) -> None:
    folder = write_window(table.folder, [changes(), [b"{}"]], T0, at(15))
    for more in ((), ("--all",)):
        status, output = run("inspect", folder, "--json", *more)
        found = json.loads(output)
        assert status == 0
        assert found["export"]["window"] == {
            "from": T0, "to": at(15), "view": "NEW_AND_OLD_IMAGES", "keys": ["PK", "SK"],
        }  # fmt: skip
        assert found["key"]["attributes"] == ["PK", "SK"]
        assert sum(kind["items"] for kind in found["types"]) == 3
        attributes = {one["name"]: one for kind in found["types"] for one in kind["attributes"]}
        assert sorted(attributes) == ["PK", "SK", "kind", "name"]
        assert "stale" not in output
        assert [(bad["items"], bad["reason"]) for bad in found["bad"]] == [
            (1, "no record of an incremental export: Object missing required field `Metadata`")
        ]
    status, output = run("inspect", folder)
    assert f"A window: the items written from {T0} to {at(15)}" in " ".join(output.split())


def test_the_key_of_a_window_is_known(table: Table) -> None:
    """Other attributes are named like keys and tell all items apart, too."""
    items = [{"user": {"S": f"u{n}"}, "at": {"N": str(n)}, "id": {"S": str(n)}} for n in range(9)]
    records = [record(item, keys=("user", "at")) for item in items]
    found = json.loads(run("inspect", write_window(table.folder, [records], T0, at(15)), "--json")[1])
    assert sorted(found["key"]["attributes"]) == ["at", "user"]
    assert "named by the window's records" in found["key"]["guessed_because"]


def test_a_record_without_its_key_s_attributes_in_the_image_is_still_inspected(table: Table) -> None:
    records = changes()
    del records[0]["NewImage"]["SK"]
    status, output = run("inspect", write_window(table.folder, [records], T0, at(15)), "--json")
    assert (status, sum(kind["items"] for kind in json.loads(output)["types"])) == (0, 3)


def test_a_record_s_state_is_its_new_image_or_what_is_left() -> None:
    """Of an image that is there as null, nothing is left."""
    old, new = {"PK": {"S": "A"}, "x": {"S": '{"Item"'}}, {"PK": {"S": "A"}, "x": {"S": "é"}}
    for made, state in [
        (record(new, old, keys=["PK"]), new),
        (record(new, keys=["PK"]), new),
        (record(None, old, keys=["PK"]), old),
        (record(None, old, keys=["PK"]) | {"NewImage": None}, old),
        (without_old(record(None, old, keys=["PK"])), {"PK": {"S": "A"}}),
        (record(None, old, keys=["PK"]) | {"NewImage": None, "OldImage": None}, {"PK": {"S": "A"}}),
    ]:
        assert json.loads(item_line(line_of(made))) == {"Item": state}
    for bad in (b"", b"{", b"[]", b"null", b'{"Item":{}}', b"\xff", line_of(record(new, keys=["PK"]))[:-9]):
        with pytest.raises(BadItem):
            item_line(bad)


def test_inspect_takes_the_key_for_a_deleted_item_of_new_images(table: Table) -> None:
    made = [without_old(each) for each in changes()]
    made.append({**without_old(record(None, {**ITEM, "PK": {"S": "D"}})), "NewImage": None})
    folder = write_window(table.folder, [made], T0, at(15), outputView="NEW_IMAGE")
    found = json.loads(run("inspect", folder, "--json")[1])
    (kind,) = found["types"]
    presence = {one["name"]: one["presence"] for one in kind["attributes"]}
    assert (kind["items"], presence) == (4, {"PK": 1, "SK": 1, "kind": 0.5, "name": 0.5})
    assert not found["bad"]


def test_scaffold_wants_the_full_export(table: Table, tmp_path: Path) -> None:
    status, output = run("scaffold", table.write(0, 15), "-o", tmp_path / "made.py")
    assert status == 2
    assert "make the profile from the full export" in output
    assert not (tmp_path / "made.py").exists()


def test_the_first_look_reads_windows(table: Table, profile_name: str) -> None:
    run("plan", "--profile", f"{profile_name}:profile", table.base_folder)
    fits = write_window(table.folder, [changes()], T0, at(15))
    assert "warning" not in run("plan", profile_name, "--add", fits)[1]
    other = write_window(table.folder, [[record({**ITEM, "SK": {"S": "other"}})]], at(15), at(30))
    output = run("plan", profile_name, "--add", other)[1]
    assert "no route of the profile takes any of the first 1 item of" in output


def test_a_hole_that_was_allowed_fails_a_check_for_good(table: Table) -> None:
    follows, far = table.windows((0, 15), (30, 45))
    for exports, passed in (([table.base, follows], True), ([table.base, follows, far], False)):
        plan = make_plan(things(), "x", exports, allow_gap=True)
        (check,) = [
            each for each in migration_checks(plan, things()) if "windows" in next(iter(each.check_keys)).name
        ]
        result: Any = check(dg.build_asset_check_context(resources={"database": Database(url="")}))
        assert result.passed is passed
        assert ("no window covers" in result.description) is not passed
    assert not [
        each
        for each in migration_checks(make_plan(things(), "x", [table.base]), things())
        if "window" in str(each.check_keys)
    ]
