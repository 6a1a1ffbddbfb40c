#!/usr/bin/env python
"""The front door: train, evaluate, sweep, draw, keep, report, advise. `python run.py VERB --help`
says what a verb takes."""

import argparse
import difflib
import importlib
import json
import math
import os
import sys
from pathlib import Path

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
    overrides = dict(
        nargs="*", metavar="key=value", help="any key of the configuration, e.g. method=grpo seed=1 update.lr=3e-5"
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
    train.add_argument("experiment", metavar="EXPERIMENT.yaml")
    train.add_argument("overrides", **overrides)
    train.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="show the resolved configuration and where each value came from, then stop",
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
        "--checkpoint", choices=("latest", "best"), default="latest", help="which checkpoint of a run (default: latest)"
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
    figures.add_argument(
        "--results", default="results", metavar="DIR", help="the root of the run folders (default: results)"
    )
    figures.add_argument("--only", nargs="+", metavar="NAME", help="which figures (default: all but the demo's)")

    keep = verbs.add_parser(
        "keep", help="pack the finished runs of a sweep, without loss",
        description=(
            "Move config, meta, metrics and evaluations of a sweep's finished runs into one pack, "
            "<results>/<sweep>/runs.jsonl and parquet beside it, which figures, claims and sweeps read like the "
            "folders. Again with later seeds, it adds them. Checkpoints, tokens and completions stay."
        ),
    )  # fmt: skip
    keep.add_argument("sweep", metavar="SWEEP|FOLDER", help="a sweep's file, its name, or its folder of runs")
    keep.add_argument(
        "--results", default="results", metavar="DIR", help="the root of the run folders (default: results)"
    )

    report = verbs.add_parser(
        "report", help="one self-contained page about a run",
        description=(
            "Write RUN_FOLDER/report.html: curves, benchmarks, the entropy ledger and the configuration, in one "
            "file."
        ),
    )  # fmt: skip
    report.add_argument("folder", metavar="RUN_FOLDER")

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
    advise.add_argument(
        "--results", default="results", metavar="DIR", help="where recorded sweeps are looked for (default: results)"
    )
    return root


def main(arguments: list[str] | None = None) -> int:
    options, rest = parser().parse_known_args(arguments)
    strange = [item for item in rest if item.startswith("-") or not hasattr(options, "overrides")]
    if strange:
        parser().error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:  # argparse gives up on key=value items that follow an option
        options.overrides += rest
    if options.verb in ("figures", "report", "advise"):  # they read files only, and do without torch
        return VERBS[options.verb](options)
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
    except KeyboardInterrupt:
        say("interrupted; the same command continues from the last checkpoint")
        return 130
    ranks.leave()
    return code


def verb_train(options: argparse.Namespace) -> int:
    from cegppo import config, ranks

    with ranks.together():
        resolved, origin = config.load(options.experiment, options.overrides)
    if options.print_only:
        if ranks.rank() == 0:
            print(config.explain(resolved, origin))
        return 0
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
    code = 0 if status == "finished" else 130
    if ranks.rank() > 0:
        return code
    from analysis import ledger

    summary = ledger.of_run(resolved.folder, resolved.arm)
    if summary:
        print(summary)
    print(f"{status}: {resolved.folder}")
    return code


def intervals(per_problem: dict) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over problems, by name of the estimate."""
    from analysis import stats

    return {name: stats.bootstrap_mean([values])[1:] for name, values in per_problem.items()}


def grade_completions(path: Path, words: list[str]) -> int:
    """`eval --completions`: no model."""
    from cegppo import config
    from cegppo.problems import completions
    from cegppo.screen import print_eval, print_verdicts
    from cegppo.types import BadInput

    for word in words:
        if not config.under(word.partition("=")[0], ("grader",)):
            raise BadInput(
                f"eval: '{word}': --completions FILE stands for a run or an experiment, and takes grader.* keys only"
            )
    limits = config.of_overrides(words).grader
    problems = completions.read(path)
    graded = completions.grade(problems, limits)
    row, values = completions.summary(path.name, problems, graded)
    print_eval([row | {"interval": intervals(values)}])
    print_verdicts(row["verdicts"])
    counts = {len(found) for found in graded}
    if len(counts) > 1:
        print(
            f"problems have {min(counts)} to {max(counts)} completions: k is the smallest, avg@k and pass@k use"
            " them all"
        )
    print(completions.write(path, problems, graded))
    return 0


def verb_eval(options: argparse.Namespace) -> int:
    from cegppo.types import BadInput

    # argparse hands a target that follows an option to the overrides.
    words = [*([options.target] if options.target else []), *options.overrides]
    if options.completions:
        return grade_completions(Path(options.completions), words)
    if not words:
        raise BadInput("eval: name a run's folder, an experiment, or --completions FILE")

    import torch

    from cegppo import config, ranks
    from cegppo.config import nearest
    from cegppo.evaluate import evaluator, longest_answer, per_problem
    from cegppo.model.policy import load_policy
    from cegppo.problems import data, testbed
    from cegppo.record.files import read_lines, write_whole
    from cegppo.record.read import packed, read_config
    from cegppo.record.run import checkpoint, fingerprint
    from cegppo.rollout import divided
    from cegppo.screen import print_eval

    target, overrides = Path(words[0]), words[1:]
    with ranks.together():
        if target.is_dir():
            if not (target / "config.yaml").is_file() and not packed(target):
                raise BadInput(f"{target}: holds no config.yaml; not a run's folder")
            resolved = read_config(target, overrides)
            model, folder, name = checkpoint(target, options.checkpoint), target, options.checkpoint
            step = json.loads((model / "state.json").read_text())["step"]
        else:
            if target.suffix != ".yaml":
                siblings = [p.name for p in target.parent.iterdir()] if target.parent.is_dir() else []
                raise BadInput(f"{target}: no such folder{nearest(target.name, siblings) if siblings else ''}")
            resolved, _ = config.load(target, overrides)
            folder, name, step = (
                Path(resolved.run_dir or Path(resolved.results) / resolved.experiment / "base"),
                "base",
                0,
            )
            model = testbed.base_model() if resolved.model.path == "testbed" else resolved.model.path
        if not resolved.eval.benchmarks:
            raise BadInput(f"{target}: eval.benchmarks: no benchmarks; name at least one source")
        if resolved.threads:
            torch.set_num_threads(resolved.threads)
        r = resolved.rollout
        policy = load_policy(str(model), resolved.model, r.temperature, resolved.update.micro_batch_tokens)
        made = data.benchmarks(resolved.eval, resolved.data, policy.tokenizer)
        longest = resolved.data.max_prompt_tokens + longest_answer(r.max_tokens, resolved.eval)
        base = divided.start(policy, r, resolved.seed, longest)
    evaluating = evaluator(base, resolved.eval, r.max_tokens, resolved.grader, made)
    writes = ranks.rank() == 0
    out, rows = folder / f"eval-{name}.jsonl", []
    for benchmark in evaluating.benchmarks:
        identity = evaluating.identity(benchmark, 0, fingerprint(model))
        path = folder / "completions" / f"{name}-{benchmark.name.replace('/', '_')}-{identity}.jsonl.gz"
        row = evaluating.run_kept(benchmark, 0, path, lambda text: print(text, flush=True) if writes else None)
        row |= {
            "interval": intervals(per_problem(row)),
            "rules": {**benchmark.rules, "seed": resolved.eval.seed},
            "completions": path.name,
        }
        rows.append(row)
        if writes:
            before = [
                r for r in read_lines(out) if r.get("completions") != path.name
            ]  # others stay: benchmarks, settings, checkpoints
            write_whole(
                out, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*before, {"step": step, **row}])
            )
    if writes:
        print_eval(rows)
        print(out)
    return 0


def verb_sweep(options: argparse.Namespace) -> int:
    from cegppo.screen import SweepScreen
    from cegppo.sweep import grid, search

    described = grid.describe(options.sweep, options.overrides)
    searches = "search" in described.tree or "space" in described.tree
    if options.dry_run:
        for run in grid.expand(described).runs if not searches else []:
            print(f"{'finished' if run.finished() else 'to run':<9} {run.folder}  {' '.join(run.overrides)}")
        if searches:
            print(search.plan(described))
        return 0
    if searches:
        work = search.Search(described)
        loaded = described.sweep(work.runs)
    else:
        loaded = grid.expand(described)
        work = grid.Grid(loaded)
    with SweepScreen() as screen:
        code, failed = grid.run_all(loaded, work, screen.show)
    for run in failed:
        print(
            f"{run.arm} seed {run.seed} did not finish: {grid.error_of(run)} ({run.folder / 'output.txt'})",
            file=sys.stderr,
        )
    if not searches and work.already:
        print(work.already)
    if searches:
        print(work.best())
        work.close()
    return code


def verb_figures(options: argparse.Namespace) -> int:
    from analysis import numbers
    from analysis.load import Missing

    root = Path(__file__).resolve().parent / "analysis"
    scripts = {path.stem.removeprefix("fig_"): f"analysis.{path.stem}" for path in sorted(root.glob("fig_*.py"))}
    wanted = options.only or [name for name in scripts if name != "demo"]  # the demo's runs are each user's own
    for name in wanted:
        if name not in scripts:
            close = difflib.get_close_matches(name, scripts, n=1, cutoff=0.5)
            hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(scripts)}"
            print(f"error: no figure '{name}'; {hint}", file=sys.stderr)
            return 2
    failed, results, here = False, Path(options.results), Path(__file__).resolve().parent
    for name in wanted:
        figure = importlib.import_module(scripts[name])
        try:
            figure.draw(results)
        except Missing as error:
            print(f"error: figure '{name}': {error}", file=sys.stderr)
            failed = True
        if results.resolve() == here / "results":  # what the texts quote is of the runs beside them
            for path in numbers.write(here, numbers.of(figure, results)):
                print(f"numbers: {path}")
    return 2 if failed else 0


def verb_keep(options: argparse.Namespace) -> int:
    from cegppo.record.keep import keep, sweep_folder

    for line in keep(sweep_folder(options.sweep, options.results)):
        print(line, flush=True)
    return 0


def verb_report(options: argparse.Namespace) -> int:
    from analysis import load, report

    try:
        print(report.write(Path(options.folder)))
    except load.Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def verb_advise(options: argparse.Namespace) -> int:
    from analysis import advise, load

    try:
        target = None if options.target is None else float(options.target)
        if target is not None and not math.isfinite(target):
            raise ValueError
    except ValueError:
        print(f"error: advise: TARGET '{options.target}' is not a number of nats, e.g. +0.1", file=sys.stderr)
        return 2
    try:
        print(advise.text(Path(options.folder), Path(options.results), target))
    except load.Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


VERBS = {
    "train": verb_train, "eval": verb_eval, "sweep": verb_sweep, "figures": verb_figures, "keep": verb_keep,
    "report": verb_report, "advise": verb_advise,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
