"""TOPR: REINFORCE without a ratio on what was good, and with a ratio of at most 1 on what was bad.

    A > 0:  loss_t = −positive · A · log π_θ
    A ≤ 0:  loss_t = −negative · sg(min(r, 1)) · A · log π_θ

Source: arXiv 2503.14286, in ROLL's code (`topr`); both weights are 1 there. Weight on ∇log π: A,
and min(r, 1)·A. A bad token that the policy has already made rarer is pushed down less and less,
and never by more than REINFORCE would. So nothing is clipped and no bounds are stated. Limits:
ratio ≡ 1 is REINFORCE with these weights, and both 1 are it where no ratio is below 1, value and
gradient. Assumed: the sign is the advantage's; ROLL takes the score's, which with rewards of ±1 is
the same sign without a baseline.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    positive: float = knob(1.0, "weight of the tokens with A > 0", least=0)
    negative: float = knob(1.0, "weight of the tokens with A ≤ 0", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    tapered_BT = p.negative * x.ratio_BT.detach().clamp(max=1.0)
    weight_BT = torch.where(x.advantage_BT > 0, p.positive, tapered_BT)
    return -weight_BT * x.advantage_BT * x.logprob_BT, {}
