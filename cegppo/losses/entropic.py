"""EntroPIC's loss: the clipped surrogate, and a pull on the tokens that are nearly certain.

    loss_t = max(−A r, −A clip(r, 1 − ε_low, 1 + ε_high)) − α · [p > threshold] · N / N_p · r |A|

p is the token's probability under π_θ, N the tokens of the mini-batch, N_p those with p >
threshold: with the token mean the second term is the mean over the N_p. α > 0 makes what is nearly
certain more so, right or wrong, which lowers entropy; α < 0 does the opposite. The controller
`entropic` sets it.

Source: arXiv 2511.15248, its code (threshold 0.95, the second term without a clip). Weight on ∇log
π: that of `ppo_clip`, plus α·N/N_p·r·|A| where p > threshold. Limit: α = 0 is `ppo_clip`. The code
takes N and N_p of a micro-batch; here the loss asks for the whole mini-batch. Left out: the dual
clip at 3, which is `update.dual_clip`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    alpha: float = knob(0.0, "α: weight of the pull towards what is nearly certain", least=-1, most=1)
    threshold: float = knob(0.95, "probability above which a token is nearly certain", above=0, below=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    certain_BT = (x.logprob_BT.detach().exp() > p.threshold) & x.mask_BT.bool()
    share = certain_BT.sum().clamp(min=1) / x.mask_BT.sum().clamp(min=1)
    pull_BT = torch.where(certain_BT, x.ratio_BT * x.advantage_BT.abs(), 0.0)
    return loss_BT - p.alpha / share * pull_BT, {**bounds, "certain": certain_BT}
