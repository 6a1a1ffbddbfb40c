"""The front door: `python run.py VERB`, or `cegppo VERB` where the package is installed.

`VERB --help` says what a verb takes; verbs/ has a file for each.
"""

import argparse
import difflib
import os
import signal
import sys
from pathlib import Path

from . import shipped
from .masking import masked_arguments
from .terminal import harmless_output
from .verbs import advise, compare, diff, figures, fork, keep, report, sample, sweep, train
from .verbs import eval as evaluate
from .verbs import list as listing

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")
if str(shipped.ROOT) not in sys.path:  # analysis/ lies there, which is no part of the package
    sys.path.insert(0, str(shipped.ROOT))

VERBS = (train, fork, evaluate, sample, sweep, figures, compare, listing, diff, keep, report, advise)


def parser(program: str = "run.py") -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog=program,
        description="Policy entropy in reinforcement learning of language models: train, measure, compare.",
        epilog=(
            f"Start here:  {'python ' if program == 'run.py' else ''}{program} train experiments/testbed.yaml"
            " method=cegppo loss.beta1=0.5 loss.beta2=1.0 seed=0"
        ),
    )
    verbs = root.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add(verbs)
    return root


def main(arguments: list[str] | None = None, program: str = "run.py") -> int:
    """What `arguments` (default: the command line's) ask for; the exit code."""
    with harmless_output():
        return _main(arguments, program)


def _main(arguments: list[str] | None, program: str) -> int:
    options, rest = parser(program).parse_known_args(arguments)
    strange = [item for item in rest if item.startswith("-") or not hasattr(options, "overrides")]
    if strange:
        parser(program).error(f"unrecognized arguments: {' '.join(strange)}")
    if rest:  # argparse gives up on key=value items that follow an option
        options.overrides += rest
    missing = what_is_missing(options)
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 2
    # They read files only, and do without torch.
    if getattr(options, "files_alone", False) and not getattr(options, "measure", False):
        from analysis.load import Missing

        try:
            return options.run(options)
        except Missing as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            return disk(error)
    from . import ranks
    from .types import BadInput

    say = lambda text: print(text, file=sys.stderr) if ranks.rank() == 0 else None
    try:
        ranks.join()
        if ranks.world() > 1 and options.verb not in ("train", "fork", "eval"):
            raise BadInput(f"torchrun: '{options.verb}' runs in one process; only train, fork and eval run in several")
        code = options.run(options)
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
    name = getattr(options, "named", None)
    if name is None or options.verb == "eval" and options.completions:
        return None
    given = getattr(options, "source", None) or getattr(options, name) or next(iter(options.overrides), None)
    if given is None and options.verb == "train":
        return "train: name an experiment, or --from RUN_FOLDER"
    if given is None:
        return "eval: name a run's folder, an experiment, or --completions FILE"
    path = shipped.find(given)
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


def front_door(program: str = "run.py") -> int:
    """`main`, for a shell: a reader that has seen enough (`| head`) is no error of a command that
    only prints, and ends one that works."""
    arguments = sys.argv[1:]
    # Before anything reads it: wandb records it as it stands, and so do its logs.
    sys.argv[1:] = masked_arguments(arguments)
    try:
        code = main(arguments, program)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter flushes once more at its end
        if {"train", "fork", "eval", "sweep"} & set(sys.argv[1:2]) and not {"--print", "--dry-run"} & set(sys.argv):
            print("error: standard output was closed; the same command continues", file=sys.stderr)
        return 128 + signal.SIGPIPE


def installed() -> int:
    """The command `cegppo`, and `python -m cegppo`."""
    return front_door("cegppo")
