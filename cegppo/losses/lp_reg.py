"""Lp-Reg: the rarest of the tokens with A < 0 are pulled towards the old policy without its tail.

    π̃     = π_old without the tokens below κ times its most probable one, renormalised
    S      = of the N₋ tokens with A < 0 the ⌊share · N₋⌋ of lowest π_θ, if that is two or more,
             where π_θ(y_t) < π̃(y_t): a token of the tail has π̃ = 0 and is not among them
    loss_t = −A r + c · min(k3, 10),  k3 = π̃/π_θ − log(π̃/π_θ) − 1     for t ∈ S
             the loss of `ppo_clip`                                  elsewhere

Source: arXiv 2510.03222 and its code: κ 0.02 by "min-p", c 1, share 0.01 (0.005 at 32B), and a clip
of 1 and 9, which leaves nearly nothing cut. Its code finds S in every micro-batch; here the loss
asks for the mini-batch. Weight on ∇log π: that of `ppo_clip`; in S r·A + c (π̃/π_θ − 1), and without
the second part where k3 is above 10 (fact `low_prob_kl`: S). Limits: c = 0 with nothing clipped, or
share 0, is `ppo_clip`, value and gradient. Needs `proxy_logprob_BT`. Left out: the same for A > 0,
which its scripts do not use, and a fixed threshold in the place of κ.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

WHOLE_BATCH = True
PROXY = "min_p"
MOST = 10.0  # its k3 estimate is cut there, and log(π̃/π_θ) at twice that


@dataclass(frozen=True)
class Params:
    eps_low: float = knob(1.0, "ε_low: how far below 1 the ratio may go; 1: no lower bound", above=0, most=1)
    eps_high: float = knob(9.0, "ε_high: how far above 1 the ratio may go", above=0)
    share: float = knob(
        0.01, "share of the mini-batch's tokens with A < 0, the rarest, that may be pulled", least=0, most=1
    )
    min_p: float = knob(0.02, "κ: a token of π_old below this share of its most probable one is tail", above=0, below=1)
    coefficient: float = knob(1.0, "c: coefficient of the pull", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, ppo_clip.Params(p.eps_low, p.eps_high))
    logprob_BT, proxy_BT = x.logprob_BT, x.proxy_logprob_BT
    negative_BT = x.mask_BT.bool() & (x.advantage_BT < 0)
    count = int(p.share * int(negative_BT.sum()))
    rarest = torch.where(negative_BT, logprob_BT.detach(), torch.inf).flatten().topk(count, largest=False).indices
    low_BT = torch.zeros_like(negative_BT).flatten().index_fill(0, rarest, count > 1).view_as(negative_BT)
    low_BT = low_BT & (logprob_BT.detach() < proxy_BT)
    short_BT = (proxy_BT - logprob_BT).clamp(max=2 * MOST)
    pull_BT = (short_BT.expm1() - short_BT).clamp(max=MOST)
    pulled_BT = -x.advantage_BT * x.ratio_BT + p.coefficient * pull_BT
    return torch.where(low_BT, pulled_BT, loss_BT), {**bounds, "low_prob_kl": low_BT}
