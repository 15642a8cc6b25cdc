"""Exports in S3, spoken to over its real protocol (moto's server), and what a person reads when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream
from migration_pipeline_tests.s3 import s3_server

PREFIX = "some/prefix"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment | {"AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.fixture(autouse=True)
def aws(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual AWS environment, as an operator would set it."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(shop_export: Path, request: pytest.FixtureRequest) -> str:
    """A bucket with the sample export below a prefix."""
    name = f"bucket-{abs(hash(request.node.name)) % 10**8}"
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for path in shop_export.rglob("*"):
        if path.is_file():
            s3.upload_file(
                str(path), name, f"{PREFIX}/AWSDynamoDB/{shop_export.name}/{path.relative_to(shop_export)}"
            )
    return name


def location(bucket: str, shop_export: Path) -> str:
    return f"s3://{bucket}/{PREFIX}/AWSDynamoDB/{shop_export.name}"


def test_an_export_reads_the_same_from_s3_and_from_a_folder(bucket: str, shop_export: Path) -> None:
    storage = Storage()
    remote = read_export(location(bucket, shop_export) + "/", storage)
    local = read_export(str(shop_export), storage)
    assert [(f.name, f.items, f.md5, f.size) for f in remote.files] == [
        (f.name, f.items, f.md5, f.size) for f in local.files
    ]
    for one, other in zip(remote.files, local.files, strict=True):
        here, there = FileStream(one, storage), FileStream(other, storage)
        assert [line for lines in here for line in lines] == [line for lines in there for line in lines]
        here.verify()


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["plan", "--profile", "shop", *arguments])
    return result.exit_code, result.output.strip()


def test_a_plan_is_made_from_s3(bucket: str, shop_export: Path) -> None:
    status, output = run(location(bucket, shop_export))
    assert status == 0
    assert output.startswith("planned 4 files, 6,000 items")


def test_no_such_bucket(shop_export: Path) -> None:
    status, output = run(f"s3://no-such-bucket/AWSDynamoDB/{shop_export.name}")
    assert (status, len(output.splitlines())) == (1, 1)
    assert "no such bucket: no-such-bucket; check the name" in output


def test_no_export_there_says_where_one_is(bucket: str, shop_export: Path) -> None:
    status, output = run(f"s3://{bucket}/{PREFIX}")
    assert (status, len(output.splitlines())) == (2, 1)
    assert f"did you mean {location(bucket, shop_export)}?" in output


def test_a_missing_data_file(bucket: str, shop_export: Path) -> None:
    s3 = boto3.client("s3")
    key = (
        f"{PREFIX}/AWSDynamoDB/{shop_export.name}/data/"
        + sorted(p.name for p in (shop_export / "data").iterdir())[0]
    )
    s3.delete_object(Bucket=bucket, Key=key)
    status, output = run(location(bucket, shop_export))
    assert (status, len(output.splitlines())) == (1, 1)
    assert f"s3://{bucket}/{key}: no such file, but the manifest names it" in output


def test_no_credentials(bucket: str, shop_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    status, output = run(location(bucket, shop_export))
    assert (status, len(output.splitlines())) == (1, 1)
    assert "no AWS credentials; set AWS_ACCESS_KEY_ID" in output


def test_s3_out_of_reach(shop_export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    status, output = run(f"s3://bucket/AWSDynamoDB/{shop_export.name}")
    assert (status, len(output.splitlines())) == (1, 1)
    assert "S3 cannot be reached" in output
    assert "a-s3cret" not in output
