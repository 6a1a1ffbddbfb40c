"""DGPO: beyond the clip's bounds the weight decays, polynomially on the left, by a root on the
right, and continuously at the bound.

    loss_t = −w · u · A
    w = r · (r / (1 − ε_low))ⁿ             where A < 0 and r < 1 − ε_low
        r · ((1 + ε_high) / r)^(1/m)       where A > 0 and r > 1 + ε_high
        r                                  elsewhere
    u = exp(log π_θ − sg(log π_θ)): the value is 1, the gradient is ∇log π_θ; w is held constant

Source: arXiv 2603.14389 and its code; (n, m) = (1, 2), and (2, 2) for the 1.5B model; ε are the
clip's. Weight on ∇log π: w·A. On the left it vanishes with r, where that of `cegppo` does not; on
the right it still grows, as r^(1 − 1/m). Limits: m = 1 gives the high side of `cegppo` with β₂ = 1
and n → ∞ its low side with β₁ = 0, value and gradient; n = 0 and m → ∞ is the unclipped
importance-weighted loss, value and gradient; ratio ≡ 1 is REINFORCE. The code's dual clip is only
logged in this mode, and so is not here.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ..types import MAX_LOG_RATIO, TokenBatch, knob


@dataclass(frozen=True)
class Params:
    n: float = knob(1.0, "n: power of the decay on the low side (A < 0)", least=0)
    m: float = knob(2.0, "m: root of the decay on the high side (A > 0)", least=1)
    eps_low: float = knob(0.2, "ε_low: how far below 1 the ratio may go before it", above=0, below=1)
    eps_high: float = knob(0.2, "ε_high: how far above 1 the ratio may go before it", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    log_ratio_BT, ratio_BT = x.log_ratio_BT.detach().clamp(max=MAX_LOG_RATIO), x.ratio_BT.detach()
    low_BT = (x.advantage_BT < 0) & (ratio_BT < 1 - p.eps_low)
    high_BT = (x.advantage_BT > 0) & (ratio_BT > 1 + p.eps_high)
    decay_BT = torch.where(low_BT, p.n * (log_ratio_BT - log(1 - p.eps_low)), 0.0)
    decay_BT = torch.where(high_BT, (log(1 + p.eps_high) - log_ratio_BT) / p.m, decay_BT)
    weight_BT = torch.exp(log_ratio_BT + decay_BT)
    unit_BT = torch.exp(x.logprob_BT - x.logprob_BT.detach())
    bounds = dict(
        clip_low=torch.full_like(ratio_BT, 1 - p.eps_low), clip_high=torch.full_like(ratio_BT, 1 + p.eps_high)
    )
    return -weight_BT * unit_BT * x.advantage_BT, bounds
