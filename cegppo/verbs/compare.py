"""`compare`: a table, paired differences and the figure of any runs."""

import argparse
from pathlib import Path
from typing import Any

from . import RESULTS


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "compare", help="a table, paired differences and the figure of any runs",
        description=(
            "Compare the arms of a sweep, or single runs: entropy, accuracy, clip shares, levers, length, and paired "
            "differences to the first arm with 95 % t intervals and Holm's correction. Printed, and written to "
            "<results>/figures/compare_* as Markdown, CSV, LaTeX and a figure."
        ),
    )  # fmt: skip
    parser.add_argument(
        "what", metavar="SWEEP|RUN_FOLDER", nargs="+", help="a sweep's file, name or folder; folders of runs or of arms"
    )
    parser.add_argument("--to", metavar="ARM", help="the arm that others are compared with (default: the first)")
    parser.add_argument("--results", **RESULTS)
    parser.set_defaults(run=run, files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import compare

    print(compare.text(options.what, Path(options.results), options.to))
    return 0
