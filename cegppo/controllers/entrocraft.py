"""Entrocraft's band: only right answers train above it, only wrong ones below it, both inside.

    H > H* + width / 2:     loss.positive, loss.negative = 1, 0
    H < H* − width / 2:                                    0, 1
    else                                                   1, 1

Source: arXiv 2604.26326, its code: the band's bounds go in a line over the run, 0.7 and 0.6 to 0.5
and 0.4 in its script (here the target is the middle of both). Outside the band its code takes the
raw reward of ±1 as the advantage, so that groups that agree train there too; here it is the
group's, whose sign is the same in a group that does not. Its H is that of the step under way, here
it is that of the step before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..types import knob
from . import Target

SETS = ("loss.positive", "loss.negative")


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the middle of the band, nats", least=0)
    width: float = knob(0.1, "width of the band, nats", least=0)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["loss.name"] != "sign_weighted":
        return "controller.name", "sets the weights of loss.name=sign_weighted"
    return None


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p = p

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        above, half = metrics["entropy/mean"] - target(0), self.p.width / 2
        return dict(zip(SETS, (float(above >= -half), float(above <= half)), strict=True)), {}

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass
