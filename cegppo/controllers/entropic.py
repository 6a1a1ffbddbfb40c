"""EntroPIC: proportional-integral control of α, the pull on tokens that are nearly certain.

    e = H − H*,  α of the next step = clip(K_p e + K_i Σ e, −1, 1),  Σ over the steps before

Source: arXiv 2511.15248, its code (K_p 1, K_i 0.01, bounds ±1, Σ without this step's error). The
code takes H of the micro-batch under way and adds up to one error a mini-batch to the sum; here
both are once a step, with H of the step before. So K_i is smaller, by the number of updates a step,
than the same number there. The sum has no bound, as in the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("loss.alpha",)


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the entropy/mean to hold, nats", least=0)
    proportional: float = knob(1.0, "K_p: α per nat of error", least=0)
    integral: float = knob(0.01, "K_i: α per nat of summed error", least=0)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    return None if flat["loss.name"] == "entropic" else ("controller.name", "sets α of loss.name=entropic")


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.total = p, 0.0

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        error, integral = metrics["entropy/mean"] - target(0), self.p.integral * self.total
        self.total += error
        alpha = min(max(self.p.proportional * error + integral, -1.0), 1.0)
        return {"loss.alpha": alpha}, {"integral": integral}

    def state(self) -> dict[str, Any]:
        return {"total": self.total}

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"]
