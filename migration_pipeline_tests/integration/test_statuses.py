"""What Dagster loses while others write: the status of a file, which the next run mends, and a crash, which the queue tells of again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster import AssetKey, AssetPartitionStatus, DagsterEventType, RunsFilter
from dagster._core.events import AssetMaterializationPlannedData, EngineEventData
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.test_utils import create_run_for_test
from dagster_shared.error import SerializableErrorInfo

from migration_pipeline.defs import coordinator
from migration_pipeline.defs.coordinator import OVERLOOKED, Overlooked
from migration_pipeline.defs.metadata import PROFILE_TAG
from migration_pipeline.defs.migration import Database, migration_assets
from migration_pipeline.defs.statuses import mend_statuses
from migration_pipeline.migration.plan import make_plan
from migration_pipeline.profile.profile import load_profile
from migration_pipeline.sources.export import read_export
from migration_pipeline.sources.storage import Storage

ORDERS, CUSTOMERS = AssetKey(["shop", "orders"]), AssetKey(["shop", "customers"])
FAILURES = RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])
DONE, FAILED, LOADING = (
    AssetPartitionStatus.MATERIALIZED,
    AssetPartitionStatus.FAILED,
    AssetPartitionStatus.IN_PROGRESS,
)
STORAGE = """
storage:
  custom:
    module: migration_pipeline.defs.storage
    class: LocalStorage
    config: {{base_dir: "{folder}"}}
telemetry: {{enabled: false}}
run_retries: {{enabled: true, max_retries: 2, retry_on_asset_or_op_failure: false}}
"""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster.yaml").write_text(STORAGE.format(folder=tmp_path))
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        yield made


def begin(instance: dg.DagsterInstance, partition: str, key: AssetKey = ORDERS) -> dg.DagsterRun:
    """Make a run that is to load a file, as a backfill makes it."""
    run: dg.DagsterRun = create_run_for_test(instance, job_name="job")
    planned = dg.DagsterEvent(
        DagsterEventType.ASSET_MATERIALIZATION_PLANNED.value,
        "job",
        event_specific_data=AssetMaterializationPlannedData(key, partition),
    )
    instance.report_dagster_event(planned, run.run_id)
    return run


def end(instance: dg.DagsterInstance, partition: str, key: AssetKey = ORDERS) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(key, partition=partition))


def statuses(
    instance: dg.DagsterInstance, partitions: dg.StaticPartitionsDefinition, key: AssetKey = ORDERS
) -> dict[str, AssetPartitionStatus | None]:
    return dict(instance.get_status_by_partition(key, partitions.get_partition_keys(), partitions) or {})


def lose(
    instance: dg.DagsterInstance,
    partitions: dg.StaticPartitionsDefinition,
    lost: str,
    planned: str,
    key: AssetKey = ORDERS,
) -> None:
    """Read the statuses, while other processes record that one file is loaded and that another is to be loaded."""
    statuses(instance, partitions, key)  # Dagster keeps them from the first look on
    read = instance.get_latest_planned_materialization_info

    def meanwhile(asset: AssetKey) -> object:
        instance.get_latest_planned_materialization_info = read  # type: ignore[method-assign]
        end(instance, lost, key)
        begin(instance, planned, key)
        return read(asset)

    instance.get_latest_planned_materialization_info = meanwhile  # type: ignore[method-assign,assignment]
    statuses(instance, partitions, key)
    assert instance.get_latest_planned_materialization_info == read


def test_a_file_that_dagster_has_lost_is_shown_again(instance: dg.DagsterInstance) -> None:
    files = dg.StaticPartitionsDefinition(["a", "b", "c", "d"])
    begin(instance, "a")
    end(instance, "a")
    assert mend_statuses(instance, [ORDERS, CUSTOMERS], files) == set(), "nothing is lost"
    lose(instance, files, "b", planned="c")
    assert statuses(instance, files) == {"a": DONE, "b": None, "c": LOADING, "d": None}, (
        "Dagster has no mend for it"
    )
    assert mend_statuses(instance, [CUSTOMERS, ORDERS], files) == {"b"}
    assert statuses(instance, files) == {"a": DONE, "b": DONE, "c": LOADING, "d": None}
    assert mend_statuses(instance, [CUSTOMERS, ORDERS], files) == set()


def test_a_file_that_had_failed_is_shown_as_loaded(instance: dg.DagsterInstance) -> None:
    files = dg.StaticPartitionsDefinition(["a", "b", "c"])
    for partition in ("a", "b"):
        end(instance, partition)
        instance.report_run_failed(begin(instance, partition))
    assert statuses(instance, files) == {"a": FAILED, "b": FAILED, "c": None}
    begin(instance, "b")
    lose(instance, files, "b", planned="c")
    assert statuses(instance, files)["b"] is FAILED
    assert mend_statuses(instance, [ORDERS], files) == {"b"}
    assert statuses(instance, files) == {"a": FAILED, "b": DONE, "c": LOADING}, (
        "the other one has failed since"
    )


def test_a_run_mends_what_was_lost_of_others(
    instance: dg.DagsterInstance, shop_database_url: str, shop_export: Path
) -> None:
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    other, own, *_ = (planned.partition for planned in plan.files)
    files = dg.StaticPartitionsDefinition(list(plan.by_partition()))
    end(instance, own)
    lose(instance, files, other, planned=own)
    assert statuses(instance, files)[other] is None
    result = dg.materialize(
        migration_assets(plan, shop),
        instance=instance,
        partition_key=own,
        resources={"database": Database(url=shop_database_url)},
    )
    assert result.success
    found = statuses(instance, files)
    assert (found[other], found[own]) == (DONE, DONE)
    told = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30]
    assert told == ["Dagster had lost the status of 1 file that it knows as materialized: shown again"]


def test_a_run_whose_storage_fails_at_the_mend_has_loaded_its_file(
    instance: dg.DagsterInstance, shop_database_url: str, shop_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = load_profile("shop")
    plan = make_plan(shop, "shop", [read_export(str(shop_export), Storage())])
    (name,) = list(plan.by_partition())[:1]

    def locked(*_: object) -> None:
        raise OSError("database is locked: SECRET")

    monkeypatch.setattr(type(instance), "get_latest_storage_id_by_partition", locked)
    files = dg.StaticPartitionsDefinition(list(plan.by_partition()))
    end(instance, name)
    statuses(instance, files)
    result = dg.materialize(
        migration_assets(plan, shop),
        instance=instance,
        partition_key=name,
        resources={"database": Database(url=shop_database_url)},
    )
    assert result.success
    told = [entry.user_message for entry in instance.all_logs(result.run_id) if entry.level == 30]
    assert told == ["whether Dagster has lost the status of a file is unknown: OSError"]


def crash(instance: dg.DagsterInstance, **tags: str) -> dg.DagsterRun:
    run: dg.DagsterRun = create_run_for_test(
        instance, job_name="job", status=dg.DagsterRunStatus.STARTED, tags={PROFILE_TAG: "shop", **tags}
    )
    instance.report_run_failed(run)
    return run


def again(
    instance: dg.DagsterInstance, run: dg.DagsterRun, first: dg.DagsterRun | None = None, **tags: str
) -> dg.DagsterRun:
    """Start a run again, as the UI does."""
    root = (first or run).run_id
    made: dg.DagsterRun = create_run_for_test(
        instance,
        job_name="job",
        status=dg.DagsterRunStatus.STARTED,
        tags={PROFILE_TAG: "shop", "dagster/parent_run_id": run.run_id, "dagster/root_run_id": root, **tags},
        parent_run_id=run.run_id,
        root_run_id=root,
    )
    return made


def give_up(instance: dg.DagsterInstance, run: dg.DagsterRun, error: str) -> None:
    """Do as Dagster's daemon where it cannot start a run again."""
    data = EngineEventData(error=SerializableErrorInfo("it fails", [], error))
    instance.report_engine_event(coordinator.GIVEN_UP, run, engine_event_data=data)
    instance.add_run_tags(run.run_id, {"dagster/will_retry": "false"})


def reports(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    ends = instance.all_logs(run.run_id, of_type=DagsterEventType.RUN_FAILURE)
    return sum(entry.get_dagster_event().message == OVERLOOKED for entry in ends)


class Clock:
    """The time of a process, which passes when it is told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_crashed_run_that_dagster_gives_up_is_reported_while_its_backfill_is_open(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backfill, status in (("open", BulkActionStatus.REQUESTED), ("over", BulkActionStatus.CANCELED)):
        made = PartitionBackfill(backfill, status=status, from_failure=False, tags={}, backfill_timestamp=1.0)
        instance.add_backfill(made)
    of_open = {"dagster/backfill": "open"}
    given_up = crash(instance, **of_open)
    others = [
        crash(instance),
        crash(instance, **{"dagster/backfill": "over"}),
        crash(instance, **of_open, **{"dagster/max_retries": "0"}),
        crash(instance, **of_open, **{"dagster/failure_reason": "STEP_FAILURE"}),
        crash(instance, **of_open, **{"dagster/auto_retry_run_id": "another"}),
    ]
    for run in (given_up, *others):
        give_up(instance, run, "DagsterCodeLocationLoadError")
    finished, by_hand = crash(instance, **of_open), crash(instance, **of_open)
    give_up(instance, finished, "DagsterInvalidSubsetError")  # its steps were done: that fails each time
    give_up(instance, by_hand, "DagsterUserCodeUnreachableError")
    again(instance, by_hand)
    exhausted = first = crash(instance, **of_open)
    for _ in range(2):
        exhausted = again(instance, exhausted, first, **of_open)
        instance.report_run_failed(exhausted)
    give_up(instance, exhausted, "DagsterUserCodeUnreachableError")
    others += [finished, by_hand, exhausted]
    clock = Clock()
    monkeypatch.setattr(coordinator, "time", clock)
    queue = Overlooked()
    clock.now += 11
    queue.look(instance)
    found = {run.run_id: run.tags["dagster/will_retry"] for run in instance.get_runs(FAILURES)}
    assert [found[run.run_id] for run in (given_up, *others)] == ["true", *["false"] * len(others)]
    clock.now += 31
    queue.look(instance)
    assert [reports(instance, run) for run in (given_up, *others)] == [1, *[0] * len(others)]


def test_a_crash_is_reported_again_only_where_it_is_overlooked_and_ever_less_often(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backfill, status in (("open", BulkActionStatus.REQUESTED), ("over", BulkActionStatus.CANCELED)):
        made = PartitionBackfill(backfill, status=status, from_failure=False, tags={}, backfill_timestamp=1.0)
        instance.add_backfill(made)
    overlooked = crash(instance, **{"dagster/backfill": "open"})
    of_none = crash(instance)
    others = [
        crash(instance, **{"dagster/backfill": "over"}),
        crash(instance, **{"dagster/backfill": "gone"}),
        crash(instance, **{"dagster/auto_retry_run_id": "another"}),
        crash(instance, **{"dagster/max_retries": "0"}),
        crash(instance, **{PROFILE_TAG: "shop", "dagster/will_retry": "false", "dagster/max_retries": "0"}),
    ]
    clock = Clock()
    monkeypatch.setattr(coordinator, "time", clock)
    queue = Overlooked()
    queue.look(instance)
    assert not queue._since, "a run worker looks once, when it begins"
    clock.now += 11
    queue.look(instance)
    assert reports(instance, overlooked) == 0, "it may be started again within the next seconds"
    clock.now += 31
    whole = instance.get_backfills
    monkeypatch.setattr(instance, "get_backfills", lambda **_: 1 / 0)
    queue.look(instance)
    assert reports(instance, overlooked) == 0, "no fault of a storage ends the queue's look"
    monkeypatch.setattr(instance, "get_backfills", whole)
    told = []
    for _ in range(80):
        clock.now += 10
        queue.look(instance)
        told.append((reports(instance, overlooked), reports(instance, of_none)))
    # After 41 seconds, then after another 60, 120 and 240, and every 300 from then on.
    assert [told.index((count, count)) for count in range(1, 6)] == [0, 6, 18, 42, 72]
    restarted = Overlooked()
    for _ in range(30):
        clock.now += 11
        restarted.look(instance)
    assert reports(instance, overlooked) == 6, "a daemon that starts again knows how often"
    assert [reports(instance, run) for run in others] == [0] * len(others)


@pytest.mark.parametrize(("config", "retries"), [("{}", 10_000), ("{max_user_code_failure_retries: 0}", 0)])
def test_a_run_waits_for_its_code_unless_the_queue_is_told_otherwise(
    tmp_path: Path, config: str, retries: int
) -> None:
    coordinator_of_ours = f"""
run_coordinator:
  module: migration_pipeline.defs.coordinator
  class: TaggingRunCoordinator
  config: {config}
"""
    (tmp_path / "dagster.yaml").write_text(STORAGE.format(folder=tmp_path) + coordinator_of_ours)
    with dg.DagsterInstance.from_config(str(tmp_path)) as made:
        queue = made.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_user_code_failure_retries == retries
