"""Reads an S3 object to its end although the network and S3 fail now and then.

smart-open opens, seeks and buffers; botocore repeats a request until it is answered (`AWS_RETRY_MODE`,
`AWS_MAX_ATTEMPTS`). Between the two is the body that is made here, for what neither does (smart-open 9.0,
botocore 1.44): it reads on the *same* object after a fault in mid-body, through further faults while it
reopens, and says at the end what kept failing. It never lets smart-open see a fault, because smart-open
would read on in whatever object is there by then, and give up at the first reopening that fails.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004 - botocore's, whose base is no OSError
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
)
from urllib3.exceptions import HTTPError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

T = TypeVar("T")

TRANSIENT = (ConnectionError, HTTPClientError, IncompleteReadError, FlexibleChecksumError, HTTPError, OSError)
"""No answer, half an answer, or another body than the one that S3 sent."""

log = logging.getLogger(__name__)

WAIT_SECONDS = (1, 2, 4, 8, 16, 32, 32, 32)
"""How long to wait after one failure and the next, while no byte comes; the failure after the last is final.

Two minutes, to outlast a network that is being fixed and an S3 that is making room, on top of the attempts
that botocore makes of each request (3 within seconds, unless the environment says otherwise). Each is cut
by up to a half at random, so that runs do not come back together.
"""


class ReadFailedError(Exception):
    """S3 could not be read, `tries` times in a row; the cause is the last error."""

    def __init__(self, tries: int) -> None:
        super().__init__(f"{tries} tries in a row failed")
        self.tries = tries


class ObjectChangedError(Exception):
    """The object is another one than when it was opened."""


class ResumingClient:
    """An S3 client as smart-open needs it to read: GetObject, whose body survives faults."""

    def __init__(self, client: S3Client) -> None:
        self._client = client

    def get_object(self, **request: Any) -> dict[str, Any]:
        """Answer as the client's own, after any number of tries. Raises `ReadFailedError`, and `ClientError` for a refusal."""
        body = _Body(self._client, request)
        return {**body.answer, "Body": body}


class _Body:
    """The bytes of one answer to GetObject, with the `read` and `close` of a file."""

    def __init__(self, client: S3Client, request: dict[str, Any]) -> None:
        self._client = client
        self._request = request
        self._stream: Any = None
        self._offset = 0  # in the object, of the next byte to read
        self.answer = self._persist(self._open)
        self._offset, self._end = _extent(self.answer)
        self._request["IfMatch"] = self.answer["ETag"]

    def read(self, size: int | None = None) -> bytes:
        """Read at most `size` bytes, or all that is left; nothing only at the end. Raises `ReadFailedError`, `ObjectChangedError`, `ClientError`."""
        if self._offset == self._end:
            return b""
        data = self._persist(lambda: self._read(size))
        self._offset += len(data)
        return data

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self, size: int | None) -> bytes:
        if self._stream is None:
            self._request["Range"] = f"bytes={self._offset}-{self._end - 1}"
            answer = self._open()
            # If-Match and Range are S3's promises; not every store that speaks its protocol keeps them.
            if answer["ETag"] != self._request["IfMatch"]:
                raise ObjectChangedError
            if _extent(answer) != (self._offset, self._end):
                raise IncompleteReadError(actual_bytes=self._offset, expected_bytes=self._end)
        data: bytes = self._stream.read(size)
        if not data:
            raise IncompleteReadError(actual_bytes=self._offset, expected_bytes=self._end)
        return data

    def _open(self) -> dict[str, Any]:
        answer: Any = self._client.get_object(**self._request)
        self._stream = answer["Body"]
        return dict(answer)

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Call until it succeeds, `WAIT_SECONDS` apart; a success is progress, so the next call has all its tries again."""
        tries = 0
        while True:
            try:
                return attempt()
            except (BotoCoreError, ClientError, HTTPError, OSError) as error:
                self.close()
                tries += 1
                if _code(error) == "PreconditionFailed":
                    raise ObjectChangedError from error
                if isinstance(error, ClientError) and not _is_transient(error):
                    raise
                if tries > len(WAIT_SECONDS) or not _is_transient(error):
                    raise ReadFailedError(tries) from error
                seconds = WAIT_SECONDS[tries - 1] * random.uniform(0.5, 1)
                log.warning(
                    "s3://%s/%s: %s at byte %d; trying again in %.1f s",
                    self._request["Bucket"],
                    self._request["Key"],
                    _code(error) or type(error).__name__,
                    self._offset,
                    seconds,
                )
            time.sleep(seconds)


def _extent(answer: dict[str, Any]) -> tuple[int, int]:
    """The bytes of the object that an answer brings: first, and one behind the last."""
    if "ContentRange" not in answer:  # a store that knows no ranges answers with the whole object
        return 0, answer["ContentLength"]
    first, _, last = answer["ContentRange"].removeprefix("bytes ").partition("/")[0].partition("-")
    return int(first), int(last) + 1


def _code(error: Exception) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _is_transient(error: Exception) -> bool:
    """Tell whether another try may succeed."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or _code(error) == "RequestTimeout"  # which is a 400
    return isinstance(error, TRANSIENT)
