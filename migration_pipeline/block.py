"""Lines as they lie in a file: what the stream gives, the accelerator reads, and a batch keeps. None is an object before it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from typing_extensions import Self


class _Kept(Sequence[bytes]):
    """Lines that are taken apart when one of them is asked for."""

    __slots__ = ("_count",)

    def __init__(self, count: int) -> None:
        self._count = count

    def _apart(self) -> Sequence[bytes]:
        raise NotImplementedError

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[bytes]: ...

    def __getitem__(self, at: int | slice) -> bytes | Sequence[bytes]:
        return self._apart()[at]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._apart())


class Block(_Kept):
    """Some lines that lie one after another, with newlines between them; `count` is how many they are, where that is known."""

    __slots__ = ("_lines", "data")

    def __init__(self, data: bytes, count: int | None = None) -> None:
        super().__init__(data.count(b"\n") + 1 if count is None else count)
        self.data = data
        self._lines: list[bytes] = []

    @property
    def size(self) -> int:
        """Bytes of all lines, with the newlines between."""
        return len(self.data)

    def _apart(self) -> Sequence[bytes]:
        if not self._lines and self._count:
            self._lines = self.data.split(b"\n")
        return self._lines


class Lines(_Kept):
    """Lines that were collected; those of blocks stay in them."""

    __slots__ = ("_open", "_parts", "size")

    def __init__(self, lines: Iterable[bytes] = ()) -> None:
        super().__init__(0)
        self._parts: list[Block | list[bytes]] = []
        self._open: list[bytes] | None = None
        """The last part, where lines may be added to it."""
        self.size = 0
        """Their bytes."""
        self += lines

    def __iadd__(self, lines: Iterable[bytes]) -> Self:
        self._open = None
        if isinstance(lines, Lines):
            lines._open = None  # it is ours as well now
            self._parts += lines._parts
            size = lines.size
        else:
            part = lines if isinstance(lines, Block) else list(lines)
            self._parts.append(part)
            size = part.size if isinstance(part, Block) else sum(map(len, part))
            lines = part
        self._count += len(lines)
        self.size += size
        return self

    def append(self, line: bytes) -> None:
        """Add a line."""
        if self._open is None:
            self._open = []
            self._parts.append(self._open)
        self._open.append(line)
        self._count += 1
        self.size += len(line)

    def _apart(self) -> Sequence[bytes]:
        if len(self._parts) != 1:
            self._parts, self._open = [[line for part in self._parts for line in part]], None
        return self._parts[0]
