"""GSPO: the clipped surrogate with one ratio a response, the geometric mean of its tokens' ratios.

    s_i     = exp(1/|y_i| Σ_t log r_t),     s_t = sg(s_i) · u_t
    u_t     = exp(log π_θ(y_t) − sg(log π_θ(y_t)))
    loss_t  = max(−A s_t, −A clip(s_t, 1 − ε_low, 1 + ε_high))

Source: arXiv 2507.18071, Eq. 5–7 and the token form of its Section 4.3; ε of 3e-4 and 4e-4 are its
own (and those of the baseline of arXiv 2509.20712), and belong to responses of thousands of tokens:
the shorter the response, the further s_i strays from 1. Weight on ∇log π: s_i·A, and 0 for every
token of a response that is clipped (fact `sequence_clip`). With `update.aggregate: sequence` the
gradient is the paper's; the value too. Limits: ratio ≡ 1 is REINFORCE; responses of one token make
it `ppo_clip` with these ε. They bound no token's ratio, so no bounds are stated: `clip/*` and
`lever/*` are then read at 0.8 and 1.2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import MAX_LOG_RATIO, TokenBatch, knob


@dataclass(frozen=True)
class Params:
    eps_low: float = knob(3e-4, "ε_low: how far below 1 the response's ratio may go", above=0, below=1)
    eps_high: float = knob(4e-4, "ε_high: how far above 1 the response's ratio may go", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    mean_log_ratio_B = (x.log_ratio_BT * x.mask_BT).sum(-1) / x.length_B.clamp(min=1)
    sequence_B1 = mean_log_ratio_B.clamp(max=MAX_LOG_RATIO).exp().detach()[:, None]
    ratio_BT = sequence_B1 * torch.exp(x.logprob_BT - x.logprob_BT.detach())
    clipped_BT = ratio_BT.clamp(1 - p.eps_low, 1 + p.eps_high)
    low_BT = (x.advantage_BT < 0) & (sequence_B1 < 1 - p.eps_low)
    high_BT = (x.advantage_BT > 0) & (sequence_B1 > 1 + p.eps_high)
    return torch.maximum(-x.advantage_BT * ratio_BT, -x.advantage_BT * clipped_BT), {"sequence_clip": low_BT | high_BT}
