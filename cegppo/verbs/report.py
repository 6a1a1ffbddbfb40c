"""`report`: one self-contained page about a run."""

import argparse
from pathlib import Path
from typing import Any


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "report", help="one self-contained page about a run",
        description=(
            "Write RUN_FOLDER/report.html: curves, benchmarks, the entropy ledger and the configuration, in one "
            "file."
        ),
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN_FOLDER")
    parser.set_defaults(run=run, named="folder", files_alone=True)


def run(options: argparse.Namespace) -> int:
    from analysis import report

    print(report.write(Path(options.folder)))
    return 0
