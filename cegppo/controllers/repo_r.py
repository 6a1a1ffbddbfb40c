"""REPO-R's ζ: doubled or halved towards a target entropy, and turned over where it is smallest.

    H < H*: ζ is to go up: |ζ| ← 2 |ζ| where ζ > 0, |ζ| / 2 where ζ < 0, and ζ ← +least where
            that would be below least
    H > H*: the same downwards

Source: arXiv 2603.11682, Appendix D.2, by SkyRL's code and notes on it: |ζ| within [1e-4, 0.05],
from 1e-3, once a step. Its target is a setting; 0.3 is that of SkyRL's example. ζ begins at the
configured `loss.zeta`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("loss.zeta",)


@dataclass(frozen=True)
class Params:
    target: float = knob(0.3, "H*: the entropy/mean to keep, nats", least=0)
    least: float = knob(1e-4, "the smallest |ζ|, at which it changes its sign", above=0)
    most: float = knob(0.05, "the largest |ζ|", above=0, most=1)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if not p.least <= abs(flat["loss.zeta"]) <= p.most:
        return "loss.zeta", f"must be within ±controller.least={p.least:g} and most={p.most:g}"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.zeta = p, start["loss.zeta"]

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        up = 1.0 if metrics["entropy/mean"] < target(0) else -1.0
        if metrics["entropy/mean"] != target(0):
            along = up * self.zeta  # where positive, |ζ| grows
            if along > 0:
                self.zeta = up * min(2 * along, self.p.most)
            else:
                self.zeta = -up * -along / 2 if -along / 2 >= self.p.least else up * self.p.least
        return {"loss.zeta": self.zeta}, {}

    def state(self) -> dict[str, Any]:
        return {"zeta": self.zeta}

    def restore(self, state: dict[str, Any]) -> None:
        self.zeta = state["zeta"]
