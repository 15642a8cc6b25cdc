"""The contenders: ``python -m benchmarks.contenders NAME WORKLOAD EXPORT URL [PART OF]``.

The engine may take share PART of OF of the files only, for processes side by side. Each prints one JSON object: seconds of work (imports left out) and the process's peak memory.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload
from migration_pipeline.sources.export import ExportFile

LIMITS: dict[str, Any] = {
    "max_lag_seconds": 3600, "critical_lag_seconds": 3600, "max_active": 1000, "critical_active": 1000,
    "throttle_query": "SELECT 0", "items_per_second": 1_000_000_000,
}  # fmt: skip
"""All that a throttle has, of which none is ever reached."""


def shares(files: Sequence[ExportFile], of: int) -> list[list[ExportFile]]:
    """Deal files out, the largest first, each to whom has the least: as a queue would that all take from."""
    dealt: list[list[ExportFile]] = [[] for _ in range(of)]
    for file in sorted(files, key=lambda file: -file.items):
        min(dealt, key=lambda share: sum(each.items for each in share)).append(file)
    return dealt


def engine(workload: Workload, export: Path, url: str, part: int = 0, of: int = 1) -> dict[str, Any]:
    """Load with this project, without Dagster: a part of the files, one after another."""
    return _engine(workload, export, url, part, of)


def unlimited(workload: Workload, export: Path, url: str, part: int = 0, of: int = 1) -> dict[str, Any]:
    """Load as `engine` does, with the throttle that every run has: without limits, and asked each second for an operator's."""
    return _engine(workload, export, url, part, of, {})


def limited(workload: Workload, export: Path, url: str, part: int = 0, of: int = 1) -> dict[str, Any]:
    """Load as `engine` does, with a throttle that has all `LIMITS`."""
    return _engine(workload, export, url, part, of, LIMITS)


def _engine(
    workload: Workload, export: Path, url: str, part: int, of: int, limits: dict[str, Any] | None = None
) -> dict[str, Any]:
    from contextlib import ExitStack, closing

    from migration_pipeline.engine.load import LoadSettings
    from migration_pipeline.migration.load import Loader
    from migration_pipeline.migration.plan import make_plan
    from migration_pipeline.sources.export import read_export
    from migration_pipeline.sources.storage import Storage
    from migration_pipeline.targets.connection import DatabaseSettings
    from migration_pipeline.targets.throttle import Throttle, ThrottleSettings

    profile = workload.profile
    plan = make_plan(profile, profile.name, [read_export(str(export), Storage())])
    planned = {each.file.name: each for each in plan.files}
    log, options = logging.getLogger("bench"), profile.options(plan.options)
    began, began_cpu = time.perf_counter(), time.process_time()
    with ExitStack() as ends:
        throttle = None
        if limits is not None:
            throttle = ends.enter_context(closing(Throttle(url, profile.name, ThrottleSettings(**limits))))
        loader = ends.enter_context(
            Loader(plan, profile, url, "bench", LoadSettings(), DatabaseSettings(), options, throttle)
        )
        files = [planned[file.name] for file in shares([each.file for each in plan.files], of)[part]]
        for file, following in zip(files, [*files[1:], None], strict=True):
            report = loader.load(file, log, lambda _: None, log.warning, following=following)
            assert not report.throttled, report.throttled
    return {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - began_cpu}


def base(workload: Workload, history: Path, url: str, part: int = 0, of: int = 1) -> dict[str, Any]:
    """Load the full export of a history."""
    return _of_history(workload, history, url, part, of, windows=False)


def windows(workload: Workload, history: Path, url: str, part: int = 0, of: int = 1) -> dict[str, Any]:
    """Load the windows of a history."""
    return _of_history(workload, history, url, part, of, windows=True)


def _of_history(
    workload: Workload, history: Path, url: str, part: int, of: int, *, windows: bool
) -> dict[str, Any]:
    from migration_pipeline.engine.load import LoadSettings
    from migration_pipeline.migration.load import Loader
    from migration_pipeline.migration.plan import make_plan
    from migration_pipeline.sources.export import read_exports
    from migration_pipeline.sources.storage import Storage
    from migration_pipeline.targets.connection import DatabaseSettings

    profile, log = workload.profile, logging.getLogger("bench")
    places = json.loads((history / "exports.json").read_text())
    plan = make_plan(profile, profile.name, read_exports(places, Storage(), lambda _: None))
    files = {each.file: each for each in plan.files if (plan.window_of(each) is not None) == windows}
    began = time.perf_counter()
    items = 0
    with Loader(plan, profile, url, "bench", LoadSettings(), DatabaseSettings(), None) as loader:
        for file in shares(list(files), of)[part]:
            items += loader.load(files[file], log, lambda _: None, log.warning).items
    return {"seconds": time.perf_counter() - began, "items": items}


def aggregate(workload: Workload, export: Path, url: str) -> dict[str, Any]:
    """Make the rows of what is landed, with the settings that runs have by default."""
    from migration_pipeline.sources.export import read_export
    from migration_pipeline.sources.storage import Storage
    from migration_pipeline.targets.aggregation import AggregateIdentity, AggregateRun, LandedFile

    found, profile = read_export(str(export), Storage()), workload.profile
    files = [LandedFile(found.id, file.name, file.md5) for file in found.files]
    identity = AggregateIdentity(profile.name, profile.version, "bench")
    began = time.perf_counter()
    for each in profile.aggregates:
        AggregateRun(url, each, files, identity).run()
    return {"seconds": time.perf_counter() - began}


def script(workload: Workload, export: Path, url: str) -> dict[str, Any]:
    """The usual script: boto3's TypeDeserializer, execute_values with ON CONFLICT, batches of 500."""
    import psycopg2
    from psycopg2.extras import execute_values

    script_rows = _script_rows(workload)
    deserialize = _deserializer()
    inserts = {table.qualified: _insert(table) for table in workload.profile.tables.values()}
    waiting: dict[str, list[tuple[Any, ...]]] = {name: [] for name in inserts}
    connection = psycopg2.connect(url)
    began = time.perf_counter()

    def flush(name: str) -> None:
        with connection.cursor() as cursor:
            execute_values(cursor, inserts[name], waiting[name], page_size=500)
        connection.commit()
        waiting[name].clear()

    for line in _lines(export):
        item = {name: deserialize(value) for name, value in json.loads(line)["Item"].items()}
        for name, row in script_rows(item):
            waiting[name].append(row)
            if len(waiting[name]) == 500:
                flush(name)
    for name in waiting:
        if waiting[name]:
            flush(name)
    return {"seconds": time.perf_counter() - began}


def _script_rows(workload: Workload) -> Callable[[dict[str, Any]], Iterator[tuple[str, tuple[Any, ...]]]]:
    assert workload.script_rows, f"{workload.name} is not for scripts"
    return workload.script_rows


def _deserializer() -> Callable[[Any], Any]:
    """boto3's, taught that an export spells binaries in base64, on which it raises."""
    import base64

    from boto3.dynamodb.types import TypeDeserializer

    class Deserializer(TypeDeserializer):
        def _deserialize_b(self, value: str) -> bytes:
            return base64.b64decode(value)

    return Deserializer().deserialize


def _insert(table: Any) -> str:
    columns = [column.name for column in table.columns]
    changes = ", ".join(f"{name} = EXCLUDED.{name}" for name in columns if name not in table.key)
    return (
        f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES %s "
        f"ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {changes}"
    )


def dlt_merge(workload: Workload, export: Path, url: str) -> dict[str, Any]:
    """Load with dlt to PostgreSQL with merge, as its documentation tunes it: orjson, larger buffers, upsert."""
    import os

    import dlt

    os.environ.update(
        {
            "RUNTIME__DLTHUB_TELEMETRY": "false",
            "RUNTIME__LOG_LEVEL": "ERROR",
            "DATA_WRITER__BUFFER_MAX_ITEMS": "50000",
            "NORMALIZE__WORKERS": "2",
            "LOAD__WORKERS": "2",
        }
    )
    script_rows = _script_rows(workload)
    deserialize = _deserializer()
    tables = {table.qualified: table for table in workload.profile.tables.values()}

    def rows(name: str) -> Iterator[list[dict[str, Any]]]:
        columns = [column.name for column in tables[name].columns]
        page = []
        for line in _lines(export):
            item = {key: deserialize(value) for key, value in json.loads(line)["Item"].items()}
            for table, row in script_rows(item):
                if table == name:
                    # Its decimals end at 29 digits before the point, so numbers of DynamoDB go as text.
                    texts = (str(value) if isinstance(value, Decimal) else value for value in row)
                    page.append(dict(zip(columns, texts, strict=True)))
            if len(page) >= 5000:
                yield page
                page = []
        yield page

    resources = [
        dlt.resource(
            rows(name), name=name, primary_key=list(table.key), max_table_nesting=0,
            write_disposition={"disposition": "merge", "strategy": "upsert"},
        )
        for name, table in tables.items()
    ]  # fmt: skip
    home = export.parent / "dlt"
    pipeline = dlt.pipeline(
        "bench", destination=dlt.destinations.postgres(url), dataset_name="dlt_bench", pipelines_dir=str(home)
    )
    began = time.perf_counter()
    pipeline.run(resources)
    return {"seconds": time.perf_counter() - began}


def floor_parse(workload: Workload, export: Path, url: str) -> dict[str, Any]:
    """Gunzip with isal and orjson.loads of each line, and nothing else."""
    import orjson

    loads = orjson.loads
    began = time.perf_counter()
    for line in _lines(export):
        loads(line)
    return {"seconds": time.perf_counter() - began}


def floor_copy(workload: Workload, export: Path, url: str) -> dict[str, Any]:
    """COPY of the final rows, encoded beforehand and sorted by key, into the keyed tables."""
    import psycopg2

    connection = psycopg2.connect(url)
    began = time.perf_counter()
    for table in workload.profile.tables.values():
        with connection.cursor() as cursor, (export.parent / f"{table.name}.copy").open("rb") as rows:
            cursor.copy_expert(f"COPY {table.name} FROM STDIN", rows, 1 << 20)
    connection.commit()
    return {"seconds": time.perf_counter() - began}


def _lines(export: Path) -> Iterator[bytes]:
    from isal import igzip

    for path in sorted((export / "data").iterdir()):
        with igzip.open(path, "rb") as lines:
            yield from lines


def peak_megabytes() -> float:
    """The most memory that this process had. On Linux getrusage also counts what its parent had when it was started, so ask for that of its own."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    peak = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(peak.split()[1]) / 1024


CONTENDERS: dict[str, Callable[..., dict[str, Any]]] = {
    "engine": engine,
    "unlimited": unlimited,
    "limited": limited,
    "base": base,
    "windows": windows,
    "aggregate": aggregate,
    "script": script,
    "dlt": dlt_merge,
    "floor_parse": floor_parse,
    "floor_copy": floor_copy,
}

if __name__ == "__main__":
    name, workload_name, export_path, database, *parts = sys.argv[1:]
    result = CONTENDERS[name](WORKLOADS[workload_name], Path(export_path), database, *map(int, parts))
    print(json.dumps(result | {"peak_rss_mb": peak_megabytes()}))
