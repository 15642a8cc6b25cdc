"""The checklist of a cut-over: each fact that speaks against it turns one line to no, and says the way out."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest

from migration_pipeline.migration.cutover import (
    Check,
    Facts,
    FromDagster,
    checklist,
    not_proven,
    ready,
)
from migration_pipeline.migration.plan import FORMAT, Plan, PlannedExport, PlannedFile
from migration_pipeline.migration.reach import base_of, loaded_until, planned_until
from migration_pipeline.migration.verdicts import Made
from migration_pipeline.operations.report.page import page
from migration_pipeline.operations.report.windows import links
from migration_pipeline.profiles.shop import shop
from migration_pipeline.sources.export import ExportFile, Window
from migration_pipeline.targets.records import Receipt, Verification
from migration_pipeline.targets.sequences import SequenceState
from migration_pipeline_tests.unit.test_report import BEGIN, account_of, file_of

ARN = "arn:aws:dynamodb:eu-central-1:123456789012:table/shop"
HOUR = timedelta(hours=1)


def plan_of(*spans: tuple[float, float], allow_gap: bool = False) -> Plan:
    """A base of `BEGIN` and windows after it, in hours, each of one file with 100 records."""
    windows = [
        PlannedExport(
            f"w{n}",
            f"s3://b/w{n}",
            ARN,
            "",
            "",
            Window(BEGIN + HOUR * start, BEGIN + HOUR * end, "NEW_IMAGE"),
        )
        for n, (start, end) in enumerate(spans, 1)
    ]
    exports = (PlannedExport("e", "s3://b/e", ARN, "2026-01-01T00:00:00.622Z"), *windows)
    files = tuple(
        PlannedFile(f"{n}_{each.id}", each.id, ExportFile(f"{each.id}.json.gz", "s3://b", 100, "md5", 1_000))
        for n, each in enumerate(exports)
    )
    return Plan(FORMAT, "shop", "shop", exports, files, allow_gap=allow_gap)


def receipts_for(plan: Plan, **changes: Any) -> dict[tuple[str, str], Receipt]:
    made = file_of(0).receipt
    assert made
    return {
        (p.export_id, p.file.name): msgspec.structs.replace(
            made, export_id=p.export_id, file=p.file.name, **changes
        )
        for p in plan.files
    }


def facts(plan: Plan, **changes: Any) -> Facts:
    """Facts that speak for a cut-over, unless `changes` say otherwise."""
    given: dict[str, Any] = {
        "dagster": FromDagster(
            {file.partition: "materialized" for file in plan.files}, {"finishing": "materialized"}
        ),
        "receipts": receipts_for(plan),
        "kept": {},
        "made": {"customer_activity": Made(receipt=None)},
        "unproven": {"orders": ""},
        "sequences": [SequenceState(name="s", column="orders.n", last=7, greatest=7)],
        "now": BEGIN + HOUR * 3,
    }
    return Facts(plan=plan, profile=shop, **(given | changes))


CHAIN = plan_of((0, 1), (1, 2.5))
WHOLE = receipts_for(CHAIN)


def of(key: str, **changes: Any) -> dict[tuple[str, str], Receipt]:
    """The receipts, that of one file changed."""
    return {k: msgspec.structs.replace(r, **changes) if k[0] == key else r for k, r in WHOLE.items()}


def failed(found: Facts) -> list[Check]:
    return [check for check in checklist(found) if not check.passed]


def test_all_that_holds_is_a_yes() -> None:
    checks = checklist(facts(CHAIN))
    assert ready(checks)
    assert not any(check.way_out for check in checks)
    told = "2 windows from 2026-01-01 00:00:00 UTC to 2026-01-01 02:30:00 UTC; the first begins 0.622 s before the base"
    assert checks[0].text.startswith(told)
    assert (
        checks[-1].text
        == "loaded up to 2026-01-01 02:30:00 UTC, lag 30 min 00 s: what was written since is not in PostgreSQL"
    )


STATES = {file.partition: "materialized" for file in CHAIN.files}
DONE = {"finishing": "materialized"}


@pytest.mark.parametrize(
    ("changes", "name", "text", "way_out"),
    [
        ({"receipts": of("w1", md5="other")}, "every file is loaded", "2 of 3 files .*; not: w1.json.gz", "backfill shop --wait"),
        ({"receipts": of("w1", loaded=99)}, "every file is loaded", "2 of 3 files .*; not: w1.json.gz", "backfill shop --wait"),
        ({"receipts": of("w1", items=99, loaded=99)}, "every file is loaded", "not: w1.json.gz", "backfill shop --wait"),
        ({"receipts": {k: r for k, r in WHOLE.items() if k[0] != "w2"}}, "every file is loaded", "not: w2.json.gz", "backfill"),
        ({"dagster": FromDagster(STATES | {"1_w1": "failed"}, DONE)}, "Dagster shows every file as materialized",
         "2 of 3 files are materialized; not: w1.json.gz", "reconcile shop"),
        ({"dagster": FromDagster(STATES, {"finishing": "missing"})}, "finishing is newer than the last window",
         "finishing is missing", "backfill shop --wait"),
        ({"kept": {("w1", "w1.json.gz"): 2}}, "nothing is in the quarantine", "2 items are in the quarantine", "replay shop"),
        ({"receipts": of("w2", loaded=98, skipped={"unrouted": 2}, unrouted={"SK=CART": 2})}, "a rule took every item",
         r"no rule takes 2 items, with keys SK=CART \(2\)", "profile.ignore"),
        ({"made": {"a": Made(receipt=None, fault="2 files were loaded after it was made")}}, "aggregates are newer than the last window",
         "a: 2 files were loaded after", "backfill shop --wait"),
        ({"made": {"a": Made(receipt=None, waits=2)}}, "aggregates are newer than the last window", "a: waits for 2 files", "backfill"),
        ({"unproven": {"orders": "", "things": "1 file was loaded or replayed since"}}, "verify has passed since",
         "^things: 1 file was loaded or replayed since$", "verify shop"),
        ({"sequences": [SequenceState(name="s", column="t.n", last=7, greatest=9)]}, "sequences are past the greatest value",
         "^s is 2 behind t.n$", "materialize the asset [shop, finishing] again"),
        ({"sequences": [SequenceState(name="s", column="t.n", last=None, greatest=1)]}, "sequences are past the greatest value",
         "s has given no value, and t.n has some", "finishing"),
        ({"sequences": [SequenceState(name="s", column="t.n", last=None, greatest=None, there=False)]},
         "sequences are past the greatest value", "s does not exist", "finishing"),
        ({"max_lag": timedelta(minutes=29)}, "what is loaded is new enough", "lag 30 min 00 s.*allows 29 min", "follow shop"),
    ],
)  # fmt: skip
def test_each_fault_is_one_no(changes: dict[str, Any], name: str, text: str, way_out: str) -> None:
    (check,) = failed(facts(CHAIN, **changes))
    assert check.name == name
    assert re.search(text, check.text), check.text
    assert way_out in check.way_out


@pytest.mark.parametrize("given", [{"max_lag": timedelta(minutes=30)}, {"now": BEGIN}])
def test_a_lag_within_what_is_allowed_is_a_yes(given: dict[str, Any]) -> None:
    assert ready(checklist(facts(CHAIN, **given)))


def test_a_lag_counts_from_the_last_window_that_is_loaded_with_all_before_it() -> None:
    found = facts(CHAIN, receipts={k: r for k, r in WHOLE.items() if k[0] != "w1"})
    assert found.lag == HOUR * 3 - timedelta(milliseconds=622)
    assert facts(CHAIN, receipts={}).lag is None
    assert "the base is not loaded" in failed(facts(CHAIN, receipts={}))[-1].text


def test_a_hole_is_a_no_for_good() -> None:
    holed = plan_of((0, 1), (1.5, 2.5), allow_gap=True)
    (check,) = failed(facts(holed))
    assert (
        check.text
        == "no window covers 2026-01-01 01:00:00 UTC to 2026-01-01 01:30:00 UTC (30 min 00 s), between w1 and w2"
    )
    assert f"migration-pipeline export {ARN} s3://" in check.way_out
    # A window that was added later covers it: nobody knows what was loaded in between.
    mended = plan_of((0, 1), (0, 1.5), (1.5, 2.5), allow_gap=True)
    assert [each.name for each in failed(facts(mended))] == ["the chain has no hole"]
    assert not failed(facts(plan_of((0, 1), (0, 1.5), (1.5, 2.5))))


def test_without_dagster_nobody_knows() -> None:
    found = failed(facts(CHAIN, dagster=FromDagster({}, {}, "no Dagster at http://x")))
    assert [check.text for check in found] == ["not known: no Dagster at http://x"] * 2


def test_a_verification_that_found_differences_proves_nothing() -> None:
    found = Verification(
        profile="shop", table_name="t", files=1, compared=9, same=8, missing=0, different=1, newer=0, extra=0, columns={}, run_id="r"
    )  # fmt: skip
    assert not_proven("", found) == "1 row differs from the export"
    assert not_proven("", msgspec.structs.replace(found, different=0)) == ""
    assert (
        not_proven("", msgspec.structs.replace(found, different=0, extra=1))
        == "1 row differs from the export"
    )
    assert not_proven("its rows were changed since", found) == "its rows were changed since"
    assert not_proven("", None) == "they have not been compared yet"


def test_how_far_a_plan_reaches() -> None:
    assert planned_until(plan_of()) == BEGIN  # whole seconds
    assert planned_until(CHAIN) == BEGIN + HOUR * 2.5
    assert planned_until(plan_of((0, 3), (1, 2))) == BEGIN + HOUR * 3
    assert base_of(CHAIN).id == "e"

    def until(*loaded: str) -> datetime | None:
        return loaded_until(CHAIN, lambda planned: planned.export_id in loaded)

    assert until("w1", "w2") is None
    assert until("e", "w2") == BEGIN + timedelta(milliseconds=622)
    assert until("e", "w1") == BEGIN + HOUR
    assert until("e", "w1", "w2") == BEGIN + HOUR * 2.5


def test_the_report_has_the_chain_and_the_checklist_only_with_windows() -> None:
    holed = plan_of((0, 1), (1.5, 2.5), allow_gap=True)
    account = account_of(file_of(0))
    assert "Cut-over" not in page(account)
    account.plan, account.profile = holed, replace(shop)
    receipts = {k: r for k, r in receipts_for(holed).items() if k[0] != "w2"}
    for key in [key for key in receipts if key[0] == "w1"]:
        receipts[key] = msgspec.structs.replace(
            receipts[key], loaded=60, superseded=40, deleted_rows={"orders": 7, "customers": 5}
        )
    account.chain = links(holed, receipts)
    account.cutover = checklist(facts(holed))
    text = page(account)
    assert "No window covers 2026-01-01 01:00:00 to 2026-01-01 01:30:00" in " ".join(text.split())
    assert "between <code>w1</code> and <code>w2</code>" in text
    assert [(link.loaded_files, link.files, link.records, link.loaded) for link in account.chain] == [
        (1, 1, 100, 100), (1, 1, 100, 60), (0, 1, 100, 0)
    ]  # fmt: skip
    assert [(link.superseded, link.deleted) for link in account.chain] == [(0, 0), (40, 12), (0, 0)]
    assert '<td class="n">60</td><td class="n">40</td>' in text
    assert '<td class="n">12</td></tr>' in text
    assert text.count("✗ no") == 1
