"""`list`: which runs there are."""

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "list", help="which runs there are: state, step, score, age",
        description=(
            "A line an arm of everything under FOLDER; a line a run where FOLDER is a sweep's, an arm's or a run's. "
            "Score: mean accuracy of the benchmarks at the last evaluation, mean over runs. Age: since the last one "
            "ended, or wrote. Silent: it says that it runs, and has written nothing for the time of ten steps."
        ),
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER", nargs="?", default="results", help="default: results")
    parser.set_defaults(run=run, files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import listing

    print(listing.text(Path(options.folder)))
    return 0
