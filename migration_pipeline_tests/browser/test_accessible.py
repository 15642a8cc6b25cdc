"""The pages that people are sent can be read by all of them: axe finds nothing, in light and in dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from click.testing import CliRunner
from playwright.sync_api import Page

from migration_pipeline.cli import main
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.operations.backfills import Backfill
from migration_pipeline.operations.report.page import page as page_of
from migration_pipeline.targets.receipts import QuarantineReason
from migration_pipeline_tests.unit.test_report import account_of, file_of, missing, table


def report(folder: Path) -> Path:
    """A report in which everything has happened."""
    account = account_of(
        file_of(0, loaded=90, skipped={"sessions expire": 10}),
        file_of(1, loaded=95, quarantined=5),
        missing(2, error="the gzip stream ends in the middle"),
        tables=(table(1, 2), table(100, 100)),
        bad=[QuarantineReason("shop", "PK is missing", "orders", 5, 3)],
        backfills=[Backfill(id="a-backfill", status="COMPLETED_FAILED", error="a run failed")],
    )
    (folder / "report.html").write_text(page_of(account))
    return folder / "report.html"


def inspected(folder: Path) -> Path:
    export = write_sample(folder / "export", items=2_000, files=2, seed=1)
    done = CliRunner().invoke(main, ["inspect", str(export), "--html", str(folder / "inspect.html")])
    assert done.exit_code == 0, done.output
    return folder / "inspect.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("made", [report, inspected], ids=["report", "inspect"])
def test_axe_finds_nothing(page: Page, tmp_path: Path, made: Any, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(made(tmp_path).as_uri())
    found = Axe().run(page).response
    assert len(found["passes"]) > 15
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []
