"""Reading an export file from S3 while S3 and the network fail.

Either the lines are the very lines of the file, or a `StorageError` says why not, in one line.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import os
import random
import re
import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
import pytest

from migration_pipeline.sources import resumable, storage, stream
from migration_pipeline.sources.export import ExportFile
from migration_pipeline.sources.storage import Storage, StorageError, explained
from migration_pipeline.sources.stream import FileStream
from migration_pipeline_tests.chaos.proxy import Fault, Proxy
from migration_pipeline_tests.chaos.s3_faults import Answer, FaultyS3
from migration_pipeline_tests.s3 import s3_server

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

BUCKET = "objects-to-maltreat"
KEY = "AWSDynamoDB/01700000000000-0a1b2c3d/data/some.json.gz"
URI = f"s3://{BUCKET}/{KEY}"
SLOW_DOWN = Answer("error", "SlowDown")


def lines_like(seed: int, count: int = 6_000) -> list[bytes]:
    """Lines that shrink to a half: some 600 KB compressed, several of the reader's chunks."""
    numbers = random.Random(seed)
    return [b'{"Item":{"PK":{"S":"%s"}}}' % numbers.randbytes(90).hex().encode() for _ in range(count)]


def packed(lines: list[bytes]) -> bytes:
    return gzip.compress(b"".join(line + b"\n" for line in lines), 1)


LINES = lines_like(1)
CONTENT = packed(LINES)
HALF = len(CONTENT) // 2


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment | {"AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.fixture(scope="module")
def faulty_server(server: dict[str, str]) -> Iterator[FaultyS3]:
    with FaultyS3(server["AWS_ENDPOINT_URL_S3"]) as faulty:
        yield faulty


@pytest.fixture
def faulty(faulty_server: FaultyS3, server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> FaultyS3:
    """The faulty S3, without a fault as yet, with the file in it; waits are short, and botocore tries once."""
    for name, value in (server | {"AWS_ENDPOINT_URL_S3": faulty_server.url, "AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(resumable, "WAIT_SECONDS", (0.01, 0.01, 0.01, 0.01, 0.01))
    monkeypatch.setattr(storage, "READ_SECONDS", 5)  # a machine under load is no fault; stalls set less
    faulty_server.plan([])
    put(CONTENT)
    return faulty_server


@pytest.fixture
def impatient(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stall is noticed at once."""
    monkeypatch.setattr(storage, "READ_SECONDS", 1.5)  # a busy machine sends the head of an answer by then


@cache
def s3(url: str) -> S3Client:
    """A client of its own to write with, its bucket made: making one takes a tenth of a second."""
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    return client


def put(content: bytes) -> None:
    s3(os.environ["AWS_ENDPOINT_URL_S3"]).put_object(Bucket=BUCKET, Key=KEY, Body=content)


def a_file(content: bytes = CONTENT, items: int = len(LINES), **changes: Any) -> FileStream:
    md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
    fields = {"name": "some.json.gz", "uri": URI, "items": items, "md5": md5, "size": len(content), **changes}
    return FileStream(ExportFile(**fields), Storage())


def read(source: FileStream) -> list[bytes]:
    lines = [line for lines in source for line in lines]
    source.verify()
    return lines


def assert_fails(source: FileStream, text: str) -> None:
    """One line that names the file and holds `text` (a regular expression)."""
    with pytest.raises(StorageError) as caught:
        read(source)
    message = str(caught.value)
    assert message.startswith(f"{URI}: ")
    assert re.search(text, message)
    assert len(message.splitlines()) == 1


def test_without_a_fault_the_file_is_read_with_one_request(faulty: FaultyS3) -> None:
    assert read(a_file()) == LINES
    assert len(faulty.asked) == 1


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "RequestTimeout"])
def test_a_busy_s3_is_asked_again(faulty: FaultyS3, code: str) -> None:
    faulty.plan([Answer("error", code)] * 5)
    assert read(a_file()) == LINES
    assert len(faulty.asked) == 6


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["truncate", "reset", "stall", "short"])
@pytest.mark.parametrize("place", [0, HALF, len(CONTENT) - 1])
def test_a_body_that_breaks_off_is_read_on_from_there(faulty: FaultyS3, kind: Any, place: int) -> None:
    faulty.plan([Answer(kind, after_bytes=place)])
    start = time.monotonic()
    assert read(a_file()) == LINES
    assert time.monotonic() - start < 5  # a stall is noticed after storage.READ_SECONDS
    again = faulty.asked[1]
    # A reset may take the whole answer with it: then nothing of the file is known yet.
    assert again.if_match is not None or (kind == "reset" and again.range == faulty.asked[0].range)
    if kind in ("truncate", "short"):  # the others may lose what was on its way
        assert again.range == f"bytes={place}-{len(CONTENT) - 1}"


@pytest.mark.usefixtures("impatient")
def test_faults_while_it_is_opened_again_are_outlasted(faulty: FaultyS3) -> None:
    faulty.plan(
        [
            Answer("truncate", after_bytes=HALF),
            SLOW_DOWN,
            Answer("reset"),
            Answer("stall"),
            Answer("truncate"),
            SLOW_DOWN,
        ]
    )
    with pytest.raises(
        StorageError, match="gave up after 6 tries in a row"
    ):  # the first counts, too: no byte since
        read(a_file())
    faulty.plan(
        [Answer("truncate", after_bytes=HALF), SLOW_DOWN, Answer("reset"), Answer("stall"), SLOW_DOWN]
    )
    assert read(a_file()) == LINES


def test_progress_makes_up_for_failures(faulty: FaultyS3) -> None:
    piece = len(CONTENT) // 10
    faulty.plan(
        [fault for _ in range(9) for fault in (Answer("truncate", after_bytes=piece), *[SLOW_DOWN] * 4)]
    )
    assert read(a_file()) == LINES
    assert len(faulty.asked) == 46


@pytest.mark.parametrize("seed", range(6), ids="seed {}".format)
def test_any_faults_in_any_order_give_the_file_or_say_why_not(faulty: FaultyS3, seed: int) -> None:
    chance = random.Random(seed)
    answers = [
        SLOW_DOWN
        if chance.random() < 0.3
        else Answer(
            chance.choice(["truncate", "reset", "short"]), after_bytes=chance.randrange(len(CONTENT) // 4)
        )
        for _ in range(chance.randrange(30))
    ]
    faulty.plan(answers)
    told = ""
    lines = LINES
    try:
        lines = read(a_file())
    except StorageError as error:
        told = str(error)
    assert lines == LINES
    assert not told or "gave up after 6 tries in a row" in told


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("seed", range(4), ids="seed {}".format)
def test_a_network_that_cuts_and_resets_anywhere(
    faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    with Proxy(("127.0.0.1", faulty.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
        faults = [
            proxy.inject(
                Fault(
                    chance.choice(["cut", "reset", "stall"]),
                    towards="client",
                    after_bytes=chance.randrange(len(CONTENT)),
                    times=1,
                )
            )
            for _ in range(4)
        ]
        proxy.inject(Fault("refuse", times=2))
        proxy.inject(Fault("slice", towards="client", size=chance.randrange(500, 5000)))
        assert read(a_file()) == LINES
    assert any(fault.struck for fault in faults)
    assert proxy.accepted >= 4


def test_a_connection_that_is_lost_while_nobody_reads_is_no_fault(
    faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away for minutes, the reader waits, and S3 closes the idle connection."""
    with Proxy(("127.0.0.1", faulty.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{proxy.port}")
        source = a_file()
        chunks = iter(source)
        lines = next(chunks)
        stalled = proxy.inject(Fault("reset", times=1))
        time.sleep(0.1)
        lines = [*lines, *(line for chunk in chunks for line in chunk)]
        source.verify()
    assert lines == LINES
    assert stalled.struck == 1


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            SLOW_DOWN,
            "S3 answered SlowDown to GetObject; gave up after 6 tries in a row: load the file again",
        ),
        (Answer("truncate"), "; gave up after 6 tries"),
        (Answer("short"), "; gave up after 6 tries"),
        (Answer("reset"), "; gave up after 6 tries"),
        (Answer("stall"), "S3 cannot be reached: Read timeout.*; gave up after 6 tries"),
    ],
)
@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [0, HALF])
def test_faults_without_end_are_given_up(faulty: FaultyS3, fault: Answer, text: str, before: int) -> None:
    faulty.plan([Answer("truncate", after_bytes=before)] if before else [], otherwise=fault)
    assert_fails(a_file(), text)
    assert len(faulty.asked) == 6


def test_the_environment_says_how_often_botocore_tries(
    faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(resumable, "WAIT_SECONDS", (0.01,))
    faulty.plan([], otherwise=SLOW_DOWN)
    assert_fails(a_file(), "gave up after 2 tries")
    assert len(faulty.asked) == 4


@pytest.mark.parametrize("header", ["whole", "no-if-match"])
def test_an_object_that_changes_while_it_is_read_fails_the_file(faulty: FaultyS3, header: Any) -> None:
    """Also where the store does not know If-Match; and a file of the same size."""
    other = packed(lines_like(2))[: len(CONTENT)].ljust(len(CONTENT), b"\0")
    faulty.plan([Answer("truncate", after_bytes=HALF), Answer(header, first=lambda: put(other))])
    assert_fails(
        a_file(), "changed while it was read; load it again once nothing writes to it, and plan again"
    )
    assert len(faulty.asked) == 2


def test_a_store_without_ranges_is_not_read_twice_over(faulty: FaultyS3) -> None:
    faulty.plan([Answer("truncate", after_bytes=HALF)], otherwise=Answer("no-range"))
    assert_fails(a_file(), "gave up after 6 tries")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("AccessDenied", "access denied; the role needs s3:GetObject"),
        ("ExpiredToken", r"AWS refused the credentials \(ExpiredToken\)"),
    ],
)
@pytest.mark.parametrize("before", [0, HALF])
def test_a_refusal_is_not_tried_again(faulty: FaultyS3, code: str, text: str, before: int) -> None:
    faulty.plan([Answer("truncate", after_bytes=before)] if before else [], otherwise=Answer("error", code))
    assert_fails(a_file(), text)
    assert len(faulty.asked) == (2 if before else 1)


@pytest.mark.parametrize("before", [0, HALF])
def test_a_missing_object_is_named(faulty: FaultyS3, before: int) -> None:
    def delete() -> None:
        s3(faulty.url).delete_object(Bucket=BUCKET, Key=KEY)

    if before:
        faulty.plan([Answer("truncate", after_bytes=before), Answer(first=delete)])
    else:
        delete()
    assert_fails(a_file(), "no such object; check the key")


def test_missing_credentials_are_not_tried_again(faulty: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_fails(
        a_file(), "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE$"
    )


def test_a_small_file_is_read_whole_through_faults(faulty: FaultyS3) -> None:
    faulty.plan([SLOW_DOWN, Answer("truncate", after_bytes=HALF), Answer("reset", after_bytes=9)])
    assert Storage().read(URI) == CONTENT


def test_a_seek_reads_on_from_there_through_faults(faulty: FaultyS3) -> None:
    with explained(URI), Storage().open(URI) as raw:
        faulty.plan([Answer("truncate", after_bytes=10)])
        raw.seek(1000)
        assert raw.read(len(CONTENT) - 1000) == CONTENT[1000:]
    assert [asked.range for asked in faulty.asked] == ["bytes=1000-", f"bytes=1010-{len(CONTENT) - 1}"]


def test_several_gzip_members_are_one_file(faulty: FaultyS3) -> None:
    content = packed(LINES[:1000]) + packed([]) + packed(LINES[1000:])
    put(content)
    faulty.plan([Answer("truncate", after_bytes=HALF)])
    assert read(a_file(content)) == LINES


@pytest.mark.parametrize("place", [0, HALF, len(CONTENT) - 8])
def test_a_corrupt_file_is_no_fault_of_the_network(faulty: FaultyS3, place: int) -> None:
    """Its header, its body, whose garbage may have any number of lines, and its CRC."""
    content = CONTENT[:place] + b"\xff\xff" + CONTENT[place + 2 :]
    put(content)
    assert_fails(
        a_file(content), "copy the (file|export) again" if place == HALF else "corrupt gzip .*; copy"
    )
    assert len(faulty.asked) == 1


def test_a_truncated_object_is_no_fault_of_the_network(faulty: FaultyS3) -> None:
    content = CONTENT[:-100]
    put(content)
    assert_fails(a_file(content), "the gzip stream ends in the middle; the file is truncated: copy it again")
    assert len(faulty.asked) == 1


def test_another_file_than_the_manifests_is_refused(faulty: FaultyS3) -> None:
    put(packed(lines_like(3)))
    assert_fails(a_file(), "its MD5 is .*, but the manifest says ")


def test_fewer_items_than_the_manifest_says(faulty: FaultyS3) -> None:
    assert_fails(a_file(items=len(LINES) + 1), "it holds 6,000 items, but the manifest says 6,001")


@pytest.mark.parametrize("items", [0, 1, len(LINES) - 1])
def test_more_items_than_the_manifest_says_stop_the_file(faulty: FaultyS3, items: int) -> None:
    source = a_file(items=items)
    lines: list[bytes] = []
    with pytest.raises(StorageError, match=f"it holds more items than the {items:,} that the manifest says"):
        lines.extend(line for chunk in source for line in chunk)
    assert len(lines) <= items
    assert lines == LINES[: len(lines)]


def test_a_line_too_many_without_a_newline_stops_the_file(faulty: FaultyS3) -> None:
    content = gzip.compress(b"one\ntwo")
    put(content)
    assert_fails(a_file(content, 1), "it holds more items than the 1 that the manifest says")


def test_an_empty_object_is_an_empty_file(faulty: FaultyS3) -> None:
    put(b"")
    assert read(a_file(b"", 0)) == []
    assert_fails(a_file(CONTENT, 0), "its MD5 is 1B2M2Y8AsgTpgAmY7PhCfg==, but the manifest says")
    assert_fails(a_file(b"", 1), "it holds 0 items, but the manifest says 1")


def test_a_gzip_bomb_is_stopped(faulty: FaultyS3) -> None:
    line = b"x" * 999 + b"\n"
    content = gzip.compress(line * 150_000)
    put(content)
    source = a_file(content, 10**9)
    assert_fails(
        source, f"its {len(content):,} bytes decompress to more than 250 times as many: .* a gzip bomb"
    )
    limit = len(content) * stream.MAX_EXPANSION + stream.MAX_EXPANSION_FLOOR
    assert limit // 1000 - 100 < source.lines_read <= limit // 1000


def test_a_file_that_shrank_well_is_no_bomb(faulty: FaultyS3) -> None:
    content = gzip.compress((b"x" * 999 + b"\n") * 60_000)  # below the floor
    put(content)
    assert len(read(a_file(content, 60_000))) == 60_000


def test_a_line_without_end_is_stopped_early(faulty: FaultyS3) -> None:
    content = gzip.compress(b"one\n" + bytes(30 << 20))
    put(content)
    source = a_file(content, 2)
    assert_fails(source, "line 2 is longer than 8,388,608 bytes, so it is not a DynamoDB item")
    assert source.lines_read == 1
