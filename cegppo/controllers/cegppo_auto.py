"""β₁ and β₂ of CE-GPPO set from the run's own levers, so that the entropy follows a target.

The levers L_low and L_high (docs/entropy.md) are what giving a side's gradient back in full does to
the entropy, per unit of β, whatever β the run has. Of a step it is assumed that

    H(s + 1) − H(s) = d + g · (β₁ L_low + β₂ L_high)

with d the drift that comes from everything else, and g the entropy that a unit of lever moves.
After each step:

    L    mean of the levers of steps that have one, exponential over `lever_memory` of them, each
         weighted so that the first ones count in full
    g    slope of what the entropy did in answer to β · L, over `memory` steps. It is the mean of a
         normal posterior whose prior has mean and deviation `gain`; its noise is what the prior
         leaves unexplained. Kept within a tenth and ten times of `gain`: the levers' sign is
         believed, their size is learnt
    d    (Σ ΔH − g Σ β · L) / memory, sums exponential over `memory` steps. It begins at 0
    w    wanted drift: (H*(s + horizon) − h) / horizon + integral / horizon² · Σ e,  e = H* − h,
         h the mean of H, exponential over `entropy_memory` steps: a step's own H jumps about with
         its prompts. Σ stands still while the levers are too weak in the direction of e
    β    what is nearest to the configured (β₁, β₂) within the bounds and has d + g β · L = w. Where
         there is none, the β whose drift is nearest to w, and the metrics say so:

    reach = 1 − |w − foretold| / |w − d|: the share of what is wanted of the two sides that they can
    give, by what is known. 1 where β reaches it.

No source: arXiv 2509.20712 leaves β that sets itself to the future. `levers: ledger` takes those of
parameter space, in looked-at steps; `gain` is then 1/(1 − β₁) of AdamW with 0.9, the eventual
effect, which docs/entropy.md finds too large. `levers: logit` takes those of every step, whose size
means nothing by itself; `gain` is then 0.05, the quotient of the two kinds of levers in GRPO's runs
on the testbed. Without levers, which is before the first looked-at step, β stays as configured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from ..types import knob
from . import Target

SETS = ("loss.beta1", "loss.beta2")
NAMES = {"ledger": ("ledger/lever_low", "ledger/lever_high"), "logit": ("lever/low", "lever/high")}
GAINS = {"ledger": 10.0, "logit": 0.05}  # where `gain` is 0
WIDEST = 10.0  # how far the gain may go from its start, as a factor
STATE = (
    "beta",
    "entropy",
    "steps",
    "lever",
    "looks",
    "sums",
    "before",
    "total",
)  # what of the rule a resumed run needs


@dataclass(frozen=True)
class Params:
    target: float = knob(0.5, "H*: the entropy/mean to hold, nats", least=0)
    horizon: int = knob(10, "steps in which the entropy is to be brought to the target", least=2)
    integral: float = knob(0.25, "of the summed error, over horizon²; 0.25 is critical damping, 0: none", least=0)
    levers: Literal["ledger", "logit"] = knob("ledger", "of parameter space, looked-at steps | of every step")
    entropy_memory: float = knob(5.0, "steps over which the entropy is taken that is held to the target", least=1)
    lever_memory: float = knob(10.0, "steps with levers over which their mean is taken", least=1)
    memory: float = knob(20.0, "steps over which drift and gain are taken", above=1)
    gain: float = knob(0.0, "entropy that a unit of lever moves, at the start; 0: of the kind of levers", least=0)
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


class Rule:
    def __init__(self, p: Params, start: dict[str, float]):
        self.p, self.near = p, [start[key] for key in SETS]
        self.least, self.most = [p.beta1_least, p.beta2_least], [p.beta1_most, p.beta2_most]
        self.beta = list(self.near)
        self.entropy, self.steps = 0.0, 0.0  # mean entropy, and the weight of the steps in it
        self.lever, self.looks = [0.0, 0.0], 0.0  # mean lever, and that
        # Exponential sums over steps of 1, x, y, xx, xy, yy: x = β · L of a step, y = H of the next
        # less H of it.
        self.sums = [0.0] * 6
        self.before: list[float] | None = None  # H and x of the last step
        self.total = 0.0  # Σ e

    def decide(self, metrics: dict[str, float], target: Target) -> tuple[dict[str, float], dict[str, float]]:
        p, entropy = self.p, metrics["entropy/mean"]
        if self.before is not None:
            self._learn(self.before[1], entropy - self.before[0])
        self._look([metrics.get(name, float("nan")) for name in NAMES[p.levers]])
        if self.looks:
            self.before = [entropy, sum(b * L for b, L in zip(self.beta, self.lever, strict=True))]
        self.steps = (1 - 1 / p.entropy_memory) * self.steps + 1
        self.entropy += (entropy - self.entropy) / self.steps
        gain, drift = self.gain(), self.drift()
        error, far = target(0) - self.entropy, (target(p.horizon) - self.entropy) / p.horizon
        pull = p.integral / p.horizon**2
        missing = lambda wanted: (wanted - drift) / gain - self._choose((wanted - drift) / gain)[1]
        if missing(far + pull * self.total) * error <= 0:
            self.total += error
        wanted = far + pull * self.total
        self.beta, given = self._choose((wanted - drift) / gain)
        asked, missed = abs(wanted - drift), abs(wanted - drift - gain * given)
        facts = {
            "wanted": wanted,
            "foretold": drift + gain * given,
            "reach": max(0.0, 1 - missed / asked) if asked else 1.0,
            "drift": drift,
            "gain": gain,
            "lever_low": self.lever[0],
            "lever_high": self.lever[1],
            "integral": pull * self.total,
        }
        return dict(zip(SETS, self.beta, strict=True)), facts

    def gain(self) -> float:
        """g: nats of entropy a step per unit of lever."""
        start = self.p.gain or GAINS[self.p.levers]
        count, x, y, xx, xy, yy = self.sums
        if not count:
            return start
        spread, both, rest = xx - x * x / count, xy - x * y / count, yy - y * y / count
        if spread <= 1e-9 * xx:  # rounding of a β that has not moved
            return start
        noise = max(0.0, rest - 2 * start * both + start * start * spread) / count
        prior = noise / start**2
        return min(max((both + start * prior) / (spread + prior), start / WIDEST), start * WIDEST)

    def drift(self) -> float:
        """d: nats of entropy a step that do not come from the two sides."""
        return (self.sums[2] - self.gain() * self.sums[1]) / self.p.memory

    def _learn(self, x: float, y: float) -> None:
        keep = 1 - 1 / self.p.memory
        self.sums = [keep * s + v for s, v in zip(self.sums, (1.0, x, y, x * x, x * y, y * y), strict=True)]

    def _look(self, lever: list[float]) -> None:
        if all(map(isfinite, lever)):
            self.looks = (1 - 1 / self.p.lever_memory) * self.looks + 1
            self.lever = [m + (L - m) / self.looks for m, L in zip(self.lever, lever, strict=True)]

    def _choose(self, wanted: float) -> tuple[list[float], float]:
        return choose(self.lever, wanted, self.least, self.most, self.near)

    def state(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, state[name])
