"""From counts of right answers to the estimates that papers report: pass@k, maj@k. avg@k is
their mean. Numpy in, numbers out."""

from collections import Counter
from typing import Any

import numpy as np

from ..types import AnswerForm
from .answers import final_answer
from .notation import normalised


def miss_at_k(n: int | np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Unbiased 1 − pass@k of each problem: C(n − c, k) / C(n, k) (Chen et al., arXiv 2107.03374,
    Eq. 1).

    `n` samples a problem (a number, or [problems]), `correct` [problems] of them right, 1 ≤ k ≤ n.
    """
    miss = np.ones(len(correct))
    for i in range(k):  # ∏ (n − c − i) / (n − i), which never overflows
        miss *= np.clip(n - correct - i, 0, None) / (n - i)
    return miss


def pass_at_k(n: int | np.ndarray, correct: np.ndarray, k: int) -> float:
    """Unbiased pass@k, mean over problems."""
    return float(1 - miss_at_k(n, correct, k).mean())


def maj_at_k(answers: list[list[str | None]], correct: list[list[bool]], k: int) -> float:
    """Accuracy of the most frequent of k answers, mean over problems (self-consistency, Wang et
    al., arXiv 2203.11171).

    `answers` and `correct` hold each problem's n ≥ k samples: the final answer as
    `notation.normalised` writes it, None for none, and whether it is right. A problem's value is
    the mean over its ⌊n / k⌋ disjoint blocks of k consecutive samples. Within a block a missing
    answer has no vote (none at all is a failure), and a tie counts the share of right answers
    among the tied.
    """
    blocks = lambda row: [row[i : i + k] for i in range(0, len(row) - k + 1, k)]
    return float(
        np.mean(
            [
                np.mean([_majority(a, c) for a, c in zip(blocks(given), blocks(right))])
                for given, right in zip(answers, correct)
            ]
        )
    )


def vote(text: str, form: AnswerForm = "boxed") -> str | None:
    """What a response votes for in maj@k: its final answer, trivially equal ones written alike."""
    answer = final_answer(text, form)
    return None if answer is None else normalised(answer)


def _majority(answers: list[str | None], correct: list[bool]) -> float:
    votes = Counter(answer for answer in answers if answer is not None)
    right = {answer for answer, good in zip(answers, correct) if good}
    first = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(answer in right for answer in first) / len(first) if first else 0.0


def mean_accuracy(rows: list[dict[str, Any]]) -> float:
    """avg@k, every benchmark counting the same (the `avg` column of the paper's tables)."""
    return float(np.mean([row[f"avg@{row['k']}"] for row in rows])) if rows else float("nan")
