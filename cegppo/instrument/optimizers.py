"""The step that an optimizer took, as a linear function of the gradient it took it with.

AdamW: with m the first moment before the step, v̂ the bias-corrected second moment after it, g the
gradient as it was stepped on, and κ = −lr / ((1 − β₁ᵗ)(√v̂ + ε)), elementwise,

    Δθ = κ (1 − β₁) g  +  κ β₁ m  −  lr · weight_decay · θ.

Plain SGD: Δθ = −lr g. Tensors are this rank's parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 22  # elements that temporary tensors are made of at a time


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded; shares its memory."""
    return value.to_local() if hasattr(value, "to_local") else value


def dot(left: list[Tensor], right: list[Tensor]) -> float:
    """⟨left, right⟩ over this rank's part of all parameters, summed in float64."""
    made = 0.0
    for a, b in zip(left, right):
        for u, v in zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK)):
            made += float((u.double() * v.double()).sum())
    return made


def chunks(count: int) -> Iterator[slice]:
    """A flat tensor of `count` elements in slices: a head alone may be as large as all layers."""
    return (slice(start, start + CHUNK) for start in range(0, count, CHUNK))


@torch.no_grad()
def put(parameters: list[Tensor], values: list[Tensor]) -> None:
    """Give the parameters these values, in place."""
    for p, value in zip(parameters, values):
        local(p).copy_(value)


def momentum_of(optimizer: torch.optim.Optimizer) -> float:
    """β₁: the share of the first moment that a step keeps; 0 for plain SGD."""
    return optimizer.param_groups[0].get("betas", (0.0,))[0]


@dataclass(frozen=True)
class Slope:
    """The step just taken, for one parameter or a flat part of it."""

    at_once: Tensor | float  # κ (1 − β₁): what the gradient was multiplied by
    gradient: Tensor  # as it was stepped on: clipped
    carried: Tensor  # κ β₁ m: what momentum carried over
    shrunk: Tensor  # what weight decay took

    @classmethod
    def of(cls, optimizer: torch.optim.Optimizer, p: Tensor, theta: Tensor, part: slice | None = None) -> "Slope":
        """Of parameter `p`, which was `theta` before the step; of the `part` of its elements in a
        row, when there is one."""
        cut = lambda value: local(value) if part is None else local(value).reshape(-1)[part]
        theta = cut(theta)
        group, zeros = optimizer.param_groups[0], torch.zeros_like(theta)
        gradient = zeros if p.grad is None else cut(p.grad.detach())
        lr = group["lr"]
        if isinstance(optimizer, torch.optim.SGD):
            assert not group["momentum"] and not group["weight_decay"], "plain SGD is all that is known here"
            return cls(-lr, gradient, zeros, zeros)
        beta1, beta2 = group["betas"]
        state = optimizer.state[p]
        if not state:  # the loss does not reach it
            return cls(0.0, zeros, zeros, zeros)
        t = float(state["step"])
        square, first = (cut(state[k]).to(theta.device) for k in ("exp_avg_sq", "exp_avg"))  # offloaded ones too
        scale = (square / (1 - beta2**t)).sqrt_().add_(group["eps"]).reciprocal_().mul_(-lr / (1 - beta1**t))
        # What has never had a gradient (rows of an embedding that no batch has held) did not move;
        # its slope would be 1/ε, and a direction along it all rounding.
        scale.masked_fill_(square == 0, 0.0)
        carried = scale * (first - (1 - beta1) * gradient)
        return cls(scale * (1 - beta1), gradient, carried, -lr * group["weight_decay"] * theta)
