"""From a response to a Score. A grader's failure is a verdict of its own, never a wrong answer.

Who says whether a response is right is its source's `verifier`. By default that is its final
answer, the content of the last complete `\\boxed{…}` unless `data.final_answer` says otherwise:
tasks of reasoning-gym are graded by the library's own `score_answer`; a problem that has only a
reference answer is compared as text and as a number (comparison.py), which settles most answers,
and the rest by math-verify in processes of its own (grader.py). The others are tests (programs.py),
instructions (instructions.py) and rules of the user's.
"""

import difflib
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..config import Limits, digest, is_rule
from ..shipped import find
from ..types import BadInput, Prompt, Rollout, Score, Verdict, present, thinks_on
from . import grader, instructions, programs
from .answers import final_answer
from .comparison import compare
from .harmless import harmless

Rule = Callable[[Prompt, str], float]  # (prompt, response) → reward in [0, 1]


@dataclass(frozen=True)
class Scored:
    """An answer that reasoning-gym has to score."""

    answer: str


def _settle(rollout: Rollout) -> Verdict | grader.Pair | Scored:
    """What became of one response, or what math-verify or reasoning-gym has to judge."""
    prompt = rollout.prompt
    answer = final_answer(rollout.text, prompt.final)
    if answer is None:
        return Verdict.TRUNCATED if rollout.finish == "length" else Verdict.NO_ANSWER
    if prompt.task is None:
        right = compare(answer, prompt.answer)
        if right is None:
            return Verdict.GRADER_ERROR
        if not isinstance(right, bool):
            return right
    elif harmless(prompt.task, answer):
        return Scored(answer)
    else:
        right = False
    return Verdict.CORRECT if right else Verdict.WRONG


def verdicts(rollouts: list[Rollout], limits: Limits | None = None) -> list[Verdict]:
    """What became of each response, in order, by the verifiers of their prompts.

    What the token limit cut inside its thinking gave no answer yet: `truncated`, whoever verifies.
    `limits` are those of math-verify's workers and of the sandbox, which start only for what needs
    them.
    """
    limits = limits or Limits()
    cut = lambda rollout: rollout.finish == "length" and thinks_on(rollout.prompt, rollout.text)
    found = {i: Verdict.TRUNCATED for i, rollout in enumerate(rollouts) if cut(rollout)}
    left = [(i, rollout.prompt.verifier) for i, rollout in enumerate(rollouts) if i not in found]
    for verifier in dict.fromkeys(verifier for _, verifier in left):
        places = [i for i, named in left if named == verifier]
        judge = VERIFIERS.get(verifier) or by_rule
        found |= zip(places, judge([rollouts[i] for i in places], limits))
    return [found[i] for i in range(len(rollouts))]


def by_answer(rollouts: list[Rollout], limits: Limits) -> list[Verdict]:
    """Verdicts by the final answer. A complete one is graded even if the token limit cut what
    followed it; one that cost its grader time or memory, or whose reference it cannot read, is a
    `grader_error`."""
    found = [_settle(rollout) for rollout in rollouts]
    pairs = [f for f in found if isinstance(f, tuple)]
    scored = [(r.prompt.task, f.answer, r.prompt.entry) for r, f in zip(rollouts, found) if isinstance(f, Scored)]
    equal = iter(grader.grade(pairs, limits))
    full = iter(grader.VERDICTS.get(reply) for reply in grader.ask("task", scored, limits))
    named = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.GRADER_ERROR}
    return [
        named[next(equal)] if isinstance(f, tuple) else named[next(full)] if isinstance(f, Scored) else f for f in found
    ]


def by_rule(rollouts: list[Rollout], _: Limits) -> list[Verdict]:
    """Verdicts by the rule that is their prompts' verifier: correct is what it says 1 of."""
    right = [ruled(rollout.prompt.verifier, rollout) >= 1 for rollout in rollouts]
    return [Verdict.CORRECT if r else Verdict.WRONG for r in right]


def by_nobody(rollouts: list[Rollout], _: Limits) -> list[Verdict]:
    """Verdicts where nobody can say what is right: there is no answer to judge."""
    return [Verdict.TRUNCATED if rollout.finish == "length" else Verdict.NO_ANSWER for rollout in rollouts]


VERIFIERS: dict[str, Callable[[list[Rollout], Limits], list[Verdict]]] = {
    "answer": by_answer,
    "code": programs.verdicts,
    "instructions": instructions.verdicts,
    "none": by_nobody,
}


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13): 0, then linear to −1 over the
    last `buffer` tokens."""
    return -min(1.0, max(0.0, (length - (max_tokens - buffer)) / buffer)) if buffer else 0.0


def coin(seed: int, step: int, rollout: Rollout) -> tuple[bool, float]:
    """A fair coin of the rollout's own and a uniform number beside it, the same however the work
    is batched (the coin is the control of arXiv 2509.26114)."""
    key = f"{rollout.prompt.id}#{rollout.index}".encode()
    rng = np.random.default_rng([seed, step, *key])
    return bool(rng.random() < 0.5), float(rng.random())


@cache
def rule(source: str) -> Rule:
    """The function that `path.py:function` names. Raises BadInput."""
    name, _, function = source.rpartition(":")
    path = find(name)
    if not path.is_file():
        raise BadInput(f"reward: {name}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(present(spec))
    try:
        present(present(spec).loader).exec_module(module)
    except Exception as error:  # the user's own code may raise anything
        raise BadInput(f"reward: {name} cannot be imported: {type(error).__name__}: {error}") from None
    there = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    if function not in there:
        close = difflib.get_close_matches(function, there, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(there) or 'none'}"
        raise BadInput(f"reward: {name}: no function '{function}'; {hint}")
    return _as_rule(getattr(module, function))


def _as_rule(function: Callable[..., Any]) -> Rule:
    """`function`, whose own signature is (prompt, response), TRL's or verl's, told by the names of
    its parameters.

    TRL's reward functions take `prompts`, `completions` and columns of the data by name, each a
    list (of one here), and return a list. verl's compute_score takes `data_source`, `solution_str`,
    `ground_truth` and `extra_info`, and returns a number or a mapping with `score`.
    """
    parameters = inspect.signature(function).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = lambda given: {name: value for name, value in given.items() if every or name in parameters}

    def as_verl(prompt: Prompt, text: str) -> Any:
        found = function(**wanted(dict(
            data_source=prompt.source, solution_str=text, ground_truth=prompt.answer,
            extra_info=prompt.entry.get("extra_info", prompt.entry),
        )))  # fmt: skip
        return found["score"] if isinstance(found, dict) else found

    def as_trl(prompt: Prompt, text: str) -> Any:
        columns = {"answer": prompt.answer, **prompt.entry, "prompts": prompt.text, "completions": text}
        return function(**wanted({name: [value] for name, value in columns.items()}))[0]

    return as_verl if "solution_str" in parameters else as_trl if "completions" in parameters else function


def rule_digest(source: str) -> str:
    """What tells the file of a rule from another version of it."""
    return digest(find(source.rpartition(":")[0]).read_text(encoding="utf-8"))


def ruled(source: str, rollout: Rollout) -> float:
    """What the user's rule says of a response. Raises BadInput when that is no number in
    [0, 1]."""
    try:
        found = float(rule(source)(rollout.prompt, rollout.text))
    except BadInput:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise BadInput(
            f"reward: {source} failed on the response {rollout.text[:60]!r}: {type(error).__name__}: {error}"
        ) from None
    if not 0 <= found <= 1:
        raise BadInput(f"reward: {source} returned {found!r}, not a number in [0, 1], for {rollout.text[:60]!r}")
    return found


def grade(
    rollouts: list[Rollout], *, source: str, seed: int, step: int, values: tuple[float, float], max_tokens: int,
    overlong_buffer: int, signal: float = 1.0, truncated_fails: bool = False,
    limits: Limits | None = None,
) -> list[Score]:  # fmt: skip
    """Scores of `rollouts`, in order.

    `values` are the rewards of a failed and of a correct response; a rule of the user's as
    `source` (`path.py:function`) sets a point between them. `signal` is the share of responses
    that are rewarded so; for the others a coin chooses, and for all of them with `source` "random".
    The verdict stays the true one. `truncated_fails`: a response that was cut at the token limit
    earns the reward of a failed one, before all that. `overlong_buffer` 0 switches the soft
    overlong punishment off. `limits`: see `verdicts`.
    """
    signal = 0.0 if source == "random" else signal
    scores = []
    for rollout, found in zip(rollouts, verdicts(rollouts, limits)):
        tossed, place = coin(seed, step, rollout) if signal < 1 else (False, 0.0)
        if truncated_fails and rollout.finish == "length":
            graded = values[0]
        elif place >= signal:
            graded = values[int(tossed)]
        elif is_rule(source):
            graded = values[0] + ruled(source, rollout) * (values[1] - values[0])
        else:
            graded = values[int(found is Verdict.CORRECT)]
        penalty = overlong_penalty(len(rollout.token_ids), max_tokens, overlong_buffer)
        scores.append(Score(reward=graded + penalty, verdict=found, graded=graded))
    return scores
