"""Clip_B: tokens with A < 0 whose punishment would take the most entropy away are left out.

    S_t    = π_old(y_t) (H_old,t + log π_old(y_t)),     by which raising y_t's logit lowers entropy
    loss_t = 0 where A < 0 and S_t < mean S − μ · std S,     the loss of `ppo_clip` elsewhere

Source: arXiv 2602.03392 and its code in Trinity-RFT; μ = 2.5. S is negative for rare tokens: less
of what is rare makes the policy narrower. Mean and standard deviation (divided by N) are over the
mini-batch's tokens; the code's are over the batch that a step trains on, of the policy that starts
it, and it also leaves such tokens out of the aggregation's denominator, where here they still
count. Weight on ∇log π: that of `ppo_clip`, or 0 (fact `entropy_clip`). Limits: a large μ is
`ppo_clip`, value and gradient. Needs `old_entropy_BT`. Its sibling Clip_V is not here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True

NEEDS = ("old_entropy_BT",)


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    mu: float = knob(2.5, "μ: how many standard deviations below its mean S may lie", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    inside_BT = x.mask_BT.bool()
    pull_BT = x.old_logprob_BT.exp() * (x.old_entropy_BT + x.old_logprob_BT)
    std, mean = torch.std_mean(pull_BT[inside_BT], correction=0)
    dropped_BT = inside_BT & (x.advantage_BT < 0) & (pull_BT < mean - p.mu * std)
    return torch.where(dropped_BT, 0.0, loss_BT), {**bounds, "entropy_clip": dropped_BT}
