"""The weight of tokens with A > 0 in small steps towards a target entropy.

    λ ← λ − δ where H < H*, else λ + δ, within [least, most]

Reinforcing what is right is what lowers entropy most. In the spirit of Positive-Advantage
Reweighting (arXiv 2511.05993), which moves λ by 0.05 by H against a threshold; where it begins and
its bounds are not known to us, 1 and 0 to 2 are assumed, so it does not bear that name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("loss.positive",)


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the entropy/mean to hold, nats", least=0)
    delta: float = knob(0.05, "δ: what the weight moves by in a step", above=0)
    least: float = knob(0.0, "lower bound of the weight", least=0)
    most: float = knob(2.0, "upper bound of the weight", above=0)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["loss.name"] != "sign_weighted":
        return "controller.name", "sets a weight of loss.name=sign_weighted"
    if not p.least <= flat["loss.positive"] <= p.most:
        return "loss.positive", f"must be within controller.least={p.least:g} and most={p.most:g}"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.weight = p, start["loss.positive"]

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        moved = self.weight + (-self.p.delta if metrics["entropy/mean"] < target(0) else self.p.delta)
        self.weight = min(max(moved, self.p.least), self.p.most)
        return {"loss.positive": self.weight}, {}

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def restore(self, state: dict[str, Any]) -> None:
        self.weight = state["weight"]
