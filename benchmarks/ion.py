"""Reads the loaded items of one sample: in Ion and in DynamoDB JSON with this project, and in Ion with `amazon.ion`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from benchmarks.workloads import shop
from migration_pipeline import settings
from migration_pipeline.demo.sample import write_sample
from migration_pipeline.engine.transform import Transform
from migration_pipeline.sources.dialects import dialect_of
from migration_pipeline.sources.export import OutputFormat, read_export
from migration_pipeline.sources.storage import Storage
from migration_pipeline.sources.stream import FileStream

LINES_A_LIST = 200
"""About what is read of a file at a time."""


def lines_of(folder: Path, items: int, output_format: OutputFormat) -> list[bytes]:
    """Write a sample, and read its lines."""
    export = read_export(
        str(write_sample(folder / output_format, items=items, files=1, output_format=output_format)),
        Storage(),
    )
    return [line for file in export.files for lines in FileStream(file, Storage()) for line in lines]


def loaded(lines: list[bytes], output_format: OutputFormat) -> list[bytes]:
    """The lines that become rows."""
    return list(Transform(shop, dialect_of(output_format))(lines).lines)


def rate(lines: Sequence[bytes], work: Callable[[], Any]) -> float:
    """Lines a second of CPU time."""
    began = time.process_time()
    work()
    return len(lines) / (time.process_time() - began)


def through(lines: list[bytes], output_format: OutputFormat, accelerator: str) -> Callable[[], None]:
    """From lines to rows, as a load does it."""
    os.environ[settings.ACCELERATOR] = accelerator
    transform = Transform(shop, dialect_of(output_format))

    def work() -> None:
        os.environ[settings.ACCELERATOR] = accelerator
        for at in range(0, len(lines), LINES_A_LIST):
            made = transform(lines[at : at + LINES_A_LIST], at + 1)
            assert not made.bad

    return work


def one_round(in_ion: list[bytes], in_json: list[bytes], skipped: list[bytes]) -> dict[str, float]:
    """Read all lines in each way; gives items a second, on one core."""
    from amazon.ion import simpleion
    from amazon.ion.simpleion import IonPyValueModel

    whole = b"\n".join(in_ion)

    def stream(**options: Any) -> None:  # which ends at the first bad line
        found = simpleion.load(BytesIO(whole), single_value=False, **options)
        assert sum(1 for _ in found) == len(in_ion)

    def bare() -> None:  # its fastest way, in which sets are lists
        stream(parse_eagerly=False, value_model=IonPyValueModel.MAY_BE_BARE)

    def by_line() -> None:
        for line in in_ion:
            simpleion.loads(line)

    before = os.environ.get(settings.ACCELERATOR)
    try:
        return {
            "ion": rate(in_ion, through(in_ion, "ION", "required")),
            "ion_python": rate(in_ion, through(in_ion, "ION", "off")),
            "ion_skipped": rate(skipped, through(skipped, "ION", "required")),
            "json": rate(in_json, through(in_json, "DYNAMODB_JSON", "required")),
            "json_python": rate(in_json, through(in_json, "DYNAMODB_JSON", "off")),
            "amazon_ion": rate(in_ion, stream),
            "amazon_ion_by_line": rate(in_ion, by_line),
            "amazon_ion_bare": rate(in_ion, bare),
        }
    finally:
        if before is None:
            del os.environ[settings.ACCELERATOR]
        else:
            os.environ[settings.ACCELERATOR] = before


def measure(folder: Path, items: int, rounds: int) -> list[dict[str, float]]:
    """Run `one_round` some times, on the items of a sample that become rows, and on those that are skipped."""
    from amazon.ion.simpleion import c_ext

    assert c_ext, "amazon.ion has no extension in C here"
    every, in_json = lines_of(folder, items, "ION"), lines_of(folder, items, "DYNAMODB_JSON")
    in_ion = loaded(every, "ION")
    taken = set(in_ion)
    skipped = [line for line in every if line not in taken]
    in_json = loaded(in_json, "DYNAMODB_JSON")
    return [one_round(in_ion, in_json, skipped) for _ in range(rounds)]


def figures(rounds: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Sum rounds of `measure` up: medians, and of ratios within a round."""

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(each[one] / each[other] for each in rounds), 2)

    middle = {f"{name}_items_per_s": round(statistics.median(r[name] for r in rounds)) for name in rounds[0]}
    return {
        **middle,
        "ratio_to_amazon_ion": ratio("ion", "amazon_ion"),
        "ratio_to_amazon_ion_by_line": ratio("ion", "amazon_ion_by_line"),
        "ratio_to_amazon_ion_bare": ratio("ion", "amazon_ion_bare"),
        "python_ratio_to_amazon_ion": ratio("ion_python", "amazon_ion"),
        "ratio_to_json": ratio("ion", "json"),
    }
