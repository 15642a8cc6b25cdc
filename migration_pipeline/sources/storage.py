"""Where an export lies: an S3 prefix or a folder, read alike.

Everything that talks to S3 is here, and also the translation of its errors to lines that say what to do. boto3's own retries (the `AWS_RETRY_MODE` and `AWS_MAX_ATTEMPTS` environment) serve for requests;
a file that is being read has `resumable` besides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError
from urllib3.exceptions import HTTPError

from migration_pipeline import settings
from migration_pipeline.errors import MigrationError
from migration_pipeline.sources.resumable import ObjectChangedError, ReadFailedError, ResumingClient
from migration_pipeline.units import counted

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

CONNECT_SECONDS = 10
"""How long S3 may take to accept a connection. botocore's own 60, times its attempts, hide a dead network for long."""

READ_SECONDS = 30
"""How long S3 may send nothing, in an answer or before it. Only waiting for S3 counts, not a slow database behind."""


ARCHIVES = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes whose objects have to be restored before they can be read."""


class Listed(NamedTuple):
    """A file of a folder."""

    size: int
    """Bytes, compressed."""
    archived: bool = False
    """Whether it lies in an archive."""


class StorageError(MigrationError):
    """A bucket, folder or file cannot be read."""

    passing = False
    """Whether that may be over in a moment, as S3 does not answer, or has no time."""


class MissingError(StorageError):
    """There is no such file or object."""


class Storage:
    """Reads files by URI: ``s3://bucket/key`` or a path. The S3 client is made when first needed."""

    @cached_property
    def client(self) -> S3Client:
        """The S3 client, configured from the environment as boto3 does."""
        # With smart-open it takes most of the time in which a command is imported: only where there is S3.
        import boto3
        from botocore.config import Config

        with explained("s3"):
            timeouts = Config(connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS)
            client = boto3.Session().client("s3", config=timeouts)
        if payer := settings.request_payer():

            def pay(params: dict[str, Any], **_: Any) -> None:
                params["RequestPayer"] = payer

            for operation in ("GetObject", "HeadObject", "ListObjectsV2"):
                client.meta.events.register(f"before-parameter-build.s3.{operation}", pay)
        return client

    def open(self, uri: str) -> BinaryIO:
        """Open a file for streaming, as stored (not decompressed). Raises `StorageError`.

        Read from it within `explained`: a file in S3 is opened by its first read.
        """
        with explained(uri):
            if is_s3(uri):
                import smart_open.s3

                # Not by the URI: smart-open splits it at its first slash, which an access point's ARN has within.
                bucket, key = split_s3(uri)
                opened: Any = smart_open.s3.open(
                    bucket, key, "rb", client=ResumingClient(self.client), defer_seek=True
                )
                return opened  # type: ignore[no-any-return]  # a BufferedIOBase
            return Path(uri).open("rb")

    def read(self, uri: str) -> bytes:
        """Read a small file whole. Raises `StorageError`."""
        with self.open(uri) as stream, explained(uri):
            return stream.read()

    def write(self, uri: str, content: bytes) -> None:
        """Write a small file, whole or not at all; its folder is made. Raises `StorageError`."""
        with explained(uri):
            if is_s3(uri):
                import smart_open.s3

                bucket, key = split_s3(uri)
                # In one request, which S3 takes as a whole.
                with smart_open.s3.open(
                    bucket, key, "wb", client=self.client, multipart_upload=False
                ) as opened:
                    opened.write(content)
                return
            path = Path(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f"{path.name}.tmp")
            scratch.write_bytes(content)
            scratch.replace(path)

    def exists(self, uri: str) -> bool:
        """Tell whether there is such a file. Raises `StorageError` when that cannot be known."""
        if not is_s3(uri):
            return Path(uri).is_file()
        bucket, key = split_s3(uri)
        with explained(uri):
            try:
                self.client.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                # A HEAD has no body, so S3 says "404" here instead of NoSuchKey; a missing bucket says so, too.
                if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                    self.client.head_bucket(Bucket=bucket)
                    return False
                raise
        return True

    def listing(self, folder: str) -> dict[str, Listed]:
        """List a folder by file name, not below it. Raises `StorageError`."""
        if not is_s3(folder):
            with explained(folder):
                path = Path(folder)
                found = (p for p in path.iterdir() if p.is_file()) if path.is_dir() else ()
                return {p.name: Listed(p.stat().st_size) for p in found}
        bucket, key = split_s3(folder)
        base = key.rstrip("/") + "/"
        with explained(folder):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=base)
            return {
                found["Key"].removeprefix(base): Listed(
                    found["Size"], found.get("StorageClass", "") in ARCHIVES
                )
                for page in pages
                for found in page.get("Contents", [])
                if "/" not in found["Key"].removeprefix(base)
            }

    def is_restored(self, uri: str) -> bool:
        """Tell whether an archived object can be read now. Raises `StorageError`."""
        bucket, key = split_s3(uri)
        with explained(uri):
            answer = self.client.head_object(Bucket=bucket, Key=key)
        return 'ongoing-request="false"' in answer.get("Restore", "")

    def folders(self, folder: str) -> list[str]:
        """List the names of the folders right below a folder. Raises `StorageError`."""
        if not is_s3(folder):
            path = Path(folder)
            return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
        bucket, key = split_s3(folder)
        base = key.rstrip("/") + "/" if key else ""
        with explained(folder):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=base, Delimiter="/"
            )
            return [
                found["Prefix"].removeprefix(base).rstrip("/")
                for page in pages
                for found in page.get("CommonPrefixes", [])
            ]


def is_s3(uri: str) -> bool:
    """Tell an S3 URI from a path."""
    return uri.startswith("s3://")


ACCESS_POINT = re.compile(r"(arn:[^/]+?:(?:outpost[:/][^:/]+[:/])?accesspoint[:/][^:/]+)/?(.*)", re.DOTALL)
"""An access point's ARN, which stands in a bucket's place, and the key behind it."""


def split_s3(uri: str) -> tuple[str, str]:
    """Split ``s3://bucket/key`` into bucket, or the ARN of an access point, and key."""
    path = uri.removeprefix("s3://")
    if found := ACCESS_POINT.fullmatch(path):
        return found[1], found[2]
    bucket, _, key = path.partition("/")
    return bucket, key


def join(folder: str, *names: str) -> str:
    """Put names behind a folder's URI."""
    return "/".join((folder.rstrip("/"), *names))


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn errors of boto3, smart-open and the file system into one line that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except ObjectChangedError as error:
        raise StorageError(
            f"{uri}: changed while it was read; load it again once nothing writes to it, "
            "and plan again if the export was replaced"
        ) from error
    except Exception as error:
        # smart-open keeps the S3 error it met as backend_error, or chains it.
        cause = getattr(error, "backend_error", None) or error.__cause__ or error
        text = _explanation(cause, uri)
        if text is None and cause is not error:
            text = _explanation(error, uri)
        if text is None:
            raise
        if isinstance(error, ReadFailedError) and error.tries > 1:
            text += f"; gave up after {counted(error.tries, 'try', 'tries')} in a row: load the file again once S3 works"
        kind = MissingError if text.endswith((NO_OBJECT, NO_FILE)) else StorageError
        told = kind(text)
        told.passing = _is_passing(cause)
        raise told from error


NO_OBJECT = "no such object; check the key, or copy the file there"
NO_FILE = "no such file or folder"


def _key_refused(action: str, message: str) -> str:
    """Name the action on a key that the role lacks; S3 says which key, by its ARN."""
    key = re.search(r"arn:[\w-]+:kms:[\w:/-]+", message)
    named = f"the KMS key {key[0]}" if key else "the KMS key that the object is encrypted with"
    return f"access denied by KMS; the role needs {action} on {named}, in its own policy and the key's"


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= HTTPStatus.INTERNAL_SERVER_ERROR
    unasked = isinstance(error, (NoCredentialsError, PartialCredentialsError))
    return isinstance(error, (BotoCoreError, HTTPError)) and not unasked


def _explanation(error: BaseException, uri: str) -> str | None:
    bucket = split_s3(uri)[0]
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return f"{uri}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, ClientError):
        code = error.response.get("Error", {}).get("Code", "")
        if code == "NoSuchBucket" or (code == "404" and error.operation_name == "HeadBucket"):
            return f"{uri}: no such bucket: {bucket}; check the name and the account"
        if code in ("NoSuchKey", "404"):
            return f"{uri}: {NO_OBJECT}"
        if denied := re.search(r"\bkms:[A-Z]\w+", error.response.get("Error", {}).get("Message", "")):
            return f"{uri}: {_key_refused(denied[0], error.response['Error']['Message'])}"
        if code.startswith(("KMS.", "KMS")):
            return (
                f"{uri}: KMS cannot use the key that the object is encrypted with ({code}): it is disabled, deleted, or of "
                "another region; enable it, or export the table again with another key"
            )
        if code == "InvalidObjectState":
            return f"{uri}: the file is archived (Glacier); restore it first (aws s3api restore-object)"
        if code in ("AccessDenied", "403", "AllAccessDisabled"):
            return f"{uri}: access denied; the role needs s3:GetObject and s3:ListBucket on this prefix, and kms:Decrypt where a key of yours encrypts it"
        if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
            return f"{uri}: AWS refused the credentials ({code}); renew them and try again"
        return f"{uri}: S3 answered {code or 'with an error'} to {error.operation_name}"
    if isinstance(error, (BotoCoreError, HTTPError)):
        return f"{uri}: S3 cannot be reached: {str(error).splitlines()[0]}"
    if isinstance(error, FileNotFoundError):
        return f"{uri}: {NO_FILE}"
    if isinstance(error, PermissionError):
        return f"{uri}: permission denied"
    if isinstance(error, OSError):
        return f"{uri}: {error.strerror or error}"
    return None
