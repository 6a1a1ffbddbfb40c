"""The coefficient of the entropy bonus in small steps towards a target entropy.

    c ← c + δ where H < H*, else c − δ, within [least, most]
    update.entropy_coef of the next step: c where H < H*, else 0

Source: Skywork-OR1 (arXiv 2505.22312, its code): H* 0.2, δ 1e-4, bounds 0 and 0.005. The code takes
H of the mini-batch under way and moves c with every mini-batch; here both are once a step, with H
of the step before. c begins at the configured `update.entropy_coef`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("update.entropy_coef",)


@dataclass(frozen=True)
class Params:
    target: float = knob(0.2, "H*: the entropy/mean below which there is a bonus, nats", least=0)
    delta: float = knob(1e-4, "δ: what the coefficient moves by in a step", above=0)
    least: float = knob(0.0, "lower bound of the coefficient", least=0)
    most: float = knob(0.005, "upper bound of the coefficient", least=0)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if not p.least <= flat["update.entropy_coef"] <= p.most:
        return "update.entropy_coef", f"must be within controller.least={p.least:g} and most={p.most:g}"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.coefficient = p, start["update.entropy_coef"]

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        low = metrics["entropy/mean"] < target(0)
        moved = self.coefficient + (self.p.delta if low else -self.p.delta)
        self.coefficient = min(max(moved, self.p.least), self.p.most)
        return {"update.entropy_coef": self.coefficient if low else 0.0}, {"coefficient": self.coefficient}

    def state(self) -> dict[str, Any]:
        return {"coefficient": self.coefficient}

    def restore(self, state: dict[str, Any]) -> None:
        self.coefficient = state["coefficient"]
