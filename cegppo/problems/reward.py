"""From a response to a Score. A grader's failure is a verdict of its own, never a wrong answer.

The final answer is the content of the last complete `\\boxed{…}`. Tasks of reasoning-gym are graded
by the library's own `score_answer`. A problem that has only a reference answer is compared as text
and as a number, which settles most answers, and the rest by math-verify in processes of its own
(grader.py).
"""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from functools import cache

import numpy as np

from ..types import Rollout, Score, Verdict
from . import grader

_BOX = "\\boxed{"
_MARKS = re.compile(r"\\boxed\{|[{}]")


def final_answer(text: str) -> str | None:
    """The content of the last complete `\\boxed{…}` of `text`, braces balanced; None when there
    is none."""
    found = None
    open_at: list[int | None] = []  # of each brace not yet closed: where its content begins if it is a box's
    for mark in _MARKS.finditer(
        text, max(0, text.find(_BOX))
    ):  # one pass: a thousand unclosed boxes must not cost a thousand
        if mark[0] != "}":
            open_at.append(mark.end() if mark[0] == _BOX else None)
        elif open_at and (begin := open_at.pop()) is not None and (found is None or begin > found[0]):
            found = (begin, mark.start())
    return None if found is None else text[slice(*found)].strip()


def normalised(answer: str) -> str:
    """`answer` as text that is equal for trivially equal answers: spacing, `$`, `\\left`,
    `\\dfrac`, a final full stop, and the way a plain number is written (`1,000`, `2.50`,
    `\\frac{1}{2}`) make no difference."""
    text = re.sub(r"(?<!\\)\\[!,;: ]|\\?\$|\\(left|right)(?![a-zA-Z])", "", answer)
    text = re.sub(r"(?<!\d) | (?!\d)", "", re.sub(r"\s+", " ", text))  # but "1 2" is not 12
    text = re.sub(r"\\[dt]frac(?![a-zA-Z])", r"\\frac", text).replace("{,}", ",").rstrip(".")
    number = _number(text)
    return text if number is None else str(number)


def matches(answer: str, reference: str) -> bool:
    """Equal as text or as exact rational numbers, by `normalised`."""
    return normalised(answer) == normalised(reference)


def _number(text: str) -> Fraction | None:
    """The value of an integer (with or without thousands separators), a decimal number or a
    fraction of integers."""
    text = re.sub(r"^([+-]?)\\frac\{(\d+)\}\{(\d+)\}$", r"\1\2/\3", text)
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    if not re.fullmatch(r"[+-]?[\d.]{1,40}(/\d{1,40})?", text):
        return None
    try:
        top, _, bottom = text.partition("/")
        return Fraction(Decimal(top)) / Fraction(bottom or 1)
    except (InvalidOperation, ValueError, ZeroDivisionError):
        return None


@cache
def _scorer(task: str) -> Callable[..., float]:
    import reasoning_gym

    return reasoning_gym.get_score_answer_fn(task)


def quick(answer: str, reference: str) -> bool | None:
    """Whether `answer` equals `reference` where no algebra is needed to tell; None where it is."""
    if matches(answer, reference):
        return True
    given, wanted = _number(normalised(answer)), _number(normalised(reference))
    if not answer or given is not None and wanted is not None and abs(given - wanted) > 1e-5:
        # math-verify takes decimals that agree to six places for equal; further apart it could not
        # say otherwise.
        return False
    return None


def _settle(rollout: Rollout) -> Verdict | grader.Pair:
    """What became of one response, or what math-verify has to compare."""
    answer, prompt = final_answer(rollout.text), rollout.prompt
    if answer is None:
        return Verdict.TRUNCATED if rollout.finish == "length" else Verdict.NO_ANSWER
    if prompt.task is None:
        right = quick(answer, prompt.answer)
        if right is None:
            return prompt.answer, answer.rstrip(". ")
    else:
        try:
            right = _scorer(prompt.task)(answer, prompt.entry) >= 1.0
        except Exception:  # a grader of another library may raise anything; the verdict counts it
            return Verdict.GRADER_ERROR
    return Verdict.CORRECT if right else Verdict.WRONG


def verdicts(rollouts: list[Rollout], limits: grader.Limits | None = None) -> list[Verdict]:
    """What became of each response, in order. A complete final answer is graded even if the token
    limit cut what followed it.

    `limits` are those of math-verify's workers, which start only for answers that need them. An
    answer that cost its time or memory, or whose reference math-verify cannot read, is a
    `grader_error`.
    """
    found = [_settle(rollout) for rollout in rollouts]
    pairs = [f for f in found if isinstance(f, tuple)]
    equal = iter(grader.grade(pairs, limits or grader.Limits()))
    named = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.GRADER_ERROR}
    return [named[next(equal)] if isinstance(f, tuple) else f for f in found]


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13): 0, then linear to −1 over the
    last `buffer` tokens."""
    return -min(1.0, max(0.0, (length - (max_tokens - buffer)) / buffer)) if buffer else 0.0


def coin(seed: int, step: int, rollout: Rollout) -> bool:
    """A fair coin of the rollout's own, the same however the work is batched (the control of
    arXiv 2509.26114)."""
    key = f"{rollout.prompt.id}#{rollout.index}".encode()
    return bool(np.random.default_rng([seed, step, *key]).random() < 0.5)


def grade(
    rollouts: list[Rollout], *, source: str, seed: int, step: int, values: tuple[float, float], max_tokens: int,
    overlong_buffer: int,
    limits: grader.Limits | None = None,
) -> list[Score]:  # fmt: skip
    """Scores of `rollouts`, in order.

    `values` are the rewards of a failed and of a correct response; `source` "random" lets a coin
    choose between them while the verdict stays the true one. `overlong_buffer` 0 switches the soft
    overlong punishment off. `limits`: see `verdicts`.
    """
    scores = []
    for rollout, found in zip(rollouts, verdicts(rollouts, limits)):
        good = coin(seed, step, rollout) if source == "random" else found is Verdict.CORRECT
        penalty = overlong_penalty(len(rollout.token_ids), max_tokens, overlong_buffer)
        scores.append(Score(reward=values[int(good)] + penalty, verdict=found, graded=values[int(good)]))
    return scores
