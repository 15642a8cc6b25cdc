"""What people see: states in words, how far a file is, lines in a pipe, the choice of files."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from migration_pipeline.cli import main, terminal
from migration_pipeline.cli.terminal import (
    Which,
    console,
    count_states,
    downstream_table,
    how_far,
    patiently,
    print_status,
    status_table,
)
from migration_pipeline.cli.watch import _Board
from migration_pipeline.errors import UsageError
from migration_pipeline.migration.names import FileProgress
from migration_pipeline.migration.plan import FORMAT, Plan, PlannedFile
from migration_pipeline.migration.verdicts import Left
from migration_pipeline.operations.backfills import Backfill
from migration_pipeline.operations.downstream import AssetStatus
from migration_pipeline.operations.files import FileStatus, tell_queued
from migration_pipeline.operations.running import RunningFile, _RunLog
from migration_pipeline.operations.runs import LogLine, Run, one_file
from migration_pipeline.operations.status import status_json
from migration_pipeline.sources.export import ExportFile


def planned(name: str, items: int = 1_000) -> PlannedFile:
    file = ExportFile(uri=f"s3://b/{name}.json.gz", name=f"{name}.json.gz", items=items, md5="x", size=10)
    return PlannedFile(f"export_{name}", "export", file)


def plan_of(*names: str) -> Plan:
    return Plan(FORMAT, "shop", "shop", (), tuple(map(planned, names)))


def status(file: PlannedFile, state: str, **more: object) -> FileStatus:
    return FileStatus(partition=file.partition, file=file.file, state=state, **more)  # type: ignore[arg-type]


# -- which files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ab", ["abcd", "abxy"]),
        ("abcd.json.gz", ["abcd"]),
        ("export_zz", ["zz"]),
        ("*y.json.gz", ["abxy"]),
        ("ab?d.json.gz", ["abcd"]),
        ("export", ["abcd", "abxy", "zz"]),
    ],
)
def test_files_are_found_by_a_part_or_a_pattern(text: str, found: list[str]) -> None:
    names = [file.file.name.removesuffix(".json.gz") for file in plan_of("abcd", "abxy", "zz").matching(text)]
    assert names == found


@pytest.mark.parametrize("text", ["nothing", "AB", "cd*", "zz.json"])
def test_a_part_of_no_file_is_a_mistake(text: str) -> None:
    with pytest.raises(UsageError, match="no file in the plan of shop"):
        plan_of("abcd", "abxy").matching(text)


def test_one_file_is_one() -> None:
    plan = plan_of("ab", "abcd", "abxy")
    assert one_file(plan, "abc").file.name == "abcd.json.gz"
    assert one_file(plan, "ab.json.gz").file.name == "ab.json.gz"
    with pytest.raises(UsageError, match=r"part of the names of 3 files: ab\.json\.gz, abcd\.json\.gz"):
        one_file(plan, "ab")


# -- what a run's log tells --------------------------------------------------------------------------


def said(when: float, file: str, items: int = 0, speed: int = 0, retries: int = 0) -> LogLine:
    """An observation as a run makes it of a file."""
    told = FileProgress(
        file=file,
        percent=items / 10,
        items_read=items,
        items_per_second=speed,
        seconds_left=0,
        retries=retries,
    )
    return LogLine(when, "DEBUG", "in words", "ObservationEvent", msgspec.to_builtins(told))


def recorded(when: float, partition: str) -> LogLine:
    return LogLine(when, "DEBUG", "", "MaterializationEvent", partition=partition)


def test_a_run_of_many_files_is_loading_the_one_after_those_that_are_recorded() -> None:
    a, b, c = files = [planned(name) for name in "abc"]
    run = Run(id="r", status="STARTED", partitions=tuple(f.partition for f in files), started=5.0)
    log = _RunLog(run, files)
    assert (log.current.planned, log.current.started) == (a, 5.0), "even if it has not said so yet"
    for event in (
        LogLine(10.0, "INFO", "c.json.gz: 90%, 900 of 1,000 items, 50 items/s", "LogMessageEvent"),
        said(12.0, "a.json.gz", 500, 250),
        said(13.0, "a.json.gz", 500, 250, retries=1),
        said(14.0, "other.json.gz", 900, 50),
    ):
        log._take(event)
    assert (log.current.planned, log.current.items, log.current.retries) == (a, 500, 1)
    assert (log.current.started, log.current.heard) == (5.0, 14.0)
    for event in (
        recorded(15.0, a.partition),
        recorded(15.5, a.partition),  # of another table
        said(16.0, "b.json.gz", 100, 50),
        LogLine(18.0, "DEBUG", "", "ObservationEvent", {"items": 3}),
    ):
        log._take(event)
    assert (log.current.planned, log.current.items, log.current.items_per_second) == (b, 100, 50.0)
    assert (log.current.retries, log.current.started, log.current.heard) == (0, 15.0, 18.0)
    log._take(said(19.0, "c.json.gz"))  # b has failed
    assert (log.current.planned, log.current.items) == (c, 0)
    for number, each in enumerate(files):
        log._take(recorded(20.0 + number, each.partition))  # once more, at the end of the run
    assert (log.current.planned, log.current.started, log.current.heard) == (c, 19.0, 22.0)


def test_files_that_no_worker_loads_are_queued() -> None:
    a, b, c = map(planned, ("a", "b", "c"))
    files = [status(a, "running"), status(b, "running"), status(c, "failed")]
    tell_queued(files, [RunningFile(planned=a, run_id="r", started=0.0)])
    assert [file.state for file in files] == ["running", "queued", "failed"]


# -- words and numbers -------------------------------------------------------------------------------


def test_states_are_counted_in_words() -> None:
    files = [
        status(planned(str(n)), s)
        for n, s in enumerate(("materialized", "failed", "queued", "running", "failed"))
    ]
    assert count_states(files) == "1 of 5 files materialized, 2 failed, 1 running, 1 queued"


def test_how_far_a_file_is() -> None:
    file = RunningFile(planned=planned("a"), run_id="r", started=0.0)
    assert how_far(file) == "started"
    file.items, file.items_per_second, file.retries = 250, 10.0, 2
    assert how_far(file) == "25%, 10 items/s, 1:15 left, 2 retries"


def test_an_error_with_brackets_is_shown_as_it_is() -> None:
    out = io.StringIO()
    file = status(planned("a"), "failed", error="index [/red] of [bold]table[/bold]")
    asset = AssetStatus(name="finishing", key=["shop", "finishing"], state="failed", error=file.error)
    for table in (status_table([file]), downstream_table([asset])):
        Console(file=out, width=200).print(table)
    assert out.getvalue().count("index [/red] of [bold]table[/bold]") == 2


def test_in_a_pipe_a_line_comes_with_each_change() -> None:
    out = io.StringIO()
    a, b = planned("a"), planned("b")
    with _Board(Console(file=out, width=200), 2_000) as board:
        for states in (
            ("running", "queued"),
            ("running", "queued"),
            ("materialized", "running"),
            ("materialized", "failed"),
        ):
            files = [status(a, states[0]), status(b, states[1])]
            board.show(files, [RunningFile(planned=a, run_id="r", started=0.0, items=10)], over=False)
            assert board.newly_failed(files) == [], "told at the end"
    lines = [re.sub(r", [\d:]+ left$", "", line[10:]) for line in out.getvalue().splitlines()]
    assert lines == [
        "0 of 2 files materialized, 1 running, 1 queued, 0 of 2,000 items (10 more in running files)",
        "1 of 2 files materialized, 1 running, 1,000 of 2,000 items",
        "1 of 2 files materialized, 1 failed, 1,000 of 2,000 items",
    ]


def test_once_the_files_are_there_what_is_made_of_them_tells_how_far_it_is() -> None:
    files = [status(planned("a"), "materialized")]
    for on_terminal in (False, True):
        out = io.StringIO()
        with _Board(Console(file=out, width=200, force_terminal=on_terminal), 1_000) as board:
            for making in ("", "t: started", "t: 1 of 2 parts, 5 rows", "t: 1 of 2 parts, 5 rows"):
                board.show(files, [], over=False, making=making)
        assert "t: 1 of 2 parts, 5 rows" in out.getvalue()
        if not on_terminal:
            assert [line[10:] for line in out.getvalue().splitlines()] == [
                "1 of 1 file materialized, 1,000 of 1,000 items", "t: started", "t: 1 of 2 parts, 5 rows",
            ]  # fmt: skip


def test_the_json_counts_every_state_and_names_no_more_than_there_is() -> None:
    plan = plan_of("a", "b")
    files = [
        status(
            plan.files[0],
            "materialized",
            run_id="r",
            metadata={"rows_by_table": {"t": 3, "u": 4}, "quarantined": 1},
        ),
        status(plan.files[1], "running"),
    ]
    loading = RunningFile(planned=plan.files[1], run_id="s", started=1.0, items=500, items_per_second=100.0)
    backfill = Backfill(id="x", status="REQUESTED")
    left = Left(quarantined=1, unrouted={"SK=CART#…": 5}, may_quarantine=1)
    document = json.loads(status_json(plan, files, [loading], [backfill], [], left))
    assert (document["items_quarantined"], document["items_unrouted"]) == (1, 5)
    assert document["unrouted_by_keys"] == {"SK=CART#…": 5}
    for items, complete in ((left, False), (msgspec.structs.replace(left, unrouted={}), True)):
        of_one = json.loads(status_json(plan, files[:1], [], [], [], items))
        assert of_one["complete"] == complete
    assert document["complete"] is False
    assert document["files_by_state"] == {
        "materialized": 1, "failed": 0, "stopped": 0, "running": 1, "queued": 0, "launched": 0, "missing": 0
    }  # fmt: skip
    assert (document["items"], document["items_materialized"], document["items_read_by_running_files"]) == (
        2000,
        1000,
        500,
    )
    done, now = document["by_file"]
    assert (done["rows"], done["quarantined"], done["progress"], done["error"]) == (7, 1, None, None)
    assert (now["rows"], now["run_id"], now["progress"]["seconds_left"]) == (None, "s", 5.0)
    assert document["newest_backfill"]["id"] == "x"


def test_a_piped_table_is_not_padded(capsys: pytest.CaptureFixture[str]) -> None:
    files = [status(planned("a"), "failed", error="long " * 30), status(planned("b"), "missing")]
    console().print(status_table(files))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(line == line.rstrip() for line in lines)
    assert len(lines[2]) < 60 < len(lines[1])


def listed(files: list[FileStatus], which: Which = "some") -> list[str]:
    out = io.StringIO()
    print_status(Console(file=out, width=200), files, which=which)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_of_many_files_those_that_somebody_has_to_look_at_are_listed() -> None:
    states = ["materialized"] * 150 + ["running", "queued", "failed", "stopped", "missing"]
    files = [status(planned(f"f{number}"), state) for number, state in enumerate(states)]
    header, *lines, rest = listed(files)
    assert header.split() == ["file", "state", "items", "rows", "run", "note"]
    assert [line.split()[:2] for line in lines] == [
        ["f152.json.gz", "failed"], ["f153.json.gz", "stopped"], ["f150.json.gz", "running"]
    ]  # fmt: skip
    assert rest == "152 more files: 150 materialized, 1 queued, 1 missing (--all lists them)"
    assert [line.split()[0] for line in listed(files, "failed")[1:]] == ["f152.json.gz", "f153.json.gz"]
    assert len(listed(files, "all")) == 1 + 155
    assert listed(files[:150]) == ["150 files: 150 materialized (--all lists them)"]


def test_few_files_are_listed_in_load_order_and_hundreds_of_failed_ones_are_counted() -> None:
    few = [status(planned(f"f{number:02}"), "materialized") for number in range(39)]
    few.append(status(planned("last"), "failed"))
    assert [line.split()[0] for line in listed(few)[1:]] == [file.file.name for file in few]
    *lines, rest = listed([status(planned(f"f{number}"), "failed") for number in range(300)])
    assert len(lines) == 1 + 40
    assert rest == "260 more files: 260 failed (--failed lists what failed, --all lists them)"


def test_a_step_that_takes_long_is_told_and_a_short_one_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "PATIENCE_SECONDS", 0.05)
    with pytest.raises(UsageError), patiently("looking"):
        raise UsageError("at once")
    assert capsys.readouterr() == ("", "")
    with patiently("looking"):
        time.sleep(0.3)
    out, err = capsys.readouterr()
    assert (out, re.sub(r"^[\d:]+", "", err)) == ("", "  looking …\n")


def test_files_wait_until_they_are_queued_and_are_missing_only_afterwards() -> None:
    files = [status(planned("a"), "missing")]
    for over, word in ((False, "waiting"), (True, "missing")):
        text = io.StringIO()
        with _Board(Console(file=text, width=200), 1_000) as board:
            board.show(files, [], over=over)
        assert f"0 of 1 file materialized, 1 {word}, 0 of 1,000 items" in text.getvalue()


# -- calls that cannot work --------------------------------------------------------------------------


@pytest.fixture
def planned_sample(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["sample", str(tmp_path), "--items", "50", "--files", "2"])
    export = run.output.partition(": ")[2].strip()
    assert CliRunner().invoke(main, ["plan", "--profile", "shop", export]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["metrics"], 2, "no plan yet"),
        (["metrics", "shop"], 2, "no plan; make one with"),
        (["report", "shop"], 2, "no plan; make one with"),
        (["status", "shop", "--json", "--watch"], 2, "cannot be combined"),
        (["status", "shop", "--failed", "--json"], 2, "--failed cannot be combined"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, len(result.output.splitlines())) == (code, 1)
    assert message in result.output


@pytest.mark.usefixtures("planned_sample")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["backfill", "shop", "--only", "nothing"], 2, "no file in the plan of shop is named like nothing"),
        (["logs", "shop", "nothing"], 2, "no file in the plan of shop is named like nothing"),
        (["logs", "shop", "json"], 2, "is part of the names of 2 files"),
        (["stop", "shop"], 1, "no Dagster at"),
        (["report", "shop"], 1, "no database: "),
    ],
)
def test_what_cannot_be_done_says_why(
    arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIGRATION_DAGSTER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("MIGRATION_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, result.output
    assert message in result.output
    assert len(result.output.splitlines()) == 1


@pytest.mark.usefixtures("planned_sample")
def test_a_report_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("migration_pipeline.operations.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "altair", None)
    result = CliRunner().invoke(main, ["report", "shop"])
    assert result.exit_code == 2
    assert "pip install 'migration-pipeline[report]'" in result.output
