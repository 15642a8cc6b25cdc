"""All who judge a migration say the same of it: the report, the checks, `status`, `reconcile` and the metrics."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import requests
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.demo.stack import running
from migration_pipeline.migration import verification
from migration_pipeline.migration.names import FINISHING
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.downstream import downstream, to_launch
from migration_pipeline.operations.files import read_files
from migration_pipeline.operations.metrics import MigrationCollector, Server
from migration_pipeline.operations.preflight import mark_lost
from migration_pipeline.operations.report.account import gather
from migration_pipeline.operations.report.page import page
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.sources.export import Export, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import create_tables
from migration_pipeline_tests.conftest import accelerator_is_to_be_there, execute, query
from migration_pipeline_tests.dashboard import DASHBOARD, ask, over_time, picture, prometheus
from migration_pipeline_tests.integration.test_aggregates import files_of, make
from migration_pipeline_tests.integration.test_checks import MADE, failed
from migration_pipeline_tests.integration.test_checks import run as run_checks
from migration_pipeline_tests.integration.test_load import load, load_all
from migration_pipeline_tests.integration.test_metrics import samples
from migration_pipeline_tests.operating import eventually

SHOP = "migration_pipeline.profiles.shop.profile"


@dataclass
class Judged:
    """A migration whose files Dagster shows as materialized, and what is said of it."""

    home: Path
    export: Export
    url: str
    client: DagsterClient

    @property
    def plan(self) -> Plan:
        return read_plan(plan_path(self.home / "plans", "shop"))

    @property
    def profile(self) -> Profile:
        return load_profile("shop")

    def report(self) -> tuple[str, set[str]]:
        """The verdict, and the names of what is not well."""
        account = gather(self.plan, self.profile, self.client, self.url)
        return account.verdict, {v.name for v in account.verdicts if v.outcome != "passed"}

    def checks(self) -> set[str]:
        """Those that fail."""
        return failed(run_checks(self.plan, self.url, self.profile))

    def status(self) -> tuple[int, dict[str, Any]]:
        done = CliRunner().invoke(main, ["status", "shop", "--json"])
        document: dict[str, Any] = json.loads(done.stdout)
        assert document["complete"] == (done.exit_code == 0)
        return done.exit_code, document

    def reconcile(self) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["reconcile", "shop"])
        return done.exit_code, done.output

    def metrics(self) -> dict[tuple[str, ...], float]:
        return samples(MigrationCollector(self.plan, self.profile, self.client, self.url))

    def to_launch(self) -> list[str]:
        """What `backfill` would make."""
        files, assets = (
            read_files(self.client, self.plan, self.profile),
            downstream(self.client, self.profile),
        )
        mark_lost(self.plan, self.profile, files, assets)
        assert {file.state for file in files} == {"materialized"}
        return [key[-1] for key in to_launch(assets, files, [])]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """The shop's sample, loaded without Dagster; it was told by `reconcile`."""
    home = tmp_path_factory.mktemp("judged")
    export = read_export(str(write_sample(home / "export", items=600, files=3, seed=3)), Storage())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIGRATION_HOME", str(home))
        assert CliRunner().invoke(main, ["plan", "--profile", "shop", export.uri]).exit_code == 0
        with running() as stack:
            judged = Judged(home, export, stack.database_url, DagsterClient(stack.webserver_url))
            create_tables(judged.url, judged.profile.all_tables)
            load_all(judged.url, export)
            make(judged.url, judged.profile, files_of(export))
            code, output = judged.reconcile()
            assert (code, output.count("reported as materialized")) == (0, 4), output
            judged.client.report_materialization(["shop", FINISHING], None, {}, "by a test")
            yield judged
        EmbeddedPostgres(home).remove()


@pytest.fixture
def whole(shown: Judged, monkeypatch: pytest.MonkeyPatch) -> Judged:
    """All of it loaded, made and compared anew."""
    monkeypatch.setenv("MIGRATION_HOME", str(shown.home))
    execute(shown.url, "DELETE FROM migration.quarantine")
    load_all(shown.url, shown.export)
    make(shown.url, shown.profile, files_of(shown.export))
    verification.verify(shown.plan, shown.profile, shown.url, "run")
    return shown


def numbers(judged: Judged) -> dict[str, float]:
    """The metrics that speak of a verdict, and are not 0."""
    names = (
        "unproven_files",
        "unconserved_files",
        "outdated_aggregates",
        "unrouted_items",
        "quarantine_items",
    )
    found = judged.metrics()
    assert found["migration_up", "dagster"] == found["migration_up", "database"] == 1
    return {name: value for name in names if (value := found[f"migration_{name}",])}


def test_nothing_speaks_against_it(whole: Judged) -> None:
    assert whole.report() == ("complete", set())
    assert whole.checks() == set()
    assert whole.status()[0] == 0
    code, output = whole.reconcile()
    assert (code, "nothing to do" in output) == (0, True), output
    assert numbers(whole) == {}
    assert whole.to_launch() == []


LATER = "1 file was loaded after it was made"
OTHER_SQL = "the profile's SQL has changed since it was made"


@pytest.mark.parametrize("fault", [LATER, OTHER_SQL])
def test_an_aggregate_is_out_of_date(whole: Judged, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == LATER:
        load(whole.url, whole.export, whole.export.files[0])
    else:
        (aggregate,) = whole.profile.aggregates
        changed = replace(aggregate, sql=f"{aggregate.sql} HAVING count(*) > 0")
        monkeypatch.setattr(SHOP, replace(whole.profile, aggregates=[changed]))
    verdict, reasons = whole.report()
    assert verdict == "not complete"
    assert "customer_activity is made of all files" in reasons
    assert whole.checks() == {MADE}
    code, document = whole.status()
    (asset,) = (each for each in document["then"] if each["name"] == "customer_activity")
    assert (code, asset["state"], asset["error"]) == (1, "missing", f"materialized in Dagster, but {fault}")
    code, output = whole.reconcile()
    assert code == 1
    assert f"customer_activity: Dagster shows it as materialized, but {fault}; " in output
    assert numbers(whole) == {"outdated_aggregates": 1}
    assert whole.to_launch() == ["customer_activity", FINISHING]


def test_what_nobody_has_compared_is_not_verified_and_else_complete(whole: Judged) -> None:
    """To know whether a verification still holds takes a look at each row: that is for the report alone."""
    execute(whole.url, "DELETE FROM migration.verification WHERE table_name = 'orders'")
    assert whole.report() == ("not verified", {"the rows of orders match the export"})
    assert whole.checks() == set()
    assert whole.status()[0] == 0
    assert whole.reconcile()[0] == 0
    assert numbers(whole) == {}


BAD = """
UPDATE migration.loaded_file SET quarantined = 1, loaded = loaded - 1 WHERE file = '{file}';
INSERT INTO migration.quarantine (profile, export_id, file, line, raw, reason, profile_version, run_id)
SELECT profile, export_id, file, 1, 'x', 'bad', '1', 'r' FROM migration.loaded_file WHERE file = '{file}'
"""


@pytest.mark.parametrize("allowed", [0, 1])
def test_items_in_the_quarantine_are_as_many_as_the_profile_allows(
    whole: Judged, allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(whole.url, BAD.format(file=whole.export.files[0].name))
    monkeypatch.setattr(SHOP, replace(whole.profile, may_quarantine=allowed))
    verdict, reasons = whole.report()
    assert verdict == ("complete" if allowed else "not complete")
    assert reasons == {"nothing is in the quarantine"}, "it is told, whatever it means"
    assert whole.checks() == (set() if allowed else {"nothing_quarantined"})
    code, document = whole.status()
    assert (code, document["items_quarantined"]) == (0 if allowed else 1, 1)
    assert numbers(whole) == {"quarantine_items": 1}
    assert whole.reconcile()[0] == 0, "all files are loaded: Dagster shows nothing that is not"


def test_items_that_no_rule_took(whole: Judged) -> None:
    name = whole.export.files[0].name
    execute(
        whole.url,
        f"""UPDATE migration.loaded_file SET unrouted = '{{"PK=CART#…": 2}}' WHERE file = '{name}'""",
    )
    assert whole.report() == ("not complete", {"a rule took every item"})
    assert whole.checks() == {"nothing_unrouted"}
    code, document = whole.status()
    assert (code, document["unrouted_by_keys"]) == (1, {"PK=CART#…": 2})
    assert numbers(whole) == {"unrouted_items": 2}


def test_a_file_that_was_read_with_other_bytes(whole: Judged) -> None:
    name = whole.export.files[0].name
    execute(whole.url, f"UPDATE migration.loaded_file SET md5 = 'other' WHERE file = '{name}'")
    verdict, reasons = whole.report()
    assert (verdict, reasons) == ("not complete", {"the bytes match the manifest"})
    assert whole.checks() == {"md5_matches"}
    code, document = whole.status()
    (file,) = (each for each in document["by_file"] if each["state"] != "materialized")
    assert (code, file["file"]) == (1, name)
    code, output = whole.reconcile()
    assert (code, f"warning: {name}: Dagster shows it as materialized" in output) == (1, True), output
    assert numbers(whole) == {"unproven_files": 1}


def test_a_file_whose_items_are_not_those_of_its_manifest(whole: Judged) -> None:
    name = whole.export.files[0].name
    execute(
        whole.url,
        f"UPDATE migration.loaded_file SET items = items + 1, loaded = loaded + 1 WHERE file = '{name}'",
    )
    assert whole.report() == ("not complete", {"items are conserved"})
    assert whole.checks() == {"items_conserved"}
    code, document = whole.status()
    (file,) = (each for each in document["by_file"] if each["state"] != "materialized")
    assert (code, file["file"]) == (1, name)
    assert file["error"] == "materialized in Dagster, but with items that are not accounted for"
    assert numbers(whole) == {"unconserved_files": 1}
    assert query(whole.url, "SELECT count(*) FROM migration.quarantine") == [(0,)]


def test_the_report_says_how_lines_were_read(whole: Judged) -> None:
    account = gather(whole.plan, whole.profile, whole.client, whole.url)
    items = sum(receipt.items for receipt in account.receipts)
    if accelerator_is_to_be_there():
        assert account.accelerated + sum(account.not_accelerated.values()) == items > 0
        share = 100 * account.accelerated / items
        assert f"{share:.1f} % of {items:,} lines read in C" in page(account)
    else:
        assert "no line was read in C" in page(account)


# -- the dashboard, as Prometheus answers it -----------------------------------------------------------

NOTHING_YET = ("deriv(", "rate(", "migration_window_lag_seconds", "migration_deleted_rows")
"""What needs scrapes of a longer time than a test has, or windows."""


def test_every_query_of_the_dashboard_is_answered_by_prometheus(whole: Judged, tmp_path: Path) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [
        t["expr"].replace("$profile", "shop") for panel in dashboard["panels"] for t in panel["targets"]
    ]
    found: dict[str, list[Any]] = {}
    begin = time.time()
    server = Server([(whole.plan, whole.profile)], whole.client.url, whole.url, "127.0.0.1", 0)
    try:
        with prometheus(tmp_path, server.url.removeprefix("http://").removesuffix("/metrics")) as url:
            eventually(lambda: _scraped(url), "Prometheus has scraped")

            def silent() -> list[str]:
                """Queries without an answer; on a busy machine a scrape may have been too late."""
                found.update((query, ask(url, query)) for query in queries)
                return [q for q in queries if not found[q] and not any(word in q for word in NOTHING_YET)]

            eventually(lambda: not silent(), "all queries are answered")
            end = time.time()
            drawn = picture(dashboard, over_time(url, begin, end, "shop"), begin, end)
    finally:
        server.close()
    ((_, done),) = [each["value"] for each in found[queries[0]]]
    assert (len(queries) > 25, float(done)) == (True, 1.0)

    # And each panel is drawn, in its place.
    root = ElementTree.fromstring(drawn)
    told = [
        ["".join(text.itertext()) for text in panel if text.tag.endswith("text")]
        for panel in root
        if panel.tag.endswith("g")
    ]
    assert [panel[0] for panel in told] == [panel["title"] for panel in dashboard["panels"]]
    texts = {panel[0]: panel[1:] for panel in told}
    assert texts["Files done"] == ["100%"]
    assert texts["Windows: lag"] == ["No data"]
    assert {"customers", "orders", "order_lines"} < set(texts["Rows by table"])
    assert "sessions expire within a day" in texts["Skipped items by reason"]


def _scraped(url: str) -> bool:
    try:
        return bool(ask(url, 'migration_planned_files{profile="shop"}'))
    except requests.ConnectionError:
        return False
