"""Lines as they lie in a file: what the stream gives and the accelerator reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload


class Block(Sequence[bytes]):
    """Some lines that lie one after another, with newlines between them. They are taken apart when one of them is asked for."""

    __slots__ = ("_count", "_lines", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._count = data.count(b"\n") + 1
        self._lines: list[bytes] = []

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        self._lines = self._lines or self.data.split(b"\n")
        return self._lines[at]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self[:])
