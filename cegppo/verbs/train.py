"""`train`: train one run, or continue it."""

import argparse
import sys
from typing import Any

from . import OVERRIDES


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "train", help="train one run, or continue it",
        description=(
            "Train the run that EXPERIMENT.yaml and the overrides describe, in "
            "results/<experiment>/<arm>/seed<k>. The same command continues a run that was stopped or killed. "
            "Ctrl-C stops after the step under way."
        ),
        epilog=(
            "Keys most used: method, loss.*, seed, steps, prompts_per_step, group_size, updates_per_step, "
            "update.lr, reward, eval_every, wandb.mode, results, run_dir. --print shows them all."
        ),
    )  # fmt: skip
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml")
    parser.add_argument("overrides", **OVERRIDES)
    parser.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="show the resolved configuration and where each value came from, then stop",
    )

    parser.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew in a folder that holds a run, which is moved aside (aside-<name>-<n>), never deleted",
    )
    parser.set_defaults(run=run, named="experiment")


def run(options: argparse.Namespace) -> int:
    from .. import config, ranks

    with ranks.together():
        resolved, origin = config.load(options.experiment, options.overrides)
    if options.print_only:
        if ranks.rank() == 0:
            print(config.explain(resolved, origin))
        return 0
    if options.fresh:
        from ..record.aside import move_aside

        with ranks.together():
            moved = move_aside(resolved.folder) if ranks.rank() == 0 else None
        if moved:
            print(f"moved aside: {moved}", file=sys.stderr)
    from ..screen import Screen
    from ..train import train
    from ..update import Diverged

    with Screen() as screen:
        try:
            status = train(resolved, screen)
        except Diverged as error:
            if ranks.rank() == 0:
                print(f"error: {resolved.folder}: {error}", file=sys.stderr)
            return 1
    code = 0 if status == "finished" else 130
    if ranks.rank() > 0:
        return code
    from analysis import ledger

    summary = ledger.of_run(resolved.folder, resolved.arm)
    if summary:
        print(summary)
    print(f"{status}: {resolved.folder}")
    return code
