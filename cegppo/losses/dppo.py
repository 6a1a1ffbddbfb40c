"""DPPO (binary total variation): a token is left out once its probability has moved by δ.

    loss_t = 0         where A > 0 and π_θ − π_old > δ_high, or A < 0 and π_old − π_θ > δ_low
             −r · A    elsewhere                              (π of the sampled token)

Source: arXiv 2602.04879, in verl's code; δ = 0.15 on both sides is its script's for this variant.
Weight on ∇log π: r·A, or 0. As bounds on the ratio: 1 ± δ/π_old, wide for rare tokens and narrow
for likely ones, the other way round than a fixed clip; they are what is stated as `clip_low` and
`clip_high`. Limits: δ = 1 masks nothing (the unclipped importance-weighted loss, value and
gradient); with one π_old for all tokens it has the gradient of `ppo_clip` with ε = δ/π_old; ratio
≡ 1 is REINFORCE. Left out: the cap of the ratio at 20 in verl's function, which the script itself
turns off (`update.dual_clip` caps A < 0), and the KL and top-k forms of the divergence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    delta_low: float = knob(0.15, "δ_low: how far a probability may fall where A < 0", above=0, most=1)
    delta_high: float = knob(0.15, "δ_high: how far a probability may rise where A > 0", above=0, most=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    moved_BT = (x.logprob_BT.exp() - x.old_logprob_BT.exp()).detach()
    high_BT = (x.advantage_BT > 0) & (moved_BT > p.delta_high)
    low_BT = (x.advantage_BT < 0) & (-moved_BT > p.delta_low)
    old_prob_BT = x.old_logprob_BT.exp()
    old_prob_BT = old_prob_BT.clamp(min=torch.finfo(old_prob_BT.dtype).tiny)  # so that the bounds are finite
    bounds = dict(clip_low=1 - p.delta_low / old_prob_BT, clip_high=1 + p.delta_high / old_prob_BT)
    return torch.where(low_BT | high_BT, 0.0, -x.advantage_BT * x.ratio_BT), bounds
