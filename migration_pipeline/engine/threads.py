"""Threads beside the caller's: one reads ahead, one writes behind, and several work together.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.2
"""How often a thread that waits for another one looks whether to go on waiting."""

CANCEL_SECONDS = 10.0
"""How long what was cancelled may take to come back before it is left alone."""


class _Failed:
    def __init__(self, error: BaseException) -> None:
        self.error = error


_END = object()


class Ahead(Generic[T]):
    """Iterates over `source` in a thread that begins at once, at most `depth` elements ahead; its errors are raised by the iteration."""

    def __init__(self, source: Iterable[T], depth: int) -> None:
        self._source = source
        self._ready: queue.Queue[Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        threading.Thread(target=self._pump, name="read ahead", daemon=True).start()

    def __iter__(self) -> Iterator[T]:
        while (element := self._ready.get()) is not _END:
            if isinstance(element, _Failed):
                raise element.error
            yield element

    def close(self) -> None:
        """End the thread, at the next element of the source."""
        self._stopped.set()

    def _pump(self) -> None:
        try:
            for element in self._source:
                if not self._put(element):
                    return
            self._put(_END)
        except BaseException as error:  # handed over whatever it is: this thread has nobody else to tell
            self._put(_Failed(error))

    def _put(self, element: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(element, timeout=POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False


def cancel_until(
    ended: Sequence[threading.Event], cancel: Callable[[], None], seconds: float = CANCEL_SECONDS
) -> None:
    """`cancel` what other threads do, until all have ended or `seconds` are over."""
    deadline = time.monotonic() + seconds
    while not all(end.is_set() for end in ended) and time.monotonic() < deadline:
        cancel()  # more than once: the first may come between two statements
        for end in ended:
            end.wait(POLL_SECONDS)


def together(
    works: Sequence[Callable[[], object]],
    cancel: Callable[[], None],
    name: str,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Run functions, each in a thread of its own, until all have ended; meanwhile call `tell` now and then.

    The first error, or an interruption of this thread, cancels what still runs, and is raised here.
    """
    # An Event each, as a join that is interrupted may leave its thread marked as ended (bpo-45274).
    ended = [threading.Event() for _ in works]
    errors: list[tuple[threading.Event, BaseException]] = []

    def run(work: Callable[[], object], end: threading.Event) -> None:
        try:
            work()
        except BaseException as error:  # raised again by whoever waits
            errors.append((end, error))
        finally:
            end.set()

    for each in zip(works, ended, strict=True):
        threading.Thread(target=run, args=each, name=name, daemon=True).start()
    try:
        while not any(end.is_set() for end, _ in errors) and not all(end.is_set() for end in ended):
            for end in ended:
                end.wait(POLL_SECONDS)
            tell()
    finally:
        cancel_until(ended, cancel)
    if errors:
        raise errors[0][1]


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
        self._ended = threading.Event()
        threading.Thread(target=self._run, name="write behind", daemon=True).start()

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

    def abandon(self, cancel: Callable[[], None], seconds: float = CANCEL_SECONDS) -> BaseException | None:
        """Drop what waits, `cancel` what is being written, wait up to `seconds`; returns a write's own earlier error."""
        with self._changed:
            earlier = self._error
            self._waiting.clear()
            self._closed = True
            writing = self._pending and not earlier
            self._changed.notify_all()
        if writing:
            cancel_until([self._ended], cancel, seconds)
        return earlier

    def _run(self) -> None:
        try:
            self._write_all()
        except BaseException as error:  # raised again by whoever puts or finishes
            with self._changed:
                self._error = error
                self._waiting.clear()
                self._changed.notify_all()
        finally:
            self._ended.set()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                element, size = self._waiting.popleft()
            self._write(element)
            with self._changed:
                self._bytes -= size
                self._pending -= 1
                self._changed.notify_all()
