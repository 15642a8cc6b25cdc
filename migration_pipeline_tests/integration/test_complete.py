"""Nothing says *complete* that is not: dry run, verify, the checks and the report, on a real PostgreSQL."""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.defs.checks import check_job, migration_checks
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.defs.verify_job import verify_check, verify_job
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.migration import verification
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.migration.replay import replay_plan
from migration_pipeline.profile.profile import Profile, load_profile
from migration_pipeline.settings import plans_dir
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import ExportFile, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.targets.finishing import finish
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.states import read_states
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.exports import write_export
from migration_pipeline_tests.integration.test_aggregates import files_of, make
from migration_pipeline_tests.integration.test_load import load_all

MODULE = """
from migration_pipeline import Item, Profile, Row, prefix

profile = Profile("stock"{more})

class Thing(Item):
    PK: str
    amount: int

class Stock(Row, table="stock", key="sku"):
    sku: str
    amount: int

@profile.route({route})
def stock(item: Thing) -> Stock:
    return Stock(item.PK, item.amount)

{rules}
"""

numbers = itertools.count()


def thing(number: int, amount: int | str = 1) -> dict[str, Any]:
    return {"PK": {"S": f"SKU#{number}"}, "SK": {"S": "STOCK"}, "amount": {"N": str(amount)}}


BAD = {"PK": {"S": "SKU#bad"}, "SK": {"S": "STOCK"}, "amount": {"S": "many"}}

OTHER = {"PK": {"S": "CART#1"}, "SK": {"S": "CART"}}


class Case:
    """A migration on a machine without Dagster: its commands, its loads, its checks."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.reference = ""

    def profile(self, route: str = 'SK="STOCK"', rules: str = "", more: str = "") -> None:
        """Write the profile, in place of the one before."""
        name = f"stock_{next(numbers)}"
        (self.folder / f"{name}.py").write_text(MODULE.format(route=route, rules=rules, more=more))
        importlib.invalidate_caches()
        self.reference = f"{name}:profile"
        Path(plan_path(plans_dir(), "stock")).unlink(missing_ok=True)

    def plan(self, *files: list[Any], export_id: str = "01700000000000-0a1b2c3d") -> None:
        """Plan an export of these files, and create the tables."""
        folder = self.folder / export_id
        if not folder.exists():
            write_export(folder, files, export_id=export_id)
        assert (
            self.command("plan", "--profile", self.reference, str(folder / "AWSDynamoDB" / export_id))[0] == 0
        )
        assert self.command("ddl", self.reference, "--apply")[0] == 0

    def load(self) -> None:
        """Load the plan's export."""
        plan, profile = self.planned()
        for planned in plan.files:
            file = FileIdentity("stock", "1", planned.export_id, planned.file.name, "run")
            with PostgresTarget(self.url, profile.tables, file) as target:
                FileLoad(
                    planned.file.name, planned.file.items, FileStream(planned.file, Storage()),
                    Transform(profile, dynamodb_json), target, LoadSettings(max_bad_share=1.0),
                ).run()  # fmt: skip

    def planned(self) -> tuple[Plan, Profile]:
        return read_plan(plan_path(plans_dir(), "stock")), load_profile(self.reference)

    def command(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return done.exit_code, done.output

    def verify(self, *options: str) -> tuple[int, str]:
        return self.command("verify", self.reference, *options)

    def report(self) -> tuple[int, str]:
        status, output = self.command("report", self.reference, "-o", str(self.folder / "report.html"))
        verdict = re.findall(r"^(\S.*): \S*report.html$", output, re.MULTILINE)
        assert (status == 0) == (verdict == ["complete"]), output
        return status, output

    def failed_checks(self) -> dict[str, str]:
        """Run all checks; gives what those that fail say."""
        plan, profile = self.planned()
        checks, verification = migration_checks(plan, profile), verify_check(plan, profile)
        definitions = dg.Definitions(
            assets=migration_assets(plan, profile),
            asset_checks=[*checks, verification],
            jobs=[check_job(plan, checks), verify_job(plan, verification)],
            resources={"database": Database(url=self.url)},
        )
        found = [
            each
            for job in ("stock_check", "stock_verify")
            for each in definitions.resolve_job_def(job).execute_in_process().get_asset_check_evaluations()
        ]
        assert len(found) == 8
        assert {each.severity for each in found} == {dg.AssetCheckSeverity.ERROR}
        return {each.check_name: each.description or "" for each in found if not each.passed}


@pytest.fixture
def case(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return Case(tmp_path, database_url)


# -- items that became no row ------------------------------------------------------------------------


def test_items_that_no_rule_takes_are_named_and_no_success(case: Case) -> None:
    case.profile(route='SK="STOKC"')
    case.plan([thing(1), thing(2)], [thing(3), OTHER])
    named = "no rule takes 4 items, with keys SK=… (4); give them a route"
    status, output = case.command("backfill", case.reference, "--dry-run")
    assert (status, f"not complete: {named}" in output) == (1, True), output
    case.load()
    status, output = case.verify()
    assert (status, f"not complete: {named}" in output) == (1, True), output
    status, output = case.report()
    assert (status, "no rule takes 4 items, with keys SK=… (4)" in output) == (1, True), output
    assert output.splitlines()[-1].startswith("not complete: ")
    failed = case.failed_checks()
    assert set(failed) == {"nothing_unrouted", "rows_match_export"}
    assert all("no rule takes 4 items" in told for told in failed.values())


def test_the_profile_may_end_with_a_rule_for_all_that_is_left(case: Case) -> None:
    case.profile(rules='profile.ignore(because="not asked for")')
    case.plan([thing(1), thing(2)], [thing(3), OTHER])
    status, output = case.command("backfill", case.reference, "--dry-run")
    assert (status, "not complete" in output) == (0, False), output
    case.load()
    assert case.verify()[0] == 0
    assert case.report()[0] == 0
    assert case.failed_checks() == {}
    assert query(case.url, "SELECT skipped->>'not asked for' FROM migration.loaded_file ORDER BY file") == [
        (None,), ("1",)
    ]  # fmt: skip


def test_items_in_the_quarantine_are_no_success_unless_the_profile_allows_them(case: Case) -> None:
    case.profile()
    case.plan([thing(1), BAD], [BAD, thing(2)])
    status, output = case.command("backfill", case.reference, "--dry-run")
    assert (status, "not complete: 2 items would go to the quarantine" in output) == (1, True), output
    case.load()
    status, output = case.verify()
    assert (status, "not complete: 2 items are in the quarantine" in output) == (1, True), output
    status, output = case.report()
    assert (status, "2 items are in the quarantine" in output) == (1, True), output
    assert set(case.failed_checks()) == {"nothing_quarantined", "rows_match_export"}

    case.profile(more=", may_quarantine=1")
    case.plan()
    assert (case.command("backfill", case.reference, "--dry-run")[0], case.verify()[0], case.report()[0]) == (
        1, 1, 1
    )  # fmt: skip
    case.profile(more=", may_quarantine=2")
    case.plan()
    status, output = case.verify()
    assert (status, "2 items are in the quarantine, and the profile allows 2" in output) == (0, True)
    assert case.command("backfill", case.reference, "--dry-run")[0] == 0
    status, output = case.report()
    assert (status, "warning: nothing is in the quarantine: 2 items" in output) == (0, True), output
    assert case.failed_checks() == {}


# -- a verification that still holds -----------------------------------------------------------------

CHANGES = {
    "a key": ("UPDATE stock SET sku = 'other' WHERE sku = 'SKU#1'", "its rows were changed since"),
    "a value, and back": (
        "UPDATE stock SET amount = 2 WHERE sku = 'SKU#1'; UPDATE stock SET amount = 1 WHERE sku = 'SKU#1'",
        "its rows were changed since",
    ),
    "a row for another": (
        "DELETE FROM stock WHERE sku = 'SKU#1'; INSERT INTO stock VALUES ('other', 1)",
        "its rows were changed since",
    ),
    "in a savepoint": (
        "DO $$ BEGIN BEGIN UPDATE stock SET amount = 9 WHERE sku = 'SKU#3'; EXCEPTION WHEN division_by_zero THEN NULL; "
        "END; END $$",
        "its rows were changed since",
    ),
    "the table": (
        "CREATE TABLE s AS TABLE stock; DROP TABLE stock; ALTER TABLE s ADD PRIMARY KEY (sku); ALTER TABLE s RENAME TO stock",
        "the table was created again since",
    ),
    "a column": ("ALTER TABLE stock ALTER amount TYPE numeric", "its columns were changed since"),
    "all rows": ("TRUNCATE stock", "its rows were changed since"),
    "no table": ("DROP TABLE stock", "it does not exist"),
}


@pytest.fixture
def verified(case: Case) -> Case:
    case.profile()
    case.plan([thing(n) for n in range(5)], [thing(n) for n in range(5, 9)])
    case.load()
    _, output = case.report()
    assert output.splitlines()[-2].startswith("not verified: ")
    assert f"next: migration-pipeline verify {case.reference}, then this command again" in output
    assert case.verify()[0] == 0
    assert case.report()[0] == 0
    return case


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_since_the_verification_is_seen(verified: Case, change: str) -> None:
    statement, reason = CHANGES[change]
    execute(verified.url, statement)
    status, output = verified.report()
    assert status == 1
    assert f"not verified: {reason}; migration-pipeline verify {verified.reference}" in output


def test_what_changes_nothing_leaves_it_verified(verified: Case) -> None:
    for statement in (
        "VACUUM (FREEZE, ANALYZE) stock",
        "VACUUM FULL stock",
        "CREATE INDEX i ON stock (amount)",
        "BEGIN; DELETE FROM stock; ROLLBACK",
        "SELECT * FROM stock FOR UPDATE",
        "SELECT pg_stat_reset()",
        "UPDATE migration.loaded_file SET retries = 1",
        "ALTER TABLE stock ADD COLUMN more text",
    ):
        execute(verified.url, statement)
        assert verified.report()[0] == 0, statement


def test_a_load_or_a_replay_since_asks_for_another_verification(verified: Case) -> None:
    verified.load()
    assert "not verified: 2 files were loaded or replayed since" in verified.report()[1]
    assert verified.verify()[0] == 0
    assert verified.report()[0] == 0
    line = b'{"Item":{"PK":{"S":"SKU#9"},"SK":{"S":"STOCK"},"amount":{"N":"1"}}}'
    execute(
        verified.url,
        "INSERT INTO migration.quarantine (profile, export_id, file, line, raw, reason, profile_version, run_id) "
        f"SELECT profile, export_id, file, 99, '{line.decode()}', 'r', '1', 'r' FROM migration.loaded_file ORDER BY file LIMIT 1",
    )
    execute(
        verified.url,
        "UPDATE migration.loaded_file SET quarantined = 1, items = items + 1 WHERE file = (SELECT min(file) FROM migration.loaded_file)",
    )
    plan, profile = verified.planned()
    assert replay_plan(plan, profile, verified.url, "replay", lambda _: None).loaded == 1
    assert "not verified: 1 file was loaded or replayed since" in verified.report()[1]


def test_what_is_changed_while_a_verification_reads_is_not_verified(
    verified: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, profile = verified.planned()

    def change_behind_it(file: ExportFile, storage: Storage) -> FileStream:
        if file == plan.files[1].file:  # a row of the first file, which is compared by now
            execute(verified.url, "UPDATE stock SET amount = 7 WHERE sku = 'SKU#1'")
        return FileStream(file, storage)

    monkeypatch.setattr(verification, "FileStream", change_behind_it)
    compared = verification.verify(plan, profile, verified.url, "run")
    assert compared.faults("stock") == 0
    assert query(verified.url, "SELECT amount FROM stock WHERE sku = 'SKU#1'") == [(7,)]
    assert "not verified: its rows were changed since" in verified.report()[1]


def test_the_state_of_a_partitioned_table_is_that_of_its_parts(case: Case) -> None:
    execute(
        case.url,
        "CREATE TABLE stock (sku text PRIMARY KEY, amount bigint NOT NULL) PARTITION BY LIST (sku);"
        "CREATE TABLE a PARTITION OF stock FOR VALUES IN ('a'); CREATE TABLE b PARTITION OF stock DEFAULT;"
        "INSERT INTO stock VALUES ('a', 1), ('b', 1), ('c', 1)",
    )
    case.profile()
    tables = load_profile(case.reference).all_tables
    state: Callable[[], Any] = lambda: read_states(case.url, tables)[1]["stock"]  # noqa: E731
    before = state()
    assert before.rows == 3
    execute(case.url, "VACUUM (FREEZE, ANALYZE)")
    assert state().change_since(before) == ""
    execute(case.url, "UPDATE b SET amount = amount WHERE sku = 'c'")
    assert state().change_since(before) == "its rows were changed since"


# -- rehearsal, then final ---------------------------------------------------------------------------


def test_a_newer_export_is_judged_by_itself_and_rows_of_the_older_one_are_named(case: Case) -> None:
    case.profile()
    twice = thing(3, 30)  # of one key with another: a collision of the rehearsal's own
    case.plan([thing(n) for n in range(10)] + [twice, BAD], export_id="01600000000000-rehearsal")
    case.load()
    assert {"no_key_collisions_stock", "nothing_quarantined"} <= set(case.failed_checks())

    gone, changed = {7, 8}, {0, 1, 2}
    final = [thing(n, 100 if n in changed else 1) for n in range(12) if n not in gone]
    case.plan(final[:6], final[6:], export_id="01700000000000-final")
    case.load()
    expected = (
        "2 rows in the tables come from no item of this plan; exports loaded before: 01600000000000-rehearsal; no command "
        "deletes such rows"
    )
    status, output = case.verify("--extra")
    assert (status, expected in output) == (1, True), output
    assert "quarantine" not in output
    status, output = case.report()
    assert (status, expected in output, "quarantine" in output) == (1, True, False), output
    failed = case.failed_checks()
    assert set(failed) == {"rows_match_export"}, failed

    # The way out that the documents name: first the keys, then this statement.
    assert case.verify("--extra")[0] == 1
    execute(case.url, _documented_delete())
    assert query(case.url, "SELECT count(*) FROM stock") == [(10,)]
    assert case.verify()[0] == 0
    assert case.report()[0] == 0
    assert case.failed_checks() == {}
    ((kept,),) = query(case.url, "SELECT count(*) FROM migration.quarantine")
    assert kept == 1, "what the rehearsal left there is not the plan's"


def _documented_delete() -> str:
    document = (Path(__file__).parents[2] / "docs" / "verification.md").read_text()
    (statement,) = re.findall(r"^DELETE FROM .*?;$", document, re.MULTILINE | re.DOTALL)
    assert isinstance(statement, str)
    for ours, theirs in (("orders", "stock"), ("shop", "stock"), ("order_id", "sku")):
        statement = statement.replace(ours, theirs)
    return statement


# -- what is made of all files -----------------------------------------------------------------------


def test_an_aggregate_stays_verified_when_what_had_landed_is_dropped_and_not_when_it_is_made_again(
    shop_database_url: str, shop_export: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", shop_database_url)
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    shop, export = load_profile("shop"), read_export(str(shop_export), Storage())
    command = Case(tmp_path, shop_database_url).command
    report = ("report", "shop", "-o", str(tmp_path / "report.html"))
    assert command("plan", "--profile", "shop", str(shop_export))[0] == 0
    load_all(shop_database_url, export)
    make(shop_database_url, shop, files_of(export))
    assert command("verify", "shop")[0] == 0
    assert command(*report)[0] == 0
    make(shop_database_url, shop, files_of(export))
    status, output = command(*report)
    assert (status, "the rows of customer_activity match the export: not verified: they were made again" in output) == (
        1, True
    )  # fmt: skip
    assert command("verify", "shop")[0] == 0
    finish(shop_database_url, shop, drop_landing=True)
    assert command(*report)[0] == 0
    assert command("verify", "shop")[0] == 0, "what can be compared still is as it was"
    assert command(*report)[0] == 0
    load_all(shop_database_url, export)
    finish(shop_database_url, shop, drop_landing=True)
    status, output = command(*report)
    assert status == 1
    assert "and what files had landed was dropped: load all of them again first" in output
