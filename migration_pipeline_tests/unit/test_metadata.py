"""What people read in Dagster: sizes, times, tables; and the reports of backfills."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import dagster as dg
import pytest
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster._utils.tags import is_valid_strict_tag_value

from migration_pipeline import Item, Profile, Row
from migration_pipeline.defs.failures import failing
from migration_pipeline.defs.metadata import export_spec, file_tables, file_tag, table_spec
from migration_pipeline.defs.notify import BackfillReport, load_hook
from migration_pipeline.defs.progress import sentence
from migration_pipeline.engine.file_report import BadExample, FileReport, Progress
from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.load import sentence as account_line
from migration_pipeline.migration.plan import FORMAT, Plan, PlannedFile
from migration_pipeline.sources.export import ExportFile, Window
from migration_pipeline.units import duration, moment, readable_size, readable_time


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (487_232, "487.2 kB"),
        (160_000_000, "160.0 MB"),
        (2_560_000_000, "2.6 GB"),
        (4_200_000_000_000, "4,200.0 GB"),
    ],
)
def test_sizes_have_units(size: int, text: str) -> None:
    assert readable_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3_900, "1 h 05 min"),
        (400_000, "4 days"),
    ],
)
def test_times_have_units(seconds: float, text: str) -> None:
    assert readable_time(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")]
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_moment_is_told_in_utc() -> None:
    text = "2026-01-31 23:30:00"
    assert moment(1_769_902_200.0) == text
    assert moment(datetime(2026, 2, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == text


def test_progress_is_one_short_line() -> None:
    assert sentence(Progress(1_234, 2_742, 99, 0.02, 3)) == (
        "45%, 1,234 of 2,742 items, 61,700 items/s, 0 s left, 3 quarantined"
    )
    assert sentence(Progress(0, 2_742, 0, 0.0)) == "0%, 0 of 2,742 items, 0 items/s, 0 quarantined"
    assert (
        sentence(Progress(0, 2_742, 0, 0.0), "record") == "0%, 0 of 2,742 records, 0 records/s, 0 quarantined"
    )


@pytest.mark.parametrize(
    ("first", "last", "tag"),
    [
        ("0001_khzb2hd4_1f3a9c", "0001_khzb2hd4_1f3a9c", "0001_khzb2hd4_1f3a9c"),
        ("0001_khzb2hd4_1f3a9c", "0050_se4bpc7s_1f3a9c", "0001_khzb2hd4_1f3a9c..0050_se4bpc7s_1f3a9c"),
        ("w20240413T191500_0001_khzb2hd4_1f3a9c", "w20240413T191500_0012_se4bpc7s_1f3a9c",
         "w20240413T191500_0001_khzb2hd4..w20240413T191500_0012_se4bpc7s"),
        ("01713035654959-73dbf946_0001_khzb2hd4ts325ebagfwzadnubq", "01713035654959-73dbf946_0002_se4bpc7s2zyqo3ymtl2lezz46y",
         "01713035654959-73dbf946_0001_k..01713035654959-73dbf946_0002_s"),
        ("0001_ä b_1f3a9c", "0001_ä b_1f3a9c", "0001_-b_1f3a9c"),
        ("k" * 70, "k" * 70, "k" * 63),
    ],
    ids=["one", "several", "windows", "an old plan", "odd letters", "long"],
)  # fmt: skip
def test_a_run_is_tagged_with_its_files_within_the_rules_of_dagster(first: str, last: str, tag: str) -> None:
    assert file_tag(first, last) == tag
    assert is_valid_strict_tag_value(tag)


class Described(Row, table="described", key="pk"):
    """Things, each with its `kind`."""

    pk: str


class Undescribed(Row, table="undescribed", key="pk"):
    pk: str


class Thing(Item):
    PK: str


def test_a_docstring_is_described_without_markdown() -> None:
    profile = Profile("things")

    @profile.route(kind="a")
    def described(item: Thing) -> Described:
        return Described(item.PK)

    @profile.route()
    def undescribed(item: Thing) -> Undescribed:
        return Undescribed(item.PK)

    plan = Plan(FORMAT, "things", "x:things", (), ())
    export = export_spec(plan, profile)
    specs = [table_spec(plan, profile, table, export) for table in profile.tables.values()]
    assert [spec.description for spec in specs] == [
        "Things, each with its kind.",
        "Rows of undescribed, made of items of the export.",
    ]


def test_a_failure_says_its_reason_before_anything_else() -> None:
    """As the UI shows it: the message is what Python prints of an exception, and the UI puts its causes below."""
    with pytest.raises(dg.Failure) as failed, failing():
        raise MigrationError("khzb2hd4.json.gz: the file is truncated: copy it again")
    shown = serializable_error_info_from_exc_info((failed.type, failed.value, failed.tb))
    assert shown.message == "Failed: khzb2hd4.json.gz: the file is truncated: copy it again\n"
    assert (shown.cause, shown.context) == (None, None)
    assert failed.value.description == "khzb2hd4.json.gz: the file is truncated: copy it again"
    assert not failed.value.allow_retries


PLANNED = PlannedFile(
    "p", "e", ExportFile(name="f.json.gz", uri="s3://b/f.json.gz", items=10, md5="m", size=9)
)


def test_the_account_of_a_file_is_a_table() -> None:
    report = FileReport(
        items=1_010, loaded=1_000, skipped={"a | b": 7}, quarantined=3, quarantined_by_reason={"bad": 3},
        rows={"s.t": 2_000}, bytes=12_345, quarantined_examples=[BadExample(1_234, "bad", "s.t", "22001")],
    )  # fmt: skip
    tables = file_tables(PLANNED, report)
    assert str(tables["account"].value).splitlines() == [
        "| count | of |",
        "|---|---|",
        "| 1,010 | items read, 12.3 kB compressed |",
        "| 1,000 | items loaded |",
        r"| 7 | skipped: a \| b |",
        "| 3 | quarantined: bad |",
        "| 2,000 | rows of `s.t` |",
    ]
    assert str(tables["quarantine_examples"].value).splitlines()[2:] == [
        "| line | table | SQLSTATE | reason |",
        "|---|---|---|---|",
        "| 1234 | s.t | 22001 | bad |",
    ]
    assert set(file_tables(PLANNED, FileReport())) == {"account"}


WINDOW = Window(
    datetime(2026, 3, 1, 12, tzinfo=timezone.utc),
    datetime(2026, 3, 1, 13, tzinfo=timezone.utc),
    "NEW_AND_OLD_IMAGES",
    ("PK",),
)


def test_the_account_of_a_window_tells_what_became_of_rows() -> None:
    report = FileReport(
        items=20, loaded=12, superseded=3, skipped={"no use": 4}, quarantined=1, quarantined_by_reason={"bad": 1},
        rows={"s.t": 10, "u": 1}, changed_rows={"s.t": 4}, unchanged_rows={"s.t": 1}, deleted_rows={"u": 2}, bytes=9,
    )  # fmt: skip
    assert str(file_tables(PLANNED, report, WINDOW)["account"].value).splitlines()[2:] == [
        "| 20 | records read, 9 bytes compressed |",
        "| 12 | records applied |",
        "| 3 | superseded: a newer state was there |",
        "| 4 | skipped: no use |",
        "| 1 | quarantined: bad |",
        "| 5 | rows inserted in `s.t` |",
        "| 1 | rows inserted in `u` |",
        "| 4 | rows updated in `s.t` |",
        "| 2 | rows deleted in `u` |",
        "| 1 | rows unchanged in `s.t` |",
    ]
    assert account_line(report, of_window=True) == (
        "done, 20 records in 0.00 s (0 records/s), rows: 6 inserted, 4 updated, 2 deleted, 1 unchanged; "
        "records: 3 superseded, 4 skipped, 1 quarantined"
    )
    assert account_line(report, of_window=False) == (
        "done, 20 items in 0.00 s (0 items/s), 11 rows, 3 superseded, 4 skipped, 1 quarantined"
    )


def test_a_report_says_it_in_a_few_lines() -> None:
    names = tuple(f"{number}.json.gz" for number in range(10))
    report = BackfillReport(
        profile="shop", backfill_id="abc", status="failed", failed_files=names, seconds=3_700, url="http://d/abc",
        files=2_000, materialized=1_980, failed=12, missing=8,
    )  # fmt: skip
    assert report.text.splitlines() == [
        "Backfill abc of shop failed after 1 h 01 min: 1,980 of 2,000 files materialized, 12 failed, 8 missing",
        f"Failed: {', '.join(names)} and 2 more",
        "Next: fix the cause, then migration-pipeline retry-failed shop, or Failed and missing in the UI",
        "http://d/abc",
    ]
    whole = BackfillReport(
        profile="shop", backfill_id="abc", status="succeeded", files=2, materialized=2, failed=0, missing=0
    )
    assert whole.text.splitlines()[0].startswith("Backfill abc of shop succeeded after 0 s: 2 of 2 files")
    assert "Next" not in whole.text


def test_the_users_function_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_hooks.py").write_text("def tell(report): return 'told'\nnumber = 7\n")
    assert load_hook("my_hooks:tell").__name__ == "tell"
    for reference, message in (
        (None, "MIGRATION_NOTIFY is not set; name a function"),
        ("my_hooks", "MIGRATION_NOTIFY=my_hooks: expected MODULE:FUNCTION, as my_hooks:function"),
        ("my_hooks:shout", "MIGRATION_NOTIFY=my_hooks:shout: module 'my_hooks' has no attribute 'shout'"),
        ("no_hooks:tell", "MIGRATION_NOTIFY=no_hooks:tell: No module named 'no_hooks'"),
        ("my_hooks:number", "MIGRATION_NOTIFY=my_hooks:number: this is not a function"),
    ):
        with pytest.raises(UsageError, match=message):
            load_hook(reference)
