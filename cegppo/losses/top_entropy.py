"""80/20: the clipped surrogate on the tokens of highest entropy alone.

    τ      = the ⌊share · N⌋-th largest of the entropies H of the mini-batch's N tokens
    loss_t = the loss of `ppo_clip` where H_t ≥ τ,      0 elsewhere

Source: Wang et al., "Beyond the 80/20 rule" (arXiv 2506.01939), its equation as TRL quotes it;
share 0.2 and DAPO's clip of 0.2 and 0.28. The sum is divided by all tokens, as in its equation, not
by those kept. Weight on ∇log π: that of `ppo_clip`, or 0. Limits: share 1 is `ppo_clip`, value and
gradient. Assumed: H is the entropy of π_θ in the update's forward pass and the batch of τ is the
mini-batch. Fact `kept`: the tokens with H ≥ τ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True

NEEDS = ("entropy_BT",)


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    eps_high: float = knob(0.28, "ε_high: how far above 1 the ratio may go", above=0)
    share: float = knob(0.2, "share of the mini-batch's tokens that train: those of highest entropy", above=0, most=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    inside_BT, entropy_BT = x.mask_BT.bool(), x.entropy_BT.detach()
    entropy_N = entropy_BT[inside_BT]
    threshold = entropy_N.topk(max(1, int(p.share * len(entropy_N)))).values[-1]
    kept_BT = inside_BT & (entropy_BT >= threshold)
    return torch.where(kept_BT, loss_BT, 0.0), {**bounds, "kept": kept_BT}
