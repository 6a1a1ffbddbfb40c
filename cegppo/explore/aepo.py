"""AEPO: a few responses of a hotter or a colder policy, by the entropy against its target, are
reinforced as they are.

    T         `high` where H ≤ H*, else `low`; H of the policy's own tokens in the step before, 0
              before the first
    again     a group at T to the first `prompts` of the step's prompts
    kept      those with A > `least`, which are the right ones of groups that are not all right; at
              most `replace` of the step's responses, half of that where H > H*
    trained   with the advantage 1, in the place of as many of the step's first responses

so that the step's gradient has the term Σ ∇log π_θ(y), y from the policy at T and right.

Ratio. Of all responses, those at T included: against the policy that starts the step, at the
training temperature. That is the method and no oversight: with the ratio that is right for what
they were sampled from, the term's expectation would not know of T. At the first update the ratio is
1 and the loss's weight is that of REINFORCE; later the loss's clip acts on it like on all others.

With `replace` 0, or where nothing is kept, it is the plain loop.

Source: arXiv 2510.08141, the authors' code. docs/methods.md has what is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import Group, knob
from . import Explorer, Run, tokens, under_policy


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the entropy of the policy's own tokens to be had, nats", least=0)
    high: float = knob(1.2, "temperature where the entropy is at most the target", above=0)
    low: float = knob(0.8, "temperature where it is above", above=0)
    prompts: float = knob(0.25, "share of the step's prompts that are sampled again", above=0, most=1)
    least: float = knob(0.05, "A above which such a response trains", least=0)
    replace: float = knob(60 / 2560, "share of the step's responses that they replace at most", least=0, most=1)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if p.low > p.high:
        return "explore.low", f"must be at most explore.high={p.high:g}"
    return None


class Rule(Explorer):
    p: Params

    def __init__(self, p: Params, run: Run):
        super().__init__(p, run)
        self.entropy = 0.0  # of the policy's own tokens in the last step that trained any
        self.counts: dict[str, float] = {}

    def chosen(self, groups: list[Group], step: int) -> list[Group]:
        p, cold = self.p, self.entropy > self.p.target
        temperature = p.low if cold else p.high
        first = [group.prompt for group in groups[: max(1, round(p.prompts * len(groups)))]]
        most = round(p.replace * sum(map(len, groups))) // (2 if cold else 1)
        again = self.again(first, self.run.group_size, step, temperature) if most else []
        kept: list[Group] = []
        for group in map(under_policy, again):
            right = np.flatnonzero(self.advantages(group) > p.least)[: most - sum(map(len, kept))]
            kept.append(group.only(right.tolist(), [1.0] * len(group)))
        count = sum(map(len, kept))
        self.counts = {
            "temperature": temperature,
            "entropy": self.entropy,
            "tempered": float(count),
            "tokens": tokens(again),
        }
        return [group for group in (*kept, *self._without(groups, count)) if len(group)]

    def _without(self, groups: list[Group], count: int) -> list[Group]:
        """`groups` without their first `count` responses, whose part in the advantages stays."""
        left = []
        for group in groups:
            gone = min(count, len(group))
            count -= gone
            left.append(group.only(range(gone, len(group)), self.advantages(group).tolist()) if gone else group)
        return left

    def facts(self) -> dict[str, float]:
        return self.counts

    def observe(self, metrics: dict[str, float]) -> None:
        self.entropy = metrics.get("entropy/policy", self.entropy)

    def state(self) -> dict[str, Any]:
        return {"entropy": self.entropy}

    def restore(self, state: dict[str, Any]) -> None:
        self.entropy = state["entropy"]
