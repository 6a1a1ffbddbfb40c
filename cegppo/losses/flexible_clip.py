"""Flexible clip: bounds that depend on the token's probability, ε(π) = α π + β, mixed with ε.

    E₊(π)  = upper · (α₊ π + β₊) + (1 − upper) · ε
    E₋(π)  = lower · (α₋ π + β₋) + (1 − lower) · ε
    loss_t = max(−A r, −A clip(r, 1 − E₋(π_θ), 1 + E₊(π_θ)))

With π_θ = r π_old and E(π) = α π + β these are bounds on the ratio, r ≤ (1 + β) / (1 − α π_old) and
r ≥ (1 − β) / (1 + α π_old), which are clipped at without a gradient.

Source: arXiv 2602.09782, by its authors' notes. α and β are known second hand alone, from two
re-implementations that agree: −0.25 and 0.50 above, −0.13 and 0.30 below; ε = 0.2. Its phases are
schedules of `upper` and `lower`, T the run's steps:
increase, then decrease:             upper 1 → 0 over [0, T/2];     lower 0, from T/2 on 1 → 0
decrease, increase, decrease:        upper 0 → 1 over [0, T/2];     lower 0, from T/2 on 1 → 0
`experiments/method/flexible_clip.yaml` is the first, `flexible_clip_did.yaml` the second. Its third
switches by the entropy: the controller `oscillating`. Weight on ∇log π: r·A, or 0 beyond a bound.
Limits: with
upper = lower = 0 it is `ppo_clip` with ε on both sides, with α = 0 `ppo_clip` at any mixture, value
and gradient; ratio ≡ 1 is REINFORCE. Assumed: the bound carries no gradient.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    upper: float = knob(1.0, "share of the probability's line in the upper ε", least=0, most=1)
    lower: float = knob(1.0, "share of the probability's line in the lower ε", least=0, most=1)
    eps: float = knob(0.2, "ε that a line is mixed with", above=0, below=1)
    upper_slope: float = knob(-0.25, "α₊: slope of the upper line", above=-1, below=1)
    upper_start: float = knob(0.5, "β₊: the upper line at π = 0", above=0)
    lower_slope: float = knob(-0.13, "α₋: slope of the lower line", above=-1, below=1)
    lower_start: float = knob(0.3, "β₋: the lower line at π = 0", above=0, below=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    old_prob_BT, ratio_BT = x.old_logprob_BT.exp(), x.ratio_BT
    above = p.upper * p.upper_start + (1 - p.upper) * p.eps
    below = p.lower * p.lower_start + (1 - p.lower) * p.eps
    clip_high_BT = (1 + above) / (1 - p.upper * p.upper_slope * old_prob_BT)
    clip_low_BT = (1 - below) / (1 + p.lower * p.lower_slope * old_prob_BT)
    clipped_BT = ratio_BT.clamp(clip_low_BT, clip_high_BT)
    loss_BT = torch.maximum(-x.advantage_BT * ratio_BT, -x.advantage_BT * clipped_BT)
    return loss_BT, {"clip_low": clip_low_BT, "clip_high": clip_high_BT}
