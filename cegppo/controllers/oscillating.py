"""Oscillating decay of the flexible clip: the entropy swings between a floor and a falling ceiling.

    H ≤ floor · H₀:   raise from now on:  loss.upper, loss.lower = 1, 0
    H > target · H₀:  lower from now on:                           0, 1
    else as before; H₀ is the entropy of the first step, and `target`, as a share of it, goes from 1
    to the floor in a line over the run

Source: arXiv 2602.09782, its third course, by its authors' notes: floor 0.2. In which direction a
run begins is not said; the first step has the configured values, and so has what follows until one
of the two is so. `controller/target` is the ceiling in nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("loss.upper", "loss.lower")
RAISE, LOWER = (1.0, 0.0), (0.0, 1.0)


@dataclass(frozen=True)
class Params:
    target: float = knob(1.0, "the ceiling, as a share of the first step's entropy/mean", least=0)
    floor: float = knob(0.2, "the floor, as a share of it", least=0, most=1)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["loss.name"] != "flexible_clip":
        return "controller.name", "sets the mixtures of loss.name=flexible_clip"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.mixture = p, [start[key] for key in SETS]
        self.first: float | None = None

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        entropy = metrics["entropy/mean"]
        self.first = entropy if self.first is None else self.first
        ceiling = target(0) * self.first
        if entropy <= self.p.floor * self.first:
            self.mixture = list(RAISE)
        elif entropy > ceiling:
            self.mixture = list(LOWER)
        return dict(zip(SETS, self.mixture, strict=True)), {"target": ceiling, "error": ceiling - entropy}

    def state(self) -> dict[str, Any]:
        return {"mixture": self.mixture, "first": self.first}

    def restore(self, state: dict[str, Any]) -> None:
        self.mixture, self.first = state["mixture"], state["first"]
