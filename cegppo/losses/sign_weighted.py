"""Sign-weighted: the clipped surrogate, with one weight for A > 0 and one for A < 0.

    loss_t = `positive` · the loss of `ppo_clip` where A > 0,      `negative` · it elsewhere

What two controllers act through: `positive_weight` moves the first (after Positive-Advantage
Reweighting, arXiv 2511.05993), `entrocraft` (arXiv 2604.26326) sets either to 0. Without one,
`positive` = 0 trains on wrong answers alone and `negative` = 0 on right ones alone. Weight on ∇log
π: that of `ppo_clip` times the sign's weight. Limits: both 1 is `ppo_clip`, value and gradient;
equal ones are it with that factor; ratio ≡ 1 is REINFORCE with these weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    positive: float = knob(1.0, "weight of the tokens with A > 0", least=0)
    negative: float = knob(1.0, "weight of the tokens with A < 0", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    weight_BT = torch.full_like(loss_BT, p.negative).masked_fill(x.advantage_BT > 0, p.positive)
    return weight_BT * loss_BT, bounds
