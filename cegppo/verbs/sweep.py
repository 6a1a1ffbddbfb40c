"""`sweep`: arms × seeds of a sweep side by side, or a search."""

import argparse
import sys
from pathlib import Path
from typing import Any

from . import OVERRIDES
from .report import print_page


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "sweep", help="run the arms × seeds of a sweep side by side, or a search",
        description=(
            "Run every arm and seed of SWEEP.yaml that is not finished, side by side, on this machine, a Ray "
            "cluster or Slurm (sweep.launcher). A file with `space` is a search with Optuna. Interrupted or "
            "killed, the same command goes on."
        ),
    )  # fmt: skip
    parser.add_argument("sweep", metavar="SWEEP.yaml")
    parser.add_argument(
        "overrides",
        **{
            **OVERRIDES,
            "help": (
                "for every arm, e.g. steps=40; sweep.workers=2, sweep.seeds=[0,1], sweep.launcher=ray for the sweep"
            ),
        },
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and stop")
    parser.set_defaults(run=run, named="sweep")


def run(options: argparse.Namespace) -> int:
    from ..screen import SweepScreen
    from ..sweep import command

    if options.dry_run:
        print(command.plan(options.sweep, options.overrides))
        return 0
    return command.run(options.sweep, options.overrides, SweepScreen(), print_comparison)


def print_comparison(name: str, folders: list[Path]) -> None:
    """What came out of a sweep's runs; or why that cannot be said, which is no failure of the
    sweep."""
    from analysis import compare, load
    from analysis.load import Missing

    order = list(dict.fromkeys(folder.parent.name for folder in folders))
    try:
        print(compare.write(compare.compared(folders, folders[0].parent.parent.parent, order, name=name)))
    except (Missing, OSError) as error:
        print(f"no comparison: {error}", file=sys.stderr)
    if all(load.settings(folder).get("report") for folder in folders):
        print_page(folders[0].parent.parent)
