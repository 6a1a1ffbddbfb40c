"""M2PO: tokens furthest off-policy are left out until the rest have a bounded second moment.

    R      = the mini-batch's tokens where a clip would act: A > 0 and r > 1, or A < 0 and r < 1
    M      = the tokens of R of largest (log r)², as many as must go for the mean of the others in R
             to be at most τ
    loss_t = 0 for t ∈ M,      −r · A elsewhere

Source: arXiv 2510.01161; τ = 0.04. The rule here is that of Trinity-RFT, after the paper's final
version. AReaL takes the moment over all tokens. The code that the authors released takes it over R
too, but counts a cut token in the mean, at the bound, which cuts more; it clips at the bound, with
the same gradient. All divide by all tokens. Weight on ∇log π: r·A, or 0. What follows for the ratio
is stated as `clip_low` and `clip_high`: e^±s with s² half way between the last (log r)² kept and
the first cut. Limits: a large τ cuts nothing (the unclipped importance-weighted loss, value and
gradient); with the bounds so found it is the gradient of `ppo_clip`; ratio ≡ 1 is REINFORCE.
"""

from dataclasses import dataclass
from math import exp, inf

import torch
from torch import Tensor

from ..types import MAX_LOG_RATIO, TokenBatch, knob

WHOLE_BATCH = True


@dataclass(frozen=True)
class Params:
    threshold: float = knob(0.04, "τ: the largest mean of (log r)² over the tokens that a clip could act on", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    log_ratio_BT = x.log_ratio_BT.detach()
    apt_BT = x.mask_BT.bool() & (log_ratio_BT * x.advantage_BT > 0)
    moment_N = log_ratio_BT[apt_BT].square().sort().values
    mean_N = moment_N.cumsum(0) / torch.arange(1, len(moment_N) + 1, device=moment_N.device)
    kept = int((mean_N <= p.threshold).sum())  # a mean of ever larger values only grows
    edge = inf
    if kept < len(moment_N):
        edge = (float(moment_N[kept - 1]) * (kept > 0) + float(moment_N[kept])) / 2
    cut_BT = apt_BT & (log_ratio_BT.square() > edge)
    bound = min(edge**0.5, MAX_LOG_RATIO)
    bounds = dict(
        clip_low=torch.full_like(log_ratio_BT, exp(-bound)), clip_high=torch.full_like(log_ratio_BT, exp(bound))
    )
    return torch.where(cut_BT, 0.0, -x.advantage_BT * x.ratio_BT), bounds
