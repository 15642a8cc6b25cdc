"""What a load asks of the process's memory: garbage is looked for seldom, and freed memory stays for the next lines."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers of what can be set (malloc.h)."""

KEPT_BYTES = 64 << 20
"""Freed memory that a heap keeps at most."""

OWN_MAPPING_BYTES = KEPT_BYTES // 2
"""From this size on, memory is mapped for itself, and given back at once. It is the largest that glibc allows."""


@contextmanager
def accustomed_to_loads() -> Iterator[None]:
    """Let Python look for reference cycles less often, and the C library keep what is freed.

    Decoding makes millions of short-lived objects without cycles, and each look visits all of them, and
    all that Dagster keeps: a third of a file's time. The look comes less often, so that a profile whose own
    objects do form cycles still does not leak.
    """
    _keep_what_is_freed()
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


@cache
def _keep_what_is_freed() -> None:
    """Have glibc keep as much as it would once something of `OWN_MAPPING_BYTES` was freed: its own limits follow what it has seen.

    Else it gives the blocks of lines back to the kernel, which fills the next ones with zeros, a page at a time: a twentieth of a
    load's CPU. Other C libraries have limits of their own; and so may an operator, in glibc's environment.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, OWN_MAPPING_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
