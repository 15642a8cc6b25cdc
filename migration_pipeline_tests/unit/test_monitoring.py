"""The alert rules, the dashboard and the list of metrics agree with each other and hold."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

TOP = Path(__file__).parents[2]
MONITORING = TOP / "monitoring"
NAME = re.compile(r"\bmigration_\w+")

promtool = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    promtool is None, reason="no promtool; on Debian it comes with: apt-get install prometheus"
)


def documented_metrics() -> dict[str, set[str]]:
    """Names in docs/metrics.md, with their labels."""
    section = (TOP / "docs/metrics.md").read_text().partition("\n## Names\n")[2]
    rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", section, re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) | {"profile"} for name, labels in rows}


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def queries() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_rules_and_dashboard_name_metrics_and_labels_that_exist() -> None:
    known = documented_metrics()
    assert len(known) > 20
    expressions = [rule["expr"] for rule in alerts()] + queries()
    assert len(expressions) > 20
    for expression in expressions:
        names = set(NAME.findall(expression))
        assert names, expression
        assert names <= set(known), expression
        for name, matchers in re.findall(r"(migration_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=~?\"", matchers)) <= known[name], expression
        grouped = {
            label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")
        }
        assert all(grouped <= known[name] for name in names), expression


def test_the_dashboard_shows_every_metric_that_an_operator_needs() -> None:
    shown = {name for expression in queries() for name in NAME.findall(expression)}
    inner = {
        "migration_info",
        "migration_scrape_duration_seconds",
        "migration_newest_receipt_timestamp_seconds",
    }
    alerted = {name for rule in alerts() for name in NAME.findall(rule["expr"])}
    assert set(documented_metrics()) - shown - alerted <= inner | {
        "migration_loaded_files",
        "migration_load_seconds",
    }


def test_a_rule_says_how_bad_it_is_and_where_to_read_on() -> None:
    headings = re.findall(r"^#+ (.+)$", (TOP / "docs/runbook.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    for rule in alerts():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"]
        document, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert (document, anchor in anchors) == ("docs/runbook.md", True), anchor


def test_every_alert_has_a_test_that_fires_it_and_a_row_in_the_runbook() -> None:
    tests = yaml.safe_load((MONITORING / "alerts_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"] for test in tests for case in test.get("alert_rule_test", ()) if case["exp_alerts"]
    }
    names = {rule["alert"] for rule in alerts()}
    assert fired == names
    runbook = (TOP / "docs/runbook.md").read_text()
    assert set(re.findall(r"^\| `(Migration\w+)` \|", runbook, re.MULTILINE)) == names


@needs_promtool
def test_promtool_takes_the_rules_and_their_tests_pass() -> None:
    for arguments in (("check", "rules", "alerts.yaml"), ("test", "rules", "alerts_test.yaml")):
        done = subprocess.run(
            [str(promtool), *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$profile", "shop")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "rules.json"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        [str(promtool), "check", "rules", str(file)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "FAILED" in done.stdout + done.stderr) == (0, False), done.stderr
