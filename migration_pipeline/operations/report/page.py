"""Writes an account as one HTML page."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from migration_pipeline.migration.pages import pages
from migration_pipeline.operations.report import plots
from migration_pipeline.operations.report.account import Account
from migration_pipeline.sources.export import stem

FILES_SHOWN = 5_000
"""Files that the page lists; of more, those first that are not in order."""


def write_page(account: Account, path: Path) -> None:
    """Write the page, or leave what was there. Raises `OSError`."""
    scratch = path.with_name(f".{path.name}.tmp")
    scratch.write_text(page(account), encoding="utf-8")
    scratch.replace(path)


def page(account: Account) -> str:
    """Make the page's HTML."""
    environment = pages("migration_pipeline.operations.report")
    environment.filters["stem"] = stem
    shown = sorted(account.files, key=lambda file: file.receipt is not None and not file.error)[:FILES_SHOWN]
    receipts = account.receipts
    begin = min((r.loaded_at.timestamp() - r.seconds for r in receipts), default=0.0)
    end = max((r.loaded_at.timestamp() for r in receipts), default=0.0)
    return environment.get_template("page.html.jinja").render(
        account=account,
        plan=account.plan,
        files=shown,
        not_loaded=sum(file.receipt is None for file in account.files),
        begin=begin,
        end=end,
        windows={export.id for export in account.plan.windows},
        skipped_of=lambda receipt: sum(receipt.skipped.values()),
        rows_of=lambda receipt: sum(receipt.rows.values()),
        plots={
            title: Markup(svg)  # noqa: S704  # made by the drawing library, which escapes
            for title, svg in (
                ("Throughput", plots.throughput_plot(account)),
                ("When each file was loaded", plots.timeline_plot(account)),
                ("Speed of each file", plots.speed_plot(account)),
                ("What became of the items", plots.outcome_plot(account)),
            )
            if svg
        },
    )
