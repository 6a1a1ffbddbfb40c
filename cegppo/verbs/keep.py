"""`keep`: pack the finished runs of a sweep."""

import argparse
from pathlib import Path
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

    for line in keep(sweep_folder(options.sweep, root_of(options.sweep, options.results))):
        print(line, flush=True)
    return 0


def root_of(sweep: str, results: str) -> str:
    """Where the runs of `sweep` are, unless the command line says: a sweep's file may name a root
    of its own."""
    from ..config import flatten
    from ..sweep.description import describe

    path = Path(sweep)
    if results != RESULTS["default"] or path.suffix != ".yaml" or not path.is_file():
        return results
    return str(flatten(describe(path).tree.get("common", {})).get("results", results))
