"""What a load asks of the process's memory: garbage is looked for seldom, and freed memory stays for the next lines."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""glibc's numbers of what can be set (malloc.h)."""

KEPT_BYTES = 64 << 20
"""Freed memory that the process keeps at the end of its heap, at most: batches of lines and rows, and what is read ahead."""

OWN_MAPPING_BYTES = KEPT_BYTES // 2
"""From this size on, memory is mapped for itself, and given back at once: as far as glibc's own limit, which follows what it has
seen, may go on 64 bits (mallopt(3))."""

OURS = ("MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Variables of glibc that set the same, as its tunables do."""


@contextmanager
def accustomed_to_loads() -> Iterator[None]:
    """Let Python look for reference cycles less often, and the C library keep what is freed.

    Decoding makes millions of short-lived objects without cycles, and each look visits all of them, and
    all that Dagster keeps: a third of a file's time. The look comes less often, so that a profile whose own
    objects do form cycles still does not leak.
    """
    keep_what_is_freed()
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@cache
def keep_what_is_freed() -> None:
    """Have glibc keep some of what is freed, in one heap for all threads.

    By itself it gives the blocks of lines back to the kernel, which fills the next ones with zeros, a page at a time: a twentieth of
    a load's CPU. And each thread would have a heap, which keeps as much again. Other C libraries have limits of their own; and so may an
    operator, in glibc's environment.
    """
    if any(name in os.environ for name in OURS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    with contextlib.suppress(Exception):  # without it a load takes a little longer, and is as right
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in (
            (M_ARENA_MAX, 1),
            (M_MMAP_THRESHOLD, OWN_MAPPING_BYTES),
            (M_TRIM_THRESHOLD, KEPT_BYTES),
        ):
            mallopt(parameter, value)
