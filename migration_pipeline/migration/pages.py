"""The HTML pages that people are sent: they look alike, need no network, run no script, and every text in them is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from migration_pipeline import units
from migration_pipeline.errors import UsageError

if TYPE_CHECKING:
    from jinja2 import Environment


def pages(package: str) -> Environment:
    """Make an environment of the templates in a package, which extend ``base.html.jinja``.

    Raises `UsageError` where the extra ``report`` is not installed.
    """
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{error}; install what the page needs: pip install 'migration-pipeline[report]'"
        ) from None
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(package, "."), PackageLoader("migration_pipeline.migration", ".")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": "{:,.0f}".format,
        "counted": units.counted,
        "moment": units.moment,
        "duration": units.duration,
        "size": units.readable_size,
    }
    return environment
