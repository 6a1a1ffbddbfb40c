"""REPO-R: the advantage grows or shrinks with the token's own log-probability.

    Â_t    = max(A (1 − ζ log π_θ), 0) where A > 0,      min(A (1 + ζ log π_θ), 0) elsewhere
    loss_t = the loss of `ppo_clip` with Â in the place of A; log π_θ in Â is held constant

ζ > 0 raises what is rare and right by more and lowers what is rare and wrong by less, which keeps
entropy up; ζ < 0 does the opposite. The controller `repo_r` sets it.

Source: arXiv 2603.11682, Appendix D.2, by SkyRL's code and notes on it: the log-probability stands
for the centred one of the paper's REPO. Weight on ∇log π: that of `ppo_clip` with Â. Limits: ζ = 0
is `ppo_clip`, value and gradient; ratio ≡ 1 is REINFORCE with Â.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob
from . import ppo_clip


@dataclass(frozen=True)
class Params(ppo_clip.Params):
    zeta: float = knob(1e-3, "ζ: how much of its log-probability a token's advantage takes", least=-1, most=1)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    surprise_BT = -p.zeta * x.logprob_BT.detach()
    factor_BT = torch.where(x.advantage_BT > 0, 1 + surprise_BT, 1 - surprise_BT).clamp(min=0)
    return ppo_clip.token_loss(x.but(advantage_BT=x.advantage_BT * factor_BT), p)
