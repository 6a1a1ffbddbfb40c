"""CISPO: the importance weight is clipped and held constant, so that no token loses its gradient.

    loss_t = −sg(clip(r, 1 − ε_low, 1 + ε_high)) · A · log π_θ(y_t),     r = π_θ(y_t) / π_old(y_t)

Source: MiniMax-M1 (arXiv 2506.13585), Section 3.1; ε = 0.2 on both sides is the baseline of arXiv
2509.20712 (there is in effect no lower bound in MiniMax-M1's own runs, and its upper one is not
given). ScaleRL (arXiv 2510.13786) has the one-sided sg(min(r, ε_max)): here ε_low = 1 and ε_high =
ε_max − 1. Weight on ∇log π: clip(r)·A. Limits: ratio ≡ 1 is REINFORCE. `cegppo` at β₁ = β₂ = 1 has
the same weights except in the two cells where the clip of PPO does not act (A > 0 below the
interval, A < 0 above it): r·A there, clip(r)·A here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    eps_low: float = knob(0.2, "ε_low: how far below 1 the ratio may go; 1: no lower bound", above=0, most=1)
    eps_high: float = knob(0.2, "ε_high: how far above 1 the ratio may go", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    weight_BT = x.ratio_BT.clamp(1 - p.eps_low, 1 + p.eps_high).detach()
    bounds = dict(
        clip_low=torch.full_like(weight_BT, 1 - p.eps_low), clip_high=torch.full_like(weight_BT, 1 + p.eps_high)
    )
    return -weight_BT * x.advantage_BT * x.logprob_BT, bounds
