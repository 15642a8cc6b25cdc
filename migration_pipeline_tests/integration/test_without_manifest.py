"""An export that an emulator wrote: no manifest, no ``.json`` in the names. Planned, loaded, verified and reported, from moto's DynamoDB and S3."""

from __future__ import annotations

import gzip
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

from migration_pipeline import Item, Profile, Row
from migration_pipeline.cli import main
from migration_pipeline.engine.load import LoadSettings
from migration_pipeline.migration.load import Loader
from migration_pipeline.migration.plan import Plan, planned_profile
from migration_pipeline.migration.plans import plan_path, read_plan
from migration_pipeline.settings import plans_dir
from migration_pipeline.targets.connection import DatabaseSettings
from migration_pipeline_tests.conftest import query
from migration_pipeline_tests.dynamodb import create_table
from migration_pipeline_tests.s3 import s3_server

things = Profile("things")
REFERENCE = f"{__name__}:things"
ITEMS = 300


class ThingItem(Item):
    PK: str
    size: int


class Thing(Row, table="things", key="name"):
    name: str
    size: int


BROKEN = set[str]()
"""Names of items at which the profile fails."""


@things.route(SK="THING")
def thing(item: ThingItem) -> Thing:
    if item.PK in BROKEN:
        raise ValueError
    return Thing(item.PK, item.size)


@pytest.fixture(scope="module")
def moto() -> Iterator[dict[str, str]]:
    """All of AWS at one address, which only `AWS_ENDPOINT_URL` names."""
    with s3_server() as environment:
        endpoint = environment.pop("AWS_ENDPOINT_URL_S3")
        yield environment | {"AWS_ENDPOINT_URL": endpoint}


@pytest.fixture(autouse=True)
def aws(moto: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in moto.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def emulated(request: pytest.FixtureRequest) -> str:
    """A table of moto's DynamoDB, exported by moto; gives the export's address."""
    name = f"t{abs(hash(request.node.name)) % 10**8}"
    session: Any = boto3.Session()
    dynamodb, s3 = session.client("dynamodb"), session.client("s3")
    s3.create_bucket(Bucket=name)
    arn = create_table(dynamodb, name)
    for number in range(ITEMS):
        key = {"PK": {"S": f"thing {number} é\n"}, "SK": {"S": "THING"}}
        dynamodb.put_item(
            TableName=name, Item=key | {"size": {"N": str(number)}, "more": {"M": {"a": {"NULL": True}}}}
        )
    made = dynamodb.export_table_to_point_in_time(TableArn=arn, S3Bucket=name, S3Prefix="backup")
    for _ in range(300):  # a thread makes it
        described = dynamodb.describe_export(ExportArn=made["ExportDescription"]["ExportArn"])
        if described["ExportDescription"]["ExportStatus"] == "COMPLETED":
            break
        time.sleep(0.1)
    (written,) = [str(each["Key"]) for each in s3.list_objects_v2(Bucket=name)["Contents"]]
    assert written.endswith(".gz")
    assert not written.endswith(".json.gz")
    return f"s3://{name}/{written.partition('/data/')[0]}"


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def the_plan() -> Plan:
    return read_plan(plan_path(plans_dir(), "things"))


def load(plan: Plan, url: str) -> None:
    profile = planned_profile(plan, "plan")
    with Loader(plan, profile, url, "run", LoadSettings(), DatabaseSettings(), None) as loader:
        for planned in plan.files:
            loader.load(planned, logging.getLogger("test"), lambda _: None, lambda _: None)


def test_an_emulator_s_export_is_planned_loaded_and_doubted(
    emulated: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    status, output = call("plan", "--profile", REFERENCE, emulated)
    assert status == 2
    assert "plan it with --without-manifest" in output

    status, output = call("plan", "--profile", REFERENCE, "--without-manifest", emulated)
    assert status == 0, output
    assert f"planned 1 file, {ITEMS} items" in output
    assert f"nothing vouches that {emulated} is complete: it has no manifest" in output

    assert call("ddl", REFERENCE, "--apply")[0] == 0
    load(the_plan(), database_url)
    assert query(database_url, "SELECT count(*), sum(size), max(name) FROM things") == [
        (ITEMS, ITEMS * (ITEMS - 1) // 2, "thing 99 é\n")
    ]
    ((doubt, items),) = query(database_url, "SELECT doubt, items FROM migration.loaded_file")
    assert doubt.startswith("it has no manifest")
    assert items == ITEMS

    assert call("verify", REFERENCE)[0] == 0
    status, output = call("report", REFERENCE, "-o", str(tmp_path / "report.html"))
    assert "nothing vouches that the exports are complete" in output
    assert (
        "nothing vouches for its completeness: it has no manifest" in (tmp_path / "report.html").read_text()
    )


def test_a_file_that_changes_after_it_was_counted_fails(
    emulated: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    call("plan", "--profile", REFERENCE, "--without-manifest", emulated)
    call("ddl", REFERENCE, "--apply")
    bucket, _, prefix = emulated.removeprefix("s3://").partition("/")
    s3 = boto3.client("s3")
    (listed,) = s3.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]
    whole = s3.get_object(Bucket=bucket, Key=listed["Key"])["Body"].read()
    lines = gzip.decompress(whole).splitlines(keepends=True)
    s3.put_object(Bucket=bucket, Key=listed["Key"], Body=gzip.compress(b"".join(lines[1:])))
    with pytest.raises(Exception, match=r"its MD5 is .*, but the plan says"):
        load(the_plan(), database_url)
    assert query(database_url, "SELECT count(*) FROM migration.loaded_file") == [(0,)]


def test_it_is_inspected_and_scaffolded(
    emulated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = call("inspect", "--without-manifest", "--json", emulated)
    assert status == 0, output
    status, output = call("scaffold", "--without-manifest", emulated, "-o", "mine.py")
    assert status == 0, output
    assert f"{ITEMS} would load, 0 be unrouted" in output
    assert f"migration-pipeline plan --profile mine:profile --without-manifest {emulated}" in output


# -- folders ----------------------------------------------------------------------------------------


def dump(folder: Path, **files: Any) -> Path:
    folder.mkdir(parents=True)
    for name, lines in files.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(b"".join(line + b"\n" for line in lines)))
    return folder


LINE = json.dumps({"Item": {"PK": {"S": "a"}, "SK": {"S": "THING"}, "size": {"N": "1"}}}).encode()


def test_a_dump_in_a_folder_is_taken_whole(tmp_path: Path) -> None:
    folder = dump(tmp_path / "dump", part_1=[LINE], part_2=[LINE.replace(b'"a"', b'"b"')], empty=[])
    (folder / "README").write_text("no data")
    status, output = call("plan", "--profile", REFERENCE, "--without-manifest", str(folder))
    assert status == 0, output
    assert [(each.file.name, each.file.items) for each in the_plan().files] == [
        ("empty.gz", 0),
        ("part_1.gz", 1),
        ("part_2.gz", 1),
    ]
    assert [each.partition.rpartition("_")[0] for each in the_plan().files] == [
        "0001_empty", "0002_part_1", "0003_part_2"
    ]  # fmt: skip


def test_a_replay_keeps_the_doubt(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIGRATION_DATABASE_URL", database_url)
    folder = dump(tmp_path / "dump", part=[LINE, *(LINE.replace(b'"a"', b'"b%d"' % n) for n in range(20))])
    call("plan", "--profile", REFERENCE, "--without-manifest", str(folder))
    call("ddl", REFERENCE, "--apply")
    BROKEN.add("a")
    try:
        load(the_plan(), database_url)
    finally:
        BROKEN.clear()
    receipt = "SELECT loaded, quarantined, doubt <> '' FROM migration.loaded_file"
    assert query(database_url, receipt) == [(20, 1, True)]
    assert call("replay", REFERENCE)[0] == 0
    assert query(database_url, receipt) == [(21, 0, True)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"PK": "a"}', "line 1 is no item as DynamoDB exports it"),
        (b'{"Metadata": {}, "Keys": {"PK": {"S": "a"}}}', "line 1 is a record of an incremental export"),
        (b"a,b,c", "line 1 is no item"),
    ],
)
def test_what_holds_no_items_is_refused(tmp_path: Path, line: bytes, words: str) -> None:
    folder = dump(tmp_path / "dump", part=[line])
    status, output = call("plan", "--profile", REFERENCE, "--without-manifest", str(folder))
    assert status == 2
    assert words in output
    assert "a,b,c" not in output


def test_an_export_with_a_manifest_is_not_taken_for_one_without(shop_export: Path, tmp_path: Path) -> None:
    status, output = call("plan", "--profile", REFERENCE, "--without-manifest", str(shop_export))
    assert status == 2
    assert "plan it without --without-manifest" in output
    (tmp_path / "nothing").mkdir()
    status, output = call("plan", "--profile", REFERENCE, "--without-manifest", str(tmp_path / "nothing"))
    assert status == 2
    assert "no file here, nor in data, is named ….gz" in output
