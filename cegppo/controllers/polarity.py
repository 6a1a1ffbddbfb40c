"""The drift that token weights by polarity aim at (`advantage.polarity`), from the entropy.

    drift of the next step: clip(`gain` · (H* − h), −`most`, `most`)
    h: mean of H, exponential over `memory` steps

No source: PAPO (arXiv 2605.11775) lets the course of the entropy say where the pressure goes, by a
rule that is not public. This one is the simplest that does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("advantage.polarity_drift",)


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the entropy/mean to hold, nats", least=0)
    gain: float = knob(2.0, "drift that is asked for per nat that is missing", above=0)
    most: float = knob(0.5, "largest drift that is asked for", above=0, most=1)
    memory: float = knob(5.0, "steps over which the mean of the entropy is taken", least=1)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["advantage.polarity"] <= 1:
        return "advantage.polarity", "must be above 1 (off) with controller.name=polarity"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p = p
        self.entropy, self.steps = 0.0, 0.0  # mean entropy, and the weight of the steps in it

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        self.steps = (1 - 1 / self.p.memory) * self.steps + 1
        self.entropy += (metrics["entropy/mean"] - self.entropy) / self.steps
        drift = self.p.gain * (target(0) - self.entropy)
        drift = min(max(drift, -self.p.most), self.p.most)
        return {SETS[0]: drift}, {"entropy": self.entropy}

    def state(self) -> dict[str, Any]:
        return {"entropy": self.entropy, "steps": self.steps}

    def restore(self, state: dict[str, Any]) -> None:
        self.entropy, self.steps = state["entropy"], state["steps"]
