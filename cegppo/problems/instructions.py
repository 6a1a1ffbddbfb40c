"""Whether a response follows the instructions of its prompt: IFEval (arXiv 2311.07911) and IFBench
(arXiv 2507.02833), by the package if-verifiable, which has both sets of checks. No model judges.

A problem is a row as both have it: `prompt`, `instruction_id_list`, `kwargs`. A response is correct
when it follows every instruction as it stands (strict, prompt level); the other three numbers of
the papers come with it: `measures`.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from ..config import Limits
from ..types import BadInput, Rollout, Verdict
from . import grader
from .judges import checks as _checks

# Of nltk, by where it looks for them; IFBench's checks need all, IFEval's the first.
DATA = ("tokenizers/punkt_tab", "taggers/averaged_perceptron_tagger_eng", "corpora/stopwords")


def check(rows: list[tuple[Any, ...]], where: str) -> None:
    """Raises BadInput unless the checks are installed and every row ((…, columns)) names known
    ones."""
    try:
        import nltk

        known = _checks(False)
    except ModuleNotFoundError as error:
        raise BadInput(
            f"{where}: verifier=instructions needs {error.name}: pip install -c constraints.txt -e"
            " '.[instructions]' torch==2.13.0"
        ) from None
    asked = set()
    for number, (*_, row) in enumerate(rows, 1):
        names, given = row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(row.get("prompt"), str) or not isinstance(names, list) or not isinstance(given, list):
            raise BadInput(f"{where}: row {number} lacks 'prompt', 'instruction_id_list' or 'kwargs', a text and lists")
        if not names or len(names) != len(given) or not all(isinstance(one, dict) for one in given):
            raise BadInput(f"{where}: row {number}: 'kwargs' takes one mapping for each of 'instruction_id_list'")
        asked |= set(names)
    bench = bool(asked - set(known))
    for name in DATA if bench else DATA[:1]:
        try:
            nltk.data.find(name)
        except LookupError:
            short = name.rpartition("/")[2]
            raise BadInput(f"{where}: needs nltk's {short}: python -m nltk.downloader {short}") from None
    if strange := sorted(asked - set(known) - set(_checks(True) if bench else ())):
        raise BadInput(f"{where}: instruction '{strange[0]}' is none of IFEval's or IFBench's")


def followed(
    answered: Sequence[tuple[dict[str, Any], str]], limits: Limits | None = None
) -> list[list[tuple[bool, bool]] | None]:
    """(strictly, loosely) for each instruction of each (row, response) pair, thinking and all, by
    workers with `limits` of time and memory; None when that could not be found out."""
    plain = lambda value: json.loads(json.dumps(value, default=str))  # a parquet file gives arrays and numpy's numbers
    requests = [
        (text, row["prompt"], plain(row["instruction_id_list"]), plain(row["kwargs"])) for row, text in answered
    ]
    replies = grader.ask("instructions", requests, limits or Limits())
    pair = lambda digit: (digit >= 2, digit % 2 == 1)
    return [None if reply == b"?" else [pair(int(c)) for c in reply.decode()] for reply in replies]


def verdicts(rollouts: list[Rollout], limits: Limits | None = None) -> list[Verdict]:
    """What became of each response, in order."""
    found = followed([(rollout.prompt.entry, rollout.text) for rollout in rollouts], limits)
    return [_verdict(rollout, one) for rollout, one in zip(rollouts, found)]


def _verdict(rollout: Rollout, found: list[tuple[bool, bool]] | None) -> Verdict:
    if found is None:
        return Verdict.GRADER_ERROR
    if not rollout.spoken.strip():
        return Verdict.TRUNCATED if rollout.finish == "length" else Verdict.NO_ANSWER
    return Verdict.CORRECT if all(strict for strict, _ in found) else Verdict.WRONG


def measures(answered: Iterable[tuple[dict[str, Any], str]], limits: Limits | None = None) -> dict[str, float]:
    """The four accuracies of both papers, over (row, response) pairs: of prompts all of whose
    instructions are followed and of instructions, strict and loose. Loose also takes a response
    without its first or last line, and without asterisks. What no check could tell counts as not
    followed."""
    asked = list(answered)
    pairs = [one or [(False, False)] * len(row["kwargs"]) for one, (row, _) in zip(followed(asked, limits), asked)]
    every = [one for found in pairs for one in found]
    share = lambda values: sum(values) / len(values)
    return {
        f"{level}_{name}": share(values)
        for way, name in enumerate(("strict", "loose"))
        for level, values in (
            ("prompt", [all(one[way] for one in found) for found in pairs]),
            ("instruction", [one[way] for one in every]),
        )
    }
