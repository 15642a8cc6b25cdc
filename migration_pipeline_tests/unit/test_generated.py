"""Generated functions: a traceback shows the line that failed, no value is in it, and none of it stays in memory."""

from __future__ import annotations

import gc
import linecache
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from migration_pipeline import Item, Row, prefix
from migration_pipeline.engine.transform import compile_rules
from migration_pipeline.profile.profile import Rule
from migration_pipeline.profile.row import table_of
from migration_pipeline.sources.dynamodb_json import item_decoder
from migration_pipeline.targets.copy_csv import RowEncoder


class NumberItem(Item):
    n: int


class Hashed(Row, table="hashed", key="id"):
    id: int
    hash: bytes


def decode() -> Any:
    return list(item_decoder(NumberItem).many([b'{"Item":{"n":{"N":"s3cret"}}}']))


def sort() -> Any:
    return compile_rules([Rule((("PK", prefix("S3CRET#")),), "why")], ["PK"])([1], [b""], [(1,)])


def encode() -> Any:
    return RowEncoder(table_of(Hashed)).encode([Hashed(1, "s3cret")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fail", "file", "line"),
    [
        (decode, "<decoder of NumberItem, ", "item = Item(((int(n) if (n := w.f0.N).isdecimal()"),
        (sort, "<route table, ", "if k[0].startswith(c1): counts[0] += 1"),
        (encode, "<encoder of hashed, ", "return (r.id, (None if (v := r.hash) is None else spell1(v)),)"),
    ],
)
def test_a_traceback_shows_the_line_of_a_generated_function(
    fail: Callable[[], Any], file: str, line: str
) -> None:
    try:
        fail()
    except Exception:
        text = traceback.format_exc()
    generated = text[text.index(f'File "{file}') :].splitlines()
    assert generated[1].strip().startswith(line)
    assert not [each for each in generated if "s3cret" in each.lower()]


def test_the_source_goes_with_its_function() -> None:
    def kept() -> list[str]:
        gc.collect()
        return [file for file in linecache.cache if file.startswith("<decoder of NumberItem, ")]

    before = kept()
    decoders = [item_decoder(NumberItem) for _ in range(20)]
    assert len(kept()) == len(before) + 40  # two functions each
    decoders.clear()
    assert kept() == before
