"""STEER: the clipped surrogate, less of it the more a token would move the entropy.

    Ω_t    = A · r · (1 − π_θ(y_t)) · (log π_θ(y_t) + H_t),     ∝ the predicted change of entropy
    λ_t    = exp(−k |Ω_t|),     k = −ln(least) / max(max |Ω|, 0.02),     max over the mini-batch
    loss_t = λ_t · the loss of `ppo_clip`

Source: arXiv 2510.10150 and its code: the form with an exponential, in which the token that would
move the entropy most gets the weight `least` = 0.8, with a clip of 0.2 and 0.28 and a dual clip of
10. Its code takes the maximum in every micro-batch. Ω is its code's A/π_old · π (1 − π) (ln π + H).
Weight on ∇log π: λ times that of `ppo_clip`; λ is held constant (fact `entropy_weight`, its mean).
Limits: least = 1 is `ppo_clip`, value and gradient; ratio ≡ 1 is REINFORCE with weight λ. Left out:
the code's linear map onto [0.8, 1.2].
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True
FLOOR = 0.02  # a mini-batch that hardly moves the entropy is hardly weighted

NEEDS = ("entropy_BT",)


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    eps_high: float = knob(0.28, "ε_high: how far above 1 the ratio may go", above=0)
    least: float = knob(0.8, "weight of the token that would move the entropy most", above=0, most=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    logprob_BT = x.logprob_BT.detach().clamp(max=0)
    pull_BT = (1 - logprob_BT.exp()) * (logprob_BT + x.entropy_BT.detach())
    moves_BT = (x.advantage_BT * x.ratio_BT.detach() * pull_BT).abs()
    largest = moves_BT[x.mask_BT.bool()].max().clamp(min=FLOOR)
    weight_BT = torch.exp(log(p.least) * moves_BT / largest)
    return weight_BT * loss_BT, {**bounds, "entropy_weight": weight_BT}
