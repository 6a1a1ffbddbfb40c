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
            "right so far. Nothing is trained."
        ),
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN_FOLDER")
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", help="wanted change of entropy at the end of such a run, nats: +0.1"
    )
    parser.add_argument("--results", **RESULTS)
    parser.set_defaults(run=run, named="folder", files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import advise

    try:
        target = None if options.target is None else float(options.target)
        if target is not None and not math.isfinite(target):
            raise ValueError
    except ValueError:
        print(f"error: advise: TARGET '{options.target}' is not a number of nats, e.g. +0.1", file=sys.stderr)
        return 2
    print(advise.text(Path(options.folder), Path(options.results), target))
    return 0
