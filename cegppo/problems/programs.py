"""Code as an answer: the program in a response, run against the tests of its problem.

A problem is a row as HumanEval has it: `prompt` (a function's head and docstring, or words),
`entry_point` (the function's name) and `test` (asserts, or a function check(candidate)). The
sandbox (sandbox.py) runs it, and is off unless the person at the machine says otherwise.
"""

import re
from typing import Any

from ..config import Limits
from ..types import BadInput, Rollout, Verdict, listed
from . import sandbox

_BLOCK = re.compile(r"```[ \t]*+(?:python3?|py)?+[ \t]*+\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)
_NEXT = re.compile(r"\n(?=class\b|def\b|#|if\b|print\b|@)")  # where a function that was begun is over


def check(rows: list[tuple[Any, ...]], where: str) -> None:
    """Raises BadInput unless programs may run here and every row ((…, columns)) has what a test
    needs."""
    if not sandbox.allowed():
        raise BadInput(
            f"{where}: verifier=code runs programs that a model wrote; set {sandbox.FLAG}=1 to allow it on this machine"
            " (docs/security.md says what the sandbox keeps out)"
        )
    if why := sandbox.missing():
        raise BadInput(f"{where}: verifier=code: {why}")
    for number, (*_, row) in enumerate(rows, 1):
        for column in ("prompt", "entry_point", "test"):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise BadInput(f"{where}: row {number} lacks '{column}', a text; it has: {listed(row)}")


def program_of(text: str, beginning: str, entry_point: str) -> str | None:
    """The program in a response: its last fenced block, one that defines `entry_point` first of
    all, or the response itself. None when that is empty.

    What continues the problem's `beginning` is put after it, up to where another definition begins.
    What stands for itself gets the beginning's imports and helpers, where that is Python.
    """
    whole = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{re.escape(entry_point)}\b|^{re.escape(entry_point)}[ \t]*=", re.M)
    blocks = _BLOCK.findall(text)
    code = next((block for block in reversed(blocks) if whole.search(block)), blocks[-1] if blocks else text)
    if not code.strip():
        return None
    if whole.search(code):
        try:
            compile(beginning, "beginning", "exec")
        except (SyntaxError, ValueError):
            return code
        return f"{beginning}\n\n{code}"
    return beginning + (code if blocks else _NEXT.split(code, maxsplit=1)[0])


def verdicts(rollouts: list[Rollout], limits: Limits) -> list[Verdict]:
    """What became of each response, in order. A program that runs out of time or memory is wrong;
    a test that is broken is a `grader_error`."""
    rows = [r.prompt.entry for r in rollouts]
    programs = [program_of(r.spoken, row["prompt"], row["entry_point"]) for r, row in zip(rollouts, rows)]
    jobs = [
        sandbox.Job(program, row["entry_point"], row["test"], row["prompt"])
        for program, row in zip(programs, rows)
        if program is not None
    ]
    passed = iter(sandbox.run(jobs, limits))
    named = {True: Verdict.CORRECT, False: Verdict.WRONG, None: Verdict.GRADER_ERROR}
    none = lambda rollout: Verdict.TRUNCATED if rollout.finish == "length" else Verdict.NO_ANSWER
    return [none(r) if program is None else named[next(passed)] for r, program in zip(rollouts, programs)]
