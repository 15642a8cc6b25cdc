"""TLS, secrets, hostile names and limits.

What docs/security.md claims is tested here; its SQL, settings and S3 policy are read from it and used as they stand.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, urlsplit

import boto3
import dagster as dg
import psycopg2
import pytest
from click.testing import CliRunner
from moto.core import set_initial_no_auth_action_count

from migration_pipeline import Item, Profile, Row, attribute, column, prefix
from migration_pipeline.cli import main
from migration_pipeline.defs.checks import check_job, migration_checks
from migration_pipeline.defs.migration import Database, migration_assets, replay_job
from migration_pipeline.defs.verify_job import verify_check, verify_job
from migration_pipeline.demo.postgres import EmbeddedPostgres
from migration_pipeline.engine.file_report import FileReport
from migration_pipeline.engine.load import FileLoad, LoadSettings
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.plan import Plan, make_plan
from migration_pipeline.migration.plans import write_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources import dynamodb_json
from migration_pipeline.sources.export import Export, ExportFile, read_export
from migration_pipeline.sources.storage import Storage, StorageError
from migration_pipeline.sources.stream import FileStream
from migration_pipeline.sources.values import integer
from migration_pipeline.targets.connection import no_database
from migration_pipeline.targets.ddl import create_tables, ddl
from migration_pipeline.targets.postgres import FileIdentity, PostgresTarget
from migration_pipeline.targets.receipts import count_rows, read_receipts
from migration_pipeline_tests.chaos import lab
from migration_pipeline_tests.conftest import execute, query
from migration_pipeline_tests.integration.test_aggregates import files_of, make
from migration_pipeline_tests.integration.test_quarantine import Lines, load_lines, load_shop, replay_file
from migration_pipeline_tests.s3 import s3_server

DOCUMENT = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
SECRET = "s3cr3t"
PASSWORD = f"{SECRET}-pass/word"
shop = load_profile("shop")


def documented(language: str) -> str:
    """The only block of this language in docs/security.md."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return str(block)


# -- a server that asks for a password, and TLS in front of it --------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedPostgres]:
    """A server whose role `loader` needs a password, with the settings for its log that the document names."""
    folder = tmp_path_factory.mktemp("guarded")
    settings = dict(line.split(" = ") for line in documented("ini").splitlines())
    server = EmbeddedPostgres(folder, settings)
    server.start()
    try:
        rules = server.data_dir / "pg_hba.conf"
        rules.write_text("local all loader scram-sha-256\nlocal all all trust\n")
        execute(server.url, f"CREATE ROLE loader LOGIN PASSWORD '{PASSWORD}'")
        execute(server.url, "SELECT pg_reload_conf()")
        deadline = time.monotonic() + 10
        while reaches(url_of(server, "postgres", "wrong")) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not reaches(url_of(server, "postgres", "wrong")), "the password is asked for"
        yield server
    finally:
        server.remove()


def url_of(server: EmbeddedPostgres, database: str, password: str = PASSWORD) -> str:
    return server.url.replace("postgres@/postgres?", f"loader:{quote(password, '')}@/{database}?")


def reaches(url: str) -> bool:
    try:
        psycopg2.connect(url).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture
def guarded_url(guarded: EmbeddedPostgres, request: pytest.FixtureRequest) -> str:
    """A database of its own, as the superuser sees it, with the shop's tables and the document's grants."""
    name = f"test_{abs(hash(request.node.nodeid))}"
    execute(guarded.url, f"CREATE DATABASE {name}")
    execute(guarded.url, f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
    url = guarded.url.replace("/postgres?", f"/{name}?")
    execute(url, ddl(shop.all_tables))
    execute(url, documented("sql").replace("my_database", name))
    return url


def for_loader(url: str) -> str:
    """The same database for the least-privileged role."""
    return url.replace("postgres@", f"loader:{quote(PASSWORD, '')}@")


def socket_of(server: EmbeddedPostgres) -> str:
    names = parse_qs(urlsplit(server.url).query)
    return f"{names['host'][0]}/.s.PGSQL.{names['port'][0]}"


# -- the password -----------------------------------------------------------------------------------


def database_of(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


@pytest.mark.parametrize("place", ["PGPASSWORD", "PGPASSFILE", "PGSERVICEFILE"])
def test_the_password_may_lie_where_libpq_looks(
    guarded: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    host = str(Path(socket_of(guarded)).parent)
    url = f"postgresql://loader@/postgres?host={quote(host, '')}"
    file = tmp_path / "file"
    content = {
        "PGPASSWORD": PASSWORD,
        "PGPASSFILE": f"*:*:postgres:loader:{PASSWORD}\n",
        "PGSERVICEFILE": f"[shop]\nhost={host}\nuser=loader\ndbname=postgres\npassword={PASSWORD}\n",
    }[place]
    file.write_text(content)
    file.chmod(0o600)
    monkeypatch.setenv(place, PASSWORD if place == "PGPASSWORD" else str(file))
    if place == "PGSERVICEFILE":
        url = "postgresql://?service=shop"
    # It is let in: what it finds missing are the tables.
    with pytest.raises(MigrationError, match="no bookkeeping"), PostgresTarget(
        url, shop.tables, FileIdentity("shop", "1", "e", "f", "r")
    ):  # fmt: skip
        pass


def test_a_mistyped_password_with_quotes_is_not_told() -> None:
    with pytest.raises(psycopg2.OperationalError) as caught:
        psycopg2.connect(f'postgresql://u:p@a"{SECRET}@127.0.0.1:1/db')
    assert SECRET not in str(no_database(caught.value, f'postgresql://u:p@a"{SECRET}@127.0.0.1:1/db'))


# -- what the role may do ---------------------------------------------------------------------------


def test_the_documented_grants_are_those_of_the_chaos_tests() -> None:
    assert documented("sql").split() == lab.GRANTS.format(database="my_database").split()


def test_the_documented_grants_suffice(guarded_url: str, shop_export: Path) -> None:
    """To load, load again what changed, replay and check; and not to delete or alter."""
    loader = for_loader(guarded_url)
    export = read_export(str(shop_export), Storage())
    plan = make_plan(shop, "shop", [export])
    execute(guarded_url, "ALTER TABLE orders ADD CONSTRAINT c CHECK (order_id > '08')")
    bad = sum(report.quarantined for report in load_shop(loader, export))
    execute(guarded_url, "ALTER TABLE orders DROP CONSTRAINT c; UPDATE customers SET name = 'changed'")
    assert bad > 0
    replayed = sum(replay_file(loader, shop, export.id, file.name).loaded for file in export.files)
    assert replayed == bad
    assert sum(report.changed for report in load_shop(loader, export)) > 300
    assert make(loader, shop, files_of(export)).rows > 0
    checks = migration_checks(plan, shop)
    result = dg.Definitions(
        assets=migration_assets(plan, shop),
        asset_checks=checks,
        jobs=[check_job(plan, checks)],
        resources={"database": Database(url=loader)},
    ).resolve_job_def("shop_check").execute_in_process()  # fmt: skip
    assert result.success
    assert all(evaluation.passed for evaluation in result.get_asset_check_evaluations())
    for forbidden in (
        "DELETE FROM orders",
        "TRUNCATE orders",
        "ALTER TABLE orders ADD x int",
        "DROP SCHEMA migration",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            execute(loader, forbidden)


@pytest.mark.parametrize("grant", documented("sql").splitlines())
def test_without_one_of_the_grants_a_load_says_so(guarded_url: str, shop_export: Path, grant: str) -> None:
    owned = " OWNER TO " in grant
    revoke = (
        grant.replace("loader", "postgres")
        if owned
        else grant.replace("GRANT ", "REVOKE ").replace(" TO ", " FROM ")
    )
    execute(guarded_url, revoke.replace("my_database", database_of(guarded_url)))
    export = read_export(str(shop_export), Storage())
    # Rows that are there already take the staging table.
    execute(guarded_url, "INSERT INTO migration.loaded_file SELECT 'shop', '" + export.id + "', f, '1', 'm', 0, 0, 0, '{}', 0, '{}', 0, 'r' FROM unnest(ARRAY['" + "','".join(file.name for file in export.files) + "']) f")  # fmt: skip
    with pytest.raises(MigrationError, match=r"SQLSTATE 42501.*grants in docs/security\.md") as told:
        load_shop(for_loader(guarded_url), export)
    assert told.value.sqlstate == "42501"


def test_the_quarantine_is_its_owners_alone(guarded_url: str) -> None:
    execute(guarded_url, "DROP ROLE IF EXISTS reader; CREATE ROLE reader LOGIN")
    for table in ("quarantine", "collision", "difference"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            query(guarded_url.replace("postgres@", "reader@"), f"SELECT * FROM migration.{table}")


# -- S3 ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_out", [None, "s3:GetObject", "s3:ListBucket"])
def test_the_documented_s3_policy_suffices_and_is_needed(
    shop_export: Path, monkeypatch: pytest.MonkeyPatch, left_out: str | None
) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL_S3"])  # of IAM, too
        bucket = f"my-bucket-{abs(hash(left_out))}"
        s3, iam = boto3.client("s3"), boto3.client("iam")
        s3.create_bucket(Bucket=bucket)
        place = f"some/prefix/AWSDynamoDB/{shop_export.name}"
        for path in shop_export.rglob("*"):
            if path.is_file():
                s3.upload_file(str(path), bucket, f"{place}/{path.relative_to(shop_export)}")
        policy = json.loads(documented("json").replace("my-bucket", bucket))
        policy["Statement"] = [s for s in policy["Statement"] if s["Action"] != left_out]
        user = f"reader-{abs(hash(left_out))}"
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="read", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=user)["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])

        @set_initial_no_auth_action_count(0)  # from here on moto asks for permission
        def read() -> int:
            export = read_export(f"s3://{bucket}/{place}", Storage())
            return sum(len(lines) for file in export.files for lines in FileStream(file, Storage()))

        if left_out is None:
            assert read() == 6_000
        else:
            with pytest.raises(StorageError, match="needs s3:GetObject and s3:ListBucket"):
                read()


# -- planted secrets --------------------------------------------------------------------------------

NUMBER = "47110815"
"""All secret numbers begin with it."""


def forms() -> list[bytes]:
    """What a secret may look like: as it is, in hex, in base64 at any offset, as a number."""
    packed = [base64.b64encode(b"\0" * n + SECRET.encode())[(4 if n else 0) : -4] for n in range(3)]
    return [SECRET.encode(), SECRET.encode().hex().encode(), NUMBER.encode(), *packed]


def assert_silent(text: str | bytes, where: str) -> None:
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    for form in forms():
        at = data.lower().find(form) if form.islower() else data.find(form)
        assert at < 0, f"{where}: {data[max(0, at - 200) : at + 40]!r}"


class Account(Item):
    PK: str
    SK: str
    name: str
    age: int
    limit: int = 0
    raw: bytes = b""
    kind: Literal["person", "firm"] = "person"
    since: datetime | None = None
    details: dict[str, Any] | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        if self.name.startswith("value error"):
            raise ValueError(f"I do not like {self.name}")
        if self.name.startswith("key error"):
            raise KeyError(self.name)


class AccountRow(Row, table="accounts", key="id"):
    id: str
    name: str
    age: int
    limit: int
    raw: bytes
    details: dict[str, Any] | None
    anything: Any


accounts = Profile("accounts")


@accounts.route(PK=prefix("ACCOUNT#"))
def account(item: Account) -> AccountRow:
    if item.name.startswith("raise"):
        try:
            dict[str, str]()[item.name]
        except KeyError as error:
            raise RuntimeError(f"no account of {item.name}, {item.age}") from error
    return AccountRow(
        item.PK, "" if item.name.startswith("null") else item.name, item.age, item.limit, item.raw, item.details, item.anything
    )  # fmt: skip


accounts.ignore(PK=prefix("IGNORED#"), because="not wanted")

TABLE = """
ALTER TABLE accounts ADD CONSTRAINT adults CHECK (age < 1000 OR age > 1000000), ALTER name TYPE varchar(40),
    ADD CONSTRAINT known CHECK (name NOT LIKE 'check%');
GRANT SELECT, INSERT, UPDATE ON accounts TO loader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA migration TO loader;
GRANT USAGE ON SCHEMA migration TO loader
"""


def secret(place: str) -> str:
    return f"{SECRET}-{place}"


def good(place: str, **others: Any) -> dict[str, Any]:
    """An item that loads, secret from end to end."""
    return {
        "PK": {"S": f"ACCOUNT#{secret(place)}"},
        "SK": {"S": secret("SK")},
        "name": {"S": secret("name")},
        "age": {"N": "30"},
        "limit": {"N": NUMBER + "01"},
        "raw": {"B": base64.b64encode(secret("raw").encode()).decode()},
        "details": {"M": {secret("member"): {"S": secret("value")}}},
        "anything": {"L": [{"N": NUMBER + "02"}, {"SS": [secret("set")]}]},
        secret("unknown attribute"): {"S": secret("unread")},
    } | others


BAD: dict[str, dict[str, Any]] = {
    "profile": {"name": {"S": f"raise {SECRET}"}},
    "item value error": {"name": {"S": f"value error {SECRET}"}},
    "item key error": {"name": {"S": f"key error {SECRET}"}},
    "too long": {"name": {"S": SECRET * 20}},
    "check": {"name": {"S": f"check {SECRET}"}},
    "out of range": {"limit": {"N": NUMBER + "0" * 20}},
    "nul": {"name": {"S": f"{SECRET}\0"}},
    "nul in a document": {"details": {"M": {SECRET: {"S": f"{SECRET}\0"}}}},
    "copy's own words": {"name": {"S": f"{SECRET} COPY accounts, line 1, column {SECRET}: \0"}},
    "key too long": {"PK": {"S": "ACCOUNT#" + "".join(hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(100)) + SECRET}},
    "wrong type": {"name": {"N": NUMBER}},
    "unknown type": {"name": {SECRET: "x"}},
    "unknown type in a document": {"details": {"M": {SECRET: {SECRET: "x"}}}},
    "no literal": {"kind": {"S": f"{SECRET} - at `$.{SECRET}`"}},
    "no number": {"limit": {"N": SECRET}},
    "no whole number": {"limit": {"N": NUMBER + ".5"}},
    "a number too large": {"limit": {"N": NUMBER + "E999999999"}},
    "no time": {"since": {"S": SECRET}},
    "no base64": {"raw": {"B": f"{SECRET}*"}},
    "member of another type": {"details": {"M": {SECRET: {"N": 5, "S": SECRET}}}},
    "no value": {"anything": {}},
}  # fmt: skip


def planted() -> list[bytes]:
    """Lines: ten good items, as many that the profile skips, two of one key, and the bad ones."""
    items = [good(f"good {n}") for n in range(10)]
    items += [{"PK": {"S": f"IGNORED#{secret(str(n))}"}, "SK": {"S": secret("x")}} for n in range(5)]
    items += [
        {"PK": {"S": key}, "SK": {"S": SECRET}, SECRET: {"S": SECRET}}
        for key in (
            SECRET,
            SECRET.upper(),
            f"{SECRET.upper()}#1",
            "S" + NUMBER,
            f"CARD#{SECRET}",
            f"#{SECRET}",
        )
    ]
    items += [good("colliding", name={"S": secret("one")}), good("colliding", name={"S": secret("two")})]
    items += [good(place, **broken) for place, broken in BAD.items()]
    lines = [json.dumps({"Item": item}).encode() for item in items]
    one = lines[0]
    lines += [
        SECRET.encode(),
        one[:-20],
        one[:-2] + SECRET.encode(),
        one.replace(b'"ACCOUNT#', b'"ACCOUNT#\xff'),
        json.dumps({SECRET: items[0]}).encode(),
        one.replace(b'"name": ', f'"name": {{"S": "{SECRET}"}}, "name": '.encode()),
        one.replace(b'"S": "ACCOUNT#', b'"N": "ACCOUNT#'),
    ]
    return lines


BAD_ITEMS = len(BAD) + 6  # the last line's key is no text, so no rule takes it


def test_every_planted_item_is_bad_in_its_own_way(guarded: EmbeddedPostgres) -> None:
    """Else the search below would find nothing because nothing happens."""
    url = accounts_database(guarded, "ways")
    report = load_lines(for_loader(url), accounts, planted())
    reasons = query(url, "SELECT reason, sqlstate FROM migration.quarantine ORDER BY line")
    assert report.quarantined == len(reasons) == BAD_ITEMS
    assert {state for _, state in reasons} == {None, "22001", "22003", "22021", "22P05", "23514", "54000"}
    assert len({reason for reason, _ in reasons}) > 18
    assert report.loaded == 12
    assert query(url, "SELECT count(*) FROM accounts") == [(11,)]
    assert query(url, "SELECT table_name FROM migration.collision") == [("accounts",)]
    assert report.unrouted == {"PK=…": 5, "PK=CARD#…": 1, "PK=(N)": 1}
    for reason, _ in reasons:
        assert_silent(reason, "reason")


def accounts_database(server: EmbeddedPostgres, name: str) -> str:
    execute(server.url, f"CREATE DATABASE {name}")
    url = server.url.replace("/postgres?", f"/{name}?")
    create_tables(url, accounts.tables.values())
    execute(url, TABLE)
    return url


def accounts_plan(folder: Path) -> Plan:
    content = gzip.compress(b"\n".join(planted()) + b"\n")
    path = folder / "export.json.gz"
    path.write_bytes(content)
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    file = ExportFile("export.json.gz", str(path), len(planted()), md5, len(content))
    export = Export(
        "an-export", str(folder), "arn:aws:dynamodb:eu-west-1:1:table/t", "2024", file.items, (file,)
    )
    return make_plan(accounts, f"{__name__}:accounts", [export])


STRIKES = """
CREATE SEQUENCE strikes;
GRANT USAGE ON SEQUENCE strikes TO loader;
CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('strikes') <= 2 THEN {what}; END IF; RETURN NEW;
END $$;
CREATE TRIGGER strike BEFORE INSERT ON accounts FOR EACH {each} EXECUTE FUNCTION strike();
"""
TRANSIENT = "RAISE 'struck %%: %%', NEW.id, NEW USING ERRCODE = '40001', DETAIL = NEW.name, HINT = NEW.name"
FATAL = "RAISE 'struck %%: %%', NEW.id, NEW USING ERRCODE = '{}', DETAIL = NEW.name, HINT = NEW.name"
END = "PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(5)"

ALL_ALLOWED = {"max_bad_share": 1.0, "retry_seconds": 5.0}
SCENARIOS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "quarantined": ("", ALL_ALLOWED, True),
    "too_many_bad": ("", {"retry_seconds": 0.0}, False),
    "transient": (STRIKES.format(what=TRANSIENT.replace("%%", "%"), each="ROW"), ALL_ALLOWED, True),
    "ended": (STRIKES.format(what=END, each="STATEMENT"), ALL_ALLOWED, True),
    "disk_full": (STRIKES.format(what=FATAL.format("53100").replace("%%", "%"), each="ROW"), ALL_ALLOWED, False),
    "defect": (STRIKES.format(what=FATAL.format("XX000").replace("%%", "%"), each="ROW"), ALL_ALLOWED, False),
    "unlike_tables": ("ALTER TABLE accounts DROP COLUMN raw", ALL_ALLOWED, False),
    "no_grant": ("REVOKE INSERT ON accounts FROM loader", ALL_ALLOWED, False),
}  # fmt: skip
"""What is done to the database, the run's config, and whether the run succeeds then."""


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_secret_is_told_by_a_run(
    guarded: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Nor by what follows it: a replay, the checks. All that is written anywhere is searched."""
    statement, config, succeeds = SCENARIOS[scenario]
    url = accounts_database(guarded, scenario)
    if statement:
        execute(url, statement)
    monkeypatch.setenv("MIGRATION_DATABASE_URL", for_loader(url))
    caplog.set_level(logging.DEBUG)
    (tmp_path / "instance").mkdir()
    plan = accounts_plan(tmp_path)
    with dg.DagsterInstance.local_temp(str(tmp_path / "instance")) as instance:
        results = run_all(plan, instance, config)
        assert results[0].success == succeeds
        told = []
        for result in results:
            entries = instance.all_logs(result.run_id)
            assert len(entries) > 5
            told += [dg.serialize_value(entry) for entry in entries]
            run = instance.get_run_by_id(result.run_id)
            assert run
            told.append(dg.serialize_value(run))
    captured = capfd.readouterr()
    if succeeds:
        kept = b"".join(bytes(raw) for (raw,) in query(url, "SELECT raw FROM migration.quarantine"))
        assert SECRET.encode() in kept, "it is there, where it should be"
        assert "quarantined" in "".join(told)
    if scenario in ("transient", "ended"):
        assert "; try 2 in" in "".join(told), "it was retried"
    assert_silent("".join(told), "event log")
    assert_silent(captured.out + captured.err, "output")
    assert_silent(caplog.text + "".join(repr(vars(record)) for record in caplog.records), "logging")
    (tmp_path / "export.json.gz").unlink()
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert_silent(path.read_bytes(), str(path.relative_to(tmp_path)))
    assert_silent(server_log(guarded), "the server's log")


def server_log(server: EmbeddedPostgres) -> bytes:
    return (server._state_dir / "log" / "postgres.log").read_bytes()


def run_all(
    plan: Plan, instance: dg.DagsterInstance, config: dict[str, Any]
) -> Sequence[dg.ExecuteInProcessResult]:
    """Load, run dry, replay, check and verify, as the code location would."""
    resources = {"database": Database(url=dg.EnvVar("MIGRATION_DATABASE_URL"))}
    export, load = migration_assets(plan, accounts)
    checks, verification = migration_checks(plan, accounts), verify_check(plan, accounts)
    definitions = dg.Definitions(
        assets=[export, load],
        asset_checks=[*checks, verification],
        jobs=[check_job(plan, checks), verify_job(plan, verification), replay_job(plan, accounts)],
        resources=resources,
    )
    assert isinstance(load, dg.AssetsDefinition)
    return [
        *(
            dg.materialize(
                [load],
                instance=instance,
                partition_key=plan.files[0].partition,
                resources=resources,
                run_config={"ops": {"accounts_load": {"config": config | more}}},
                raise_on_error=False,
            )
            for more in ({}, {"dry_run": True})
        ),
        *(
            definitions.resolve_job_def(name).execute_in_process(instance=instance, raise_on_error=False)
            for name in ("accounts_replay", "accounts_check", "accounts_verify")
        ),
    ]


STRIKES_IN_COPY = f"""
CREATE SEQUENCE strikes;
GRANT USAGE ON SEQUENCE strikes TO loader;
CREATE FUNCTION strike(text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('strikes') <= 2 THEN {END}; END IF; RETURN true;
END $$;
ALTER TABLE accounts ADD CONSTRAINT struck CHECK (strike(name));
"""
"""A table with a trigger is never copied into."""


@pytest.mark.parametrize(
    ("name", "strikes"),
    [("ended_at_a_row", STRIKES.format(what=END, each="ROW")), ("ended_in_copy", STRIKES_IN_COPY)],
)
def test_a_session_that_is_ended_at_a_row_tells_nothing_of_the_row(
    guarded: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, name: str, strikes: str
) -> None:
    url = accounts_database(guarded, name)
    execute(url, strikes)
    printed: list[str] = []

    class Printed:
        def write(self, text: str) -> None:
            printed.append(text)

        def flush(self) -> None:
            pass

    monkeypatch.setattr(sys, "stderr", Printed())
    before = sys.excepthook
    report = load_lines(for_loader(url), accounts, planted()[:10])
    assert report.retries == 2
    assert sys.excepthook is before, "what is changed for a COPY is changed back"
    assert_silent(server_log(guarded), "the server's log")
    assert_silent("".join(printed), "stderr")


def test_an_item_that_speaks_like_postgresql_names_no_column(guarded: EmbeddedPostgres) -> None:
    url = accounts_database(guarded, "speaks")
    words = good("x", name={"S": f"check COPY x, line 1, column {SECRET}: "})
    report = load_lines(for_loader(url), accounts, [json.dumps({"Item": words}).encode()])
    assert report.quarantined_by_reason == {"accounts: CheckViolation (SQLSTATE 23514) constraint known": 1}


@pytest.mark.parametrize("fault", ["", "bad", "no database", "no password"])
def test_no_secret_is_told_by_the_command_line(
    guarded: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    url = accounts_database(guarded, f"cli_{fault.replace(' ', '_')}")
    plan = accounts_plan(tmp_path)
    monkeypatch.setenv("MIGRATION_PLANS", str(tmp_path / "plans"))
    write_plan(plan, tmp_path / "plans")
    lines = planted()
    if not fault:
        lines = lines[:10]
    identity = FileIdentity("accounts", "1", "an-export", "export.json.gz", "run")
    with PostgresTarget(url, accounts.tables, identity) as target:
        FileLoad("f", len(lines), Lines(lines), Transform(accounts, dynamodb_json), target, LoadSettings(max_bad_share=1.0)).run()  # fmt: skip
    monkeypatch.setenv(
        "MIGRATION_DATABASE_URL",
        {
            "no database": for_loader(url).replace(f"/{database_of(url)}?", "/another?"),
            "no password": url_of(guarded, database_of(url), f"{SECRET}-wrong"),
        }.get(fault, for_loader(url)),
    )
    accounts_reference = f"{__name__}:accounts"
    for command in (
        ["replay", accounts_reference],
        ["verify", accounts_reference],
        ["backfill", accounts_reference, "--dry-run"],
        ["ddl", accounts_reference, "--apply"],
    ):
        done = CliRunner().invoke(main, command)
        if command[0] in ("verify", "backfill"):
            assert done.exit_code == 1, done.output  # items are left over, if nothing else
        elif command[0] == "replay":
            assert done.exit_code == (1 if fault else 0), done.output
            told = {
                "": "nothing to replay",
                "bad": "still bad",
                "no database": "error: no database: the server has no such database (database another at ",
                "no password": "error: the server refused the role (",
            }
            assert told[fault] in done.output
        else:
            assert done.exit_code == 1  # the role may not create
        assert_silent(done.output, str(command))
    assert_silent(server_log(guarded).replace(f'"{SECRET}"'.encode(), b""), "the server's log")


# -- hostile names ----------------------------------------------------------------------------------

NAMES = [
    "select",
    "semi;colon -- x",
    "per%cent %s %(x)s %%",
    'quo"te\' ""',
    "back\\slash \\' E'",
    "new\nline\ttab\r",
    "emoji 🛒 é",
    "{brace} {target} $1 $$",
    'a, line 3, column b: "c"',
    "x" * 63,
    "é" * 31,
]


class Hostile(Item):
    PK: str
    a: str = attribute("per%cent %s")
    b: int = attribute("select", default=0)


def hostile_profile(name: str) -> Profile:
    """A profile whose table, schema and columns have names that bite. msgspec refuses quotes in columns' names."""
    p = Profile("hostile")

    class Bites(Row, table=f"{name[:50]}.{name}", key=("k", "v"), version="number"):
        k: str = column("select")
        v: str = column("per%cent %s %(x)s {columns}")
        number: int = column("o'clock; --")
        text: str | None = column("c" * 63)
        document: Any = column("🛒 a, line 3, column z: ")

    def bites(item: Hostile) -> Any:
        return Bites(item.PK, item.PK, item.b, item.a, {item.PK: item.a})

    bites.__annotations__ = {"item": Hostile, "return": Bites}
    p.route(PK=prefix("H"))(bites)
    return p


def hostile_line(key: str, b: int, a: str) -> bytes:
    item = {"PK": {"S": key}, "per%cent %s": {"S": a}, "select": {"N": str(b)}}
    return json.dumps({"Item": item}).encode()


@pytest.mark.parametrize("name", NAMES)
def test_names_and_keys_that_bite_stay_what_they_are(database_url: str, name: str) -> None:
    p = hostile_profile(name)
    (table,) = p.tables.values()
    create_tables(database_url, p.tables.values())
    create_tables(database_url, p.tables.values())
    values = [f"H{value}" for value in NAMES]
    file = FileIdentity("hostile", name, f"export {name}", f"{name}.json.gz", name)

    def load(identity: FileIdentity, lines: list[bytes]) -> FileReport:
        with PostgresTarget(database_url, p.tables, identity) as target:
            transform = Transform(p, dynamodb_json)
            return FileLoad(identity.file, len(lines), Lines(lines), transform, target).run()

    bad = [hostile_line("Hnul", 1, f"{name}\0"), hostile_line("Hlarge", 2**63, name)]
    one = load(file, [hostile_line(value, 1, "old") for value in values] + bad)
    assert (one.rows, one.quarantined, one.unrouted) == ({table.qualified: len(values)}, 2, {})
    other = FileIdentity("hostile", name, f"export {name}", f"another {name}", name)
    two = load(other, [hostile_line(value, 2, value) for value in values])
    assert (two.changed, two.rows) == (len(values), {table.qualified: len(values)})

    found = query(database_url, f"SELECT * FROM {quoted(table.schema or '')}.{quoted(table.name)}")
    assert sorted(found) == sorted((value, value, 2, value, {value: value}) for value in values)
    assert count_rows(database_url, table) == len(values)
    receipts = read_receipts(database_url, "hostile")
    assert {key: receipt.run_id for key, receipt in receipts.items()} == {
        (file.export_id, file.file): name,
        (other.export_id, other.file): name,
    }
    collisions = query(database_url, "SELECT export_id, file, table_name, key FROM migration.collision")
    keys = [{"select": value, "per%cent %s %(x)s {columns}": value} for value in values]
    assert sorted(key["select"] for *_, key in collisions) == sorted(key["select"] for key in keys)
    assert {tuple(place) for *place, _ in collisions} == {(other.export_id, other.file, table.qualified)}
    kept = query(
        database_url, "SELECT export_id, file, raw, table_name FROM migration.quarantine ORDER BY line"
    )
    assert [(e, f, bytes(raw), t) for e, f, raw, t in kept] == [
        (file.export_id, file.file, raw, table_name)
        for raw, table_name in zip(bad, [table.qualified] * 2, strict=True)
    ]
    replayed = replay_file(database_url, p, file.export_id, file.file)
    assert replayed.quarantined == 2


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def test_partition_keys_are_safe_and_distinct_whatever_the_names_are() -> None:
    names = sorted(
        ["a.json.gz", "a;.json.gz", "a:.json.gz", "...json.gz", "a,b", "a...b", "🛒", "[x]", *NAMES]
    )
    files = tuple(ExportFile(name, f"/{name}", 1, "m", 1) for name in names)
    plan = make_plan(
        shop, "shop", [Export(f"e{n}, ...'\";", "u", "t", f"202{n}", 1, files) for n in range(2)]
    )
    keys = list(plan.by_partition())
    assert len(keys) == len(set(keys)) == 2 * len(files)
    for of_one in (keys[: len(files)], keys[len(files) :]):
        assert [key[:4] for key in of_one] == sorted(key[:4] for key in of_one)
    assert all(re.fullmatch(r"[\w\-]+", key) for key in keys)
    assert list(dg.StaticPartitionsDefinition(keys).get_partition_keys()) == keys


# -- limits -----------------------------------------------------------------------------------------


def nested(kind: str, depth: int) -> str:
    """A value of so many levels, as its own JSON: a JSON encoder of Python would not write it."""
    begin, end = {"L": ('{"L":[', "]}"), "M": ('{"M":{"a":', "}}")}[kind]
    return begin * depth + '{"S":"s"}' + end * depth


class Deep(Item):
    PK: str
    read: Any = None
    members: dict[str, Any] | None = None


class DeepRow(Row, table="deep", key="id"):
    id: str
    read: Any
    members: Any


deep = Profile("deep")


@deep.route(PK=prefix("D#"))
def deep_row(item: Deep) -> DeepRow:
    return DeepRow(item.PK, item.read, item.members)


@pytest.mark.parametrize("kind", ["L", "M"])
@pytest.mark.parametrize("name", ["read", "members", "unread"])
def test_an_item_nested_beyond_measure_is_a_bad_one(database_url: str, name: str, kind: str) -> None:
    """It costs its neighbours nothing, wherever it is noticed. As deep as DynamoDB allows, it loads."""
    create_tables(database_url, deep.tables.values())

    def line(key: str, value: str) -> bytes:
        return f'{{"Item":{{"PK":{{"S":"D#{key}"}},"{name}":{value}}}}}'.encode()

    depths = [300, 400, 500, 700, 900, 100_000]
    allowed = nested("M" if name == "members" else kind, 32)
    lines = [line("first", allowed), *(line(str(n), nested(kind, n)) for n in depths), line("last", allowed)]
    report = load_lines(database_url, deep, lines)
    assert report.conserved
    rows = [key for (key,) in query(database_url, "SELECT id FROM deep")]
    assert {"D#first", "D#last"} <= set(rows)
    assert "D#100000" not in rows
    assert report.quarantined == len(lines) - len(rows)
    if kind == "M" or name != "members":
        assert "it is nested too deeply; DynamoDB's own limit is 32 levels" in report.quarantined_by_reason
    if name != "unread" and kind == "M":
        levels = query(
            database_url, f"SELECT {name} #>> array_fill('a'::text, ARRAY[32]) FROM deep WHERE id = 'D#last'"
        )
        assert levels == [("s",)]


def test_an_ignored_item_may_be_nested_too_deeply_to_skip(database_url: str) -> None:
    """Its keys cannot be read for certain, so it is a bad one, too."""
    create_tables(database_url, accounts.tables.values())
    line = f'{{"Item":{{"x":{nested("L", 100_000)},"PK":{{"S":"IGNORED#1"}}}}}}'.encode()
    report = load_lines(
        database_url, accounts, [line, line.replace(nested("L", 100_000).encode(), b'{"S":"x"}')]
    )
    assert (report.quarantined, report.skipped) == (1, {"not wanted": 1})


def test_items_of_400_kb_load(database_url: str) -> None:
    create_tables(database_url, deep.tables.values())
    text = 'é"\\\n\t' * 65_000
    items = [
        {
            "PK": {"S": f"D#{n}"},
            "read": {"S": text},
            "members": {"M": {"a": {"L": [{"S": text[:9]}] * 20_000}}},
        }
        for n in range(60)
    ]
    lines = [json.dumps({"Item": item}, ensure_ascii=n % 2 == 0).encode() for n, item in enumerate(items)]
    assert min(map(len, lines)) > 400_000
    report = load_lines(database_url, deep, lines)
    assert (report.loaded, report.quarantined) == (60, 0)
    found = query(
        database_url,
        "SELECT count(DISTINCT read), min(read #>> '{}'), min(jsonb_array_length(members->'a')) FROM deep",
    )
    assert found == [(1, text, 20_000)]


@pytest.mark.parametrize("digits", ["1E125", "-9" + "9" * 125])
def test_whole_numbers_of_all_of_dynamodbs_digits_are_read(digits: str) -> None:
    assert integer(digits) == int(float(digits)) or abs(integer(digits)) >= 10**125


def test_a_number_of_a_billion_digits_takes_no_time() -> None:
    began = time.monotonic()
    for text in ("1E126", "1E999999999", "-5e+99999999", "1E-999999999"):
        with pytest.raises(ValueError, match="is not a whole number"):
            integer(text)
    assert time.monotonic() - began < 1


def test_a_file_outside_of_its_export_is_refused(shop_export: Path, tmp_path: Path) -> None:
    for key in ("AWSDynamoDB/x/data/../../../etc/passwd", "/etc/passwd", "data/a;b.json.gz"):
        manifest = json.dumps({"itemCount": 0, "md5Checksum": "m", "dataFileS3Key": key}).encode()
        summary = json.loads((shop_export / "manifest-summary.json").read_bytes()) | {"itemCount": 0}
        (tmp_path / "manifest-files.json").write_bytes(manifest)
        (tmp_path / "manifest-summary.json").write_text(json.dumps(summary))
        with pytest.raises(MigrationError, match="points outside the export"):
            read_export(str(tmp_path), Storage())
