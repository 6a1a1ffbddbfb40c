"""VESPO: REINFORCE with a weight for the whole response that falls smoothly where its ratio leaves
1, instead of a clip.

    w       = exp(Σ_t log r_t)                              (the ratio of the whole response)
    φ(w)    = e^λ · w^k · e^(−λ w),  (k, λ) = (k₊, λ₊) where A ≥ 0, (k₋, λ₋) where A < 0
    loss_t  = −sg(φ(w)) · A · log π_θ

Source: arXiv 2602.10693, in TRL's code; (2, 3) and (3, 2) are its defaults. Weight on ∇log π: φ·A,
the same for every token of a response. φ(1) = 1; its largest value is at w = k/λ, and it vanishes
at w → 0 and w → ∞, so that nothing is clipped and no bounds are stated. Each log r is held within
±20 and their sum within log 1e-8 and 20, as in that code. Limits: ratio ≡ 1 is REINFORCE, value and
gradient; k = λ → 0 too, whatever the ratio. Left out: the factor of the sampler's mismatch inside
w, which `update.correction` puts outside.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import MAX_LOG_RATIO, TokenBatch, knob

LEAST_LOG_RATIO = math.log(1e-8)


@dataclass(frozen=True)
class Params:
    k_pos: float = knob(2.0, "k₊: power of the response's ratio where A ≥ 0", least=0)
    lambda_pos: float = knob(3.0, "λ₊: decay with the response's ratio where A ≥ 0", least=0)
    k_neg: float = knob(3.0, "k₋: power of the response's ratio where A < 0", least=0)
    lambda_neg: float = knob(2.0, "λ₋: decay with the response's ratio where A < 0", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    log_ratio_BT = x.log_ratio_BT.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO) * x.mask_BT
    log_w_B1 = log_ratio_BT.sum(-1, keepdim=True).clamp(LEAST_LOG_RATIO, MAX_LOG_RATIO)
    positive_BT = x.advantage_BT >= 0
    k_BT = torch.where(positive_BT, p.k_pos, p.k_neg)
    lambda_BT = torch.where(positive_BT, p.lambda_pos, p.lambda_neg)
    phi_BT = torch.exp(lambda_BT * (1 - log_w_B1.exp()) + k_BT * log_w_B1)
    return -phi_BT * x.advantage_BT * x.logprob_BT, {}
