"""What grades beside math-verify, in the workers of grader.py: reasoning-gym's scorers and the
checks of IFEval and IFBench. They are other people's code over a model's text (`eval`, sympy,
patterns that a data file brings), and any of them may take for ever.

A worker loads this file alone, without the package.
"""

from functools import cache
from typing import Any

SENTENCES = "The quick brown fox jumps over the lazy dog. It was not amused, and neither was the dog."


class Scorer:
    """reasoning-gym's `score_answer`. `ask((task, answer, entry))` is b"1" (full score), b"0", or
    b"?" (it failed)."""

    def __init__(self):
        import reasoning_gym

        self._function = cache(reasoning_gym.get_score_answer_fn)

    def warm_up(self) -> None:
        self._function("chain_sum")

    def ask(self, request: tuple[str, str, dict[str, Any]]) -> bytes:
        task, answer, entry = request
        try:
            return b"1" if self._function(task)(answer, entry) >= 1.0 else b"0"
        except Exception:  # a grader of another library may raise anything
            return b"?"


@cache
def checks(bench: bool) -> dict[str, Any]:
    """The checks of IFEval, or of IFBench, by the names of their instructions."""
    import langdetect

    langdetect.DetectorFactory.seed = 0  # it draws, and the same response must get the same verdict
    if bench:  # its import downloads what it lacks, so that nobody who asks IFEval alone should pay for it
        from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT
    else:
        from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT
    return INSTRUCTION_DICT


class Instructions:
    """if-verifiable's checks. `ask((text, prompt, names, kwargs))` is a digit for each instruction,
    1 for loosely and 2 more for strictly followed; b"?" when a check failed."""

    def ask(self, request: tuple[str, str, list[str], list[dict[str, Any]]]) -> bytes:
        text, prompt, names, given = request
        try:
            from if_verifiable.common import evaluate_instructions

            known = checks(False)
            if set(names) - set(known):
                known = {**checks(True), **known}
            found, _ = evaluate_instructions(text, names, given, prompt, known)
            followed = [(one.strict_pass, one.loose_pass) for one in found] or [(False, False)] * len(names)  # no text
            return "".join(str(2 * bool(strict) + bool(loose)) for strict, loose in followed).encode()
        except Exception:  # a check of another library may raise anything
            return b"?"

    def warm_up(self) -> None:
        """Tables that are read on first use, and which a worker's child inherits."""
        self.ask((SENTENCES, "p", ["language:response_language"], [{"language": "en"}]))
        sentences = {"relation": "at least", "num_sentences": 1}
        self.ask((SENTENCES, "p", ["length_constraints:number_sentences"], [sentences]))
