"""Compares the encoder in C with the one in Python for as long as one likes.

    python -m migration_pipeline_tests.fuzz_rows [SECONDS [SEED]]

Best with an extension that was built with AddressSanitizer and UBSan. A difference ends it with the seed that shows it again.
"""

from __future__ import annotations

import sys
import time
from random import Random
from typing import Any

from migration_pipeline import accelerator
from migration_pipeline_tests.odd_rows import both, fields_of_binary


def main(seconds: float = 60, seed: int | None = None) -> int:
    """Compare; returns the exit status: 0 when all was alike."""
    extension = accelerator.extension(accelerator.ROWS)
    if extension is None:
        print("there is no extension to compare with")  # noqa: T201
        return 2
    number = time.time_ns() if seed is None else seed
    end, rows, given_back, fields = time.monotonic() + seconds, 0, 0, 0
    while time.monotonic() < end:
        in_c, in_python, some, back = both(Random(number), Random(number))
        rows, given_back = rows + some, given_back + back
        # A NaN is not equal to itself.
        if in_c != in_python and repr(in_c) != repr(in_python):
            print(f"seed {number} shows a difference:\n{in_c}\n{in_python}")  # noqa: T201
            return 1
        try:
            fields += fields_of_binary(Random(number), extension)
        except AssertionError:
            print(f"seed {number} shows a fault of binary COPY input")  # noqa: T201
            raise
        number += 1
    print(  # noqa: T201
        f"{rows:,} rows alike, {given_back:,} of them encoded in Python; {fields:,} fields in binary; the next seed is {number}"
    )
    return 0


if __name__ == "__main__":
    arguments: list[Any] = [*map(float, sys.argv[1:2]), *map(int, sys.argv[2:3])]
    sys.exit(main(*arguments))
