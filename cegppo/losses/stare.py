"""STARE: the most surprising tokens weigh more where A > 0, and less where A < 0.

    L₊, L₋ = of the mini-batch's tokens with A > 0, and with A < 0, the ⌈share · N₊⌉ and
             ⌈share · N₋⌉ of lowest π_θ
    loss_t = the loss of `ppo_clip`, times `positive` for t ∈ L₊, times `negative` for t ∈ L₋

The controller `stare` switches the weights off while the entropy is above its target.

Source: arXiv 2606.19236, its code: share 0.1, 1.1 for L₊; 1 for L₋ in its variant O1, 0.9 in C2;
clip 0.2 and 0.28, dual clip 10 (`update.dual_clip`). Its code ranks the tokens of a micro-batch.
Weight on ∇log π: that of `ppo_clip`, times `positive` or `negative` (fact `surprising`: L₊ and L₋).
Limits: both 1 is `ppo_clip`, value and gradient.
"""

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    eps_high: float = knob(0.28, "ε_high: how far above 1 the ratio may go", above=0)
    share: float = knob(0.1, "share of the tokens of either sign that are surprising", above=0, most=1)
    positive: float = knob(1.1, "weight of the surprising tokens with A > 0", least=0)
    negative: float = knob(1.0, "weight of the surprising tokens with A < 0", least=0)


def surprising(x: TokenBatch, of_BT: Tensor, share: float) -> Tensor:
    """[B, T] the ⌈share · N⌉ of the N tokens `of_BT` that are least probable under π_θ."""
    count = ceil(share * int(of_BT.sum()))
    least = torch.where(of_BT, x.logprob_BT.detach(), torch.inf).flatten().topk(count, largest=False).indices
    return torch.zeros_like(of_BT).flatten().index_fill(0, least, True).view_as(of_BT)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    inside_BT = x.mask_BT.bool()
    high_BT = surprising(x, inside_BT & (x.advantage_BT > 0), p.share)
    low_BT = surprising(x, inside_BT & (x.advantage_BT < 0), p.share)
    weighted_BT = torch.where(high_BT, p.positive * loss_BT, torch.where(low_BT, p.negative * loss_BT, loss_BT))
    return weighted_BT, {**bounds, "surprising": high_BT | low_BT}
