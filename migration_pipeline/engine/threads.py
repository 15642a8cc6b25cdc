"""The two threads beside the engine's own: one reads ahead, one writes behind.

Reading (gunzip, MD5, the network) and writing (COPY) spend their time in C or waiting, without Python's
lock, so they run beside decoding on another core. Both are bounded: reading ahead by a number of chunks,
writing behind by a number of bytes. The threads are daemons, so that nothing they wait for keeps a
terminated process alive.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.2
"""How often the reading thread looks whether anybody still wants what it reads."""


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


def ahead(source: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Iterate over `source` in a thread, at most `depth` elements ahead; its errors are raised here."""
    ready: queue.Queue[Any] = queue.Queue(depth)
    stopped = threading.Event()

    def put(element: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(element, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def pump() -> None:
        try:
            for element in source:
                if not put(element):
                    return
            put(_END)
        except BaseException as error:  # handed over whatever it is: this thread has nobody else to tell
            put(_Failed(error))

    threading.Thread(target=pump, name="read ahead", daemon=True).start()
    try:
        while (element := ready.get()) is not _END:
            if isinstance(element, _Failed):
                raise element.error
            yield element
    finally:
        stopped.set()


class Behind(Generic[T]):
    """Calls `write` for one element after another in a thread, while at most `limit` bytes wait or are written.

    An element larger than the limit is taken when nothing else waits. After the first error nothing more
    is written, and `put` and `finish` raise it.
    """

    def __init__(self, write: Callable[[T], None], limit: int) -> None:
        self._write = write
        self._limit = limit
        self._waiting: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._pending = 0
        self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="write behind", daemon=True)
        self._thread.start()

    def put(self, element: T, size: int) -> None:
        """Hand over an element of `size` bytes, waiting for room. Raises what an earlier write raised."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or not self._bytes or self._bytes + size <= self._limit
            )
            if self._error:
                raise self._error
            self._waiting.append((element, size))
            self._bytes += size
            self._pending += 1
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all is written. Raises what a write raised."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or not self._pending)
            if self._error:
                raise self._error

    def finish(self) -> None:
        """Wait until all is written, and end the thread. Raises what a write raised."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def abandon(self, cancel: Callable[[], None], seconds: float) -> BaseException | None:
        """Drop what waits, `cancel` what is being written, wait up to `seconds`; gives a write's own earlier error."""
        with self._changed:
            earlier = self._error
            self._waiting.clear()
            self._closed = True
            writing = self._pending and not earlier
            self._changed.notify_all()
        deadline = time.monotonic() + seconds
        while writing and self._thread.is_alive() and time.monotonic() < deadline:
            cancel()  # more than once: the first may come between two statements
            self._thread.join(POLL_SECONDS)
        return earlier

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                element, size = self._waiting.popleft()
            try:
                self._write(element)
            except BaseException as error:  # raised again by whoever puts or finishes
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._bytes -= size
                self._pending -= 1
                self._changed.notify_all()
