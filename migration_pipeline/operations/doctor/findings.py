"""What the doctor finds: a line each, with its way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from migration_pipeline.errors import MigrationError

State = Literal["ok", "warning", "failed", "skipped"]


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    topic: str
    """A word or two: ``database``, ``S3 list``."""
    state: State
    """``failed``: a load cannot work so. ``warning``: it can, and somebody should look. ``skipped``: it cannot be known."""
    text: str
    """What is there, or what lacks. It holds no secret."""
    way_out: str = ""
    """What to do, if anything. The text of an error of ours says it itself."""


Findings = list[Finding]


@contextmanager
def told(findings: Findings, topic: str) -> Iterator[None]:
    """Make an error of ours within the context a finding that failed, with a line for each of its lines."""
    try:
        yield
    except MigrationError as error:
        findings.extend(Finding(topic, "failed", line) for line in str(error).splitlines())


def failed(findings: Findings) -> bool:
    """Whether a load cannot work."""
    return any(finding.state == "failed" for finding in findings)
