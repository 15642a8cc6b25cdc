"""Serves ``/metrics`` for Prometheus: what Dagster says of the files, and what the database's receipts say.

Two sources, because each may be wrong alone: a worker that died leaves a file *running* in Dagster, without a
receipt and with a silent log; a materialization without a receipt was loaded somewhere else. A source
that does not answer is a metric, `migration_up`, and its numbers are left out, never reported as zeros.

A scrape costs a fixed number of queries, however many files there are: of Dagster four and one for each running
file, of the database five, or six where the profile has aggregates.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from typing import Any, Generic, NamedTuple, TypeVar, cast, get_args

import click
import msgspec
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from migration_pipeline.errors import MigrationError
from migration_pipeline.migration.cutover import reached
from migration_pipeline.migration.plan import Plan
from migration_pipeline.migration.verdicts import conserved, loaded_files, made_of_all, matches, receipts_of
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
    """Queries one source in a thread of its own, one query at a time: a source that hangs is not queried again."""

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


class Scrape(msgspec.Struct, frozen=True, kw_only=True):
    """All that the gauges are made of."""

    plan: Plan
    profile: Profile
    sources: Sequence[_Source[Any]]
    dagster: FromDagster
    totals: Totals
    """Both only for gauges that say so (`Gauge.of`), which are left out when their source does not answer."""
    now: float = msgspec.field(default_factory=time.time)
    """Seconds of the epoch."""


class Gauge(NamedTuple):
    """A metric: ``migration_<name>``, with the label ``profile`` and those named here."""

    name: str
    help: str
    value: Callable[[Scrape], float | Mapping[Any, float]]
    """A number, or one for each value of the labels."""
    of: tuple[str, ...] = ()
    """Sources that must have answered."""
    labels: tuple[str, ...] = ()
    counter: bool = False


D, R = ("dagster",), ("database",)

GAUGES = (
    Gauge("up", "Whether a source answered this scrape.",
          lambda s: {source.name: source.numbers is not None for source in s.sources}, labels=("source",)),
    Gauge("scrape_duration_seconds", "How long a source took to answer.",
          lambda s: {source.name: source.seconds for source in s.sources}, labels=("source",)),
    Gauge("scrape_errors", "Scrapes that a source did not answer.",
          lambda s: {source.name: source.errors for source in s.sources}, labels=("source",), counter=True),
    Gauge("info", "Always 1; its labels tell versions.",
          lambda s: {(s.profile.version, version("migration-pipeline")): 1}, labels=("profile_version", "version")),
    Gauge("planned_files", "Files of the plan.", lambda s: len(s.plan.files)),
    Gauge("planned_items", "Items of the plan's files, as their manifests say.", lambda s: s.plan.items),
    Gauge("planned_bytes", "Compressed bytes of the plan's files.", lambda s: s.plan.bytes),
    Gauge("files", "Files of the plan by their state in Dagster.",
          lambda s: dict.fromkeys(get_args(State), 0) | Counter(s.dagster.states.values()), D, ("state",)),
    Gauge("running_items", "Items that running files have read so far.",
          lambda s: sum(file.items for file in s.dagster.running), D),
    Gauge("running_items_per_second", "Items a second that running files read, all together, as they last logged it.",
          lambda s: sum(file.items_per_second for file in s.dagster.running), D),
    Gauge("running_retries", "Transactions of running files that ran again after a transient fault of the database.",
          lambda s: sum(file.retries for file in s.dagster.running), D),
    Gauge("throttled_files", "Running files whose load waits for the throttle.",
          lambda s: sum(bool(file.throttled) for file in s.dagster.running), D),
    Gauge("running_throttled_seconds", "Seconds that running files have waited for the throttle so far.",
          lambda s: sum(file.throttled_seconds for file in s.dagster.running), D),
    Gauge("oldest_running_file_age_seconds",
          "How long ago the load of the file began that has been running longest; 0 when none runs.",
          lambda s: max((s.now - file.started for file in s.dagster.running), default=0), D),
    Gauge("longest_silence_seconds",
          "How long ago the running file that is silent longest last wrote into its log; 0 when none runs.",
          lambda s: max((s.now - file.heard for file in s.dagster.running), default=0), D),
    Gauge("newest_backfill", "1 for the status of the profile's newest backfill.",
          lambda s: {status: [status] == [b.status for b in s.dagster.backfills[:1]] for status in BACKFILL_STATUSES},
          D, ("status",)),
    Gauge("active_backfills", "Backfills that are not over.",
          lambda s: sum(not backfill.over for backfill in s.dagster.backfills), D),
    Gauge("loaded_files", "Files that have a receipt.", lambda s: s.totals.files, R),
    Gauge("items", "Items of files that have a receipt, by what became of them.",
          lambda s: {what: getattr(s.totals, what) for what in ("loaded", "superseded", "skipped", "quarantined")},
          R, ("outcome",)),
    Gauge("rows", "Rows written by files that have a receipt.",
          lambda s: {table.qualified: 0 for table in s.profile.tables.values()} | s.totals.rows, R, ("table",)),
    Gauge("deleted_rows", "Rows that windows took away, because their items were changed or deleted.",
          lambda s: {table.qualified: 0 for table in s.profile.tables.values()} | s.totals.deleted_rows, R, ("table",)),
    Gauge("skipped_items", "Items that the profile skipped, by its reason.",
          lambda s: _commonest(s.totals.skipped_by_reason), R, ("reason",)),
    Gauge("unrouted_items", "Items that no rule took; they are skipped, too.", lambda s: s.totals.unrouted, R),
    Gauge("quarantine_items", "Items in the quarantine now, of failed files as well.",
          lambda s: s.totals.in_quarantine, R),
    Gauge("retries", "Transactions that ran again, in the loads of files that have a receipt.",
          lambda s: s.totals.retries, R),
    Gauge("loaded_bytes", "Compressed bytes of files that have a receipt.", lambda s: s.totals.bytes, R),
    Gauge("load_seconds", "Seconds that these files took, all loads added up.", lambda s: s.totals.seconds, R),
    Gauge("throttled_seconds", "Seconds of these that loads waited for the throttle.",
          lambda s: s.totals.throttled_seconds, R),
    Gauge("unconserved_files", "Files whose items are not all loaded, superseded, skipped or quarantined; must be 0.",
          lambda s: sum(not conserved(*each) for each in loaded_files(s.plan, s.totals.by_file)), R),
    Gauge("newest_receipt_timestamp_seconds",
          "When the newest receipt was written, in seconds of the epoch; 0 without one.",
          lambda s: s.totals.last_loaded_at, R),
    Gauge("window_lag_seconds",
          "How long ago the last window ended that is loaded, with all before it; only for plans with windows.",
          lambda s: _lag(s.plan, s.totals, s.now), R),
    Gauge("outdated_aggregates",
          "Aggregates that are not made of all files as they are now, once all are loaded; must be 0.",
          lambda s: _outdated(s.plan, s.profile, s.totals), R),
    Gauge("unproven_files", "Files that Dagster shows as materialized and that have no receipt of the same contents.",
          lambda s: _unproven(s.plan, s.dagster, s.totals), (*D, *R)),
)  # fmt: skip
"""In the order in which they are served."""


def _lag(plan: Plan, totals: Totals, now: float) -> float | Mapping[Any, float]:
    """Seconds; none while the base is not loaded."""
    until = reached(plan, totals.by_file) if plan.windows else None
    return {} if until is None else max(now - until.timestamp(), 0.0)


def _outdated(plan: Plan, profile: Profile, totals: Totals) -> int:
    loaded = receipts_of(plan, totals.by_file)
    return sum(
        bool(made_of_all(plan, each, totals.aggregates.get(each.table.qualified), loaded).fault)
        for each in profile.aggregates
    )


def _unproven(plan: Plan, dagster: FromDagster, totals: Totals) -> int:
    shown = sum(state == "materialized" for state in dagster.states.values())
    proven = (planned for planned, file in loaded_files(plan, totals.by_file) if matches(planned, file))
    return shown - sum(dagster.states[planned.partition] == "materialized" for planned in proven)


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
        aggregates = bool(profile.aggregates)
        self._database = _Source(
            "database",
            lambda: read_totals(database_url, plan.profile, exports, QUERY_SECONDS, aggregates=aggregates),
        )
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"metrics of {plan.profile}")
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._made = -FRESH_SECONDS

    def collect(self) -> Iterable[Metric]:
        """Ask both sources, and return what they answered in time."""
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
        sources: tuple[_Source[Any], ...] = (self._dagster, self._database)
        answered = {source.name for source in sources if source.numbers is not None}
        dagster, totals = cast(FromDagster, self._dagster.numbers), cast(Totals, self._database.numbers)
        scrape = Scrape(
            plan=self._plan, profile=self._profile, sources=sources, dagster=dagster, totals=totals
        )
        for gauge in GAUGES:
            if answered.issuperset(gauge.of):
                yield self._family(gauge, gauge.value(scrape))

    def _family(self, gauge: Gauge, value: float | Mapping[Any, float]) -> Metric:
        """Write a gauge as Prometheus has it: one sample, or one for each of its label's values."""
        family = CounterMetricFamily if gauge.counter else GaugeMetricFamily
        metric = family(f"migration_{gauge.name}", gauge.help, labels=("profile", *gauge.labels))
        for labels, number in (value if isinstance(value, Mapping) else {(): value}).items():
            of = labels if isinstance(labels, tuple) else (labels,)
            metric.add_metric((self._plan.profile, *of), float(number))
        return metric


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
