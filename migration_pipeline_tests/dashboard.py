"""A picture of monitoring/dashboard.json: each query is asked of a real Prometheus, and each panel is drawn in the JSON's grid.

There is no Grafana here. `python -m migration_pipeline_tests.dashboard docs/images/dashboard.png` loads a sample through Dagster,
which takes some minutes, and makes the picture of docs/metrics.md anew.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import pytest
import requests

from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.stack import running
from migration_pipeline.migration.plan import planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.metrics import Server
from migration_pipeline_tests.operating import Operation, eventually
from migration_pipeline_tests.servers import free_port, need

DASHBOARD = Path(__file__).parents[1] / "monitoring" / "dashboard.json"

SCRAPES = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: migration
    static_configs: [{{targets: ["{target}"]}}]
"""

# -- what Prometheus answers ---------------------------------------------------------------------------


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A Prometheus that scrapes `target` each second; gives its address."""
    need(program := shutil.which("prometheus"), "Prometheus", "prometheus")
    (folder / "prometheus.yml").write_text(SCRAPES.format(target=target))
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        str(program), "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        try:
            yield url
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, query: str) -> list[Any]:
    """Ask for what a query gives now."""
    return _answer(f"{url}/api/v1/query", {"query": query})


def _answer(url: str, parameters: Mapping[str, Any]) -> list[Any]:
    answer = requests.get(url, parameters, timeout=10).json()
    assert answer["status"] == "success", (parameters, answer)
    return list(answer["data"]["result"])


class Series(NamedTuple):
    """A line of a panel."""

    name: str
    points: list[tuple[float, float]]
    """Seconds of the epoch, and the value."""


Read = Callable[[str], list[Any]]
"""What a query gives over the time of the picture."""


def over_time(url: str, begin: float, end: float, profile: str) -> Read:
    """Ask Prometheus, as a dashboard of that time does."""
    step = max((end - begin) / 300, 1)
    start = end - int((end - begin) / step) * step  # so that the last point is of the end

    def read(query: str) -> list[Any]:
        asked = {"query": query.replace("$profile", profile), "start": start, "end": end, "step": step}
        return _answer(f"{url}/api/v1/query_range", asked)

    return read


def series_of(panel: Mapping[str, Any], read: Read) -> list[Series]:
    """Ask all queries of a panel, and name what they give as its legends say."""
    found = []
    for target in panel["targets"]:
        for each in read(target["expr"]):
            name = target["legendFormat"]
            for label, value in each["metric"].items():
                name = name.replace("{{" + label + "}}", value)
            found.append(Series(name, [(float(at), float(value)) for at, value in each["values"]]))
    return found


# -- drawing -----------------------------------------------------------------------------------------

COLUMN, ROW, GAP = 50, 27, 6
"""Pixels of the grid, of which a row has 24 columns."""

BACK, CARD, TEXT, FAINT, LINES = "#111217", "#1d1f24", "#dcdce4", "#8e8f99", "#33353c"
NAMED = {
    "green": "#73bf69", "red": "#f2495c", "yellow": "#fade2a", "blue": "#5794f2", "light-blue": "#8ab8ff",
    "super-light-blue": "#c0d8ff", "text": TEXT,
}  # fmt: skip
OTHERS = ("#73bf69", "#fade2a", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ca95e5")


def picture(dashboard: Mapping[str, Any], read: Read, begin: float, end: float) -> str:
    """Draw all panels of a dashboard, from `begin` to `end`, as SVG."""
    cells = [panel["gridPos"] for panel in dashboard["panels"]]
    width, height = 24 * COLUMN + GAP, max(cell["y"] + cell["h"] for cell in cells) * ROW + GAP
    drawn = [_panel(panel, series_of(panel, read), begin, end) for panel in dashboard["panels"]]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="DejaVu Sans, sans-serif">'
        f'<rect width="{width}" height="{height}" fill="{BACK}"/>{"".join(drawn)}</svg>'
    )


def _panel(panel: Mapping[str, Any], series: Sequence[Series], begin: float, end: float) -> str:
    cell, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    width, height = cell["w"] * COLUMN - GAP, cell["h"] * ROW - GAP
    parts = [
        f'<rect width="{width}" height="{height}" rx="3" fill="{CARD}" stroke="{LINES}"/>',
        _text(10, 19, panel["title"], 11, weight="bold"),
    ]
    if not any(each.points for each in series):
        parts.append(_text(width / 2, height / 2 + 10, "No data", 14, FAINT, "middle"))
    elif panel["type"] == "stat":
        (only,) = series
        value = only.points[-1][1]
        steps = defaults["thresholds"]["steps"]
        colour = [step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]
        told = spelled(value, defaults["unit"])
        parts.append(_text(width / 2, height / 2 + 22, told, 27, NAMED[colour], "middle"))
    elif panel["type"] == "bargauge":
        parts += _bars(series, defaults["unit"], width, height)
    else:
        parts += _lines(panel, series, (begin, end), width, height)
    at = f"translate({cell['x'] * COLUMN + GAP},{cell['y'] * ROW + GAP})"
    return f'<g transform="{at}">{"".join(parts)}</g>'


def _bars(series: Sequence[Series], unit: str, width: float, height: float) -> list[str]:
    greatest = max(each.points[-1][1] for each in series) or 1
    step = min((height - 40) / len(series), 48)
    parts = []
    for number, each in enumerate(sorted(series, key=lambda one: -one.points[-1][1])):
        value, top = each.points[-1][1], 40 + number * step
        length = (width - 110) * value / greatest
        parts.append(_text(10, top + 6, each.name, 11))
        parts.append(
            f'<rect x="10" y="{top + 11}" width="{length:.1f}" height="{step / 3:.1f}" fill="{OTHERS[0]}"/>'
        )
        parts.append(_text(length + 18, top + 11 + step / 4, spelled(value, unit), 11, OTHERS[0]))
    return parts


def _lines(
    panel: Mapping[str, Any], series: Sequence[Series], span: tuple[float, float], width: float, height: float
) -> list[str]:
    custom, unit = panel["fieldConfig"]["defaults"]["custom"], panel["fieldConfig"]["defaults"]["unit"]
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    curves = _stacked(series) if stacked else [(each, [0.0] * len(each.points)) for each in series]
    tops = [
        value + base for each, bases in curves for (_, value), base in zip(each.points, bases, strict=True)
    ]
    ticks = nice(max(tops) or 1, unit)
    legend = _legend(series, width)
    left, right, top, bottom = 62.0, width - 14.0, 32.0, height - 31.0 - 15 * (legend[-1][1] + 1)

    def x(at: float) -> float:
        return left + (at - span[0]) / (span[1] - span[0]) * (right - left)

    def y(value: float) -> float:
        return bottom - value / ticks[-1] * (bottom - top)

    parts = []
    for tick in ticks:
        parts.append(
            f'<path d="M{left} {y(tick):.1f}H{right}" stroke="{LINES}" stroke-width="1" fill="none"/>'
        )
        parts.append(_text(left - 6, y(tick) + 4, spelled(tick, unit), 10, FAINT, "end"))
    for number in range(5 if width > 400 else 3):
        at = span[0] + (span[1] - span[0]) * (number + 0.5) / (5 if width > 400 else 3)
        clock = datetime.fromtimestamp(at, timezone.utc).strftime("%H:%M:%S")
        parts.append(_text(x(at), bottom + 15, clock, 10, FAINT, "middle"))
    colours = _colours(panel, series)
    for (each, bases), colour in zip(curves, colours, strict=True):
        above = [
            f"{x(at):.1f} {y(value + base):.1f}" for (at, value), base in zip(each.points, bases, strict=True)
        ]
        below = [f"{x(at):.1f} {y(base):.1f}" for (at, _), base in zip(each.points, bases, strict=True)]
        area = "L".join(above + below[::-1])
        opacity = custom["fillOpacity"] / 100
        parts.append(f'<path d="M{area}Z" fill="{colour}" fill-opacity="{opacity}"/>')
        parts.append(
            f'<path d="M{"L".join(above)}" fill="none" stroke="{colour}" stroke-width="{custom["lineWidth"]}"/>'
        )
    for each, colour, (along, line) in zip(series, colours, legend, strict=True):
        beneath = bottom + 35 + 15 * line
        parts.append(f'<rect x="{along}" y="{beneath - 7}" width="12" height="4" fill="{colour}"/>')
        parts.append(_text(along + 17, beneath, each.name, 10))
    return parts


def _legend(series: Sequence[Series], width: float) -> list[tuple[float, int]]:
    """Where each name stands: pixels from the left, and the line."""
    places, along, line = [], 12.0, 0
    for each in series:
        needed = 31 + 6.1 * len(each.name)
        if along > 12 and along + needed - 14 > width:
            along, line = 12.0, line + 1
        places.append((along, line))
        along += needed
    return places


def _stacked(series: Sequence[Series]) -> list[tuple[Series, list[float]]]:
    """Each line with what lies below it, by time."""
    below: dict[float, float] = {}
    curves = []
    for each in series:
        curves.append((each, [below.get(at, 0.0) for at, _ in each.points]))
        for at, value in each.points:
            below[at] = below.get(at, 0.0) + value
    return curves


def _colours(panel: Mapping[str, Any], series: Sequence[Series]) -> list[str]:
    fixed = {
        override["matcher"]["options"]: NAMED[each["value"]["fixedColor"]]
        for override in panel["fieldConfig"]["overrides"]
        for each in override["properties"]
        if each["id"] == "color"
    }
    return [fixed.get(each.name, OTHERS[number % len(OTHERS)]) for number, each in enumerate(series)]


def _text(
    x: float,
    y: float,
    text: str,
    size: int,
    colour: str = TEXT,
    anchor: str = "start",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" text-anchor="{anchor}">'
        f"{escape(text)}</text>"
    )


def nice(greatest: float, unit: str) -> list[float]:
    """About four steps from 0 to at least `greatest`, which is above 0, at round numbers of a unit."""
    base = 1024.0 if unit == "bytes" else 60.0 if unit == "s" and greatest >= 120 else 1.0
    scale = base ** int(_power(greatest, base)) if base > 1 else 1.0
    rough = greatest / scale / 4
    magnitude = 10.0 ** _power(rough, 10.0)
    step = next(each for each in (1, 2, 2.5, 5, 10) if each * magnitude >= rough) * magnitude * scale
    return [step * number for number in range(int(-(-greatest // step) or 1) + 1)]


def _power(value: float, base: float) -> int:
    """The greatest n for which base to the n is not above a value."""
    power = 0
    while value >= base ** (power + 1):
        power += 1
    while value > 0 and value < base**power:
        power -= 1
    return power


def spelled(value: float, unit: str) -> str:
    """Write a value as a panel of that unit does."""
    if unit == "percentunit":
        return f"{value * 100:.3g}%"
    names, base = {
        "bytes": (("B", "KiB", "MiB", "GiB", "TiB"), 1024),
        "s": (("s", "min", "h"), 60),
    }.get(unit, (("", "K", "Mil", "Bil"), 1000))
    number = 0
    while abs(value) >= base and number < len(names) - 1:
        value, number = value / base, number + 1
    return f"{value:.4g} {names[number]}".strip()


# -- the picture of the documents ----------------------------------------------------------------------


def load_and_draw(home: Path, *, items: int, files: int) -> str:
    """Load a sample with bad items through Dagster, with a pause of the throttle, and draw the dashboard at its end."""
    export = write_sample(home / "export", items=items, files=files, seed=7, bad=files // 2)
    with running() as stack:
        operator = Operation(stack, home, {"MIGRATION_HOME": str(home)})
        operator.plan("shop", str(export), "shop")
        path = plan_path(home / "plans", "shop")
        plan = read_plan(path)
        server = Server(
            [(plan, planned_profile(plan, path))], stack.webserver_url, stack.database_url, "127.0.0.1", 0
        )
        begin = time.time()
        try:
            (home / "prometheus").mkdir()
            with prometheus(
                home / "prometheus", server.url.removeprefix("http://").removesuffix("/metrics")
            ) as url:
                operator.command("backfill", "shop")
                eventually(lambda: operator.states(plan).count("materialized") >= files // 2, "half", 900)
                operator.command("throttle", "shop", "--pause")
                time.sleep(20)
                operator.command("throttle", "shop", "--resume")
                eventually(lambda: operator.states(plan).count("materialized") == files, "all", 900)
                time.sleep(20)  # the aggregate, and finishing
                end = time.time()
                drawn = picture(
                    json.loads(DASHBOARD.read_text()), over_time(url, begin, end, "shop"), begin, end
                )
        finally:
            server.close()
    return drawn


def main(file: str) -> None:
    """Make the picture."""
    import vl_convert

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIGRATION_HOME", folder)
        try:
            drawn = load_and_draw(Path(folder), items=2_400_000, files=10)
        finally:
            EmbeddedPostgres(Path(folder)).remove()
    Path(file).write_bytes(vl_convert.svg_to_png(drawn, scale=1))
    print(f"written: {file}")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
