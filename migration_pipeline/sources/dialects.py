"""Reads lines in any of the formats of an export: the manifest's outputFormat decides which module does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from migration_pipeline.errors import BadItem
from migration_pipeline.sources import dynamodb_json, ion, windows
from migration_pipeline.sources.export import OutputFormat
from migration_pipeline.sources.ion_text import SPACES, item_line


def dialect_of(output_format: OutputFormat) -> Any:
    """Return the module that reads the lines of a full export: an `engine.transform.Dialect`."""
    return ion if output_format == "ION" else dynamodb_json


def is_ion(line: bytes) -> bool:
    """Whether a line is Ion, if it is an item in one of the formats: JSON has a quote behind its first brace."""
    text = line.lstrip(SPACES)
    return text.startswith(b"$") or (
        text.startswith(b"{") and not text[1:].lstrip(SPACES).startswith((b'"', b"}"))
    )


def json_line(line: bytes, output_format: OutputFormat | None = None) -> bytes:
    """Spell the item of a line of a full export in DynamoDB JSON; how it is spelled itself is seen, where it is not said. Raises `BadItem`."""
    return item_line(line) if output_format == "ION" or (output_format is None and is_ion(line)) else line


def item_digests(keys: Sequence[str], profile: str) -> Callable[[bytes], bytes]:
    """Make the function that gives the digest of the item on a line of a full export, as `windows.item_digests` does.

    It raises `ValueError` for a line without the attributes of the key, `keys`.
    """
    of_json, short = windows.item_digests(keys, profile), ion.Attributes(keys)

    def digest(line: bytes) -> bytes:
        if not is_ion(line):
            return of_json(line)
        try:
            return of_json(short.one(line))
        except BadItem as error:
            raise ValueError(str(error)) from None

    return digest
