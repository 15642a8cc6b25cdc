"""Memory that a load has freed is there for its next lines: the kernel need not give it anew, page by page."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

import pytest

BLOCKS = """
import resource
from migration_pipeline.engine.memory import accustomed_to_loads

def blocks():
    return [b"x" * (256 << 10) for _ in range(64)]  # as a batch keeps them

with accustomed_to_loads():
    blocks()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment: str) -> int:
    """How often the kernel had to give a page to 20 batches after the first one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS], env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has limits of its own")
def test_what_is_freed_stays_unless_somebody_has_set_that() -> None:
    pages_of_a_batch = (64 * 256 << 10) // resource.getpagesize()
    assert faults() < pages_of_a_batch
    assert faults(MALLOC_TRIM_THRESHOLD_="0") > 10 * pages_of_a_batch
