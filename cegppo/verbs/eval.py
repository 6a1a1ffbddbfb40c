"""`eval`: evaluate a run's checkpoint, a starting model, or saved texts."""

import argparse
from pathlib import Path
from typing import Any

from . import OVERRIDES


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "eval", help="evaluate a checkpoint of a run, or an experiment's starting model; grade saved generations",
        description=(
            "Evaluate on the configured benchmarks: avg@k, unbiased pass@k, maj@k, with intervals over problems. "
            "RUN evaluates its checkpoint and writes eval-<checkpoint>.jsonl into the run's folder; "
            "EXPERIMENT.yaml evaluates the model that training would start from and writes eval-base.jsonl into "
            "<results>/<experiment>/base. Completions are kept beside it, and the same command continues an "
            "evaluation that was stopped or killed. --completions FILE grades saved texts without a model and "
            "writes FILE.graded.jsonl."
        ),
        epilog=(
            "eval.benchmarks=[aime24,math500] takes them by name from experiments/benchmarks (math: the paper's "
            "five), with their own k, temperature, top-p and token limit unless eval.* says otherwise; "
            "[aime24=FILE] reads a local file."
        ),
    )  # fmt: skip
    parser.add_argument("target", metavar="RUN_FOLDER|EXPERIMENT.yaml", nargs="?")
    parser.add_argument(
        "--completions",
        metavar="FILE",
        help="JSONL, one problem a line: id, answer, completions (a list of texts); takes grader.* keys only",
    )
    parser.add_argument("overrides", **{**OVERRIDES, "help": "e.g. eval.k=32 eval.temperature=0.6"})
    parser.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="latest",
        metavar="latest|best|STEP",
        help="which checkpoint of a run (default: latest)",
    )
    parser.set_defaults(run=run, named="target")


def checkpoint_name(text: str) -> str:
    """latest, best or a step, for argparse."""
    if text not in ("latest", "best") and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is neither latest nor best nor a step")
    return text


def intervals(per_problem: dict) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over problems, by name of the estimate."""
    from analysis import stats

    return {name: stats.bootstrap_mean([values])[1:] for name, values in per_problem.items()}


def run(options: argparse.Namespace) -> int:
    from ..screen import print_eval, print_verdicts

    # argparse hands a target that follows an option to the overrides.
    words = [*([options.target] if options.target else []), *options.overrides]
    if options.completions:
        from ..problems import completions

        row, note, out = completions.grade_file(Path(options.completions), words, intervals)
        print_eval([row])
        print_verdicts(row["verdicts"])
        print(*filter(None, [note, str(out)]), sep="\n")
        return 0
    from .. import ranks
    from ..evaluate import evaluate_target

    writes = ranks.rank() == 0
    say = lambda text: print(text, flush=True) if writes else None
    rows, out = evaluate_target(Path(words[0]), words[1:], options.checkpoint, intervals, say)
    if writes:
        print_eval(rows)
        print(out)
    return 0
