"""Reading ahead and writing behind: bounded, in order, and an error on either side stops the other."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from migration_pipeline.engine.threads import Ahead, Behind, together


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def test_elements_come_in_order_and_no_further_ahead_than_allowed() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    taken = []
    for element in Ahead(source(), 2):
        taken.append(element)
        # Two wait, one more is in the thread's hand.
        assert len(made) <= len(taken) + 3
    assert taken == list(range(20))


def test_an_error_of_the_source_is_raised_after_what_came_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("cut")

    taken: list[int] = []
    with pytest.raises(OSError, match="cut"):
        taken.extend(Ahead(source(), 2))
    assert taken == [1]


def test_a_reader_who_leaves_stops_the_thread() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    elements = Ahead(source(), 1)
    assert next(iter(elements)) == 1
    elements.close()
    wait_until(lambda: not any(thread.name == "read ahead" for thread in threading.enumerate()))
    del elements
    wait_until(closed.is_set)


def test_writes_happen_in_order_and_finish_waits_for_all() -> None:
    written: list[int] = []

    def write(element: int) -> None:
        time.sleep(0.002)
        written.append(element)

    behind = Behind[int](write, limit=3)
    for number in range(30):
        behind.put(number, 1)
    behind.finish()
    assert written == list(range(30))


def test_no_more_bytes_wait_than_allowed() -> None:
    release, running = threading.Event(), threading.Event()
    written: list[str] = []

    def write(element: str) -> None:
        running.set()
        release.wait(10)
        written.append(element)

    behind = Behind[str](write, limit=10)
    behind.put("6 bytes", 6)
    running.wait(10)
    behind.put("4 bytes", 4)
    blocked = threading.Thread(target=lambda: behind.put("1 byte too many", 1), daemon=True)
    blocked.start()
    blocked.join(0.2)
    assert blocked.is_alive(), "what is being written counts, too"
    release.set()
    blocked.join(10)
    behind.finish()
    assert written == ["6 bytes", "4 bytes", "1 byte too many"]


def test_an_element_larger_than_the_limit_goes_alone() -> None:
    written: list[int] = []
    behind = Behind[int](written.append, limit=10)
    for size in (3, 400, 3):
        behind.put(size, size)
    behind.finish()
    assert written == [3, 400, 3]


def test_the_first_error_of_a_write_is_raised_and_nothing_is_written_after_it() -> None:
    written: list[int] = []

    def write(element: int) -> None:
        if element == 1:
            raise ValueError("refused")
        written.append(element)

    behind = Behind[int](write, limit=1)
    with contextlib.suppress(ValueError):
        for number in range(5):
            behind.put(number, 1)
    with pytest.raises(ValueError, match="refused"):
        behind.finish()
    assert written == [0]
    assert isinstance(behind.abandon(lambda: None, 1), ValueError)


def test_abandoning_cancels_the_write_under_way_and_drops_the_rest() -> None:
    cancelled, running = threading.Event(), threading.Event()
    written: list[int] = []

    def write(element: int) -> None:
        running.set()
        assert cancelled.wait(10)
        raise InterruptedError("cancelled")

    behind = Behind[int](write, limit=100)
    behind.put(1, 1)
    behind.put(2, 1)
    running.wait(10)
    assert behind.abandon(cancelled.set, 10) is None, "the cancelled write is no cause of anything"
    wait_until(lambda: not any(thread.name == "write behind" for thread in threading.enumerate()))
    assert written == []


def test_functions_run_side_by_side_and_the_first_error_cancels_the_others() -> None:
    cancelled, both = threading.Event(), threading.Barrier(2)

    def fail() -> None:
        both.wait(10)
        raise ValueError("refused")

    def wait() -> None:
        both.wait(10)
        assert cancelled.wait(10)
        raise InterruptedError("cancelled")

    with pytest.raises(ValueError, match="refused"):
        together([wait, fail], cancelled.set, "work")
    assert cancelled.is_set()


def test_an_interruption_cancels_until_what_runs_has_ended() -> None:
    cancels: list[int] = []
    ended = threading.Event()

    def work() -> None:
        wait_until(lambda: len(cancels) == 2)  # the first one came between two statements
        ended.set()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together([work], lambda: cancels.append(1), "work", tell=interrupt)
    assert ended.is_set()


def test_what_ends_well_or_fails_alone_is_not_cancelled() -> None:
    def cancel() -> None:
        raise AssertionError("nothing runs any more")

    together([lambda: None, lambda: time.sleep(0.01)], cancel, "work")

    def fail() -> None:
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        together([fail], cancel, "work")
