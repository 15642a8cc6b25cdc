"""An HTTP server in front of an S3 server that answers GetObject wrongly, request by request.

The TCP proxy breaks connections; this one speaks HTTP, for what needs it: errors that S3 answers, bodies that
end at an exact byte, objects that change between two requests. It also writes down what was asked.
"""

from __future__ import annotations

import http.client
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal
from urllib.parse import urlsplit

ERRORS = {
    "SlowDown": 503,
    "InternalError": 500,
    "RequestTimeout": 400,
    "AccessDenied": 403,
    "ExpiredToken": 400,
}
"""Error code -> HTTP status, as in "Error responses" of the S3 API reference."""


@dataclass(frozen=True)
class Answer:
    """How one GetObject is answered: with an error of `ERRORS`, or so many bytes of the body and then a fault.

    ``truncate`` closes the connection, ``reset`` resets it, ``stall`` leaves it open and sends no more;
    ``short`` declares the short body to be all. ``no-if-match`` and ``no-range`` ignore that header, as
    some stores do. `first` is called before the answer is made.
    """

    kind: Literal["whole", "error", "truncate", "reset", "stall", "short", "no-if-match", "no-range"] = (
        "whole"
    )
    code: str = ""
    after_bytes: int = 0
    first: Callable[[], object] = lambda: None


WHOLE = Answer()


@dataclass(frozen=True)
class Asked:
    """What a GetObject asked for."""

    range: str | None
    if_match: str | None


class FaultyS3:
    """Listens at `url` and passes everything on to the S3 server at `behind`, but for the faults in `answers`."""

    def __init__(self, behind: str) -> None:
        self.behind = urlsplit(behind).netloc
        self.answers: list[Answer] = []
        """How the next requests for objects below ``data/`` are answered, in turn."""
        self.otherwise = WHOLE
        """How they are answered when `answers` is used up."""
        self.asked: list[Asked] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.faulty = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultyS3:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def plan(self, answers: Iterable[Answer], otherwise: Answer = WHOLE) -> None:
        """Forget what was, and answer the next requests so."""
        with self._lock:
            self.answers, self.otherwise, self.asked = list(answers), otherwise, []

    def next(self, asked: Asked) -> Answer:
        """Write down a request; gives how to answer it."""
        with self._lock:
            self.asked.append(asked)
            return self.answers.pop(0) if self.answers else self.otherwise


class _Server(ThreadingHTTPServer):
    faulty: FaultyS3
    daemon_threads = True  # a client keeps its connections, and with them their threads, as long as it lives

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections that break are what this is for; anything else is told as ever."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def _forward(self) -> None:
        faulty = self.server.faulty
        answer = WHOLE
        if self.command == "GET" and "/data/" in self.path:
            answer = faulty.next(Asked(self.headers["Range"], self.headers["If-Match"]))
            answer.first()
        if answer.kind == "error":
            self._refuse(answer.code)
            return
        ignored = {"no-if-match": "If-Match", "no-range": "Range"}.get(answer.kind)
        behind = http.client.HTTPConnection(faulty.behind)
        try:
            sent = self.rfile.read(int(self.headers["Content-Length"] or 0))
            behind.request(
                self.command, self.path, sent, {n: v for n, v in self.headers.items() if n != ignored}
            )
            response = behind.getresponse()
            body = response.read()
        finally:
            behind.close()
        self.send_response(response.status)
        length = response.headers["Content-Length"] if self.command == "HEAD" else str(len(body))
        if answer.kind == "short":
            length = str(min(answer.after_bytes, len(body)))
        for name, value in response.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if answer.kind in ("truncate", "reset", "stall", "short"):
            body = body[: answer.after_bytes]
        self.wfile.write(body)
        self._break(answer.kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _forward

    def _refuse(self, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
        self.send_response(ERRORS[code])
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _break(self, kind: str) -> None:
        if kind == "stall":
            self.server.faulty.closing.wait()
        if kind == "reset":
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        if kind in ("truncate", "reset", "stall"):
            self.close_connection = True
