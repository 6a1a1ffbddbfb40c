"""`report`: one self-contained page about a run or a sweep."""

import argparse
import sys
from pathlib import Path
from typing import Any

from . import RESULTS


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "report", help="one self-contained page about a run or a sweep",
        description=(
            "Write report.html into the folder of a run, an arm or a sweep: what was asked and how it ended, curves, "
            "what the model wrote token by token, the entropy ledger, in one file that needs nothing beside it "
            "(docs/page.md)."
        ),
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN_FOLDER|SWEEP", help="a folder, a sweep's name, or its YAML")
    parser.add_argument("--results", **RESULTS)
    parser.set_defaults(run=run, named="folder", files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import report

    print(report.write(Path(options.folder), Path(options.results)))
    return 0


def print_page(folder: Path) -> None:
    """Write the page of the run or sweep in `folder`; or say why there is none, which is no failure
    of what ran."""
    from analysis import report
    from analysis.load import Missing

    try:
        print(f"page: {report.write(folder)}")
    except (Missing, OSError) as error:
        print(f"no page: {error}", file=sys.stderr)
