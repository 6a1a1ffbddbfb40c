"""β₁ and β₂ of CE-GPPO set from the run's own levers, so that the entropy follows a target.

The levers L_low and L_high (docs/entropy.md) are what giving a side's gradient back in full does to
the entropy, per unit of β, whatever β the run has. Of a step it is assumed that

    H(s + 1) = H(s) + d + g · (β₁ L_low + β₂ L_high)

with d the drift that comes from everything else, and g the entropy that a unit of lever moves.
After each step:

    h, d  what H and d are thought to be. With i = H − (h + d + g β · L), what was not foretold from
          the step before: h ← H − (1 − 1/`entropy_memory`) i, d ← d + i / (`entropy_memory` ·
          `memory`). β is the one that was used, so that a β at its bound winds nothing up
    L     median of the last `lever_memory` steps with levers, times max(0, 1 − (s / median)²),
          s its standard error (from the median deviation). 0 where fewer than three are known,
          and where `levers: ledger` and those of logit space differ in sign. When L changes,
          d + g β · L stays: what is newly known of the sides is taken out of the drift
    w     wanted drift: (H*(s + horizon) − h) / horizon
    β     what is nearest to the configured (β₁, β₂) within the bounds and has d + g β · L = w;
          where there is none, the β whose drift is nearest to w. Neither moves by more than `rate`
          a step

    reach = 1 − |w − foretold| / |w − d|: the share of what is wanted of the two sides that they can
    give within the bounds, by what is known. 1 where β reaches it.

No source: arXiv 2509.20712 leaves β that sets itself to the future. `levers: ledger` takes those of
parameter space, in looked-at steps. `gain` is then 4: in the regimes of a coin (results/map) the
high side moved the entropy by 2 to 5 times its lever. `levers: logit` takes those of every step,
whose size means nothing by itself; `gain` is then 0.35, by the same runs. What `gain` misjudges
ends up in d. Without levers, which is before the third looked-at step, β stays as configured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import median
from typing import Any, Literal

from ..types import knob
from . import Target

SETS = ("loss.beta1", "loss.beta2")
NAMES = {"ledger": ("ledger/lever_low", "ledger/lever_high"), "logit": ("lever/low", "lever/high")}
GAINS = {"ledger": 4.0, "logit": 0.35}  # where `gain` is 0
FEWEST = 3  # levers that say how far they scatter
STATE = ("beta", "entropy", "drift", "steps", "lever", "given", "looks")  # what of the rule a resumed run needs


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the entropy/mean to hold, nats", least=0)
    horizon: int = knob(20, "steps in which the entropy is to be brought to the target", least=2)
    rate: float = knob(0.1, "the most that either β moves in a step", above=0)
    levers: Literal["ledger", "logit"] = knob("ledger", "of parameter space, looked-at steps | of every step")
    entropy_memory: float = knob(3.0, "steps over which the entropy is taken that is held to the target", least=1)
    memory: float = knob(20.0, "steps over which the drift is taken", above=1)
    lever_memory: int = knob(10, "steps with levers whose median is taken", least=3)
    gain: float = knob(0.0, "entropy that a unit of lever moves; 0: that of the kind of levers", least=0)
    beta1_least: float = knob(0.0, "lower bound of β₁", least=0)
    beta1_most: float = knob(1.0, "upper bound of β₁", least=0)
    beta2_least: float = knob(0.0, "lower bound of β₂", least=0)
    beta2_most: float = knob(1.0, "upper bound of β₂", least=0)


def problem(p: Params, flat: Mapping[str, Any]) -> tuple[str, str] | None:
    if flat["loss.name"] != "cegppo":  # another loss's β may mean anything
        return "controller.name", "sets β of loss.name=cegppo"
    for name in ("beta1", "beta2"):
        least, most = getattr(p, f"{name}_least"), getattr(p, f"{name}_most")
        if not least <= flat[f"loss.{name}"] <= most:
            return f"loss.{name}", f"must be within controller.{name}_least={least:g} and {name}_most={most:g}"
    if p.levers == "ledger" and not flat["diagnostics.every"]:
        return "diagnostics.every", "must be above 0 with controller.levers=ledger"
    return None


def choose(
    lever: list[float], wanted: float, least: list[float], most: list[float], near: list[float]
) -> tuple[list[float], float]:
    """(β, β · lever): of the β within the bounds whose β · lever is as near to `wanted` as it can
    be, the one nearest to `near`, which is within them."""
    edges = [sorted((L * a, L * b)) for L, a, b in zip(lever, least, most, strict=True)]
    lowest, highest = sum(edge[0] for edge in edges), sum(edge[1] for edge in edges)
    if not lowest < wanted < highest:
        up = wanted >= highest
        far = [b if (L > 0) == up else a for L, a, b in zip(lever, least, most, strict=True)]
        return [f if L else n for L, f, n in zip(lever, far, near, strict=True)], highest if up else lowest
    # The line β · lever = wanted: its point nearest to `near`, then along it into the bounds.
    largest = max(map(abs, lever))  # so that no square underflows
    lever, wanted = [L / largest for L in lever], wanted / largest
    square = sum(L * L for L in lever)
    short = (wanted - sum(L * n for L, n in zip(lever, near, strict=True))) / square
    foot = [n + short * L for L, n in zip(lever, near, strict=True)]
    along = [-lever[1], lever[0]]
    ranges = [sorted(((a - f) / t, (b - f) / t)) for f, t, a, b in zip(foot, along, least, most, strict=True) if t]
    step = min(max(0.0, *(r[0] for r in ranges)), *(r[1] for r in ranges), float("inf"))
    beta = [min(max(f + step * t, a), b) for f, t, a, b in zip(foot, along, least, most, strict=True)]
    return beta, wanted * largest


def strength(levers: list[float]) -> float:
    """What is known of a lever by `levers`: their median, the less of it the less sure its sign;
    0.0 for fewer than three."""
    if len(levers) < FEWEST or not (middle := median(levers)):
        return 0.0
    deviation = 1.4826 * median(abs(L - middle) for L in levers)  # the standard deviation of what is normal
    error = 1.2533 * deviation / sqrt(len(levers))  # and that of its median
    return middle * max(0.0, 1 - (error / middle) ** 2)


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.near = p, [start[key] for key in SETS]
        self.least, self.most = [p.beta1_least, p.beta2_least], [p.beta1_most, p.beta2_most]
        self.gain = p.gain or GAINS[p.levers]
        self.beta = list(self.near)
        self.entropy, self.drift, self.steps = 0.0, 0.0, 0.0  # h, d, and the weight of the steps in h
        self.lever, self.given = [0.0, 0.0], 0.0  # L, and g β · L of the last step
        self.looks: list[list[float]] = []  # levers of the last steps with them, by NAMES: ledger's, then logit's

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        p, entropy = self.p, metrics["entropy/mean"]
        self._look([metrics.get(name, float("nan")) for kind in (p.levers, "logit") for name in NAMES[kind]])
        expected = self.entropy + self.drift + self.given if self.steps else entropy
        surprise = entropy - expected
        self.steps = (1 - 1 / p.entropy_memory) * self.steps + 1
        self.entropy = expected + surprise / self.steps
        self.drift += surprise / self.steps / p.memory
        lever = self.levers()
        self.drift += self._effect(self.lever) - self._effect(lever)
        self.lever, self.given = lever, self._effect(lever)
        wanted = (target(p.horizon) - self.entropy) / p.horizon
        chosen, given = choose(lever, (wanted - self.drift) / self.gain, self.least, self.most, self.near)
        self.beta = [b + min(max(c - b, -p.rate), p.rate) for b, c in zip(self.beta, chosen, strict=True)]
        foretold = self.drift + self.gain * given
        asked, missed = abs(wanted - self.drift), abs(wanted - foretold)
        facts = {
            "wanted": wanted,
            "foretold": foretold,
            "reach": max(0.0, 1 - missed / asked) if asked else 1.0,
            "drift": self.drift,
            "lever_low": lever[0],
            "lever_high": lever[1],
        }
        return dict(zip(SETS, self.beta, strict=True)), facts

    def _effect(self, lever: list[float]) -> float:
        return self.gain * sum(b * L for b, L in zip(self.beta, lever, strict=True))

    def levers(self) -> list[float]:
        """L_low and L_high, by what is known of them."""
        columns = [list(column) for column in zip(*self.looks, strict=True)] or [[], [], [], []]
        pairs = zip(columns[:2], columns[2:], strict=True)
        return [L if (L := strength(own)) and L * median(logit) > 0 else 0.0 for own, logit in pairs]

    def _look(self, levers: list[float]) -> None:
        if all(map(isfinite, levers)):
            self.looks = [*self.looks, levers][-self.p.lever_memory :]

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state[name])
