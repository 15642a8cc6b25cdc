"""The settings that the runs of a migration had, from their run configs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from migration_pipeline.migration.load import default_settings
from migration_pipeline.operations.runs import Run
from migration_pipeline.units import counted


def run_settings(configs: Mapping[str, str], tried: Sequence[Run]) -> list[tuple[str, str]]:
    """The run config of the loads, by names that are ours: anything else in it may be a secret."""
    if not configs:
        return []
    defaults = {"dry_run": False, **default_settings()}
    used: dict[str, Counter[str]] = {name: Counter() for name in defaults}
    for given in map(_load_config, configs.values()):
        for name, default in defaults.items():
            used[name][_setting(given.get(name, default))] += 1
    statuses = Counter(run.status.lower() for run in tried)
    return [
        *(
            (
                name,
                ", ".join(
                    f"{each} ({counted(n, 'run')})" if len(values) > 1 else each for each, n in values.items()
                ),
            )
            for name, values in used.items()
        ),
        ("runs that Dagster knows", ", ".join(f"{n} {status}" for status, n in statuses.items())),
    ]


def _load_config(text: str) -> dict[str, Any]:
    """What a run's config gives its ops."""
    config = yaml.safe_load(text)
    ops = (config.get("ops") or {}).values() if isinstance(config, dict) else ()
    return {name: value for op in ops for name, value in ((op or {}).get("config") or {}).items()}


def _setting(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return f"{value:,}" if isinstance(value, int | float) else "?"
