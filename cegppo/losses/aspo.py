"""ASPO: where A > 0 the ratio is turned over, so that what has become rarer is raised more.

    A > 0:  loss_t = −min(1/r, c) · u · A      where r ≤ 1 + ε_high,     −A / (1 + ε_high) above it
    A < 0:  loss_t = −min(r, c) · u · A        where r ≥ 1 − ε_low,      −(1 − ε_low) · A below it
    u = exp(log π_θ − sg(log π_θ)): the value is 1, the gradient is ∇log π_θ; the factors before it
    are held constant

Source: arXiv 2510.06062 and its code (Archer2.0). Weight on ∇log π: the factor before u times A;
beyond a bound 0. c = 3 caps both sides without taking the gradient (the "soft" dual clip). Limits:
where A < 0 and r ≤ c it is `ppo_clip`, value and gradient; ratio ≡ 1 is REINFORCE. Beyond c the
code's value is −c A log π_θ, of the same gradient. Left out: the code widens both ε from 0.2 to 0.4
on the 20 % of a response's tokens of highest entropy; here each is one number.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    eps_low: float = knob(0.2, "ε_low: how far below 1 the ratio may go", above=0, below=1)
    eps_high: float = knob(0.2, "ε_high: how far above 1 the ratio may go", above=0)
    cap: float = knob(3.0, "c: the largest factor of A", above=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    ratio_BT, positive_BT = x.ratio_BT.detach(), x.advantage_BT > 0
    turned_BT = torch.where(positive_BT, 1 / ratio_BT, ratio_BT).clamp(max=p.cap)  # 1 / 0 is capped as well
    scale_BT = turned_BT * torch.exp(x.logprob_BT - x.logprob_BT.detach())
    scale_BT = torch.where(positive_BT & (ratio_BT > 1 + p.eps_high), 1 / (1 + p.eps_high), scale_BT)
    scale_BT = torch.where((x.advantage_BT < 0) & (ratio_BT < 1 - p.eps_low), 1 - p.eps_low, scale_BT)
    bounds = dict(
        clip_low=torch.full_like(ratio_BT, 1 - p.eps_low), clip_high=torch.full_like(ratio_BT, 1 + p.eps_high)
    )
    return -scale_BT * x.advantage_BT, bounds
