"""KL-Cov: no clip; the tokens of highest covariance are held to the old policy.

    c_t    = (log π_θ(y_t) − mean log π_θ) · (A_t − mean A),   means over the mini-batch's N tokens
    S      = the max(1, ⌊share · N⌋) tokens of largest c_t
    loss_t = −r · A + β |log r| for t ∈ S,      −r · A elsewhere

Source: Cui et al., "The Entropy Mechanism" (arXiv 2505.22617), Section 4, and its code. Share 2e-4
(its 32B model; 2e-3 for 7B) and β = 1 are the function's defaults; verl's YAML says β = 0.1. Weight
on ∇log π: r·A, less β·sign(log r) in S (fact `covariance_kl`). Limits: β = 0 is the unclipped
importance-weighted loss, value and gradient; ratio ≡ 1 is REINFORCE, since |log r| has the slope 0
there. No bounds on a ratio, so none are stated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from .clip_cov import covariance

WHOLE_BATCH = True


@dataclass(frozen=True)
class Params:
    share: float = knob(2e-4, "share of the mini-batch's tokens that are held", above=0, most=1)
    beta: float = knob(1.0, "β: coefficient of |log r| on those", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    inside_BT = x.mask_BT.bool()
    count = max(1, int(p.share * float(x.mask_BT.sum())))
    largest = torch.where(inside_BT, covariance(x), -torch.inf).flatten().topk(count).indices
    held_BT = torch.zeros_like(inside_BT).flatten().index_fill(0, largest, True).view_as(inside_BT)
    penalty_BT = torch.where(held_BT, p.beta * x.log_ratio_BT.abs(), 0.0)
    return -x.advantage_BT * x.ratio_BT + penalty_BT, {"covariance_kl": held_BT}
