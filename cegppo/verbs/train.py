"""`train`: train one run, or continue it."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import OVERRIDES
from .report import print_page


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
    parser.add_argument("experiment", metavar="EXPERIMENT.yaml", nargs="?")
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
    parser.add_argument(
        "--from",
        dest="source",
        metavar="RUN_FOLDER",
        help="instead of an experiment: run a recorded run again, from its record alone, in a folder of its own"
        " (again-<name>-<n> beside it), say what of code, versions and machine differs, and whether the same came out",
    )
    parser.set_defaults(run=run, named="experiment")


def run(options: argparse.Namespace) -> int:
    from .. import config, ranks
    from ..types import BadInput

    # argparse hands an experiment that follows an option to the overrides.
    words = [*([options.experiment] if options.experiment else []), *options.overrides]
    source = Path(options.source) if options.source else None
    if source is not None and (options.print_only or options.fresh):
        raise BadInput("train: --from takes neither --print nor --fresh: it begins in a folder of its own")
    with ranks.together():
        if source is None:
            resolved, origin = config.load(words[0], words[1:])
        else:
            from ..evaluate import no_code_of_others
            from ..record import again

            resolved = again.config_again(source, words)
            no_code_of_others(source, resolved, words, trains=True)
    if options.print_only:
        if ranks.rank() == 0:
            print(config.explain(resolved, origin))
        return 0
    if source is not None and ranks.rank() == 0:
        again.say_what_differs(source)
    if options.fresh:
        from ..record.aside import move_aside

        with ranks.together():
            moved = move_aside(resolved.folder) if ranks.rank() == 0 else None
        if moved:
            print(f"moved aside: {moved}", file=sys.stderr)
    return trained(resolved, (lambda: again.comparison(source, resolved.folder)) if source is not None else list)


def trained(resolved: Any, more: Callable[[], list[str]] = list) -> int:
    """Train or continue the run of configuration `resolved`, on every rank; the exit code. Lines of
    `more` are said before the last."""
    from .. import ranks
    from ..model.memory import OutOfMemory
    from ..screen import Screen
    from ..train import run_training
    from ..types import Diverged

    with Screen() as screen:
        try:
            status = run_training(resolved, screen)
        except Diverged as error:
            if ranks.rank() == 0:
                print(f"error: {resolved.folder}: {error}", file=sys.stderr)
            return 1
        except OutOfMemory as error:
            print(f"error: {resolved.folder}: {error}", file=sys.stderr, flush=True)
            if ranks.world() > 1:  # the others wait for this rank inside a pass: torchrun ends them
                os._exit(1)
            return 1
    code = 0 if status == "finished" else 130
    if ranks.rank() > 0:
        return code
    from analysis import ledger

    summary = ledger.of_run(resolved.folder, resolved.arm)
    if summary:
        print(summary)
    if lines := more():
        print(*lines, sep="\n")
    if resolved.report and status == "finished":
        print_page(resolved.folder)
    print(*last_lines(resolved, status), sep="\n")
    return code


def last_lines(resolved: Any, status: str) -> list[str]:
    """What became of the run, and what to type next."""
    from ..record.read import read_metrics

    folder = resolved.folder
    if status != "finished":
        rows = read_metrics(folder)
        return [
            f"{status}: {folder}, after step {rows[-1]['step'] if rows else 0} of {resolved.steps};"
            " the same command goes on"
        ]
    run = f"python {sys.argv[0]}" if sys.argv[0].endswith("run.py") else "cegppo"
    return [
        f"finished: {folder}",
        f"next: {run} report {folder}   (a page of it)",
        f"      {run} compare {folder.parent.parent}   (with the other runs there)",
        f"      {run} sample {folder}   (what it writes)",
    ]
