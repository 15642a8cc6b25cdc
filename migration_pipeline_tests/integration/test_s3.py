"""Exports in S3, spoken to over its real protocol (moto's server), and what a person reads when that fails."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from click.testing import CliRunner

from migration_pipeline.cli import main
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage, StorageError, split_s3
from migration_pipeline.sources.stream import FileStream
from migration_pipeline_tests.s3 import s3_server
from migration_pipeline_tests.windows import record, write_window

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


def copied(bucket: str, shop_export: Path, prefix: str, manifest_prefix: str, **extra: str) -> str:
    """Put the sample below another prefix of the bucket, with a manifest of that place; gives the export's key."""
    s3 = boto3.client("s3")
    base = f"{prefix}AWSDynamoDB/{shop_export.name}"
    for path in shop_export.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "manifest-files.json":
                content = content.replace(b'"AWSDynamoDB/', f'"{manifest_prefix}AWSDynamoDB/'.encode())
                (shop_key, body) = ("manifest-files.md5", base64.b64encode(hashlib.md5(content).digest()))
                s3.put_object(Bucket=bucket, Key=f"{base}/{shop_key}", Body=body)
            elif path.name == "manifest-files.md5":
                continue
            more = extra if path.name.endswith(".gz") else {}
            s3.put_object(Bucket=bucket, Key=f"{base}/{path.relative_to(shop_export)}", Body=content, **more)  # type: ignore[arg-type]
    return base


def read_all(location: str) -> int:
    """Read an export and all of its files; gives the number of lines."""
    storage = Storage()
    streams = [FileStream(file, storage) for file in read_export(location, storage).files]
    lines = sum(len(some) for stream in streams for some in stream)
    for stream in streams:
        stream.verify()
    return lines


def test_a_prefix_with_a_leading_slash_loads(bucket: str, shop_export: Path) -> None:
    key = copied(bucket, shop_export, "/backups/", "/backups/")
    assert read_all(f"s3://{bucket}/{key}") == 6_000
    assert key.startswith("/")


def test_what_lies_in_an_export_names_it_and_hadoop_s_schemes_are_s3_s(
    bucket: str, shop_export: Path
) -> None:
    place = location(bucket, shop_export)
    storage = Storage()
    expected = read_export(place, storage)
    name = expected.files[0].name
    for inside in (
        "manifest-summary.json",
        "manifest-files.json",
        "manifest-summary.md5",
        "data",
        "data/",
        f"data/{name}",
    ):
        assert read_export(f"{place}/{inside}", storage) == expected
        folder = read_export(f"{shop_export}/{inside}", storage)
        assert folder == read_export(str(shop_export), storage)
    for scheme in ("s3a", "s3n"):
        assert read_export(place.replace("s3://", f"{scheme}://"), storage) == expected


def test_an_access_point_stands_in_a_bucket_s_place() -> None:
    for bucket, key in (
        ("arn:aws:s3:eu-west-1:123456789012:accesspoint/mine", "some/prefix/AWSDynamoDB/1"),
        ("arn:aws-cn:s3:cn-north-1:123456789012:accesspoint:mine", "AWSDynamoDB/1"),
        ("arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", "AWSDynamoDB/1"),
        ("arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-1/accesspoint/mine", "a/b"),
        ("bucket", "/a//b"),
        ("bucket", ""),
    ):
        assert split_s3(f"s3://{bucket}/{key}") == (bucket, key)


def test_archived_files_are_found_by_their_listing(bucket: str, shop_export: Path) -> None:
    key = copied(bucket, shop_export, "cold/", "cold/", StorageClass="GLACIER")
    with pytest.raises(StorageError, match=r"4 of 4 files are archived \(Glacier\), .* restore them first"):
        read_export(f"s3://{bucket}/{key}", Storage())
    s3 = boto3.client("s3")
    for found in s3.list_objects_v2(Bucket=bucket, Prefix=f"{key}/data/")["Contents"]:
        s3.restore_object(Bucket=bucket, Key=found["Key"], RestoreRequest={"Days": 1})
    assert read_all(f"s3://{bucket}/{key}") == 6_000
    instant = copied(bucket, shop_export, "instant/", "instant/", StorageClass="GLACIER_IR")
    assert read_all(f"s3://{bucket}/{instant}") == 6_000


def test_a_window_reads_the_same_from_s3_and_from_a_folder(bucket: str, tmp_path: Path) -> None:
    item = {"PK": {"S": "A"}, "SK": {"S": "X"}}
    times = ("2024-01-01T00:00:00Z", "2024-01-01T00:15:00Z")
    folder = write_window(tmp_path, [[record(item)], []], *times)
    s3, place = boto3.client("s3"), f"s3://{bucket}/AWSDynamoDB/{folder.name}"
    for path in tmp_path.rglob("*.*"):
        s3.upload_file(str(path), bucket, str(path.relative_to(tmp_path)))
    remote, local = read_export(place, Storage()), read_export(str(folder), Storage())
    assert remote.window == local.window
    assert [(f.name, f.items, f.md5, f.size) for f in remote.files] == [
        (f.name, f.items, f.md5, f.size) for f in local.files
    ]
    assert [f.uri for f in remote.files] == [f"s3://{bucket}/AWSDynamoDB/data/{f.name}" for f in local.files]
    assert read_all(place) == 1
    name = local.files[1].name
    extra: Any = {"StorageClass": "GLACIER"}
    s3.put_object(Bucket=bucket, Key=f"AWSDynamoDB/data/{name}", Body=b"", **extra)
    with pytest.raises(
        StorageError, match=rf"AWSDynamoDB/data: 1 of 2 files is archived \(Glacier\), {name}"
    ):
        read_export(place, Storage())
    s3.delete_object(Bucket=bucket, Key=f"AWSDynamoDB/data/{name}")
    with pytest.raises(StorageError, match=rf"AWSDynamoDB/data/{name}: no such file \(nor in {place}/data\)"):
        read_export(place, Storage())


class Answering(BaseHTTPRequestHandler):
    """Answers each request with the error of its server, and keeps the headers."""

    def do_GET(self) -> None:
        server: Any = self.server
        server.seen.append({name.lower(): value for name, value in self.headers.items()})
        code, message = server.error
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(403 if code == "AccessDenied" else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # the library's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
        pass


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 that refuses everything, as its `error` says."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.seen, server.error = [], ("AccessDenied", "Access Denied")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    server.server_close()


KEY = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (("AccessDenied", f"User: arn:aws:iam::123456789012:role/loader is not authorized to perform: kms:Decrypt on "
          f"resource: {KEY} because no identity-based policy allows the kms:Decrypt action"),
         f"the role needs kms:Decrypt on the KMS key {KEY}, in its own policy and the key's"),
        (("AccessDenied", "The ciphertext refers to a customer master key; kms:Decrypt is denied"),
         "the role needs kms:Decrypt on the KMS key that the object is encrypted with"),
        (("KMS.DisabledException", f"{KEY} is disabled."), "KMS cannot use the key"),
        (("InvalidObjectState", "The operation is not valid for the object's storage class"), "restore it first"),
        (("AccessDenied", "Access Denied"), "the role needs s3:GetObject and s3:ListBucket"),
    ],
)  # fmt: skip
def test_a_refusal_names_what_is_lacking(refusing: Any, error: tuple[str, str], words: str) -> None:
    refusing.error = error
    with pytest.raises(StorageError) as told:
        Storage().read("s3://bucket/key")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_the_requester_pays_when_told_to(refusing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for payer in ("", "requester"):
        monkeypatch.setenv("MIGRATION_REQUEST_PAYER", payer)
        refusing.seen.clear()
        for call in (Storage().read, Storage().listing, Storage().is_restored):
            with pytest.raises(StorageError):
                call("s3://bucket/key")
        assert len(refusing.seen) == 3
        assert {seen.get("x-amz-request-payer", "") for seen in refusing.seen} == {payer}
