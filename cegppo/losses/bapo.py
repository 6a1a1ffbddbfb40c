"""BAPO: PPO's clip with bounds found anew in every update, wider until the positive tokens weigh
enough.

    share  = Σ_{A>0} min(r, c_high) A / (Σ_{A>0} min(r, c_high) A + Σ_{A<0} max(r, c_low) |A|)
    from (low_start, high_start), while share < ρ₀:
        c_high += high_step up to high_end, then c_low += low_step up to low_end
    loss_t = max(−A r, −A clip(r, c_low, c_high))

Source: arXiv 2510.18927; ρ₀ = 0.4, bounds 0.6 to 0.9 and 1.2 to 3.0, steps 0.02 and 0.05 are the
paper's. Its README says ρ₀ = 0.5, its YAML and script have other bounds, and its code compares
positive over negative with the target and raises c_low first. Measured so, by values and not by
gradients, raising c_low only adds to the negative side: it never ends the search, which is the
source's rule and is left so. Weight on ∇log π: r·A between the bounds, as `ppo_clip`; the bounds
are stated. Limits: a share that is reached at the start (ρ₀ = 0) is `ppo_clip` with ε = 1 −
low_start and high_start − 1, value and gradient. The dual clip of its code is `update.dual_clip`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob

WHOLE_BATCH = True


@dataclass(frozen=True)
class Params:
    positive_share: float = knob(0.4, "ρ₀: share of the weighted advantages that A > 0 must have", least=0, most=1)
    low_start: float = knob(0.6, "lower bound that the search starts from", above=0, below=1)
    low_end: float = knob(0.9, "the highest lower bound", above=0, below=1)
    low_step: float = knob(0.02, "step of the lower bound", above=0)
    high_start: float = knob(1.2, "upper bound that the search starts from", above=1)
    high_end: float = knob(3.0, "the highest upper bound", above=1)
    high_step: float = knob(0.05, "step of the upper bound", above=0)


def search(ratio_N: Tensor, advantage_N: Tensor, p: Params) -> tuple[float, float]:
    """(c_low, c_high) for these tokens."""
    positive_P, negative_M = advantage_N > 0, advantage_N < 0
    low, high = p.low_start, p.high_start
    while True:
        gain = float((ratio_N[positive_P].clamp(max=high) * advantage_N[positive_P]).sum())
        loss = -float((ratio_N[negative_M].clamp(min=low) * advantage_N[negative_M]).sum())
        if gain >= p.positive_share * (gain + loss):
            return low, high
        if high < p.high_end:
            high = min(high + p.high_step, p.high_end)
        elif low < p.low_end:
            low = min(low + p.low_step, p.low_end)
        else:
            return low, high


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    inside_BT = x.mask_BT.bool()
    low, high = search(x.ratio_BT.detach()[inside_BT], x.advantage_BT[inside_BT], p)
    clipped_BT = x.ratio_BT.clamp(low, high)
    bounds = dict(clip_low=torch.full_like(clipped_BT, low), clip_high=torch.full_like(clipped_BT, high))
    return torch.maximum(-x.advantage_BT * x.ratio_BT, -x.advantage_BT * clipped_BT), bounds
