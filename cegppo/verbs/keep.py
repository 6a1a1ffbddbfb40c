"""`keep`: pack the finished runs of a sweep."""

import argparse
from typing import Any

from . import RESULTS


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "keep", help="pack the finished runs of a sweep, without loss",
        description=(
            "Move config, meta, metrics and evaluations of a sweep's finished runs into one pack, "
            "<results>/<sweep>/runs.jsonl and parquet beside it, which figures, claims and sweeps read like the "
            "folders. Again with later seeds, it adds them. Checkpoints, tokens and completions stay."
        ),
    )  # fmt: skip
    parser.add_argument("sweep", metavar="SWEEP|FOLDER", help="a sweep's file, its name, or its folder of runs")
    parser.add_argument("--results", **RESULTS)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..record.keep import keep, sweep_folder

    for line in keep(sweep_folder(options.sweep, options.results)):
        print(line, flush=True)
    return 0
