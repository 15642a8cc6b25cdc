"""The reader of lines in C, held against the path in Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from migration_pipeline import Profile, accelerator, settings
from migration_pipeline.block import Block
from migration_pipeline.engine.transform import Transform
from migration_pipeline.errors import UsageError
from migration_pipeline.sources import dynamodb_json
from migration_pipeline_tests import fuzz_ion, fuzz_lines
from migration_pipeline_tests.conftest import accelerator_is_to_be_there, memory_kept

TOP = Path(__file__).parents[2]
SECONDS_OF_EACH_FUZZER = 30

pytestmark = pytest.mark.skipif(not accelerator_is_to_be_there(), reason="it is off, or there is no compiler")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_line_and_list_is_read_as_python_reads_it(seed: int) -> None:
    found = fuzz_lines.fuzz(seed, 4_000)
    assert sum(count for what, count in found.items() if what.startswith("understood")) > 400, found
    assert found[fuzz_lines.BAD] > 200


@pytest.mark.parametrize("lines", [[b""], [b"", b""], [b"", b"x", b""], [b'{"Item":{}}', b""]])
def test_empty_lines_of_a_block_are_lines(lines: list[bytes]) -> None:
    block = Block(b"\n".join(lines))
    assert (len(block), list(block), block[-1], block[:1]) == (len(lines), lines, lines[-1], lines[:1])
    outcome = Transform(fuzz_lines.profile, dynamodb_json)(block, 8)
    assert [bad.number for bad in outcome.bad] == [
        n for n, line in enumerate(lines, 8) if line != b'{"Item":{}}'
    ]


def test_a_block_s_lines_that_no_route_takes_never_become_objects() -> None:
    """Or a table of which few items are wanted costs as much as one of which all are."""
    line = b'{"Item":{"PK":{"S":"skipped"},"blob":{"S":"%s"}}}' % (b"x" * 50_000)
    profile = Profile("skipping")
    profile.ignore(PK="skipped", because="test")
    transform, block = Transform(profile, dynamodb_json), Block(b"\n".join([line] * 100))
    tracemalloc.start()
    try:
        assert transform(block).counts.skipped == {"test": 100}
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 50_000


def test_no_memory_is_lost() -> None:
    transform = Transform(fuzz_lines.profile, dynamodb_json)
    source = iter(fuzz_lines.Lines(7))
    lines = [next(source) for _ in range(300)]

    def work() -> None:
        for line in lines:
            transform([line])
        transform(Block(b"\n".join(lines)))

    # An object of a single line that is left behind each time would be as much.
    assert memory_kept(work, times=10, bound=10 * 64) < 10 * 64


def test_what_runs_is_told_and_can_be_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ACCELERATOR, "off")
    assert accelerator.described() == "accelerator off (MIGRATION_ACCELERATOR)"
    outcome = Transform(fuzz_lines.profile, dynamodb_json)([b'{"Item":{"PK":{"S":"P#1"}}}'])
    assert (outcome.counts.accelerated, outcome.counts.odd) == (0, {})
    monkeypatch.setenv(settings.ACCELERATOR, "required")
    outcome = Transform(fuzz_lines.profile, dynamodb_json)([b'{"Item":{"PK":{"S":"X#1"}}}'])
    assert (outcome.counts.accelerated, outcome.counts.odd) == (1, {})
    monkeypatch.setenv(settings.ACCELERATOR, "maybe")
    with pytest.raises(UsageError, match="expected auto, off or required"):
        accelerator.described()


def test_an_extension_of_another_day_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in accelerator.PARTS:
        assert accelerator.extension(name).INTERFACE == accelerator.INTERFACE
    monkeypatch.delenv(settings.ACCELERATOR, raising=False)
    monkeypatch.setattr(accelerator, "INTERFACE", 99)
    accelerator._imported.cache_clear()
    try:
        assert accelerator.described() == "not accelerated: the extensions in C are not built"
        assert accelerator.extension(accelerator.LINES) is None
    finally:
        accelerator._imported.cache_clear()


def test_a_wanted_extension_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.ACCELERATOR, "required")
    with pytest.raises(UsageError, match="is not built: install a C compiler"):
        accelerator.extension("migration_pipeline.sources._no_such_extension")


IN_AN_INTERPRETER_OF_ITS_OWN = """
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
for name, path in {places!r}.items():
    loader = ExtensionFileLoader(name, path)
    made = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(made)
    assert [each for each in dir(made) if not each.startswith("_")]
"""


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10's datetime has no C API in a second interpreter"
)
def test_the_extensions_load_in_several_interpreters_of_a_process() -> None:
    interpreters = pytest.importorskip(
        "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    )
    modules = (accelerator.extension(name) for name in (accelerator.LINES, accelerator.ROWS))
    places = {made.__name__: made.__file__ for made in modules if made}
    assert len(places) == 2
    for _ in range(3):
        one = interpreters.create()
        assert interpreters.run_string(one, IN_AN_INTERPRETER_OF_ITS_OWN.format(places=places)) is None
        interpreters.destroy(one)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A copy whose extensions watch over memory and undefined behaviour; gives the environment to run it in."""
    compiler = shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("the sanitizers are gcc's")
    libraries = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip("gcc has no sanitizers here")
    copy = tmp_path_factory.mktemp("sanitized")
    for name in ("migration_pipeline", "migration_pipeline_tests"):
        shutil.copytree(TOP / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(TOP / name, copy)
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=copy, env=os.environ | {"CFLAGS": flags, "LDFLAGS": flags}, check=True, capture_output=True,
    )  # fmt: skip
    assert len(list((copy / "migration_pipeline").rglob("*.so"))) == len(accelerator.PARTS)
    return {
        "LD_PRELOAD": " ".join(libraries),
        # The interpreter itself leaves memory behind at its end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(copy),
        settings.ACCELERATOR: "required",
    }


@pytest.mark.parametrize("fuzzer", ["fuzz_lines", "fuzz_ion", "fuzz_rows"])
def test_fuzzed_under_sanitizers(fuzzer: str, sanitized: dict[str, str]) -> None:
    if fuzzer == "fuzz_ion" and not fuzz_ion.ORACLE_IS_THERE:
        pytest.skip("amazon.ion is not installed")
    seconds = str(SECONDS_OF_EACH_FUZZER)
    arguments = [seconds, "1"] if fuzzer == "fuzz_rows" else ["--seconds", seconds, "--seed", "1"]
    done = subprocess.run(
        [sys.executable, "-m", f"migration_pipeline_tests.{fuzzer}", *arguments],
        cwd=sanitized["PYTHONPATH"], env=os.environ | sanitized, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-4_000:]
