"""The report: what it judges, what its plots add up to, and that nothing in it can be more than text."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migration_pipeline.migration.plan import FORMAT, Plan, PlannedExport, PlannedFile
from migration_pipeline.migration.verdicts import Made, Rows
from migration_pipeline.operations.backfills import Backfill
from migration_pipeline.operations.report.account import (
    Account,
    FileAccount,
    TableAccount,
    _verdicts,
)
from migration_pipeline.operations.report.page import FILES_SHOWN, page
from migration_pipeline.operations.report.plots import BARS, drawable, outcome_plot, speed_plot, throughput
from migration_pipeline.operations.report.run_settings import run_settings
from migration_pipeline.profiles.shop import shop
from migration_pipeline.sources.export import ExportFile
from migration_pipeline.targets.receipts import QuarantineReason
from migration_pipeline.targets.records import Receipt, Verification

HOSTILE = """<script>alert("1")</script><img src=x onerror='alert(2)'>&amp;]]>"""
BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)


def file_of(number: int, *, items: int = 100, text: str = "", **changes: Any) -> FileAccount:
    """A file that is loaded whole, unless `changes` of its receipt say otherwise."""
    name = f"{number:05}{text}.json.gz"
    planned = PlannedFile(f"e_{number}", "e", ExportFile(name, f"s3://b/{name}", items, "md5", 1_000))
    receipt = Receipt(
        export_id="e", file=name, profile_version="1", md5="md5", bytes=1_000, items=items, loaded=items, skipped={},
        unrouted={}, quarantined=0, rows={"customers": items}, collisions={}, changed=0, nul=0, retries=0,
        seconds=5.0, run_id="r", loaded_at=BEGIN + timedelta(seconds=10 * number),
    )  # fmt: skip
    receipt = msgspec.structs.replace(receipt, **changes)
    return FileAccount(planned=planned, receipt=receipt, state="materialized", error="", attempts=1)


def missing(number: int, error: str = "") -> FileAccount:
    whole = file_of(number)
    return FileAccount(planned=whole.planned, receipt=None, state="failed", error=error, attempts=2)


def account_of(
    *files: FileAccount,
    tables: tuple[TableAccount, ...] = (),
    text: str = "",
    may_quarantine: int = 0,
    **more: Any,
) -> Account:
    planned = tuple(file.planned for file in files)
    export = PlannedExport("e", f"s3://b/e{text}", f"arn:table/x{text}", "2026-01-01T00:00:00Z")
    given: dict[str, Any] = {
        "bad": [], "backfills": [], "settings": [("a", "b")], "versions": [("c", "d")], "without_dagster": ""
    }  # fmt: skip
    account = Account(
        plan=Plan(FORMAT, "shop", "shop", (export,), planned), profile=replace(shop, may_quarantine=may_quarantine), made=BEGIN, files=list(files),
        tables=list(tables), verdicts=[], **(given | more),
    )  # fmt: skip
    kept = {
        ("e", f.receipt.file): f.receipt.quarantined for f in files if f.receipt and f.receipt.quarantined
    }
    account.verdicts = list(_verdicts(account, kept))
    return account


def outcomes(account: Account) -> dict[str, str]:
    return {verdict.name: verdict.outcome for verdict in account.verdicts}


def verification(**changes: Any) -> Verification:
    """A table that is as the export has it, compared after all files of these tests."""
    whole = Verification(
        profile="shop", table_name="t", files=2, compared=100, same=100, missing=0, different=0, newer=0, extra=0,
        columns={}, run_id="r", verified_at=BEGIN + timedelta(days=1),
    )  # fmt: skip
    return msgspec.structs.replace(whole, **changes)


def table(
    written: int,
    there: int,
    collisions: int = 0,
    decides: str = "",
    verified: Verification | None = verification(),  # noqa: B008  # frozen
    **more: Any,
) -> TableAccount:
    rows = Rows(written=written, within_batches=collisions, there=there, decides=decides)
    return TableAccount(name="t", rows=rows, verification=verified, **more)


# -- the judgement -----------------------------------------------------------------------------------


def test_all_is_well() -> None:
    account = account_of(file_of(1), file_of(2, items=0), tables=(table(100, 100),))
    assert account.complete
    assert set(outcomes(account).values()) == {"passed"}


@pytest.mark.parametrize(
    ("name", "files", "tables"),
    [
        ("every file is loaded", [missing(1)], []),
        ("the bytes match the manifest", [file_of(1, md5="other")], []),
        ("items are conserved", [file_of(1, loaded=99)], []),
        ("items are conserved", [file_of(1, loaded=90, skipped={"a": 9})], []),
        ("t has as many rows as were written", [file_of(1)], [table(100, 99)]),
        ("t has as many rows as were written", [file_of(1)], [table(100, 100, collisions=1)]),
    ],
)
def test_what_speaks_against_it(name: str, files: list[FileAccount], tables: list[TableAccount]) -> None:
    account = account_of(file_of(0), *files, tables=tuple(tables))
    assert not account.complete
    assert [name for name, outcome in outcomes(account).items() if outcome == "failed"] == [name]
    if not tables:
        (verdict,) = (verdict for verdict in account.verdicts if verdict.outcome == "failed")
        assert f"; not: {files[0].planned.file.name}" in verdict.text
    html = page(account)
    assert "Not complete." in html
    assert "Complete." not in html


@pytest.mark.parametrize(
    ("found", "outcome", "text"),
    [
        (table(9, 3, decides="rows with one key are merged"), "passed", "rows with one key are merged"),
        (table(9, 8), "failed", "1 of 9 rows written is not in the table"),
        (table(3, 3), "passed", "3 rows written, 3 in the table"),
    ],
)
def test_rows_are_counted(found: TableAccount, outcome: str, text: str) -> None:
    account = account_of(file_of(1), tables=(found,))
    verdict = next(each for each in account.verdicts if each.name == "t has as many rows as were written")
    assert (verdict.outcome, text in verdict.text) == (outcome, True)


@pytest.mark.parametrize(
    ("made", "outcome", "complete"),
    [
        (Made(receipt=None), "passed", True),
        (Made(receipt=None, fault="1 file was loaded after it was made"), "failed", False),
        (Made(receipt=None, waits=2), "unknown", True),  # the files that are missing speak against it
    ],
)
def test_an_aggregate_is_made_of_all_files(made: Made, outcome: str, complete: bool) -> None:
    account = account_of(file_of(1), tables=(table(3, 3, made=made),))
    verdict = next(each for each in account.verdicts if each.name == "t is made of all files")
    assert (verdict.outcome, verdict.text, account.complete) == (outcome, made.text, complete)


@pytest.mark.parametrize(
    ("verified", "unverified", "outcome", "text"),
    [
        (verification(), "", "passed", "100 of 100 rows of the export match the table"),
        (verification(newer=5, same=95), "", "passed", "95 of 100 rows"),
        (None, "they have not been compared yet", "unverified", "migration-pipeline verify shop"),
        (verification(missing=1, same=99), "", "failed", "1 missing"),
        (verification(different=2, same=98), "", "failed", "2 different"),
        (
            verification(extra=3),
            "",
            "failed",
            "3 rows in the tables come from no item of this plan; no command",
        ),
        (verification(), "2 files were loaded or replayed since", "unverified", "replayed since"),
        (verification(missing=1), "its rows were changed since", "unverified", "changed since"),
    ],
)
def test_what_a_verification_found(
    verified: Verification | None, unverified: str, outcome: str, text: str
) -> None:
    found = table(100, 100, verified=verified, unverified=unverified)
    account = account_of(file_of(0), file_of(1), tables=(found,))
    (verdict,) = (v for v in account.verdicts if v.name == "the rows of t match the export")
    assert verdict.outcome == outcome
    assert text in verdict.text
    expected = {"passed": "complete", "failed": "not complete", "unverified": "not verified"}[outcome]
    assert account.verdict == expected
    assert f"<b>{expected.capitalize()}.</b>" in page(account)


@pytest.mark.parametrize(
    ("files", "bad", "command"),
    [
        ([missing(1)], 0, "retry-failed shop --wait"),
        ([msgspec.structs.replace(missing(1), state="missing")], 0, "backfill shop --wait"),
        ([file_of(1, loaded=99, quarantined=1)], 1, "replay shop"),
        ([file_of(1, md5="other")], 0, ""),
    ],
)
def test_the_page_leads_with_the_next_command(files: list[FileAccount], bad: int, command: str) -> None:
    reasons = [QuarantineReason("t", "22001", "long", 1, 1, "one.json.gz:7")][:bad]
    account = account_of(*files, bad=reasons)
    assert account.next_command == (command and f"migration-pipeline {command}")
    html = page(account)
    assert (f"Next: <code>migration-pipeline {command}</code>." in html) is bool(command)
    assert ("one.json.gz:7" in html) is bool(bad)


def test_what_failed_counts_more_than_what_is_not_verified() -> None:
    account = account_of(file_of(0), tables=(table(100, 99, unverified="its rows were changed since"),))
    assert account.verdict == "not complete"


def test_items_of_a_file_that_are_not_in_the_quarantine_are_missed() -> None:
    account = account_of(file_of(0, loaded=99, quarantined=1))
    assert outcomes(account)["the quarantine matches the receipts"] == "passed"
    (verdict,) = (v for v in _verdicts(account, {}) if v.name == "the quarantine matches the receipts")
    assert verdict.outcome == "failed"


def test_items_that_no_rule_took_and_bad_ones_speak_against_it() -> None:
    bad = account_of(file_of(0, loaded=99, quarantined=1), bad=[QuarantineReason("t", "22001", "long", 1, 1)])
    assert [v.name for v in bad.verdicts if v.outcome == "failed"] == ["nothing is in the quarantine"]
    assert "1 item is in the quarantine" in page(bad)
    unrouted = account_of(file_of(0, loaded=98, skipped={"unrouted": 2}, unrouted={"SK=CART#…": 2}))
    (failed,) = (v for v in unrouted.verdicts if v.outcome == "failed")
    assert (failed.name, failed.text) == (
        "a rule took every item", "no rule takes 2 items, with keys SK=CART#… (2)"
    )  # fmt: skip
    assert (bad.verdict, unrouted.verdict) == ("not complete", "not complete")


def test_what_does_not_speak_against_it() -> None:
    told = {
        "quarantine": account_of(
            file_of(0, loaded=99, quarantined=1),
            bad=[QuarantineReason("t", "22001", "long", 1, 1)],
            may_quarantine=1,
        ),
        "stopped": account_of(msgspec.structs.replace(file_of(0), state="stopped")),
        "versions": account_of(file_of(0), tables=(table(100, 90, decides="the greater v stays"),)),
        "without Dagster": account_of(file_of(0), without_dagster="no Dagster at http://x"),
    }
    assert all(account.complete for account in told.values())
    assert outcomes(told["quarantine"])["nothing is in the quarantine"] == "warning"
    assert outcomes(told["stopped"])["Dagster shows every file as materialized"] == "warning"
    assert outcomes(told["without Dagster"])["Dagster shows every file as materialized"] == "unknown"
    assert "Without Dagster." in page(told["without Dagster"])


# -- the plots ---------------------------------------------------------------------------------------

times = st.floats(0.1, 1e4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10_000_000), times, times), max_size=20))
def test_the_area_below_the_throughput_is_all_items(loads: list[tuple[int, float, float]]) -> None:
    files = [
        file_of(number, items=items, seconds=seconds, loaded_at=BEGIN + timedelta(seconds=end))
        for number, (items, seconds, end) in enumerate(loads)
    ]
    steps = throughput(account_of(*files))
    area = sum(a.items_per_second * (b.at - a.at) for a, b in pairwise(steps))
    total = sum(items for items, _, _ in loads)
    span = steps[-1].at - steps[0].at if steps else 0
    assert area == pytest.approx(total, rel=1e-3, abs=0.1 * span + 1)
    assert all(step.items_per_second >= 0 for step in steps)


def test_of_many_files_the_slowest_have_a_bar() -> None:
    files = [file_of(number, text="x", seconds=1.0 + number) for number in range(BARS + 5)]
    html = page(account_of(*files))
    _, _, plot = html.partition("Speed of each file")
    plot = plot.partition("</svg>")[0]
    assert f"of the {BARS} slowest of {BARS + 5} files" in plot
    assert files[-1].planned.file.name.removesuffix(".json.gz") in plot
    assert files[0].planned.file.name.removesuffix(".json.gz") not in plot


def test_control_characters_are_not_drawn() -> None:
    controls = "".join(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0xD800, 0xDFFF, 0xFFFE, 0xFFFF)))
    assert drawable(f"a{controls}b") == "ab"
    kept = "a b\u00a0<&> ñ 漢字 \U0001f469\u200d\U0001f680"
    assert drawable(kept) == kept
    account = account_of(file_of(0, text="be\x07ll", loaded=90, skipped={"not\x0b wanted\x1b": 10}))
    assert "00000bell" in speed_plot(account)
    assert "skipped: not wanted" in outcome_plot(account)


# -- the page ----------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_text_is_only_text() -> None:
    account = account_of(
        file_of(0, text=HOSTILE, loaded=90, skipped={HOSTILE: 10}),
        missing(1, error=HOSTILE),
        text=HOSTILE,
        tables=(msgspec.structs.replace(table(1, 2), name=HOSTILE),),
        bad=[QuarantineReason(HOSTILE, HOSTILE, HOSTILE, 1, 1)],
        backfills=[Backfill(id=HOSTILE, status=HOSTILE, error=HOSTILE)],
        settings=[(HOSTILE, HOSTILE)],
        versions=[(HOSTILE, HOSTILE)],
        without_dagster=HOSTILE,
    )
    parsed = Parsed(page(account))
    assert not {"script", "img", "iframe", "link", "a", "object"} & parsed.tags
    assert not {name for name in parsed.attributes if name.startswith("on") or name in ("src", "href")}
    assert parsed.text.count(HOSTILE) >= 14


def test_nothing_loaded_yet_is_a_page_too() -> None:
    html = page(account_of(missing(0), missing(1)))
    assert "0 of 2" in html
    assert "<svg" not in html
    assert "1970" not in html.partition("<h2>Backfills")[0]


def test_of_very_many_files_those_come_first_that_are_not_in_order() -> None:
    files = [file_of(number) for number in range(FILES_SHOWN)] + [missing(FILES_SHOWN + 1)]
    html = page(account_of(*files))
    assert files[-1].planned.file.name.removesuffix(".json.gz") in html
    assert "… and 1 more file." in re.sub(r"\s+", " ", html)


def test_of_a_run_config_only_our_own_names_and_numbers_are_told() -> None:
    config = """
ops: {shop_load: {config: {batch_items: 500, secret: hunter2, retry_seconds: {env: TOKEN}}}}
resources: {database: {config: {url: "postgresql://me:hunter2@db/shop"}}}
"""
    told = dict(run_settings({"a": config, "b": "{}"}, []))
    assert told["batch_items"] == "500 (1 run), 50,000 (1 run)"
    assert told["max_bad_items"] == "1,000"
    assert told["dry_run"] == "False"
    assert "hunter2" not in str(told)
    assert "TOKEN" not in str(told)
    assert run_settings({}, []) == []
