"""The entropy ledger: which tokens moved the entropy in parameter space, and what first order
missed. Exact, for one update.

Around an ordinary update it takes, without touching it:

1. one backward pass per class × clip side, so that the gradients g_c sum to the whole gradient;
2. the optimizer's own state before and after, so that the step Δθ that was actually taken splits
   into one part per class, one for the momentum carried over, one for weight decay and one for
   every other term of the loss. AdamW's preconditioner is the one of this step and gradient-norm
   clipping scales every g_c alike, so the parts sum to Δθ;
3. ∇H on a fixed probe batch: ΔH of a part is ⟨∇H, Δθ_part⟩ to first order;
4. the entropy of the probe batch before and after the step, and after each part of the step alone:
   what really happened.
"""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ranks
from ..model import parallel
from ..model.head import TokenStatistics
from ..model.policy import Policy
from ..objective import Weights
from ..types import TokenBatch
from .entropy import CLASSES, SIDES, ClassRule, clip_side, entropy_change

REST = ("momentum", "decay", "other")  # parts of a step that are no class of tokens


def dot(left: list[Tensor], right: list[Tensor]) -> float:
    """⟨left, right⟩ over all parameters, and over the ranks' shards of them, summed in float64."""
    return ranks.total(
        float(sum((parallel.local(a).double() * parallel.local(b).double()).sum() for a, b in zip(left, right)))
    )


def norm(values: list[Tensor]) -> float:
    return dot(values, values) ** 0.5


def step_parts(
    optimizer: torch.optim.Optimizer, before: "OptimizerState", gradients: dict[str, list[Tensor]], clip: float
) -> dict[str, list[Tensor]]:
    """The step just taken by `optimizer`, linear in the gradients given its own preconditioner, one
    part a gradient and REST.

    `gradients` are the unclipped gradients whose sum was clipped by the factor `clip` and stepped
    on. AdamW and plain SGD.
    """
    group = optimizer.param_groups[0]
    lr, decay = group["lr"], group["weight_decay"]
    parameters = group["params"]
    if isinstance(optimizer, torch.optim.SGD):
        assert not group["momentum"] and not decay, "the ledger knows SGD without momentum and weight decay"
        return {name: [-lr * clip * g for g in values] for name, values in gradients.items()}
    beta1, beta2 = group["betas"]
    slope, carried, shrink = [], [], []
    for p, theta, momentum in zip(parameters, before.theta, before.momentum):
        state = optimizer.state[p]
        t = float(state["step"])
        square = state["exp_avg_sq"].to(p.device)  # offloaded moments live elsewhere
        scale = (square / (1 - beta2**t)).sqrt_().add_(group["eps"]).reciprocal_().mul_(-lr / (1 - beta1**t))
        slope.append(scale * (1 - beta1) * clip)
        carried.append(scale * beta1 * momentum)
        shrink.append(-lr * decay * theta)
    made = {name: [s * g for s, g in zip(slope, values)] for name, values in gradients.items()}
    return {**made, "momentum": carried, "decay": shrink}


@dataclass(frozen=True)
class OptimizerState:
    """Parameters and first moments as they were before a step."""

    theta: list[Tensor]
    momentum: list[Tensor]

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer) -> "OptimizerState":
        parameters = optimizer.param_groups[0]["params"]
        momentum = [
            optimizer.state[p].get("exp_avg", torch.zeros_like(p)).detach().to(p.device, copy=True) for p in parameters
        ]
        return cls([p.detach().clone() for p in parameters], momentum)


@dataclass
class Ledger:
    """One update's ledger. `watch` is called for each micro-batch, `before` and `after` around
    the optimizer's step."""

    policy: Policy
    optimizer: torch.optim.Optimizer
    probe: TokenBatch
    rule: ClassRule
    gradients: dict[str, list[Tensor]] = field(default_factory=dict)  # by "class.side", and "other"
    logit: dict[str, float] = field(default_factory=dict)  # first-order ΔH in logit space, by class
    seconds: float = 0.0

    @property
    def parameters(self) -> list[Tensor]:
        return self.optimizer.param_groups[0]["params"]

    def watch(self, s: TokenStatistics, x: TokenBatch, w: Weights) -> None:
        """Backward passes of one micro-batch, by cell; the graph is kept for the real one."""
        start = time.perf_counter()
        inside = x.mask_BT.bool()
        slope_N = w.slope_BT[inside]
        logprob_N, entropy_N, advantage_N = x.logprob_BT[inside], x.entropy_BT[inside], x.advantage_BT[inside]
        code_N = self.rule.codes(logprob_N, entropy_N, advantage_N)
        side_N = clip_side(x.log_ratio_BT[inside].exp(), advantage_N, w.clip_low_BT[inside], w.clip_high_BT[inside])
        change_N = entropy_change(-slope_N, logprob_N, entropy_N, x.sum_p2_BT[inside], x.sum_p2_logp_BT[inside])
        slopes = {}
        for c, name in enumerate(CLASSES[1:], 1):
            self.logit[name] = self.logit.get(name, 0.0) + float(change_N[code_N == c].sum())
            for side, side_name in enumerate(SIDES):
                slopes[f"{name}.{side_name}"] = [torch.where((code_N == c) & (side_N == side), slope_N, 0.0)]
        slopes["other"] = [w.total_slope_BT[inside] - torch.where(code_N > 0, slope_N, 0.0)]
        if w.entropy_slope_BT is not None:
            slopes["other"].append(w.entropy_slope_BT[inside])
        present = ranks.anywhere([any(bool(v.any()) for v in values) for values in slopes.values()])
        for (name, values), somewhere in zip(slopes.items(), present):
            if somewhere:  # then every rank takes part
                self._add(name, [s.logprob_N, s.entropy_N][: len(values)], values)
        self.seconds += time.perf_counter() - start

    def _add(self, name: str, roots: list[Tensor], slopes: list[Tensor]) -> None:
        made = parallel.gradients(roots, self.parameters, slopes, keep=True)
        have = self.gradients.get(name)
        self.gradients[name] = made if have is None else [a + b for a, b in zip(have, made)]

    def before(self, clip: float) -> None:
        """After the backward passes and the clipping by factor `clip`, before the step."""
        start = time.perf_counter()
        self.clip = clip
        self.whole = [p.grad / clip for p in self.parameters]
        self.state = OptimizerState.of(self.optimizer)
        self.entropy_gradient, self.entropy_before = probe_gradient(self.policy, self.probe, self.parameters)
        self.seconds += time.perf_counter() - start

    def after(self) -> dict[str, float]:
        """After the step: the ledger's metrics (docs/metrics.md). Leaves the parameters as they
        are."""
        start = time.perf_counter()
        taken = [p.detach() - theta for p, theta in zip(self.parameters, self.state.theta)]
        parts = step_parts(self.optimizer, self.state, self.gradients, self.clip)
        entropy_after = probe_entropy(self.policy, self.probe)
        made = {
            "dentropy/measured": entropy_after - self.entropy_before,
            "ledger/predicted": dot(self.entropy_gradient, taken),
            "ledger/clip_factor": self.clip,
            "ledger/gradient_residual": _residual(self.whole, list(self.gradients.values())),
            "ledger/step_residual": _residual(taken, list(parts.values())),
        }
        made["ledger/remainder"] = made["dentropy/measured"] - made["ledger/predicted"]
        total_norm = sum(map(norm, self.gradients.values())) or 1.0
        for cell, gradient in self.gradients.items():
            key = cell.replace(".", "_")
            made[f"ledger/norm_{key}"] = norm(gradient)
            made[f"ledger/share_{key}"] = norm(gradient) / total_norm
            made[f"ledger/cosine_{key}"] = dot(gradient, self.whole) / max(norm(gradient) * norm(self.whole), 1e-30)
        changes = {name: dot(self.entropy_gradient, part) for name, part in parts.items()}
        for side in SIDES[1:]:
            made[f"ledger/predicted_clip_{side}"] = sum(v for k, v in changes.items() if k.endswith(f".{side}"))
        now = [p.detach().clone() for p in self.parameters]
        for name in (*CLASSES[1:], *REST):
            mine = [part for key, part in parts.items() if key.split(".")[0] == name]
            made[f"ledger/predicted_{name}"] = sum(v for k, v in changes.items() if k.split(".")[0] == name)
            made[f"ledger/measured_{name}"] = self._measured_alone(mine) if mine else 0.0
        self._put(now)
        logit = {name: ranks.total(value) for name, value in self.logit.items()}
        made |= {f"ledger/logit_{name}": value for name, value in logit.items()}
        made["ledger/logit"] = sum(logit.values())
        self.seconds += time.perf_counter() - start
        return made | {"time/ledger": self.seconds}

    def _measured_alone(self, parts: list[list[Tensor]]) -> float:
        """The probe's entropy after these parts of the step alone, less that before it."""
        self._put([theta + sum(values) for theta, *values in zip(self.state.theta, *parts)])
        return probe_entropy(self.policy, self.probe) - self.entropy_before

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters, values):
            p.copy_(value)


def _residual(whole: list[Tensor], parts: list[list[Tensor]]) -> float:
    """‖whole − Σ parts‖ / ‖whole‖."""
    left = [w.double() - sum(values).double() if values else w for w, *values in zip(whole, *parts)]
    return norm(left) / max(norm(whole), 1e-30)


@torch.no_grad()
def probe_entropy(policy: Policy, probe: TokenBatch) -> float:
    """Mean full-vocabulary entropy over the probe's response tokens, summed in float64."""
    total = sum(float(policy.statistics(micro).entropy_N.double().sum()) for _, micro in policy.micro_batches(probe))
    return ranks.total(total) / float(probe.mask_BT.sum())


def probe_gradient(policy: Policy, probe: TokenBatch, parameters: list[Tensor]) -> tuple[list[Tensor], float]:
    """(∇ of the probe's mean entropy, that entropy); the parameters' own .grad is not touched."""
    tokens = float(probe.mask_BT.sum())
    total, value = [torch.zeros_like(p) for p in parameters], 0.0
    for _, micro in policy.micro_batches(probe):
        entropy_N = policy.statistics(micro, entropy_grad=True).entropy_N
        value += float(entropy_N.detach().double().sum()) / tokens
        made = parallel.gradients([entropy_N.sum() / tokens], parameters)
        total = [t + g for t, g in zip(total, made)]
    return total, ranks.total(value)
