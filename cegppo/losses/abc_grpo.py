"""ABC-GRPO: the ratio is clipped on both sides whatever the advantage's sign, by four bounds.

    loss_t = −clip(r, 1 − ε₂, 1 + ε₁) · A where A > 0,     −clip(r, 1 − ε₄, 1 + ε₃) · A where A ≤ 0

Source: arXiv 2601.03895, Eq. 5; all four are 0.2 in its runs. There is no outer minimum. Weight on
∇log π: r·A between the bounds, 0 outside. Limits: it is `ppo_clip` with ε_low = ε₄ and ε_high = ε₁,
value and gradient, but for the tokens that only it clips (fact `other_clip`): A > 0 below 1 − ε₂
and A < 0 above 1 + ε₃; ε₂ = 1 and a large ε₃ leave none. Ratio ≡ 1 is REINFORCE. Stated as
`clip_low` and `clip_high` are the bounds of the sides that PPO has: 1 − ε₄ and 1 + ε₁.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    eps1: float = knob(0.2, "ε₁: how far above 1 the ratio may go where A > 0", above=0)
    eps2: float = knob(0.2, "ε₂: how far below 1 where A > 0", above=0, most=1)
    eps3: float = knob(0.2, "ε₃: how far above 1 where A ≤ 0", above=0)
    eps4: float = knob(0.2, "ε₄: how far below 1 where A ≤ 0", above=0, below=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    ratio_BT, positive_BT = x.ratio_BT, x.advantage_BT > 0
    clipped_BT = torch.where(
        positive_BT, ratio_BT.clamp(1 - p.eps2, 1 + p.eps1), ratio_BT.clamp(1 - p.eps4, 1 + p.eps3)
    )
    other_BT = (positive_BT & (ratio_BT < 1 - p.eps2)) | ((x.advantage_BT < 0) & (ratio_BT > 1 + p.eps3))
    bounds = dict(clip_low=torch.full_like(ratio_BT, 1 - p.eps4), clip_high=torch.full_like(ratio_BT, 1 + p.eps1))
    return -clipped_BT * x.advantage_BT, {**bounds, "other_clip": other_BT}
