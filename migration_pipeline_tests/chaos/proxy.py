"""A TCP proxy that breaks connections on demand, in front of PostgreSQL or S3.

A thread a connection passes bytes on between client and server, and strikes where a `Fault` says so: at
once, behind a number of bytes, or where a pattern of bytes passes.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

TICK_SECONDS = 0.02
"""How often a thread looks for new faults, healed ones, and its end."""

DRAIN_SECONDS = 5.0
"""How long a server whose client was cut off may take to notice it and close, too."""

CHUNK_BYTES = 1 << 16

Side = Literal["client", "server"]


@dataclass(eq=False)
class Fault:
    """What happens to the bytes of a connection, where, and to how many connections.

    ``cut`` ends the connection with a FIN, after the server has read what was sent on to it. ``reset`` ends
    it with an RST on both sides. ``stall`` keeps it open and passes nothing on. ``delay`` holds each chunk
    back for `seconds`. ``slice`` passes on `size` bytes at a time. ``refuse`` resets a new connection
    without asking the server.
    """

    kind: Literal["cut", "reset", "stall", "delay", "slice", "refuse"]
    towards: Side = "client"
    """The direction whose bytes are counted, searched, stalled, delayed or sliced."""
    after_bytes: int = 0
    """So many bytes of a connection pass first; 0 strikes idle connections, too."""
    pattern: bytes = b""
    """Strikes where these bytes pass, however they are cut into packets (cut, reset and stall only)."""
    forward: bool = False
    """Whether the pattern, and what came in one piece with it, is passed on before the fault strikes."""
    times: int = sys.maxsize
    """The number of connections to strike."""
    seconds: float = 0.0
    size: int = 1
    struck: int = field(default=0, init=False)
    """The number of connections that were struck."""


class Proxy:
    """Listens on ``127.0.0.1:port`` for a server at (host, port) or at the path of a Unix socket."""

    def __init__(self, server: tuple[str, int] | str) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TICK_SECONDS)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._connections: list[_Connection] = []
        self._thread = threading.Thread(target=self._accept, name="proxy")
        self.closing = threading.Event()
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        """Connections so far, the refused ones included."""

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self._thread.join()
        self._listener.close()
        for connection in self._connections:
            connection.interrupt()
        for connection in self._connections:
            connection.join(2 * DRAIN_SECONDS)

    def inject(self, fault: Fault) -> Fault:
        """Switch a fault on, for new and for open connections; gives it back, to read `struck` from."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def heal(self) -> None:
        """Switch all faults off; what was stalled flows on."""
        with self._lock:
            self._faults.clear()

    def faults(self) -> list[Fault]:
        """The faults that are switched on, used up or not."""
        with self._lock:
            return list(self._faults)

    def strike(self, fault: Fault, struck: set[Fault]) -> bool:
        """Count a connection, which knows what `struck` it before; False when others used the fault up."""
        with self._lock:
            if fault not in struck:
                if fault.struck >= fault.times:
                    return False
                fault.struck += 1
                struck.add(fault)
            return True

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.accepted += 1
            struck: set[Fault] = set()
            refused = [f for f in self.faults() if f.kind == "refuse" and self.strike(f, struck)]
            try:
                server = None if refused else _connect(self._server)
            except OSError:
                server = None
            if server is None:
                _reset(client)
                continue
            connection = _Connection(self, client, server)
            self._connections.append(connection)
            connection.start()


class _Ended(Exception):
    """A connection's end, whoever wanted it."""


class _Connection(threading.Thread):
    """One client's connection, and ours to the server for it."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        super().__init__(name="proxied connection", daemon=True)
        self._proxy = proxy
        self._sockets: dict[Side, socket.socket] = {"client": client, "server": server}
        self._passed: dict[Side, int] = {"client": 0, "server": 0}
        self._seen: dict[Side, bytes] = {"client": b"", "server": b""}  # may begin a pattern
        self._held: dict[Side, bytes] = {"client": b"", "server": b""}  # read, but not to be passed on yet
        self._struck: set[Fault] = set()
        for each in self._sockets.values():
            each.settimeout(None)
            if each.family != socket.AF_UNIX:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def interrupt(self) -> None:
        """Wake the thread from a send that nobody receives."""
        for each in self._sockets.values():
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        with contextlib.suppress(_Ended, OSError):
            while not self._proxy.closing.is_set():
                flowing = [towards for towards in self._sockets if not self._stalled(towards)]
                for towards in flowing:
                    held, self._held[towards] = self._held[towards], b""
                    self._pass(towards, held)
                sources = {self._sockets[_other(towards)]: towards for towards in flowing}
                ready, _, _ = select.select(list(sources), [], [], TICK_SECONDS)
                for source in ready:
                    data = source.recv(CHUNK_BYTES)
                    if not data:
                        raise _Ended
                    self._pass(sources[source], data)
        for each in self._sockets.values():
            each.close()

    def _stalled(self, towards: Side) -> bool:
        return any(f.kind == "stall" and f in self._struck for f in self._of(towards))

    def _of(self, towards: Side) -> list[Fault]:
        return [fault for fault in self._proxy.faults() if fault.towards == towards]

    def _pass(self, towards: Side, data: bytes) -> None:
        """Pass on as much as the faults let through, and strike where they are due."""
        due = [
            (place, n, fault)
            for n, fault in enumerate(self._of(towards))
            if fault.kind in ("cut", "reset", "stall")
            if (place := self._place(fault, towards, data)) is not None
        ]
        for place, _, fault in sorted(due, key=lambda entry: entry[:2]):
            if self._proxy.strike(fault, self._struck):
                self._send(towards, data[:place])
                self._end(fault)
                self._held[towards] = data[place:]  # a stall, and not the end
                return
        self._send(towards, data)

    def _place(self, fault: Fault, towards: Side, data: bytes) -> int | None:
        """Where in `data` a fault strikes: so many bytes are passed on before it; None when it does not."""
        if not fault.pattern:
            place = max(0, fault.after_bytes - self._passed[towards])
            return place if place <= len(data) else None
        before = self._seen[towards][-(len(fault.pattern) - 1) :] if len(fault.pattern) > 1 else b""
        found = (before + data).find(fault.pattern)
        if found < 0:
            return None
        return len(data) if fault.forward else max(0, found - len(before))

    def _send(self, towards: Side, data: bytes) -> None:
        self._seen[towards] = (self._seen[towards] + data)[-1024:]
        size = len(data) or 1
        for fault in self._of(towards):
            reached = self._passed[towards] + len(data) > fault.after_bytes
            if not data or not reached or fault.kind not in ("delay", "slice"):
                continue
            if not self._proxy.strike(fault, self._struck):
                continue
            if fault.kind == "delay":
                self._proxy.closing.wait(fault.seconds)
            else:
                size = fault.size
        for start in range(0, len(data), size):
            self._sockets[towards].sendall(data[start : start + size])
        self._passed[towards] += len(data)

    def _end(self, fault: Fault) -> None:
        if fault.kind == "reset":
            for each in self._sockets.values():
                _reset(each)
            raise _Ended
        if fault.kind == "cut":
            self._sockets["client"].close()
            # Half-closed, the server acts on all that it was sent, a COMMIT say, before it sees the end.
            server = self._sockets["server"]
            server.shutdown(socket.SHUT_WR)
            server.settimeout(DRAIN_SECONDS)
            while server.recv(CHUNK_BYTES):
                pass
            raise _Ended


def _other(side: Side) -> Side:
    return "server" if side == "client" else "client"


def _connect(server: tuple[str, int] | str) -> socket.socket:
    if isinstance(server, tuple):
        return socket.create_connection(server, timeout=DRAIN_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(server)
    except OSError:
        connection.close()
        raise
    return connection


def _reset(connection: socket.socket) -> None:
    """Close with an RST, and what was not sent yet is lost (linger for 0 seconds); a Unix socket just closes."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
