"""What is called complete: items that are left over, rows by the plan's own receipts, and verifications that still hold."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from migration_pipeline.migration.plan import FORMAT, Plan, PlannedExport, PlannedFile
from migration_pipeline.migration.verdicts import (
    Left,
    exports_before,
    extra_text,
    kept_as_counted,
    left_of,
    not_verified,
    receipts_of,
    rows_of,
)
from migration_pipeline.profile.row import table_of
from migration_pipeline.profiles.shop import Event, Order, shop
from migration_pipeline.sources.export import ExportFile, Window
from migration_pipeline.targets.records import AggregateReceipt, Receipt, Verification, md5_of_files
from migration_pipeline.targets.states import TableState
from migration_pipeline_tests.unit.test_report import BEGIN, file_of

PLAN = Plan(
    FORMAT, "shop", "shop", (PlannedExport("e", "s3://b/e", "arn", "2026-01-01T00:00:00Z"),),
    tuple(PlannedFile(f"e_{n}", "e", ExportFile(f"0000{n}.json.gz", "s3://b", 100, "md5", 1)) for n in (1, 2)),
)  # fmt: skip

STATE = TableState(oid=7, columns="c", rows=200, writers="w")

FOUND = Verification(
    profile="shop", table_name="orders", files=2, compared=200, same=200, missing=0, different=0, newer=0, extra=0,
    columns={}, run_id="r", began_at=BEGIN + timedelta(days=1), verified_at=BEGIN + timedelta(days=2), profile_version="1",
    files_md5=md5_of_files([("e", "00001.json.gz"), ("e", "00002.json.gz")]), state=STATE,
)  # fmt: skip


def receipt(number: int, **changes: Any) -> Receipt:
    made = file_of(number).receipt
    assert made is not None
    return msgspec.structs.replace(made, rows={"orders": 100}, **changes)


def verdict(found: Verification | None = FOUND, state: TableState = STATE, **changes: Any) -> str:
    return not_verified(PLAN, shop, table_of(Order), found, state, [receipt(1), receipt(2, **changes)])


def test_a_verification_holds_while_nothing_is_newer() -> None:
    assert verdict() == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"oid": 8}, "the table was created again since"),
        ({"oid": 0}, "it does not exist"),
        ({"columns": "d"}, "its columns were changed since"),
        ({"rows": 201}, "its rows were changed since"),
        ({"writers": "v"}, "its rows were changed since"),
    ],
)
def test_a_verification_of_another_state_of_the_table_proves_nothing(
    changes: dict[str, Any], reason: str
) -> None:
    assert verdict(state=msgspec.structs.replace(STATE, **changes)) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"files_md5": md5_of_files([("e", "00001.json.gz")])},
            "compared with other files than the plan has",
        ),
        ({"profile_version": "0"}, "another version of the profile"),
        ({"state": None}, "they have not been compared yet"),
        ({"began_at": None}, "they have not been compared yet"),
    ],
)
def test_a_verification_of_something_else_proves_nothing(changes: dict[str, Any], reason: str) -> None:
    assert reason in verdict(msgspec.structs.replace(FOUND, **changes))
    assert verdict(None) == "they have not been compared yet"


def test_what_came_after_its_beginning_counts_though_it_ended_later() -> None:
    during = BEGIN + timedelta(days=1, hours=1)
    assert verdict(loaded_at=during) == "1 file was loaded or replayed since"
    made = AggregateReceipt(
        table_name="orders", profile_version="1", sql_md5="", files=2, files_md5="", groups=1, rows=1, new=1, changed=0,
        unchanged=0, deleted=0, parts=1, retries=0, seconds=1.0, run_id="r", made_at=during,
    )  # fmt: skip
    found = not_verified(PLAN, shop, table_of(Order), FOUND, STATE, [receipt(1)], made)
    assert found == "they were made again since"


def test_landed_rows_may_be_dropped_once_they_were_compared() -> None:
    dropped = msgspec.structs.replace(STATE, rows=0, writers="")
    landing = table_of(Event)
    assert not_verified(PLAN, shop, landing, FOUND, dropped, [receipt(1)]) == ""
    assert not_verified(PLAN, shop, landing, None, dropped, [receipt(1)]) != ""
    assert rows_of(landing, [receipt(1, collisions={})], 0).passed


def test_only_receipts_of_the_plan_s_files_are_counted() -> None:
    old = receipt(3, export_id="rehearsal", collisions={"orders": 5})
    receipts = {(each.export_id, each.file): each for each in (old, receipt(1), receipt(2))}
    rows = rows_of(table_of(Order), receipts_of(PLAN, receipts), 200)
    assert (rows.written, rows.within_batches, rows.passed) == (200, 0, True)
    assert exports_before(PLAN, receipts) == ["rehearsal"]
    assert (
        "3 rows in the tables come from no item of this plan; exports loaded before: rehearsal; "
        in extra_text(3, ["rehearsal"], "shop")
    )


def test_left_items_are_named_with_their_number_and_the_way_out() -> None:
    files = [receipt(n, quarantined=2, unrouted={f"SK=A{n}#…": n, "SK=…": 5}) for n in range(1, 13)]
    left = left_of(shop, files)
    unrouted, quarantined = left.lines("my:profile")
    assert unrouted.startswith("not complete: no rule takes 138 items, with keys SK=… (60); SK=A12#… (12); ")
    assert "SK=A1#…" not in unrouted
    assert "; and 3 more patterns; " in unrouted
    assert unrouted.endswith("migration-pipeline backfill my:profile --all --wait")
    assert quarantined.startswith("not complete: 24 items are in the quarantine; ")
    assert quarantined.endswith("migration-pipeline replay my:profile")
    dry = "\n".join(left.lines())
    assert "24 items would go to the quarantine" in dry
    assert "migration-pipeline" not in dry


def test_the_profile_says_how_many_may_stay_in_the_quarantine() -> None:
    files = [receipt(1, quarantined=3)]
    assert left_of(replace(shop, may_quarantine=2), files).faults
    allowed = left_of(replace(shop, may_quarantine=3), files)
    assert not allowed.faults
    assert allowed.lines("shop") == ["3 items are in the quarantine, and the profile allows 3"]
    assert Left(quarantined=0, unrouted={}, may_quarantine=0).lines("shop") == []


def windows_of(*spans: tuple[int, int]) -> Plan:
    """A plan with windows, in hours after `BEGIN`."""
    exports = [
        PlannedExport(
            f"w{start}", "s3://b/w", "arn", "", window=Window(BEGIN + timedelta(hours=start), BEGIN + timedelta(hours=end), "NEW_IMAGE")
        )
        for start, end in spans
    ]  # fmt: skip
    return msgspec.structs.replace(PLAN, exports=(*PLAN.exports, *exports))


@pytest.mark.parametrize(
    ("plan", "export", "fewer"),
    [
        (PLAN, "e", False),
        (windows_of((0, 1), (1, 2)), "e", True),
        (windows_of((0, 1), (1, 2)), "w0", True),
        (windows_of((0, 1), (1, 2)), "w1", False),  # nothing comes after it
        (windows_of((0, 2), (1, 2)), "w1", True),  # both may have the item
    ],
)
def test_windows_end_the_quarantine_of_what_they_follow(plan: Plan, export: str, fewer: bool) -> None:
    counted = receipt(1, quarantined=3, export_id=export)
    assert [kept_as_counted(plan, counted, kept) for kept in (2, 3, 4)] == [fewer, True, False]


def test_with_windows_the_number_of_rows_says_nothing() -> None:
    written = [receipt(1), receipt(2, deleted_rows={"orders": 7})]
    rows = rows_of(table_of(Order), written, 150, windows=True)
    assert rows.passed
    assert "deleted 7, and verify compares" in rows.text
    assert not rows_of(table_of(Order), written, 150).passed
