"""The proxy itself: what passes, what does not, and that nothing is left behind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from migration_pipeline_tests.chaos.proxy import Fault, Proxy


class Echo:
    """A server that sends back what it gets, and remembers it."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.received = b""
        self.ends = 0
        self.resets = 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                try:
                    while data := connection.recv(1 << 16):
                        if data == b"stop":
                            return
                        self.received += data
                        connection.sendall(data)
                except OSError:
                    self.resets += 1
                self.ends += 1

    def stop(self) -> None:
        with socket.socket(self.listener.family) as last:
            last.connect(self.listener.getsockname())
            last.sendall(b"stop")
            self.thread.join(5)
        self.listener.close()


@pytest.fixture(params=["tcp", "unix"])
def echo(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Echo]:
    if request.param == "tcp":
        listener = socket.create_server(("127.0.0.1", 0))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()
    server = Echo(listener)
    yield server
    server.stop()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    before = threading.active_count()
    with Proxy(echo.listener.getsockname()) as proxy:
        yield proxy
    assert threading.active_count() == before


def client(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def answer(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def test_without_a_fault_everything_passes(proxy: Proxy) -> None:
    data = bytes(range(256)) * 4096
    with client(proxy) as one, client(proxy) as other:
        other.close()
        sender = threading.Thread(target=one.sendall, args=(data,))
        sender.start()
        assert answer(one, len(data)) == data
        sender.join()
    assert proxy.accepted == 2


def test_a_cut_comes_after_so_many_bytes_and_so_often(proxy: Proxy) -> None:
    fault = proxy.inject(Fault("cut", towards="client", after_bytes=3, times=1))
    with client(proxy) as one:
        one.sendall(b"hello")
        assert answer(one, 5) == b"hel"
        assert one.recv(1) == b""
    with client(proxy) as other:
        other.sendall(b"hello")
        assert answer(other, 5) == b"hello"
    assert (fault.struck, proxy.accepted) == (1, 2)


@pytest.mark.parametrize("kind", ["cut", "reset"])
def test_an_idle_connection_is_struck_at_once(proxy: Proxy, kind: str) -> None:
    with client(proxy) as one:
        one.sendall(b"hello")
        assert answer(one, 5) == b"hello"
        proxy.inject(Fault("cut" if kind == "cut" else "reset"))
        if kind == "cut":
            assert one.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                one.recv(1)


@pytest.mark.parametrize("kind", ["cut", "reset"])
@pytest.mark.parametrize("pieces", [[b"one COMMIT\0 two"], [b"one COM", b"MIT\0 two"]])
def test_before_a_pattern_the_server_does_not_see_it(
    proxy: Proxy, echo: Echo, kind: str, pieces: list[bytes]
) -> None:
    fault = proxy.inject(Fault("cut" if kind == "cut" else "reset", towards="server", pattern=b"COMMIT\0"))
    with client(proxy) as one:
        for piece in pieces:
            one.sendall(piece)
            time.sleep(0.05)
        with pytest.raises(ConnectionResetError) if kind == "reset" else nullcontext():
            assert one.makefile("rb").read() in (b"", b"one ", b"one COM")
    _wait_for(lambda: echo.ends == 1)
    assert b"COMMIT" not in echo.received
    assert fault.struck == 1


def test_behind_a_pattern_the_server_acts_on_it_but_the_client_never_hears(proxy: Proxy, echo: Echo) -> None:
    proxy.inject(Fault("cut", towards="server", pattern=b"COMMIT\0", forward=True))
    with client(proxy) as one:
        one.sendall(b"one COMMIT\0")
        assert one.recv(100) == b""
    _wait_for(lambda: echo.ends == 1)
    assert (echo.received, echo.resets) == (b"one COMMIT\0", 0)


def test_what_stalls_flows_on_when_it_is_healed(proxy: Proxy, echo: Echo) -> None:
    fault = proxy.inject(Fault("stall", towards="client", after_bytes=2))
    with client(proxy) as one:
        one.sendall(b"hello")
        assert answer(one, 2) == b"he"
        one.settimeout(0.1)
        with pytest.raises(TimeoutError):
            one.recv(1)
        assert (echo.received, fault.struck) == (b"hello", 1)
        one.settimeout(5)
        proxy.heal()
        assert answer(one, 3) == b"llo"


def test_slices_and_delays_lose_nothing(proxy: Proxy) -> None:
    proxy.inject(Fault("slice", towards="server", size=1))
    proxy.inject(Fault("delay", towards="client", seconds=0.1))
    with client(proxy) as one:
        start = time.monotonic()
        one.sendall(b"hello")
        assert answer(one, 5) == b"hello"
        assert time.monotonic() - start >= 0.1


def test_refused_connections_never_reach_the_server(proxy: Proxy, echo: Echo) -> None:
    fault = proxy.inject(Fault("refuse", times=2))
    for _ in range(2):
        with pytest.raises(ConnectionResetError), client(proxy) as one:
            one.recv(1)
    with client(proxy) as one:
        one.sendall(b"hello")
        assert answer(one, 5) == b"hello"
    assert (fault.struck, proxy.accepted) == (2, 3)


def test_a_server_that_is_not_there_resets_the_client(tmp_path: Path) -> None:
    with (
        Proxy(str(tmp_path / "nobody")) as proxy,
        pytest.raises(ConnectionResetError),
        client(proxy) as one,
    ):
        one.recv(1)


def test_the_end_does_not_wait_for_who_does_not_read(echo: Echo) -> None:
    with Proxy(echo.listener.getsockname()) as proxy:
        one = client(proxy)
        one.settimeout(0.2)
        with pytest.raises(TimeoutError):  # when every buffer on the way is full
            one.sendall(bytes(1 << 26))
        start = time.monotonic()
    assert time.monotonic() - start < 2
    one.close()


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
