"""Draws the plots of a report as SVG, from the receipts alone. Texts in them are escaped by the drawing library."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import altair as alt
import msgspec
import vl_convert

from migration_pipeline.operations.report.account import Account
from migration_pipeline.sources.export import stem
from migration_pipeline.targets.records import Receipt
from migration_pipeline.units import counted

WIDTH = 960
"""Pixels of a plot's drawing area and labels together, about."""

BARS = 40
"""Files that a plot shows a bar each; of more, the slowest."""

BLUE, GREEN, GREY, RED = "#2b6cb0", "#2f855a", "#a0aec0", "#c53030"


class Step(msgspec.Struct, frozen=True):
    """From a moment on, the items a second of all files that were loading."""

    at: float
    """Seconds of the epoch."""
    items_per_second: float


def throughput(account: Account) -> list[Step]:
    """Add up the speeds of the files over time. A file's speed is taken as even from its begin to its receipt."""
    changes: dict[float, float] = {}
    for receipt in account.receipts:
        if receipt.items and receipt.seconds > 0:
            end, speed = receipt.loaded_at.timestamp(), receipt.items / receipt.seconds
            changes[end - receipt.seconds] = changes.get(end - receipt.seconds, 0.0) + speed
            changes[end] = changes.get(end, 0.0) - speed
    steps, now = [], 0.0
    for at, change in sorted(changes.items()):
        now += change
        steps.append(Step(at, max(round(now, 1), 0.0)))
    return steps


def throughput_plot(account: Account) -> str:
    """Items a second over time; "" when nothing is loaded."""
    steps = throughput(account)
    if not steps:
        return ""
    values = [{"at": step.at * 1000, "speed": step.items_per_second} for step in steps]
    chart = (
        alt.Chart(_data(values))
        .mark_area(
            interpolate="step-after", color=BLUE, opacity=0.35, line={"color": BLUE, "strokeWidth": 1.5}
        )
        .encode(
            x=alt.X("at:T", **_time(account)),
            y=alt.Y("speed:Q", title="items a second", axis=alt.Axis(format="~s", labelOverlap=True)),
        )
        .properties(width=WIDTH - 70, height=200)
    )
    return _svg(chart)


def timeline_plot(account: Account) -> str:
    """When each file was loaded; "" when none was."""
    files, more = _slowest(account)
    values = [
        {
            "name": name,
            "begin": (receipt.loaded_at.timestamp() - receipt.seconds) * 1000,
            "end": receipt.loaded_at.timestamp() * 1000,
        }
        for name, receipt in files
    ]
    if not values:
        return ""
    chart = (
        alt.Chart(_data(values))
        .mark_bar(color=BLUE, minBandSize=2)
        .encode(x=alt.X("begin:T", **_time(account, more)), x2="end:T", y=_names(values))
        .properties(width=WIDTH - 280, height=alt.Step(16))
    )
    return _svg(chart)


def speed_plot(account: Account) -> str:
    """Items a second of each file; "" when none is loaded."""
    files, more = _slowest(account)
    values = [
        {"name": name, "speed": round(receipt.items / receipt.seconds), "color": GREEN}
        for name, receipt in files
    ]
    return _bars(values, "speed", f"items a second{more}", 16) if values else ""


def outcome_plot(account: Account) -> str:
    """What became of the items: loaded, superseded, skipped by reason, quarantined; "" when none was read."""
    reasons = list(account.skipped.items())[:BARS]
    superseded = account.sum_of(lambda r: r.superseded)
    values = [
        {"name": "loaded", "items": account.sum_of(lambda r: r.loaded), "color": GREEN},
        *([{"name": "superseded", "items": superseded, "color": GREY}] if superseded else []),
        *({"name": f"skipped: {drawable(why)}", "items": n, "color": GREY} for why, n in reasons),
        {"name": "quarantined", "items": account.sum_of(lambda r: r.quarantined), "color": RED},
    ]
    return _bars(values, "items", "items", 22) if any(value["items"] for value in values) else ""


def _bars(values: Sequence[dict[str, Any]], number: str, title: str, step: int) -> str:
    """A bar each, with its number at its end."""
    base = alt.Chart(_data(values)).encode(
        x=alt.X(f"{number}:Q", title=title, axis=alt.Axis(format="~s", labelOverlap=True)), y=_names(values)
    )
    bars = base.mark_bar().encode(color=alt.Color("color:N", scale=None))
    labels = base.mark_text(align="left", dx=4, color="#333").encode(
        text=alt.Text(f"{number}:Q", format=",d")
    )
    return _svg((bars + labels).properties(width=WIDTH - 350, height=alt.Step(step)))


def _slowest(account: Account) -> tuple[list[tuple[str, Receipt]], str]:
    """Names and receipts of files with items, in load order; of many the slowest, and a note that says so."""
    loaded = [
        (drawable(stem(file.planned.file.name)), file.receipt)
        for file in account.files
        if file.receipt and file.receipt.items and file.receipt.seconds > 0
    ]
    if len(loaded) <= BARS:
        return loaded, ""
    slowest = sorted(loaded, key=lambda pair: pair[1].items / pair[1].seconds)[:BARS]
    return slowest, f", of the {BARS} slowest of {counted(len(loaded), 'file')}"


def _names(values: Sequence[dict[str, Any]]) -> alt.Y:
    """The axis of the bars' names, in the order of the data; long ones are cut."""
    return alt.Y(
        "name:N", title=None, sort=[value["name"] for value in values], axis=alt.Axis(labelLimit=300)
    )


def _time(account: Account, more: str = "") -> dict[str, Any]:
    """How an axis of times is written: as fine as its span asks for."""
    ends = [receipt.loaded_at.timestamp() for receipt in account.receipts]
    hours = (max(ends) - min(ends)) / 3600
    form = "%H:%M:%S" if hours < 1 else "%H:%M" if hours < 24 else "%m-%d %H:%M"
    return {
        "title": f"time (UTC){more}",
        "scale": alt.Scale(type="utc"),
        "axis": alt.Axis(format=form, labelOverlap=True, tickCount=8),
    }


def drawable(text: str) -> str:
    """Leave out characters that SVG cannot hold: the drawing library ends the process at some of them.

    They are control characters, halves of surrogate pairs, and code points that are no characters.
    """
    return "".join(char for char in text if unicodedata.category(char) not in ("Cc", "Cs", "Cn"))


def _data(values: Sequence[dict[str, Any]]) -> alt.InlineData:
    return alt.InlineData(values=list(values))


def _svg(chart: Any) -> str:
    # Names are measured with a font of the library's own; the reader's may be wider.
    chart = chart.properties(padding={"left": 45, "right": 20, "top": 5, "bottom": 5})
    chart = chart.configure_view(stroke=None).configure_axis(
        labelFontSize=11, titleFontSize=11, titleFontWeight="normal", gridColor="#e8e8e8"
    )
    return str(vl_convert.vegalite_to_svg(chart.to_dict()))
