"""The clipped surrogate of PPO, used by GRPO and, with a wider upper bound, by clip-higher (DAPO).

    loss_t = max(−A r, −A clip(r, 1 − ε_low, 1 + ε_high)),     r = π_θ(y_t) / π_old(y_t)

Source: Schulman et al. (arXiv 1707.06347), Eq. 7; asymmetric bounds: DAPO (arXiv 2503.14476), Eq.
10. Weight on ∇log π: r·A, and 0 where A < 0, r < 1 − ε_low or A > 0, r > 1 + ε_high. Limits: ratio
≡ 1 gives REINFORCE; ε_low = 1 and ε_high = ∞ would give the unclipped importance-weighted gradient.
Left out here: dual clip (`update.dual_clip`), which is not a matter of one loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    eps_low: float = knob(0.2, "ε_low: how far below 1 the ratio may go", above=0, below=1)
    eps_high: float = knob(0.2, "ε_high: how far above 1 the ratio may go", above=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    clipped_BT = x.ratio_BT.clamp(1 - p.eps_low, 1 + p.eps_high)
    bounds = dict(
        clip_low=torch.full_like(clipped_BT, 1 - p.eps_low), clip_high=torch.full_like(clipped_BT, 1 + p.eps_high)
    )
    return torch.maximum(-x.advantage_BT * x.ratio_BT, -x.advantage_BT * clipped_BT), bounds
