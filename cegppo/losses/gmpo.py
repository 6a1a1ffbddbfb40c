"""GMPO: one weight a response, the geometric mean of ratios that are clipped one by one.

    l_t    = min(log r_t, ε_high) where A > 0,     max(log r_t, −ε_low) where A ≤ 0
    s_i    = exp(1/|y_i| Σ_t l_t)
    loss_t = −A · sg(s_i) · exp(l_t − sg(l_t))

Source: arXiv 2507.20673 and its code, whose loss is −A s_i, one a response, mean over responses:
with `update.aggregate: sequence` value and gradient are the same. ε is in log space; 0.4 on both
sides is the script's (ratios from 0.67 to 1.49). Weight on ∇log π: s_i·A, and 0 for a token whose
log-ratio is clipped, which still counts in s_i. Limits: ratio ≡ 1 is REINFORCE; without a clip it
is `gspo` without one, value and gradient; responses of one token make it `ppo_clip` with the bounds
e^−ε_low and e^ε_high. Stated for responses whose tokens share one advantage; where they do not, as
with a critic, each token's own is used (the code takes the response's mean).
"""

from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor

from ..types import MAX_LOG_RATIO, TokenBatch, knob


@dataclass(frozen=True)
class Params:
    eps_low: float = knob(0.4, "ε_low: how far below 0 the log-ratio may go", above=0)
    eps_high: float = knob(0.4, "ε_high: how far above 0 the log-ratio may go", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    high_BT, low_BT = x.log_ratio_BT.clamp(max=p.eps_high), x.log_ratio_BT.clamp(min=-p.eps_low)
    clipped_BT = torch.where(x.advantage_BT > 0, high_BT, low_BT)
    mean_B1 = ((clipped_BT * x.mask_BT).sum(-1) / x.length_B.clamp(min=1)).detach()[:, None]
    weight_B1 = mean_B1.clamp(max=MAX_LOG_RATIO).exp()
    unit_BT = torch.exp(clipped_BT - clipped_BT.detach())
    bounds = dict(
        clip_low=torch.full_like(unit_BT, exp(-p.eps_low)), clip_high=torch.full_like(unit_BT, exp(p.eps_high))
    )
    return -x.advantage_BT * weight_B1 * unit_BT, bounds
