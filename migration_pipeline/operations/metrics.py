"""Serves ``/metrics`` for Prometheus: what Dagster says of the files, and what the database's receipts say.

Two sources, because each may be wrong alone: a worker that died leaves a file *running* in Dagster, without a
receipt and without a word in its log; a materialization without a receipt was loaded somewhere else. A source
that does not answer is a metric, `migration_up`, and its numbers are left out, never told as zeros.

A scrape costs a fixed number of queries, however many files there are: of Dagster four and one for each running
file, of the database five.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from typing import Any, Generic, TypeVar, get_args

import click
import msgspec
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from migration_pipeline.errors import MigrationError, UsageError
from migration_pipeline.migration.plan import Plan
from migration_pipeline.operations.backfills import Backfill, backfills
from migration_pipeline.operations.client import DagsterClient
from migration_pipeline.operations.files import State, read_states
from migration_pipeline.operations.running import Follow, RunningFile
from migration_pipeline.profile.profile import Profile
from migration_pipeline.targets.receipts import Totals, read_totals

SCRAPE_SECONDS = 8.0
"""Seconds after which a scrape goes on without a source; Prometheus gives up after ten by default."""

QUERY_SECONDS = 5.0
"""Seconds that one query of Dagster or of the database may take."""

FRESH_SECONDS = 2.0
"""Scrapes within this time get the same numbers, so that several scrapers cost what one costs."""

REASONS = 50
"""Reasons that have a label of their own, the commonest; the rest share one. They come from the profile's code."""

OTHER_REASONS = "(other reasons)"

BACKFILL_STATUSES = (
    "REQUESTED",
    "COMPLETED_SUCCESS",
    "COMPLETED_FAILED",
    "COMPLETED",
    "FAILING",
    "FAILED",
    "CANCELING",
    "CANCELED",
)
"""Dagster's BulkActionStatus."""


class FromDagster(msgspec.Struct, kw_only=True):
    """What a scrape learns from Dagster."""

    states: dict[str, State]
    """By partition."""
    running: list[RunningFile]
    backfills: list[Backfill]
    """Newest first."""


Numbers = TypeVar("Numbers")


class _Source(Generic[Numbers]):
    """Asks one source in a thread of its own, one question at a time: one that hangs is not asked again."""

    def __init__(self, name: str, ask: Callable[[], Numbers]) -> None:
        self.name = name
        self._ask = ask
        self._asked: Future[Numbers] | None = None
        self.numbers: Numbers | None = None
        """None when it does not answer."""
        self.errors = 0
        self.seconds = 0.0
        self._why = ""

    def begin(self, threads: ThreadPoolExecutor) -> Future[Numbers]:
        if self._asked is None or self._asked.done():
            self._asked = threads.submit(self._timed)
        return self._asked

    def _timed(self) -> Numbers:
        began = time.monotonic()
        try:
            return self._ask()
        finally:
            self.seconds = time.monotonic() - began

    def end(self) -> None:
        """Take the answer, if there is one."""
        self.numbers, why = None, f"no answer within {SCRAPE_SECONDS:.0f} s"
        if self._asked is not None and self._asked.done():
            fault = self._asked.exception()  # any fault: a scrape must tell of it, and go on
            if fault is None:
                self.numbers, why = self._asked.result(), ""
            else:  # the text of a fault that is not ours may hold anything
                why = str(fault) if isinstance(fault, MigrationError) else type(fault).__name__
        self.errors += bool(why)
        if why != self._why:
            click.echo(f"{time.strftime('%H:%M:%S')}  {self.name}: {why or 'answers again'}", err=True)
            self._why = why


class MigrationCollector(Collector):
    """The metrics of one profile. Give it to a registry; `collect` never raises."""

    def __init__(self, plan: Plan, profile: Profile, client: DagsterClient, database_url: str) -> None:
        self._plan = plan
        self._profile = profile
        exports = [export.id for export in plan.exports]
        follow = Follow(client, plan)

        def ask_dagster() -> FromDagster:
            running = follow.running()
            return FromDagster(
                states=read_states(client, plan, profile, running),
                running=running,
                backfills=backfills(client, plan),
            )

        self._dagster = _Source("dagster", ask_dagster)
        self._database = _Source(
            "database", lambda: read_totals(database_url, plan.profile, exports, QUERY_SECONDS)
        )
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"metrics of {plan.profile}")
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._made = -FRESH_SECONDS

    def collect(self) -> Iterable[Metric]:
        """Ask both sources, and give what they answered in time."""
        with self._lock:
            if time.monotonic() - self._made >= FRESH_SECONDS:
                asked: list[Future[Any]] = [
                    self._dagster.begin(self._threads), self._database.begin(self._threads)
                ]  # fmt: skip
                wait(asked, SCRAPE_SECONDS)
                self._dagster.end()
                self._database.end()
                self._metrics = list(self._make())
                self._made = time.monotonic()
            return self._metrics

    def _make(self) -> Iterable[Metric]:
        yield from self._about()
        yield from self._of_plan()
        if dagster := self._dagster.numbers:
            yield from self._of_dagster(dagster)
        if totals := self._database.numbers:
            yield from self._of_database(totals)
        if dagster and totals:
            yield self._gauge(
                "unproven_files",
                "Files that Dagster shows as materialized and that have no receipt of the same contents.",
                self._unproven(dagster, totals),
            )

    def _about(self) -> Iterable[Metric]:
        sources: Sequence[_Source[Any]] = (self._dagster, self._database)
        yield self._gauge_by(
            "up", "Whether a source answered this scrape.", "source", {s.name: s.numbers is not None for s in sources}
        )  # fmt: skip
        yield self._gauge_by(
            "scrape_duration_seconds", "How long a source took to answer.", "source",
            {source.name: source.seconds for source in sources},
        )  # fmt: skip
        errors = CounterMetricFamily(
            "migration_scrape_errors", "Scrapes that a source did not answer.", labels=("profile", "source")
        )
        for source in sources:
            errors.add_metric((self._plan.profile, source.name), source.errors)
        yield errors
        info = GaugeMetricFamily(
            "migration_info", "Always 1; its labels tell versions.", labels=("profile", "profile_version", "version")
        )  # fmt: skip
        info.add_metric((self._plan.profile, self._profile.version, version("migration-pipeline")), 1)
        yield info

    def _of_plan(self) -> Iterable[Metric]:
        yield self._gauge("planned_files", "Files of the plan.", len(self._plan.files))
        yield self._gauge(
            "planned_items", "Items of the plan's files, as their manifests say.", self._plan.items
        )
        yield self._gauge("planned_bytes", "Compressed bytes of the plan's files.", self._plan.bytes)

    def _of_dagster(self, dagster: FromDagster) -> Iterable[Metric]:
        now, running = time.time(), dagster.running
        counts = Counter[str](dagster.states.values())
        yield self._gauge_by(
            "files", "Files of the plan by their state in Dagster.", "state",
            {state: counts[state] for state in get_args(State)},
        )  # fmt: skip
        yield self._gauge(
            "running_items", "Items that running files have read so far.", sum(file.items for file in running)
        )
        yield self._gauge(
            "running_items_per_second",
            "Items a second that running files read, all together, as they last logged it.",
            sum(file.items_per_second for file in running),
        )
        yield self._gauge(
            "running_retries",
            "Transactions of running files that ran again after a transient fault of the database.",
            sum(file.retries for file in running),
        )
        yield self._gauge(
            "oldest_running_file_age_seconds",
            "How long ago the load of the file began that has been running longest; 0 when none runs.",
            max((now - file.started for file in running), default=0),
        )
        yield self._gauge(
            "longest_silence_seconds",
            "How long ago the running file that is silent longest last wrote into its log; 0 when none runs.",
            max((now - file.heard for file in running), default=0),
        )
        newest = dagster.backfills[0].status if dagster.backfills else ""
        yield self._gauge_by(
            "newest_backfill", "1 for the status of the profile's newest backfill.", "status",
            {status: status == newest for status in BACKFILL_STATUSES},
        )  # fmt: skip
        yield self._gauge(
            "active_backfills", "Backfills that are not over.", sum(not one.over for one in dagster.backfills)
        )

    def _of_database(self, totals: Totals) -> Iterable[Metric]:
        yield self._gauge("loaded_files", "Files that have a receipt.", totals.files)
        yield self._gauge_by(
            "items", "Items of files that have a receipt, by what became of them.", "outcome",
            {"loaded": totals.loaded, "skipped": totals.skipped, "quarantined": totals.quarantined},
        )  # fmt: skip
        tables = {table.qualified: 0 for table in self._profile.tables.values()}
        yield self._gauge_by(
            "rows", "Rows written by files that have a receipt.", "table", tables | totals.rows
        )
        yield self._gauge_by(
            "skipped_items", "Items that the profile skipped, by its reason.", "reason",
            _commonest(totals.skipped_by_reason),
        )  # fmt: skip
        yield self._gauge(
            "unrouted_items", "Items that no rule took; they are skipped, too.", totals.unrouted
        )
        yield self._gauge(
            "quarantine_items", "Items in the quarantine now, of failed files as well.", totals.in_quarantine
        )
        yield self._gauge(
            "retries",
            "Transactions that ran again, in the loads of files that have a receipt.",
            totals.retries,
        )
        yield self._gauge("loaded_bytes", "Compressed bytes of files that have a receipt.", totals.bytes)
        yield self._gauge(
            "load_seconds", "Seconds that these files took, all loads added up.", totals.seconds
        )
        yield self._gauge(
            "unconserved_files",
            "Files whose items are not all loaded, skipped or quarantined; must be 0.",
            totals.unconserved,
        )
        yield self._gauge(
            "newest_receipt_timestamp_seconds",
            "When the newest receipt was written, in seconds of the epoch; 0 without one.",
            totals.last_loaded_at,
        )

    def _unproven(self, dagster: FromDagster, totals: Totals) -> int:
        return sum(
            dagster.states[planned.partition] == "materialized"
            and totals.md5s.get((planned.export_id, planned.file.name)) != planned.file.md5
            for planned in self._plan.files
        )

    def _gauge(self, name: str, documentation: str, value: float) -> Metric:
        gauge = GaugeMetricFamily(f"migration_{name}", documentation, labels=("profile",))
        gauge.add_metric((self._plan.profile,), value)
        return gauge

    def _gauge_by(self, name: str, documentation: str, label: str, values: dict[str, Any]) -> Metric:
        gauge = GaugeMetricFamily(f"migration_{name}", documentation, labels=("profile", label))
        for key, value in values.items():
            gauge.add_metric((self._plan.profile, key), float(value))
        return gauge


def _commonest(counts: dict[str, int]) -> dict[str, int]:
    """Keep the first `REASONS`, which are the commonest, and sum up the rest."""
    kept = dict(list(counts.items())[:REASONS])
    if len(counts) > REASONS:
        kept[OTHER_REASONS] = sum(counts.values()) - sum(kept.values())
    return kept


class MigrationsCollector(Collector):
    """The metrics of several profiles, each name once, as the text format demands."""

    def __init__(self, collectors: Sequence[MigrationCollector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterable[Metric]:
        """Ask all profiles at once."""
        with ThreadPoolExecutor(len(self._collectors)) as threads:
            merged: dict[str, Metric] = {}
            for metrics in threads.map(lambda collector: collector.collect(), self._collectors):
                for metric in metrics:
                    if metric.name in merged:
                        merged[metric.name].samples.extend(metric.samples)
                    else:
                        # A copy: its samples grow here, and the profile's own may be given out again.
                        merged[metric.name] = made = Metric(metric.name, metric.documentation, metric.type)
                        made.samples = list(metric.samples)
        return merged.values()


class Server:
    """Serves ``/metrics`` in threads of its own until `close`. Raises `MigrationError` when the port is taken."""

    def __init__(
        self, plans: Sequence[tuple[Plan, Profile]], dagster_url: str, database_url: str, host: str, port: int
    ) -> None:
        if not plans:
            raise UsageError(
                "there is no plan yet, so there is nothing to measure; see migration-pipeline plan"
            )
        registry = CollectorRegistry()
        registry.register(
            MigrationsCollector(
                [
                    MigrationCollector(plan, profile, DagsterClient(dagster_url, QUERY_SECONDS), database_url)
                    for plan, profile in plans
                ]
            )
        )
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise MigrationError(
                f"cannot serve metrics at {host}:{port}: {error.strerror or error}; choose another --port or --host"
            ) from None
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def wait(self) -> None:
        """Wait for ever, or for Ctrl-C."""
        self._thread.join()
