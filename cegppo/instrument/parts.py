"""One update taken apart by backward passes: the gradient of each class and clip side, and what
each part of the step does to the entropy when it is taken alone.

The ledger needs none of this: it has every token's share from two forward passes. What only this
says is the norm and direction of a class's gradient, and ΔH beyond first order. It costs a backward
pass and a parameter-sized buffer for each cell, so it looks at one update of a step, where
`diagnostics.parts` is on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..objective import Weights
from ..types import TokenBatch
from .entropy import CLASSES, SIDES, ClassRule, clip_side
from .optimizers import Slope, dot, local, put

REST = ("momentum", "decay", "other")  # parts of a step that are no class of tokens


@contextmanager
def fresh_gradients(parameters: list[Tensor]) -> Iterator[None]:
    """Inside, .grad is empty; afterwards it is what it was."""
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, grad in zip(parameters, kept):
            p.grad = grad


class Parts:
    """`watch` for each micro-batch, `after` when the optimizer has stepped."""

    def __init__(self, optimizer: torch.optim.Optimizer, rule: ClassRule, total: Callable[[Any], Any]):
        self.optimizer, self.rule, self.total = optimizer, rule, total
        self.parameters: list[Tensor] = optimizer.param_groups[0]["params"]
        self.gradients: dict[str, list[Tensor]] = {}  # by "class.side", and "other"

    def watch(self, logprob_N: Tensor, entropy_N: Tensor, x: TokenBatch, w: Weights) -> None:
        """Backward passes of one micro-batch from its statistics, by cell; the graph is kept."""
        inside = x.mask_BT.bool()
        pick = lambda value_BT: value_BT[inside]
        slope_N, advantage_N = pick(w.slope_BT), pick(x.advantage_BT)
        code_N = self.rule.codes(pick(x.logprob_BT), pick(x.entropy_BT), advantage_N)
        side_N = clip_side(pick(x.log_ratio_BT).exp(), advantage_N, pick(w.clip_low_BT), pick(w.clip_high_BT))
        slopes = {
            f"{name}.{side_name}": [torch.where((code_N == c) & (side_N == side), slope_N, 0.0)]
            for c, name in enumerate(CLASSES[1:], 1)
            for side, side_name in enumerate(SIDES)
        }
        slopes["other"] = [pick(w.total_slope_BT) - torch.where(code_N > 0, slope_N, 0.0)]
        if w.entropy_slope_BT is not None:
            slopes["other"].append(pick(w.entropy_slope_BT))
        present = self.total(torch.tensor([float(any(bool(v.any()) for v in values)) for values in slopes.values()]))
        for (name, values), somewhere in zip(slopes.items(), present.tolist()):
            if somewhere:  # then every rank takes part, as sharded weights demand
                with fresh_gradients(self.parameters):
                    torch.autograd.backward([logprob_N, entropy_N][: len(values)], values, retain_graph=True)
                    made = [torch.zeros_like(local(p)) if p.grad is None else local(p.grad) for p in self.parameters]
                have = self.gradients.get(name)
                self.gradients[name] = made if have is None else [a + b for a, b in zip(have, made)]

    def after(self, theta: list[Tensor], clip: float, entropy: Callable[[], float], before: float) -> dict[str, float]:
        """After the step: metrics (docs/metrics.md). `theta`: the parameters before it. `clip`:
        what gradient-norm clipping multiplied the gradient by. `entropy()` measures the probe's,
        which was `before` it. Leaves the parameters as they are."""
        now = [local(p.detach()).clone() for p in self.parameters]
        whole: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {name: [] for name in (*self.gradients, "momentum", "decay")}
        for i, (p, was) in enumerate(zip(self.parameters, theta)):
            slope = Slope.of(self.optimizer, p, was)
            whole.append(slope.gradient / clip)
            for name, gradient in self.gradients.items():
                parts[name].append(slope.at_once * clip * gradient[i])
            parts["momentum"].append(slope.carried)
            parts["decay"].append(slope.shrunk)
        norm = lambda values: self.total(dot(values, values)) ** 0.5
        whole_norm = max(norm(whole), 1e-30)
        # One parameter at a time: all of them in float64 would be two buffers more.
        left = (g.double() - sum(v[i] for v in self.gradients.values()) for i, g in enumerate(whole))
        made = {"ledger/gradient_residual": self.total(sum(dot([v], [v]) for v in left)) ** 0.5 / whole_norm}
        norms = {cell: norm(gradient) for cell, gradient in self.gradients.items()}
        for cell, gradient in self.gradients.items():
            key = cell.replace(".", "_")
            made[f"ledger/norm_{key}"] = norms[cell]
            made[f"ledger/share_{key}"] = norms[cell] / (sum(norms.values()) or 1.0)
            cosine = self.total(dot(gradient, whole)) / max(norms[cell] * whole_norm, 1e-30)
            made[f"ledger/cosine_{key}"] = cosine
        for name in (*CLASSES[1:], *REST):
            mine = [part for key, part in parts.items() if key.split(".")[0] == name]
            if mine:
                put(self.parameters, [was + sum(values) for was, *values in zip(theta, *mine)])
            made[f"ledger/measured_{name}"] = entropy() - before if mine else 0.0
        put(self.parameters, now)
        return made
