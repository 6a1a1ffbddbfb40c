"""Whether a response follows the instructions of its prompt: IFEval (arXiv 2311.07911) and IFBench
(arXiv 2507.02833), by the package if-verifiable, which has both sets of checks. No model judges.

A problem is a row as both have it: `prompt`, `instruction_id_list`, `kwargs`. A response is correct
when it follows every instruction as it stands (strict, prompt level); the other three numbers of
the papers come with it: `measures`.
"""

import json
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any

from ..types import BadInput, Rollout, Verdict

# Of nltk, by where it looks for them; IFBench's checks need all, IFEval's the first.
DATA = ("tokenizers/punkt_tab", "taggers/averaged_perceptron_tagger_eng", "corpora/stopwords")


@cache
def _checks(bench: bool) -> dict[str, Any]:
    """The checks of IFEval, or of IFBench, by the names of their instructions."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it draws, and the same response must get the same verdict
    if bench:  # its import downloads what it lacks, so that nobody who asks IFEval alone should pay for it
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    else:
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    return INSTRUCTION_DICT


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


@lru_cache(maxsize=4096)
def _followed(text: str, row: str) -> list[tuple[bool, bool]] | None:
    """(strictly, loosely) for each instruction of `row`, JSON; None when a check failed."""
    from if_verifiable.common import evaluate_instructions

    prompt, names, given = json.loads(row)
    checks = _checks(False)
    if set(names) - set(checks):
        checks = {**_checks(True), **checks}
    try:
        found, _ = evaluate_instructions(text, names, given, prompt, checks)
    except Exception:  # a check of another library may raise anything
        return None
    return [(one.strict_pass, one.loose_pass) for one in found] or [(False, False)] * len(names)  # nothing was said


def followed(text: str, row: dict[str, Any]) -> list[tuple[bool, bool]] | None:
    """(strictly, loosely) for each instruction of the problem `row`, of a response with its
    thinking before `</think>` left out; None when that could not be found out."""
    asked = [row["prompt"], row["instruction_id_list"], row["kwargs"]]
    return _followed(text, json.dumps(asked, default=str))


def verdicts(rollouts: list[Rollout], _: Any = None) -> list[Verdict]:
    """What became of each response, in order."""
    return [_verdict(rollout, followed(rollout.text, rollout.prompt.entry)) for rollout in rollouts]


def _verdict(rollout: Rollout, found: list[tuple[bool, bool]] | None) -> Verdict:
    if found is None:
        return Verdict.GRADER_ERROR
    if not rollout.spoken.strip():
        return Verdict.TRUNCATED if rollout.finish == "length" else Verdict.NO_ANSWER
    return Verdict.CORRECT if all(strict for strict, _ in found) else Verdict.WRONG


def measures(answered: Iterable[tuple[dict[str, Any], str]]) -> dict[str, float]:
    """The four accuracies of both papers, over (row, response) pairs: of prompts all of whose
    instructions are followed and of instructions, strict and loose. Loose also takes a response
    without its first or last line, and without asterisks. What no check could tell counts as not
    followed."""
    pairs = [(followed(text, row) or [(False, False)] * len(row["kwargs"])) for row, text in answered]
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
