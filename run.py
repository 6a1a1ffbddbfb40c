#!/usr/bin/env python
"""The front door: train, evaluate, sweep, draw, keep, report, advise. `python run.py VERB --help`
says what a verb takes."""

import argparse
import difflib
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="run.py",
        description="Policy entropy in reinforcement learning of language models: train, measure, compare.",
        epilog=(
            "Start here:  python run.py train experiments/testbed.yaml method=cegppo loss.beta1=0.5 loss.beta2=1.0"
            " seed=0"
        ),
    )
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    overrides: dict[str, Any] = dict(
        nargs="*", metavar="key=value", help="any key of the configuration, e.g. method=grpo seed=1 update.lr=3e-5"
    )
    results: dict[str, Any] = dict(
        default="results", metavar="DIR", help="the root of the run folders (default: results)"
    )

    train = verbs.add_parser(
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
    train.add_argument("experiment", metavar="EXPERIMENT.yaml", nargs="?")
    train.add_argument("overrides", **overrides)
    train.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="show the resolved configuration and where each value came from, then stop",
    )

    train.add_argument(
        "--fresh",
        action="store_true",
        help="begin anew in a folder that holds a run, which is moved aside (aside-<name>-<n>), never deleted",
    )

    train.add_argument(
        "--from",
        dest="source",
        metavar="RUN_FOLDER",
        help="instead of an experiment: run a recorded run again, from its record alone, in a folder of its own"
        " (again-<name>-<n> beside it), say what of code, versions and machine differs, and whether the same came out",
    )

    evaluate = verbs.add_parser(
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
    evaluate.add_argument("target", metavar="RUN_FOLDER|EXPERIMENT.yaml", nargs="?")
    evaluate.add_argument(
        "--completions",
        metavar="FILE",
        help="JSONL, one problem a line: id, answer, completions (a list of texts); takes grader.* keys only",
    )
    evaluate.add_argument("overrides", **{**overrides, "help": "e.g. eval.k=32 eval.temperature=0.6"})
    evaluate.add_argument(
        "--checkpoint",
        type=checkpoint_name,
        default="latest",
        metavar="latest|best|STEP",
        help="which checkpoint of a run (default: latest)",
    )

    sweep = verbs.add_parser(
        "sweep", help="run the arms × seeds of a sweep side by side, or a search",
        description=(
            "Run every arm and seed of SWEEP.yaml that is not finished, side by side, on this machine, a Ray "
            "cluster or Slurm (sweep.launcher). A file with `space` is a search with Optuna. Interrupted or "
            "killed, the same command goes on."
        ),
    )  # fmt: skip
    sweep.add_argument("sweep", metavar="SWEEP.yaml")
    sweep.add_argument(
        "overrides",
        **{
            **overrides,
            "help": (
                "for every arm, e.g. steps=40; sweep.workers=2, sweep.seeds=[0,1], sweep.launcher=ray for the sweep"
            ),
        },
    )
    sweep.add_argument("--dry-run", action="store_true", help="list the runs and stop")

    figures = verbs.add_parser(
        "figures", help="draw figures and tables from recorded runs",
        description=(
            "Each figure is a script in analysis/ that reads run folders only; drawn as SVG and PNG into "
            "<results>/figures. "
            "Numbers that README.md and docs/ quote between markers are written anew."
        ),
    )  # fmt: skip
    figures.add_argument("--results", **results)
    figures.add_argument("--only", nargs="+", metavar="NAME", help="which figures (default: all but the demo's)")

    compare = verbs.add_parser(
        "compare", help="a table, paired differences and the figure of any runs",
        description=(
            "Compare the arms of a sweep, or single runs: entropy, accuracy, clip shares, levers, length, and paired "
            "differences to the first arm with 95 % t intervals and Holm's correction. Printed, and written to "
            "<results>/figures/compare_* as Markdown, CSV, LaTeX and a figure."
        ),
    )  # fmt: skip
    compare.add_argument(
        "what", metavar="SWEEP|RUN_FOLDER", nargs="+", help="a sweep's file, name or folder; folders of runs or of arms"
    )
    compare.add_argument("--to", metavar="ARM", help="the arm that others are compared with (default: the first)")
    compare.add_argument("--results", **results)

    listing = verbs.add_parser(
        "list", help="which runs there are: state, step, score, age",
        description=(
            "A line an arm of everything under FOLDER; a line a run where FOLDER is a sweep's, an arm's or a run's. "
            "Score: mean accuracy of the benchmarks at the last evaluation, mean over runs. Age: since the last one "
            "ended, or wrote. Silent: it says that it runs, and has written nothing for the time of ten steps."
        ),
    )  # fmt: skip
    listing.add_argument("folder", metavar="FOLDER", nargs="?", default="results", help="default: results")

    diff = verbs.add_parser(
        "diff", help="what differs between two configurations",
        description="Print the keys in which two runs, arms or experiments differ, with the values of both.",
    )  # fmt: skip
    for name in ("A", "B"):
        diff.add_argument(name.lower(), metavar=name, help="RUN_FOLDER or EXPERIMENT.yaml")

    keep = verbs.add_parser(
        "keep", help="pack the finished runs of a sweep, without loss",
        description=(
            "Move config, meta, metrics and evaluations of a sweep's finished runs into one pack, "
            "<results>/<sweep>/runs.jsonl and parquet beside it, which figures, claims and sweeps read like the "
            "folders. Again with later seeds, it adds them. Checkpoints, tokens and completions stay."
        ),
    )  # fmt: skip
    keep.add_argument("sweep", metavar="SWEEP|FOLDER", help="a sweep's file, its name, or its folder of runs")
    keep.add_argument("--results", **results)

    report = verbs.add_parser(
        "report", help="one self-contained page about a run or a sweep",
        description=(
            "Write report.html into the folder of a run, an arm or a sweep: what was asked and how it ended, curves, "
            "what the model wrote token by token, the entropy ledger, in one file that needs nothing beside it "
            "(docs/page.md)."
        ),
    )  # fmt: skip
    report.add_argument("folder", metavar="RUN_FOLDER|SWEEP", help="a folder, a sweep's name, or its YAML")
    report.add_argument("--results", **results)

    advise = verbs.add_parser(
        "advise", help="what another β would do to a run's entropy, from its own ledger",
        description=(
            "Print the levers of a run, or of an arm with several seeds: what giving back the gradient outside the "
            "clip would do to its entropy, per unit of β₁ and β₂, by first order; the line of β along which entropy "
            "keeps its course; with TARGET the β that first order recommends; and how far such predictions were "
            "right so far. Nothing is trained."
        ),
    )  # fmt: skip
    advise.add_argument("folder", metavar="RUN_FOLDER")
    advise.add_argument(
        "target", metavar="TARGET", nargs="?", help="wanted change of entropy at the end of such a run, nats: +0.1"
    )
    advise.add_argument("--results", **results)
    return root


def checkpoint_name(text: str) -> str:
    """latest, best or a step, for argparse."""
    if text not in ("latest", "best") and not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"'{text}' is neither latest nor best nor a step")
    return text


def main(arguments: list[str] | None = None) -> int:
    options, rest = parser().parse_known_args(arguments)
    strange = [item for item in rest if item.startswith("-") or not hasattr(options, "overrides")]
    if strange:
        parser().error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:  # argparse gives up on key=value items that follow an option
        options.overrides += rest
    missing = what_is_missing(options)
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    if options.verb in FILES_ALONE:  # they read files only, and do without torch
        from analysis.load import Missing

        try:
            return VERBS[options.verb](options)
        except Missing as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            return disk(error)
    from cegppo import ranks
    from cegppo.types import BadInput

    say = lambda text: print(text, file=sys.stderr) if ranks.rank() == 0 else None
    try:
        ranks.join()
        if ranks.world() > 1 and options.verb not in ("train", "eval"):
            raise BadInput(f"torchrun: '{options.verb}' runs in one process; only train and eval run in several")
        code = VERBS[options.verb](options)
    except BadInput as error:
        if ranks.rank() == 0 or not error.shared:
            print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        return disk(error)
    except KeyboardInterrupt:
        say("interrupted; the same command continues from the last checkpoint")
        return 130
    ranks.leave()
    return code


def disk(error: OSError) -> int:
    """A line about a file or a disk that fails, and exit code 1. An error that says nothing of
    either, and a reader that has gone, are none of these."""
    if error.errno is None or isinstance(error, BrokenPipeError):
        raise error
    where = f"{error.filename}: " if error.filename else ""
    print(f"error: {where}{error.strerror}; what was recorded before is whole", file=sys.stderr)
    return 1


def what_is_missing(options: argparse.Namespace) -> str | None:
    """What the command line names and is not there, before anything slow is imported."""
    name = {"train": "experiment", "sweep": "sweep", "report": "folder", "advise": "folder", "eval": "target"}.get(
        options.verb
    )
    if name is None or options.verb == "eval" and options.completions:
        return None
    given = getattr(options, "source", None) or getattr(options, name) or next(iter(options.overrides), None)
    if given is None and options.verb == "train":
        return "train: name an experiment, or --from RUN_FOLDER"
    if given is None:
        return "eval: name a run's folder, an experiment, or --completions FILE"
    path = Path(given)
    if options.verb == "report" and (Path(options.results) / given).is_dir():  # a sweep by its name
        return None
    # A run of a pack has no folder of its own: its sweep's folder has.
    if path.exists() or any((parent / "runs.jsonl").is_file() for parent in list(path.parents)[:3]):
        return None
    kind = "file" if path.suffix == ".yaml" else "folder"
    beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
    siblings = sorted(p.name for p in beside if kind == "folder" or p.suffix == ".yaml")
    close = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    there = f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(siblings)}" if siblings else ""
    return f"{path}: no such {kind}{there}"


def verb_train(options: argparse.Namespace) -> int:
    from cegppo import config, ranks

    # argparse hands an experiment that follows an option to the overrides.
    words = [*([options.experiment] if options.experiment else []), *options.overrides]
    source = Path(options.source) if options.source else None
    if source is not None and (options.print_only or options.fresh):
        from cegppo.types import BadInput

        raise BadInput("train: --from takes neither --print nor --fresh: it begins in a folder of its own")
    with ranks.together():
        if source is None:
            resolved, origin = config.load(words[0], words[1:])
        else:
            from cegppo.record import again

            resolved = again.config_again(source, words)
    if options.print_only:
        if ranks.rank() == 0:
            print(config.explain(resolved, origin))
        return 0
    if source is not None and ranks.rank() == 0:
        again.say_what_differs(source)
    if options.fresh:
        from cegppo.record.aside import move_aside

        with ranks.together():
            moved = move_aside(resolved.folder) if ranks.rank() == 0 else None
        if moved:
            print(f"moved aside: {moved}", file=sys.stderr)
    from cegppo.model.memory import OutOfMemory
    from cegppo.screen import Screen
    from cegppo.train import train
    from cegppo.update import Diverged

    with Screen() as screen:
        try:
            status = train(resolved, screen)
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
    if source is not None:
        print(*again.comparison(source, resolved.folder), sep="\n")
    if resolved.report and status == "finished":
        print_page(resolved.folder)
    print(f"{status}: {resolved.folder}")
    return code


def print_page(folder: Path) -> None:
    """Write the page of the run or sweep in `folder`; or say why there is none, which is no failure
    of what ran."""
    from analysis import report
    from analysis.load import Missing

    try:
        print(f"page: {report.write(folder)}")
    except (Missing, OSError) as error:
        print(f"no page: {error}", file=sys.stderr)


def intervals(per_problem: dict) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over problems, by name of the estimate."""
    from analysis import stats

    return {name: stats.bootstrap_mean([values])[1:] for name, values in per_problem.items()}


def verb_eval(options: argparse.Namespace) -> int:
    from cegppo.screen import print_eval, print_verdicts

    # argparse hands a target that follows an option to the overrides.
    words = [*([options.target] if options.target else []), *options.overrides]
    if options.completions:
        from cegppo.problems import completions

        row, note, out = completions.grade_file(Path(options.completions), words, intervals)
        print_eval([row])
        print_verdicts(row["verdicts"])
        print(*filter(None, [note, str(out)]), sep="\n")
        return 0
    from cegppo import ranks
    from cegppo.evaluate import evaluate_target

    writes = ranks.rank() == 0
    say = lambda text: print(text, flush=True) if writes else None
    rows, out = evaluate_target(Path(words[0]), words[1:], options.checkpoint, intervals, say)
    if writes:
        print_eval(rows)
        print(out)
    return 0


def verb_sweep(options: argparse.Namespace) -> int:
    from cegppo.screen import SweepScreen
    from cegppo.sweep import command

    if options.dry_run:
        print(command.plan(options.sweep, options.overrides))
        return 0
    return command.run(options.sweep, options.overrides, SweepScreen(), print_comparison)


def print_comparison(name: str, folders: list[Path]) -> None:
    """What came out of a sweep's runs; or why that cannot be said, which is no failure of the
    sweep."""
    from analysis import compare, load
    from analysis.load import Missing

    order = list(dict.fromkeys(folder.parent.name for folder in folders))
    try:
        print(compare.write(compare.compared(folders, folders[0].parent.parent.parent, order, name=name)))
    except (Missing, OSError) as error:
        print(f"no comparison: {error}", file=sys.stderr)
    if all(load.settings(folder).get("report") for folder in folders):
        print_page(folders[0].parent.parent)


def verb_figures(options: argparse.Namespace) -> int:
    from analysis import draw

    return draw.figures(Path(options.results), options.only)


def verb_compare(options: argparse.Namespace) -> int:
    from analysis import compare

    print(compare.text(options.what, Path(options.results), options.to))
    return 0


def verb_list(options: argparse.Namespace) -> int:
    from analysis import listing

    print(listing.text(Path(options.folder)))
    return 0


def verb_diff(options: argparse.Namespace) -> int:
    from analysis import listing
    from analysis.load import Missing

    def settings(name: str) -> dict[str, Any]:
        if Path(name).suffix != ".yaml":
            return listing.settings(Path(name))
        from cegppo import config  # brings torch, which two run folders do without
        from cegppo.types import BadInput

        try:
            return config.load(name)[0].to_dict()
        except BadInput as error:
            raise Missing(str(error)) from None

    print(listing.difference((options.a, options.b), (settings(options.a), settings(options.b))))
    return 0


def verb_keep(options: argparse.Namespace) -> int:
    from cegppo.record.keep import keep, sweep_folder

    for line in keep(sweep_folder(options.sweep, options.results)):
        print(line, flush=True)
    return 0


def verb_report(options: argparse.Namespace) -> int:
    from analysis import report

    print(report.write(Path(options.folder), Path(options.results)))
    return 0


def verb_advise(options: argparse.Namespace) -> int:
    from analysis import advise

    try:
        target = None if options.target is None else float(options.target)
        if target is not None and not math.isfinite(target):
            raise ValueError
    except ValueError:
        print(f"error: advise: TARGET '{options.target}' is not a number of nats, e.g. +0.1", file=sys.stderr)
        return 2
    print(advise.text(Path(options.folder), Path(options.results), target))
    return 0


VERBS = {
    "train": verb_train, "eval": verb_eval, "sweep": verb_sweep, "figures": verb_figures, "keep": verb_keep,
    "report": verb_report, "advise": verb_advise, "compare": verb_compare,
    "list": verb_list, "diff": verb_diff,
}  # fmt: skip
FILES_ALONE = ("figures", "report", "advise", "compare", "list", "diff")


def front_door() -> int:
    """`main`, for a shell: a reader that has seen enough (`| head`) is no error of a command that
    only prints, and ends one that works."""
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more at its end
        if {"train", "eval", "sweep"} & set(sys.argv[1:2]) and not {"--print", "--dry-run"} & set(sys.argv):
            print("error: standard output was closed; the same command continues", file=sys.stderr)
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    sys.exit(front_door())
