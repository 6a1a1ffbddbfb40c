"""`advise`: what another β would do to a run's entropy."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from . import RESULTS


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "advise", help="what another β would do to a run's entropy, from its own ledger",
        description=(
            "Print the levers of a run, or of an arm with several seeds: what giving back the gradient outside the "
            "clip would do to its entropy, per unit of β₁ and β₂, by first order; the line of β along which entropy "
            "keeps its course; with TARGET the β that first order recommends; and how far such predictions were "
            "right so far. Nothing is trained, but with --measure: then the same is measured, by short forks of "
            "the run with other β from several of its checkpoints (in <run>/measured)."
        ),
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN_FOLDER")
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", help="wanted change of entropy at the end of such a run, nats: +0.1"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the forks of --measure")
    parser.add_argument("--measure", action="store_true", help="train forks with β and β ± δ, on common random numbers")
    parser.add_argument("--steps", type=int, default=10, metavar="K", help="steps of a fork (default: 10)")
    parser.add_argument("--delta", type=float, default=0.25, metavar="D", help="δ, in units of β (default: 0.25)")
    parser.add_argument(
        "--at",
        type=int,
        nargs="+",
        default=[],
        metavar="STEP",
        help="checkpoints (default: those there are, at most 6)",
    )
    parser.add_argument("--results", **RESULTS)
    parser.set_defaults(run=run, named="folder", files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import advise

    if options.target is not None and "=" in options.target:
        options.overrides, options.target = [options.target, *options.overrides], None
    if options.measure:
        return measured(options)
    if options.overrides:
        print(f"error: advise: '{options.overrides[0]}' is for the forks of --measure", file=sys.stderr)
        return 2
    try:
        target = None if options.target is None else float(options.target)
        if target is not None and not math.isfinite(target):
            raise ValueError
    except ValueError:
        print(f"error: advise: TARGET '{options.target}' is not a number of nats, e.g. +0.1", file=sys.stderr)
        return 2
    print(advise.text(Path(options.folder), Path(options.results), target))
    return 0


def measured(options: argparse.Namespace) -> int:
    """Run the forks, print the table and keep it as <run>/measured/<k>steps.csv."""
    from analysis import load
    from analysis import measured as table_of

    from .. import measure
    from ..screen import Screen
    from ..types import BadInput

    folder = Path(options.folder)
    if options.target is not None:
        raise BadInput("advise: TARGET goes with first order, not with --measure")
    if options.steps < 1 or not 0 < options.delta < math.inf:
        raise BadInput("advise: --steps must be at least 1 and --delta above 0")
    runs = [folder] if load.settings(folder) else sorted(folder.glob("seed*"))
    if not runs:
        raise BadInput(f"{folder}: no run there, and no runs of an arm (seed<k>)")
    points = []
    with Screen() as screen:
        for run in runs:
            points += measure.points(run, options.steps, options.delta, options.at, options.overrides, screen)
    try:
        made = table_of.table(points, options.steps)
    except load.Missing as error:
        raise BadInput(str(error)) from None
    path = folder / "measured" / f"{options.steps}steps.csv"
    path.parent.mkdir(exist_ok=True)
    made.to_csv(path, index=False)
    print(table_of.text(made, folder), f"table: {path}", sep="\n")
    return 0
