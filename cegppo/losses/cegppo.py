"""CE-GPPO: what the clip would cut comes back with a bounded weight, by side.

    loss_t = −β₁ (1 − ε_low)  · u · A     where A < 0 and r < 1 − ε_low      (low side: NA&LP)
             −β₂ (1 + ε_high) · u · A     where A > 0 and r > 1 + ε_high     (high side: PA&LP)
             −r · A                       elsewhere
    u = exp(log π_θ − sg(log π_θ)): the value is 1, the gradient is ∇log π_θ

Source: arXiv 2509.20712, Eq. 8–10. (One sentence in its Section 3.2 swaps the roles of β₁ and β₂;
Eq. 8 and Figure 3 do not.) Weight on ∇log π: β₁(1 − ε_low)·A on the low side, β₂(1 + ε_high)·A on
the high side, r·A elsewhere; it jumps at a bound unless that side's β is 1. Limits: β₁ = β₂ = 0 is
the gradient of `ppo_clip` (the values differ by constants); β₁ = β₂ = 1 is GPPO (arXiv 2508.07629);
ratio ≡ 1 is REINFORCE. The paper writes u as r / sg(r), which is 0/0 once r underflows; u here
cannot. Left out: the dual clip and the NLL term of the released code, which are `update.dual_clip`
and `update.nll_coef`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    beta1: float = knob(0.5, "β₁: share of the low side (A < 0) given back", least=0)
    beta2: float = knob(1.0, "β₂: share of the high side (A > 0) given back", least=0)
    eps_low: float = knob(0.2, "ε_low: how far below 1 the ratio may go", above=0, below=1)
    eps_high: float = knob(0.2, "ε_high: how far above 1 the ratio may go", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    ratio_BT, advantage_BT = x.ratio_BT, x.advantage_BT
    low_BT = (advantage_BT < 0) & (ratio_BT < 1 - p.eps_low)
    high_BT = (advantage_BT > 0) & (ratio_BT > 1 + p.eps_high)
    unit_BT = torch.exp(x.logprob_BT - x.logprob_BT.detach())
    scale_BT = torch.where(low_BT, p.beta1 * (1 - p.eps_low) * unit_BT, ratio_BT)
    scale_BT = torch.where(high_BT, p.beta2 * (1 + p.eps_high) * unit_BT, scale_BT)
    bounds = dict(
        clip_low=torch.full_like(ratio_BT, 1 - p.eps_low), clip_high=torch.full_like(ratio_BT, 1 + p.eps_high)
    )
    return -scale_BT * advantage_BT, bounds
