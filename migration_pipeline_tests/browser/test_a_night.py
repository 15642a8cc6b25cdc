"""A night with the UI, in a browser: launch all files, see one fail and why, mend it, stop a run, read the numbers.

The tests are the steps of one story, and go in order. Each looks at what a person reads on the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan
from migration_pipeline_tests.browser.conftest import HEIGHT, Picture
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.operating import LOCATION, Bucket, Operation, eventually, operation

FILES = 6
TABLES = ("customers", "orders", "order_lines", "shop_events")
"""Those that files are loaded into; `customer_activity` and `finishing` are made of them all."""
GROUP = f"/locations/{LOCATION}/asset-groups/shop"


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(tmp_path_factory.mktemp("export"), items=24_000, files=FILES, seed=11, bad=12)


@pytest.fixture(scope="module")
def started(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Operation, Bucket]]:
    with operation(tmp_path_factory.mktemp("a night"), "shop-exports") as made:
        yield made


@pytest.fixture(scope="module")
def operator(started: tuple[Operation, Bucket]) -> Operation:
    return started[0]


@pytest.fixture(scope="module")
def bucket(started: tuple[Operation, Bucket]) -> Bucket:
    return started[1]


@pytest.fixture(scope="module")
def plan(operator: Operation, bucket: Bucket, export: Path) -> Plan:
    return operator.plan("shop", bucket.upload(export), "shop")


@pytest.fixture(scope="module")
def broken(plan: Plan, bucket: Bucket, export: Path) -> tuple[str, bytes]:
    """The object of one file, truncated, and its whole contents."""
    key = f"AWSDynamoDB/{export.name}/data/{plan.files[2].file.name}"
    whole = bucket.get(key)
    bucket.put(key, whole[: len(whole) // 2])
    return key, whole


def launch(page: Page, operator: Operation, selection: str, partitions: int) -> str:
    """Materialize a selection of partitions of the group, by its dialog; gives the backfill's id.

    For a single partition the UI launches a run without a backfill: then the id is "".
    """
    before = {run["id"] for run in operator.runs()}
    page.goto(operator.url + GROUP)
    page.get_by_role("button", name="Materialize all").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name=selection, exact=True).click()
    expect(dialog.get_by_text(re.compile(rf"^{partitions} partitions?$")).first).to_be_visible()
    dialog.get_by_role("button", name=re.compile("^Launch")).click()
    expect(dialog).not_to_be_visible()

    def launched() -> list[str]:
        return [run["tags"].get("dagster/backfill", "") for run in operator.runs() if run["id"] not in before]

    eventually(launched, "there are runs")
    return launched()[0]


def terminate_what_is_held(page: Page, operator: Operation) -> str:
    """Press Terminate on the page of the run that waits in the database, and let go of it; gives its id."""
    eventually(operator.held, "a run waits in the database")
    (run,) = operator.held()
    page.goto(f"{operator.url}/runs/{run}")
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name=re.compile("^Terminate")).click()
    expect(page.get_by_text("Canceled", exact=True).first).to_be_visible()
    operator.release()
    return run


def await_all(operator: Operation, plan: Plan) -> None:
    """Wait until all files are loaded, and all runs over: that of the last file makes the aggregate, too."""
    eventually(lambda: operator.states(plan) == ["materialized"] * FILES, "the file is loaded")
    over = {"SUCCESS", "FAILURE", "CANCELED"}
    eventually(lambda: all(run["status"] in over for run in operator.runs()), "its run ends")


def test_the_group_is_a_picture_of_the_migration(page: Page, operator: Operation, plan: Plan) -> None:
    page.goto(operator.url + GROUP)
    for name in ("dynamodb_export", *TABLES, "customer_activity", "finishing"):
        expect(page.get_by_text(name, exact=True).first).to_be_visible()
    expect(page.get_by_text("Postgres", exact=True)).to_have_count(len(TABLES) + 2)
    expect(page.get_by_text("dynamodb", exact=True)).to_be_visible()
    expect(page.get_by_text("S3", exact=True)).to_be_visible()


def test_an_asset_says_what_it_is(page: Page, operator: Operation, plan: Plan, picture: Picture) -> None:
    page.goto(f"{operator.url}/assets/shop/orders?view=overview")
    main = page.locator("body")
    expect(main).to_contain_text("Orders, one row each; their lines are in order_lines.")
    expect(main).to_contain_text("Items that become rows:")
    expect(main).to_contain_text("An order, kept in its customer's collection.")
    expect(main).to_contain_text("In currency, with all its digits.")
    expect(main).to_contain_text("PRIMARY KEY (order_id)")
    picture("asset", HEIGHT)
    page.goto(f"{operator.url}/assets/shop/dynamodb_export")
    expect(main).to_contain_text("SK = SESSION → skipped: sessions expire within a day")
    dialog = page.get_by_role("dialog")

    def opened() -> bool:
        """A click is lost on a page that is just drawn anew."""
        if not dialog.is_visible():
            page.get_by_text("[Show Markdown]").click()
            page.wait_for_timeout(1_000)
        return dialog.is_visible()

    eventually(opened, "the documentation is shown")
    expect(page.get_by_role("dialog")).to_contain_text("A file failed:")
    expect(page.get_by_role("dialog")).to_contain_text("the sort key tells what an item is")


def test_lists_show_sentences(page: Page, operator: Operation, plan: Plan) -> None:
    """The catalog, and the boxes of jobs, in which markdown would stand as it is written."""
    page.goto(f"{operator.url}{GROUP}/list")
    for sentence in (
        "People who signed up in the shop.",
        "Orders, one row each; their lines are in order_lines.",
    ):
        expect(page.get_by_text(sentence, exact=True)).to_be_visible()
    page.goto(f"{operator.url}/jobs")
    for job in ("migrate", "check", "verify", "replay"):
        expect(page.get_by_text(f"shop_{job}", exact=True)).to_be_visible()
    page.get_by_label("info").first.hover()
    expect(page.get_by_text(re.compile("^Tells whether shop is loaded completely: ")).first).to_be_visible()


def test_the_page_of_inspect(
    page: Page, operator: Operation, plan: Plan, tmp_path: Path, picture: Picture
) -> None:
    operator.command("inspect", plan.exports[0].uri, "--html", str(tmp_path / "inspect.html"))
    page.goto((tmp_path / "inspect.html").as_uri())
    expect(page.get_by_role("heading", name="Export of shop: DynamoDB")).to_be_visible()
    expect(page.get_by_text(plan.exports[0].uri)).to_be_visible()
    picture("inspect", HEIGHT)


def test_a_backfill_of_all_files_and_the_one_that_fails(
    page: Page, operator: Operation, plan: Plan, broken: tuple[str, bytes], picture: Picture
) -> None:
    backfill = launch(page, operator, "All", FILES)
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_FAILED", "the backfill ends")
    page.goto(f"{operator.url}/runs/b/{backfill}")
    expect(page.get_by_text("100% completed")).to_have_count(len(TABLES) + 2)
    expect(page.get_by_role("link", name="shop / orders")).to_be_visible()
    picture("backfill", 640)

    # Its runs, the failed one, and the error, as a person would go.
    page.goto(f"{operator.url}/runs/b/{backfill}?tab=runs")
    expect(page.get_by_text("Failure", exact=True)).to_have_count(1)
    for planned in plan.files:
        expect(page.get_by_text(f"migration/file: {planned.partition}")).to_be_visible()
    picture("runs", 700)
    failed = next(run["id"] for run in operator.runs(backfill) if run["status"] == "FAILURE")
    page.get_by_role("link", name=failed[:8]).click()
    expect(page).to_have_url(re.compile(f"/runs/{failed}"))
    name = plan.files[2].file.name
    # The first line of the failure, after Dagster's own.
    expect(
        page.get_by_text(re.compile(f"^Failed: {name}: the gzip stream ends in the middle")).first
    ).to_be_visible()
    expect(page.get_by_text("the file is truncated: copy it again").first).to_be_visible()
    page.get_by_placeholder("Filter…").fill(name[:12])  # what our own lines begin with
    expect(page.get_by_text(f"{name}: start, ")).to_be_visible()
    expect(page.get_by_text("RUN_FAILURE")).not_to_be_visible()
    picture("failed-run", 520)

    # From the partition, and from its tag.
    page.goto(f"{operator.url}/assets/shop/orders?view=partitions&partition={plan.files[2].partition}")
    page.get_by_role("button", name="View logs").click()
    expect(page.get_by_role("dialog").get_by_text(f"Failed: {name}: the gzip stream").first).to_be_visible()
    page.goto(f"{operator.url}/runs/?q[0]=tag:migration/file={plan.files[2].partition}&view=runs")
    expect(page.get_by_role("link", name=failed[:8])).to_be_visible()
    expect(page.get_by_text(re.compile("^migration/file: "))).to_have_count(1)
    page.goto(operator.url + GROUP)
    expect(page.get_by_text("1 failed").first).to_be_visible()


def test_failed_and_missing_loads_the_mended_file(
    page: Page, operator: Operation, bucket: Bucket, plan: Plan, broken: tuple[str, bytes], picture: Picture
) -> None:
    bucket.put(*broken)
    launch(page, operator, "Failed and missing", 1)
    await_all(operator, plan)
    page.goto(operator.url + GROUP)
    expect(page.get_by_text("100% filled")).to_have_count(len(TABLES))
    picture("assets", HEIGHT)


def test_a_run_is_terminated_and_its_file_is_missing(
    page: Page, operator: Operation, plan: Plan, picture: Picture
) -> None:
    operator.query(WIPE, ranges=[{"assetKey": {"path": ["shop", name]}} for name in TABLES])
    execute(operator.database_url, "DELETE FROM customers")
    operator.hold("customers")
    backfill = launch(page, operator, "All", FILES)
    terminate_what_is_held(page, operator)
    eventually(lambda: operator.backfill_status(backfill) == "COMPLETED_FAILED", "the backfill ends")
    assert sorted(operator.states(plan)) == ["materialized"] * (FILES - 1) + ["stopped"]
    launch(page, operator, "Failed and missing", 1)
    await_all(operator, plan)


def test_an_aggregate_is_terminated_and_made_again(page: Page, operator: Operation, plan: Plan) -> None:
    def materialize() -> None:
        page.goto(f"{operator.url}/assets/shop/customer_activity")
        page.get_by_text("Materialize", exact=True).first.click()

    receipt = "SELECT run_id FROM migration.aggregate WHERE table_name = 'customer_activity'"
    # A row is gone, so that there is one to insert, at which it can be held.
    execute(
        operator.database_url,
        "DELETE FROM customer_activity WHERE customer_id = (SELECT min(customer_id) FROM customer_activity)",
    )
    operator.hold("customer_activity")
    materialize()
    expect(page.locator("body")).to_contain_text(
        "one row for each customer_id, by the SELECT in customer_activity.sql"
    )
    terminated = terminate_what_is_held(page, operator)
    assert (terminated,) not in query(operator.database_url, receipt)
    busy = "SELECT count(*) FROM pg_stat_activity WHERE state <> 'idle'"
    eventually(lambda: query(operator.database_url, busy) == [(1,)], "only the question itself is running")
    materialize()
    eventually(lambda: operator.runs()[0]["id"] != terminated, "there is another run")
    newest = operator.runs()[0]["id"]
    eventually(lambda: query(operator.database_url, receipt) == [(newest,)], "the aggregate is made")


def test_a_job_is_run_from_its_launchpad(page: Page, operator: Operation, plan: Plan) -> None:
    page.goto(f"{operator.url}/locations/{LOCATION}/jobs/shop_check")
    page.get_by_role("tab", name="Launchpad").click()
    page.get_by_role("button", name="Launch Run").click()
    eventually(lambda: operator.runs()[0]["jobName"] == "shop_check", "there is a run")
    eventually(lambda: operator.runs()[0]["status"] == "SUCCESS", "it ends")


def test_the_numbers_of_a_file_can_be_read(
    page: Page, operator: Operation, plan: Plan, picture: Picture
) -> None:
    planned = max(plan.files, key=lambda planned: planned.file.items)
    page.goto(f"{operator.url}/assets/shop/orders?view=partitions&partition={planned.partition}")
    main = page.locator("body")
    expect(main).to_contain_text("items read, ")
    expect(main).to_contain_text(f"{planned.file.items:,}")
    expect(main).to_contain_text("skipped: sessions expire within a day")
    expect(main).to_contain_text("quarantined: ")
    expect(main).to_contain_text(planned.file.md5)
    expect(main).to_contain_text(planned.file.uri)
    shown = main.inner_text()
    assert re.search(r"\d+\.\d kB|\d+\.\d MB", shown)
    assert not re.search(r"\d\.\d{4,}", shown), "a raw float"
    picture("materialization", HEIGHT)


WIPE = """
mutation Wipe($ranges: [PartitionsByAssetSelector!]!) {
  wipeAssets(assetPartitionRanges: $ranges) { __typename ... on Error { message } }
}"""
