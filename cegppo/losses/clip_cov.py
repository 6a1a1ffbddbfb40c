"""Clip-Cov: PPO's clip, and no gradient for a few random tokens of high covariance.

    c_t    = (log π_θ(y_t) − mean log π_θ) · (A_t − mean A),   means over the mini-batch's N tokens
    S      = max(1, ⌊share · N⌋) tokens drawn among those with cov_low < c_t < cov_high that the
             clip leaves alone; all of them where there are fewer
    loss_t = 0 for t ∈ S, the loss of `ppo_clip` elsewhere

Source: Cui et al., "The Entropy Mechanism" (arXiv 2505.22617), Section 4, and its code; share 2e-4,
bounds 1 and 5 of its function's defaults. Its script sets the clip range to 1 on both sides, which
are the defaults here (ratios in [0, 2]); verl's general default is 0.2. Weight on ∇log π: that of
`ppo_clip`, and 0 in S (fact `covariance_clip`). Limits: without a token between the bounds it is
`ppo_clip`, value and gradient; ratio ≡ 1 is then REINFORCE. The released code draws in every
micro-batch; here the mini-batch's tokens are drawn from once, by the smallest of seeded draws.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True
DRAWS = True


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    eps_low: float = knob(1.0, "ε_low: how far below 1 the ratio may go; 1: no lower bound", above=0, most=1)
    eps_high: float = knob(1.0, "ε_high: how far above 1 the ratio may go", above=0)
    share: float = knob(2e-4, "share of the mini-batch's tokens that lose their gradient", above=0, most=1)
    cov_low: float = knob(1.0, "covariance above which a token may lose it")
    cov_high: float = knob(5.0, "covariance below which a token may lose it")


def covariance(x: TokenBatch) -> Tensor:
    """[B, T] (log π − mean)(A − mean), means over the tokens of `x`; no gradient."""
    inside_BT, logprob_BT = x.mask_BT.bool(), x.logprob_BT.detach()
    logprob_mean, advantage_mean = logprob_BT[inside_BT].mean(), x.advantage_BT[inside_BT].mean()
    return (logprob_BT - logprob_mean) * (x.advantage_BT - advantage_mean)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    low_BT = (x.advantage_BT < 0) & (x.ratio_BT < 1 - p.eps_low)
    high_BT = (x.advantage_BT > 0) & (x.ratio_BT > 1 + p.eps_high)
    covariance_BT = covariance(x)
    may_BT = x.mask_BT.bool() & (covariance_BT > p.cov_low) & (covariance_BT < p.cov_high) & ~(low_BT | high_BT)
    count = min(max(1, int(p.share * float(x.mask_BT.sum()))), int(may_BT.sum()))
    first = torch.where(may_BT, x.uniform_BT, torch.inf).flatten().topk(count, largest=False).indices
    chosen_BT = torch.zeros_like(may_BT).flatten().index_fill(0, first, True).view_as(may_BT)
    return torch.where(chosen_BT, 0.0, loss_BT), {**bounds, "covariance_clip": chosen_BT}
