"""Boundary rescue: of the tokens that lie just outside PPO's clip some keep their gradient, by lot.

    near   = A > 0 and 1 + ε_high < r ≤ (1 + ε_high)(1 + band), or
             A < 0 and (1 − ε_low)(1 − band) ≤ r < 1 − ε_low
    loss_t = −r · A where near, with probability `share`,     the loss of `ppo_clip` elsewhere

In the spirit of Near-boundary Stochastic Rescue (arXiv 2605.22703), of which only the abstract is
known to us: that tokens slightly outside the bounds are kept at random. How wide the band is, how
it is measured and how often a token is kept are assumed: 0.1 of the bound, one in two. So it does
not bear that name. Weight on ∇log π: that of `ppo_clip`, and r·A where rescued (fact `rescued`).
Limits: share = 0 is `ppo_clip`, value and gradient; share = 1 with a wide band gives back all that
it clips up to there; its expectation is a deterministic weight `share` · r·A in the band.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

DRAWS = True


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    band: float = knob(0.1, "how far beyond a bound a token is near it, as a share of the bound", above=0, most=1)
    share: float = knob(0.5, "probability that a token near a bound keeps its gradient", least=0, most=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    low, high, ratio_BT = 1 - p.eps_low, 1 + p.eps_high, x.ratio_BT
    low_BT = (x.advantage_BT < 0) & (ratio_BT < low) & (ratio_BT >= low * (1 - p.band))
    high_BT = (x.advantage_BT > 0) & (ratio_BT > high) & (ratio_BT <= high * (1 + p.band))
    rescued_BT = (low_BT | high_BT) & (x.uniform_BT < p.share)
    return torch.where(rescued_BT, -x.advantage_BT * ratio_BT, loss_BT), {**bounds, "rescued": rescued_BT}
