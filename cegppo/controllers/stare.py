"""STARE's gate: the weights of surprising tokens, while the entropy is below its target.

    W ← W + α, M ← M − α where H < H*, else W − α and M + α; W within [1, most], M within [least, 1]
    loss.positive, loss.negative of the next step: W and M where H < H*, else 1 and 1

Source: arXiv 2606.19236, Sections 4.3 and 4.4, its code: H* 0.3; α is 0 in its scripts (0.01 where
the weights adapt), bounds 1.5 and 0.5. Its gate has the H of the step under way, here it is that of
the step before. W and M begin at the configured `loss.positive` and `loss.negative`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("loss.positive", "loss.negative")


@dataclass(frozen=True)
class Params:
    target: float = knob(0.3, "H*: the entropy/mean below which surprising tokens are weighted, nats", least=0)
    alpha: float = knob(0.0, "α: what the weights move by in a step; 0: not at all", least=0)
    most: float = knob(1.5, "upper bound of loss.positive", least=1)
    least: float = knob(0.5, "lower bound of loss.negative", least=0, most=1)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["loss.name"] != "stare":  # of another loss these knobs are about other tokens
        return "controller.name", "sets the weights of loss.name=stare"
    if not 1 <= flat["loss.positive"] <= p.most:
        return "loss.positive", f"must be within 1 and controller.most={p.most:g}"
    if not p.least <= flat["loss.negative"] <= 1:
        return "loss.negative", f"must be within controller.least={p.least:g} and 1"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.weights = p, [start[key] for key in SETS]

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        p, short = self.p, target(0) - metrics["entropy/mean"]
        step = p.alpha * ((short > 0) - (short < 0))
        self.weights = [min(max(self.weights[0] + step, 1.0), p.most), max(min(self.weights[1] - step, 1.0), p.least)]
        return dict(zip(SETS, self.weights if short > 0 else (1.0, 1.0), strict=True)), {}

    def state(self) -> dict[str, Any]:
        return {"weights": self.weights}

    def restore(self, state: dict[str, Any]) -> None:
        self.weights = state["weights"]
