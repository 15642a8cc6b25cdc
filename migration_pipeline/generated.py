"""Runs source that was generated, so that a traceback shows the line of it that failed."""

from __future__ import annotations

import linecache
import weakref
from itertools import count
from typing import Any

_numbers = count(1)


def generated(name: str, source: str, label: str, names: dict[str, Any]) -> Any:
    """Run `source`, which defines `name`, over `names`, and give what it defined.

    The source must hold no value of an item and no name that could be code: such are bound in `names`. It is kept
    for tracebacks, as the file ``<label, 12>``, as long as what it defined lives.
    """
    file = f"<{label}, {next(_numbers)}>"
    exec(compile(source, file, "exec"), names)  # noqa: S102  # our own, by the rule above
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    weakref.finalize(names[name], linecache.cache.pop, file, None).atexit = False
    return names[name]
