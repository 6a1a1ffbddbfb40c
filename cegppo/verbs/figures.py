"""`figures`: figures and tables from recorded runs."""

import argparse
from pathlib import Path
from typing import Any

from . import RESULTS


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "figures", help="draw figures and tables from recorded runs",
        description=(
            "Each figure is a script in analysis/ that reads run folders only; drawn as SVG and PNG into "
            "<results>/figures. "
            "Numbers that README.md and docs/ quote between markers are written anew."
        ),
    )  # fmt: skip
    parser.add_argument("--results", **RESULTS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="which figures (default: all but the demo's)")
    parser.set_defaults(run=run, files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import draw

    return draw.figures(Path(options.results), options.only)
