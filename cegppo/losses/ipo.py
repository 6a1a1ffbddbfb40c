"""IPO: a token is left out once its probability has moved by δ in either direction, whatever the
sign of A, and a squared log-ratio pulls every token back.

    loss_t = −r · A · [|π_θ − π_old| ≤ δ] + τ (log r)²                 (π of the sampled token)

Source: prime-rl's loss of that name; δ = 0.1 and τ = 1e-3 are its defaults. Weight on ∇log π: r·A,
or 0, minus 2 τ log r; the second part stays for tokens that are left out. As bounds on the ratio: 1
± δ/π_old, stated as `clip_low` and `clip_high`; tokens that left them against their advantage are
the fact `other_clip`. Limits: τ = 0 is `dppo` where the token moved with its advantage; δ = 1 and τ
= 0 mask nothing (the unclipped importance-weighted loss); ratio ≡ 1 is REINFORCE. Left out: its
ratio is against the sampler's log-probabilities, here against the old policy's
(`rollout.old_logprobs` says whose those are).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..types import TokenBatch, knob


@dataclass(frozen=True)
class Params:
    delta: float = knob(0.1, "δ: how far a probability may move", above=0, most=1)
    tau: float = knob(1e-3, "τ: coefficient of the squared log-ratio", least=0)


def token_loss(x: TokenBatch, p: Params) -> tuple[Tensor, dict[str, Tensor]]:
    old_prob_BT = x.old_logprob_BT.exp()
    moved_BT = (x.logprob_BT.exp() - old_prob_BT).detach()
    policy_BT = torch.where(moved_BT.abs() > p.delta, 0.0, -x.advantage_BT * x.ratio_BT)
    old_prob_BT = old_prob_BT.clamp(min=torch.finfo(old_prob_BT.dtype).tiny)  # so that the bounds are finite
    against_BT = moved_BT * x.advantage_BT < 0
    facts = {
        "clip_low": 1 - p.delta / old_prob_BT,
        "clip_high": 1 + p.delta / old_prob_BT,
        "other_clip": (moved_BT.abs() > p.delta) & against_BT,
    }
    return policy_BT + p.tau * x.log_ratio_BT**2, facts
