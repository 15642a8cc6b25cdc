"""The code location loads as Dagster loads it, without a warning of ours, and says what an operator needs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import dagster_webserver
import msgspec
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from migration_pipeline.cli import main
from migration_pipeline.defs.aggregates import downstream_assets
from migration_pipeline.defs.metadata import PROFILE_TAG
from migration_pipeline.defs.migration import Database, migration_assets, replay_job
from migration_pipeline.defs.notify import backfill_sensor
from migration_pipeline.defs.unloadable import unloadable_plan
from migration_pipeline.defs.whole import migration_definitions
from migration_pipeline.engine.load import EXAMPLES
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.oracle import expected

TOP = Path(__file__).parents[2]


@pytest.mark.parametrize("planned", [False, True])
def test_definitions_validate_without_a_warning(tmp_path: Path, shop_export: Path, planned: bool) -> None:
    if planned:
        made = CliRunner().invoke(main, ["plan", "--profile", "shop", str(shop_export)])
        assert made.exit_code == 0
    shutil.copy(TOP / "dagster.yaml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "dagster", "definitions", "validate", "-w", str(TOP / "workspace.yaml")],
        env=dict(os.environ) | {"DAGSTER_HOME": str(tmp_path)},
        cwd=TOP,
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert "Validation successful" in output
    # Dagster warns that it would rather see `dg check defs`; that warning is about the command.
    assert "arning" not in output.replace(
        "SupersessionWarning: Function `definitions_validate_command`", ""
    ), output


BROKEN = """
from migration_pipeline import Item, Profile, Row

profile = Profile("broken")

class Thing(Item):
    PK: str

class Kept(Row, table="kept", key="pk"):
    pk: str

@profile.route()
def keep(item: Thing) -> Kept:
    return Kept(item.PK)
"""


def test_a_plan_that_does_not_load_fails_alone_and_visibly_and_no_database_is_guessed(
    tmp_path: Path, shop_export: Path, shop_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run worker is given: plans, of which the profile of one has an error by now."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(TOP / "dagster.yaml", tmp_path)
    (tmp_path / "broken.py").write_text(BROKEN)
    for profile in ("shop", "broken:profile"):
        made = CliRunner().invoke(main, ["plan", "--profile", profile, str(shop_export)])
        assert made.exit_code == 0, made.output
    with (tmp_path / "broken.py").open("a") as file:
        file.write("import no_such_module\n")
    partition = make_plan(load_profile("shop"), "shop", [read_export(str(shop_export), Storage())]).files[3]

    def materialize(*arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "dagster",
                "asset",
                "materialize",
                "-m",
                "migration_pipeline.definitions",
                *list(arguments),
            ],
            env={
                **os.environ,
                "DAGSTER_HOME": str(tmp_path),
                "PYTHONPATH": f"{TOP}:{tmp_path}",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    why = "the plan of broken does not load: profile broken:profile: broken does not import: ModuleNotFoundError"
    code, output = materialize("--select", "broken/plan_does_not_load")
    assert code != 0
    assert f"\nFailed: {why}" in output
    assert "broken.py:15" in output

    tables = ("--select", "shop/customers,shop/orders,shop/order_lines,shop/shop_events")
    code, output = materialize(*tables, "--partition", partition.partition)
    assert code != 0
    assert 'the environment variable "MIGRATION_DATABASE_URL" which is not set' in output
    code, output = materialize(
        *tables, "--partition", partition.partition, MIGRATION_DATABASE_URL=shop_database_url
    )
    assert code == 0, output
    assert query(shop_database_url, "SELECT file FROM migration.loaded_file") == [(partition.file.name,)]

    for command in (["ddl", "shop", "--apply"], ["verify", "shop"]):
        told = CliRunner().invoke(main, command)
        assert told.exit_code == 2
        assert "no database is named: set MIGRATION_DATABASE_URL=postgresql://" in told.output


def test_assets_say_what_an_operator_needs(shop_export: Path) -> None:
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    repository = dg.Definitions(
        assets=[*migration_assets(plan, shop), *downstream_assets(plan, shop)],
        resources={
            "database": dg.ResourceDefinition.none_resource(),
        },
    ).resolve_asset_graph()
    export, orders = (repository.get(dg.AssetKey(["shop", name])) for name in ("dynamodb_export", "orders"))
    assert orders.parent_keys == {export.key}
    assert orders.partitions_def is not None
    assert list(orders.partitions_def.get_partition_keys()) == [file.partition for file in plan.files]
    assert orders.metadata["dagster/table_name"] == "orders"
    schema = orders.metadata["dagster/column_schema"]
    columns = {c.name: (c.type, c.constraints.nullable, c.description) for c in schema.columns}
    assert columns["total"] == ("numeric", False, "In `currency`, with all its digits.")
    assert columns["coupon"] == ("text", True, None)
    assert schema.constraints.other == ["PRIMARY KEY (order_id)"]
    assert (orders.group_name, orders.kinds) == ("shop", {"postgres"})
    assert orders.description == "Orders, one row each; their lines are in order_lines."
    assert orders.metadata["rules"].value == (
        "Items that become rows:\n\n"
        "- `PK` = `CUSTOMER#…`, `SK` = `ORDER#…`: An order, kept in its customer's collection."
    )
    landed, activity = (
        repository.get(dg.AssetKey(["shop", name])) for name in ("shop_events", "customer_activity")
    )
    assert landed.metadata["dagster/column_schema"].constraints.other == []  # a landing table has no key
    assert activity.parent_keys == {landed.key}
    assert activity.description == (
        "What each customer did, in sum: from events in all files.\n\nMade from the rows of all files in "
        "landing.shop_events, one row for each customer_id, by the SELECT in customer_activity.sql."
    )
    assert "rules" not in activity.metadata
    assert export.kinds == {"dynamodb", "file"}  # an export in a folder
    assert (
        "- `SK` = `SESSION` → skipped: sessions expire within a day"
        in str(export.metadata["rules"].value).splitlines()
    )
    assert export.metadata["items"] == 6_000
    assert re.fullmatch(r"\d+\.\d kB compressed", export.metadata["size"])
    for asset in (export, orders):
        documentation = asset.metadata["documentation"].value
        assert "the sort key tells what an item is" in documentation
        assert "shop_replay" in documentation


def test_a_plan_that_was_made_before_plans_named_their_assets_keeps_its_digest(shop_export: Path) -> None:
    plan = make_plan(load_profile("shop"), "shop", [read_export(str(shop_export), Storage())])
    before = msgspec.structs.replace(plan, tables=(), aggregates={})
    fields = msgspec.json.decode(before.content)
    assert not {"tables", "aggregates"} & set(fields)
    assert msgspec.json.decode(before.content, type=Plan) == before
    assert msgspec.json.decode(plan.content, type=Plan) == plan
    assert plan.tables == ("customers", "orders", "order_lines", "shop_events")
    assert plan.aggregates == {"customer_activity": ("shop_events",)}
    # As it was in the version before: the fields in their order, spelled as msgspec spells them.
    assert msgspec.json.format(msgspec.json.encode(fields), indent=1) + b"\n" == before.content


@pytest.mark.parametrize("name", ["shop", "pictures"])
def test_what_stands_for_a_plan_that_does_not_load_is_the_same_graph(name: str, shop_export: Path) -> None:
    """Dagster fails a backfill whose assets or files are gone, and makes aggregates first that hang on nothing."""
    profile = load_profile(name)
    plan = make_plan(profile, name, [read_export(str(shop_export), Storage())], files_per_run=2)
    database = dg.Definitions(resources={"database": dg.ResourceDefinition.none_resource()})
    real = dg.Definitions.merge(migration_definitions(plan, profile), database).resolve_asset_graph()
    stands = dg.Definitions(unloadable_plan(name, "why", plan)).resolve_asset_graph()
    for key in real.get_all_asset_keys():
        one, other = real.get(key), stands.get(key)
        assert other.partitions_def == one.partitions_def
        assert other.parent_keys == one.parent_keys
        assert other.backfill_policy == one.backfill_policy
        assert other.is_executable == one.is_executable
        if one.is_executable:
            assert stands.assets_def_for_key(key).op.name == real.assets_def_for_key(key).op.name
            assert "does not load: why" in (other.description or "")
    assert stands.get_all_asset_keys() - real.get_all_asset_keys() == {
        dg.AssetKey([name, "plan_does_not_load"])
    }


MARKDOWN = re.compile(r"[`*]|^#+ |^\s*[-+] |\]\(", re.MULTILINE)


def test_what_lists_show_is_a_sentence_and_no_markdown(shop_export: Path) -> None:
    """The catalog, the list of jobs and the launchpad show descriptions as they stand, on one line."""
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    repository = dg.Definitions.merge(
        migration_definitions(plan, shop),
        dg.Definitions(
            assets=unloadable_plan("broken", "its profile does not import"),
            sensors=[backfill_sensor([(plan, shop)])],
            resources={"database": dg.ResourceDefinition.none_resource()},
        ),
    ).get_repository_def()
    graph = repository.asset_graph
    shown = {
        **{key.to_user_string(): graph.get(key).description for key in graph.get_all_asset_keys()},
        **{key.to_user_string(): graph.get_check_spec(key).description for key in graph.asset_check_keys},
        **{job.name: job.description for job in repository.get_all_jobs() if not job.name.startswith("__")},
        **{sensor.name: sensor.description for sensor in repository.sensor_defs},
    }
    assert {"shop_migrate", "shop_check", "shop_verify", "shop_replay"} < set(shown)
    assert len(shown) > 20
    for name, text in shown.items():
        assert text, f"{name} has no description"
        assert text[0].isupper(), name
        assert text.endswith("."), name
        assert not MARKDOWN.search(text), (name, text)


def test_each_job_stands_in_the_table_of_buttons(shop_export: Path) -> None:
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    table = re.findall(r"^\|.*\|$", (TOP / "docs" / "ui.md").read_text(), re.MULTILINE)
    for job in migration_definitions(plan, shop).jobs or ():
        assert [row for row in table if f"`…{job.name.removeprefix('shop')}`" in row], job.name


def test_each_button_of_the_table_is_one_of_the_ui() -> None:
    chunks = (Path(dagster_webserver.__file__).parent / "webapp/build/_next/static/chunks").rglob("*.js")
    ui = "".join(path.read_text() for path in chunks)
    page = (TOP / "docs" / "ui.md").read_text()
    rows = re.findall(r"^\| .*\|$", page.partition("## Which button")[2].partition("\n## ")[0], re.MULTILINE)
    buttons = {name for row in rows for name in re.findall(r"\*([A-Z][^*]+)\*", row)}
    assert len(buttons) > 8
    for name in buttons:
        assert re.search(rf"[\"`]{re.escape(name)}[ \"`…]", ui), name


def test_column_comments_reach_the_database(shop_database_url: str) -> None:
    comments = query(
        shop_database_url,
        "SELECT attname, col_description(attrelid, attnum) FROM pg_attribute "
        "WHERE attrelid = 'order_lines'::regclass AND attnum > 0 ORDER BY attnum",
    )
    assert dict(comments)["weight_kg"] == "Kilograms; NULL where nobody weighed it."
    assert dict(comments)["gift"] is None


def test_the_production_instance_loads_on_postgresql_storage(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(TOP / "dagster.production.yaml", tmp_path / "dagster.yaml")
    monkeypatch.setenv("DAGSTER_PG_URL", database_url.replace("postgresql:", "postgresql+psycopg2:"))
    monkeypatch.setenv("DAGSTER_LOGS_BUCKET", "logs")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        assert type(instance.event_log_storage).__name__ == "PostgresEventLogStorage"
        assert type(instance.compute_log_manager).__name__ == "S3ComputeLogManager"
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        assert queue.max_concurrent_runs == 3
        (limit,) = queue.tag_concurrency_limits
        assert (limit["key"], limit["limit"]) == (PROFILE_TAG, 2)
    tables = query(database_url, "SELECT count(*) FROM pg_tables WHERE tablename IN ('runs', 'event_logs')")
    assert tables == [(2,)]


def test_a_run_takes_its_batch_size_from_its_config_and_tells_what_it_does(
    shop_export: Path, shop_database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    _, load = migration_assets(plan, shop)
    assert isinstance(load, dg.AssetsDefinition)
    planned = max(plan.files, key=lambda planned: planned.file.items)

    def run(batch_items: int) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            [load],
            partition_key=planned.partition,
            resources={"database": Database(url=shop_database_url)},
            run_config={"ops": {"shop_load": {"config": {"batch_items": batch_items}}}},
        )

    result = run(100)
    written = len({xmin for (xmin,) in query(shop_database_url, "SELECT xmin::text FROM order_lines")})
    assert written > planned.file.items * 0.34 / 100 > 5, "a transaction for at most 100 items"
    metadata = result.asset_materializations_for_node("shop_load")[0].metadata
    assert metadata["items"].value == planned.file.items
    assert metadata["md5"].value == planned.file.md5
    log = capfd.readouterr().err
    assert f"{planned.file.name}: start, {planned.file.items:,} items" in log
    assert f"{planned.file.name}: done, {planned.file.items:,} items in" in log
    with pytest.raises(ValidationError, match="batch_items\n  Input should be greater than 0"):
        run(0)


def test_a_failed_run_tells_places_and_no_values(
    shop_export: Path, shop_database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """PostgreSQL's own text would quote the row: it must not reach an event, nor the log, by any chain of causes."""
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    _, load = migration_assets(plan, shop)
    assert isinstance(load, dg.AssetsDefinition)
    execute(shop_database_url, "ALTER TABLE order_lines ADD CONSTRAINT none CHECK (title = '')")
    titles = [row[3] for row in expected(shop_export)[0]["order_lines"]]
    result = dg.materialize(
        [load],
        partition_key=max(plan.files, key=lambda planned: planned.file.items).partition,
        resources={"database": Database(url=shop_database_url)},
        raise_on_error=False,
    )
    assert not result.success
    assert result.asset_materializations_for_node("shop_load") == []
    captured = capfd.readouterr()
    told = "".join(map(repr, result.all_events)) + captured.out + captured.err
    assert "order_lines: CheckViolation (SQLSTATE 23514) constraint none" in told
    assert not [title for title in titles if title in told]
    assert "Failing row" not in told


def test_quarantine_and_retries_show_in_metadata_and_log_and_a_job_replays(
    shop_export: Path, shop_database_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    _, load = migration_assets(plan, shop)
    assert isinstance(load, dg.AssetsDefinition)
    planned = max(plan.files, key=lambda planned: planned.file.items)
    resources = {"database": Database(url=shop_database_url)}
    execute(
        shop_database_url,
        """
        ALTER TABLE order_lines ADD CONSTRAINT c CHECK (order_id > '08');
        CREATE SEQUENCE strikes;
        CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('strikes') <= 2 THEN RAISE 'struck' USING ERRCODE = '40001'; END IF; RETURN NULL;
        END $$;
        CREATE TRIGGER strike BEFORE INSERT ON customers FOR EACH STATEMENT EXECUTE FUNCTION strike()
        """,
    )
    result = dg.materialize([load], partition_key=planned.partition, resources=resources)
    ((bad,),) = query(shop_database_url, "SELECT count(*) FROM migration.quarantine")
    assert bad > 0
    reason = "order_lines: CheckViolation (SQLSTATE 23514) constraint c"
    metadata = result.asset_materializations_for_node("shop_load")[0].metadata
    assert metadata["quarantined"].value == bad
    assert metadata["quarantined_by_reason"].value == {reason: bad}
    assert metadata["retries"].value == 2
    account = str(metadata["account"].value)
    assert f"| {planned.file.items:,} | items read, " in account
    assert f"| {bad:,} | quarantined: {reason} |" in account
    assert "| skipped: sessions expire within a day |" in account
    (line,) = query(shop_database_url, "SELECT line FROM migration.quarantine ORDER BY line LIMIT 1")[0]
    examples = str(metadata["quarantine_examples"].value).splitlines()
    refused = "CheckViolation (SQLSTATE 23514) constraint c"
    assert f"| {line} | order_lines | 23514 | {refused} |" in examples
    assert len([example for example in examples if refused in example]) == min(bad, EXAMPLES)
    log = capfd.readouterr().err
    assert f"{planned.file.name}: quarantined {bad:,}: {reason}" in log
    assert log.count("SerializationFailure (SQLSTATE 40001); try ") == 2
    execute(shop_database_url, "ALTER TABLE order_lines DROP CONSTRAINT c")
    replayed = replay_job(plan, shop).execute_in_process(resources=resources)
    assert replayed.success
    assert (
        f"{bad:,} items replayed: {bad:,} loaded, 0 skipped, 0 still in quarantine" in capfd.readouterr().err
    )
    assert query(shop_database_url, "SELECT quarantined FROM migration.loaded_file") == [(0,)]


def test_replay_on_the_command_line(
    shop_export: Path, shop_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", shop_database_url)
    assert CliRunner().invoke(main, ["plan", "--profile", "shop", str(shop_export)]).exit_code == 0
    nothing = CliRunner().invoke(main, ["replay", "shop"])
    assert (nothing.exit_code, nothing.output) == (
        0,
        "nothing to replay: no loaded file has items in quarantine\n",
    )
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    _, load = migration_assets(plan, shop)
    assert isinstance(load, dg.AssetsDefinition)
    planned = max(plan.files, key=lambda planned: planned.file.items)
    execute(shop_database_url, "ALTER TABLE order_lines ADD CONSTRAINT c CHECK (order_id > '08')")
    dg.materialize(
        [load], partition_key=planned.partition, resources={"database": Database(url=shop_database_url)}
    )
    still_bad = CliRunner().invoke(main, ["replay", "shop"])
    assert still_bad.exit_code == 1
    assert "still bad: " in still_bad.output
    assert "order_lines: CheckViolation (SQLSTATE 23514) constraint c" in still_bad.output
    execute(shop_database_url, "ALTER TABLE order_lines DROP CONSTRAINT c")
    mended = CliRunner().invoke(main, ["replay", "shop"])
    assert mended.exit_code == 0
    assert "0 still in quarantine" in mended.output
