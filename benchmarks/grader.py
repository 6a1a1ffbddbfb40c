"""Our grader on two workers against math-verify alone, how many answers need sympy, and whether
every reference equals itself.

Each FILE is JSONL with one problem a line and its reference in `answer`. The answers graded are the
references themselves for one half of the problems and the reference of the next problem, which is
mostly wrong, for the other half. Graded again without the short-cut, every reference against itself
says how much of a benchmark's notation math-verify understands.

    python benchmarks/grader.py math500.jsonl gsm8k.jsonl …
"""

import json
import logging
import statistics
import sys
import time
from pathlib import Path

from common import machine, paired, ratio_line

from cegppo.config import Limits
from cegppo.problems import comparison, grader, reward
from cegppo.types import Prompt, Rollout

WORKERS = 2
ROUNDS = 3


def rollout(reference: str, answer: str) -> Rollout:
    return Rollout(Prompt("b/0", "b", "", (), reference), 0, (), (), "stop", f"So it is $\\boxed{{{answer}}}$.")


def main(paths: list[str]) -> None:
    if not paths:
        sys.exit(__doc__)
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    limits = Limits(workers=WORKERS)
    print(machine(), "\n")
    notes = []
    print("| answers | ours | math-verify | ours / math-verify |\n|---|---|---|---|")
    for path in paths:
        references = [
            str(json.loads(line)["answer"])
            for line in Path(path).read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        answers = [r if i % 2 else references[(i + 1) % len(references)] for i, r in enumerate(references)]
        plain, rest = [], []
        for reference, answer in zip(references, answers):
            (rest if comparison.quick(answer, reference) is None else plain).append(rollout(reference, answer))
        name = Path(path).name

        def ours() -> None:
            reward.verdicts(plain + rest, limits)

        def theirs() -> None:
            for r in plain + rest:
                verify(parse(f"\\boxed{{{r.prompt.answer}}}"), parse(r.text))

        print(ratio_line(f"{name}, {len(answers)}", *paired(ours, theirs, ROUNDS)), flush=True)
        rates = []
        for part in (plain, rest):
            seconds = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                reward.verdicts(part, limits)
                seconds.append(time.perf_counter() - start)
            rates.append(f"{len(part) / statistics.median(seconds):,.0f}" if part else "–")
        same = grader.grade([(r, r) for r in references], limits)
        share = f"{len(plain) / len(answers):.1%}"
        notes.append(f"| {name} | {share} | {rates[0]} | {rates[1]} | {same.count(True)} of {len(same)} |")
    print(
        "\n| file | settled without sympy | those, a second | the others, a second | reference = itself"
        " |\n|---|---|---|---|---|"
    )
    print("\n".join(notes))


if __name__ == "__main__":
    main(sys.argv[1:])
