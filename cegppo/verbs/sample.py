"""`sample`: what a model writes."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .eval import checkpoint_name

if TYPE_CHECKING:
    from ..respond import Response, Token

KEY = re.compile(r"[a-z][a-z0-9_.]*=")
# Styles of a token by what it is coloured by, in nats: the first bound that it stays below.
SHADES = ((0.1, ""), (0.5, "cyan"), (1.0, "yellow"), (float("inf"), "bold red"))


def add(verbs: Any) -> None:
    parser = verbs.add_parser(
        "sample", help="what a model writes: responses with their tokens coloured by entropy",
        description=(
            "Sample responses of a run's checkpoint, of the model that an experiment starts from, or of any causal "
            "model (a folder, or its name on the Hugging Face hub), and print them with each token coloured by the "
            "entropy that it was drawn from. Without a prompt: problem 0 of the first benchmark. A model's own chat "
            "template is used where it has one."
        ),
        epilog="e.g. sample results/testbed/cegppo/seed0 n=4; sample MODEL '3 + 4 =' rollout.max_tokens=32",
    )  # fmt: skip
    parser.add_argument("target", metavar="RUN_FOLDER|EXPERIMENT.yaml|MODEL")
    parser.add_argument(
        "overrides", nargs="*", metavar="PROMPT|key=value",
        help="n=8 responses to each (default 4); problem=3 of a benchmark; any key of the configuration, e.g. "
        "eval.benchmarks=[math500] rollout.temperature=0.6; everything else is a prompt",
    )  # fmt: skip
    parser.add_argument("--by", choices=("entropy", "surprisal"), default="entropy", help="what colours a token")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each response, with its tokens")
    parser.add_argument(
        "--checkpoint", type=checkpoint_name, default="latest", metavar="latest|best|STEP",
        help="which checkpoint of a run (default: latest)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..respond import respond

    keys = [word for word in options.overrides if KEY.match(word)]
    prompts = [word for word in options.overrides if not KEY.match(word)]
    n, problem = (_whole(keys, name, default) for name, default in (("n", 4), ("problem", 0)))
    keys = [word for word in keys if not word.startswith(("n=", "problem="))]
    show = _as_json if options.json else _draw
    before = None
    for response in respond(options.target, keys, options.checkpoint, prompts, problem, n):
        show(response, options.by, response.rollout.prompt != before)
        before = response.rollout.prompt
    return 0


def _whole(words: list[str], name: str, default: int) -> int:
    """The whole number of `name=…` among `words`. Raises BadInput."""
    from ..types import BadInput

    for word in words:
        if word.startswith(f"{name}="):
            text = word.partition("=")[2]
            if not text.isdecimal() or (name == "n" and int(text) < 1):
                raise BadInput(f"sample: {word}: takes a whole number, as in {name}={default}")
            return int(text)
    return default


def _as_json(response: "Response", by: str, new: bool) -> None:
    r = response.rollout
    made = {"prompt": r.prompt.text, "id": r.prompt.id, "index": r.index, "response": r.text, "finish": r.finish}
    made |= {"answer": r.prompt.answer, "verdict": response.verdict}
    print(json.dumps(made | {"tokens": [asdict(token) for token in response.tokens]}))


def _draw(response: "Response", by: str, new: bool) -> None:
    """The prompt where it is a `new` one, a line about the response, and its text."""
    from rich.text import Text

    from ..screen import console
    from ..terminal import raw
    from ..types import printable

    r, screen = response.rollout, console()
    if new:
        screen.print(Text(printable(r.prompt.text.rstrip())), soft_wrap=True)
        if r.prompt.answer:
            screen.print(Text(printable(f"answer: {r.prompt.answer}")), soft_wrap=True)
        if raw(sys.stdout).isatty():
            screen.print(_legend(by))
    values = [getattr(token, by) for token in response.tokens]
    said = [f"[{r.index}]", *([str(response.verdict)] if response.verdict else [])]
    said += [f"{len(values)} tokens", f"mean {by} {sum(values) / max(1, len(values)):.2f} nats", f"ended by {r.finish}"]
    screen.print(Text("\n" + ", ".join(said), style="dim"), soft_wrap=True)
    text = Text()
    for token in response.tokens:
        text.append(printable(token.text), style=_shade(token, by))
    screen.print(text, soft_wrap=True)


def _shade(token: "Token", by: str) -> str:
    return next(style for bound, style in SHADES if getattr(token, by) < bound)


def _legend(by: str) -> Any:
    """What the colours mean."""
    from rich.text import Text

    made = Text(f"{by} in nats:")
    for (below, _), (bound, style) in zip(((0.0, ""), *SHADES), SHADES):
        made.append(f" {below:g}–{bound:g}" if bound < float("inf") else f" {below:g}+", style=style)
    return made
