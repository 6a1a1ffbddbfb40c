"""SAPO: a sigmoid of the ratio instead of a clip, steeper for negative advantages.

    loss_t = −f(r) · A,     f(r) = (4/τ) · σ(τ (r − 1)),     τ = τ_pos where A > 0, τ_neg elsewhere

Source: arXiv 2511.20347, by verl's code and the notes on it; τ_pos 1.0 and τ_neg 1.05 are its
defaults, with a mean over sequences. Weight on ∇log π: 4 σ (1 − σ) · r · A, which is A at r = 1 and
falls off smoothly on both sides of it. Limits: ratio ≡ 1 is REINFORCE; τ → 0 is the unclipped
importance-weighted gradient (the values differ by the constant (2/τ − 1) A). No bounds on a ratio,
so none are stated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    tau_pos: float = knob(1.0, "τ where A > 0: how steep the gate is", above=0)
    tau_neg: float = knob(1.05, "τ where A ≤ 0", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    tau_BT = torch.full_like(x.ratio_BT, p.tau_neg).masked_fill(x.advantage_BT > 0, p.tau_pos)
    gate_BT = 4 / tau_BT * torch.sigmoid(tau_BT * (x.ratio_BT - 1))
    return -gate_BT * x.advantage_BT, {}
