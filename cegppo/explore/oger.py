"""OGER: a teacher's solution stands in each group, and a right answer that is unlike the teacher's
earns more, the surer its end is.

    s_ij   cosine of response i and the teacher's solution j;  D_i = 1 − mean_j s_ij
    swap   the `swap` responses of a group with the smallest D make room for as many of the
           teacher's solutions, drawn at random
    R_i    R^m_i (1 + `bonus` · D_i · exp(−H_i)) for the policy's own, H_i the entropy before its
           last token; R^m_i for the teacher's. R^m is 0 for a failed and 1 for a right answer; the
           result is put on the scale of `reward_values`

and advantages are a group's, of R. A prompt that the teacher says nothing to is left as it is.

Ratio. The policy's own responses: against the policy that starts the step. The teacher's: with
`ratio: teacher` against the teacher, whose log-probabilities the worked solutions have and a file
may have; with `ratio: policy` against the policy that starts the step, as if it had written them.

With `swap` and `bonus` 0 it is the plain loop.

Source: arXiv 2604.18530, whose formulas were read in a review and not in the paper. Its encoder was
not found: here a response is the vector of how often it has each token. docs/methods.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..types import Group, Prompt, Rollout, TokenBatch, knob
from . import Explorer, Run, Solution


@dataclass(frozen=True)
class Params:
    teacher: str = knob("worked", "worked: the testbed's worked solutions | a .jsonl, .json or .parquet file")
    solutions: int = knob(3, "of a teacher to a prompt that responses are compared with, at most", least=1)
    swap: int = knob(1, "responses of a group that a teacher's replace", least=0)
    ratio: Literal["teacher", "policy"] = knob("teacher", "a teacher's ratio is against the teacher | the policy")
    bonus: float = knob(1.0, "coefficient of divergence times confidence", least=0)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if p.swap >= flat["group_size"]:
        return "explore.swap", f"must be below group_size={flat['group_size']}, so that the policy has a response"
    return None


def cosine(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Of the vectors of how often each token occurs; in [0, 1]."""
    places = {token: place for place, token in enumerate(dict.fromkeys((*left, *right)))}
    a, b = (np.bincount([places[token] for token in tokens], minlength=len(places)) for tokens in (left, right))
    return float(a @ b / np.sqrt(float(a @ a) * float(b @ b)))


def divergence(response: tuple[int, ...], solutions: list[Solution]) -> float:
    """D of a response."""
    return 1 - float(np.mean([cosine(response, solution.token_ids) for solution in solutions]))


class Rule(Explorer):
    p: Params

    def __init__(self, p: Params, run: Run):
        super().__init__(p, run)
        self.divergence: dict[tuple[str, int], float] = {}  # D of (prompt id, index) in this step
        self.counts: dict[str, float] = {}

    def chosen(self, groups: list[Group], step: int) -> list[Group]:
        self.divergence, taught = {}, 0
        swaps: dict[tuple[int, int], Rollout] = {}  # by group and place
        for n, group in enumerate(groups):
            if solutions := self._solutions(group.prompt):
                taught += 1
                swaps |= {(n, place): rollout for place, rollout in self._swaps(group, solutions, step).items()}
        found = dict(zip(swaps, self.run.score(list(swaps.values()), step)))
        mean = float(np.mean(list(self.divergence.values()))) if self.divergence else 0.0
        self.counts = {"taught": taught / max(1, len(groups)), "divergence": mean, "bonus": 0.0}
        return [
            replace(
                group,
                rollouts=tuple(swaps.get((n, g), rollout) for g, rollout in enumerate(group.rollouts)),
                scores=tuple(found.get((n, g), score) for g, score in enumerate(group.scores)),
            )
            for n, group in enumerate(groups)
        ]

    def _solutions(self, prompt: Prompt) -> list[Solution]:
        return [] if self.run.teacher is None else self.run.teacher.solutions(prompt)[: self.p.solutions]

    def _swaps(self, group: Group, solutions: list[Solution], step: int) -> dict[int, Rollout]:
        """What a teacher's solutions replace in a group, by place."""
        d_G = [divergence(rollout.token_ids, solutions) for rollout in group.rollouts]
        self.divergence |= {(group.prompt.id, r.index): d for r, d in zip(group.rollouts, d_G)}
        places = np.argsort(d_G, kind="stable")[: self.p.swap].tolist()
        order = self.generator(step, group.prompt).permutation(len(solutions)).tolist()
        return {place: self._written(group.rollouts[place], solutions[j]) for place, j in zip(places, order)}

    def _written(self, gone: Rollout, solution: Solution) -> Rollout:
        """A teacher's solution in the place of a response."""
        old = solution.logprobs if self.p.ratio == "teacher" else None
        return Rollout(gone.prompt, gone.index, solution.token_ids, (), "stop", solution.text, "teacher", old)

    def rewards(self, groups: list[Group], x: TokenBatch) -> list[np.ndarray]:
        last_B = x.length_B.long() - 1
        entropy_B = x.old_entropy_BT.gather(1, last_B[:, None])[:, 0].tolist()
        failed, correct = self.run.values
        made, row, bonuses = super().rewards(groups, x), 0, []
        for group, reward_G in zip(groups, made):
            for g, (rollout, score) in enumerate(zip(group.rollouts, group.scores)):
                d = self.divergence.get((rollout.prompt.id, rollout.index))
                if d is not None and rollout.origin != "teacher" and score.graded > failed:
                    bonus = self.p.bonus * d * np.exp(-entropy_B[row]) * (score.graded - failed) / (correct - failed)
                    reward_G[g] += (correct - failed) * bonus
                    bonuses.append(bonus)
                row += 1
        self.counts["bonus"] = float(np.mean(bonuses)) if bonuses else 0.0
        return made

    def facts(self) -> dict[str, float]:
        return self.counts
