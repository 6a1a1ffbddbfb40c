"""Saved generations, graded without a model: a file of texts in, counts and verdicts a problem out.
Nothing here needs torch.

A line of the file is one problem: `id`, `answer` (the reference) and `completions` (a list of
texts). Which text was cut by a token limit is not known here, so that a text without a final answer
is `no_answer`, never `truncated`.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import config
from ..config import Limits
from ..record.files import as_lines, write_whole
from ..types import BadInput, Prompt, Rollout, Verdict
from .counts import maj_at_k, miss_at_k, vote
from .notation import written
from .reward import verdicts


@dataclass(frozen=True)
class Problem:
    """One line of the file."""

    id: str | int
    answer: str
    completions: list[str]


def read(path: Path) -> list[Problem]:
    """The problems of JSONL file `path`. Raises BadInput that names the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # not splitlines: JSON strings may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}") from None
    problems: list[Problem] = []
    seen: dict[str, int] = {}  # id → its line; 1 and "1" would be told apart by nobody
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput(f"{path}: line {number} is not JSON") from None
        problem = _problem(row, f"{path}: line {number}")
        if str(problem.id) in seen:
            raise BadInput(
                f"{path}: line {number}: 'id' {problem.id!r} is that of line {seen[str(problem.id)]} too; one problem a"
                " line"
            )
        seen[str(problem.id)] = number
        problems.append(problem)
    if not problems:
        raise BadInput(f"{path}: holds no problems")
    return problems


def _problem(row: Any, where: str) -> Problem:
    if not isinstance(row, dict):
        raise BadInput(f"{where} is not an object with 'id', 'answer', 'completions'")
    missing = [key for key in ("id", "answer", "completions") if key not in row]
    if missing:
        raise BadInput(f"{where} lacks '{missing[0]}'")
    for key, kinds, what in (
        ("id", (str, int), "a string or an integer"),
        ("answer", (str, int, float), "a string or a number"),
    ):
        if not isinstance(row[key], kinds) or isinstance(row[key], bool):
            raise BadInput(f"{where}: '{key}' takes {what}, not {json.dumps(row[key])[:60]}")
    answer = row["answer"]
    if isinstance(answer, float) and not math.isfinite(answer) or isinstance(answer, str) and not answer.strip():
        raise BadInput(f"{where}: 'answer' takes a string or a number, not {json.dumps(answer)}")
    texts = row["completions"]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{where}: 'completions' takes a list of at least one text")
    return Problem(row["id"], answer if isinstance(answer, str) else written(answer), texts)


def grade(problems: list[Problem], limits: Limits) -> list[list[Verdict]]:
    """Verdicts of each problem's completions, in order."""
    prompts = [Prompt(str(p.id), "completions", "", (), p.answer) for p in problems]
    rollouts = [
        Rollout(q, i, (), (), "stop", text) for p, q in zip(problems, prompts) for i, text in enumerate(p.completions)
    ]
    found = iter(verdicts(rollouts, limits))
    return [[next(found) for _ in p.completions] for p in problems]


def summary(
    name: str, problems: list[Problem], graded: list[list[Verdict]]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """avg@k, unbiased pass@1, 2, 4 … k, maj@k and verdict counts, and the [problems] values that
    each of the estimates is the mean of.

    k is the smallest number of completions of a problem. Where problems have more, avg@k is the
    mean over problems of the share of *all* its completions that are right, pass@j is estimated
    from all of them, and maj@k from blocks of k (see `maj_at_k`).
    """
    right = [[v is Verdict.CORRECT for v in row] for row in graded]
    n, correct = np.array([len(row) for row in right]), np.array([sum(row) for row in right])
    k = int(n.min())
    values = {f"avg@{k}": correct / n}
    values |= {f"pass@{j}": 1 - miss_at_k(n, correct, j) for j in sorted({*(2**i for i in range(k.bit_length())), k})}
    values[f"maj@{k}"] = np.array(
        [maj_at_k([[vote(text) for text in p.completions]], [r], k) for p, r in zip(problems, right)]
    )
    every = [v for row in graded for v in row]
    estimates = {key: float(value.mean()) for key, value in values.items()}
    return {
        "benchmark": name,
        "n": len(problems),
        "k": k,
        **estimates,
        "verdicts": {v.value: every.count(v) for v in Verdict},
    }, values


def write(path: Path, problems: list[Problem], graded: list[list[Verdict]]) -> Path:
    """Write `<path>.graded.jsonl`, one problem a line: `id`, `n`, `correct`, `verdicts` (one per
    completion)."""
    out = path.with_name(path.name + ".graded.jsonl")
    rows = [
        {"id": p.id, "n": len(vs), "correct": vs.count(Verdict.CORRECT), "verdicts": vs}
        for p, vs in zip(problems, graded)
    ]
    write_whole(out, as_lines(rows))
    return out


def grade_file(
    path: Path, words: list[str], intervals: Callable[[dict[str, np.ndarray]], dict[str, Any]]
) -> tuple[dict[str, Any], str | None, Path]:
    """Grade the saved texts of `path` with `grader.*` settings `words`, and write the verdicts
    beside it: (summary with `intervals`, a remark if any, what was written). Raises BadInput."""
    for word in words:
        if not config.under(word.partition("=")[0], ("grader",)):
            raise BadInput(
                f"eval: '{word}': --completions FILE stands for a run or an experiment, and takes grader.* keys only"
            )
    limits = config.of_overrides(words).grader
    problems = read(path)
    graded = grade(problems, limits)
    row, values = summary(path.name, problems, graded)
    counts = {len(found) for found in graded}
    note = None
    if len(counts) > 1:
        note = f"problems have {min(counts)} to {max(counts)} completions: k is the smallest, avg@k and pass@k use all"
    return row | {"interval": intervals(values)}, note, write(path, problems, graded)
