"""`fork`: a new run from a checkpoint of another, with other settings."""

import argparse
import sys
from pathlib import Path
from typing import Any

from .train import trained


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "fork", help="a new run from a checkpoint of another, with other settings",
        description=(
            "Train on from a checkpoint of a recorded run with other settings: the same prompts, random streams, "
            "weights and optimizer state up to there. In a folder of its own beside the parent's "
            "(<arm>@<step>,<what differs>), with its origin in meta.json; the parent stays as it is. The same command "
            "continues a fork that was stopped. `compare` pairs forks of one parent."
        ),
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN_FOLDER")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="[step=N] key=value",
        help="the checkpoint's step (default: the newest; 0: the start), and what differs, e.g. loss.beta2=1 steps=80",
    )
    parser.set_defaults(run=run, named="folder")


def run(options: argparse.Namespace) -> int:
    from .. import ranks
    from ..evaluate import no_code_of_others
    from ..record import fork

    parent = Path(options.folder)
    with ranks.together():
        made, step = fork.config_of(parent, options.overrides)
        no_code_of_others(parent, made, options.overrides, trains=True)
        if ranks.rank() == 0:
            fork.prepare(parent, made, step)
    if ranks.rank() == 0:
        print(f"{made.folder}: {fork.said(made.folder)}", file=sys.stderr)
    return trained(made)
