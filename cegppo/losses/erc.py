"""ERC, entropy ratio clipping: a token trains while its state's entropy has hardly moved.

    ρ_t    = (H_t + 1e-8) / (H_old,t + 1e-8)        full-vocabulary entropies, now and before the
    loss_t = the loss of `ppo_clip`, held constant unless 1 − β_low < ρ_t < 1 + β_high       updates

Source: arXiv 2512.05591 and its code, upon DAPO's clip of 0.2 and 0.28; its scripts have β = 0.05
on both sides, its configuration's default is 0.8 to 1.2. A token outside keeps its value and counts
in the aggregation, whatever the sign of its advantage. Weight on ∇log π: that of `ppo_clip`, or 0
(fact `entropy_ratio_clip`). Limits: an unchanged entropy leaves `ppo_clip`, value and gradient, as
in the first update of a step; the value always is that of `ppo_clip`. Left out: its second form
upon GPPO. Needs `old_entropy_BT`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip

FLOOR = 1e-8

NEEDS = ("entropy_BT", "old_entropy_BT")


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    eps_high: float = knob(0.28, "ε_high: how far above 1 the ratio may go", above=0)
    beta_low: float = knob(0.05, "β_low: how far below 1 the entropy's ratio may go", above=0, most=1)
    beta_high: float = knob(0.05, "β_high: how far above 1 the entropy's ratio may go", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    loss_BT, bounds = ppo_clip.token_loss(x, p)
    moved_BT = (x.entropy_BT.detach() + FLOOR) / (x.old_entropy_BT + FLOOR)
    held_BT = (moved_BT <= 1 - p.beta_low) | (moved_BT >= 1 + p.beta_high)
    return torch.where(held_BT, loss_BT.detach(), loss_BT), {**bounds, "entropy_ratio_clip": held_BT}
