"""`make chaos SEEDS=20`: all faults with many seeds, and a table of what became of the loads."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter

import click
from rich.progress import Progress
from rich.table import Table

from migration_pipeline.cli.terminal import console
from migration_pipeline_tests.chaos.faults import FAULTS
from migration_pipeline_tests.chaos.lab import lab
from migration_pipeline_tests.chaos.window_faults import WINDOW_FAULTS, case_of, strike

EVERY = (*FAULTS, *WINDOW_FAULTS)
COLUMNS = ("survived", "rerun", "lost", "duplicated", "brought back", "wrong")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--seeds", type=click.IntRange(1), default=20, show_default=True, help="Runs a fault.")
@click.option("--first-seed", default=1, show_default=True)
@click.option("--fault", "names", multiple=True, type=click.Choice(EVERY), help="Only this one; repeatable.")
def main(seeds: int, first_seed: int, names: tuple[str, ...]) -> None:
    """Load an export, and windows, under each fault, with each seed; compare the end state with a faultless load's.

    --fault NAME --seeds 1 --first-seed SEED replays one that went wrong.
    """
    out = console()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # moto's server tells of each request
    table = Table("fault", "runs", *COLUMNS, box=None, header_style="bold")
    wrong_ones = []
    with lab() as a_lab, Progress(console=out, transient=True, disable=not out.is_terminal) as bar:
        chosen = names or EVERY
        task = bar.add_task("", total=len(chosen) * seeds)
        for name in chosen:
            counts = Counter[str]()
            for seed in range(first_seed, first_seed + seeds):
                bar.update(task, description=f"{name}, seed {seed}", advance=1)
                case = case_of(a_lab, name, seed)
                try:
                    strike(name, case)
                    verdict = case.verdict()
                except Exception:
                    wrong_ones.append(f"{name}, seed {seed}: {traceback.format_exc()}")
                    counts["wrong"] += 1
                else:
                    counts["survived" if verdict.survived else "rerun"] += 1
                    counts["lost"] += verdict.lost
                    counts["duplicated"] += verdict.duplicated
                    counts["brought back"] += verdict.brought_back
                    if not verdict.right:
                        wrong_ones.append(f"{name}, seed {seed}: {verdict}")
                        counts["wrong"] += 1
                finally:
                    case.close()
            table.add_row(name.replace("_", " "), str(seeds), *(str(counts[column]) for column in COLUMNS))
    out.print(table)
    for one in wrong_ones:
        out.print(one, soft_wrap=True, markup=False)
    sys.exit(1 if wrong_ones else 0)


if __name__ == "__main__":
    main()
