"""`migration-pipeline doctor` at a running migration, and at each thing that can lack; nothing secret in what it says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.operations.doctor.dagster import _daemons, _launcher, _queue
from migration_pipeline.operations.doctor.database import database
from migration_pipeline.operations.doctor.exports import _planned, _read
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import ExportFile, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.targets.ddl import ddl
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_s3 import KEY, refusing
from migration_pipeline_tests.integration.test_tls import TlsEnd, certificates, socket_of
from migration_pipeline_tests.operating import Bucket, Operation, operation
from migration_pipeline_tests.servers import pooled

__all__ = ["certificates", "refusing"]

SECRET = "s3cr3t"
shop = load_profile("shop")


def doctor(*arguments: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """Call it; gives the status, and what it found by topic."""
    done = CliRunner().invoke(main, ["doctor", "--json", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert SECRET not in done.output
    document = json.loads(done.output)
    assert document["ready"] == (done.exit_code == 0)
    found: dict[str, list[dict[str, str]]] = {}
    for finding in document["findings"]:
        found.setdefault(finding["topic"], []).append(finding)
    return done.exit_code, found


def states(found: dict[str, list[dict[str, str]]], topic: str) -> list[str]:
    return [finding["state"] for finding in found[topic]]


# -- a migration in operation -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, shop_export: Path
) -> Iterator[tuple[Operation, Bucket, Plan]]:
    with operation(tmp_path_factory.mktemp("doctor"), "doctor-bucket") as (made, bucket):
        yield made, bucket, made.plan("shop", bucket.upload(shop_export), "shop")


@pytest.fixture
def at_work(
    running: tuple[Operation, Bucket, Plan], monkeypatch: pytest.MonkeyPatch
) -> tuple[Operation, Bucket, Plan]:
    """The environment of the commands."""
    for name, value in running[0].environment.items():
        monkeypatch.setenv(name, value)
    return running


def test_a_migration_that_can_begin_is_found_so(at_work: tuple[Operation, Bucket, Plan]) -> None:
    made, bucket, plan = at_work
    status, found = doctor("shop", "--export", plan.exports[0].uri)
    wrong = [each for some in found.values() for each in some if each["state"] != "ok"]
    assert (status, [each for each in wrong if each["topic"] != "Python"]) == (0, [])
    texts = {topic: " | ".join(each["text"] for each in some) for topic, some in found.items()}
    assert "PostgreSQL 18" in texts["database"]
    assert "customers" in texts["tables"]
    assert "credentials found: env" in texts["AWS"]
    assert f"s3://{bucket.name}/AWSDynamoDB/{plan.exports[0].id}/data: all 4 files are there" in texts["list"]
    assert "can be read, and is a gzip file" in texts["get"]
    assert "4 files, 6,000 items, all there" in texts["export"]
    assert "the plan of shop is shown, with its 4 files" in texts["code"]
    assert "alive" in texts["daemon"]
    assert texts["launcher"] == "CheckedRunLauncher"
    assert texts["queue"] == "at most 1 run at once; 0 running, 0 waiting"
    assert made.url in texts["Dagster"]


def test_it_says_the_same_to_people(at_work: tuple[Operation, Bucket, Plan]) -> None:
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert any(line.startswith("ok ") and "CheckedRunLauncher" in line for line in lines)
    assert lines[-1].startswith("0 failed, ")
    assert max(map(len, map(str.rstrip, lines))) < 300


def test_a_file_that_is_gone_or_replaced_or_no_gzip(at_work: tuple[Operation, Bucket, Plan]) -> None:
    _, bucket, plan = at_work
    keys = [planned.file.uri.removeprefix(f"s3://{bucket.name}/") for planned in plan.files]
    kept = {key: bucket.get(key) for key in keys}
    try:
        bucket.client.delete_object(Bucket=bucket.name, Key=keys[0])
        bucket.put(keys[1], b"other")
        status, found = doctor("shop")
        assert status == 1
        assert [each["text"].partition(": ")[2] for each in found["list"]] == [
            f"1 of 4 files is missing, {plan.files[0].file.name} first",
            f"1 of 4 files is of another size than planned, {plan.files[1].file.name} first",
        ]
        assert found["get"][0]["text"].endswith(f"{plan.files[1].file.name}: is no gzip file")
        assert all(each["way_out"] for each in found["list"])
    finally:
        for key, body in kept.items():
            bucket.put(key, body)


def test_a_plan_that_dagster_does_not_show(
    at_work: tuple[Operation, Bucket, Plan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = write_sample(tmp_path / "other", items=300, files=2, seed=9)
    monkeypatch.setenv("MIGRATION_PLANS", str(tmp_path / "plans"))
    plan = make_plan(shop, "shop", [read_export(str(other), Storage())])
    write_plan(plan, tmp_path / "plans")
    status, found = doctor("shop")
    assert status == 0
    (warned,) = [each for each in found["code"] if each["state"] == "warning"]
    assert warned["text"].startswith("Dagster does not show the plan of shop")
    assert "MIGRATION_PLANS" in warned["way_out"]


# -- what lacks, one by one --------------------------------------------------------------------------


def test_an_empty_machine_is_told_all_that_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    status, found = doctor()
    assert status == 1
    assert states(found, "plan") == ["skipped"]
    assert "no database is named" in found["database"][0]["text"]
    assert "no Dagster at http://127.0.0.1:1" in found["Dagster"][0]["text"]


def test_a_profile_and_a_plan_that_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    assert "no module" in doctor("nowhere.at_all:profile")[1]["profile"][0]["text"].lower()
    _, found = doctor("shop")
    assert states(found, "profile") == ["ok"]
    assert "no plan; make one with" in found["plan"][0]["text"]


def test_an_export_that_cannot_be_read(tmp_path: Path, shop_export: Path) -> None:
    _, found = doctor("--export", str(tmp_path), "--export", str(shop_export))
    assert states(found, "export") == ["failed", "ok"]
    assert "not a DynamoDB export" in found["export"][0]["text"]
    assert states(found, "get") == ["ok"]


def test_a_key_that_the_role_may_not_use_is_named(refusing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    refusing.error = ("AccessDenied", f"not authorized to perform: kms:Decrypt on resource: {KEY} because")
    (found,) = _read([ExportFile("f.gz", "s3://bucket/f.gz", 1, "", 10)], Storage())
    assert (found.topic, found.state) == ("get", "failed")
    assert f"the role needs kms:Decrypt on the KMS key {KEY}" in found.text
    refusing.error = ("AccessDenied", "Access Denied")
    (found,) = _planned([ExportFile("f.gz", "s3://bucket/f.gz", 1, "", 10)], Storage())
    assert (found.topic, found.state) == ("list", "failed")
    assert "the role needs s3:GetObject and s3:ListBucket" in found.text


def test_no_secret_of_a_url_is_told(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, words in (
        (f"postgresql://nobody:{SECRET}@127.0.0.1:1/shop", "(database shop at 127.0.0.1:1 as nobody)"),
        (f"postgresql://nobody:x/{SECRET}@127.0.0.1:1/shop", "no database"),
        (postgres.url.replace("//postgres@", f"//nobody:{SECRET}@"), "as nobody)"),
    ):
        monkeypatch.setenv("MIGRATION_DATABASE_URL", url)
        status, found = doctor()
        assert status == 1
        assert words in found["database"][0]["text"]


def looked(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Look at a database alone; gives state and text by topic."""
    monkeypatch.setenv("MIGRATION_DATABASE_URL", url)
    return {found.topic: (found.state, found.text, found.way_out) for found in database([shop])}


def test_privileges_that_lack_are_named(
    postgres: EmbeddedPostgres, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name,),) = query(database_url, "SELECT current_database()")
    execute(database_url, "DROP ROLE IF EXISTS small")
    execute(database_url, f"CREATE ROLE small LOGIN; REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    url = database_url.replace("//postgres@", "//small@")
    found = looked(url, monkeypatch)
    assert found["privileges"][0] == "warning"
    assert "small may not (docs/security.md)" in found["privileges"][2]
    assert "tables" not in found
    execute(database_url, ddl(shop.all_tables))
    execute(
        database_url,
        "GRANT USAGE ON SCHEMA landing TO small;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, landing TO small;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA migration TO small",
    )
    state, text, _ = looked(url, monkeypatch)["tables"]
    assert state == "failed", "without USAGE its tables are out of reach"
    assert "small may not write all of the bookkeeping" in text
    execute(database_url, "GRANT USAGE ON SCHEMA migration TO small")
    assert looked(url, monkeypatch)["tables"][0] == "ok"
    execute(database_url, "REVOKE INSERT ON migration.batch FROM small")
    found = looked(url, monkeypatch)
    assert found["privileges"] == (
        "failed", "small may not make temporary tables", f'GRANT TEMPORARY ON DATABASE "{name}" TO "small"'
    )  # fmt: skip
    assert found["tables"][0] == "failed"
    execute(database_url, "DROP OWNED BY small; DROP ROLE small")


def test_a_table_that_does_not_fit_is_named(shop_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert looked(shop_database_url, monkeypatch)["tables"][0] == "ok"
    execute(shop_database_url, "ALTER TABLE orders DROP COLUMN order_id CASCADE")
    found = looked(shop_database_url, monkeypatch)
    assert found["tables"][0] == "failed"
    assert "orders" in found["tables"][1]


def test_tls_is_told(
    postgres: EmbeddedPostgres,
    certificates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with TlsEnd(socket_of(postgres), certificates) as front:
        threading.Thread(target=front.serve_forever, daemon=True).start()
        port = front.server_address[1]
        # The name is one of another machine, as far as the check can see.
        url = f"postgresql://postgres@db.example.com:{port}/postgres?hostaddr=127.0.0.1"
        assert looked(f"{url}&sslmode=require", monkeypatch)["TLS"][:2] == (
            "warning", "TLSv1.3, but sslmode=require does not check who answers"
        )  # fmt: skip
        url = f"postgresql://postgres@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={certificates / 'right.crt'}"
        assert looked(url, monkeypatch)["TLS"][:2] == ("ok", "TLSv1.3")
        front.shutdown()
    assert looked(postgres.url, monkeypatch)["TLS"][0] == "ok"


def test_a_server_that_does_not_wait_for_its_disk_is_told(
    primary: EmbeddedPostgres, postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked(primary.url, monkeypatch)["durability"][:2] == (
        "warning",
        "off: fsync; a crash of the server's machine may lose or spoil what is recorded as loaded",
    )
    assert looked(postgres.url, monkeypatch)["durability"][0] == "ok"


def test_a_pooler_is_noticed(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert looked(postgres.url, monkeypatch)["pooler"][1] == "none: connections go to the server"
    with pooled(postgres, tmp_path / "pool", "transaction") as url:
        assert "something like PgBouncer" in looked(url, monkeypatch)["pooler"][1]


def test_a_database_that_cannot_hold_all_characters(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(postgres.url, "DROP DATABASE IF EXISTS narrow")
    execute(
        postgres.url,
        "CREATE DATABASE narrow ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0",
    )
    state, text, way_out = looked(postgres.url.replace("/postgres?", "/narrow?"), monkeypatch)["database"]
    assert (state, "LATIN1" in text, "UTF8" in way_out) == ("failed", True, True)
    execute(postgres.url, "DROP DATABASE narrow")


# -- Dagster's answers ---------------------------------------------------------------------------------


def daemon(
    name: str, beat: float | None, *, healthy: bool = True, errors: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "daemonType": name, "required": True, "healthy": healthy, "lastHeartbeatTime": beat,
        "lastHeartbeatErrors": [{"message": error} for error in errors],
    }  # fmt: skip


def test_a_daemon_that_is_silent_or_ill_is_not_alive() -> None:
    now = 1_700_000_000.0
    assert _daemons([daemon("BACKFILL", now - 60), daemon("QUEUE", now - 170)], now).state == "ok"
    silent = _daemons([daemon("BACKFILL", now - 60), daemon("QUEUE", now - 190)], now)
    assert (silent.state, silent.text) == ("failed", "not alive (queue); last heard 2023-11-14 22:10:10 UTC")
    assert _daemons([daemon("BACKFILL", None)], now).text == "not alive (backfill)"
    ill = _daemons([daemon("BACKFILL", now, healthy=False, errors=("no disk\nTraceback",))], now)
    assert ill.text.endswith(": no disk")
    assert "dagster-daemon run" in ill.way_out


def test_a_launcher_that_does_not_look_after_its_runs_and_no_queue() -> None:
    assert _launcher({"runLauncher": {"name": "DefaultRunLauncher"}}).state == "warning"
    assert _launcher({"runLauncher": {"name": "EcsRunLauncher"}}).state == "ok"
    none = {"instance": {"runQueuingSupported": False, "runQueueConfig": None}, "queued": {}, "started": {}}
    assert _queue(none).state == "warning"
    many = {
        "instance": {"runQueuingSupported": True, "runQueueConfig": {"maxConcurrentRuns": -1}},
        "queued": {"results": [1, 2]},
        "started": {"results": []},
    }
    assert _queue(many).text == "any number of runs at once; 0 running, 2 waiting"
